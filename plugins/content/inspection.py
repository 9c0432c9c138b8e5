"""One message against tables: what matched, what is to be done, and the edits that follow.

Octets in, a result out. Each field and each line is looked up in the tables that are about its place, in order, and the
first rule that matches decides about it. REJECT, DEFER, DISCARD and PASS end the matter; of the others all are
done. Edits of the header section are given bottom up, so that the numbers of those above them stay true.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.sdk import (
    AddHeader,
    ChangeHeader,
    CheckMatch,
    DeleteHeader,
    Edit,
    HeaderField,
)
from gateway.sdk.words import decode_words
from plugins.content.patched import Patch
from plugins.content.scan import FIELD_OCTETS, MIME_FIELDS, Field, Line, Scanner
from plugins.content.table import EDITS, ENDS, HEADERS, Act, Do, Hit, Place, Table

PATCHES: Final = 10_000
"""Changes to body lines in one message; what matches after that is left as it is."""
_WIRE_CHARACTERS: Final = 200
_NOTE_CHARACTERS: Final = 200
_FIELD: Final = re.compile(r"([\x21-\x39\x3b-\x7e]{1,77})[ \t]*:([ \t]*)(.*)", re.DOTALL)
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]|\n(?![ \t]+\S)")


@dataclass(frozen=True, slots=True)
class Asked:
    """A table, and what it is asked about: `names` are fields in lower case, none for all of a place.

    `where` names it in the record; `number` is the rule's word there: a line of a file, or an entry.
    """

    table: Table
    places: frozenset[Place]
    names: frozenset[str] = frozenset()
    decode: bool = False
    where: str = ""

    def subject(self, place: Place, octets: bytes) -> bytes | None:
        """What the table sees of a field, None when it is none of its business."""
        if place not in self.places:
            return None
        name, _, value = octets.partition(b":")
        if self.names and name.strip().decode("ascii", "replace").lower() not in self.names:
            return None
        if self.decode:
            text = value.decode("utf-8", "surrogateescape").replace("\n", "")
            value = decode_words(text).encode("utf-8", "replace")
        if self.names:
            return value.strip()
        return name + b": " + value.strip() if self.decode else octets


@dataclass(slots=True)
class Result:
    """What an inspection came to."""

    matches: list[CheckMatch] = field(default_factory=list)
    counts: dict[tuple[Place, Act], int] = field(default_factory=dict)
    score: float = 0.0
    final: Do | None = None
    text: str = ""
    where: str = ""
    hold: str = ""
    held: bool = False
    redirect: str = ""
    bcc: dict[str, None] = field(default_factory=dict)
    next_hop: str = ""
    header: list[Edit] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)


class Inspection:
    """One message: give it the header section, the body in pieces, and the decoded texts; `done` says when to stop."""

    def __init__(self, tables: Sequence[Asked], *, segment: int, matches: int) -> None:
        self.result = Result()
        self._tables = tables
        self._matches = matches
        self._segment = segment if any(Place.BODY in asked.places for asked in tables) else 0
        self._body = [asked for asked in tables if Place.BODY in asked.places]
        self._headers = [asked for asked in tables if asked.places & HEADERS]
        self._scanner: Scanner | None = None

    @property
    def done(self) -> bool:
        """Whether nothing more is to be looked at."""
        return self.result.final is not None

    @property
    def wants_body(self) -> bool:
        """Whether anything but the header section is asked about."""
        places = frozenset[Place]().union(*(asked.places for asked in self._tables))
        return bool(places & {Place.BODY, Place.MIME_HEADER, Place.NESTED_HEADER})

    # The header section

    def header(self, fields: Sequence[HeaderField]) -> None:
        """Look at the message's own header fields."""
        numbers: dict[str, int] = {}
        planned: list[tuple[int, HeaderField, int, Act, str]] = []
        for index, each in enumerate(fields):
            name = each.name.lower()
            numbers[name] = numbers.get(name, 0) + 1
            place = Place.MIME_HEADER if name in MIME_FIELDS else Place.HEADER
            octets = each.raw.removesuffix(b"\r\n").replace(b"\r\n", b"\n")[:FIELD_OCTETS]
            hit, asked = self._look(self._headers, place, octets)
            if hit is None or asked is None:
                continue
            text = self._do(hit, asked, place, each.name)
            if hit.rule.do and hit.rule.do.act in EDITS:
                planned.append((index, each, numbers[name], hit.rule.do.act, text))
            if self.done:
                break
        for index, each, nth, act, text in reversed(planned):
            self.result.header += _field_edits(index, each, nth, act, text)

    def _look(self, tables: Iterable[Asked], place: Place, octets: bytes) -> tuple[Hit | None, Asked | None]:
        for asked in tables:
            subject = asked.subject(place, octets)
            if subject is not None and (hit := asked.table.find(subject)) is not None:
                return hit, asked
        return None, None

    # The body

    def begin(self, fields: Sequence[HeaderField], *, blank: bool) -> None:
        """The header section ends, with an empty line or without."""
        self._scanner = Scanner(fields, lines=self._segment, blank=blank)

    def body(self, octets: bytes | None) -> None:
        """Look at a piece of the body; None says that there is no more."""
        assert self._scanner is not None
        for event in self._scanner.finish() if octets is None else self._scanner.feed(octets):
            match event:
                case Field():
                    self._part_field(event)
                case Line():
                    self._line(event)
            if self.done:
                return

    def _part_field(self, event: Field) -> None:
        hit, asked = self._look(self._headers, event.place, event.octets)
        if hit is not None and asked is not None:
            name = event.octets.partition(b":")[0].strip().decode("ascii", "replace")
            text = self._do(hit, asked, event.place, name)
            if hit.rule.do and hit.rule.do.act in (Act.PREPEND, Act.REPLACE):
                parsed = _FIELD.match(text)
                if not parsed:
                    return
                text = f"{parsed[1]}:{parsed[2]}{_foldable(parsed[3])}"
            self._patch(hit, text, event.start, event.end, b"\r\n")

    def _line(self, event: Line) -> None:
        for asked in self._body:
            if (hit := asked.table.find(event.octets)) is not None:
                # A piece of a long line has no line end of its own.
                whole = event.end - event.start > len(event.octets)
                text = self._do(hit, asked, Place.BODY, "")
                self._patch(hit, text, event.start, event.end, b"\r\n" if whole else b"")
                return

    def _patch(self, hit: Hit, text: str, start: int, end: int, line_end: bytes) -> None:
        do = hit.rule.do
        if do is None or do.act not in EDITS or len(self.result.patches) >= PATCHES:
            return
        line = _CONTROLS.sub("?", text).replace("\n", "\r\n").encode("utf-8", "surrogateescape")
        match do.act:
            case Act.PREPEND:
                self.result.patches.append(Patch(start, start, line + b"\r\n"))
            case Act.REPLACE:
                self.result.patches.append(Patch(start, end, line + line_end))
            case _:
                self.result.patches.append(Patch(start, end, b""))

    # Decoded texts

    def text(self, text: str) -> None:
        """Look at the text of one part."""
        octets = text.encode("utf-8", "replace")
        for asked in self._tables:
            if Place.TEXT in asked.places and (hit := asked.table.find(octets)) is not None:
                self._do(hit, asked, Place.TEXT, "")
                return

    # Actions

    def _do(self, hit: Hit, asked: Asked, place: Place, name: str) -> str:
        """Note the match and what follows from it; gives the action's text."""
        do, result = hit.rule.do, self.result
        if do is None:
            return ""
        text = do.say(hit.match)
        where = f"{asked.where}{hit.rule.line}"
        result.counts[place, do.act] = result.counts.get((place, do.act), 0) + 1
        if len(result.matches) < self._matches:
            note = _noted(do.argument or ("" if do.act in EDITS else text))
            result.matches.append(CheckMatch(where, place.value, do.act.value, name, note))
        match do.act:
            case Act.HOLD:
                result.held, result.hold = True, result.hold or _noted(text) or where
            case Act.REDIRECT:
                result.redirect = do.argument
            case Act.BCC:
                result.bcc[do.argument] = None
            case Act.FILTER:
                result.next_hop = do.argument
            case Act.SCORE:
                result.score += do.weight
        if do.act in ENDS:
            result.final, result.text, result.where = do, text, where
        return text


