"""`gatepost lint` on the command line: what it prints, and its exit status."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.cli import main

CLEAN = 'hostname: mx.example.org\nlisteners: [{address: "127.0.0.1:25"}]\n'


def run(folder: Path, text: str, *arguments: str) -> Result:
    file = folder / "gatepost.yaml"
    file.write_text(text)
    return CliRunner().invoke(main, ["lint", "-c", str(file), *arguments])


@pytest.mark.parametrize(
    ("more", "bar", "status"),
    [
        ("", "note", 0),
        ("authserv_id: gatepost\n", "warning", 0),
        ("authserv_id: gatepost\n", "note", 1),
        ("split_refused: discard\n", "warning", 1),
        ("split_refused: discard\n", "error", 0),
        ('relay_from: ["0.0.0.0/0"]\n', "error", 1),
    ],
)
def test_the_exit_status_says_whether_something_reaches_the_bar(
    more: str, bar: str, status: int, tmp_path: Path
) -> None:
    assert run(tmp_path, CLEAN + more, "--fail-on", bar).exit_code == status


def test_without_a_bar_warnings_count(tmp_path: Path) -> None:
    assert run(tmp_path, CLEAN + "split_refused: discard\n").exit_code == 1
    assert run(tmp_path, CLEAN + "authserv_id: gatepost\n").exit_code == 0


def test_a_remark_is_printed_with_its_place_what_can_happen_and_the_fix(tmp_path: Path) -> None:
    result = run(tmp_path, CLEAN + "split_refused: discard\n")
    first, happens, fix, last = result.stdout.splitlines()
    assert first.startswith(f"{tmp_path}/gatepost.yaml:3:1: warning GP804: split_refused: ")
    assert happens.startswith("    can happen: ") and fix.startswith("    fix: write split_refused: quarantine")
    assert last.endswith("gatepost.yaml: 0 errors, 1 warning, 0 notes")


def test_json_has_all_of_it_and_what_is_ignored(tmp_path: Path) -> None:
    text = CLEAN + "split_refused: discard # lint: ignore GP804 so be it\nauthserv_id: gatepost\n"
    found = json.loads(run(tmp_path, text, "--json").stdout)
    assert (found["ok"], found["error"], found["warning"], found["note"]) == (True, 0, 0, 1)
    ((remark,), (ignored,)) = found["remarks"], found["ignored"]
    assert (remark["code"], remark["line"], remark["column"], remark["key"]) == ("GP707", 4, 1, "authserv_id")
    assert (ignored["code"], ignored["ignored"]) == ("GP804", "so be it")


@pytest.mark.parametrize("broken", ["nonsense: 1\n", "pipeline: [nonsense]\n", "a: [\n"])
def test_a_configuration_that_cannot_be_used_is_reported_as_check_reports_it(broken: str, tmp_path: Path) -> None:
    for more in ((), ("--json",)):
        result = run(tmp_path, CLEAN + broken, *more)
        checked = CliRunner().invoke(main, ["check", "-c", str(tmp_path / "gatepost.yaml"), *more])
        assert result.exit_code == checked.exit_code == 2
        assert (result.stdout, result.stderr) == (checked.stdout, checked.stderr)


def test_what_cannot_be_looked_at_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "statvfs", refuse)
    result = run(tmp_path, CLEAN)
    assert result.exit_code == 2
    assert "Permission denied; run this as the user of Gatepost" in result.stderr


def test_nothing_of_the_file_reaches_the_terminal_as_a_control_character(tmp_path: Path) -> None:
    lists = '{match: sender, kind: glob, entries: ["\\e[2J* reject", "\\e[2J* reject"]}'
    result = run(tmp_path, CLEAN + f"pipeline: [{{access: {{lists: [{lists}]}}}}]\n")
    assert "access/hidden-line" in result.stdout and "\x1b" not in result.stdout
