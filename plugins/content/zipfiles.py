"""Reads ZIP archives that may lie, as laid down in PKWARE's APPNOTE.TXT (sections 4.3 and 4.4).

The directory at the end says what is in an archive, and so does the header in front of each member. Unpackers believe
one or the other; here both are read and compared, and what the directory does not name is looked for, too.
"""

from __future__ import annotations

import bz2
import lzma
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from gateway.sdk import Flaw
from plugins.content.streams import BrokenArchive, Decompressor, Inflater, inflate, stored

_END: Final = struct.Struct("<4s4H2LH")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR: Final = struct.Struct("<4sLQL")
_ENTRY: Final = struct.Struct("<4s6H3L5H2L")
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_LONGEST_COMMENT: Final = 65535
_LARGEST_DIRECTORY: Final = 16 << 20
_MOST_GAPS: Final = 1000
_BLOCK: Final = 64 << 10
_LARGEST_DICTIONARY: Final = 64 << 20
_LOCAL_MARK: Final = b"PK\x03\x04"
_HIDDEN: Final = re.compile(rb"PK\x03\x04(?=.{22})", re.DOTALL)

_STORED, _DEFLATED, _BZIP2, _LZMA, _XZ = 0, 8, 12, 14, 95


@dataclass(slots=True)
class Entry:
    """A member: `packed` and `unpacked` are sizes as the directory says, `header` is where it stands."""

    name: str
    flags: int
    method: int
    packed: int
    unpacked: int
    header: int
    data: int = 0
    also: str = ""
    """The name that it has where it stands, if that is another one."""
    flaws: set[Flaw] = field(default_factory=set)

    @property
    def encrypted(self) -> bool:
        """Bit 0 of the flags; a masked directory (bit 13) is encrypted, too."""
        return bool(self.flags & 0x2001)

    @property
    def folder(self) -> bool:
        return self.name.endswith("/") and not self.unpacked and not self.packed


@dataclass(slots=True)
class Directory:
    """What is in an archive. `start` is how many octets stand in front of it."""

    entries: list[Entry]
    flaws: set[Flaw] = field(default_factory=set)
    start: int = 0


def has_directory(file: BinaryIO, size: int) -> bool:
    """Whether there is a directory at the end of a file, whatever it begins with."""
    return _find_end(file, size) is not None


def read_directory(file: BinaryIO, size: int, most: int) -> Directory:
    """The members, at most `most` of them and then `Flaw.TOO_MANY`. Raises `BrokenArchive` when there is none."""
    end = _find_end(file, size)
    if end is None:
        return _read_without(file, size, most)
    start, length, shift, stop = end
    directory = Directory([], start=shift)
    if stop < size:
        directory.flaws.add(Flaw.TRAILING_DATA)
    if length > _LARGEST_DIRECTORY:
        directory.flaws.add(Flaw.TOO_MANY)
        length = _LARGEST_DIRECTORY
    file.seek(start)
    data = file.read(length)
    at = 0
    while at + _ENTRY.size <= len(data) and data.startswith(b"PK\x01\x02", at):
        if len(directory.entries) >= most:
            directory.flaws.add(Flaw.TOO_MANY)
            break
        entry, at = _read_entry(data, at, shift)
        directory.entries.append(entry)
    else:
        if at != len(data):
            directory.flaws.add(Flaw.BROKEN)
    for entry in directory.entries:
        _read_local(file, entry, size)
    _check_places(file, directory, start)
    return directory


def _find_end(file: BinaryIO, size: int) -> tuple[int, int, int, int] | None:
    """Where the directory is, how long, how many octets are in front of the archive, and where its comment ends."""
    tail = min(size, _LONGEST_COMMENT + _END.size)
    file.seek(size - tail)
    data = file.read(tail)
    at = data.rfind(b"PK\x05\x06")
    while at >= 0:
        if at + _END.size <= len(data):
            _, _, _, _, count, length, offset, comment = _END.unpack_from(data, at)
            place = size - tail + at
            stop = min(size, place + _END.size + comment)
            before = place
            if count == 0xFFFF or 0xFFFFFFFF in (length, offset):
                large = _find_end64(file, place)
                if large:
                    before, length, offset = large
            start = before - length
            file.seek(max(0, start))
            if start >= 0 and offset <= start and (not length or file.read(4) == b"PK\x01\x02"):
                return start, length, start - offset, stop
        at = data.rfind(b"PK\x05\x06", 0, at)
    return None


