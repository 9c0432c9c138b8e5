"""What tests of `milter-host` need: a class written on the spot, and sessions that go through it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

from gateway.sdk import Message, MilterAction, MilterReply, Stage, Transaction
from gateway.sdk.testing import Bench, make_message, make_recipient, make_session, make_transaction
from plugins.milter.host_plugin import HostOptions, MilterHostPlugin

MILTERS = Path(__file__).parents[1] / "support" / "milters.py"
MESSAGE = b"Subject: test\r\nX-Two: a\r\nX-Two: b\r\n\r\nHello\r\n"

CALLBACKS = ("connect", "hello", "envfrom", "envrcpt", "data", "header", "eoh", "body", "eom")
_REFUSED = (MilterAction.REJECT, MilterAction.TEMPFAIL, MilterAction.CONNECTION_FAIL)


def written(directory: Path, body: str, name: str = "Mine") -> dict[str, Any]:
    """Options for a milter whose class has this body; `calls` in its module is a list."""
    path = directory / "mine.py"
    head = f"import threading\nimport time\nimport Milter\n\ncalls = []\n\n\nclass {name}(Milter.Base):\n"
    path.write_text(head + indent(dedent(body), "    "))
    return {"class": name, "file": str(path)}


def one(callback: str, body: str) -> str:
    """A class that has this callback, and ``close``, which is noted."""
    return f"""
def {callback}(self, *arguments):
    calls.append("{callback}")
    {body}

def close(self):
    calls.append("close")
    return Milter.CONTINUE
"""


class Guest:
    """One client's session with a plugin that is made from options, or is that of another guest."""

    def __init__(self, options: dict[str, Any], beside: Guest | None = None, **session: Any) -> None:
        made = beside.plugin if beside else MilterHostPlugin(HostOptions.model_validate(options), Bench().services)
        self.plugin: MilterHostPlugin = made
        self.wanted = {finder.stage for finder in self.plugin.finders}
        self.session = make_session(**{"helo": "", **session})
        self.number = 0
        self.transaction: Transaction = make_transaction(self.session)

    async def _find(self, stage: Stage, *inputs: Any) -> MilterReply | None:
        """What the stage's finder gives, by its shortcut where that does, as a pipeline asks; None without a finder."""
        for finder in self.plugin.finders:
            if finder.stage is stage:
                shortcut = self.plugin.shortcut(finder)
                if shortcut is None or (found := shortcut(*inputs, None)) is None:
                    found = await getattr(self.plugin, finder.method)(*inputs, None)
                assert isinstance(found, MilterReply)
                return found
        return None

    async def connect(self) -> MilterReply | None:
        return await self._find(Stage.CONNECT, self.session)

    async def helo(self, name: str = "client.example") -> MilterReply | None:
        self.session = replace(self.session, helo=name)
        return await self._find(Stage.HELO, self.session)

    async def mail(self, sender: str = "ben@sender.example", **more: Any) -> MilterReply | None:
        self.number += 1
        made = make_transaction(self.session, sender=sender, **more)
        self.transaction = replace(made, id=f"{self.session.id}{self.number}")
        return await self._find(Stage.MAIL, self.transaction)

    async def rcpt(self, address: str = "anna@example.org", *, accepted: bool = True) -> MilterReply | None:
        recipient = make_recipient(address)
        reply = await self._find(Stage.RCPT, self.transaction, recipient)
        if accepted and (reply is None or reply.action not in _REFUSED):
            self.transaction = replace(self.transaction, recipients=(*self.transaction.recipients, recipient))
        return reply

    async def data(self) -> MilterReply | None:
        return await self._find(Stage.DATA, self.transaction)

    async def message(self, content: bytes | Message = MESSAGE) -> MilterReply:
        message = make_message(content) if isinstance(content, bytes) else content
        reply = await self._find(Stage.MESSAGE, self.transaction, message)
        assert reply is not None
        return reply

    async def hang_up(self) -> None:
        await self.plugin.hung_up(self.session)

    async def send(
        self, content: bytes | Message = MESSAGE, *recipients: str, sender: str = "ben@sender.example"
    ) -> MilterReply:
        """A whole transaction; gives what is said of the message, or refuses earlier."""
        for reply in (await self.mail(sender), *[await self.rcpt(r) for r in recipients or ("anna@example.org",)]):
            if reply is not None and reply.action in _REFUSED:
                return reply
        await self.data()
        return await self.message(content)


def calls_of(guest: Guest) -> list[Any]:
    """What the milter of this guest has noted in the list `calls` of its module."""
    make = guest.plugin._host.make
    assert isinstance(make, partial)
    calls: list[Any] = sys.modules[make.func.__module__].calls
    return calls


def visit(options: dict[str, Any], script: Callable[[Guest], Awaitable[Any]] | None = None, **session: Any) -> Any:
    """Run a script, by default a message from connect to QUIT, and give what it gives."""

    async def run() -> Any:
        guest = Guest(options, **session)
        try:
            await guest.connect()
            await guest.helo()
            result = await (script or Guest.send)(guest)
            await guest.hang_up()
            return result
        finally:
            await guest.plugin.close()

    return asyncio.run(run())


def recorded(path: Path) -> list[list[Any]]:
    """What a milter of `tests.support.milters` has written down."""
    return [json.loads(line) for line in path.read_text().splitlines()]
