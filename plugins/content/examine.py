"""Looks at files and into archives, within bounds: how deep, how many, how much, how long.

What comes out of an archive goes into a temporary file, so that little is held in memory. This runs in a thread; the
time limit is looked at with every piece that is unpacked.

*Fails by*: `OSError` when there is no room for temporary files. Whatever is wrong with an archive is a flaw of it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, Final, cast

from gateway.sdk import Attachment, Flaw, MimePart
from plugins.content.decoding import decoder
from plugins.content.kinds import HEAD, Form, Kind, find_kind
from plugins.content.names import extensions, is_disguised, is_unsafe
from plugins.content.office import Document, is_inner, read_members, read_ole
from plugins.content.parser import Parser
from plugins.content.reading import is_file
from plugins.content.streams import BrokenArchive, gzip_name, read_tar, stored, unpack_stream
from plugins.content.zipfiles import Entry, has_directory, read_directory, unpack

IN_MEMORY: Final = 1 << 20
"""Octets of a file that are held in memory before a temporary file is made."""

_NAME: Final = 1000
_RATIO_FROM: Final = 10 << 20
_STREAMS: Final = {Form.GZIP: "gzip", Form.BZIP2: "bzip2", Form.XZ: "xz"}
_SUFFIXES: Final = {"gz", "tgz", "bz2", "tbz2", "tbz", "xz", "txz", "z"}
_DOCUMENT_ENDS: Final = ("openxmlformats", "oasis.opendocument", "ms-visio")


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far is looked: levels of archives, members and unpacked octets in all, packed to unpacked, seconds."""

    depth: int = 5
    members: int = 1000
    unpacked: int = 100 << 20
    ratio: int = 250
    seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Label:
    """What is known of a file before it is opened."""

    names: tuple[str, ...]
    declared: str = ""
    section: str = ""
    inside: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.names[0] if self.names else ""


class _Limit(Exception):
    """A bound is reached."""

    def __init__(self, flaw: Flaw) -> None:
        super().__init__(flaw.value)
        self.flaw = flaw


class Collected:
    """A file in the making: in memory while it is small, its hash made on the way."""

    def __init__(self) -> None:
        self.file = cast("BinaryIO", SpooledTemporaryFile(max_size=IN_MEMORY))
        self.size = 0
        self._hash = hashlib.sha256()

    def write(self, octets: bytes) -> None:
        """Add the next octets. Raises OSError."""
        self.file.write(octets)
        self._hash.update(octets)
        self.size += len(octets)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def close(self) -> None:
        """Forget it."""
        self.file.close()


@dataclass(slots=True)
class _Member:
    """Something within an archive: what it is called, how its octets are had (None: not at all)."""

    names: tuple[str, ...]
    packed: int
    pieces: Callable[[], Iterator[bytes]] | None
    encrypted: bool = False
    size: int = 0
    flaws: set[Flaw] = field(default_factory=set)


