"""Replies of an SMTP or LMTP server: octets in, codes and lines out.

*Promises*: bounded by line length and lines per reply.

*RFCs*: 5321 section 4.2 (replies), 4.5.3.1.10 (too many recipients).
"""

from __future__ import annotations

import re
from typing import Final

from gateway.mail.reply import Reply

LINE_OCTETS: Final = 4096
"""RFC 5321 section 4.5.3.1.5 says 512; hosts send more."""
REPLY_LINES: Final = 100

_LINE = re.compile(rb"([2-5]\d\d)(?:([ -])(.*))?\Z", re.DOTALL)


class Garbled(ValueError):
    """What came is no reply; the text says why."""


class ReplyReader:
    """Collects octets, and gives whole replies."""

    __slots__ = ("_at", "_buffer", "_code", "_lines")

    def __init__(self) -> None:
        self._buffer = b""
        self._at = 0
        self._code = b""
        self._lines: list[bytes] = []

    @property
    def kept(self) -> int:
        """Octets that wait for more."""
        return len(self._buffer) - self._at

    def feed(self, data: bytes) -> None:
        """Take what has arrived."""
        self._buffer = self._buffer[self._at :] + data
        self._at = 0

    def drop(self) -> None:
        """Forget all that has not been given."""
        self._buffer, self._at, self._lines = b"", 0, []

    def next(self) -> tuple[int, list[bytes]] | None:
        """The next reply, its code and the texts of its lines; None until it is whole. Raises `Garbled`."""
        while True:
            end = self._buffer.find(b"\n", self._at)
            if end < 0:
                if self.kept > LINE_OCTETS:
                    self.drop()
                    raise Garbled("the reply line is too long")
                return None
            line = self._buffer[self._at : end - 1 if self._buffer[end - 1 : end] == b"\r" else end]
            self._at = end + 1
            if self._take(line):
                lines, self._lines = self._lines, []
                return int(self._code), lines

    def _take(self, line: bytes) -> bool:
        """Whether this line is the last one of its reply."""
        match = _LINE.match(line)
        if match is None or len(line) > LINE_OCTETS or (self._lines and match[1] != self._code):
            raise Garbled("the reply is not SMTP")
        self._code, more, text = match.groups()
        self._lines.append(text or b"")
        if more == b"-" and len(self._lines) >= REPLY_LINES:
            raise Garbled("the reply has too many lines")
        return bool(more != b"-")


def make_reply(code: int, lines: list[bytes]) -> Reply:
    """The reply as a value; further lines follow the first without their own enhanced status."""
    reply = Reply.parse(code, lines[0].decode("utf-8", "replace"))
    if len(lines) == 1:
        return reply
    rest = [Reply.parse(code, line.decode("utf-8", "replace")).text for line in lines[1:]]
    return Reply(code, reply.detail, " ".join([reply.text, *rest])[:400])


def too_many(reply: Reply) -> Reply:
    """552 after RCPT as RFC 5321 section 4.5.3.1.10 wants it read: too many recipients, so 452.

    An enhanced status that speaks of the mailbox or the system (5.2.2, 5.3.4) shows that the host meant what it said.
    """
    if reply.code != 552 or (reply.detail and not reply.detail.startswith("5.")):
        return reply
    return Reply(452, reply.detail or "5.3", reply.text)
