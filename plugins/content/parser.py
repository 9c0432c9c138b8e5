"""Reads the tree of a message's MIME parts while its octets come by: nothing is held but fields and some text.

Everything is found in one pass and in linear time, without recursion, and it makes no difference in what blocks the
octets come. Where the standard leaves a reader a choice, the choice is that of most readers, and a defect says that
there was one: a line that is no header field begins the body, the delimiter of an outer multipart ends the inner ones,
what follows the end of a multipart is no part of it.

*RFCs*: 2046 section 5.1 (multipart), 5.2 (message), 2045 section 6.4 (no encoding around parts), 5322 section 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final

import re2

from gateway.sdk import Defect, MimePart, MimeText
from plugins.content.body import Body
from plugins.content.decoding import known
from plugins.content.fields import FIELD_NAME, LONGEST_BOUNDARY, Declared, Section, declared

# A longer line is no delimiter: this is more than the pattern can match.
_LONGEST_DELIMITER: Final = LONGEST_BOUNDARY + 260
_ALL_HEADERS: Final = 1 << 20
_MESSAGES: Final = frozenset({"message/rfc822", "message/global", "message/news"})
_IDENTITIES: Final = ("", "7bit", "8bit", "binary")


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a message is looked into. `header` is octets of one header section, `text` octets of text kept in all."""

    depth: int = 20
    parts: int = 1000
    header: int = 256 << 10
    text: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Parsed:
    """What was read: the parts in the order in which they begin, and their texts. `size` is the content's octets."""

    parts: tuple[MimePart, ...]
    texts: tuple[MimeText, ...]
    size: int
    complete: bool

    @property
    def defects(self) -> tuple[Defect, ...]:
        """Those of all parts, each once, in the order of `Defect`."""
        found = {defect for part in self.parts for defect in part.defects}
        return tuple(defect for defect in Defect if defect in found)


class _State(Enum):
    HEADER = auto()
    SKIP = auto()
    """In a header section that is too large."""
    BODY = auto()
    BETWEEN = auto()
    """Before the first or after the last part of a multipart."""
    DONE = auto()


@dataclass(slots=True)
class _Part:
    section: str
    header: int
    default: str
    fields: Section
    body: int = 0
    end: int = 0
    size: int = 0
    composite: bool = False
    declared: Declared | None = None
    children: int = 0
    defects: set[Defect] = field(default_factory=set)


@dataclass(slots=True)
class _Frame:
    """A part that holds others. `delimiters` finds the boundaries of this one and all around it."""

    part: _Part
    boundary: bytes
    delimiters: Any
    started: bool = False
    closed: bool = False


