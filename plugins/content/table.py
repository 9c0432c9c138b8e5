"""Tables of header_checks(5): patterns in order, with actions, and ``if`` .. ``endif`` around them.

The first pattern that matches decides about a line. A line of the table that begins with white space continues the one
before it; empty lines and those that begin with ``#`` are left out.

*Fails by*: ValueError that names the line and says what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from gateway.sdk.actions import mailbox
from plugins.content.pattern import Kind, Pattern, compile_pattern, compile_source, read_flags

MAX_RULES: Final = 5_000
_LINE_CHARACTERS: Final = 8_000
_TEXT_CHARACTERS: Final = 900
_NESTING: Final = 20
_BLOCK: Final = 50
_SUBSTITUTED: Final = 500

_MACRO: Final = re.compile(r"\$(?:\$|(\d{1,2})|\{(\d{1,2})\}|\((\d{1,2})\))")
_STATUS: Final = re.compile(r"([245])\.(\d{1,3}\.\d{1,3})(?:\s+|\Z)")
_LABEL: Final = re.compile(r"[\x21-\x39\x3b-\x7e]{1,77}[ \t]*:")
_NEXT_HOP: Final = re.compile(r"(smtp|lmtp):(\[?)([A-Za-z0-9._:\-]{1,255}?)(\]?):(\d{1,5})\Z")
_WEIGHT: Final = re.compile(r"(-?\d{1,6}(?:\.\d{1,3})?)(?:\s+|\Z)")


class Act(StrEnum):
    """What a line of a table says is to be done."""

    REJECT = "reject"
    DEFER = "defer"
    DISCARD = "discard"
    HOLD = "hold"
    PREPEND = "prepend"
    REPLACE = "replace"
    IGNORE = "ignore"
    STRIP = "strip"
    REDIRECT = "redirect"
    BCC = "bcc"
    FILTER = "filter"
    SCORE = "score"
    WARN = "warn"
    INFO = "info"
    PASS = "pass"
    DUNNO = "dunno"


_SAME: Final = {"ok": Act.DUNNO, "quarantine": Act.HOLD}
EDITS: Final = frozenset({Act.PREPEND, Act.REPLACE, Act.IGNORE, Act.STRIP})
ENDS: Final = frozenset({Act.REJECT, Act.DEFER, Act.DISCARD, Act.PASS})
"""After these nothing more of the message is looked at."""


class Place(StrEnum):
    """What of a message a table is about."""

    HEADER = "header"
    """The message's own header fields, but for those about MIME."""
    MIME_HEADER = "mime-header"
    """Fields about MIME, in the message's header section and in those of its parts; all fields of a part."""
    NESTED_HEADER = "nested-header"
    """Header fields of attached messages, but for those about MIME."""
    BODY = "body"
    """All other lines, as they came."""
    TEXT = "text"
    """The text of each text part, decoded."""


HEADERS: Final = frozenset({Place.HEADER, Place.MIME_HEADER, Place.NESTED_HEADER})

Template = tuple[str | int, ...]
"""A text, with numbers for what groups of the pattern matched."""


@dataclass(frozen=True, slots=True)
class Do:
    """An action. `text` is a template; `argument` an address or a next hop; `detail` an enhanced status or empty."""

    act: Act
    text: Template = ()
    argument: str = ""
    detail: str = ""
    weight: float = 0.0

    def say(self, match: Any) -> str:
        """The text, with what matched put in."""
        return "".join(part if isinstance(part, str) else _group(match, part) for part in self.text)


