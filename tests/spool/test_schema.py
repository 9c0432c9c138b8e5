"""Rows and values: the way there and back, and rows that are not what was stored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.mail.address import NULL_SENDER, Address
from gateway.mail.envelope import Envelope, Notify, Recipient
from gateway.spool import schema
from gateway.spool.spool import RecipientStatus, Slot, State
from tests.spool.rig import NOW, attempt, message

SLOTS = (
    Slot(Recipient(Address("ben", "example.test")), due=NOW),
    Slot(
        Recipient(Address("änne", "b\u00fccher.test"), frozenset({Notify.NEVER}), "rfc822;x"),
        RecipientStatus.DEFERRED,
        NOW + 0.25,
        7,
        "451 4.7.1 later",
    ),
)


def row(**changes: Any) -> tuple[Any, ...]:
    """A good row of `schema.COLUMNS`, with changes."""
    good = {
        "id": "0123",
        "state": "queued",
        "received": NOW,
        "size": 10,
        "envelope": schema.dumps(message().envelope.to_json()),
        "slots": schema.slots_json(SLOTS),
        "owed": 1,
        "trusted": 0,
        "warned": 0,
        "reason": "",
        "content": 1,
        "skip": 0,
        "eight_bit": 0,
        "file": 0,
    }
    assert set(changes) <= set(good)
    return tuple({**good, **changes}.values())


def test_the_good_row_is_in_the_order_of_the_columns():
    assert schema.COLUMNS.split(", ")[:4] == ["id", "state", "received", "size"]
    assert len(schema.COLUMNS.split(", ")) == len(row())
    assert schema.read_row(row()).slots == SLOTS


def test_slots_come_back_as_they_were():
    assert schema.read_slots(schema.slots_json(SLOTS)) == SLOTS


def test_the_null_sender_comes_back_as_itself():
    envelope = Envelope(NULL_SENDER, (SLOTS[0].recipient,))
    read = schema.read_row(row(envelope=schema.dumps(envelope.to_json())))
    assert read.envelope.sender is NULL_SENDER


def _slots(**changes: Any) -> str:
    (first, *_) = json.loads(schema.slots_json(SLOTS))
    return json.dumps([{**first, **changes}])


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "lost"},
        {"received": "yesterday"},
        {"received": None},
        {"size": "big"},
        {"envelope": "{"},
        {"envelope": "[]"},
        {"envelope": "7"},
        {"envelope": None},
        {"envelope": '{"sender": {"local": "x"}}'},
        {"envelope": '{"sender": {"local": 1, "domain": "b.test"}}'},
        {"envelope": '{"sender": {"local": "\\udcff", "domain": "b.test"}}'},
        {"envelope": '{"sender": "ann@sender.test"}'},
        {"envelope": '{"body": "9BIT"}'},
        {"envelope": '{"ret": "SOME"}'},
        {"slots": "[]"},
        {"slots": "{}"},
        {"slots": "null"},
        {"slots": '["x"]'},
        {"slots": "[" * 100_000},
        {"slots": _slots(status="lost")},
        {"slots": _slots(due=None)},
        {"slots": _slots(attempts=float("inf"))},
        {"slots": _slots(local=None)},
        {"slots": _slots(local="\udcff")},
        {"slots": _slots(domain=["example.test"])},
        {"slots": _slots(notify="SOMETIMES")},
    ],
    ids=lambda changes: str(changes)[:50],
)
def test_a_row_that_is_not_what_was_stored_is_unreadable_and_can_still_be_listed(changes):
    with pytest.raises(schema.Unreadable):
        schema.read_row(row(**changes))
    listed = schema.lenient(row(**changes))
    assert (listed.id, listed.state) == ("0123", State.CORRUPT) and listed.reason


def test_only_open_recipients_make_a_message_due():
    assert schema.due_of(SLOTS) == NOW
    done = tuple(
        Slot(slot.recipient, status, 1.0)
        for slot in SLOTS
        for status in (RecipientStatus.DELIVERED, RecipientStatus.FAILED, RecipientStatus.EXPIRED)
    )
    assert schema.due_of(done) == schema.NEVER
    assert schema.due_of((*done, SLOTS[1])) == NOW + 0.25


def test_text_that_has_no_utf_8_form_is_stored_with_question_marks():
    assert schema.dumps({"x": "a\udcffb ü"}) == '{"x":"a?b ü"}'


def test_notes_are_read_as_they_were_written_by_whichever_library():
    odd = {"number": (1 << 64) - 1, "less": -(1 << 63), "deep": [{"a": None}], "name": "Größe", "float": 1e30}
    assert schema.read_notes([schema.dumps(odd)]) == (odd,)
    assert schema.read_notes([schema.dumps({"number": 1 << 70})]) == ({"number": float(1 << 70)},)
    (note,) = schema.read_notes(['{"score": NaN, "other": -Infinity}'])
    assert note["score"] != note["score"] and note["other"] < -1e308


def test_notes_that_cannot_be_read_are_left_out():
    good = schema.attempts_json((attempt(), attempt("failed")))
    read = schema.read_notes([good, "{", "7", '["x"]', '{"a": 1}', "[" * 100_000])
    assert [note.get("outcome") for note in read] == ["delivered", "failed", None]
