"""SMTP replies: code, enhanced status and text from one place.

The class digit of the enhanced status is never stored; it is derived from the code, so a 4xx with a 5.x.x
cannot be written.

*RFCs*: 5321 section 4.2 (replies), 2034 and 3463 (enhanced status codes).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

_DETAIL = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\Z")
_STATUS = re.compile(r"([245])\.([0-9]{1,3}\.[0-9]{1,3})(?: |\Z)")
_TEXT_LENGTH: Final = 400


@dataclass(frozen=True, slots=True)
class Reply:
    """One SMTP reply. `detail` is the enhanced status without its class digit (``"7.1"``), or empty for none."""

    code: int
    detail: str
    text: str

    def __post_init__(self) -> None:
        if not 200 <= self.code <= 599:
            raise ValueError(f"{self.code} is no SMTP reply code")
        if self.detail and not _DETAIL.match(self.detail):
            raise ValueError(f"{self.detail!r} is no subject.detail pair")

    @property
    def status(self) -> str:
        """The enhanced status with its class digit (``"5.7.1"``); empty when the reply has none."""
        return f"{self.code // 100}.{self.detail}" if self.detail else ""

    @property
    def positive(self) -> bool:
        return self.code < 400

    @property
    def temporary(self) -> bool:
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        return self.code >= 500

    def __str__(self) -> str:
        return f"{self.code} {self.status} {self.text}" if self.detail else f"{self.code} {self.text}"

    def wire(self) -> bytes:
        """The reply as bytes with CRLF; several lines where the text has line feeds (RFC 5321 section 4.2.1).

        Text is ASCII there (section 4.2), at most 512 octets a line (section 4.5.3.1.5).
        """
        return _wire(self.code, self.status, self.text)

    def referring(self, ref: str) -> Reply:
        """The same reply ending in `` (ref ID)``, which `gatepost explain` takes."""
        tail = f" (ref {ref})"
        before, feed, last = self.text.rpartition("\n")
        # Cut the text rather than the reference, which the wire's limit would take away.
        return Reply(self.code, self.detail, before + feed + last[: _TEXT_LENGTH - len(tail)] + tail)

    @classmethod
    def parse(cls, code: int, text: str) -> Reply:
        """A reply as a peer sent it; the enhanced status is taken only when its class agrees with the code."""
        match = _STATUS.match(text)
        if match and int(match[1]) == code // 100:
            return cls(code, match[2], clean(text[match.end() :]))
        return cls(code, "", clean(text))


@lru_cache(maxsize=1024)
def _wire(code: int, status: str, text: str) -> bytes:
    """Most replies are the same few, over and over."""
    lines = text.split("\n")
    prefix = f"{status} " if status else ""
    out = [f"{code}{'-' if i + 1 < len(lines) else ' '}{prefix}{clean(line)}\r\n" for i, line in enumerate(lines)]
    return "".join(out).encode("ascii", "replace")


def clean(text: str) -> str:
    """Text that is safe on one reply line: no control characters, at most 400 characters."""
    if text.isprintable() and len(text) <= _TEXT_LENGTH:
        return text
    return "".join(c if c.isprintable() else "?" for c in text[:_TEXT_LENGTH])
