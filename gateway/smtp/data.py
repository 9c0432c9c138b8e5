"""Message content on the wire: where it ends, what was stuffed, and stray CR and LF. Bytes in, bytes out.

Only CRLF.CRLF ends DATA. Stray CR and LF are made harmless here (`Newlines.NORMALIZE`) or noticed for refusal
(`Newlines.REJECT`), so that nothing behind this module ever sees one: a stray LF becomes CRLF, since its author
meant a line end; a stray CR becomes a space, since no one agrees on what it means.

*RFCs*: 5321 section 2.3.8 and 4.5.2 (lines, transparency), 3030 (BDAT content is not stuffed).
"""

from __future__ import annotations

import re
from enum import StrEnum
from io import IncrementalNewlineDecoder
from typing import Final

from gateway.mail.message import dotted_line

_DOT: Final = b"\r\n."
_END: Final = b"\r\n.\r\n"
_STRAY: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n")


class Newlines(StrEnum):
    """What to do with stray CR and LF (`bare_newline`)."""

    NORMALIZE = "normalize"
    REJECT = "reject"


def _mend(match: re.Match[bytes]) -> bytes:
    return b"\r\n" if match[0] == b"\n" else b" "


class _Mender:
    """Notices and mends stray line ends in pieces that never end in CR."""

    __slots__ = ("stray",)

    def __init__(self) -> None:
        self.stray = False

    def mend(self, piece: bytes) -> bytes:
        # It tells which line ends it has seen, in one pass: a fifth of what counting them costs.
        lines = IncrementalNewlineDecoder(None, translate=False)
        lines.decode(piece.decode("latin-1"), final=True)
        if lines.newlines is None or lines.newlines == "\r\n":
            return piece
        self.stray = True
        return _STRAY.sub(_mend, piece)


class DataDecoder(_Mender):
    """Decodes what follows 354. Feed it octets until it says that it is done.

    Holds back at most seven octets between calls, so its memory does not depend on the length of lines.
    """

    __slots__ = ("_begun", "_held")

    def __init__(self) -> None:
        super().__init__()
        # As if a CRLF came before: the first line may be stuffed, or be the end.
        self._held = b"\r\n"
        self._begun = False

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """Decoded content, and None; or, at the end, the octets that came after it (commands, pipelined)."""
        buffer = self._held + data
        # Most messages have no line that begins with a dot but the last, so one look through all octets does.
        dot = dotted_line(buffer)
        end = buffer.find(_END, dot) if dot >= 0 else -1
        if end >= 0:
            piece, rest = buffer[: end + 2], buffer[end + 5 :]
            self._held = b""
            return self._decode(piece, stuffed=dot < end), rest
        cut = max(0, len(buffer) - 4)
        while cut and buffer[cut - 1] in b"\r\n" and len(buffer) - cut < 6:
            cut -= 1
        if cut and buffer[cut - 1] == 0x0D:
            cut -= 1
        piece, self._held = buffer[:cut], buffer[cut:]
        return self._decode(piece, stuffed=dot >= 0), None

    def _decode(self, piece: bytes, *, stuffed: bool) -> bytes:
        if stuffed:
            piece = piece.replace(_DOT, b"\r\n")
        if not self._begun and piece:
            self._begun = True
            piece = piece[2:]
        return self.mend(piece)


class ChunkDecoder(_Mender):
    """Decodes BDAT content, whose chunks may be cut anywhere, between CR and LF too."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        super().__init__()
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        buffer = self._held + data
        self._held = b""
        if buffer.endswith(b"\r"):
            buffer, self._held = buffer[:-1], b"\r"
        return self.mend(buffer)

    def end(self) -> bytes:
        """What was held back, after the last chunk."""
        held, self._held = self._held, b""
        return self.mend(held)
