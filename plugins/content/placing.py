"""Which parts of a message are what a reader reads first, and may be added to.

*RFCs*: 1847 (multipart/signed and multipart/encrypted), 2046 section 5.1.4 (multipart/alternative), 2387 section 3.1
(the root of multipart/related comes first, mostly), 8551 section 3 (application/pkcs7-mime).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.sdk import MimePart

_SIGNED: Final = frozenset({"multipart/signed"})
_ENCRYPTED: Final = frozenset({"multipart/encrypted", "application/pkcs7-mime", "application/x-pkcs7-mime"})
_TEXTS: Final = frozenset({"text/plain", "text/html"})


class LeftAlone(Exception):
    """The message is not to be added to; ``str(error)`` is the finding's word for it."""


def places(parts: Sequence[MimePart]) -> list[MimePart]:
    """The first text part, or, in a multipart/alternative, one of each kind. Raises `LeftAlone`."""
    children: dict[str, list[MimePart]] = {}
    for part in parts[1:]:
        children.setdefault(part.section.rpartition(".")[0], []).append(part)
    found = _inside(parts[0], children)
    if not found:
        raise LeftAlone("no-text")
    return found


def _inside(part: MimePart, children: dict[str, list[MimePart]]) -> list[MimePart]:
    """As deep as the parser goes, which is bounded."""
    if part.type in _SIGNED:
        raise LeftAlone("signed")
    if part.type in _ENCRYPTED:
        raise LeftAlone("encrypted")
    if part.type == "multipart/report":
        raise LeftAlone("report")
    if not part.composite:
        return [part] if part.type in _TEXTS and part.disposition != "attachment" else []
    if part.major == "message":
        return []
    below = children.get(part.section, [])
    if part.type == "multipart/alternative":
        return [found for child in below for found in _inside(child, children)]
    for child in below:
        if found := _inside(child, children):
            return found
    return []
