"""The milter that authors test with: what it is to answer is what the plugin finds."""

from __future__ import annotations

import pytest

from gateway.sdk import (
    END,
    NULL_SENDER,
    AddHeader,
    AddRecipient,
    Address,
    BodyContent,
    ChangeHeader,
    ChangeSender,
    DeleteHeader,
    DeleteRecipient,
    Edit,
    MilterAction,
    MilterReply,
    Notify,
    Recipient,
    Redirect,
    ReplaceBody,
    Ret,
    Stage,
)
from gateway.sdk.testing import (
    Bench,
    FakeMilter,
    MilterFault,
    MilterTold,
    Started,
    make_message,
    make_recipient,
    make_session,
    make_transaction,
)

CONTENT = b"Subject: a\r\n fold\r\nX-A:1\r\nX-A:  2\r\n\r\nHello.\r\n"
CLARA = Recipient(Address("clara", "example.org"), frozenset({Notify.NEVER}), "rfc822;clara@old.example")


def at_message(milter: FakeMilter) -> MilterReply:
    """What the plugin finds of a message of which it tells everything at once."""
    transaction = make_transaction(recipients=["anna@example.org"])
    options = {"connect": milter.address, "name": "m"}
    message = make_message(CONTENT)
    found = Bench().find("milter", options, Stage.MESSAGE, transaction=transaction, message=message)
    assert isinstance(found, MilterReply)
    return found


def step(made: Started, stage: Stage, **inputs: object) -> MilterReply:
    found = made.find(stage, **inputs)  # type: ignore[arg-type]
    assert isinstance(found, MilterReply)
    return found


REPLIES = [
    MilterReply(MilterAction.CONTINUE, "m"),
    MilterReply(MilterAction.ACCEPT, "m"),
    MilterReply(MilterAction.REJECT, "m"),
    MilterReply(MilterAction.REJECT, "m", 554, "7.1", "no 100% of them\nsee below"),
    MilterReply(MilterAction.REJECT, "m", 550, "", "plainly no"),
    MilterReply(MilterAction.TEMPFAIL, "m"),
    MilterReply(MilterAction.TEMPFAIL, "m", 450, "2.1", "later"),
    MilterReply(MilterAction.DISCARD, "m"),
    MilterReply(MilterAction.CONNECTION_FAIL, "m"),
    MilterReply(MilterAction.CONNECTION_FAIL, "m", 421, "7.0", "go away"),
    MilterReply(MilterAction.ACCEPT, "m", quarantine="odd"),
]


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: f"{reply.action} {reply.code} {reply.quarantine}".strip())
def test_what_it_is_to_answer_is_what_the_plugin_finds(reply: MilterReply) -> None:
    with FakeMilter({Stage.MESSAGE: reply}) as milter:
        assert at_message(milter) == reply
    assert milter.troubles == []


EDITS: list[tuple[Edit, ...]] = [
    (AddHeader("X-Top", "1", 0), AddHeader("X-Next", "2", 1), AddHeader("X-Third", "3", 2)),
    (AddHeader("X-Low", "1", 2), AddHeader("X-Lower", "2", END, "")),
    (AddHeader("X-Folded", "\xfc\n fold", 1),),
    (ChangeHeader("X-A", 2, "22", "   "), ChangeHeader("Subject", 1, "b"), DeleteHeader("X-A", 1)),
    (ChangeSender(NULL_SENDER), ChangeSender(Address("dora", "d.example"), Ret.HEADERS, "env1")),
    (AddRecipient(make_recipient("ben@example.org")), AddRecipient(CLARA)),
    (DeleteRecipient(Address("anna", "example.org")),),
]


@pytest.mark.parametrize("edits", EDITS, ids=lambda edits: type(edits[0]).__name__)
def test_its_modifications_are_what_the_plugin_finds(edits: tuple[Edit, ...]) -> None:
    reply = MilterReply(MilterAction.CONTINUE, "m", edits=edits)
    with FakeMilter({Stage.MESSAGE: reply}) as milter:
        assert at_message(milter) == reply
    assert milter.troubles == []


@pytest.mark.parametrize("size", [0, 1, 65_535, 200_000])
def test_it_can_put_another_body_in_place_of_the_messages_own(size: int) -> None:
    answer = MilterReply(MilterAction.CONTINUE, "m", edits=(ReplaceBody(BodyContent(b"x" * size)),))
    with FakeMilter({Stage.MESSAGE: answer}) as milter:
        (edit,) = at_message(milter).edits
    assert isinstance(edit, ReplaceBody) and edit.body.size == size


