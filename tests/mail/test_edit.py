"""Edits of the body and of the envelope; those of the header section are in test_message."""

from __future__ import annotations

import asyncio

import pytest

from gateway.mail.address import NULL_SENDER, Address
from gateway.mail.edit import (
    AddHeader,
    AddRecipient,
    BodyContent,
    ChangeHeader,
    ChangeSender,
    DeleteHeader,
    DeleteRecipient,
    EditedContent,
    Prioritize,
    Redirect,
    ReplaceBody,
    Reroute,
    edit_envelope,
    edit_from_json,
    edit_json,
    edits_json,
    replaced_body,
)
from gateway.mail.envelope import Envelope, Notify, Priority, Recipient, Ret

ANNA, BEN = Address("anna", "sender.example"), Address("ben", "example.org")
ENVELOPE = Envelope(ANNA, (Recipient(BEN),))


def octets(content: EditedContent | BodyContent) -> bytes:
    async def read() -> bytes:
        return b"".join([block async for block in content.blocks()])

    whole = asyncio.run(read())
    assert len(whole) == content.size
    return whole


def test_what_stands_between_colon_and_value_is_the_edits_choice() -> None:
    for edit in (AddHeader("X", "a", lead=""), ChangeHeader("X", 1, "a", lead="\t")):
        assert not edit.lead.strip()
    for wrong in ("x", "\n", "\r\n ", "\0"):
        with pytest.raises(ValueError, match="white space"):
            AddHeader("X", "a", lead=wrong)


def test_a_body_comes_in_blocks_and_says_whether_it_is_plain() -> None:
    long = BodyContent(b"x" * (2 << 20) + b"\xff")
    assert octets(long) == b"x" * (2 << 20) + b"\xff"
    assert long.eight_bit and not BodyContent(b"x").eight_bit


def test_a_replaced_body_follows_the_header_section_and_an_empty_line() -> None:
    original = BodyContent(b"A: 1\r\n\r\nold \xff\r\n")
    edited = EditedContent(original, b"B: 2\r\n", 6, BodyContent(b"new\r\n"))
    assert octets(edited) == b"B: 2\r\n\r\nnew\r\n"
    assert not edited.eight_bit
    assert octets(EditedContent(original, b"B: 2\r\n", 6)) == b"B: 2\r\n\r\nold \xff\r\n"


def test_the_last_body_counts() -> None:
    first, second = BodyContent(b"1"), BodyContent(b"2")
    assert replaced_body([ReplaceBody(first), AddHeader("X", "y"), ReplaceBody(second)]) is second
    assert replaced_body([AddHeader("X", "y")]) is None


def test_edits_change_sender_recipients_and_next_hop() -> None:
    copy = Recipient(Address("archive", "example.net"), frozenset({Notify.NEVER}))
    edits = [
        ChangeSender(Address("srs", "example.org"), ret=Ret.HEADERS, envid="x"),
        AddRecipient(copy),
        DeleteRecipient(Address("BEN", "Example.ORG")),
        Reroute("smtp:filter.example:10025"),
        Prioritize(Priority.LOW),
    ]
    edited = edit_envelope(ENVELOPE, edits)
    assert edited.sender == Address("srs", "example.org")
    assert edited.recipients == (copy,)
    assert (edited.parameters.ret, edited.parameters.envid) == (Ret.HEADERS, "x")
    assert (edited.next_hop, edited.priority) == ("smtp:filter.example:10025", Priority.LOW)
    assert Envelope.from_json(edited.to_json(), edited.recipients) == edited
    assert edit_envelope(ENVELOPE, [ChangeSender(NULL_SENDER)]).sender is NULL_SENDER


def test_a_redirected_message_has_one_recipient_and_those_who_are_added_later() -> None:
    first, second, copy = (Recipient(Address(name, "example.net")) for name in ("first", "second", "copy"))
    assert edit_envelope(ENVELOPE, [Redirect(first), Redirect(second)]).recipients == (second,)
    assert edit_envelope(ENVELOPE, [AddRecipient(copy), Redirect(first)]).recipients == (first,)
    assert edit_envelope(ENVELOPE, [Redirect(first), AddRecipient(copy)]).recipients == (first, copy)


def test_a_recipient_that_is_there_already_is_not_added_again() -> None:
    again = Recipient(Address("Ben", "EXAMPLE.org"))
    assert edit_envelope(ENVELOPE, [AddRecipient(again)]) == ENVELOPE


def test_the_record_has_every_edit_and_no_body() -> None:
    assert [
        edit_json(edit)
        for edit in (
            ReplaceBody(BodyContent(b"secret")),
            ChangeSender(NULL_SENDER),
            AddRecipient(Recipient(BEN)),
            DeleteRecipient(BEN),
            Redirect(Recipient(BEN)),
            Reroute("discard"),
            Prioritize(Priority.HIGH),
        )
    ] == [
        {"edit": "ReplaceBody", "size": 6},
        {"edit": "ChangeSender", "sender": "<>"},
        {"edit": "AddRecipient", "recipient": "ben@example.org"},
        {"edit": "DeleteRecipient", "recipient": "ben@example.org"},
        {"edit": "Redirect", "recipient": "ben@example.org"},
        {"edit": "Reroute", "next_hop": "discard"},
        {"edit": "Prioritize", "priority": "high"},
    ]


def test_the_record_has_what_edits_have_taken_out() -> None:
    section = b"A: one\r\nB: x\r\na: two\r\n three\r\n"
    edits = [
        AddHeader("A", "zero"),
        ChangeHeader("A", 2, "first"),
        DeleteHeader("a"),
        ChangeHeader("A", 1, "nobody"),
        ReplaceBody(BodyContent(b"new")),
        ReplaceBody(BodyContent(b"newer")),
        AddRecipient(Recipient(BEN)),
    ]
    told = edits_json(edits, section, 7)
    assert [one.get("was") for one in told] == [None, ["one"], ["zero", "first", "two three"], [], None, None, None]
    assert [one.get("old_size") for one in told] == [None] * 4 + [7, 3, None]
    assert edit_from_json(told[1]) == edits[1] and edit_from_json(told[2]) == edits[2]


def test_the_record_tells_of_few_edits_and_short_values_what_was_there() -> None:
    section = b"A: " + b"x" * 5000 + b"\r\n" + b"B: y\r\n" * 300
    told = edits_json([ChangeHeader("A", 1, "z"), DeleteHeader("B"), *[DeleteHeader("C")] * 200], section, 0)
    assert len(told[0]["was"][0]) == 500 and len(told[1]["was"]) == 100
    assert sum("was" in one for one in told) == 100
