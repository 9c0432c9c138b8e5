"""One connection to a milter: what the codec says is written, in as few writes as it allows, and what comes is read.

*Fails by*: `MilterError` when the milter is gone, silent or unintelligible, OSError when the connection breaks. The
link is of no use then, and whoever holds it closes it.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from gateway.sdk import progress
from gateway.sdk.pool import has_come
from plugins.milter.codec import Codec
from plugins.milter.packets import Answer, Event, MilterError, Modification, Negotiated, Progress, Said

_READ: Final = 1 << 16
_UNSENT: Final = 1 << 18
"""Octets that are kept back at most until an answer is needed."""

_DUE: Final = 100
"""Answers that may be due at once: a milter whose answers nobody reads would stop reading, too."""

Take = Callable[[Modification], Awaitable[None]]


class MilterGone(MilterError):
    """The milter has closed the connection."""


class Link:
    """A connection and its codec."""

    __slots__ = ("_events", "_out", "_reader", "_tcp", "_unsent", "_writer", "answers", "codec", "reused")

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, codec: Codec) -> None:
        self.codec = codec
        self.answers = 0
        """Answers since this session has it."""
        self.reused = False
        """Whether another session had it before."""
        self._reader = reader
        self._writer = writer
        sock = writer.get_extra_info("socket")
        on_tcp = hasattr(socket, "TCP_QUICKACK") and sock is not None and sock.family != socket.AF_UNIX
        self._tcp = sock if on_tcp else None
        self._events: deque[Event] = deque()
        self._out: list[bytes] = []
        self._unsent = 0

    @property
    def dead(self) -> bool:
        """Whether it is known to be of no use: the milter has closed it, or said something unasked.

        To be asked while no answer is due.
        """
        return self._writer.is_closing() or self.codec.trouble is not None or has_come(self._reader)

    async def agree(self, seconds: float) -> None:
        """Agree on options."""
        self._say(self.codec.negotiate())
        answer = await self._answer(seconds, None)
        assert isinstance(answer, Negotiated)

    async def tell(self, octets: bytes, seconds: float, take: Take | None = None) -> Answer | None:
        """Say it; wait for the answers that are due then. `take` is given the modifications before them.

        Gives the last answer, or the first that is more than to go on; None when none was due.
        """
        self._say(octets)
        if self.codec.awaited is None and not self._events:
            if self._unsent > _UNSENT:
                await self._flush(seconds)
            return None
        while True:
            answer = await self._answer(seconds, take)
            assert isinstance(answer, Answer)
            self.answers += 1
            # The codec may be ahead of the events that were taken.
            last = self.codec.awaited is None and not self._events
            if last or answer.said not in (Said.CONTINUE, Said.SKIP):
                return answer

    async def ahead(self, octets: bytes, seconds: float) -> Answer | None:
        """Say it, and wait for no answer unless many are due; gives one that is more than to go on, if that came."""
        self._say(octets)
        if self.codec.due >= _DUE or self._unsent > _UNSENT:
            return await self.tell(b"", seconds)
        return None

    def say(self, octets: bytes) -> None:
        """Say what is not answered, when something is written next."""
        self._say(octets)

    def _say(self, octets: bytes) -> None:
        if octets:
            self._out.append(octets)
            self._unsent += len(octets)

    def _write(self) -> None:
        if self._out:
            self._writer.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
            self._out.clear()
            self._unsent = 0

    async def _flush(self, seconds: float) -> None:
        self._write()
        try:
            async with asyncio.timeout(seconds) as limit:
                await self._writer.drain()
        except TimeoutError:
            if not limit.expired():
                raise
            raise MilterError(f"it did not read within {seconds:g}s") from None

    async def _answer(self, seconds: float, take: Take | None) -> Answer | Negotiated:
        self._write()
        awaited = self.codec.awaited
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds) as limit:
                await self._writer.drain()
                while True:
                    event = self._events.popleft() if self._events else await self._next()
                    match event:
                        case Answer() | Negotiated():
                            return event
                        case Progress():
                            progress()
                        case _ if take is not None:
                            await take(event)
                    limit.reschedule(loop.time() + seconds)
        except TimeoutError:
            if not limit.expired():
                raise
            raise MilterError(f"no answer to {awaited.name if awaited else ''} within {seconds:g}s") from None

    async def _next(self) -> Event:
        while not self._events:
            if self.codec.trouble:
                raise self.codec.trouble
            data = await self._reader.read(_READ)
            if not data:
                raise MilterGone("it has closed the connection")
            self._events.extend(self.codec.receive(data))
            if self.codec.awaited is not None:
                self._acknowledge()
        return self._events.popleft()

    def _acknowledge(self) -> None:
        """Acknowledge at once what came. Milters write one change at a time, and their kernel holds back the next
        until this one is acknowledged (RFC 9293 section 3.7.4), which ours would do after 40 ms.
        """
        if self._tcp is not None:
            self._tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def release(self) -> bool:
        """End the session but not the connection, if both sides can; says whether it waits for another session now."""
        if self._events or not self.codec.reusable or self.dead:
            return False
        self._end(keep=True)
        self.answers, self.reused = 0, True
        return True

    def close(self) -> None:
        """Take leave, as far as that can be done without waiting, and close."""
        if self.codec.can_quit and not self.dead:
            self._end(keep=False)
        self._writer.close()

    def abort(self) -> None:
        """Close at once, whatever was not written yet."""
        self._writer.transport.abort()

    def _end(self, *, keep: bool) -> None:
        if self.codec.in_message:
            self._say(self.codec.abort())
        self._say(self.codec.quit(keep=keep))
        self._write()