class Examiner:
    """Looks at one message's files; `items` is what it found, each archive followed by what is inside of it."""

    def __init__(self, bounds: Bounds, monotonic: Callable[[], float]) -> None:
        self.items: list[Attachment] = []
        self.complete = True
        self.stop = threading.Event()
        """To be set when nobody waits for the result any more."""
        self._bounds = bounds
        self._monotonic = monotonic
        self._deadline = monotonic() + bounds.seconds
        self._members = 0
        self._unpacked = 0

    def examine(self, collected: Collected, label: Label) -> None:
        """Look at a file, and into it. Adds to `items`."""
        file, size = collected.file, collected.size
        file.seek(0)
        head = file.read(HEAD)
        kind = find_kind(head)
        place = len(self.items)
        item = Attachment(
            name=label.name,
            names=label.names,
            type=kind.type,
            declared=label.declared,
            extensions=extensions(label.names),
            size=size,
            sha256=collected.sha256,
            section=label.section,
            inside=label.inside,
            opaque=kind.form is Form.OPAQUE,
            executable=kind.form is Form.EXECUTABLE,
            double_extension=is_disguised(label.names),
        )
        self.items.append(item)
        flaws: set[Flaw] = set()
        document = Document()
        try:
            if kind.form is Form.OLE:
                document = read_ole(file, size)
            else:
                document = self._look_into(file, size, kind, head, label, flaws)
        except BrokenArchive:
            flaws.add(Flaw.BROKEN)
        except _Limit as limit:
            flaws.add(limit.flaw)
            self.complete = False
        self.items[place] = replace(
            item,
            type=document.type or item.type,
            macro=document.macro,
            encrypted=document.encrypted,
            executable=item.executable or document.executable,
            flaws=tuple(flaw for flaw in Flaw if flaw in flaws),
        )

    def _look_into(
        self, file: BinaryIO, size: int, kind: Kind, head: bytes, label: Label, flaws: set[Flaw]
    ) -> Document:
        """Go through the members of an archive; gives what kind of document its members make it."""
        form = kind.form
        if form in (Form.OTHER, Form.EXECUTABLE, Form.OPAQUE) and has_directory(file, size):
            # Something in front of an archive does not keep unpackers from opening it.
            form = Form.ZIP
            flaws.add(Flaw.LEADING_DATA)
        message = form is Form.OTHER and (label.declared.startswith("message/") or "eml" in extensions(label.names))
        if not message and form not in (*_STREAMS, Form.ZIP, Form.TAR):
            return Document()
        if len(label.inside) >= self._bounds.depth:
            raise _Limit(Flaw.TOO_DEEP)
        self._check_time()
        document = Document()
        if form is Form.ZIP:
            document = self._look_into_zip(file, size, label, flaws, whole=kind.form is Form.ZIP)
        elif message:
            self._go_through(_message_members(file, size), label, flaws, size)
        elif form is Form.TAR:
            self._go_through(_tar_members(file, size, flaws), label, flaws, size)
        else:
            stream = _STREAMS[form]
            name = (gzip_name(head) if form is Form.GZIP else "") or _inner_name(label.name)
            member = _Member((name,), size, lambda: unpack_stream(file, size, stream, flaws))
            self._go_through([member], label, flaws, size)
        return document

    def _look_into_zip(self, file: BinaryIO, size: int, label: Label, flaws: set[Flaw], *, whole: bool) -> Document:
        directory = read_directory(file, size, self._bounds.members - self._members)
        flaws |= directory.flaws
        entries = directory.entries
        names = [entry.name for entry in entries]
        if len(set(names)) < len(names):
            flaws.add(Flaw.DUPLICATE_NAME)
        document = read_members(names) if whole else Document()
        if any(entry.encrypted for entry in entries):
            document = replace(document, encrypted=True)
        if Flaw.OVERLAP in flaws:
            raise _Limit(Flaw.OVERLAP)
        office = any(end in document.type for end in _DOCUMENT_ENDS)
        self._go_through((_zip_member(file, e) for e in entries if not e.folder), label, flaws, size, office=office)
        if Flaw.TOO_MANY in flaws:
            raise _Limit(Flaw.TOO_MANY)
        return document

    def _go_through(
        self, members: Iterable[_Member], label: Label, flaws: set[Flaw], size: int, *, office: bool = False
    ) -> None:
        inside = (*label.inside, label.name)
        for member in members:
            self._members += 1
            if self._members > self._bounds.members:
                raise _Limit(Flaw.TOO_MANY)
            self._check_time()
            names = tuple(name[:_NAME] for name in member.names)
            if any(is_unsafe(name) for name in names):
                flaws.add(Flaw.UNSAFE_PATH)
            self._look_at(member, Label(names, "", label.section, inside), flaws, size, office=office)

    def _look_at(self, member: _Member, label: Label, flaws: set[Flaw], size: int, *, office: bool) -> None:
        if member.pieces is None:
            self._add_closed(member, label)
            flaws |= member.flaws
            return
        collected = Collected()
        place = len(self.items)
        try:
            self._collect(collected, member, size)
            if Flaw.BROKEN not in member.flaws and member.size and collected.size != member.size:
                member.flaws.add(Flaw.SIZE_MISMATCH)
            self.examine(collected, label)
        except _Limit as limit:
            member.flaws.add(limit.flaw)
            self._add_closed(member, label)
            raise
        finally:
            collected.close()
            flaws |= member.flaws
        self._correct(place, member, office=office)

    def _correct(self, place: int, member: _Member, *, office: bool) -> None:
        """Add to what was seen of a member what is known of it from its archive."""
        item = self.items[place]
        found = {*item.flaws, *member.flaws}
        if not found.isdisjoint((Flaw.BROKEN, Flaw.UNSUPPORTED)):
            opaque = item.opaque or Flaw.UNSUPPORTED in found
            item = replace(item, sha256="" if member.flaws else item.sha256, opaque=opaque)
        self.items[place] = replace(item, flaws=tuple(flaw for flaw in Flaw if flaw in found))
        plain = len(self.items) == place + 1 and not (item.executable or item.opaque or found)
        if office and plain and is_inner(item.extensions):
            del self.items[place]

    def _collect(self, collected: Collected, member: _Member, size: int) -> None:
        """Unpack a member, as far as it can be. Raises `_Limit`."""
        assert member.pieces is not None
        packed = max(1, min(member.packed, size))
        try:
            for piece in member.pieces():
                self._unpacked += len(piece)
                if self._unpacked > self._bounds.unpacked:
                    raise _Limit(Flaw.TOO_LARGE)
                self._check_time()
                collected.write(piece)
                if collected.size > _RATIO_FROM and collected.size > packed * self._bounds.ratio:
                    raise _Limit(Flaw.RATIO)
        except BrokenArchive:
            member.flaws.add(Flaw.BROKEN)

    def _add_closed(self, member: _Member, label: Label) -> None:
        """A member that nobody can open without the password."""
        self.items.append(
            Attachment(
                name=label.name,
                names=label.names,
                extensions=extensions(label.names),
                size=member.size,
                section=label.section,
                inside=label.inside,
                encrypted=member.encrypted,
                double_extension=is_disguised(label.names),
                flaws=tuple(flaw for flaw in Flaw if flaw in member.flaws),
            )
        )

    def _check_time(self) -> None:
        if self.stop.is_set() or self._monotonic() > self._deadline:
            raise _Limit(Flaw.TOO_SLOW)


