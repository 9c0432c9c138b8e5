"""``gatepost plugin new``: a package that works at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli import main
from tests.support.gatepost import ROOT


def new(name: str, directory: Path) -> list[str]:
    result = CliRunner().invoke(main, ["plugin", "new", name, "--directory", str(directory), "--json"])
    assert result.exit_code == 0, result.output
    made: list[str] = json.loads(result.stdout)
    return made


def run(*argv: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *argv], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_its_tests_pass_and_its_form_holds_at_once(tmp_path):
    # Its types: tests/authors, test_types and, by its own configuration of mypy, test_guide.
    folder = tmp_path / "mail-age"
    made = new("mail-age", folder)
    assert sorted(str(Path(path).relative_to(folder)) for path in made) == [
        ".github/workflows/ci.yml",
        ".gitignore",
        "README.md",
        "gatepost_mail_age/__init__.py",
        "gatepost_mail_age/plugin.py",
        "gatepost_mail_age/py.typed",
        "pyproject.toml",
        "tests/test_mail_age.py",
    ]
    tested = run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder, path=str(ROOT))
    assert tested.returncode == 0 and " passed" in tested.stdout, tested.stdout + tested.stderr
    checked = run("-m", "ruff", "check", "--isolated", "--line-length", "120", ".", cwd=folder)
    assert checked.returncode == 0, checked.stdout
    formatted = run("-m", "ruff", "format", "--check", "--isolated", "--line-length", "120", ".", cwd=folder)
    assert formatted.returncode == 0, formatted.stdout


@pytest.mark.slow
def test_installed_it_stands_in_a_pipeline_without_another_step(tmp_path):
    folder, site = tmp_path / "mail-age", tmp_path / "site"
    new("mail-age", folder)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q", "--target", str(site)]
    installed = run("-m", "pip", "install", *options, str(folder), cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    config = tmp_path / "gatepost.yaml"
    pipeline = [{"mail-age": {"dots": 2}, "on_error": "proceed"}]
    config.write_text(json.dumps({"listeners": [{"address": "127.0.0.1:2525"}], "pipeline": pipeline}))
    cli = "from gateway.cli import main; main()"
    path = os.pathsep.join([str(site), str(ROOT)])
    shown = run("-c", cli, "pipeline", "-c", str(config), cwd=tmp_path, path=path)
    assert shown.returncode == 0, shown.stderr
    assert "MailAge" in shown.stdout and "mail-age" in shown.stdout
    listed = run("-c", cli, "plugin", "list", "--json", cwd=tmp_path, path=path)
    assert any(p["name"] == "mail-age" and not p["problem"] for p in json.loads(listed.stdout))


@pytest.mark.parametrize("name", ["Mail", "mail_age", "1mail", "-x", "x--y", "", "x" * 51, "../x", "class", "a b"])
def test_what_is_no_name_is_refused(tmp_path, name):
    result = CliRunner().invoke(main, ["plugin", "new", "--directory", str(tmp_path / "x"), "--", name])
    assert result.exit_code == 2 and not (tmp_path / "x").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("precious")
    result = CliRunner().invoke(main, ["plugin", "new", "mail-age", "--directory", str(tmp_path)])
    assert result.exit_code == 2 and "there already" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_by_default_the_folder_has_the_packages_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["plugin", "new", "mail-age"])
    assert result.exit_code == 0 and (tmp_path / "gatepost-mail-age/pyproject.toml").exists()
    assert "pytest" in result.stdout
