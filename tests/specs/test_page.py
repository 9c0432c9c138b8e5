"""docs/specs.md: its example does what it says, and its tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import structlog

from gateway.sdk.options import OptionsModel
from gateway.specs.model import Expected, Given, MessageGiven, ParametersGiven, SessionGiven
from gateway.specs.sheet import CASES, VALUES
from tests.specs.desk import Desk

PAGE = (Path(__file__).parents[2] / "docs/specs.md").read_text()


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(language: str, title: str) -> list[str]:
    return re.findall(rf"(?s)```{language}\n(.*?)```", section(title))


def first_cells(title: str) -> set[str]:
    rows = re.findall(r"(?m)^\| (`[^|]*?) \|", section(title))
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_the_example_does_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(tmp_path)
    (policy,), (spec,), (said,) = (blocks(name, "An example") for name in ("python", "yaml", "console"))
    desk.put("night-shift.py", policy)
    desk.put("night-shift.spec.yaml", spec)
    command, _, output = said.partition("\n")
    monkeypatch.chdir(tmp_path)
    result = desk.command(*command.split()[3:])
    structlog.reset_defaults()
    assert (result.stdout, result.exit_code) == (output, 0), result.output


def keys(model: type[OptionsModel], before: str = "") -> set[str]:
    return {before + name for name in model.model_fields}


def test_the_page_names_every_key_that_there_is() -> None:
    given = keys(Given) - {"session", "message"} | keys(SessionGiven, "session.") | keys(MessageGiven, "message.")
    assert first_cells("Given") == given
    assert first_cells("Expected") == keys(Expected)
    (parameters,) = re.findall(r"(?m)^\| `parameters` .* carries: (.*)\. \|$", section("Given"))
    assert set(re.findall(r"`(\w+)`", parameters)) == keys(ParametersGiven)
    assert f"at most 1 MiB and {CASES} cases" in section("Bounds") and VALUES == 1_000_000


def test_the_defaults_on_the_page_are_the_models() -> None:
    rows = dict(re.findall(r"(?m)^\| `([a-z.]+)` \| `(.*?)` \|", section("Given")))
    given, session = Given(), SessionGiven()
    assert rows["sender"] == str(given.sender)
    assert rows["recipients"] == f"[{given.recipients[0].address}]"
    for name in ("client", "helo", "listener"):
        assert rows[f"session.{name}"] == getattr(session, name)
    assert rows["message.body"] == MessageGiven().body.strip()


def test_the_output_at_the_top_of_the_page_is_what_the_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    command, _, output = re.findall(r"(?s)```console\n(.*?)```", PAGE)[0].partition("\n")
    result = Desk(root).command(*command.split()[3:])
    structlog.reset_defaults()
    assert (result.stdout, result.exit_code) == (output, 0)
