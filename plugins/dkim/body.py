"""Hashing a message's body: one pass for all signatures together, off the event loop where it is long."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import Executor
from typing import Final

from gateway.sdk import Message
from plugins.dkim.canonical import BodyHash

INLINE_OCTETS: Final = 64 << 10
"""Larger bodies are hashed in a thread; these take well under a millisecond."""

Form = tuple[bool, int | None]
"""What a signature needs of the body: whether it is relaxed, and after how many octets it is cut off (l=)."""


class HeaderSectionError(ValueError):
    """The header section does not end in an empty line, so nobody can say which octets are the body."""


async def body_hashes(message: Message, forms: Iterable[Form], threads: Executor) -> dict[Form, tuple[bytes, int]]:
    """Hash and size of each canonical form of the body. Raises `HeaderSectionError`."""
    lengths: dict[bool, list[int | None]] = {}
    for relaxed, length in forms:
        lengths.setdefault(relaxed, []).append(length)
    hashes = {relaxed: BodyHash(relaxed=relaxed, lengths=wanted) for relaxed, wanted in lengths.items()}
    skip = sum(len(field.raw) for field in message.fields)
    loop = asyncio.get_running_loop()
    large = message.content.size - skip > INLINE_OCTETS
    start = b""
    begun = False
    async for block in message.content.blocks():
        if skip >= len(block):
            skip -= len(block)
            continue
        if skip:
            block, skip = block[skip:], 0
        if not begun:
            start += block
            if len(start) < 2:
                continue
            if not start.startswith(b"\r\n"):
                raise HeaderSectionError("header section does not end in an empty line")
            block, begun = start[2:], True
        if large:
            await loop.run_in_executor(threads, _update, tuple(hashes.values()), block)
        else:
            _update(hashes.values(), block)
    if start and not begun:
        raise HeaderSectionError("header section does not end in an empty line")
    out: dict[Form, tuple[bytes, int]] = {}
    for relaxed, made in hashes.items():
        digests = made.digests()
        out |= {(relaxed, length): (digest, made.size) for length, digest in digests.items()}
    return out


def _update(hashes: Iterable[BodyHash], block: bytes) -> None:
    for each in hashes:
        each.update(block)
