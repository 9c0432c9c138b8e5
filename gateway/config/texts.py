"""Where each character of a text stands in the YAML file, whatever way the text is written there.

Expressions are written in plain, quoted and block style, over several lines or one. A problem with a character of what
was read is of use only with the line and column at which an editor finds it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from yaml.nodes import ScalarNode

_HEADER: Final = re.compile(r"[|>][^\n]*\n?")
_ESCAPED: Final = re.compile(r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|\r?\n[ \t]*|.)", re.DOTALL)
_BLANK_ESCAPES: Final = frozenset("tnvrNLP_ \t\r\n")
"""Escapes that stand for white space, or for nothing at all."""
_PROPERTIES: Final = re.compile(r"(?:[!&]\S*\s+)*")
"""A tag or an anchor before the text."""


@dataclass(frozen=True, slots=True)
class Written:
    """A text as it stands in the file: `source` from its first mark on, which is at `line` and `column`, from 0."""

    value: str
    source: str
    style: str
    line: int
    column: int

    def place(self, offset: int) -> tuple[int, int]:
        """Line and column, from 1, of a character of the value; one at its end is behind the last one."""
        inside = offset
        while offset > 0 and (offset >= len(self.value) or self.value[offset].isspace()):
            # White space has no place of its own where lines are folded: count from what stands before it.
            offset -= 1
        seen = sum(not c.isspace() for c in self.value[:offset])
        at = self._find(seen) + (offset < inside)
        before = self.source[:at]
        fresh = before.rfind("\n") + 1
        column = at - fresh if fresh else self.column + at
        return self.line + before.count("\n") + 1, column + 1

    def _find(self, number: int) -> int:
        """Where in the source the character stands that `number` others precede, white space not counted."""
        properties = _PROPERTIES.match(self.source)
        at = properties.end() if properties else 0
        if self.style in ("'", '"'):
            at += 1
        elif self.style in ("|", ">") and (header := _HEADER.match(self.source, at)):
            at = header.end()
        while at < len(self.source):
            width, counts = self._step(at)
            if counts and not number:
                break
            number -= counts
            at += width
        return at

    def _step(self, at: int) -> tuple[int, bool]:
        """How many characters of the source make one of the value, and whether that is no white space."""
        character = self.source[at]
        if self.style == "'" and character == "'":
            return 2, True
        if self.style == '"' and character == "\\" and (escape := _ESCAPED.match(self.source, at)):
            text = escape[0]
            if text[1] in "xuU":
                return len(text), not chr(int(text[2:], 16)).isspace()
            return len(text), text[1] not in _BLANK_ESCAPES
        return 1, not character.isspace()


def written(node: ScalarNode, value: str) -> Written:
    """How a scalar is written."""
    start, end = node.start_mark, node.end_mark
    buffer = start.buffer or ""
    # The marks count characters from the beginning of the file; the buffer is all of it, as it was given as text.
    return Written(value, buffer[start.pointer : end.pointer], node.style or "", start.line, start.column)
