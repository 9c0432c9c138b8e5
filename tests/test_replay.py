"""``gatepost replay`` over a spool of recorded traffic."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.spool.spool import SpoolOptions
from gateway.spool.sqlite import SqliteSpool


def told(number: int, score: float) -> dict[str, Any]:
    """A record of a message of which the DNS lists said this, taken under a threshold of 5."""
    refused = score >= 5
    verdict = {"stage": "rcpt", "plugin": "dnsbl", "policy": "dnsbl", "version": "2", "shadow": False}
    reply = "550 5.7.1 client is listed" if refused else "250 2.1.5 recipient ok"
    return {
        "v": 1,
        "id": f"1M32500000{number:04}1",
        "session": f"1M32500000{number:04}",
        "time": 1_790_000_000.0,
        "listener": "edge",
        "client": {"ip": "192.0.2.1", "port": 1},
        "tls": None,
        "helo": "client.example",
        "sender": "anna@sender.example",
        "recipients": [{"address": "ben@example.org", "reply": reply}],
        "size": 0 if refused else 100,
        "findings": [
            {"stage": "connect", "plugin": "dnsbl", "finding": "Dnsbl", "ms": 1, "value": {"score": score, "hits": []}}
        ],
        "verdicts": [
            {**verdict, "action": "reject", "reply": reply, "recipient": "ben@example.org"}
            if refused
            else {**verdict, "action": "proceed", "recipient": "ben@example.org"}
        ],
        "edits": [],
        "outcome": "aborted" if refused else "accepted",
        "reply": "" if refused else "250 2.0.0 queued",
        "pipeline": "default",
    }


SCORES = [0, 0, 0, 0, 0, 3, 3, 3, 6, 9]


class Desk:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.current = self.write("gatepost.yaml", 5)

    def write(self, name: str, reject_at: float, *more: Any) -> Path:
        path = self.folder / name
        options = {
            "hostname": "mx.example.org",
            "listeners": [{"address": "127.0.0.1:2525"}],
            "spool": {"path": "spool"},
            "pipeline": [{"dnsbl": {"zones": {"bl.test": 1}, "reject_at": reject_at}}, *more],
            "domains": {"example.org": {"next_hop": "maildir:mail", "recipients": "any"}},
        }
        path.write_text(json.dumps(options))
        return path

    def fill(self, records: list[dict[str, Any]]) -> None:
        async def note() -> None:
            spool = await SqliteSpool.open(SpoolOptions(str(self.folder / "spool"), min_free=1))
            for record in records:
                spool.note(record)
            await spool.close()

        asyncio.run(note())

    def replay(self, candidate: Path, *arguments: str) -> Result:
        fixed = ["replay", "-c", str(self.current), "--with", str(candidate), "--since", "20000d"]
        return CliRunner().invoke(main, [*fixed, *arguments])

    def json(self, candidate: Path) -> Any:
        result = self.replay(candidate, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path)
    made.fill([told(number, score) for number, score in enumerate(SCORES)])
    return made


def test_the_running_configuration_gives_what_was_given(desk: Desk) -> None:
    found = desk.json(desk.current)
    assert (found["transactions"], found["same"]) == (10, 10)
    assert found["samples"] == {} and found["other_options"] == []


def test_a_stricter_threshold_refuses_what_is_over_it(desk: Desk) -> None:
    found = desk.json(desk.write("stricter.yaml", 2))
    counts = {kind: found[kind] for kind in ("same", "newly_refused", "newly_accepted", "changed", "unknown")}
    assert counts == {"same": 7, "newly_refused": 3, "newly_accepted": 0, "changed": 0, "unknown": 0}
    assert [s["id"] for s in found["samples"]["newly_refused"]] == [told(n, 3)["id"] for n in (5, 6, 7)]
    assert found["other_options"] == ["default: dnsbl"]


def test_a_laxer_threshold_takes_what_was_refused_and_says_that_its_end_is_not_known(desk: Desk) -> None:
    found = desk.json(desk.write("laxer.yaml", 8))
    assert (found["newly_accepted"], found["not_judged_to_the_end"], found["same"]) == (1, 1, 9)


def test_what_was_not_looked_up_then_is_counted_with_its_reason(desk: Desk) -> None:
    found = desk.json(desk.write("more.yaml", 5, {"helo": {}}))
    assert found["unknown"] == 8 and found["same"] == 2
    assert list(found["unknown_because"].values()) == [8]
    assert next(iter(found["unknown_because"])).startswith("helo: HeloName was not looked up")


def test_it_reads_well(desk: Desk) -> None:
    text = desk.replay(desk.write("stricter.yaml", 2)).stdout
    for part in ("10 transactions", "3 newly refused (30.00 %)", "Newly refused, for example:", "findings are those"):
        assert part in text


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        ("newly_refused > 0.1%", 1),
        ("newly_refused >= 30 %", 1),
        ("newly_refused > 30%", 0),
        ("newly_refused >= 3", 1),
        ("newly_refused > 3", 0),
        ("unknown >= 1", 0),
        ("newly refused", 2),
        ("same > 1", 2),
        ("changed > -1", 2),
    ],
)
def test_a_bound_decides_the_exit_status(desk: Desk, condition: str, status: int) -> None:
    assert desk.replay(desk.write("stricter.yaml", 2), "--fail-if", condition).exit_code == status


def test_a_candidate_that_cannot_be_loaded_gives_status_2(desk: Desk) -> None:
    broken = desk.folder / "broken.yaml"
    broken.write_text("pipeline: [{dnsbl: {zones: 3}}]")
    result = desk.replay(broken)
    assert result.exit_code == 2 and "broken.yaml" in result.stderr


@pytest.mark.parametrize("key", ["listeners", "domains"])
def test_mail_that_another_pipeline_would_judge_is_not_judged_by_the_one_of_then(desk: Desk, key: str) -> None:
    candidate = desk.write("candidate.yaml", 5)
    options = json.loads(candidate.read_text())
    place = options["listeners"][0] if key == "listeners" else options["domains"]["example.org"]
    place["pipeline"] = "strict"
    candidate.write_text(json.dumps({**options, "pipelines": {"strict": [{"dnsbl": {"zones": {"bl.test": 1}}}]}}))
    desk.fill([told(20, 0), {**told(21, 0), "listener": "127.0.0.1:2525"}])
    found = desk.json(candidate)
    said = {
        "listeners": "listener 127.0.0.1:2525 has pipeline strict now",
        "domains": "domain example.org has pipeline strict now",
    }
    assert found["unknown_because"] == {said[key]: 1 if key == "listeners" else len(SCORES) + 2}


def test_nothing_recorded_fails_no_bound(desk: Desk) -> None:
    fixed = ["replay", "-c", str(desk.current), "--with", str(desk.current), "--since", "1s"]
    result = CliRunner().invoke(main, [*fixed, "--fail-if", "unknown > 0%", "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["transactions"] == 0
