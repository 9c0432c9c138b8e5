"""A message's body read line by line: header fields of parts, and lines, with where they stand.

Octets in, events out. What is a field and what is a line is decided as Postfix's cleanup(8) decides it, so that its
tables mean the same here: a boundary is compared with the beginning of a line, the innermost first; attached messages
are gone into; whatever is no field ends a header section. Where nobody wants lines, they are not looked at one by one.

*Promises*: memory is bounded by what was asked for, whatever comes; time grows with the size.

*RFCs*: 2045 section 5 (Content-Type), 2046 sections 5.1 (multipart) and 5.2.1 (message/rfc822).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from gateway.sdk import HeaderField
from plugins.content.table import Place

CHUNK: Final = 2_048
"""A line that is longer is looked at in pieces, as Postfix does (line_length_limit)."""
FIELD_OCTETS: Final = 102_400
"""What is kept of one header field (header_size_limit)."""
DEPTH: Final = 100
"""Multiparts in each other (mime_nesting_limit); what lies deeper is read as lines."""
MESSAGES: Final = 1_000
"""Attached messages that are gone into."""

_BOUNDARY_OCTETS: Final = 2_048
_FIELD: Final = re.compile(rb"([\x21-\x39\x3b-\x7e]{1,997})[ \t]*:")
_TYPE: Final = re.compile(rb"\s*(?:\([^()]{0,200}\)\s*)?([\w.+\-]{1,80})\s*/\s*([\w.+\-]{1,80})")
_PARAMETER: Final = re.compile(rb';\s*([\w\-]{1,40})\s*=\s*("(?:[^"\\]|\\.){0,2100}"|[^\s;"()<>@,]{1,2100})', re.DOTALL)
_TYPE_FIELD: Final = b"content-type"
_FIELDS: Final = 1_000
_QUOTED: Final = re.compile(rb"\\(.)", re.DOTALL)

MIME_FIELDS: Final = frozenset(
    {
        "content-description",
        "content-disposition",
        "content-id",
        "content-transfer-encoding",
        "content-type",
        "mime-version",
    }
)


@dataclass(frozen=True, slots=True)
class Field:
    """A header field from `start` up to `end`; `octets` without its last line end, cut when it is very long."""

    place: Place
    octets: bytes
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Line:
    """A line, or a piece of a long one, from `start` up to `end`, line end included."""

    octets: bytes
    start: int
    end: int


Event = Field | Line


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a header section says of its body: the type in lower case, and the boundary of a multipart."""

    type: str
    boundary: bytes = b""


def _read_kind(fields: Iterable[bytes], default: str) -> _Kind:
    """Of several Content-Type fields the first counts."""
    value = next((v for name, _, v in (f.partition(b":") for f in fields) if name.strip().lower() == _TYPE_FIELD), b"")
    match = _TYPE.match(value)
    if not match:
        return _Kind(default)
    type_ = b"/".join((match[1], match[2])).lower().decode("ascii")
    for parameter in _PARAMETER.finditer(value):
        if type_.startswith("multipart/") and parameter[1].lower() == b"boundary":
            text = parameter[2]
            text = _QUOTED.sub(rb"\1", text[1:-1]) if text.startswith(b'"') else text
            return _Kind(type_, text[:_BOUNDARY_OCTETS])
    return _Kind(type_)


@dataclass(frozen=True, slots=True)
class _Frame:
    """A multipart that is open, and the type of its parts that do not name theirs."""

    boundary: bytes
    default: str


