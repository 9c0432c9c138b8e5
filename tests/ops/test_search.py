"""Which records a search means, and what a shadow report counts."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from gateway.ops.search import Search, domain, ended, spoken
from gateway.ops.shadow import SAMPLES, ShadowReport

RECORD: dict[str, Any] = {
    "id": "1",
    "client": {"ip": "192.0.2.7", "port": 1},
    "sender": "Anna@Sender.Example",
    "recipients": [{"address": "ben@example.org", "reply": "250"}, {"address": "zoe@example.net", "reply": "550"}],
    "outcome": "rejected",
    "mta": {"through": "milter", "queue_id": "4bXYZ"},
    "verdicts": [
        {"stage": "connect", "plugin": "dnsbl", "action": "proceed", "shadow": False},
        {"stage": "rcpt", "plugin": "greylist", "action": "defer", "shadow": False},
        {"stage": "message", "plugin": "tag", "action": "proceed", "edits": [{}], "shadow": False},
        {"stage": "rcpt", "plugin": "later", "action": "proceed", "when": "if-permit", "shadow": False},
    ],
}


@pytest.mark.parametrize(
    "search",
    [
        Search(),
        Search(sender="anna@sender.example"),
        Search(sender="sender.EXAMPLE"),
        Search(recipient="zoe@example.net"),
        Search(recipient="example.org"),
        Search(client=ipaddress.ip_network("192.0.2.0/24")),
        Search(outcome="rejected", plugin="greylist"),
        Search(plugin="tag"),
        Search(plugin="later"),
        Search(queue_id="4bXYZ"),
    ],
)
def test_a_record_is_found_by_what_is_in_it(search: Search) -> None:
    assert search.matches(RECORD)


@pytest.mark.parametrize(
    "search",
    [
        Search(sender="ben@example.org"),
        Search(sender="example"),
        Search(recipient="anna@sender.example"),
        Search(recipient="ample.org"),
        Search(client=ipaddress.ip_network("192.0.3.0/24")),
        Search(client=ipaddress.ip_network("2001:db8::/32")),
        Search(outcome="accepted"),
        Search(plugin="dnsbl"),
        Search(queue_id="4bXY"),
        Search(sender="anna@sender.example", outcome="accepted"),
    ],
)
def test_a_record_that_lacks_one_thing_is_not_found(search: Search) -> None:
    assert not search.matches(RECORD)


def test_records_that_are_hardly_there_match_little_and_break_nothing() -> None:
    for record in (
        {},
        {"id": "x"},
        {"client": None, "sender": None, "recipients": None, "verdicts": None, "mta": None},
    ):
        assert Search().matches(record)
        assert not Search(client=ipaddress.ip_network("0.0.0.0/0")).matches(record)
        assert not Search(queue_id="4bXYZ").matches(record)
        assert not Search(sender="a@b").matches(record) and list(spoken(record)) == []


def test_the_null_sender_is_searched_as_it_is_written() -> None:
    assert Search(sender="<>").matches({"sender": "<>"})
    assert domain("<>") == "<>" and domain("a@B.Example") == "b.example"


def shadowed(id: int, action: str, outcome: str, sender: str = "a@sender.example", **more: Any) -> dict[str, Any]:
    verdict = {"plugin": "spf", "action": action, "shadow": True, **more}
    return {
        "id": str(id),
        "client": {"ip": "192.0.2.7"},
        "sender": sender,
        "outcome": outcome,
        "verdicts": [verdict, {"plugin": "dnsbl", "action": "reject", "shadow": False}],
    }


def test_a_report_tells_differences_from_what_was_done_anyway() -> None:
    report = ShadowReport()
    for number, (action, outcome) in enumerate(
        [
            *[("reject", "accepted")] * 7,
            ("reject", "deferred"),
            ("defer", "rejected"),
            ("quarantine", "accepted"),
            ("quarantine", "quarantined"),
            ("discard", "discarded"),
            ("proceed", "accepted"),
        ]
    ):
        report.add(shadowed(number, action, outcome))
    report.add(shadowed(50, "proceed", "accepted", "<>", edits=[{}]))
    report.add({"id": "60", "verdicts": [{"plugin": "dnsbl", "action": "reject", "shadow": False}]})
    found = report.to_json()
    assert found["records"] == 15
    (entry,) = found["entries"].values()
    assert entry["judged"] == 14
    assert entry["differences"] == {"reject": 7, "quarantine": 1, "edit": 1}
    assert entry["agreements"] == {"reject": 1, "defer": 1, "quarantine": 1, "discard": 1}
    assert entry["senders"] == {"sender.example": 8, "<>": 1} and entry["clients"] == {"192.0.2.7": 9}
    assert entry["samples"] == {"reject": list("01234")[:SAMPLES], "quarantine": ["9"], "edit": ["50"]}


@pytest.mark.parametrize(
    ("replies", "outcome", "word"),
    [
        (["250 ok", "550 no"], "aborted", "aborted"),
        (["450 later", "550 no"], "aborted", "rejected"),
        (["550 no", "450 later"], "disconnected", "deferred"),
        ([], "aborted", "aborted"),
        (["550 no"], "accepted", "accepted"),
    ],
)
def test_who_gives_up_since_no_recipient_is_taken_was_refused(replies: list[str], outcome: str, word: str) -> None:
    record = {"outcome": outcome, "recipients": [{"address": "ben@example.org", "reply": reply} for reply in replies]}
    assert ended(record) == word
    report = ShadowReport()
    report.add({**shadowed(1, "reject", outcome), **record})
    (entry,) = report.to_json()["entries"].values()
    assert bool(entry["agreements"]) is (word in ("rejected", "deferred"))


def test_an_entry_that_speaks_for_several_recipients_counts_once_for_the_transaction() -> None:
    report = ShadowReport()
    record = shadowed(1, "reject", "accepted")
    record["verdicts"] *= 3
    report.add(record)
    entry = report.to_json()["entries"]["spf"]
    assert (entry["judged"], entry["differences"]) == (1, {"reject": 1})


def test_of_what_an_entry_says_at_several_stages_that_counts_by_which_it_would_have_ended() -> None:
    def told(*verdicts: dict[str, Any]) -> dict[str, int]:
        report = ShadowReport()
        shadow = [{"plugin": "spf", "shadow": True, **verdict} for verdict in verdicts]
        report.add({**shadowed(1, "proceed", "accepted"), "verdicts": shadow})
        found: dict[str, int] = report.to_json()["entries"]["spf"]["differences"]
        return found

    edit, accept, quarantine = {"action": "proceed", "edits": [{}]}, {"action": "accept"}, {"action": "quarantine"}
    assert told(edit, accept, {"action": "reject"}) == {"reject": 1}
    assert told({"action": "defer"}, {"action": "reject"}, quarantine) == {"defer": 1}
    assert told(accept, quarantine, edit) == {"quarantine": 1}


@pytest.mark.parametrize(("outcome", "differs"), [("accepted", False), ("aborted", False), ("rejected", True)])
def test_to_accept_what_was_taken_anyway_makes_no_difference(outcome: str, differs: bool) -> None:
    report = ShadowReport()
    report.add(shadowed(1, "accept", outcome))
    (entry,) = report.to_json()["entries"].values()
    assert bool(entry["differences"]) is differs and bool(entry["agreements"]) is not differs
