"""What a client has sent and nobody has read yet, with a bound: past it, reading from the socket pauses.

A reader of content is not woken for every packet: that costs more than the octets do. It is woken when there is a good
deal, or when what came ends in a line feed; whoever waits for an answer has sent whole lines.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

HIGH: Final = 128 << 10
LOW: Final = 32 << 10
_LF: Final = 0x0A
ENOUGH: Final = 64 << 10
"""Octets of content at which a reader is woken in any case."""


class Pausable(Protocol):
    """The part of a transport that an inbox needs."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Gone(Exception):
    """Nothing more will come: the client closed, the connection was lost, or its time was up."""


class LineTooLong(Exception):
    """More octets than allowed came without a line feed. They have been thrown away, up to the next line feed."""


class Inbox:
    """A buffer that one reader awaits. `feed` and `end` are called by the protocol, everything else by the reader."""

    __slots__ = ("_enough", "_listener", "_loop", "_paused", "_skipping", "_transport", "_waiter", "buffer", "ended")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: Pausable | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._listener: asyncio.Future[None] | None = None
        self._paused = False
        self._skipping = False
        self._enough = 0
        self.buffer = bytearray()
        self.ended = False

    def attach(self, transport: Pausable) -> None:
        """Read from this transport from now on (a new one after STARTTLS)."""
        if self._paused and self._transport is not None:
            self._transport.resume_reading()
        self._transport = transport
        self._paused = False

    def feed(self, data: bytes) -> None:
        self.buffer += data
        if len(self.buffer) > HIGH and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        if len(self.buffer) >= self._enough or data[-1] == _LF:
            self._wake()

    def end(self) -> None:
        """Nothing more will come."""
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._listener is not None and not self._listener.done():
            self._listener.set_result(None)

    async def talks(self, seconds: float) -> bool:
        """Whether there is anything to read, now or within `seconds`; takes nothing. Apart from the reader's own wait.

        False at once when nothing more will come.
        """
        if not self.buffer and not self.ended:
            if self._listener is None or self._listener.done():
                self._listener = self._loop.create_future()
            await asyncio.wait((self._listener,), timeout=seconds)
        return bool(self.buffer)

    def clear(self) -> None:
        """Throw away what has come."""
        self.buffer.clear()
        self._resume()

    @property
    def has_line(self) -> bool:
        """Whether `line` would answer without waiting."""
        return b"\n" in self.buffer

    async def more(self) -> None:
        """Wait for more octets. Raises `Gone` when none will come."""
        if self.ended:
            raise Gone
        self._resume()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def line(self, limit: int) -> bytes:
        """The next line, line feed included. Raises `LineTooLong` past `limit` octets, `Gone` at the end."""
        start = 0
        while True:
            end = self.buffer.find(b"\n", start)
            if end >= 0:
                line = bytes(self.buffer[: end + 1])
                del self.buffer[: end + 1]
                self._resume()
                if self._skipping or len(line) > limit:
                    self._skipping = False
                    raise LineTooLong
                return line
            start = len(self.buffer)
            if start > limit:
                self._skipping = True
                self.buffer.clear()
                start = 0
            await self.more()

    async def some(self, limit: int = HIGH) -> bytes:
        """What there is, at least one octet, at most `limit`. Raises `Gone` at the end.

        Waits for more than a little, as long as no line ends there; `nudge` ends that wait.
        """
        if not self.buffer:
            self._enough = min(limit, ENOUGH)
            try:
                while not self.buffer:
                    await self.more()
            finally:
                self._enough = 0
        if len(self.buffer) <= limit:
            data = bytes(self.buffer)
            self.buffer = bytearray()
        else:
            data = bytes(self.buffer[:limit])
            del self.buffer[:limit]
        self._resume()
        return data

    def nudge(self) -> bool:
        """Have a reader who waits take what there is; says whether there is anything."""
        if self.buffer:
            self._wake()
        return bool(self.buffer)

    def give_back(self, data: bytes) -> None:
        """Put octets back in front: they belong to the next reader."""
        if data:
            self.buffer[:0] = data

    def _resume(self) -> None:
        if self._paused and len(self.buffer) <= LOW and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
