"""Tag lists, as DKIM-Signature, ARC-Seal and key records are written.

*Promises*: whatever the octets, the answer is a `TagList` or a `TagError`, in time linear in their number.

*RFCs*: 6376 section 3.2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MAX_OCTETS: Final = 32_768
"""The longest list that is read. A signature with z= of a long header is a few thousand."""
MAX_TAGS: Final = 64

_WHITE: Final = b" \t\r\n"
_NAME: Final = re.compile(rb"[A-Za-z][A-Za-z0-9_]*\Z")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class TagError(ValueError):
    """The octets are no tag list. ``str(error)`` says why and repeats nothing of them."""


@dataclass(frozen=True, slots=True)
class TagList:
    """Tags by name, which is case-sensitive, in the order in which they stand.

    `spans` says where a tag's value lies in the octets that were read, white space around it included.
    """

    values: dict[str, str]
    spans: dict[str, tuple[int, int]]

    def get(self, name: str) -> str | None:
        """The value without the white space around it, None when there is no such tag."""
        return self.values.get(name)

    def compact(self, name: str) -> str:
        """The value without any white space in it, empty when there is no such tag."""
        return "".join(self.values.get(name, "").split())

    def items(self, name: str) -> tuple[str, ...]:
        """The parts of a value that is a list separated by colons, white space around each taken off."""
        value = self.values.get(name)
        return tuple(part.strip() for part in value.split(":")) if value is not None else ()


def parse_tags(octets: bytes) -> TagList:
    """Read a tag list. Raises `TagError` for anything that is none, such as one with a tag that stands twice."""
    if len(octets) > MAX_OCTETS:
        raise TagError(f"longer than {MAX_OCTETS} octets")
    if _CONTROL.search(octets):
        raise TagError("control characters")
    pieces = octets.split(b";", MAX_TAGS + 1)
    if len(pieces) > 1 and not pieces[-1].strip(_WHITE):
        pieces.pop()
    if len(pieces) > MAX_TAGS:
        raise TagError(f"more than {MAX_TAGS} tags")
    values: dict[str, str] = {}
    spans: dict[str, tuple[int, int]] = {}
    at = 0
    for piece in pieces:
        name, equals, value = piece.partition(b"=")
        name = name.strip(_WHITE)
        if not equals or not _NAME.match(name):
            raise TagError("a tag without a name or without =")
        key = name.decode("ascii")
        if key in values:
            raise TagError("a tag stands twice")
        try:
            values[key] = value.strip(_WHITE).decode()
        except UnicodeDecodeError:
            raise TagError("octets that are not UTF-8") from None
        spans[key] = (at + len(piece) - len(value), at + len(piece))
        at += len(piece) + 1
    return TagList(values, spans)
