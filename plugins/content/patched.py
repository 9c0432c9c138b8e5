"""A body with changes in it, put together while it is read: the original is not held in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from gateway.sdk import Content, Message


@dataclass(frozen=True, slots=True)
class Patch:
    """These octets in place of those from `start` up to `end`, counted from the body's begin."""

    start: int
    end: int
    octets: bytes


def body_offset(message: Message, begin: bytes) -> int:
    """Where the body begins in the content: after the header section and, where there is one, its empty line.

    `begin` is the content's begin, with two octets more than the header section at least.
    """
    head = sum(len(field.raw) for field in message.fields)
    return head + 2 if begin[head : head + 2] == b"\r\n" else head


class PatchedBody:
    """The body of `content`, which begins at `skip`, with patches that do not overlap, in any order."""

    __slots__ = ("_content", "_patches", "_skip", "eight_bit", "size")

    def __init__(self, content: Content, skip: int, patches: Iterable[Patch]) -> None:
        self._content = content
        self._skip = skip
        self._patches = tuple(sorted(patches, key=lambda patch: (patch.start, patch.end)))
        self.size = content.size - skip + sum(len(p.octets) - (p.end - p.start) for p in self._patches)
        self.eight_bit = content.eight_bit or not all(p.octets.isascii() for p in self._patches)

    async def blocks(self) -> AsyncIterator[bytes]:
        at = -self._skip
        patches = iter(self._patches)
        patch = next(patches, None)
        # Octets up to here are the header section's, or a patch has taken their place.
        gone = 0
        async for block in self._content.blocks():
            end = at + len(block)
            while patch is not None and patch.start < end:
                if patch.start > gone:
                    yield block[max(gone, at) - at : patch.start - at]
                if patch.octets:
                    yield patch.octets
                gone = max(gone, patch.end)
                patch = next(patches, None)
            if gone < end:
                yield block[max(gone, at) - at :]
                gone = end
            at = end
        while patch is not None:
            yield patch.octets
            patch = next(patches, None)
