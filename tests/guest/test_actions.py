"""Rulings as actions of access(5), and what cannot be one."""

from __future__ import annotations

import pytest

from gateway.guest.actions import Owed, check_trouble, refusal
from gateway.guest.request import State
from gateway.guest.ruling import Ruling
from gateway.mail.edit import (
    END,
    AddHeader,
    AddRecipient,
    BodyContent,
    ChangeSender,
    DeleteHeader,
    DeleteRecipient,
    Edit,
    Redirect,
    ReplaceBody,
    Reroute,
)
from gateway.mail.reply import Reply
from gateway.sdk.testing import make_recipient
from gateway.sdk.verdict import Action, When

BEN, LOG = make_recipient("ben@example.test"), make_recipient("log@example.test")


def owing(*edits: Edit) -> Owed:
    owed = Owed()
    owed.take(edits)
    return owed


@pytest.mark.parametrize(
    ("action", "reply", "when", "said"),
    [
        (Action.REJECT, Reply(550, "7.1", "no"), When.ALWAYS, "550 5.7.1 no"),
        (Action.REJECT, Reply(554, "", "no"), When.ALWAYS, "554 5.7.1 no"),
        (Action.DEFER, Reply(451, "", "later"), When.ALWAYS, "451 4.3.0 later"),
        (Action.DEFER, Reply(450, "7.1", "later"), When.IF_PERMIT, "DEFER_IF_PERMIT 4.7.1 later"),
        (Action.DEFER, Reply(450, "7.1", "later"), When.IF_REJECT, "DEFER_IF_REJECT 4.7.1 later"),
        (Action.DEFER, Reply(421, "3.2", "busy"), When.ALWAYS, "451 4.3.2 busy"),
        (Action.REJECT, Reply(521, "3.2", "never"), When.ALWAYS, "550 5.3.2 never"),
        (Action.DISCONNECT, Reply(554, "7.0", "go"), When.ALWAYS, "521 5.7.0 go"),
        (Action.DISCONNECT, Reply(450, "7.0", "go"), When.ALWAYS, "421 4.7.0 go"),
        (Action.REJECT, Reply(550, "7.1", "a\nb\x1b[2J\u00fc"), When.ALWAYS, "550 5.7.1 a b?[2J?"),
    ],
)
def test_a_refusal_is_its_code_and_text_in_one_line(action: Action, reply: Reply, when: When, said: str) -> None:
    assert refusal(Ruling(action, reply, when=when), reply) == said


def test_a_long_refusal_keeps_its_reference() -> None:
    reply = Reply(550, "7.1", "x" * 390 + "\n" + "y" * 300).referring("0123456789ABC1")
    said = refusal(Ruling(Action.REJECT, reply), reply)
    assert len(said) < 420
    assert said.endswith(" (ref 0123456789ABC1)")


def test_each_request_is_told_one_thing_and_discard_comes_first() -> None:
    owed = owing(AddHeader("X-A", "1"), AddHeader("X-B", "2", END))
    owed.hold = "odd\nindeed"
    assert [owed.next(State.RCPT) for _ in range(4)] == ["HOLD odd indeed", "PREPEND X-A: 1", "PREPEND X-B: 2", ""]
    assert owed.unsaid() == []
    assert list(owed.made) == [AddHeader("X-A", "1"), AddHeader("X-B", "2", END)]
    owed = owing(AddHeader("X-A", "1"))
    owed.discard = "unwanted"
    assert [owed.next(State.RCPT), owed.next(State.RCPT)] == ["DISCARD unwanted", ""]
    assert owed.unsaid() == [], "edits of what is thrown away are not missed"


def test_before_mail_nothing_is_told_and_nothing_is_lost() -> None:
    owed = owing(AddHeader("X-A", "1"))
    owed.hold = "odd"
    assert [owed.next(state) for state in (State.CONNECT, State.HELO)] == ["", ""]
    assert owed.unsaid() == ["quarantine: odd", "AddHeader X-A 0"]


def test_edits_that_are_equal_are_made_once() -> None:
    owed = owing(AddHeader("X-A", "1"))
    owed.take([AddHeader("X-A", "1")])
    assert owed.next(State.RCPT) == "PREPEND X-A: 1"
    owed.take([AddHeader("X-A", "1")])
    assert owed.next(State.RCPT) == ""


def test_at_the_end_of_the_message_no_header_can_be_told() -> None:
    owed = owing(AddHeader("X-A", "1"), AddRecipient(LOG))
    assert owed.next(State.END) == "BCC log@example.test"
    assert owed.unsaid() == ["AddHeader X-A 0"]


def test_folds_are_unfolded_and_what_does_not_fit_a_line_is_left_out() -> None:
    owed = owing(
        AddHeader("X-A", "one\n two"),
        AddHeader("X-Long", "x" * 2100),
        AddHeader("X-M", "1", 3),
        AddHeader("X-\u0041", "g\udcfc"),
    )
    assert [owed.next(State.DATA) for _ in range(3)] == ["PREPEND X-A: one two", "PREPEND X-A: g\udcfc", ""]
    assert owed.unsaid() == ["AddHeader X-Long 0", "AddHeader X-M 3"]


def test_one_recipient_more_is_told_once_and_one_instead_of_all_as_well() -> None:
    owed = owing(AddRecipient(LOG), AddRecipient(make_recipient("two@example.test")))
    assert [owed.next(State.RCPT), owed.next(State.RCPT)] == ["BCC log@example.test", ""]
    assert owed.unsaid() == ["AddRecipient two@example.test"]
    owed = owing(DeleteRecipient(BEN.address), Redirect(LOG))
    assert [owed.next(State.RCPT), owed.next(State.RCPT)] == ["REDIRECT log@example.test", ""]
    assert owed.unsaid() == ["DeleteRecipient ben@example.test"]


@pytest.mark.parametrize(
    ("next_hop", "said"),
    [
        ("smtp:store.test:2525", "FILTER smtp:[store.test]:2525"),
        ("lmtp:192.0.2.1:24", "FILTER lmtp:[192.0.2.1]:24"),
        ("smtp:[2001:db8::1]:25", "FILTER smtp:[ipv6:2001:db8::1]:25"),
        ("lmtp:unix:/run/lmtp", "FILTER lmtp:unix:/run/lmtp"),
        ("maildir:/var/mail", ""),
        ("mx", ""),
        ("nonsense", ""),
    ],
)
def test_another_next_hop_is_a_filter_where_postfix_has_such_a_transport(next_hop: str, said: str) -> None:
    owed = owing(Reroute(next_hop))
    assert owed.next(State.RCPT) == said
    assert bool(owed.unsaid()) is not bool(said)


def test_what_a_policy_server_cannot_do_is_named() -> None:
    owed = owing(ReplaceBody(BodyContent(b"abc")), DeleteHeader("X", 1), ChangeSender(BEN.address))
    assert owed.next(State.DATA) == ""
    assert owed.unsaid() == ["ReplaceBody 3", "DeleteHeader X 1", "ChangeSender ben@example.test"]


@pytest.mark.parametrize("text", ["DUNNO", "DEFER", "DEFER_IF_PERMIT 4.3.0 later", "451 4.3.0 later", "450", "defer"])
def test_trouble_may_defer_or_let_pass(text: str) -> None:
    assert check_trouble(text) == text


@pytest.mark.parametrize(
    "text", ["", "OK", "550 no", "REJECT", "permit_mynetworks", "45x", "451 a\nb", "451 " + "x" * 999]
)
def test_trouble_never_refuses_for_good_nor_permits(text: str) -> None:
    with pytest.raises(ValueError, match="4xx"):
        check_trouble(text)
