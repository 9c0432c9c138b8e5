"""Canonical forms of header fields and of the body, the body as a stream.

*Promises*: time is linear in the octets whatever they are, and memory is bounded by the block: runs of white space and
empty lines at the end are counted, never scanned again. (Regular expressions are what made others spend minutes here.)

*RFCs*: 6376 section 3.4.
"""

from __future__ import annotations

import hashlib
from typing import Final

_NEWLINES: Final = b"\r\n" * 4096


def collapse(octets: bytes) -> bytes:
    """Every run of spaces and tabs as one space. A run halves with each pass, so the passes are few."""
    octets = octets.replace(b"\t", b" ")
    while b"  " in octets:
        octets = octets.replace(b"  ", b" ")
    return octets


def relaxed_field(raw: bytes) -> bytes:
    """A header field in relaxed form (section 3.4.2), with its final CRLF."""
    name, _, value = raw.partition(b":")
    return name.rstrip(b" \t").lower() + b":" + collapse(value.replace(b"\r\n", b"")).strip(b" ") + b"\r\n"


def simple_field(raw: bytes) -> bytes:
    """A header field as it stands (section 3.4.1), with its final CRLF."""
    return raw if raw.endswith(b"\r\n") else raw + b"\r\n"


class BodyHash:
    """SHA-256 of a body's canonical form (sections 3.4.3 and 3.4.4), fed with the body in blocks.

    `length` cuts the form off after so many octets (l=).
    """

    __slots__ = ("_hash", "_held", "_left", "_lines", "_relaxed", "_size")

    def __init__(self, *, relaxed: bool, length: int | None = None) -> None:
        self._relaxed = relaxed
        self._left = length
        self._hash = hashlib.sha256()
        # Kept back until it is known what follows: white space and half a line end, and line ends.
        self._held = b""
        self._lines = 0
        self._size = 0

    @property
    def size(self) -> int:
        """Octets of the canonical form so far, those beyond `length` included."""
        return self._size

    def update(self, block: bytes) -> None:
        """Take the next octets."""
        octets = self._held + block
        if self._relaxed:
            octets = collapse(octets).replace(b" \r\n", b"\r\n")
        end = len(octets)
        if octets.endswith(b"\r"):
            end -= 1
        if self._relaxed and octets.endswith(b" ", 0, end):
            end -= 1
        self._held = octets[end:]
        octets = octets[:end]
        text, lines = _split_lines(octets)
        if text:
            self._flush()
            self._write(text)
        self._lines += lines

    def digest(self) -> bytes:
        """The hash of the whole. To be called once, at the end."""
        rest = self._held.rstrip(b" ") if self._relaxed else self._held
        if rest:
            self._flush()
            self._write(rest)
        # Empty lines at the end do not count, and a body that has something ends in one line end. An empty one is
        # nothing when relaxed, and one line end when simple.
        if self._size or not self._relaxed:
            self._write(b"\r\n")
        return self._hash.digest()

    def _flush(self) -> None:
        while self._lines:
            some = min(self._lines, len(_NEWLINES) // 2)
            self._write(_NEWLINES[: 2 * some])
            self._lines -= some

    def _write(self, octets: bytes) -> None:
        self._size += len(octets)
        if self._left is None:
            self._hash.update(octets)
        elif self._left:
            taken = octets[: self._left]
            self._left -= len(taken)
            self._hash.update(taken)


def _split_lines(octets: bytes) -> tuple[bytes, int]:
    """The octets without the line ends at their end, and how many those were."""
    tail = len(octets) - len(octets.rstrip(b"\r\n"))
    count = tail // 2
    if octets[len(octets) - 2 * count :] != b"\r\n" * count:
        # Lone CR or LF among them: not in content that Gatepost took in, but then they are text.
        count = 0
        while octets.endswith(b"\r\n", 0, len(octets) - 2 * count):
            count += 1
    return octets[: len(octets) - 2 * count], count
