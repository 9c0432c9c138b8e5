"""Reading what an ARC-Authentication-Results field reports.

*Promises*: bounded, never raises; what it does not understand it leaves out, and it never makes a result of a comment
or of the inside of quotes.

*RFCs*: 8601 section 2.2, 8617 section 4.1.1.
"""

from __future__ import annotations

import re
from typing import Final

MAX_RESULTS: Final = 50

# One piece: a quoted string (which the end ends, too, so that no quote is looked for twice), an escaped character, a
# parenthesis, the separator, or a run of anything else.
_PIECE: Final = re.compile(r'"(?:[^"\\]|\\.?)*(?:"|\Z)|\\.|[()]|;|[^\s"();\\]+|\s+|.', re.DOTALL)
_METHOD: Final = re.compile(r"([A-Za-z0-9-]{1,32})(?:/[0-9]{1,9})?=([A-Za-z]{1,32})\Z")
_DOMAIN: Final = {
    "dkim": ("header.d", "header.i"),
    "dmarc": ("header.from",),
    "spf": ("smtp.mailfrom", "smtp.mfrom", "smtp.helo"),
    "arc": ("header.d",),
    "iprev": ("policy.iprev",),
}
_TEXT: Final = 255


def reported(value: str) -> tuple[tuple[str, str, str], ...]:
    """(method, result, domain) of each result in the value of a field, the instance and who reports already left out.

    The domain is that of the property by which the method is known, empty when there is none.
    """
    out: list[tuple[str, str, str]] = []
    for words in _statements(value)[2 : 2 + MAX_RESULTS]:
        if words and (match := _METHOD.match(words[0])):
            method = match[1].lower()
            out.append((method, match[2].lower(), _domain(method, words[1:])))
    return tuple(out)


def _statements(value: str) -> list[list[str]]:
    """The words between the semicolons, without comments; ``a = b`` is one word, quotes are taken off."""
    statements: list[list[str]] = [[]]
    depth = 0
    joined = False
    for match in _PIECE.finditer(value):
        piece = match[0]
        if piece == "(":
            depth += 1
        elif piece == ")":
            depth = max(0, depth - 1)
        elif depth or piece.isspace():
            continue
        elif piece == ";":
            statements.append([])
            joined = False
        else:
            words = statements[-1]
            quoted = piece.startswith('"')
            text = re.sub(r"\\(.)", r"\1", piece[1:].removesuffix('"'), flags=re.DOTALL) if quoted else piece
            if joined or (words and text.startswith("=") and not quoted):
                words[-1] += text
            else:
                # A string where a word is due means nothing, and must not come to mean something.
                words.append("" if quoted else text)
            joined = not quoted and text.endswith("=")
    return statements


def _domain(method: str, words: list[str]) -> str:
    properties: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals:
            properties.setdefault(name.lower(), value)
    for name in _DOMAIN.get(method, ()):
        if text := properties.get(name, ""):
            domain = text.rpartition("@")[2] if method != "iprev" else text
            return "".join(c if c.isprintable() else "?" for c in domain[:_TEXT]).lower().removesuffix(".")
    return ""
