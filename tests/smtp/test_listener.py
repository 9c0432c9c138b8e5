"""Draining: nothing new is begun, what was begun is finished, and patience ends."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import replace

import pytest

from gateway.smtp.listener import tls_context
from gateway.smtp.options import Timeouts
from tests.smtp.door import MESSAGE, PATIENCE, Door, door, run
from tests.smtp.faults import failing
from tests.support.servers import Certificate

GOODBYE = "421 4.3.2 closing for maintenance, try again soon"


def drain(opened: Door, grace: float = PATIENCE) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(opened.front.drain(grace))


def test_an_idle_session_hears_421_at_once():
    async def test() -> None:
        async with door() as opened:
            greeted = await opened.session()
            fresh = await opened.connect()
            await fresh.greeting()
            began = time.monotonic()
            task = drain(opened)
            for client in (greeted, fresh):
                assert await client.last_words() == GOODBYE + "\r\n"
            await task
            assert time.monotonic() - began < PATIENCE / 2

    run(test)


def test_an_idle_session_over_tls_hears_421_at_once(certificate: Certificate):
    async def test() -> None:
        async with door(tls=tls_context(str(certificate.certificate), str(certificate.key))) as opened:
            client = await opened.session()
            await client.starttls()
            await client.expect("EHLO client.test", "250")
            task = drain(opened)
            assert await client.last_words() == GOODBYE + "\r\n"
            client.close()
            await task

    run(test)


def test_a_message_under_way_is_taken_and_421_comes_after_it():
    async def test() -> None:
        async with door() as opened:
            client = await opened.session()
            await client.envelope()
            await client.expect("DATA", "354")
            client.send(MESSAGE[:20])
            task = drain(opened)
            await asyncio.sleep(0.05)
            assert not task.done()
            client.send(MESSAGE[20:] + b".\r\n")
            assert (await client.reply()).startswith("250 2.0.0 queued as ")
            assert await client.reply() == GOODBYE
            assert await client.ended()
            await task
            assert await opened.bodies() == [MESSAGE]

    run(test)


def test_a_transaction_that_has_begun_may_be_finished_and_none_begun():
    async def test() -> None:
        async with door() as opened:
            client = await opened.session()
            await client.envelope()
            task = drain(opened)
            await asyncio.sleep(0.05)
            await client.expect("RCPT TO:<c@example.org>", "250")
            await client.expect("DATA", "354")
            client.send(MESSAGE + b".\r\nMAIL FROM:<a@sender.test>\r\nRCPT TO:<b@example.org>\r\n")
            assert (await client.reply()).startswith("250 2.0.0 queued as ")
            assert await client.reply() == GOODBYE
            assert await client.ended()
            await task
            assert len(await opened.stored()) == 1

    run(test)


def test_quit_is_answered_while_draining():
    async def test() -> None:
        async with door() as opened:
            client = await opened.session()
            await client.envelope()
            task = drain(opened)
            await asyncio.sleep(0)
            await client.expect("QUIT", "221")
            assert await client.ended()
            await task

    run(test)


def test_nobody_new_is_let_in():
    async def test() -> None:
        async with door() as opened:
            client = await opened.session()
            await client.envelope()
            task = drain(opened)
            await asyncio.sleep(0.05)
            with pytest.raises(ConnectionError):
                await opened.connect()
            await client.expect("RSET", "250")
            assert await client.reply() == GOODBYE
            await task

    run(test)


def test_who_was_let_in_a_moment_before_hears_421():
    async def test() -> None:
        async with door() as opened:
            client = await opened.session()
            await client.envelope()
            opened.front.draining = True
            late = await opened.connect()
            assert await late.reply() == GOODBYE
            assert await late.ended()

    run(test)


def test_when_the_grace_is_over_the_rest_is_cut_off_and_not_stored():
    async def test() -> None:
        async with door() as opened:
            client = await opened.session()
            await client.envelope()
            await client.expect("DATA", "354")
            client.send(MESSAGE)
            await opened.front.drain(0.1)
            assert await client.last_words() == GOODBYE + "\r\n"
            assert not opened.servers()
            assert await opened.stored() == []

    run(test)


def test_a_message_whose_commit_is_under_way_is_waited_for():
    go = asyncio.Event()

    async def test() -> None:
        async with door(spool=failing(go.wait)) as opened:
            client = await opened.session()
            await client.envelope()
            await client.expect("DATA", "354")
            client.send(MESSAGE + b".\r\n")
            await asyncio.sleep(0.05)
            task = drain(opened)
            await asyncio.sleep(0.05)
            go.set()
            assert (await client.reply()).startswith("250 2.0.0 queued as ")
            assert await client.reply() == GOODBYE
            await task

    run(test)


def test_a_session_finishes_under_the_desk_it_began_with():
    async def test() -> None:
        async with door() as opened:
            old = await opened.session()
            desk = opened.front.desk
            opened.front.desk = replace(desk, options=replace(desk.options, hostname="new.example.org"))
            assert (await old.say("HELO client.test")) == "250 mx.example.org"
            new = await opened.connect()
            assert (await new.greeting()).startswith("220 new.example.org")
            assert (await old.message()).startswith("250")

    run(test)


def test_sessions_that_were_turned_away_or_lost_are_counted_out():
    async def test() -> None:
        async with door(timeouts=Timeouts(command=0.1)) as opened:
            for _ in range(5):
                client = await opened.connect()
                client.writer.transport.abort()
            await opened.connect()
            await opened.session()
            while opened.servers():
                await asyncio.sleep(0.01)
            assert opened.front.counter.sessions() == 0

    run(test)


def test_the_context_speaks_nothing_below_tls_1_2(certificate: Certificate):
    context = tls_context(str(certificate.certificate), str(certificate.key))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    with pytest.raises((OSError, ssl.SSLError)):
        tls_context(str(certificate.certificate), str(certificate.certificate))
