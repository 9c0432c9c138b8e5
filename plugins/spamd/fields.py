"""Header fields about spam: those that are added, and those that the sender made up.

Whoever reads mail, and whatever sorts it, believes X-Spam-* fields; so none but ours may be in a message.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final

from gateway.sdk import AddHeader, ChangeHeader, DeleteHeader, Edit, HeaderField, field_value

FORGED: Final = 100
"""Different names of X-Spam-* fields that a message may come with."""
_PREFIX: Final = "x-spam-"
_STARS: Final = 50
_WIDTH: Final = 74
_SYMBOLS: Final = 1000
_SYMBOL: Final = re.compile(r"[A-Za-z0-9_]{1,100}\Z")
_ROW: Final = re.compile(r"(?m)^[ \t*]*-?[0-9]+(?:\.[0-9]+)? ([A-Z][A-Z0-9_]{1,99}) ")
_TESTS: Final = re.compile(r"\btests=([A-Za-z0-9_]*(?:,\s*[A-Za-z0-9_]+)*)")
_FIELD: Final = re.compile(rb"(?m)^([\x21-\x39\x3b-\x7e]{1,77}):((?:[^\n]*\n[ \t])*[^\n]*)(?:\n|\Z)")


class Field(StrEnum):
    """The X-Spam-* fields that can be added."""

    STATUS = "status"
    SCORE = "score"
    FLAG = "flag"
    LEVEL = "level"


def forged(fields: Iterable[HeaderField]) -> list[DeleteHeader]:
    """What removes all X-Spam-* fields of a message; sorted, so that the same message always gives the same."""
    names = {name for field in fields if (name := field.name.lower()).startswith(_PREFIX)}
    return [DeleteHeader(name) for name in sorted(names)]


def render(kinds: Sequence[Field], spam: bool, score: float, threshold: float, symbols: Sequence[str]) -> list[Edit]:
    """The fields of these kinds, in their order, at the top of the message."""
    values: dict[Field, str] = {
        Field.STATUS: _status(spam, score, threshold, symbols),
        Field.SCORE: f"{score:.1f}",
        Field.FLAG: "YES" if spam else "",
        Field.LEVEL: "*" * min(max(0, int(score)), _STARS),
    }
    shown = [(f"X-Spam-{kind.title()}", values[kind]) for kind in kinds if values[kind]]
    return [AddHeader(name, value, index) for index, (name, value) in enumerate(shown)]


def _status(spam: bool, score: float, threshold: float, symbols: Sequence[str]) -> str:
    """As SpamAssassin writes it, so that what reads it goes on reading it."""
    lines = [f"{'Yes' if spam else 'No'}, score={score:.1f} required={threshold:.1f}", "\ttests="]
    # They are another filter's words where its finding is judged here.
    symbols = [symbol for symbol in symbols if _SYMBOL.match(symbol)]
    for place, symbol in enumerate(symbols):
        text = symbol + ("," if place + 1 < len(symbols) else "")
        if len(lines[-1]) + len(text) > _WIDTH:
            lines.append("\t")
        lines[-1] += text
    return "\n".join(lines if symbols else [lines[0], "\ttests=none"])


def read_symbols(body: bytes) -> tuple[str, ...]:
    """Names out of a list with commas."""
    names = (name.strip() for name in body.decode("ascii", "replace").split(","))
    return tuple(name for name in names if _SYMBOL.match(name))[:_SYMBOLS]


def read_report(body: bytes) -> tuple[tuple[str, ...], tuple[Edit, ...]]:
    """The names of the rules in a report's table, and the report as a field."""
    text = body.decode("utf-8", "surrogateescape")
    value = field_value(text, 16_000)
    edits = (AddHeader("X-Spam-Report", value),) if value else ()
    return tuple(_ROW.findall(text))[:_SYMBOLS], edits


def read_header(body: bytes, message_subject: str | None) -> tuple[tuple[str, ...], tuple[Edit, ...]]:
    """Out of the header section as spamd would have it: the rules, its X-Spam-* fields, and its Subject if another."""
    edits: list[Edit] = []
    symbols: tuple[str, ...] = ()
    subject: str | None = None
    for match in _FIELD.finditer(body.replace(b"\r\n", b"\n")):
        name = match[1].decode("ascii")
        value = field_value(match[2].decode("utf-8", "surrogateescape"))
        if name.lower().startswith(_PREFIX) and len(edits) < FORGED:
            edits.append(AddHeader(name, value, len(edits)))
            if name.lower() == "x-spam-status" and (tests := _TESTS.search(value)):
                symbols = read_symbols("".join(tests[1].split()).encode())
        elif name.lower() == "subject" and subject is None:
            subject = value
    if subject is not None and message_subject is not None and _bare(subject) != _bare(message_subject):
        edits.append(ChangeHeader("Subject", 1, subject))
    return tuple(name for name in symbols if name != "none"), tuple(edits)


def _bare(subject: str) -> str:
    return "".join(subject.encode("utf-8", "surrogateescape").decode("utf-8", "replace").split())
