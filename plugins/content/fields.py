"""What the header section of a part says of it: type, boundary, charset, encoding, disposition and file names.

Of a field that stands there twice the first counts, as most readers have it, and the rest is a defect.

*RFCs*: 2045 section 5 and 6.1, 2046 section 5.1.1 (boundaries), 2183 (Content-Disposition), 2231 sections 3 and 4
(parameters in pieces and in other charsets), 2047 section 5 (where encoded words may not stand), 5322 section 3.6.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from gateway.sdk import Defect
from gateway.sdk.words import decode, decode_words, find_charset, has_encoded_word
from plugins.content.decoding import known

FIELD_NAME: Final = re.compile(rb"([\x21-\x39\x3b-\x7e]{1,997})([ \t]*):")
LONGEST_BOUNDARY: Final = 200
"""Boundaries that are longer than the 70 characters that RFC 2046 allows are still used up to this length."""

_NAME_LENGTH: Final = 1000
_MOST_NAMES: Final = 50
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z{}-]{1,100}"
_TYPE: Final = re.compile(rf"({_TOKEN})/({_TOKEN})\Z")
_COMMENT: Final = re.compile(r"\([^()]*\)")
_WORD: Final = re.compile(r"[^\s;()]+")
# Never fails and never goes back: a quoted string that is not ended reaches to the end of the field.
_PIECE: Final = re.compile(r'"(?:[^"\\]|\\(?:.|\Z))*"?|;|[^";]+', re.DOTALL)
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\(?:.|\Z))*)("?)(.*)', re.DOTALL)
_ESCAPE: Final = re.compile(r'\\(["\\])')
_SEGMENT: Final = re.compile(r"([^*]+)(?:\*([0-9]{1,3}))?(\*?)\Z")
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{1,70}\Z")
_CONTROL: Final = re.compile(rb"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)")

_DUPLICATES: Final = {
    "content-type": Defect.DUPLICATE_CONTENT_TYPE,
    "content-transfer-encoding": Defect.DUPLICATE_ENCODING,
    "content-disposition": Defect.DUPLICATE_DISPOSITION,
    "mime-version": Defect.DUPLICATE_MIME_VERSION,
}
_MESSAGE_DUPLICATES: Final = {
    "from": Defect.DUPLICATE_FROM,
    "date": Defect.DUPLICATE_DATE,
    "message-id": Defect.DUPLICATE_MESSAGE_ID,
    "subject": Defect.DUPLICATE_SUBJECT,
    "sender": Defect.DUPLICATE_ADDRESS_FIELD,
    "reply-to": Defect.DUPLICATE_ADDRESS_FIELD,
    "to": Defect.DUPLICATE_ADDRESS_FIELD,
    "cc": Defect.DUPLICATE_ADDRESS_FIELD,
    "bcc": Defect.DUPLICATE_ADDRESS_FIELD,
}
_WANTED: Final = frozenset(_DUPLICATES) | frozenset(_MESSAGE_DUPLICATES)
_REQUIRED: Final = {"from": Defect.MISSING_FROM, "date": Defect.MISSING_DATE, "message-id": Defect.MISSING_MESSAGE_ID}


class Section:
    """The header section of one part, as it is read: only fields that matter here are kept."""

    def __init__(self, *, message: bool, utf8: bool) -> None:
        self.defects: set[Defect] = set()
        self.empty = True
        self._message = message
        self._utf8 = utf8
        self._fields: dict[str, list[bytearray]] = {}
        self._open: bytearray | None = None

    def start(self, name: bytes, gap: bytes, line: bytes) -> None:
        """A field's first line; `gap` is what stands between its name and the colon."""
        self.empty = False
        if gap:
            self.defects.add(Defect.SPACE_BEFORE_COLON)
        lower = name.decode("ascii").lower()
        self._open = bytearray(line[len(name) + len(gap) + 1 :]) if lower in _WANTED else None
        if self._open is not None:
            self._fields.setdefault(lower, []).append(self._open)
        self._look(line)

    def fold(self, line: bytes) -> None:
        """A line that continues the field."""
        if self._open is not None:
            self._open += line
        self._look(line)

    def _look(self, line: bytes) -> None:
        if not line.isascii() and not (self._utf8 and _is_utf8(line)):
            self.defects.add(Defect.EIGHT_BIT_HEADER)
        if b"\0" in line:
            self.defects.add(Defect.NUL_IN_HEADER)
        if _CONTROL.search(line):
            self.defects.add(Defect.CONTROL_IN_HEADER)

    def first(self, name: str) -> str | None:
        """The first value of a field, unfolded; octets that are no UTF-8 are carried along."""
        found = self._fields.get(name)
        if not found:
            return None
        return bytes(found[0]).replace(b"\r\n", b"").replace(b"\n", b"").decode("utf-8", "surrogateescape").strip()

    def count(self) -> None:
        """Note which fields stand there too often or not at all."""
        often = _DUPLICATES | (_MESSAGE_DUPLICATES if self._message else {})
        self.defects |= {defect for name, defect in often.items() if len(self._fields.get(name, ())) > 1}
        if self._message:
            self.defects |= {defect for name, defect in _REQUIRED.items() if name not in self._fields}
            if "mime-version" not in self._fields and any(name.startswith("content-") for name in self._fields):
                self.defects.add(Defect.MISSING_MIME_VERSION)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