def test_it_says_what_it_was_told_and_answers_each_recipient() -> None:
    def not_bad(told: MilterTold) -> MilterReply | MilterAction:
        if told.recipients[-1].startswith("<bad@"):
            return MilterReply(MilterAction.REJECT, "", 550, "1.1", f"not {len(told.recipients)}")
        return MilterAction.CONTINUE

    session = make_session("192.0.2.7", helo="client.test")
    good, bad = make_recipient("good@example.org"), make_recipient("bad@example.org")
    with FakeMilter({Stage.RCPT: not_bad}) as milter, Bench().started("milter", {"connect": milter.address}) as made:
        for sender in ("ben@sender.example", ""):
            transaction = make_transaction(session, sender=sender)
            both = make_transaction(session, sender=sender, recipients=["good@example.org"])
            object.__setattr__(both, "id", transaction.id)
            step(made, Stage.CONNECT, session=session)
            step(made, Stage.MAIL, transaction=transaction)
            assert step(made, Stage.RCPT, transaction=transaction, recipient=good).action is MilterAction.CONTINUE
            refused = step(made, Stage.RCPT, transaction=both, recipient=bad)
            assert (refused.code, refused.text) == (550, "not 2")
            step(made, Stage.MESSAGE, transaction=both, message=make_message(CONTENT))
    assert milter.stages[:6] == [Stage.CONNECT, Stage.HELO, Stage.MAIL, Stage.RCPT, Stage.RCPT, Stage.DATA]
    first, second = milter.messages
    assert (first.client, first.helo, first.sender) == ("192.0.2.7", "client.test", "<ben@sender.example>")
    assert first.recipients == ["<good@example.org>", "<bad@example.org>"]
    assert first.fields == [("Subject", "a\n fold"), ("X-A", "1"), ("X-A", " 2")]
    assert first.body == b"Hello.\r\n"
    assert first.macros["rcpt_addr"] == "bad@example.org"
    assert (second.sender, second.recipients) == ("<>", first.recipients)


@pytest.mark.parametrize(
    ("fault", "error"),
    [(MilterFault.DIES, "closed"), (MilterFault.GARBAGE, "."), (MilterFault.HANGS, "within")],
    ids=lambda value: str(value),
)
def test_its_faults_are_faults_to_the_plugin(fault: MilterFault, error: str) -> None:
    with FakeMilter({Stage.HELO: fault}) as milter:
        options = {"connect": milter.address, "command_timeout": "50ms"}
        with pytest.raises(Exception, match=error):
            Bench().find("milter", options, Stage.HELO)


@pytest.mark.parametrize(
    ("stage", "answer", "problem"),
    [
        (Stage.MAIL, MilterAction.SKIPPED, "nothing it says"),
        (Stage.MAIL, MilterReply(MilterAction.REJECT, "m", 450, "", "x"), "does not go with 450"),
        (Stage.MAIL, MilterReply(MilterAction.REJECT, "m", text="x"), "needs a code"),
        (Stage.MAIL, MilterReply(MilterAction.CONTINUE, "m", quarantine="x"), "at their end"),
        (Stage.MESSAGE, MilterReply(MilterAction.REJECT, "m", edits=(AddHeader("X", "1"),)), "at their end"),
        (Stage.MESSAGE, MilterReply(MilterAction.ACCEPT, "m", edits=(DeleteHeader("X"),)), "no milter can say"),
        (Stage.MESSAGE, MilterReply(MilterAction.ACCEPT, "m", edits=(Redirect(CLARA),)), "no milter can say"),
    ],
)
def test_what_no_milter_can_say_is_refused(stage: Stage, answer: MilterReply | MilterAction, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        FakeMilter({stage: answer})


def test_a_function_that_raises_is_a_dead_milter_and_the_test_can_see_why() -> None:
    def broken(told: MilterTold) -> MilterReply:
        raise LookupError("my own mistake")

    with FakeMilter({Stage.HELO: broken}) as milter:
        with pytest.raises(OSError, match=r"."):
            Bench().find("milter", {"connect": milter.address}, Stage.HELO)
    assert [str(error) for error in milter.troubles] == ["my own mistake"]
