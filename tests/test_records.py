"""`whatif`, `records export`, `explain` and `replay` over records: in a spool, and in a file of another machine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.ops.redaction import Redactor
from gateway.spool.spool import SpoolOptions
from gateway.spool.sqlite import SqliteSpool
from tests.test_replay import told as listed

SCORES = [0, 0, 0, 0, 3, 3, 6, 9]
KEY = "ab" * 32


def told(number: int, score: float, **more: Any) -> dict[str, Any]:
    sender = f"anna{number}@sender{number % 2}.example"
    return {**listed(number, score), "sender": sender, "helo": "client.example", **more}


RECORDS = [told(number, score) for number, score in enumerate(SCORES)]


class Desk:
    """A configuration, and a spool with records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "gatepost.yaml"
        self.write()

    def write(self, *more: Any, reject_at: float = 5, **options: Any) -> Path:
        config = {
            "hostname": "mx.example.org",
            "listeners": [{"address": "127.0.0.1:2525"}],
            "spool": {"path": "spool", **options},
            "pipeline": [{"dnsbl": {"zones": {"bl.test": 1}, "reject_at": reject_at}}, *more],
            "domains": {"example.org": {"next_hop": "maildir:mail", "recipients": "any"}},
        }
        self.file.write_text(json.dumps(config))
        return self.file

    def fill(self, records: list[dict[str, Any]], **options: Any) -> None:
        async def work() -> None:
            spool = await SqliteSpool.open(SpoolOptions(str(self.folder / "spool"), min_free=1, **options))
            for record in records:
                spool.note(record)
            await spool.close()

        asyncio.run(work())

    def run(self, *arguments: str, configured: bool = True) -> Result:
        return CliRunner().invoke(main, [*arguments, *(["-c", str(self.file)] if configured else [])])

    def json(self, *arguments: str, configured: bool = True) -> Any:
        result = self.run(*arguments, "--json", configured=configured)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def whatif(self, *arguments: str) -> Any:
        return self.json("whatif", *arguments, "--since", "20000d")

    def export(self, *arguments: str) -> Path:
        result = self.run("records", "export", *arguments)
        assert result.exit_code == 0, result.output
        path = self.folder / "export.jsonl"
        path.write_bytes(result.stdout_bytes)
        return path


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path)
    made.fill(RECORDS)
    return made


# What if


def test_a_rule_is_counted_over_the_records_and_split_by_what_became_of_them(desk: Desk) -> None:
    found = desk.whatif("dnsbl.score >= 3")
    assert (found["records"], found["matched"], found["not_matched"], found["unknown"]) == (8, 4, 4, 0)
    assert found["outcomes"] == {"accepted": 2, "aborted": 2}
    assert found["samples"]["accepted"] == [RECORDS[4]["id"], RECORDS[5]["id"]]
    assert found["by"] == {
        "client": {"192.0.2.1": 4},
        "sender-domain": {"sender0.example": 2, "sender1.example": 2},
        "recipient": {"ben@example.org": 4},
    }
    assert "then" not in found and found["expression"] == "dnsbl.score >= 3"


def test_what_the_rule_would_do_is_compared_with_what_was_done(desk: Desk) -> None:
    desk.fill([told(8, 9, outcome="rejected"), told(9, 4, outcome="quarantined")])
    assert desk.whatif("dnsbl.score >= 3", "--then", "reject")["then"] == {
        "action": "reject",
        "done_anyway": 3,
        "not_done": 3,
    }, "two gave up because their recipient was refused"
    assert desk.whatif("dnsbl.score >= 3", "--then", "quarantine")["then"]["done_anyway"] == 1


def test_matches_are_counted_by_what_is_asked_for(desk: Desk) -> None:
    by = desk.whatif("dnsbl.score == 3.0", "--by", "sender")["by"]
    assert by == {"sender": {"anna4@sender0.example": 1, "anna5@sender1.example": 1}}