def _group(match: Any, number: int) -> str:
    value = match.group(number) if match is not None else None
    if value is None:
        return ""
    octets = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
    return octets[:_SUBSTITUTED].decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a table: a pattern and its action, ``if`` with the index after its ``endif``, or neither."""

    line: int
    pattern: Pattern
    negated: bool
    do: Do | None = None
    after: int = 0


@dataclass(frozen=True, slots=True)
class Hit:
    """The rule that decided, and what its pattern matched (None for a negated one)."""

    rule: Rule
    match: Any


class Table:
    """Rules ready to be asked."""

    def __init__(self, rules: list[Rule], *, decoded: bool) -> None:
        self._rules = rules
        self._blocks = list(_blocks(rules, decoded=decoded))

    def __len__(self) -> int:
        return len(self._rules)

    def find(self, octets: bytes) -> Hit | None:
        """The first rule that matches, in the order of lines. Nothing ever matches an empty line."""
        if not octets:
            return None
        at = 0
        for start, end, any_of in self._blocks:
            if at >= end or (any_of is not None and any_of.search(octets) is None):
                continue
            at = max(at, start)
            while at < end:
                rule = self._rules[at]
                match = rule.pattern.search(octets)
                if (match is None) is not rule.negated:
                    at = at + 1 if rule.do else rule.after
                elif rule.do:
                    return Hit(rule, None if rule.negated else match)
                else:
                    at += 1
        return None


def _blocks(rules: list[Rule], *, decoded: bool) -> Iterator[tuple[int, int, Any]]:
    """Runs of rules, each with one expression that matches where any of them could, or None where there is none."""
    start = 0
    while start < len(rules):
        end = start
        while end < len(rules) and end - start < _BLOCK and rules[end].do and not rules[end].negated:
            end += 1
        if end - start < 3:
            end = max(end, start + 1)
            yield start, end, None
        else:
            joined = "|".join(f"(?:{rule.pattern.source})" for rule in rules[start:end])
            try:
                yield start, end, compile_source(joined, decoded=decoded, captures=False)
            except ValueError:
                # Too large to be one; then each is asked.
                yield start, end, None
        start = end


def logical_lines(data: bytes) -> Iterator[tuple[int, str]]:
    """The lines of a file, each with the number it begins at; continuations are joined as they stand."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {number}: is not UTF-8") from None
    begun, joined = 0, ""
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.rstrip()
        bare = line.lstrip()
        if not bare or bare[0] == "#":
            continue
        if len(bare) == len(line):
            if begun:
                yield begun, joined
            begun, joined = number, line
        elif begun:
            joined += line
        else:
            raise ValueError(f"line {number}: begins with white space, and there is no line that it could continue")
        if len(joined) > _LINE_CHARACTERS:
            raise ValueError(f"line {begun}: is longer than {_LINE_CHARACTERS} characters")
    if begun:
        yield begun, joined


