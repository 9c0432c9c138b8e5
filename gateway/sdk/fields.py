"""Text of somebody else's as the value of a header field: whatever it is, it cannot break out of its field."""

from __future__ import annotations

import re
from typing import Final

LINE_OCTETS: Final = 900
"""Octets of a line, with room for the field's name (RFC 5322 section 2.1.1: at most 998)."""

_LINE_ENDS: Final = re.compile(r"\r\n|\r|\n")
_UNFIT: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udc7f\udd00-\udfff]")


def field_value(text: str, limit: int = 1 << 16) -> str:
    """The text as a value for `AddHeader` and `ChangeHeader`: line ends become folds, and what no field holds ``?``.

    Empty lines are dropped, lines that are too long are folded, preferably at a space. What comes after `limit`
    characters is cut off.
    """
    out: list[str] = []
    for line in _LINE_ENDS.split(_UNFIT.sub(_question_mark, text[:limit])):
        for piece in _pieces(line.rstrip(" \t")):
            if not piece.strip(" \t"):
                continue
            out.append(piece.lstrip(" \t") if not out else piece if piece[0] in " \t" else f"\t{piece}")
    return "\n".join(out)


def _question_mark(match: re.Match[str]) -> str:
    return match[0] if match[0] in "\r\n" else "?"


def _pieces(line: str) -> list[str]:
    """The line in pieces of at most `LINE_OCTETS` octets."""
    pieces: list[str] = []
    # Four octets are the most that a character takes.
    most = LINE_OCTETS if line.isascii() else LINE_OCTETS // 4
    while len(line) > most:
        # A fold begins with the white space at which the line was cut.
        at = line.rfind(" ", 1, most)
        at = at if line[:at].strip(" \t") and at > 0 else most
        pieces.append(line[:at])
        line = line[at:]
    return [*pieces, line]
