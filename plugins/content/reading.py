"""Reads a message's parts, and gives the decoded octets of some of them in a second pass.

A large message is read in a thread, block by block, so that other sessions go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Final

from gateway.sdk import Content, Defect, MimePart
from plugins.content.decoding import decoder
from plugins.content.parser import Limits, Parsed, Parser

_AT_ONCE: Final = 64 << 10
"""Octets that are read without a thread: that costs less than the thread does."""


async def read_parts(content: Content, limits: Limits | None = None, *, utf8: bool = False) -> Parsed:
    """The tree of a message's parts. `utf8` says that its header fields may be UTF-8 (RFC 6532)."""
    parser = Parser(limits, utf8=utf8)
    if content.size <= _AT_ONCE:
        async for block in content.blocks():
            parser.feed(block)
        return parser.finish()
    async for block in content.blocks():
        await asyncio.to_thread(parser.feed, block)
    return await asyncio.to_thread(parser.finish)


def is_file(part: MimePart) -> bool:
    """Whether readers show a part as a file: a text is one only when it says so, or is none."""
    if part.composite:
        return False
    if part.major != "text" or part.names or part.disposition == "attachment":
        return True
    return Defect.BINARY_TEXT in part.defects


@dataclass(frozen=True, slots=True)
class Piece:
    """Decoded octets of a part, in order; `last` says that there are no more of this part."""

    part: MimePart
    octets: bytes
    last: bool


async def decoded(content: Content, parts: Iterable[MimePart]) -> AsyncIterator[Piece]:
    """The decoded octets of these parts, one part after the other, in one pass over the content.

    Parts that hold others overlap with those: give either one or the other. Each part has a last piece, empty perhaps.
    """
    pending = sorted(parts, key=lambda part: (part.body, part.end), reverse=True)
    current = decoder(pending[-1].encoding) if pending else None
    start = 0
    async for block in content.blocks():
        while pending and current:
            part = pending[-1]
            octets = current.feed(block[max(0, part.body - start) : max(0, part.end - start)])
            if part.end > start + len(block):
                if octets:
                    yield Piece(part, octets, False)
                break
            yield Piece(part, octets + current.finish(), True)
            pending.pop()
            current = decoder(pending[-1].encoding) if pending else None
        start += len(block)