def _field_edits(index: int, each: HeaderField, nth: int, act: Act, text: str) -> Iterator[Edit]:
    """The edits of one field of the header section. A text that is no header field changes nothing, as in Postfix."""
    if act in (Act.IGNORE, Act.STRIP):
        yield DeleteHeader(each.name, nth)
        return
    parsed = _FIELD.match(text)
    if not parsed:
        return
    name, lead, value = parsed[1], parsed[2], _foldable(parsed[3])
    if act is Act.PREPEND:
        yield AddHeader(name, value, index, lead)
    elif name.lower() == each.name.lower() and name == each.name:
        yield ChangeHeader(name, nth, value, lead)
    else:
        yield DeleteHeader(each.name, nth)
        yield AddHeader(name, value, index, lead)


def _foldable(value: str) -> str:
    """The value with nothing in it that could end a field; what matched may hold anything."""
    return _CONTROLS.sub("?", value).rstrip("\n")


def _noted(text: str) -> str:
    """A text for the record: printable, and not long."""
    plain = "".join(c if c.isprintable() else "?" for c in text.encode("utf-8", "replace").decode("utf-8", "replace"))
    return plain[:_NOTE_CHARACTERS]


def wire_text(text: str, default: str) -> str:
    """A text for the client: printable ASCII, and not long."""
    plain = "".join(c if " " <= c <= "~" else "?" for c in text).strip()
    return plain[:_WIRE_CHARACTERS] or default
