"""Verdicts and what becomes of them: replies, pipelines per domain, records, and trace fields."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from gateway.mail.session import Session
from gateway.pipeline.loader import Pipeline
from gateway.sdk import (
    PROCEED,
    AddHeader,
    DeleteHeader,
    Policy,
    Recipient,
    Stage,
    Transaction,
    Verdict,
    accept,
    annotate,
    defer,
    discard,
    disconnect,
    quarantine,
    reject,
)
from gateway.smtp.domains import Domain
from gateway.spool.spool import SpoolError, State, Step
from tests.pipeline.setting import hook, policy
from tests.smtp.door import MESSAGE, PATIENCE, Door, door, pipeline, run
from tests.smtp.faults import failing

DOMAINS = {"example.org": Domain("example.org"), "relaxed.test": Domain("relaxed.test", "relaxed")}
STAGES = (Stage.CONNECT, Stage.HELO, Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.MESSAGE)


def judging(stage: Stage, verdict: Verdict | Callable[[Any], Verdict], input: type = Session) -> Pipeline:
    """A pipeline that says this at one stage."""
    say = verdict if callable(verdict) else lambda given: verdict
    judge: type[Policy] = policy("judge", hook(stage, [input], say))
    return pipeline(["judge"], judge)


def refusal_stage(replies: Iterable[str]) -> str:
    return next((reply for reply in replies if reply[0] in "45"), "")


async def whole(opened: Door, *recipients: str) -> list[str]:
    """A session as far as it goes: all replies, from the greeting on."""
    client = await opened.connect()
    await client.reply()
    commands = ["EHLO client.test", "MAIL FROM:<a@sender.test>"]
    commands += [f"RCPT TO:<{r}>" for r in recipients or ("b@example.org",)] + ["DATA"]
    for command in commands:
        if not await client.say(command):
            return client.heard
    if client.heard[-1].startswith("354"):
        client.send(MESSAGE + b".\r\n")
        await client.reply()
    return client.heard


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("verdict", [reject("7.1", "go away"), defer("7.1", "come again")])
def test_a_refusal_is_said_at_its_stage_with_a_reference_and_nothing_is_stored(stage, verdict):
    async def test() -> None:
        async with door(pipelines={"default": judging(stage, verdict)}) as opened:
            heard = await whole(opened)
            reply = refusal_stage(heard)
            assert heard.index(reply) == STAGES.index(stage)
            code = {(Stage.CONNECT, "reject"): "554 5", (Stage.CONNECT, "defer"): "421 4"}.get((stage, verdict.action))
            assert reply.startswith(code or f"{verdict.reply.code} {verdict.reply.status[0]}")
            assert f".7.1 {verdict.reply.text} (ref " in reply
            assert await opened.stored() == []
            id = reply.rpartition("(ref ")[2].rstrip(")")
            record = await opened.record(id)
            assert record["outcome"] == ("rejected" if verdict.action == "reject" else "deferred")

    run(test)


@pytest.mark.parametrize("stage", STAGES)
def test_disconnect_ends_the_session_with_its_reply(stage):
    async def test() -> None:
        async with door(pipelines={"default": judging(stage, disconnect("7.1", "bye"))}) as opened:
            heard = await whole(opened)
            assert heard[STAGES.index(stage)].startswith("421 4.7.1 bye")
            assert await opened.clients[0].ended()
            assert await opened.stored() == []

    run(test)


@pytest.mark.parametrize("stage", STAGES)
def test_quarantine_answers_250_and_sets_the_message_aside_whatever_stage_says_it(stage):
    async def test() -> None:
        async with door(pipelines={"default": judging(stage, quarantine("looks odd"))}) as opened:
            assert (await whole(opened))[-1].startswith("250 2.0.0 queued as ")
            (stored,) = await opened.stored()
            assert (stored.message.state, stored.message.reason) == (State.QUARANTINE, "looks odd")
            assert opened.rung == 0

    run(test)


@pytest.mark.parametrize("stage", STAGES)
def test_discard_answers_250_and_stores_nothing_whatever_stage_says_it(stage):
    async def test() -> None:
        async with door(pipelines={"default": judging(stage, discard("spam"))}) as opened:
            heard = await whole(opened)
            assert heard[-1].startswith("250 2.0.0 queued as ")
            assert await opened.stored() == []
            record = await opened.record(heard[-1].split()[-1])
            assert record["outcome"] == "discarded"

    run(test)


def test_after_a_refused_greeting_only_quit_is_heard():
    async def test() -> None:
        async with door(pipelines={"default": judging(Stage.CONNECT, reject("7.1", "no"))}) as opened:
            client = await opened.connect()
            await client.greeting("554 5.7.1 no (ref ")
            for command in ("EHLO client.test", "MAIL FROM:<a@sender.test>", "NOOP", "STARTTLS"):
                await client.expect(command, "503 5.5.1")
            await client.expect("QUIT", "221")

    run(test)


def test_a_refused_helo_greets_nobody():
    async def test() -> None:
        async with door(pipelines={"default": judging(Stage.HELO, reject("7.1", "no"))}) as opened:
            client = await opened.connect()
            await client.greeting()
            await client.expect("EHLO client.test", "550 5.7.1 no (ref ")
            await client.expect("MAIL FROM:<a@sender.test>", "503 5.5.1")

    run(test)


def test_relay_control_cannot_be_overridden_by_a_policy():
    async def test() -> None:
        async with door(pipelines={"default": judging(Stage.RCPT, accept("everything"))}) as opened:
            client = await opened.session()
            await client.expect("MAIL FROM:<a@sender.test>", "250")
            await client.expect("RCPT TO:<c@elsewhere.test>", "550 5.7.1 relaying denied")

    run(test)


# Pipelines per domain


def test_recipients_with_other_pipelines_come_back_in_a_transaction_of_their_own():
    async def test() -> None:
        async with door(domains=DOMAINS, pipelines={"relaxed": pipeline(name="relaxed")}) as opened:
            client = await opened.session()
            await client.expect("MAIL FROM:<a@sender.test>", "250")
            await client.expect("RCPT TO:<b@relaxed.test>", "250")
            await client.expect("RCPT TO:<b@example.org>", "452 4.5.3 recipient needs a transaction of its own")
            await client.expect("RCPT TO:<c@relaxed.test>", "250")
            await client.expect("DATA", "354")
            client.send(MESSAGE + b".\r\n")
            assert (await client.reply()).startswith("250")
            assert (await client.message(MESSAGE, "b@example.org")).startswith("250")
            assert len(await opened.stored()) == 2

    run(test)


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_domains_own_pipeline_refuses_it_refuses_of_every_recipient(stage):
    # The first recipient's refusal must not open the door for the second.
    async def test() -> None:
        strict = judging(stage, reject("7.1", "never"))
        async with door(domains=DOMAINS, pipelines={"relaxed": strict}) as opened:
            heard = await whole(opened, "b@relaxed.test", "c@relaxed.test", "b@relaxed.test")
            if stage in (Stage.DATA, Stage.MESSAGE):
                assert heard[-1].startswith("550 5.7.1 never")
            else:
                assert [reply[:9] for reply in heard[3:6]] == ["550 5.7.1"] * 3
                assert heard[-1].startswith("503 5.5.1 no valid recipients")
            # Nor in the next transaction, or after another HELO.
            client = opened.clients[0]
            await client.expect("EHLO again.test", "250")
            await client.expect("MAIL FROM:<a@sender.test>", "250")
            reply = await client.say("RCPT TO:<b@relaxed.test>")
            assert reply.startswith("250" if stage in (Stage.DATA, Stage.MESSAGE) else "550 5.7.1 never")
            assert await opened.stored() == []

    run(test)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("verdict", [quarantine("odd"), discard("odd")])
def test_what_a_domains_own_pipeline_sets_aside_is_set_aside(stage, verdict):
    async def test() -> None:
        async with door(domains=DOMAINS, pipelines={"relaxed": judging(stage, verdict)}) as opened:
            assert (await whole(opened, "b@relaxed.test"))[-1].startswith("250")
            assert (await opened.clients[0].message(MESSAGE, "b@example.org")).startswith("250")
            states = sorted(stored.message.state for stored in await opened.stored())
            assert states == ([State.QUARANTINE, State.QUEUED] if verdict.action == "quarantine" else [State.QUEUED])

    run(test)


def test_a_session_is_judged_once_by_each_pipeline_however_many_transactions_it_has():
    asked: list[str] = []

    def counting(name: str) -> Pipeline:
        def judge(stage: Stage) -> Any:
            def say(given: Any) -> Verdict:
                asked.append(f"{name} {stage}")
                return PROCEED

            return hook(stage, [Session], say)

        return pipeline(["judge"], policy("judge", *(judge(s) for s in (Stage.CONNECT, Stage.HELO, Stage.MAIL))))

    async def test() -> None:
        used = {"default": counting("default"), "relaxed": counting("relaxed")}
        async with door(domains=DOMAINS, pipelines=used) as opened:
            client = await opened.session()
            for _ in range(3):
                assert (await client.message(MESSAGE, "b@relaxed.test")).startswith("250")
        assert asked.count("default connect") == asked.count("relaxed connect") == 1
        assert asked.count("default helo") == asked.count("relaxed helo") == 1
        assert asked.count("default mail") == asked.count("relaxed mail") == 3

    run(test)


# Edits and trace fields


def test_edits_are_made_and_our_trace_fields_stand_above_them():
    async def test() -> None:
        edits = annotate(AddHeader("X-Spam", "no"), DeleteHeader("To"))
        async with door(pipelines={"default": judging(Stage.MESSAGE, edits)}) as opened:
            await whole(opened)
            assert await opened.bodies() == [
                b"X-Spam: no\r\nFrom: a@sender.test\r\nSubject: x\r\n\r\nHello.\r\n",
            ]

    run(test)


@pytest.mark.parametrize(
    "content", [b"", b"\r\n", b"no header\r\n", b"A: 1\r\n", b" folded\r\n\r\nbody\r\n", b"A: 1\r\nx\r\n"]
)
@pytest.mark.parametrize("edited", [True, False])
def test_content_with_odd_or_no_header_keeps_all_its_octets(content, edited):
    async def test() -> None:
        verdict = annotate(AddHeader("X", "1")) if edited else PROCEED
        async with door(pipelines={"default": judging(Stage.MESSAGE, verdict)}) as opened:
            client = await opened.session()
            assert (await client.message(content)).startswith("250")
            # What is no field is of the body, for everybody.
            fields = b"A: 1\r\n" if content.startswith(b"A") else b""
            rest = content.removeprefix(fields)
            gap = b"\r\n" if rest not in (b"", b"\r\n") else b""
            assert await opened.bodies() == [(b"X: 1\r\n" if edited else b"") + fields + gap + rest]

    run(test)


def test_return_path_is_not_ours_to_write():
    async def test() -> None:
        async with door() as opened:
            client = await opened.session()
            content = b"Return-Path: <other@sender.test>\r\n" + MESSAGE
            assert (await client.message(content)).startswith("250")
            # The final delivery puts one there; a relay may not (RFC 5321 section 4.4).
            assert await opened.bodies() == [content]

    run(test)


def test_the_record_of_a_message_names_what_every_recipient_was_told():
    def choosy(recipient: Recipient) -> Verdict:
        return reject("1.1", "no such recipient") if recipient.address.local == "nobody" else PROCEED

    async def test() -> None:
        async with door(pipelines={"default": judging(Stage.RCPT, choosy, Recipient)}) as opened:
            heard = await whole(opened, "b@example.org", "nobody@example.org")
            assert heard[-1].startswith("250")
            record = await opened.record(heard[-1].split()[-1])
            told = {r["address"]: r["reply"] for r in record["recipients"]}
            assert told["b@example.org"].startswith("250 ")
            assert told["nobody@example.org"].startswith("550 5.1.1")
            assert record["outcome"] == "accepted"

    run(test)


def test_policies_see_the_transaction_as_it_stands():
    seen: list[Transaction] = []

    def look(txn: Transaction) -> Verdict:
        seen.append(txn)
        return PROCEED

    async def test() -> None:
        async with door(pipelines={"default": judging(Stage.MESSAGE, look, Transaction)}) as opened:
            await whole(opened, "b@example.org", "c@example.org", "b@example.org")
        (txn,) = seen
        assert [str(r.address) for r in txn.recipients] == ["b@example.org", "c@example.org"]
        assert str(txn.sender) == "a@sender.test"
        assert txn.session.helo == "client.test"

    run(test)


# Trouble


def test_a_policy_that_fails_defers():
    def fail(given: Any) -> Verdict:
        raise RuntimeError("secret")

    async def test() -> None:
        async with door(pipelines={"default": judging(Stage.MESSAGE, fail)}) as opened:
            reply = (await whole(opened))[-1]
            assert reply.startswith("451 4.3.0")
            assert "secret" not in reply and "RuntimeError" not in reply
            assert await opened.stored() == []

    run(test)


def test_a_commit_that_fails_leaves_no_message_and_the_record_says_so():
    async def test() -> None:
        async with door(spool=failing(commit=SpoolError("no"))) as opened:
            reply = (await whole(opened))[-1]
            assert reply.startswith("451 4.3.0")
            record = await opened.record(reply.rpartition("(ref ")[2].rstrip(")"))
            assert record["outcome"] == "deferred"
            assert await opened.stored() == []

    run(test)


def test_250_is_not_said_before_the_commit_is_done():
    begun, go = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        begun.set()
        await go.wait()

    async def test() -> None:
        async with door(spool=failing(hold)) as opened:
            client = await opened.session()
            await client.envelope()
            await client.expect("DATA", "354")
            client.send(MESSAGE + b".\r\n")
            await begun.wait()
            waiting = asyncio.get_running_loop().create_task(client.reply())
            done, _ = await asyncio.wait({waiting}, timeout=0.1)
            assert not done
            assert await opened.stored() == []
            go.set()
            assert (await waiting).startswith("250 2.0.0 queued as ")
            assert len(await opened.stored()) == 1

    run(test)


@pytest.mark.parametrize("size", [100, 600_000])
def test_a_session_cut_off_within_the_commit_does_not_touch_what_is_being_stored(size):
    begun, go = asyncio.Event(), threading.Event()

    async def test() -> None:
        loop = asyncio.get_running_loop()

        def wait_in_the_commit(step: Step) -> None:
            if step is Step.COMMIT_BEGUN:
                loop.call_soon_threadsafe(begun.set)
                go.wait(PATIENCE)

        async with door(on_step=wait_in_the_commit) as opened:
            client = await opened.session()
            await client.envelope()
            await client.expect("DATA", "354")
            client.send(b"Subject: x\r\n\r\n" + b"x" * size + b"\r\n.\r\n")
            await asyncio.wait_for(begun.wait(), PATIENCE)
            (server,) = opened.servers()
            server.abort()
            assert not (await client.last_words()).startswith("250")
            go.set()
            (stored,) = await opened.stored()
            assert stored.message.state is State.QUEUED
            (content,) = await opened.contents()
            assert len(content) > size
            assert (await opened.record(stored.message.id))["outcome"] == "accepted"

    run(test)