class Scanner:
    """Reads the body of a message whose header section is known; offsets count from the body's begin.

    `lines` is how many octets of each segment (between header sections and boundaries) are given as lines; what lies
    beyond that is passed over. `blank` says that an empty line ended the header section.
    """

    def __init__(self, fields: Iterable[HeaderField], *, lines: int = 0, blank: bool = True) -> None:
        self._lines = lines
        self._buffer = b""
        self._base = 0
        self._frames: list[_Frame] = []
        self._messages = 0
        self._default = "text/plain"
        # The header section that is being read; None in a body.
        self._section: list[bytes] | None = None
        self._field: tuple[Place, bytearray, int] | None = None
        self._nested = False
        self._cut_line = False
        self._at_line = True
        self._seen = 0
        self._open(_read_kind((field.raw for field in fields), self._default), blank=blank)

    # Octets

    def feed(self, octets: bytes) -> Iterator[Event]:
        """Take some octets; gives what can be said by now."""
        self._buffer = self._buffer + octets if self._buffer else octets
        yield from self._read(last=False)

    def finish(self) -> Iterator[Event]:
        """There are no more."""
        yield from self._read(last=True)
        if self._section is not None:
            yield from self._flush(self._base)

    def _read(self, *, last: bool) -> Iterator[Event]:
        buffer, at, size = self._buffer, 0, len(self._buffer)
        while at < size:
            if self._section is None and not self._cut_line and self._seen >= self._lines:
                stop = self._skip(buffer, at)
                if stop < 0:
                    # A line end, or a part of one, may be the begin of a boundary.
                    left = size if last else max(at, size - 3)
                    self._at_line = self._at_line and left == at
                    at = left
                    break
                at, self._at_line = stop, True
            end = buffer.find(b"\r\n", at, at + CHUNK + 2)
            cut = False
            if end < 0:
                cut = size - at > CHUNK + 1
                if not cut and not last:
                    break
                end = at + CHUNK if cut else size
            next_ = end if cut or end == size else end + 2
            yield from self._take(buffer[at:end], self._base + at, self._base + next_, cut)
            at = next_
        self._buffer = buffer[at:]
        self._base += at

    def _skip(self, buffer: bytes, at: int) -> int:
        """Where the next line that may be a boundary begins, -1 when there is none yet."""
        if not self._frames:
            return -1
        if self._at_line and buffer.startswith(b"--", at):
            return at
        found = buffer.find(b"\r\n--", at)
        return found + 2 if found >= 0 else -1

    # Lines

    def _take(self, text: bytes, start: int, end: int, cut: bool) -> Iterator[Event]:
        goes_on, self._cut_line = self._cut_line, cut
        if self._section is not None:
            if self._field and (goes_on or text[:1] in (b" ", b"\t")):
                self._lengthen(text, fold=not goes_on)
                return
            # What goes on without a field is a boundary's line, which is very long.
            if not goes_on:
                yield from self._flush(start)
                if match := _FIELD.match(text):
                    self._field = (self._place(match[1]), bytearray(text), start)
                    return
                self._end_section(blank=not text)
                if not text:
                    return
        if not goes_on and text.startswith(b"--"):
            self._boundary(text)
        if self._seen < self._lines:
            self._seen += len(text) + 2
            yield Line(text, start, end)

    def _lengthen(self, text: bytes, *, fold: bool) -> None:
        if self._field:
            value = self._field[1]
            room = FIELD_OCTETS - len(value)
            if room > 0:
                value += (b"\n" + text if fold else text)[:room]

    def _flush(self, end: int) -> Iterator[Event]:
        """The field that was being read is complete."""
        if self._field is not None and self._section is not None:
            place, value, start = self._field
            self._field = None
            if len(self._section) < _FIELDS:
                self._section.append(bytes(value))
            yield Field(place, bytes(value), start, end)

    def _place(self, name: bytes) -> Place:
        if not self._nested or name.decode("ascii").lower() in MIME_FIELDS:
            return Place.MIME_HEADER
        return Place.NESTED_HEADER

    # Parts

    def _end_section(self, *, blank: bool) -> None:
        kind = _read_kind(self._section or (), self._default)
        self._section = None
        self._open(kind, blank=blank)

    def _open(self, kind: _Kind, *, blank: bool) -> None:
        """What a header section announced begins."""
        if kind.type in ("message/rfc822", "message/global") and blank and self._messages < MESSAGES:
            self._messages += 1
            self._section, self._nested, self._default = [], True, "text/plain"
        else:
            self._enter(kind)

    def _enter(self, kind: _Kind) -> None:
        """A body begins."""
        self._seen = 0
        if kind.boundary and len(self._frames) < DEPTH:
            default = "message/rfc822" if kind.type == "multipart/digest" else "text/plain"
            self._frames.append(_Frame(kind.boundary, default))

    def _boundary(self, text: bytes) -> None:
        """If it is a boundary, a part begins or a multipart ends."""
        for frame in reversed(self._frames):
            if text.startswith(frame.boundary, 2):
                break
        else:
            return
        while self._frames[-1] is not frame:
            self._frames.pop()
        self._seen = 0
        if text.startswith(b"--", 2 + len(frame.boundary)):
            self._frames.pop()
        else:
            self._section, self._nested, self._field, self._default = [], False, None, frame.default
