"""The lines of an access list: a pattern and what is to be done.

A line that begins with white space continues the one before it; empty lines and those whose first character is ``#``
are left out. Actions are words of any case, or a reply code, as in Postfix's access(5).

*Fails by*: ValueError that says which line is wrong and what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from gateway.sdk import AccessAction

MAX_LINES: Final = 1_000_000
_LINE_CHARACTERS: Final = 2_000
_TEXT_CHARACTERS: Final = 200

_CODE = re.compile(r"[45][0-9][0-9]\Z")
_STATUS = re.compile(r"([0-9])\.([0-9]{1,3}\.[0-9]{1,3})(?:\s+|\Z)")
_PLAIN = re.compile(r"[\x20-\x7e]*\Z")
_CLASSES: Final = {AccessAction.REJECT: "5", AccessAction.DEFER: "4"}
_WORDS: Final = {action.value: action for action in AccessAction if action is not AccessAction.NONE}
_INSTEAD: Final = {
    "permit": "ok",
    "relay": "ok",
    "hold": "quarantine",
    "defer_if_permit": "defer",
    "defer_if_reject": "defer",
}


@dataclass(frozen=True, slots=True)
class Result:
    """What a line says is to be done; `code` 0 and `detail` empty leave the reply to the policy."""

    action: AccessAction
    code: int = 0
    detail: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """One line: its number (of its first line, from 1), its pattern as written, and what is to be done."""

    line: int
    pattern: str
    result: Result
    negated: bool = False


def parse_result(text: str) -> Result:
    """An action and what follows it: ``reject``, ``DEFER come back``, ``reject 5.7.1 go away``, ``521 5.7.1 no``."""
    word, rest = _first_word(text.strip())
    code = 0
    if _CODE.match(word):
        code = int(word)
        action = AccessAction.REJECT if code >= 500 else AccessAction.DEFER
    else:
        known = _WORDS.get(word.lower())
        if known is None:
            raise ValueError(_no_action(word))
        action = known
    if action not in _CLASSES:
        if len(rest) > _TEXT_CHARACTERS or not rest.isprintable():
            raise ValueError(f"the text goes into the record: at most {_TEXT_CHARACTERS} printable characters")
        return Result(action, text=rest)
    detail = ""
    if status := _STATUS.match(rest):
        if status[1] != _CLASSES[action]:
            raise ValueError(f"{status[0].strip()} does not go with {word}: it must begin with {_CLASSES[action]}")
        detail, rest = status[2], rest[status.end() :]
    if len(rest) > _TEXT_CHARACTERS or not _PLAIN.match(rest):
        raise ValueError(f"the text goes to the client: at most {_TEXT_CHARACTERS} printable ASCII characters")
    return Result(action, code, detail, rest)


def _no_action(word: str) -> str:
    instead = _INSTEAD.get(word.lower())
    hint = f"; write {instead}" if instead else ""
    return f"{word[:40]!r} is no action: {', '.join(_WORDS)}, or a reply code 4xx or 5xx{hint}"


def logical_lines(data: bytes) -> Iterator[tuple[int, str]]:
    """The lines of a file, each with the number it begins at; continuations are joined."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {number}: is not UTF-8") from None
    begun, joined, count = 0, "", 0
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.rstrip()
        bare = line.lstrip()
        if not bare or bare[0] == "#":
            continue
        if bare is line or len(bare) == len(line):
            if begun:
                yield begun, joined
            begun, joined, count = number, line, count + 1
        elif begun:
            joined += " " + bare
        else:
            raise ValueError(f"line {number}: begins with white space, and there is no line that it could continue")
        if len(joined) > _LINE_CHARACTERS:
            raise ValueError(f"line {begun}: is longer than {_LINE_CHARACTERS} characters")
        if count > MAX_LINES:
            raise ValueError(f"line {number}: more than {MAX_LINES} lines")
    if begun:
        yield begun, joined


def numbered(entries: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Entries of the configuration, counted from 1."""
    for number, entry in enumerate(entries, 1):
        if len(entry) > _LINE_CHARACTERS:
            raise ValueError(f"entry {number}: is longer than {_LINE_CHARACTERS} characters")
        if not entry.strip():
            raise ValueError(f"entry {number}: is empty")
        yield number, entry.strip()


Split = Callable[[str], tuple[str, bool, str]]
"""Splits a line into its pattern, whether that is negated, and the rest."""


def split_word(line: str) -> tuple[str, bool, str]:
    """A pattern without white space; ``!`` before it negates."""
    negated = line[0] == "!"
    if negated:
        line = line[1:].lstrip()
    pattern, rest = _first_word(line)
    if not pattern:
        raise ValueError("there is no pattern")
    return pattern, negated, rest


def _first_word(text: str) -> tuple[str, str]:
    parts = text.split(None, 1)
    return parts[0] if parts else "", parts[1] if len(parts) > 1 else ""


def split_regexp(line: str) -> tuple[str, bool, str]:
    """A pattern between two delimiters, ``/`` by custom; a backslash before one makes it part of the pattern."""
    word = line.split(None, 1)[0].lower()
    if word in ("if", "endif"):
        raise ValueError(f"{word} is not understood: say it in the patterns, or in a list of its own")
    negated = line[0] == "!"
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
    pattern, rest = line[1:end], line[end + 1 :]
    if rest and not rest[0].isspace():
        raise ValueError(f"flags are not understood: {rest.split()[0][:20]!r}; matching is always without case")
    if re.search(r"\$[({]?[0-9]", rest):
        raise ValueError("texts are not put together from what matched: write it out")
    return pattern, negated, rest


def parse_rules(
    lines: Iterable[tuple[int, str]], split: Split, default: Result | None, what: str = "line"
) -> Iterator[Rule]:
    """Lines to rules, one by one. `default` is for lines that name no action."""
    # Lists say the same thing in most lines: parse and keep it once.
    results: dict[str, Result] = {}
    for number, line in lines:
        try:
            pattern, negated, rest = split(line)
            if rest.strip():
                result = results.get(rest)
                if result is None:
                    result = results[rest] = parse_result(rest)
            elif default is not None:
                result = default
            else:
                raise ValueError(f"names no action: {', '.join(_WORDS)}, or a reply code 4xx or 5xx")
        except ValueError as error:
            raise ValueError(f"{what} {number}: {error}") from None
        yield Rule(number, pattern, result, negated)
