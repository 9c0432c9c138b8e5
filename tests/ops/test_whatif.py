"""What a rule would have caught, added up."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.ops import whatif
from gateway.ops.whatif import BY, WhatIf

RECORD: dict[str, Any] = {
    **{"id": "1", "client": {"ip": "2001:db8::1"}, "helo": "x.example", "sender": "anna@Sender.example"},
    **{"listener": "edge", "outcome": "rejected"},
    "recipients": [{"address": "ben@example.org"}, {"address": "zoe@example.net"}, {"address": "zoe@example.net"}],
    "verdicts": [{"stage": "mail", "plugin": "spf", "action": "reject"}],
}


@pytest.mark.parametrize(
    ("by", "keys"),
    [
        ("client", ["2001:db8::1"]),
        ("network", ["2001:db8::/64"]),
        ("helo", ["x.example"]),
        ("sender", ["anna@Sender.example"]),
        ("sender-domain", ["sender.example"]),
        ("recipient", ["ben@example.org", "zoe@example.net"]),
        ("recipient-domain", ["example.org", "example.net"]),
        ("listener", ["edge"]),
        ("decided-by", ["spf"]),
    ],
)
def test_a_record_counts_once_for_each_thing_that_it_has(by: str, keys: list[str]) -> None:
    report = WhatIf(by)
    report.add(RECORD, matched=True)
    assert report.to_json()["by"] == {by: dict.fromkeys(keys, 1)}


def test_every_way_to_count_stands_a_record_that_is_hardly_there() -> None:
    for by in BY:
        report = WhatIf(by)
        for record in ({}, {"client": None, "sender": None, "recipients": None, "verdicts": None}):
            report.add(record, matched=True)
        assert report.matched == 2


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whatif, "_KINDS", 3)
    monkeypatch.setattr(whatif, "_REASONS", 2)
    report = WhatIf("sender")
    for number in range(20):
        report.add({**RECORD, "id": str(number), "sender": f"s{number}@x.example"}, matched=True)
        report.add(RECORD, unknown=f"reason {number}")
        report.add(RECORD)
    found = report.to_json()
    assert found["by"]["sender"]["others"] == 17 and len(found["by"]["sender"]) == 4
    assert found["unknown_because"] == {"other reasons": 18, "reason 0": 1, "reason 1": 1}
    assert (found["records"], found["matched"], found["not_matched"], found["unknown"]) == (60, 20, 20, 20)
    assert found["samples"] == {"rejected": [str(number) for number in range(10)]}


def test_one_recipient_that_matches_is_enough_though_another_cannot_be_judged() -> None:
    report = WhatIf(then="reject")
    report.add(RECORD, matched=True, recipients=1, unknown="not looked up")
    found = report.to_json()
    assert (found["matched"], found["unknown"], found["matched_recipients"]) == (1, 0, 1)
    assert found["then"] == {"action": "reject", "done_anyway": 1, "not_done": 0}


def test_who_gave_up_because_nobody_was_taken_was_refused_anyway() -> None:
    refused = [{"address": "ben@example.org", "reply": "550 5.1.1 no"}]
    taken = [{"address": "ben@example.org", "reply": "250 2.1.5 ok"}]
    report = WhatIf(then="reject")
    for recipients in (refused, taken):
        report.add({**RECORD, "outcome": "aborted", "recipients": recipients}, matched=True)
    assert report.to_json()["then"] == {"action": "reject", "done_anyway": 1, "not_done": 1}