def _zip_member(file: BinaryIO, entry: Entry) -> _Member:
    names = (entry.name, entry.also) if entry.also else (entry.name,)
    pieces = None if entry.encrypted else (lambda: unpack(file, entry))
    # The set is shared: what is wrong is often seen only while it is unpacked.
    return _Member(names, entry.packed, pieces, entry.encrypted, entry.unpacked, entry.flaws)


def _tar_members(file: BinaryIO, size: int, flaws: set[Flaw]) -> Iterator[_Member]:
    for entry in read_tar(file, size, flaws):
        pieces = _stored_at(file, entry.data, entry.size) if entry.file else _nothing
        yield _Member((entry.name,), max(entry.size, 1), pieces, size=entry.size if entry.file else 0)


def _message_members(file: BinaryIO, size: int) -> Iterator[_Member]:
    """The files of a message that is itself a file."""
    parser = Parser()
    for block in stored(file, 0, size):
        parser.feed(block)
    for part in parser.finish().parts:
        if is_file(part):
            yield _Member(part.names or (part.filename,), part.end - part.body, _decoded_at(file, part))


def _decoded_at(file: BinaryIO, part: MimePart) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        decode = decoder(part.encoding)
        for block in stored(file, part.body, part.end - part.body):
            yield decode.feed(block)
        yield decode.finish()

    return pieces


def _stored_at(file: BinaryIO, start: int, length: int) -> Callable[[], Iterator[bytes]]:
    return lambda: stored(file, start, length)


def _nothing() -> Iterator[bytes]:
    return iter(())


def _inner_name(name: str) -> str:
    """The name of what is in a compressed file: its own without the last extension."""
    stem, dot, end = name.rpartition(".")
    if not dot or end.lower() not in _SUFFIXES:
        return name
    return f"{stem}.tar" if end.lower().startswith("t") else stem
