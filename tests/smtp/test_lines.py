"""Who talks before the greeting, as plugins are told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from gateway.mail.session import Session
from gateway.sdk import PROCEED, Finding, Plugin, Stage, finds, reject
from gateway.smtp.inbox import Inbox
from gateway.smtp.lines import OpenLines
from tests.pipeline.setting import SESSION, hook, policy
from tests.smtp.door import PATIENCE, door, pipeline, run


@dataclass(frozen=True, slots=True)
class Talk(Finding):
    early: bool


class Listener(Plugin):
    """Asks the registry that its front door has."""

    name = "listener"
    lines: OpenLines

    @finds(Stage.CONNECT)
    async def listen(self, session: Session) -> Talk:
        return Talk(await self.lines.early(session, 0.3))


@pytest.mark.parametrize("strict", [True, False])
def test_a_plugin_hears_of_it_and_its_policy_decides(strict):
    def say(talk: Talk):
        return reject("5.1", "wait for your turn") if talk.early and strict else PROCEED

    judge = policy("judge", hook(Stage.CONNECT, [Talk], say))

    async def test() -> None:
        async with door(pipelines={"default": pipeline(["listener", "judge"], Listener, judge)}) as opened:
            Listener.lines = opened.front.lines
            client = await opened.connect(first=b"EHLO early.test\r\n")
            if strict:
                await client.greeting("554 5.5.1 wait for your turn (ref ")
            else:
                await client.greeting()
                assert (await client.reply()).startswith("250")
            patient = await opened.connect()
            await patient.greeting()

    run(test)


def test_who_talks_after_a_plugin_had_looked_is_cut_off_as_anybody_is():
    class Looks(Listener):
        """Looks once, and takes its time afterwards."""

        looked: asyncio.Event
        go_on: asyncio.Event

        @finds(Stage.CONNECT)
        async def listen(self, session: Session) -> Talk:
            talk = Talk(await self.lines.early(session, 0))
            self.looked.set()
            await self.go_on.wait()
            return talk

    async def test() -> None:
        judge = policy("judge", hook(Stage.CONNECT, [Talk], lambda talk: PROCEED))
        async with door(pipelines={"default": pipeline(["listener", "judge"], Looks, judge)}) as opened:
            Looks.lines, Looks.looked, Looks.go_on = opened.front.lines, asyncio.Event(), asyncio.Event()
            client = await opened.connect()
            await asyncio.wait_for(Looks.looked.wait(), PATIENCE)
            client.send(b"EHLO early.test\r\n")
            (server,) = opened.servers()
            async with asyncio.timeout(PATIENCE):
                while not server._inbox.buffer:
                    await asyncio.sleep(0.005)
            Looks.go_on.set()
            await client.greeting("554 5.5.1 data before it was asked for")

    run(test)


def test_waiting_ends_at_the_first_octet_at_the_end_and_after_the_time():
    async def test() -> None:
        loop = asyncio.get_running_loop()
        lines = OpenLines()
        assert not await lines.early(SESSION, 60), "a session that does not wait for its greeting"
        for act, expected in ((lambda i: i.feed(b"x"), True), (lambda i: i.end(), False)):
            inbox = Inbox(loop)
            lines.open(SESSION, inbox)
            loop.call_soon(act, inbox)
            assert await lines.early(SESSION, 60) is expected
            assert await lines.early(SESSION, 60) is expected, "and again, at once"
            assert lines.close(SESSION) is expected
        inbox = Inbox(loop)
        lines.open(SESSION, inbox)
        assert not await lines.early(SESSION, 0.001)
        assert not lines.close(SESSION)

    run(test)