_HEX: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


@dataclass(slots=True)
class Declared:
    """What a part says of itself."""

    type: str
    charset: str = ""
    boundary: bytes = b""
    disposition: str = ""
    names: tuple[str, ...] = ()
    encoding: str = ""
    defects: set[Defect] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a field: the value that counts for each name, and all that were given."""

    values: dict[str, str]
    all: tuple[tuple[str, str], ...]
    bad: bool = False


def declared(section: Section, default: str) -> Declared:
    """Read the fields. `default` is the type of a part that names none (RFC 2046 section 5.1.5 for digests)."""
    section.count()
    out = Declared(default, defects=set(section.defects))
    kind = section.first("content-type")
    names: list[str] = []
    if kind is not None:
        _read_type(kind, out, names)
    disposition = section.first("content-disposition")
    if disposition is not None:
        head, parameters = parse_value(disposition)
        out.disposition = printable(head.lower())[:100]
        if parameters.bad:
            out.defects.add(Defect.BAD_PARAMETER)
        # The name of the disposition is the one that most readers show.
        names = [*_names(parameters, "filename", out.defects), *names]
    out.names = tuple(dict.fromkeys(names))[:_MOST_NAMES]
    if len({name.strip() for name in out.names}) > 1:
        out.defects.add(Defect.CONFLICTING_NAMES)
    encoding = section.first("content-transfer-encoding")
    if encoding is not None:
        word = _WORD.search(_COMMENT.sub(" ", encoding))
        out.encoding = printable(word[0].lower())[:100] if word else ""
        if not known(out.encoding):
            out.defects.add(Defect.UNKNOWN_ENCODING)
    return out


def _read_type(kind: str, out: Declared, names: list[str]) -> None:
    head, parameters = parse_value(kind)
    match = _TYPE.match(head)
    if match:
        out.type = f"{match[1]}/{match[2]}".lower()
    else:
        out.type = "text/plain"
        out.defects.add(Defect.BAD_CONTENT_TYPE)
    if parameters.bad:
        out.defects.add(Defect.BAD_PARAMETER)
    names.extend(_names(parameters, "name", out.defects))
    charset = parameters.values.get("charset")
    if charset is not None:
        out.charset = printable(charset.strip().lower())[:100]
        if not find_charset(out.charset):
            out.defects.add(Defect.UNKNOWN_CHARSET)
    boundary = parameters.values.get("boundary", "").rstrip(" \t")
    if boundary and out.type.startswith("multipart/"):
        out.boundary = boundary.encode("utf-8", "surrogateescape")
        if not _BOUNDARY.match(boundary):
            out.defects.add(Defect.BAD_BOUNDARY)
        if len(out.boundary) > LONGEST_BOUNDARY or b"\n" in out.boundary or b"\r" in out.boundary:
            out.boundary = b""


def _names(parameters: Parameters, wanted: str, defects: set[Defect]) -> Iterable[str]:
    """The file names among the parameters, the one that counts first."""
    first = parameters.values.get(wanted)
    if first is None:
        return
    for value in dict.fromkeys([first, *(value for name, value in parameters.all if name == wanted)]):
        if has_encoded_word(value):
            defects.add(Defect.ENCODED_WORD_PARAMETER)
            value = decode_words(value)
        if name := printable(value)[:_NAME_LENGTH]:
            yield name


def printable(text: str) -> str:
    """Text without octets that are no UTF-8, which are read as Windows-1252."""
    if text.isascii():
        return text
    octets = text.encode("utf-8", "surrogateescape")
    return octets.decode("utf-8", "replace") if _is_utf8(octets) else octets.decode("cp1252", "replace")


def parse_value(value: str) -> tuple[str, Parameters]:
    """A structured field's value: what stands before the first semicolon, without comments, and the parameters.

    Comments between parameters are not known to most readers, nor here: what looks like one in a file name is part of
    it.
    """
    pieces = [[]]  # type: list[list[str]]
    for match in _PIECE.finditer(value):
        if match[0] == ";":
            pieces.append([])
        else:
            pieces[-1].append(match[0])
    head, *rest = ("".join(piece) for piece in pieces)
    return _COMMENT.sub("", head).strip(), _parse_parameters(rest)


def _parse_parameters(pieces: Iterable[str]) -> Parameters:
    plain: list[tuple[str, str]] = []
    segments: dict[str, dict[int, tuple[str, bool]]] = {}
    bad = False
    for piece in pieces:
        name, equals, value = piece.partition("=")
        name = name.strip().lower()
        if not name and not equals:
            # A semicolon at the end, or two: common, and nobody reads it in another way.
            continue
        match = _SEGMENT.match(name)
        text, fine = _parse_parameter_value(value.strip(), is_name=name.startswith(("name", "filename")))
        bad = bad or not fine or not equals or not match
        if not match or not equals:
            continue
        if match[2] is None and not match[3]:
            plain.append((name, text))
            continue
        numbered = segments.setdefault(match[1], {})
        number = int(match[2] or 0)
        bad = bad or number in numbered
        numbered.setdefault(number, (text, bool(match[3])))
    extended = []
    for name, numbered in segments.items():
        text, fine = _join(numbered)
        bad = bad or not fine
        extended.append((name, text))
    given = (*extended, *plain)
    values: dict[str, str] = {}
    for name, text in given:
        values.setdefault(name, text)
    twice = len(plain) > len({name for name, _ in plain})
    return Parameters(values, given, bad or twice)


def _parse_parameter_value(value: str, *, is_name: bool) -> tuple[str, bool]:
    """The value, and whether it is well formed."""
    match = _QUOTED.match(value)
    if match:
        return _ESCAPE.sub(r"\1", match[1]), bool(match[2]) and not _COMMENT.sub("", match[3]).strip()
    if is_name:
        return value, _WORD.fullmatch(value) is not None
    word = _WORD.match(value)
    if not word:
        return "", False
    return word[0], not _COMMENT.sub("", value[word.end() :]).strip()


def _join(segments: dict[int, tuple[str, bool]]) -> tuple[str, bool]:
    """A parameter put together from its numbered pieces (RFC 2231 section 3), up to the first that is missing."""
    charset, fine = "utf-8", 0 in segments
    octets = bytearray()
    for position, number in enumerate(sorted(segments)):
        text, encoded = segments[number]
        if position and number != position:
            fine = False
            break
        if position == 0 and encoded and text.count("'") >= 2:
            charset, _, text = text.split("'", 2)
        octets += _decode_percent(text) if encoded else text.encode("utf-8", "surrogateescape")
    decoded, good = decode(bytes(octets), charset or "utf-8")
    return decoded, fine and good


def _decode_percent(text: str) -> bytes:
    """The octets of an extended parameter's value (RFC 2231 section 4): %XX, and all else as it stands."""
    octets = text.encode("utf-8", "surrogateescape")
    return _HEX.sub(lambda match: bytes.fromhex(match[1].decode("ascii")), octets)
