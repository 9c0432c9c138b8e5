"""A policy server over its connections: one request, one reply, and what to do when a connection dies on the way.

The protocol lets a server take it that one message is over when a request about another one comes on the same
connection. So a session keeps its own connection as long as there are enough of them; only when all that may be open
are, the one that was idle longest changes hands.

*Fails by*: `OSError` and `CodecError`, both of which say what failed.
*Source*: Postfix, SMTPD_POLICY_README (connection reuse; trouble is told by closing without a reply).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from prometheus_client import Counter

from gateway.sdk import Clock
from gateway.sdk.pool import has_come
from plugins.delegation.codec import CodecError, ReplyReader, State

RECONNECTS: Final = Counter(
    "gatepost_delegation_reconnects", "Requests that were sent again over a new connection.", ["service"]
)

Dial = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]

_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True)
class Bounds:
    """Connections at once, seconds that one may idle, requests over one (0: any number), octets of a reply, and the
    seconds to wait before a request that a new connection left unanswered is sent once more."""

    connections: int
    idle: float
    requests: int
    reply: int
    pause: float = 1.0


class _Link:
    """One connection. `owner` is the session that asked over it last, as long as that may ask again."""

    __slots__ = ("owner", "reader", "served", "since", "writer")

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.owner = ""
        self.served = 0
        self.since = 0.0

    @property
    def dead(self) -> bool:
        """Whether it is of no more use: the server has closed it, or has said something unasked.

        The next reply over such a connection could be that to another request.
        """
        return self.writer.is_closing() or has_come(self.reader)

    def close(self) -> None:
        # At once: nothing is left to be sent, and there may be no time to wait for anything.
        self.writer.transport.abort()


class _Unanswered(Exception):
    """The connection was closed before an octet of the reply had come, so that asking again is safe enough."""


class Service:
    """The connections to one policy server. To be used from one event loop."""

    def __init__(self, name: str, dial: Dial, clock: Clock, bounds: Bounds) -> None:
        self.name = name
        self._dial = dial
        self._clock = clock
        self._bounds = bounds
        self._turns = asyncio.Semaphore(bounds.connections)
        self._idle: list[_Link] = []
        """Oldest first."""
        self._busy = 0
        self._closed = False

    async def ask(self, owner: str, request: bytes) -> str:
        """The action that the server answers to a request of the session `owner`."""
        async with self._turns:
            kept = self._keep(owner)
            try:
                return await self._exchange(kept or await self._open(), owner, request)
            except _Unanswered:
                RECONNECTS.labels(self.name).inc()
            if kept is None:
                await asyncio.sleep(self._bounds.pause)
            try:
                return await self._exchange(await self._open(), owner, request)
            except _Unanswered as unanswered:
                raise CodecError(str(unanswered)) from None

    def part(self, owner: str) -> None:
        """The session is over: others may have its connection."""
        for link in self._idle:
            if link.owner == owner:
                link.owner = ""

    def close(self) -> None:
        """Close what is idle now, and the rest when it is done."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _keep(self, owner: str) -> _Link | None:
        """An idle connection for `owner`: its own, else nobody's, else somebody's when no more may be opened."""
        too_old = self._clock.monotonic() - self._bounds.idle
        for link in [link for link in self._idle if link.dead or link.since < too_old]:
            self._idle.remove(link)
            link.close()
        chosen = next((link for link in self._idle if link.owner == owner), None)
        if chosen is None:
            chosen = next((link for link in reversed(self._idle) if not link.owner), None)
        if chosen is None and self._idle and len(self._idle) + self._busy >= self._bounds.connections:
            chosen = self._idle[0]
        if chosen is not None:
            self._idle.remove(chosen)
        return chosen

    async def _open(self) -> _Link:
        if self._idle and len(self._idle) + self._busy >= self._bounds.connections:
            self._idle.pop(0).close()
        self._busy += 1
        try:
            return _Link(*await self._dial())
        finally:
            self._busy -= 1

    async def _exchange(self, link: _Link, owner: str, request: bytes) -> str:
        """Ask over this connection, and keep it if it is good for another request."""
        self._busy += 1
        whole = False
        try:
            action = await self._read(link, request)
            whole = True
            return action
        finally:
            self._busy -= 1
            link.served += 1
            used_up = link.served == self._bounds.requests or self._closed
            if whole and not used_up:
                link.owner, link.since = owner, self._clock.monotonic()
                self._idle.append(link)
            else:
                link.close()

    async def _read(self, link: _Link, request: bytes) -> str:
        reply = ReplyReader(self._bounds.reply)
        octets = b""
        try:
            link.writer.write(request)
            await link.writer.drain()
            octets = await link.reader.read(_BLOCK)
        except ConnectionError as error:
            raise _Unanswered(f"the connection broke without a reply: {error}") from error
        while not reply.feed(octets):
            if not octets:
                break
            octets = await link.reader.read(_BLOCK)
        if reply.state is State.DONE:
            return reply.action
        if reply.state is State.EMPTY:
            raise _Unanswered(str(reply.end()))
        raise reply.end()