class Parser:
    """Octets in by `feed`, the tree out by `finish`. `utf8` says that header fields may be UTF-8 (RFC 6532)."""

    def __init__(self, limits: Limits | None = None, *, utf8: bool = False) -> None:
        self._limits = limits or Limits()
        self._utf8 = utf8
        # One octet before what is next is always there: a delimiter begins with the line end before it.
        self._buffer = b"\n"
        self._at = 1
        self._base = -1
        self._size = 0
        self._headers = 0
        self._header_left = 0
        self._text_left = self._limits.text
        self._parts: list[_Part] = []
        self._texts: list[MimeText] = []
        self._frames: list[_Frame] = []
        self._body: Body | None = None
        self._state = _State.HEADER
        self._complete = True
        self._open_part("1", 0, "text/plain")

    def feed(self, octets: bytes) -> None:
        """The next octets of the content."""
        self._size += len(octets)
        if self._state is not _State.DONE:
            self._run(octets, final=False)

    def finish(self) -> Parsed:
        """The end of the content."""
        if self._state is not _State.DONE:
            # The end of the content ends a line, too.
            self._run(b"" if self._buffer.endswith(b"\n") else b"\n", final=True)
            self._finish_part(self._size)
            self._pop(0, self._size)
        return Parsed(tuple(_plain(p) for p in self._parts), tuple(self._texts), self._size, self._complete)

    def _run(self, octets: bytes, *, final: bool) -> None:
        self._buffer += octets
        more = True
        while more:
            if self._state is _State.HEADER:
                more = self._read_line(final=final)
            elif self._state is _State.SKIP:
                more = self._skip_header(final=final)
            elif self._state is _State.DONE:
                self._at = len(self._buffer)
                more = False
            else:
                more = self._read_body(final=final)
        self._base += self._at - 1
        self._buffer = self._buffer[self._at - 1 :]
        self._at = 1

    def _offset(self, at: int) -> int:
        """Where a place in the buffer is in the content."""
        return min(self._base + at, self._size)

    # Header sections.

    def _open_part(self, section: str, at: int, default: str) -> None:
        fields = Section(message=section == "1", utf8=self._utf8)
        self._parts.append(_Part(section, at, default, fields))
        self._header_left = min(self._limits.header, _ALL_HEADERS - self._headers)
        self._state = _State.HEADER

    def _read_line(self, *, final: bool) -> bool:
        """One line of a header section; False when more octets are needed."""
        end = self._buffer.find(b"\n", self._at) + 1
        length = (end or len(self._buffer)) - self._at
        if length > self._header_left:
            self._parts[-1].defects.add(Defect.HEADER_TOO_LARGE)
            self._state = _State.SKIP
            return True
        if not end:
            return False
        line = self._buffer[self._at : end]
        fields = self._parts[-1].fields
        if line in (b"\r\n", b"\n"):
            self._at = end
            self._end_header()
        elif line[0] in b" \t" and not fields.empty:
            fields.fold(line)
        elif (
            line.startswith(b"--")
            and self._delimiters
            and (found := self._delimiters.match(self._buffer, self._at - 1))
        ):
            self._delimit(found)
            return True
        elif match := FIELD_NAME.match(line):
            fields.start(match[1], match[2], line)
        else:
            fields.defects.add(Defect.MALFORMED_HEADER)
            self._end_header()
        if self._state is _State.HEADER and fields is self._parts[-1].fields:
            self._header_left -= len(line)
            self._headers += len(line)
            self._at = end
        return True

    def _skip_header(self, *, final: bool) -> bool:
        """Go on to the empty line or the delimiter that ends a header section that is too large."""
        start = self._at - 1
        crlf = self._buffer.find(b"\n\r\n", start)
        bare = self._buffer.find(b"\n\n", start, crlf if crlf >= 0 else len(self._buffer))
        empty = bare if bare >= 0 else crlf
        delimiter = self._search(start)
        if delimiter and (empty < 0 or delimiter.start() < empty):
            self._delimit(delimiter)
            return True
        if empty >= 0:
            self._at = empty + (2 if empty == bare else 3)
            self._end_header()
            return True
        self._at = len(self._buffer) if final else self._held()
        return False

    def _end_header(self) -> None:
        """The header section is over, and the body begins at the current place."""
        part = self._parts[-1]
        part.body = self._offset(self._at)
        said = declared(part.fields, part.default)
        part.declared = said
        part.defects |= said.defects
        if said.type.startswith("multipart/"):
            self._enter_multipart(part, said)
        elif said.type in _MESSAGES and said.encoding in _IDENTITIES and self._may_enter(part):
            part.composite = True
            self._frames.append(_Frame(part, b"", self._delimiters, started=True, closed=True))
            self._open_child(part, part.body, "text/plain")
        else:
            self._enter_leaf(part, said)

    def _may_enter(self, part: _Part) -> bool:
        if len(self._frames) < self._limits.depth:
            return True
        part.defects.add(Defect.TOO_DEEP)
        return False

    def _enter_multipart(self, part: _Part, said: Declared) -> None:
        if not said.boundary:
            part.defects.add(Defect.NO_BOUNDARY)
        if not said.boundary or not self._may_enter(part):
            self._enter_leaf(part, said)
            return
        part.composite = True
        if known(said.encoding) and said.encoding not in _IDENTITIES:
            part.defects.add(Defect.ENCODED_COMPOSITE)
        around = [frame.boundary for frame in self._frames if not frame.closed]
        if any(b.startswith(said.boundary) or said.boundary.startswith(b) for b in around):
            part.defects.add(Defect.AMBIGUOUS_BOUNDARY)
        self._frames.append(_Frame(part, said.boundary, _delimiters([said.boundary, *reversed(around)])))
        self._state = _State.BETWEEN

    def _enter_leaf(self, part: _Part, said: Declared) -> None:
        if said.type == "message/partial":
            part.defects.add(Defect.PARTIAL_MESSAGE)
        elif said.type == "message/external-body":
            part.defects.add(Defect.EXTERNAL_BODY)
        elif said.type in _MESSAGES and said.encoding not in _IDENTITIES:
            part.defects.add(Defect.ENCODED_COMPOSITE)
        self._body = Body(said.type, said.charset, said.encoding, self._text_left)
        self._state = _State.BODY

    def _open_child(self, parent: _Part, at: int, default: str) -> None:
        """Begin the next part of this one, unless there are too many already."""
        if len(self._parts) >= self._limits.parts:
            self._parts[0].defects.add(Defect.TOO_MANY_PARTS)
            self._complete = False
            for frame in self._frames:
                frame.started = frame.closed = True
            self._pop(0, at)
            self._state = _State.DONE
            return
        parent.children += 1
        self._open_part(f"{parent.section}.{parent.children}", at, default)

    # Bodies.

    @property
    def _delimiters(self) -> Any:
        """The pattern of all delimiters that mean something here, None when there are none."""
        return self._frames[-1].delimiters if self._frames else None

    def _search(self, start: int) -> Any:
        """The next delimiter from `start` on, None when there is none."""
        return self._delimiters.search(self._buffer, start) if self._delimiters else None

    def _read_body(self, *, final: bool) -> bool:
        """All octets up to the next delimiter; False when more octets are needed."""
        delimiter = self._search(self._at - 1)
        if delimiter:
            self._take(self._before(delimiter.start()))
            self._delimit(delimiter)
            return True
        self._take(len(self._buffer) if final else self._held())
        return False

    def _before(self, line_end: int) -> int:
        """Where a body ends whose delimiter begins with this LF: the line end belongs to the delimiter."""
        return max(self._at, line_end - (self._buffer[line_end - 1 : line_end] == b"\r"))

    def _held(self) -> int:
        """From where on the buffer may hold the beginning of a delimiter."""
        last = self._buffer.rfind(b"\n", self._at - 1)
        line = self._buffer[last + 1 : last + 1 + _LONGEST_DELIMITER]
        if last >= 0 and len(line) < _LONGEST_DELIMITER and (line.startswith(b"--") or b"--".startswith(line)):
            return self._before(last)
        return max(self._at, len(self._buffer) - self._buffer.endswith(b"\r"))

    def _take(self, end: int) -> None:
        """Give the body what comes before `end`."""
        start, self._at = self._at, end
        octets = self._buffer[start : min(end, self._size - self._base)]
        if not octets:
            return
        if self._body:
            self._body.feed(octets)
        elif self._frames and self._frames[-1].closed and not octets.isspace():
            self._frames[-1].part.defects.add(Defect.EPILOGUE)

    def _delimit(self, delimiter: Any) -> None:
        """A delimiter: the parts within its multipart are over, and another one begins, or none does."""
        end = self._offset(self._before(delimiter.start()))
        boundary = delimiter.group(1)
        place = max(n for n, frame in enumerate(self._frames) if not frame.closed and frame.boundary == boundary)
        self._finish_part(end)
        if self._state is _State.DONE:
            return
        self._pop(place + 1, end)
        self._at = delimiter.end()
        frame = self._frames[place]
        if delimiter.group(2):
            frame.closed = True
            frame.delimiters = self._frames[place - 1].delimiters if place else None
            self._state = _State.BETWEEN
        else:
            frame.started = True
            digest = frame.part.declared is not None and frame.part.declared.type == "multipart/digest"
            self._open_child(frame.part, self._offset(self._at), "message/rfc822" if digest else "text/plain")

    # Ends.

    def _finish_part(self, end: int) -> None:
        """The part that is being read, if there is one, ends here."""
        while self._state in (_State.HEADER, _State.SKIP):
            # A message may begin and end here, too.
            self._end_header()
        if not self._body:
            return
        body, part = self._body, self._parts[-1]
        self._body = None
        body.finish()
        part.end = max(part.body, end)
        part.size = body.size
        if part.declared and part.declared.type.startswith("text/"):
            text, truncated = body.text()
            self._text_left -= body.kept
            self._texts.append(MimeText(part.section, part.declared.type, text, truncated))
            if truncated:
                part.defects.add(Defect.TOO_MUCH_TEXT)
        part.defects |= body.defects

    def _pop(self, depth: int, end: int) -> None:
        """The multiparts and messages from this depth on end here."""
        for frame in reversed(self._frames[depth:]):
            part = frame.part
            part.end = max(part.body, end)
            part.size = part.end - part.body
            if not frame.started:
                part.defects.add(Defect.MISSING_START_BOUNDARY)
            elif not frame.closed:
                part.defects.add(Defect.MISSING_END_BOUNDARY)
        del self._frames[depth:]


def _delimiters(boundaries: list[bytes]) -> Any:
    """A pattern for the delimiter lines of these boundaries (RFC 2046 section 5.1.1); the first one is preferred."""
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    names = b"|".join(re2.escape(boundary) for boundary in dict.fromkeys(boundaries))
    return re2.compile(rb"\n--(" + names + rb")(--)?[ \t]{0,200}\r?\n", options)


def _plain(part: _Part) -> MimePart:
    said = part.declared or Declared(part.default)
    return MimePart(
        section=part.section,
        type=said.type,
        charset=said.charset,
        disposition=said.disposition,
        names=said.names,
        encoding=said.encoding,
        header=part.header,
        body=part.body,
        end=part.end,
        size=part.size,
        composite=part.composite,
        defects=tuple(defect for defect in Defect if defect in part.defects),
    )
