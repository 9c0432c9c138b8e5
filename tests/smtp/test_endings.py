"""What plugins that learn from outcomes are told."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.mail.session import Session
from gateway.sdk import (
    PROCEED,
    Ending,
    Outcome,
    Plugin,
    Policy,
    Recipient,
    Stage,
    Transaction,
    finds,
    quarantine,
    reject,
)
from tests.pipeline.setting import A, B, hook, policy
from tests.smtp.door import PATIENCE, door, pipeline, run


class Learner(Plugin):
    name = "learner"
    told: list[Ending] = []

    @finds(Stage.CONNECT)
    async def look(self, session: Session) -> A:
        return A()

    @finds(Stage.RCPT)
    async def one(self, recipient: Recipient) -> B:
        return B()

    async def ended(self, ending: Ending) -> None:
        self.told.append(ending)
        if ending.outcome is Outcome.ABORTED:
            raise RuntimeError("whatever it does, nobody is hurt")


async def until(count: int) -> list[Ending]:
    async with asyncio.timeout(PATIENCE):
        while len(Learner.told) < count:
            await asyncio.sleep(0.005)
    return Learner.told


def learning(*more: type[Policy]) -> Any:
    Learner.told = []
    return pipeline(["learner", *(m.name for m in more)], Learner, *more)


def test_a_message_that_was_taken_is_told_with_what_was_found():
    async def test() -> None:
        async with door(pipelines={"default": learning()}) as opened:
            await (await opened.session()).message()
            (ending,) = await until(1)
            assert (ending.outcome, ending.stage, ending.entry) == (Outcome.ACCEPTED, Stage.MESSAGE, "")
            assert ending.transaction is not None and len(ending.transaction.recipients) == 1
            assert ending.finding(A) == A() and ending.finding(B) is None
            assert ending.size > 0

    run(test)


def test_a_refused_recipient_is_told_with_the_entry_that_refused_it():
    no_ben = policy(
        "no-ben",
        hook(Stage.RCPT, [Recipient, B], lambda r, b: reject("1.1", "no") if r.address.local == "ben" else PROCEED),
    )

    async def test() -> None:
        async with door(pipelines={"default": learning(no_ben)}) as opened:
            client = await opened.session()
            await client.envelope("ann@example.org")
            await client.expect("RCPT TO:<ben@example.org>", "550 5.1.1")
            (ending,) = await until(1)
            assert (ending.outcome, ending.stage, ending.entry) == (Outcome.REJECTED, Stage.RCPT, "no-ben")
            assert ending.recipient is not None and str(ending.recipient.address) == "ben@example.org"
            assert ending.reply is not None and ending.reply.status == "5.1.1"
            assert ending.finding(B) == B()
            # Relay control is no plugin's, and nobody's pipeline was asked.
            await client.expect("RCPT TO:<x@elsewhere.test>", "550 5.7.1")
            await client.expect("RSET", "250")
            told = await until(2)
            assert [e.outcome for e in told] == [Outcome.REJECTED, Outcome.ABORTED]

    run(test)


def test_a_session_refused_at_connect_is_told():
    shut = policy("shut", hook(Stage.CONNECT, [Session], lambda session: reject("7.1", "no")))

    async def test() -> None:
        async with door(pipelines={"default": learning(shut)}) as opened:
            await (await opened.connect()).greeting("554")
            (ending,) = await until(1)
            assert (ending.outcome, ending.stage, ending.entry) == (Outcome.REJECTED, Stage.CONNECT, "shut")
            assert ending.transaction is None

    run(test)


def test_errors_of_the_clients_own_are_told_and_refusals_by_policy_are_not_counted_as_such():
    no = policy("no", hook(Stage.RCPT, [Recipient], lambda r: reject("7.1", "no")))

    async def test() -> None:
        async with door(pipelines={"default": learning(no)}) as opened:
            client = await opened.session()
            await client.expect("NONSENSE", "500")
            await client.expect("MAIL FROM:oops", "501")
            await client.expect("DATA", "503")
            told = await until(3)
            assert [e.stage for e in told] == [None] * 3
            await client.expect("MAIL FROM:<a@sender.test>", "250")
            await client.expect("RCPT TO:<b@example.org>", "550")
            told = await until(4)
            assert told[3].stage is Stage.RCPT

    run(test)


def test_a_copy_is_told_for_each_outcome():
    def say(txn: Transaction) -> Any:
        return quarantine("odd").only([r for r in txn.recipients if r.address.local == "ben"])

    odd = policy("odd", hook(Stage.MESSAGE, [Transaction], say))

    async def test() -> None:
        async with door(pipelines={"default": learning(odd)}) as opened:
            await (await opened.session()).message(b"Subject: x\r\n\r\n", "ann@example.org", "ben@example.org")
            told = await until(2)
            assert {e.outcome for e in told} == {Outcome.ACCEPTED, Outcome.QUARANTINED}

    run(test)
