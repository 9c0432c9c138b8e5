"""Canonical forms of header fields and of the body, the body as a stream.

*Promises*: time is linear in the octets whatever they are, and memory is bounded by the block: runs of white space and
empty lines at the end are counted, never scanned again. (Regular expressions are what made others spend minutes here.)

*RFCs*: 6376 section 3.4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Final

_NEWLINES: Final = b"\r\n" * 4096
_RUN: Final = b" " * 16


def collapse(octets: bytes) -> bytes:
    """Every run of spaces and tabs as one space. Each pass makes runs much shorter, so the passes are few."""
    octets = octets.replace(b"\t", b" ")
    while _RUN in octets:
        octets = octets.replace(_RUN, b" ")
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

    `lengths` are after how many octets the form is cut off (l=), None for all of it; there is a hash for each, and the
    form is made once.
    """

    __slots__ = ("_hashes", "_held", "_lines", "_relaxed", "_size")

    def __init__(self, *, relaxed: bool, lengths: Collection[int | None] = (None,)) -> None:
        self._relaxed = relaxed
        self._hashes = {length: hashlib.sha256() for length in lengths}
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

    def digests(self) -> dict[int | None, bytes]:
        """The hash for each length. To be called once, at the end."""
        rest = self._held.rstrip(b" ") if self._relaxed else self._held
        if rest:
            self._flush()
            self._write(rest)
        # Empty lines at the end do not count, and a body that has something ends in one line end. An empty one is
        # nothing when relaxed, and one line end when simple.
        if self._size or not self._relaxed:
            self._write(b"\r\n")
        return {length: made.digest() for length, made in self._hashes.items()}

    def _flush(self) -> None:
        while self._lines:
            some = min(self._lines, len(_NEWLINES) // 2)
            self._write(_NEWLINES[: 2 * some])
            self._lines -= some

    def _write(self, octets: bytes) -> None:
        for length, made in self._hashes.items():
            if length is None:
                made.update(octets)
            elif length > self._size:
                made.update(octets[: length - self._size])
        self._size += len(octets)


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