def _find_end64(file: BinaryIO, place: int) -> tuple[int, int, int] | None:
    """The end record for large archives: where it stands, and the directory's length and offset."""
    if place < _LOCATOR.size:
        return None
    file.seek(place - _LOCATOR.size)
    mark, _, offset, _ = _LOCATOR.unpack(file.read(_LOCATOR.size))
    if mark != b"PK\x06\x07":
        return None
    # It stands right in front of its locator, unless somebody put octets in front of the archive.
    for at in (place - _LOCATOR.size - _END64.size, offset):
        if 0 <= at <= place - _LOCATOR.size - _END64.size:
            file.seek(at)
            fields = _END64.unpack(file.read(_END64.size))
            if fields[0] == b"PK\x06\x06":
                return at, fields[8], fields[9]
    return None


def _read_entry(data: bytes, at: int, shift: int) -> tuple[Entry, int]:
    fields = _ENTRY.unpack_from(data, at)
    flags, method, packed, unpacked = fields[3], fields[4], fields[8], fields[9]
    name_length, extra_length, comment_length, header = fields[10], fields[11], fields[12], fields[16]
    name = data[at + _ENTRY.size : at + _ENTRY.size + name_length]
    extra_at = at + _ENTRY.size + name_length
    extra = data[extra_at : extra_at + extra_length]
    unpacked, packed, header = _widen(extra, unpacked, packed, header)
    entry = Entry(_text(name, flags), flags, method, packed, unpacked, header + shift)
    return entry, extra_at + extra_length + comment_length


def _widen(extra: bytes, *values: int) -> tuple[int, ...]:
    """Sizes that did not fit, from the extra field 1 (section 4.5.3)."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wide = extra[at + 4 : at + 4 + length]
            out = []
            for value in values:
                if value == 0xFFFFFFFF and len(wide) >= 8:
                    value, wide = struct.unpack("<Q", wide[:8])[0], wide[8:]
                out.append(value)
            return tuple(out)
        at += 4 + length
    return values


def _text(name: bytes, flags: int) -> str:
    """A name: UTF-8 where bit 11 says so, and also where it is that; else code page 437 (appendix D)."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("utf-8", "replace") if flags & 0x800 else name.decode("cp437")


def _read_local(file: BinaryIO, entry: Entry, size: int) -> None:
    """Compare the header in front of a member with what the directory says."""
    if entry.header + _LOCAL.size > size:
        entry.flaws.add(Flaw.BROKEN)
        return
    file.seek(entry.header)
    mark, _, flags, method, _, _, _, packed, unpacked, name_length, extra_length = _LOCAL.unpack(file.read(_LOCAL.size))
    if mark != _LOCAL_MARK:
        entry.flaws.add(Flaw.BROKEN)
        return
    name = _text(file.read(name_length), flags)
    unpacked, packed = _widen(file.read(extra_length), unpacked, packed)
    entry.data = entry.header + _LOCAL.size + name_length + extra_length
    if entry.flags & 0x2000:
        return
    if name != entry.name:
        entry.also = name
        entry.flaws.add(Flaw.NAME_MISMATCH)
    if method != entry.method or (flags ^ entry.flags) & 1:
        entry.flaws.add(Flaw.NAME_MISMATCH)
    # With a data descriptor the sizes follow the member, and are empty here.
    if (packed, unpacked) != (entry.packed, entry.unpacked) and not (flags & 8 and packed in (0, 0xFFFFFFFF)):
        entry.flaws.add(Flaw.SIZE_MISMATCH)
    if entry.data + entry.packed > size:
        entry.flaws.add(Flaw.BROKEN)


