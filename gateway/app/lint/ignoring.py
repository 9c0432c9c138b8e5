"""Remarks that the operator has read and wants to keep as they are: comments in the configuration file.

``# lint: ignore GP203 the store takes everybody`` stands at the end of the line that a remark names, or alone on a line
above it; above the first key, it is for the whole file. A reason must be given, and several codes are put with commas.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from gateway.config.document import Document

COMMENTS: Final = 1000
_COMMENT: Final = re.compile(r"(?:^|(?<=[ \t]))#[ \t]*lint:[ \t]*ignore\b[ \t]*(?P<rest>[^\r\n]*)")
_REST: Final = re.compile(r"(?P<codes>[\w/.-]+(?:[ \t]*,[ \t]*[\w/.-]+)*)(?:[ \t:]+(?P<reason>.*\S))?[ \t]*\Z")
_CODE: Final = re.compile(r"GP[0-9]{3}\Z|[a-z0-9][a-z0-9-]*/[a-z0-9-]+\Z")


@dataclass(frozen=True, slots=True)
class Ignore:
    """One comment. `target` is the line that it is about, 0 for the whole file; `problem` what is wrong with it."""

    line: int
    column: int
    target: int
    codes: tuple[str, ...] = ()
    reason: str = ""
    problem: str = ""

    def covers(self, code: str, line: int) -> bool:
        return not self.problem and code in self.codes and self.target in (0, line)


def ignores(document: Document) -> tuple[Ignore, ...]:
    """All such comments of a file, the first 1000."""
    out = []
    for found in _found(document):
        out.append(found)
        if len(out) >= COMMENTS:
            break
    return tuple(out)


def _found(document: Document) -> Iterator[Ignore]:
    lines = document.text.splitlines()
    first = min(document.lines.values(), default=1)
    within = _Texts(document)
    for number, line in enumerate(lines, 1):
        match = _COMMENT.search(line)
        if match is None or within.holds(number, match.start() + 1):
            continue
        alone = not line[: match.start()].strip()
        target = _below(lines, number) if alone else number
        yield _read(match["rest"], number, match.start() + 1, 0 if alone and number < first else target)


def _below(lines: list[str], number: int) -> int:
    """The first line after this one that is neither empty nor a comment."""
    below = (
        n for n in range(number + 1, len(lines) + 1) if (text := lines[n - 1].strip()) and not text.startswith("#")
    )
    return next(below, number)


def _read(rest: str, line: int, column: int, target: int) -> Ignore:
    match = _REST.match(rest.strip())
    names = tuple(name.strip() for name in match["codes"].split(",")) if match else ()
    if not names or not all(map(_CODE.match, names)):
        return Ignore(line, column, target, problem="name a code, such as GP203, after `ignore`")
    reason = (match["reason"] or "") if match else ""
    if not reason:
        return Ignore(line, column, target, names, problem="say why, after the code")
    return Ignore(line, column, target, names, reason)


class _Texts:
    """Where the file's values stand: what looks like a comment within one is none."""

    def __init__(self, document: Document) -> None:
        spans = []
        for text in document.texts.values():
            breaks = text.source.count("\n")
            end = len(text.source) - text.source.rfind("\n") - 1 if breaks else text.column + len(text.source)
            spans.append(((text.line + 1, text.column + 1), (text.line + 1 + breaks, end)))
        self._spans = sorted(spans)

    def holds(self, line: int, column: int) -> bool:
        at = bisect_right(self._spans, ((line, column), (line + 1, 0))) - 1
        return at >= 0 and self._spans[at][0] < (line, column) <= self._spans[at][1]