def test_a_rule_about_recipients_is_asked_of_each_of_them(desk: Desk) -> None:
    two = [{"address": f"{name}@example.org", "reply": "250 2.1.5 ok"} for name in ("anna", "ben")]
    desk.fill([told(8, 0, recipients=two)])
    found = desk.whatif('recipient.local == "ben"')
    assert (found["matched"], found["matched_recipients"]) == (9, 9)
    assert desk.whatif('recipient.local == "anna"')["matched_recipients"] == 1


def test_what_cannot_be_judged_is_counted_with_its_reason(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    note = {"finding": "Dnsbl", "stage": "connect", "plugin": "dnsbl", "ms": 1}
    changes: list[dict[str, Any]] = [
        {"findings": []},
        {"findings": [{**note, "pending": True}]},
        {"findings": [{**note, "fault": "timeout"}]},
        {"findings": [{**note, "value": {"score": "…"}}]},
        {"pipeline": "gone"},
        {"client": {"ip": "nonsense"}},
    ]
    desk.fill([told(number, 0, **change) for number, change in enumerate(changes)])
    found = desk.whatif("dnsbl.score > 1")
    assert (found["records"], found["matched"], found["unknown"]) == (6, 0, 6)
    assert found["unknown_because"] == {
        "Dnsbl was not looked up": 1,
        "Dnsbl was not waited for": 1,
        "dnsbl failed": 1,
        "Dnsbl was not recorded whole": 1,
        "there is no pipeline gone": 1,
        "the record cannot be read": 1,
    }


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ('sender.domain == "x"', "it ended at helo, before it could be asked at mail"),
        ("message.size > 1", "the message itself is not recorded"),
        ("1 / (size(sender.domain) - 15) > 0", "it has no answer: whatif: ZeroDivisionError"),
    ],
)
def test_what_a_rule_asks_for_and_a_record_does_not_tell_is_said(desk: Desk, expression: str, why: str) -> None:
    desk.fill([told(8, 0, sender=None, recipients=[])])
    assert any(reason.startswith(why) for reason in desk.whatif(expression)["unknown_because"])


@pytest.mark.parametrize(
    ("expression", "where", "what"),
    [
        ("dnsbl.scor >= 5", "1:7", "did you mean score?"),
        ("dnsbl.score >=", "1:15", "not expected here"),
        ("true &&\n  dnsbl.score", "2:3", "true or false"),
        ("spf.result == 'fail'", "1:1", "no plugin of this pipeline gives spf; spf would, if listed"),
        ("x" * 5000, "1:", "4000"),
    ],
)
def test_a_wrong_expression_is_told_with_line_and_column(desk: Desk, expression: str, where: str, what: str) -> None:
    result = desk.run("whatif", expression)
    assert result.exit_code == 2 and not result.stdout
    assert what in result.stderr and (where in result.stderr or len(expression) > 4000), result.stderr


def test_a_rule_that_only_one_pipeline_can_answer_is_asked_there(desk: Desk) -> None:
    desk.file.write_text(
        json.dumps(
            {
                **json.loads(desk.file.read_text()),
                "pipelines": {"plain": [], "same": [{"dnsbl": {"zones": {"a.test": 1}}}]},
            }
        )
    )
    desk.fill([told(8, 9, pipeline="plain"), told(9, 9, pipeline="default, plain")])
    found = desk.whatif("dnsbl.score >= 6")
    assert (found["matched"], found["unknown"]) == (3, 1)
    assert "in pipeline plain: no plugin of this pipeline gives dnsbl" in next(iter(found["unknown_because"]))
    assert desk.whatif("dnsbl.score >= 6", "--pipeline", "same")["matched"] == 4
    assert desk.run("whatif", "true", "--pipeline", "nosuch").exit_code == 2


