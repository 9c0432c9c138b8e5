"""``gatepost chaos``: failure policies of a configuration, tried."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.pipeline import runner
from gateway.pipeline.asking import Said
from gateway.sdk import PROCEED

CONFIG: dict[str, Any] = {
    "hostname": "mx.example.org",
    "listeners": [{"address": "127.0.0.1:2525"}],
    "domains": {"example.org": {"next_hop": "maildir:mail", "recipients": {"list": ["ben"]}}},
    "pipeline": [
        {"dnsbl": {"zones": {"bl.test": 2}, "reject_at": 2}, "on_error": "proceed"},
        "spf",
        {"milter": {"connect": "127.0.0.1:9"}, "on_error": "reject"},
        {"clamd": {"connect": "127.0.0.1:9"}, "timeout": "90s", "on_error": "proceed"},
        {"greylist": {}, "shadow": True},
    ],
    "pipelines": {"other": [{"dnsbl": {"zones": {"bl.test": 2}, "reject_at": 2}, "on_error": "reject"}]},
}


class Lab:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "gatepost.yaml"
        self.file.write_text(json.dumps({**CONFIG, "state": {"path": "state"}, "spool": {"path": "spool"}}))

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["chaos", "-c", str(self.file), *arguments])

    def rows(self, *arguments: str, status: int = 0) -> list[dict[str, Any]]:
        result = self.run(*arguments, "--json")
        assert result.exit_code == status, result.output
        rows: list[dict[str, Any]] = json.loads(result.stdout)
        return rows


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    yield Lab(tmp_path)
    # The command has set up logging, as a process of its own may.
    structlog.reset_defaults()


def test_without_arguments_every_entry_fails_in_every_way_and_all_hold(lab: Lab) -> None:
    rows = lab.rows()
    assert {(row["pipeline"], row["entry"]) for row in rows} == {
        *((("default", name)) for name in ("recipient", "dnsbl", "spf", "milter", "clamd", "greylist")),
        *((("other", name)) for name in ("recipient", "dnsbl")),
    }
    assert {row["fault"].removesuffix(" after an edit") for row in rows} == {"error", "timeout", "garbage", "slow:2s"}
    assert all(row["holds"] and not row["wrong"] for row in rows)
    assert not list(lab.folder.glob("s*")), "nothing was opened or kept"


def test_a_timeout_takes_its_time_and_no_more_and_its_breaker_opens_and_closes(lab: Lab) -> None:
    rows = lab.rows("dnsbl=timeout")
    assert [(row["pipeline"], row["came"], row["stage"]) for row in rows] == [
        ("default", "proceed", "rcpt"),
        ("other", "reject", "rcpt"),
    ]
    assert rows[1]["reply"].startswith("554 5.3.0 cannot be taken (ref ")
    assert {(row["seconds"], row["bound"], row["breaker"]) for row in rows} == {
        (10.0, 10.0, "opens after 5, closes again")
    }


def test_every_stage_at_which_an_entry_is_asked_is_tried(lab: Lab) -> None:
    rows = lab.rows("milter=garbage", "milter=slow:31s")
    tried = [(row["begins"], row["stage"], row["fault"], row["reply"][:5]) for row in rows]
    stages = ("connect", "helo", "mail", "rcpt", "data")
    assert tried == [
        *((stage, stage, fault, "554 5") for stage in stages for fault in ("garbage", "slow:31s")),
        ("message", "message", "garbage", "554 5"),
        ("message", "message", "garbage after an edit", "451 4"),
        ("message", "message", "slow:31s", "554 5"),
    ]


def test_who_is_slow_and_in_time_has_not_failed(lab: Lab) -> None:
    (row,) = lab.rows("spf=slow:15s")
    assert (row["came"], row["expected"], row["declared"], row["seconds"]) == ("proceed", "proceed", "defer", 15.0)
    (row,) = lab.rows("spf=slow:22s")
    assert (row["came"], row["stage"], row["seconds"]) == ("defer", "rcpt", 20.0)


def test_a_timeout_that_no_stage_waits_for_opens_the_breaker_all_the_same(lab: Lab) -> None:
    (row,) = lab.rows("clamd=timeout")
    assert row["breaker"] == "opens after 5, closes again"
    assert (row["came"], row["seconds"], row["holds"]) == ("proceed", 60.0, True)


def test_an_entry_in_shadow_refuses_nothing(lab: Lab) -> None:
    rows = lab.rows("greylist=error")
    assert {(row["declared"], row["came"]) for row in rows} == {("defer (shadow)", "proceed")}


def test_a_policy_that_does_not_hold_is_named_and_ends_with_status_1(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(fault: Any, *_: Any) -> Said:
        return Said(PROCEED, fault.entry, "on_error", "", False)

    monkeypatch.setattr(runner, "on_error", careless)
    (row,) = lab.rows("spf=error", status=1)
    assert not row["holds"] and row["wrong"].startswith("expected defer, and message was answered 250 ")
    result = lab.run("spf=error", "dnsbl=error", "--pipeline", "default")
    assert result.exit_code == 1
    assert "default: spf (Spf), error: expected defer" in result.stdout
    assert "2 trials, 1 in which the declared policy did not hold" in result.stdout


def test_a_failure_that_takes_longer_than_it_may_does_not_hold(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.pipeline.lookup import Lookup

    monkeypatch.setattr(Lookup, "_start_timer", lambda self: None)
    rows = lab.rows("milter=slow:40s", status=1)
    (row,) = [row for row in rows if row["begins"] == "message"]
    assert "message took 40 s, and may take 30 s" in row["wrong"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("spf",), "write ENTRY=FAULT"),
        (("=error",), "write ENTRY=FAULT"),
        (("spf=dead\x1b",), r"'dead\x1b' is none of timeout, error, garbage and slow:DURATION"),
        (("nosuch=error",), "no entry nosuch asks anybody anything; there are recipient, dnsbl, "),
        (("spf=error", "--pipeline", "other"), "no entry spf asks anybody anything; there are recipient, dnsbl"),
        (("--pipeline", "nosuch"), "no pipeline is called nosuch; there are default, other"),
    ],
)
def test_wrong_usage_is_told(lab: Lab, arguments: tuple[str, ...], said: str) -> None:
    result = lab.run(*arguments)
    assert result.exit_code == 2 and said in result.stderr, result.output


def test_a_configuration_without_anything_to_fail_says_so(lab: Lab) -> None:
    lab.file.write_text(json.dumps({"hostname": "mx.test", "listeners": CONFIG["listeners"]}))
    result = lab.run()
    assert (result.exit_code, result.stdout) == (0, "no entry asks anybody anything: nothing can fail\n")