def _check_places(file: BinaryIO, directory: Directory, stop: int) -> None:
    """Look for members that share octets, and for some that the directory does not name."""
    at = 0
    gaps: list[tuple[int, int]] = []
    placed = sorted((e for e in directory.entries if e.data), key=lambda e: e.header)
    for entry in placed:
        if entry.header < at:
            directory.flaws.add(Flaw.OVERLAP)
        elif entry.header > at:
            gaps.append((at, entry.header))
        at = max(at, entry.data + entry.packed)
    if at > stop:
        directory.flaws.add(Flaw.OVERLAP)
    gaps.append((at, stop))
    if gaps[0][0] == 0 and gaps[0][1] > 0:
        file.seek(0)
        if placed and not _only_marker(file.read(min(gaps[0][1], 16)), gaps[0][1]):
            directory.flaws.add(Flaw.LEADING_DATA)
    if Flaw.TOO_MANY in directory.flaws:
        return
    for start, end in gaps[:_MOST_GAPS]:
        if end - start >= _LOCAL.size and _holds_member(file, start, end):
            directory.flaws.add(Flaw.HIDDEN_MEMBER)


def _only_marker(octets: bytes, length: int) -> bool:
    """Archives that were meant to be split begin with one of these (section 8.5.3)."""
    return length == 4 and octets[:4] in (b"PK00", b"PK\x07\x08")


def _holds_member(file: BinaryIO, start: int, end: int) -> bool:
    file.seek(start)
    before = b""
    while start < end:
        block = file.read(min(_BLOCK, end - start))
        if not block:
            return False
        if _HIDDEN.search(before + block):
            return True
        before = block[-(_LOCAL.size - 1) :]
        start += len(block)
    return False


def _read_without(file: BinaryIO, size: int, most: int) -> Directory:
    """The members of an archive that has no directory, one after the other, as repair tools and streams read it."""
    directory = Directory([], {Flaw.BROKEN})
    file.seek(0)
    at = file.read(_BLOCK).find(_LOCAL_MARK)
    if at < 0:
        raise BrokenArchive
    while at + _LOCAL.size <= size and len(directory.entries) < most:
        file.seek(at)
        mark, _, flags, method, _, _, _, packed, unpacked, name_length, extra = _LOCAL.unpack(file.read(_LOCAL.size))
        if mark != _LOCAL_MARK:
            break
        name = _text(file.read(name_length), flags)
        data = at + _LOCAL.size + name_length + extra
        open_ended = flags & 8 and not packed
        entry = Entry(name, flags, method, size - data if open_ended else packed, unpacked, at, data)
        entry.flaws.add(Flaw.BROKEN)
        directory.entries.append(entry)
        if open_ended:
            break
        at = data + packed
    return directory


def unpack(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    """A member's octets in pieces of at most 64 KiB. Raises `BrokenArchive`; adds flaws to the entry."""
    if not entry.data:
        raise BrokenArchive
    if entry.method == _STORED:
        return stored(file, entry.data, entry.packed)
    decompressor = _decompressor(file, entry)
    if decompressor is None:
        entry.flaws.add(Flaw.UNSUPPORTED)
        raise BrokenArchive
    start = entry.data + (_lzma_header(file, entry)[1] if entry.method == _LZMA else 0)
    return inflate(file, start, entry.data + entry.packed - start, decompressor)


def _decompressor(file: BinaryIO, entry: Entry) -> Decompressor | None:
    if entry.method == _DEFLATED:
        return Inflater(zlib.decompressobj(-15))
    if entry.method == _BZIP2:
        return Decompressor(bz2.BZ2Decompressor())
    if entry.method == _XZ:
        return Decompressor(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LARGEST_DICTIONARY))
    if entry.method == _LZMA:
        properties, _ = _lzma_header(file, entry)
        if properties is None:
            return None
        packing, dictionary = properties
        filters = [
            {
                "id": lzma.FILTER_LZMA1,
                "lc": packing % 9,
                "lp": packing // 9 % 5,
                "pb": packing // 45,
                "dict_size": max(4096, dictionary),
            }
        ]
        try:
            return Decompressor(lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters))
        except (lzma.LZMAError, ValueError):
            return None
    return None


def _lzma_header(file: BinaryIO, entry: Entry) -> tuple[tuple[int, int] | None, int]:
    """Packing and size of the dictionary of a member that is packed with LZMA (section 5.8.8), and the header's size.

    None where that is not usable, or would take too much memory.
    """
    file.seek(entry.data)
    head = file.read(9)
    if len(head) < 9 or head[2:4] != b"\x05\x00":
        return None, 0
    packing, dictionary = struct.unpack("<BL", head[4:9])
    return (None if packing >= 225 or dictionary > _LARGEST_DICTIONARY else (packing, dictionary)), 9