def test_whatif_reads_well_and_prints_no_control_characters(desk: Desk) -> None:
    desk.fill([told(8, 9, helo="\x1b[2J")])
    text = desk.run("whatif", "dnsbl.score >= 3", "--since", "20000d", "--by", "helo", "--then", "reject").stdout
    for part in (
        "9 records",
        "5 match (55.56 %)",
        "2 accepted, for example " + RECORDS[4]["id"],
        "By helo:",
        "\\x1b[2J",
    ):
        assert part in text
    assert "\x1b" not in text and "reject would have changed the end of 2" in text
    assert desk.run("whatif", "dnsbl.score >= 3", "--since", "1s").stdout.startswith("0 records")


# Export


def test_an_export_holds_every_record_once_oldest_first(desk: Desk) -> None:
    lines = [json.loads(line) for line in desk.export().read_text().splitlines()]
    assert lines == [{"v": 1, "record": record, "attempts": []} for record in RECORDS]


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (("--sender", "sender1.example"), 4),
        (("--outcome", "aborted"), 2),
        (("--verdict", "reject"), 2),
        (("--verdict", "reject", "--plugin", "nobody"), 0),
        (("--client", "192.0.2.0/24", "--recipient", "ben@example.org"), 8),
        (("--until", "1000d"), 0),
        (("--since", "1s"), 0),
    ],
)
def test_an_export_can_be_of_some(desk: Desk, arguments: tuple[str, ...], count: int) -> None:
    result = desk.run("records", "export", *arguments)
    assert result.exit_code == (0 if count else 1) and len(result.stdout.splitlines()) == count


