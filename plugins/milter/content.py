"""Bodies on their way to a milter and back: in pieces, and never whole in memory when they are large."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Final

from gateway.sdk import BodyContent, Content, HeaderField, Message
from plugins.milter.packets import CHUNK_OCTETS, MilterError

MEMORY_OCTETS: Final = 256 << 10
"""A replaced body larger than that is kept in a file, and content larger than that is not taken into memory."""
_BLOCK: Final = 256 << 10


class HeldContent:
    """Content that is in memory."""

    __slots__ = ("eight_bit", "octets", "size")

    def __init__(self, octets: bytes, eight_bit: bool) -> None:
        self.octets = octets
        self.size = len(octets)
        self.eight_bit = eight_bit

    async def blocks(self) -> AsyncIterator[bytes]:
        """All of it."""
        yield self.octets


def held_pieces(fields: Sequence[HeaderField], content: HeldContent) -> list[bytes]:
    """As `body_pieces`, at once."""
    octets, at = content.octets, sum([len(field.raw) for field in fields])
    if octets.startswith(b"\r\n", at):
        at += 2
    return [octets[begin : begin + CHUNK_OCTETS] for begin in range(at, len(octets), CHUNK_OCTETS)]


async def body_pieces(message: Message) -> AsyncGenerator[bytes, None]:
    """What follows the header section and its empty line, in pieces that one packet takes."""
    skip = sum(len(field.raw) for field in message.fields)
    begun = False
    rest = b""
    async for block in message.content.blocks():
        if skip:
            cut = min(skip, len(block))
            skip -= cut
            block = block[cut:]
        rest = rest + block if rest else block
        if not begun:
            if len(rest) < 2:
                continue
            begun = True
            if rest.startswith(b"\r\n"):
                rest = rest[2:]
        at = 0
        while len(rest) - at > CHUNK_OCTETS:
            yield rest[at : at + CHUNK_OCTETS]
            at += CHUNK_OCTETS
        rest = rest[at:]
    if rest:
        yield rest


class FileBody:
    """A body in a file that has no name any more; it goes when nobody refers to it."""

    __slots__ = ("_file", "eight_bit", "size")

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="gatepost-milter-", buffering=0)
        self.size = 0
        self.eight_bit = False

    async def append(self, octets: bytes) -> None:
        """Add what comes next. Raises OSError."""
        await asyncio.to_thread(self._write, octets)
        self.size += len(octets)
        self.eight_bit = self.eight_bit or not octets.isascii()

    def _write(self, octets: bytes) -> None:
        view = memoryview(octets)
        while view:
            view = view[self._file.write(view) :]

    async def blocks(self) -> AsyncIterator[bytes]:
        """The octets in order. Raises OSError."""
        at = 0
        while at < self.size:
            block = await asyncio.to_thread(os.pread, self._file.fileno(), min(_BLOCK, self.size - at), at)
            if not block:
                raise OSError("the file with the replaced body is cut off")
            at += len(block)
            yield block


class NewBody:
    """A body that a milter gives piece by piece, of at most `limit` octets; more than `memory` go to a file."""

    def __init__(self, limit: int, memory: int = MEMORY_OCTETS) -> None:
        self._limit = limit
        self._memory = memory
        self._octets = bytearray()
        self._file: FileBody | None = None
        self._size = 0

    async def append(self, octets: bytes) -> None:
        """Add a piece. Raises `MilterError` when it becomes too large, OSError when it cannot be kept."""
        self._size += len(octets)
        if self._size > self._limit:
            raise MilterError(f"it replaces the body by more than {self._limit} octets")
        if self._file is None and self._size > self._memory:
            self._file = FileBody()
            await self._file.append(bytes(self._octets))
            self._octets.clear()
        if self._file is None:
            self._octets += octets
        else:
            await self._file.append(octets)

    def content(self) -> Content:
        """The whole."""
        return BodyContent(bytes(self._octets)) if self._file is None else self._file