def numbered(entries: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Entries of the configuration, counted from 1."""
    for number, entry in enumerate(entries, 1):
        if not entry.strip() or len(entry) > _LINE_CHARACTERS:
            raise ValueError(f"entry {number}: is empty, or longer than {_LINE_CHARACTERS} characters")
        yield number, " ".join(entry.strip().split("\n"))


def parse_table(
    lines: Iterable[tuple[int, str]], kind: Kind, places: frozenset[Place], *, decoded: bool, what: str = "line"
) -> Table:
    """The table of these lines. Raises ValueError, which names the line."""
    rules: list[Rule] = []
    opened: list[int] = []
    for number, line in lines:
        if len(rules) >= MAX_RULES:
            raise ValueError(f"{what} {number}: more than {MAX_RULES} rules")
        try:
            word = re.split(r"[^A-Za-z]", line, maxsplit=1)[0].lower()
            if word == "endif":
                _close(rules, opened)
            elif word == "if":
                if len(opened) >= _NESTING:
                    raise ValueError(f"more than {_NESTING} ifs in each other")
                pattern, negated, rest = _read_pattern(line[2:].lstrip(), kind, decoded)
                if rest:
                    raise ValueError("after the pattern of an if nothing is expected")
                opened.append(len(rules))
                rules.append(Rule(number, pattern, negated))
            else:
                pattern, negated, rest = _read_pattern(line, kind, decoded)
                do = parse_action(rest, places, groups=0 if negated else pattern.compiled.groups)
                rules.append(Rule(number, pattern, negated, do))
        except ValueError as error:
            raise ValueError(f"{what} {number}: {error}") from None
    if opened:
        raise ValueError(f"{what} {rules[opened[-1]].line}: this if has no endif")
    return Table(rules, decoded=decoded)


def _close(rules: list[Rule], opened: list[int]) -> None:
    if not opened:
        raise ValueError("endif without an if")
    at = opened.pop()
    begun = rules[at]
    rules[at] = Rule(begun.line, begun.pattern, begun.negated, None, len(rules))


def _read_pattern(line: str, kind: Kind, decoded: bool) -> tuple[Pattern, bool, str]:
    """A pattern between two delimiters with its flags, whether it is negated, and the rest of the line."""
    negated = line.startswith("!")
    if negated:
        line = line[1:].lstrip()
    delimiter = line[:1]
    if not delimiter or delimiter.isalnum() or delimiter in "\\ \t":
        raise ValueError("a pattern stands between two delimiters: /pattern/ action")
    end = 1
    while end < len(line) and line[end] != delimiter:
        end += 2 if line[end] == "\\" else 1
    if end >= len(line):
        raise ValueError(f"the pattern has no {delimiter} at its end")
    letters = line[end + 1 :].split(" ", 1)[0].split("\t", 1)[0]
    rest = line[end + 1 + len(letters) :].strip()
    flags = read_flags(kind, letters)
    return compile_pattern(line[1:end], kind, flags, decoded=decoded), negated, rest


def parse_action(text: str, places: frozenset[Place], *, groups: int = 0) -> Do:
    """An action and what follows it. `groups` is how many groups of the pattern the text may name."""
    word = re.split(r"[ \t]", text, maxsplit=1)[0]
    rest = text[len(word) :].strip(" \t")
    if not word:
        raise ValueError("names no action")
    act = _SAME.get(word.lower()) or next((a for a in Act if a.value == word.lower()), None)
    if act is None:
        raise ValueError(f"{word[:40]!r} is no action: {', '.join(a.value.upper() for a in Act)}")
    if act in EDITS and Place.TEXT in places:
        raise ValueError(f"{word}: decoded text cannot be edited; tables on header fields and body lines can")
    if len(rest) > _TEXT_CHARACTERS:
        raise ValueError(f"a text has at most {_TEXT_CHARACTERS} characters")
    if act in (Act.REDIRECT, Act.BCC, Act.FILTER) and "$" in rest:
        raise ValueError(f"{word}: where mail goes is not for what matched to say: write it out")
    match act:
        case Act.REDIRECT | Act.BCC:
            return Do(act, argument=str(mailbox(rest)))
        case Act.FILTER:
            return Do(act, argument=_next_hop(rest))
        case Act.SCORE:
            weight = _WEIGHT.match(rest)
            if not weight:
                raise ValueError("SCORE wants a number: SCORE 2.5")
            return Do(act, _template(rest[weight.end() :], groups), weight=float(weight[1]))
        case Act.REJECT | Act.DEFER:
            return _refusal(act, rest, groups)
        case Act.PREPEND | Act.REPLACE:
            if not rest:
                raise ValueError(f"{word} wants a text")
            # Text that begins with what a pattern matched cannot be judged before there is a match.
            if places & HEADERS and not rest.startswith("$") and not _LABEL.match(rest):
                raise ValueError(f"{word} of a header field wants a field: Name: value")
    return Do(act, _template(rest, groups))


def _refusal(act: Act, rest: str, groups: int) -> Do:
    detail = ""
    if status := _STATUS.match(rest):
        if act is Act.REJECT and status[1] == "4":
            act = Act.DEFER
        elif status[1] != ("5" if act is Act.REJECT else "4"):
            raise ValueError(f"{status[0].strip()} does not go with {act.value.upper()}")
        detail, rest = status[2], rest[status.end() :]
    return Do(act, _template(rest, groups), detail=detail)


def _next_hop(text: str) -> str:
    """``smtp:[127.0.0.1]:10025`` and the like as `Reroute` has it."""
    hop = _NEXT_HOP.match(text)
    if not hop or bool(hop[2]) is not bool(hop[4]) or not 0 < int(hop[5]) < 65536:
        raise ValueError(f"{text[:60]!r} is no next hop that can be used here: smtp:[host]:port or lmtp:[host]:port")
    host = f"[{hop[3]}]" if ":" in hop[3] else hop[3]
    return f"{hop[1]}:{host}:{hop[5]}"


def _template(text: str, groups: int) -> Template:
    """The parts of a text. ``$1``, ``${1}`` and ``$(1)`` are what a group matched, ``$$`` a dollar sign."""
    out: list[str | int] = []
    end = 0
    for macro in _MACRO.finditer(text):
        _plain(text[end : macro.start()], out)
        number = macro[1] or macro[2] or macro[3]
        if number is None:
            out.append("$")
        elif not 0 < int(number) <= groups:
            raise ValueError(f"{macro[0]}: the pattern has {groups} groups that a text can name")
        else:
            out.append(int(number))
        end = macro.end()
    _plain(text[end:], out)
    return tuple(out)


def _plain(text: str, out: list[str | int]) -> None:
    if "$" in text:
        raise ValueError("a dollar sign is written $$")
    if text:
        if not text.replace("\t", " ").isprintable():
            raise ValueError("a text has printable characters only")
        out.append(text)
