"""Edits from stages before the message, defers that wait for what others say, and look-ups that say how they get on."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from gateway.mail.address import Address
from gateway.pipeline.lookup import FaultKind
from gateway.pipeline.plan import OnError
from gateway.sdk import (
    PROCEED,
    Action,
    AddHeader,
    BodyContent,
    Message,
    Plugin,
    Recipient,
    ReplaceBody,
    Session,
    Stage,
    Transaction,
    Verdict,
    When,
    accept,
    annotate,
    defer,
    edit_begun,
    progress,
    quarantine,
    reject,
)
from tests.pipeline.quick import run
from tests.pipeline.setting import BEN, A, Flow, finder, hook, plugin, policy

CONNECT, HELO, MAIL, RCPT, DATA, MESSAGE = (s for s in Stage if s is not Stage.AUTH)
EARLY = (CONNECT, HELO, MAIL, RCPT, DATA)


def mark(stage: Stage) -> AddHeader:
    return AddHeader("X-Stage", stage.value)


def marking(name: str, *stages: Stage) -> Any:
    return policy(name, *(hook(stage, [Session], lambda s, stage=stage: annotate(mark(stage))) for stage in stages))


def test_edits_of_earlier_stages_come_first_and_in_order() -> None:
    async def scenario() -> None:
        flow = Flow(["early", "late"], marking("early", *EARLY), marking("late", MESSAGE))
        *_, decision = await flow.whole()
        assert decision.edits == tuple(mark(stage) for stage in (*EARLY, MESSAGE))
        await flow.close()

    run(scenario())


def test_edits_of_earlier_stages_are_there_when_nobody_has_a_say_at_message() -> None:
    async def scenario() -> None:
        flow = Flow(["early"], marking("early", MAIL))
        *_, decision = await flow.whole()
        assert decision.edits == (mark(MAIL),) and decision.verdict is PROCEED
        await flow.close()

    run(scenario())


def test_the_message_is_seen_as_edits_of_earlier_stages_left_it() -> None:
    seen: list[tuple[str, ...]] = []

    def look(message: Message) -> Verdict:
        seen.append(message.all("X-Stage"))
        return PROCEED

    async def scenario() -> None:
        flow = Flow(["early", "look"], marking("early", MAIL), policy("look", hook(MESSAGE, [Message], look)))
        await flow.whole()
        await flow.close()

    run(scenario())
    assert seen == [("mail",)]


def test_session_edits_count_for_every_message_and_end_with_what_made_them() -> None:
    async def scenario() -> None:
        flow = Flow(["early"], marking("early", CONNECT, HELO, MAIL))
        await flow.whole()
        for _ in range(2):
            await flow.mail()
            assert (await flow.message()).edits == (mark(CONNECT), mark(HELO), mark(MAIL))
        await flow.helo()
        await flow.mail()
        assert (await flow.message()).edits == (mark(CONNECT), mark(HELO), mark(MAIL))
        await flow.close()

    run(scenario())


def test_what_is_asked_for_with_each_recipient_is_done_once_and_not_for_refused_ones() -> None:
    def by_name(recipient: Recipient) -> Verdict:
        return annotate(AddHeader("X-For", recipient.address.local[0]))

    def refuse(recipient: Recipient) -> Verdict:
        return reject("1.1", "no") if recipient.address.local == "zoe" else PROCEED

    async def scenario() -> None:
        marks = policy("marks", hook(RCPT, [Recipient], by_name))
        flow = Flow(["marks", "refuse"], marks, policy("refuse", hook(RCPT, [Recipient], refuse)))
        await flow.connect()
        await flow.mail()
        for local in ("ben", "bob", "zoe", "carl"):
            await flow.rcpt(replace(BEN, address=Address(local, "example.org")))
        assert (await flow.message()).edits == (AddHeader("X-For", "b"), AddHeader("X-For", "c"))
        await flow.close()

    run(scenario())


@pytest.mark.parametrize(
    ("when", "later", "expected"),
    [
        (When.IF_PERMIT, PROCEED, Action.DEFER),
        (When.IF_PERMIT, accept(), Action.DEFER),
        (When.IF_PERMIT, reject("7.1", "no"), Action.REJECT),
        (When.IF_PERMIT, quarantine("odd"), Action.QUARANTINE),
        (When.IF_REJECT, PROCEED, Action.PROCEED),
        (When.IF_REJECT, reject("7.1", "no"), Action.DEFER),
        (When.IF_REJECT, defer("7.1", "another", code=450), Action.DEFER),
    ],
)
def test_a_defer_can_wait_for_what_later_entries_say(when: When, later: Verdict, expected: Action) -> None:
    waiting = defer("7.1", "greylisted", when=when)
    things = [policy("first", hook(RCPT, [], lambda: waiting)), policy("then", hook(RCPT, [], lambda: later))]

    async def scenario() -> None:
        flow = Flow(["first", "then"], *things)
        await flow.connect()
        await flow.mail()
        decision = await flow.rcpt()
        assert decision.verdict.action is expected
        assert flow.txn
        assert [v["policy"] for v in flow.txn.trace.verdicts] == ["first", "then"]
        assert flow.txn.trace.verdicts[0]["when"] == when.value
        if expected is Action.DEFER and later.action is not Action.DEFER:
            assert (decision.entry, str(decision.verdict.reply)) == ("first", "451 4.7.1 greylisted")
        await flow.close()

    run(scenario())


def test_only_a_defer_for_everybody_can_wait() -> None:
    with pytest.raises(ValueError, match="waits"):
        Verdict(Action.PROCEED, when=When.IF_PERMIT)
    with pytest.raises(ValueError, match="waits"):
        defer("7.1", "x", when=When.IF_REJECT).only([BEN])


@pytest.mark.parametrize("on_error", list(OnError))
@pytest.mark.parametrize("ending", ["raise", "timeout", "deadline", "garbage"])
def test_who_has_begun_to_edit_can_only_succeed_or_defer(on_error: OnError, ending: str) -> None:
    async def work(txn: Transaction) -> Any:
        edit_begun()
        if ending == "raise":
            raise ConnectionError("gone")
        if ending == "garbage":
            return "nonsense"
        await asyncio.sleep(3600)

    entry = {"p": None, "on_error": on_error.value, "timeout": "5s" if ending == "timeout" else "10m"}

    async def scenario() -> None:
        flow = Flow([entry], plugin("p", finder(MESSAGE, A, [Transaction], work, does=True)))
        *_, decision = await flow.whole()
        assert decision.verdict.action is Action.DEFER
        assert flow.txn
        assert flow.txn.trace.verdicts[-1]["policy"] == "on_error"
        await flow.close()

    run(scenario())


def test_getting_on_begins_the_timeout_anew_and_leaves_the_deadline() -> None:
    async def work(txn: Transaction) -> Any:
        for _ in range(int(rounds)):
            await asyncio.sleep(4)
            progress()
        return A()

    async def once() -> str | None:
        entry = {"p": None, "timeout": "5s"}
        flow = Flow([entry], plugin("p", finder(MESSAGE, A, [Transaction], work, does=True)))
        await flow.whole()
        assert flow.txn
        (note,) = flow.txn.trace.findings
        await flow.close()
        return note.get("fault")

    rounds = 5
    assert run(once()) is None
    rounds = 500
    assert run(once()) == FaultKind.DEADLINE.value


def test_outside_of_a_pipeline_there_is_nothing_to_tell() -> None:
    progress()
    edit_begun()


def test_plugins_that_hold_sessions_hear_when_one_is_over() -> None:
    over: list[str] = []

    class Holder(Plugin):
        name = "holder"

        async def hung_up(self, session: Session) -> None:
            over.append(session.id)

    async def scenario() -> None:
        flow = Flow(["holder"], Holder)
        await flow.connect()
        await flow.connect()
        assert over == []
        await flow.close()
        assert over == ["0123456789ABC"]
        unused = Flow(["holder"], Holder)
        await unused.close()
        assert over == ["0123456789ABC"]

    run(scenario())


def test_a_replaced_body_is_seen_by_the_next_entry() -> None:
    seen: list[bytes] = []

    async def work(message: Message) -> Any:
        seen.append(await message.octets(1000))
        return A()

    swap = policy("swap", hook(MESSAGE, [], lambda: annotate(ReplaceBody(BodyContent(b"other\r\n")))))

    async def scenario() -> None:
        flow = Flow(["swap", "p"], swap, plugin("p", finder(MESSAGE, A, [Message], work, does=True)))
        await flow.whole()
        await flow.close()

    run(scenario())
    assert seen == [b"Subject: x\r\n\r\nother\r\n"]