def test_times_bound_what_is_read(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.write()
    old = [
        told(n, 0, id=f"{id}00001", time=0.0)
        for n, id in enumerate(("1HF7YATNX0000", "1HG7YATNX0000", "1HH7YATNX0000"))
    ]
    desk.fill(old)
    found = desk.json("explain", "--since", "2023-11-01", "--until", "2023-12-01T00:00Z")
    assert 0 < len(found) < 3
    assert len(desk.json("explain", "--since", "2020-01-01T00:00+02:00")) == 3
    for wrong in ("soon", "2023-13-01", "99999-01-01"):
        assert desk.run("explain", "--since", wrong).exit_code == 2


def test_a_file_stands_in_for_the_spool(desk: Desk, tmp_path: Path) -> None:
    path = desk.export()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = Desk(elsewhere)
    assert other.json("whatif", "dnsbl.score >= 3", "--records", str(path))["matched"] == 4
    candidate = other.write(reject_at=2)
    replayed = other.json("replay", "--with", str(candidate), "--records", str(path))
    assert (replayed["transactions"], replayed["newly_refused"]) == (8, 2)
    assert other.run("shadow", "report", "--records", str(path), configured=False).exit_code == 1
    again = other.run("records", "export", "--records", str(path), configured=False)
    assert again.stdout_bytes == path.read_bytes()
    found = other.json("explain", "--records", str(path), "--verdict", "reject", configured=False)
    assert [record["id"] for record in found] == [RECORDS[7]["id"], RECORDS[6]["id"]]
    (explained,) = other.json("explain", RECORDS[7]["id"], "--records", str(path), configured=False)
    assert set(explained) == {"record", "decided", "attempts", "without"} and explained["record"] == RECORDS[7]
    assert "without a configuration" in explained["without"][0]["unknown"]
    assert other.run("explain", "1M3250000999", "--records", str(path), configured=False).exit_code == 1


def test_a_file_that_is_none_is_refused_with_its_line(desk: Desk) -> None:
    path = desk.folder / "broken.jsonl"
    path.write_bytes(desk.export().read_bytes() + b'{"v": 1}\n')
    for command in (("whatif", "true"), ("explain", "--plugin", "dnsbl"), ("replay", "--with", str(desk.file))):
        result = desk.run(*command, "--records", str(path))
        assert result.exit_code == 2 and f"{path}:9: expected an object" in result.stderr


# Explain


def test_explain_says_who_decided_and_what_would_have_been_without(desk: Desk) -> None:
    (explained,) = desk.json("explain", RECORDS[7]["id"])
    (decided,) = explained["decided"]
    assert (decided["plugin"], decided["stage"], decided["action"], decided["verdict"]) == (
        "dnsbl",
        "rcpt",
        "reject",
        0,
    )
    (without,) = explained["without"]
    assert without == {"plugin": "dnsbl", "outcome": "accepted", "by": "", "reply": "", "refused": [], "beyond": "rcpt"}
    text = desk.run("explain", RECORDS[7]["id"]).stdout
    assert "<- decided" in text and "without dnsbl it would have gone on behind rcpt" in text
    assert "decided by nobody in the pipeline" in desk.run("explain", RECORDS[0]["id"]).stdout


def test_without_is_not_known_where_the_configuration_has_changed(desk: Desk) -> None:
    desk.write(reject_at=50)
    (explained,) = desk.json("explain", RECORDS[7]["id"])
    assert "configuration in force judges it otherwise: accepted" in explained["without"][0]["unknown"]
    desk.write({"nosuch": {}})
    assert "has problems" in desk.json("explain", RECORDS[7]["id"])[0]["without"][0]["unknown"]
    assert "not known: the configuration in force has problems" in desk.run("explain", RECORDS[7]["id"]).stdout


def test_edits_are_shown_as_a_diff(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    edits = [
        {"edit": "ChangeHeader", "name": "Subject", "nth": 1, "value": "[tag] x\x1b", "was": ["x"]},
        {"edit": "ChangeHeader", "name": "Older", "nth": 2, "value": "new"},
        {"edit": "DeleteHeader", "name": "X-Gone", "nth": 0, "was": ["one", "two"]},
        {"edit": "DeleteHeader", "name": "X-None", "nth": 1, "was": []},
        {"edit": "AddHeader", "name": "X-Hidden", "index": 0},
        {"edit": "Redirect", "recipient": "carl@example.net"},
    ]
    desk.fill([told(0, 0, edits=edits)])
    lines = [line.strip("│├└─ ") for line in desk.run("explain", RECORDS[0]["id"]).stdout.splitlines()]
    at = lines.index("edits")
    assert lines[at + 1 : at + 11] == [
        "- Subject: x",
        "+ Subject: [tag] x\\x1b",
        "- Older #2",
        "+ Older: new",
        "- X-Gone: one",
        "- X-Gone: two",
        "X-None: there was none",
        "+ X-Hidden: (redacted)",
        "- all recipients",
        "+ recipient carl@example.net",
    ]


# Redaction


def test_redacted_records_are_found_by_the_address_and_judged(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    key = tmp_path / "redact.key"
    key.write_text(KEY)
    desk.write(redact="local-parts", redact_key_file=str(key))
    desk.fill(RECORDS, redact=True, key_file=str(key))
    found = desk.json("explain", "--sender", "anna7@sender1.example")
    assert [record["id"] for record in found] == [RECORDS[7]["id"]]
    hidden = Redactor(bytes.fromhex(KEY)).address("anna7@sender1.example")
    assert found[0]["sender"] == hidden and "anna7" not in desk.run("explain", RECORDS[7]["id"]).stdout
    assert desk.json("explain", "--sender", hidden) == found
    assert desk.json("explain", RECORDS[7]["id"])[0]["without"][0]["beyond"] == "rcpt"
    assert desk.whatif("dnsbl.score >= 3")["matched"] == 4
    assert desk.whatif('sender.domain == "sender1.example"')["matched"] == 4
    asked = desk.whatif('sender.local == "anna7"')
    assert asked["unknown_because"] == {"the local part of an address was redacted": 8}
    path = desk.export()
    assert b"anna" not in path.read_bytes() and b"ben" not in path.read_bytes().replace(hidden.encode(), b"")
    key.unlink()
    result = desk.run("explain", "--sender", "anna7@sender1.example")
    assert result.exit_code == 2 and "redact.key" in result.stderr
