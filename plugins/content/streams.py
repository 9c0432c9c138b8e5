"""Decompression in small pieces, whatever the input says about its size, and tar archives.

*RFCs*: 1951 (deflate), 1952 (gzip).
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from gateway.sdk import Flaw

PIECE: Final = 64 << 10
_MEMORY: Final = 64 << 20
_LONGEST_NAME: Final = 64 << 10
_BLOCK: Final = 512
_MOST_STREAMS: Final = 10_000


class BrokenArchive(Exception):
    """It cannot be read, or not any further."""


class Decompressor:
    """One interface for bz2's, lzma's and (see `Inflater`) zlib's: at most 64 KiB come out of one call."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def take(self, octets: bytes) -> bytes:
        """The next input, or none to get more of what came before."""
        return self._inner.decompress(octets, PIECE)  # type: ignore[no-any-return]

    @property
    def hungry(self) -> bool:
        """Whether it gives nothing more without new input."""
        return bool(self._inner.needs_input)

    @property
    def ended(self) -> bool:
        return bool(self._inner.eof)

    @property
    def rest(self) -> bytes:
        """Input after the end."""
        return self._inner.unused_data  # type: ignore[no-any-return]


class Inflater(Decompressor):
    """For zlib, which gives back the input that it had no room for."""

    def take(self, octets: bytes) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + octets, PIECE)  # type: ignore[no-any-return]

    @property
    def hungry(self) -> bool:
        return not self._inner.unconsumed_tail


def stored(file: BinaryIO, start: int, length: int) -> Iterator[bytes]:
    """Octets as they stand. Raises `BrokenArchive` when there are fewer."""
    while length > 0:
        file.seek(start)
        block = file.read(min(PIECE, length))
        if not block:
            raise BrokenArchive
        yield block
        start += len(block)
        length -= len(block)


def inflate(file: BinaryIO, start: int, length: int, decompressor: Decompressor) -> Iterator[bytes]:
    """One compressed stream. Raises `BrokenArchive` when it is damaged, or not over at its end."""
    for block in stored(file, start, length):
        yield from _drain(decompressor, block)
        if decompressor.ended:
            return
    if not decompressor.ended:
        raise BrokenArchive


def _drain(decompressor: Decompressor, block: bytes) -> Iterator[bytes]:
    """All that comes out for a block of input."""
    while True:
        try:
            out = decompressor.take(block)
        except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:
            raise BrokenArchive from error
        if out:
            yield out
        if decompressor.ended or (decompressor.hungry and len(out) < PIECE) or not (out or block):
            return
        block = b""


def _gzip() -> Decompressor:
    return Inflater(zlib.decompressobj(31))


def _bzip2() -> Decompressor:
    return Decompressor(bz2.BZ2Decompressor())


def _xz() -> Decompressor:
    return Decompressor(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY))


MAKERS: Final[dict[str, tuple[Callable[[], Decompressor], bytes]]] = {
    "gzip": (_gzip, b"\x1f\x8b"),
    "bzip2": (_bzip2, b"BZh"),
    "xz": (_xz, b"\xfd7zXZ"),
}


def unpack_stream(file: BinaryIO, size: int, form: str, flaws: set[Flaw]) -> Iterator[bytes]:
    """All streams of a compressed file, one after the other, as its unpackers do (RFC 1952 section 2.2).

    Raises `BrokenArchive` when one is damaged or the last one not over.
    """
    make, mark = MAKERS[form]
    decompressor, streams = make(), 1
    for block in stored(file, 0, size):
        pending = block
        while pending:
            if decompressor.ended:
                # Zeros fill up tapes, and every tool skips them.
                pending = pending.lstrip(b"\0")
                if not pending:
                    break
                if not pending.startswith(mark[: len(pending)]):
                    flaws.add(Flaw.TRAILING_DATA)
                    return
                decompressor, streams = make(), streams + 1
                if streams > _MOST_STREAMS:
                    raise BrokenArchive
            yield from _drain(decompressor, pending)
            pending = decompressor.rest if decompressor.ended else b""
    if not decompressor.ended:
        raise BrokenArchive


def gzip_name(head: bytes) -> str:
    """The file name in a gzip header, empty when there is none (RFC 1952 section 2.3)."""
    if len(head) < 11 or not head[3] & 8:
        return ""
    at = 10
    if head[3] & 4:
        at += 2 + struct.unpack_from("<H", head + b"\0\0", at)[0]
    end = head.find(b"\0", at)
    return head[at:end].decode("latin-1") if at <= end < at + 1000 else ""


@dataclass(frozen=True, slots=True)
class TarEntry:
    """A member of a tar archive. `file` says that it is one: no folder, link or device."""

    name: str
    data: int
    size: int
    file: bool


def read_tar(file: BinaryIO, size: int, flaws: set[Flaw]) -> Iterator[TarEntry]:
    """The members of a tar archive (POSIX ustar and pax, GNU's long names).

    Raises `BrokenArchive` for what is no header.
    """
    at = 0
    long_name = ""
    while at + _BLOCK <= size:
        file.seek(at)
        block = file.read(_BLOCK)
        if not block.strip(b"\0"):
            break
        length = _number(block[124:136])
        if length is None or length < 0 or not _checked(block):
            raise BrokenArchive
        kind, data = block[156:157], at + _BLOCK
        at = data + (length + _BLOCK - 1) // _BLOCK * _BLOCK
        if kind in (b"L", b"x"):
            file.seek(data)
            record = file.read(min(length, _LONGEST_NAME))
            long_name = _pax_path(record) if kind == b"x" else record.rstrip(b"\0").decode("utf-8", "replace")
            continue
        yield TarEntry(long_name or _ustar_name(block), data, length, kind in (b"0", b"\0", b"7", b"S"))
        long_name = "" if kind != b"g" else long_name
        if at > size:
            flaws.add(Flaw.BROKEN)


def _checked(block: bytes) -> bool:
    said = _number(block[148:156])
    return said == sum(block) - sum(block[148:156]) + 8 * 32


def _number(digits: bytes) -> int | None:
    """Octal digits, or GNU's binary numbers."""
    if digits[:1] == b"\x80":
        return int.from_bytes(digits[1:], "big")
    try:
        return int(digits.strip(b" \0") or b"0", 8)
    except ValueError:
        return None


def _ustar_name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _pax_path(record: bytes) -> str:
    """The path in a pax header: lines of ``length key=value``."""
    at = 0
    while at < len(record):
        digits, space, _ = record[at : at + 20].partition(b" ")
        if not space or not digits.isdigit() or not int(digits):
            return ""
        line = record[at + len(digits) + 1 : at + int(digits)]
        if line.startswith(b"path="):
            return line[5:].rstrip(b"\n").decode("utf-8", "replace")
        at += int(digits)
    return ""
