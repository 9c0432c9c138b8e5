"""Message content on its way out: dots doubled for SMTP and the final dot, line ends and quoted lines for mailboxes.

*RFCs*: 5321 section 4.5.2 (transparency), 8689 section 5 (TLS-Required).
"""

from __future__ import annotations

import re
from typing import Final

from gateway.mail.message import Content, dotted_line

HEAD: Final = 256 << 10
_TLS_REQUIRED: Final = re.compile(rb"(?im)^tls-required[ \t]*:([^\r\n]*)\r\n(?![ \t])")


class DotStuffer:
    """Doubles the dots of one content that comes in blocks, split anywhere."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        # The last two octets so far. A content begins at the start of a line, as if a line end stood before it.
        self._tail = b"\r\n"

    def feed(self, block: bytes) -> bytes:
        """The octets to send for `block`."""
        out = block.replace(b"\r\n.", b"\r\n..")
        # A line may also begin at the border: the line end, or half of it, stood in the blocks before.
        if self._tail == b"\r\n" and out.startswith(b"."):
            out = b"." + out
        elif self._tail.endswith(b"\r") and out.startswith(b"\n."):
            out = b"\n.." + out[2:]
        self._tail = block[-2:] if len(block) > 1 else (self._tail + block)[-2:]
        return out

    def end(self) -> bytes:
        """The final dot, after the line end that is missing, if it is."""
        return b".\r\n" if self._tail == b"\r\n" else b"\r\n.\r\n"


def stuff(content: bytes) -> bytes:
    """A whole content as it goes over the wire, final dot included."""
    out = content.replace(b"\r\n.", b"\r\n..") if dotted_line(content) >= 0 else content
    if content.startswith(b"."):
        out = b"." + out
    return out + (b".\r\n" if not content or content.endswith(b"\r\n") else b"\r\n.\r\n")


async def head_of(content: Content) -> bytes:
    """The header section, up to its last line end but one; of a longer one its beginning."""
    head = b""
    async for block in content.blocks():
        head += block
        if b"\r\n\r\n" in head or len(head) >= HEAD:
            break
    return head[:HEAD].partition(b"\r\n\r\n")[0]


async def says_not_required(content: Content) -> bool:
    """Whether the header says ``TLS-Required: No``, once and for all (RFC 8689 section 5)."""
    found = _TLS_REQUIRED.findall(await head_of(content) + b"\r\n")
    return len(found) == 1 and found[0].strip().lower() == b"no"


class LineFeeds:
    """Turns CRLF into LF in a content that comes in blocks, split anywhere. Any other octet stays."""

    __slots__ = ("_cr",)

    def __init__(self) -> None:
        self._cr = b""

    def feed(self, block: bytes) -> bytes:
        """The octets to store for `block`; a CR at its end is kept back until the next."""
        if not block:
            return b""
        data = self._cr + block
        self._cr = b""
        if data.endswith(b"\r"):
            data, self._cr = data[:-1], b"\r"
        return data.replace(b"\r\n", b"\n")

    def end(self) -> bytes:
        """What was kept back."""
        return self._cr


class FromQuoter:
    """Quotes lines that would begin a message in an mbox: ``From``, after any number of ``>``, gets one ``>`` more.

    That is mboxrd, which can be undone. For content with LF that comes in blocks, split anywhere.
    """

    __slots__ = ("_at_start", "_kept")

    def __init__(self) -> None:
        # Whether the line so far, without what is kept back, consists of nothing but ``>``.
        self._at_start = True
        self._kept = b""

    def feed(self, block: bytes) -> bytes:
        """The octets to store for `block`; the beginning of a ``From`` at its end is kept back until the next."""
        before = b"\n" if self._at_start else b"x"
        data = before + self._kept + block
        line = data.rfind(b"\n")
        last = data[line + 1 :].lstrip(b">") if line >= 0 else b"x"
        self._kept = last if last in _BEGUN else b""
        self._at_start = last == self._kept
        if self._kept:
            data = data[: -len(self._kept)]
        return _FROM.sub(rb"\n>\1", data)[1:]

    def end(self) -> bytes:
        """What was kept back."""
        return self._kept


_BEGUN: Final = (b"F", b"Fr", b"Fro", b"From")
_FROM: Final = re.compile(rb"\n(>*From )")


async def whole(content: Content) -> bytes:
    """All octets of a content that is known to be small."""
    return b"".join([block async for block in content.blocks()])
