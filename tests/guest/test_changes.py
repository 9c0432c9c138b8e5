"""Edits as a milter's calls: what an MTA makes of them is what the edits say, however it counts."""

from __future__ import annotations

from gateway.guest.changes import APPEND, Changes, InsertField, SetField, SetSender, plan
from gateway.mail.address import NULL_SENDER, Address
from gateway.mail.edit import (
    END,
    AddHeader,
    AddRecipient,
    BodyContent,
    ChangeHeader,
    ChangeSender,
    DeleteHeader,
    DeleteRecipient,
    Edit,
    Redirect,
    ReplaceBody,
    Reroute,
)
from gateway.mail.envelope import Envelope, Notify, Recipient, Ret
from gateway.mail.message import HeaderField
from gateway.sdk.testing import make_recipient

BEN, EVA = make_recipient("ben@example.test"), make_recipient("eva@example.test")
ENVELOPE = Envelope(Address("ann", "sender.test"), (BEN, EVA))
FIELDS = [HeaderField(name, f"{name}: old\r\n".encode()) for name in ("Received", "X-A", "Subject", "x-a", "X-A")]


def calls(*edits: Edit, leads: bool = False) -> Changes:
    return plan(FIELDS, ENVELOPE, edits, leads=leads)


def test_nothing_to_do_is_nothing_to_tell() -> None:
    assert calls() == Changes()
    assert calls(DeleteHeader("X-None"), ChangeHeader("X-A", 9, "x")) == Changes()


def test_changes_come_first_then_deletions_upwards_then_insertions() -> None:
    made = calls(
        AddHeader("X-Top", "1"),
        DeleteHeader("X-A", 1),
        ChangeHeader("X-A", 1, "new"),
        DeleteHeader("X-A", 2),
        AddHeader("X-Top", "2"),
        AddHeader("X-End", "1", END),
        AddHeader("X-End", "2", END),
    )
    assert made.fields == (
        SetField("X-A", 2, "new"),
        SetField("X-A", 3, None),
        SetField("X-A", 1, None),
        InsertField("X-Top", "1", 0),
        InsertField("X-Top", "2", 0),
        InsertField("X-End", "1", APPEND),
        InsertField("X-End", "2", APPEND),
    )


def test_in_the_middle_the_mtas_own_received_field_counts() -> None:
    assert calls(AddHeader("X-M", "1", 2)).fields == (InsertField("X-M", "1", 3),)
    assert calls(AddHeader("X-T", "t"), AddHeader("X-M", "1", 2)).fields == (
        InsertField("X-T", "t", 0),
        InsertField("X-M", "1", 3),
    )


def test_what_is_added_and_changed_or_deleted_again_is_told_as_it_comes_out() -> None:
    assert calls(AddHeader("X-N", "1"), ChangeHeader("X-N", 1, "2")).fields == (InsertField("X-N", "2", 0),)
    assert calls(AddHeader("X-N", "1"), DeleteHeader("X-N")).fields == ()
    assert calls(DeleteHeader("X-A"), AddHeader("X-A", "only", END)).fields == (
        SetField("X-A", 3, None),
        SetField("x-a", 2, None),
        SetField("X-A", 1, None),
        InsertField("X-A", "only", APPEND),
    )


def test_white_space_before_values_goes_to_mtas_that_take_it_and_none_is_empty() -> None:
    assert calls(AddHeader("X", "v", lead=""), AddHeader("Y", "v"), leads=True).fields == (
        InsertField("X", "v", 0),
        InsertField("Y", " v", 0),
    )
    assert calls(ChangeHeader("Subject", 1, "", lead="")).fields == (SetField("Subject", 1, " "),)


def test_octets_that_libmilter_cannot_be_given_are_replaced_and_named() -> None:
    made = calls(AddHeader("X-Raw", "caf\udce9"))
    assert made.fields == (InsertField("X-Raw", "caf\ufffd", 0),)
    assert made.left_out == ("octets of X-Raw that are no UTF-8",)


def test_the_envelope_is_changed_by_what_it_comes_out_as() -> None:
    new = Recipient(Address("new", "example.test"), frozenset({Notify.NEVER}), "rfc822;x")
    edits = [
        AddRecipient(new),
        AddRecipient(EVA),
        DeleteRecipient(BEN.address),
        ChangeSender(Address("x y", "z.test"), Ret.HEADERS, "id"),
        Reroute("smtp:elsewhere.test:25"),
    ]
    made = plan(FIELDS, ENVELOPE, edits, named={"ben@example.test": ("<Ben@example.test>",)}, dropped=(EVA,))
    assert made.added == (("<new@example.test>", "NOTIFY=NEVER ORCPT=rfc822;x"),)
    assert made.deleted == ("<Ben@example.test>", "<eva@example.test>")
    assert made.sender == SetSender('<"x y"@z.test>', "RET=HDRS ENVID=id")
    assert made.left_out == ("Reroute smtp:elsewhere.test:25",)
    made = calls(Redirect(new))
    assert (made.added[0][0], made.deleted) == ("<new@example.test>", ("<ben@example.test>", "<eva@example.test>"))
    assert calls(ChangeSender(NULL_SENDER)).sender == SetSender("<>", "")
    assert calls(AddRecipient(new), DeleteRecipient(new.address)).added == ()


def test_the_last_body_is_the_one() -> None:
    body = BodyContent(b"two")
    assert calls(ReplaceBody(BodyContent(b"one")), ReplaceBody(body)).body is body
