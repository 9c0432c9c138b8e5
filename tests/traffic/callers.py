"""Plays a day: its clients come over real sockets, several at once, each behind a PROXY header that says who it is.

What they hear is written down, transaction by transaction: it is the truth about what a gateway did.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.traffic.day import Ending, Mailing, Visit

_PATIENCE: Final = 120.0
_BLOCK: Final = 64 * 1024
FIRST_EXTRA: Final = 100
"""Places of transactions that a client had to add, for recipients who had to come in one of their own."""


@dataclass(frozen=True)
class Heard:
    """What the client of a transaction heard.

    `number` is the visit's and `place` that of the mailing in it, from 0. `count` says which of the session's
    transactions it was, from 1, and is 0 when the session itself was refused. `replies` are those to RCPT, without
    recipients who had to come in a transaction of their own; `last` is the reply that ended it, empty when the client
    did.
    """

    number: int
    place: int
    count: int
    replies: tuple[tuple[str, str], ...] = ()
    last: str = ""

    @property
    def taken(self) -> tuple[str, ...]:
        return tuple(recipient for recipient, reply in self.replies if reply.startswith("2"))

    @property
    def refused(self) -> frozenset[str]:
        return frozenset(recipient for recipient, reply in self.replies if not reply.startswith("2"))

    @property
    def word(self) -> str:
        """taken, rejected, deferred, or given-up when the client ended what we would have taken."""
        final = self.last or (self.replies[-1][1] if self.replies and not self.taken else "")
        return {"2": "taken", "4": "deferred", "5": "rejected", "": "given-up"}[final[:1]]


async def play(visits: Sequence[Visit], host: str, port: int, sessions: int, *, proxy: bool = True) -> list[Heard]:
    """Play these visits, so many at once, in order; without `proxy` all come as the one client that this machine is."""
    waiting = iter(visits)
    heard: list[Heard] = []

    async def caller() -> None:
        for visit in waiting:
            async with asyncio.timeout(_PATIENCE):
                heard.extend(await _Call(visit).run(host, port, proxy=proxy))

    async with asyncio.TaskGroup() as group:
        for _ in range(sessions):
            group.create_task(caller())
    return heard


class _Call:
    """One session."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._count = 0
        self._said = ""
        self._heard: list[Heard] = []
        self._left: list[tuple[int, Mailing, tuple[str, ...]]] = []

    async def run(self, host: str, port: int, *, proxy: bool) -> list[Heard]:
        self._reader, self._writer = await asyncio.open_connection(host, port, limit=_BLOCK)
        try:
            if proxy:
                self._writer.write(self._header())
            await self._session()
        except ConnectionError as error:
            raise ConnectionError(f"session {self._visit.number} broke off after {self._said!r}") from error
        finally:
            self._writer.close()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()
        return self._heard

    def _header(self) -> bytes:
        """PROXY protocol, version 1."""
        client = self._visit.client.address
        family, ours = ("TCP4", "192.0.2.25") if client.version == 4 else ("TCP6", "2001:db8::25")
        return f"PROXY {family} {client} {ours} {self._visit.number} 25\r\n".encode()

    async def _session(self) -> None:
        reply = await self._reply()
        if reply.startswith("2"):
            reply = await self._say(f"EHLO {self._visit.client.greeting}")
        if not reply.startswith("2"):
            self._heard.append(Heard(self._visit.number, 0, 0, last=reply))
            return
        for place, mailing in enumerate(self._visit.mailings):
            if not await self._transaction(place, mailing, mailing.recipients):
                return
        for place, mailing, recipients in self._left:
            await self._transaction(FIRST_EXTRA + place, mailing, recipients)
        await self._say("QUIT")

    async def _transaction(self, place: int, mailing: Mailing, recipients: tuple[str, ...]) -> bool:
        """One transaction; says whether the session goes on."""
        self._count += 1
        number, count = self._visit.number, self._count
        utf8 = "" if mailing.sender.isascii() else " SMTPUTF8 BODY=8BITMIME"
        reply = await self._say(f"MAIL FROM:<{mailing.sender}>{utf8}")
        if not reply.startswith("2"):
            self._heard.append(Heard(number, place, count, last=reply))
            return True
        replies: list[tuple[str, str]] = []
        others: list[str] = []
        for recipient in recipients:
            reply = await self._say(f"RCPT TO:<{recipient}>")
            if reply.startswith("452 4.5.3"):
                others.append(recipient)
            else:
                replies.append((recipient, reply))
        if others:
            self._left.append((place, mailing, tuple(others)))
        heard = Heard(number, place, count, tuple(replies))
        last, goes_on = "", True
        if heard.taken and mailing.ending is not Ending.QUIT:
            last, goes_on = await self._content(mailing)
        self._heard.append(Heard(number, place, count, tuple(replies), last))
        if goes_on and not last:
            await self._say("RSET")
        return goes_on

    async def _content(self, mailing: Mailing) -> tuple[str, bool]:
        """The reply that ends it, and whether the session goes on."""
        reply = await self._say("DATA")
        if not reply.startswith("3"):
            return reply, True
        octets = mailing.content.octets
        if mailing.ending is Ending.LOST:
            self._writer.write(octets[: len(octets) // 2])
            await self._writer.drain()
            return "", False
        stuffed = octets.replace(b"\r\n.", b"\r\n..")
        for at in range(0, len(stuffed), _BLOCK):
            self._writer.write(stuffed[at : at + _BLOCK])
            await self._writer.drain()
        return await self._say(".", before="" if octets.endswith(b"\r\n") else "\r\n"), True

    async def _say(self, command: str, *, before: str = "") -> str:
        self._said = command
        self._writer.write(f"{before}{command}\r\n".encode())
        return await self._reply()

    async def _reply(self) -> str:
        """The last line of a reply; raises `ConnectionError` when there is none."""
        while True:
            line = await self._reader.readline()
            if not line.endswith(b"\n"):
                raise ConnectionError(f"the gateway hung up on session {self._visit.number}")
            if line[3:4] != b"-":
                return line.decode("utf-8", "replace").strip()
