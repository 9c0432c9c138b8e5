"""The body of one part, read in passing: how large it is decoded, what is wrong with it, and its text."""

from __future__ import annotations

from gateway.sdk import Defect
from gateway.sdk.words import decode, find_charset
from plugins.content.decoding import decoder

_SEVEN_BIT = ("", "7bit")
_WIDE = ("utf-16", "utf-32")


class Body:
    """Decodes a body and keeps at most `keep` octets of it."""

    def __init__(self, kind: str, charset: str, encoding: str, keep: int) -> None:
        self.size = 0
        self.defects: set[Defect] = set()
        self._kind = kind
        self._charset = charset
        self._encoding = encoding
        self._decoder = decoder(encoding)
        self._text = kind.startswith("text/")
        self._wide = find_charset(charset).startswith(_WIDE)
        self._keep = keep if self._text else 0
        self._kept: list[bytes] = []
        self._left = self._keep

    def feed(self, octets: bytes) -> None:
        """Take the next octets as they stand in the message."""
        if self._encoding in _SEVEN_BIT and not octets.isascii():
            self.defects.add(Defect.EIGHT_BIT_BODY)
        if self._encoding != "binary" and b"\0" in octets:
            self.defects.add(Defect.NUL_IN_BODY)
        self._take(self._decoder.feed(octets))

    def finish(self) -> None:
        """There is no more."""
        self._take(self._decoder.finish())
        self.defects |= self._decoder.defects

    def _take(self, decoded: bytes) -> None:
        self.size += len(decoded)
        if not self._text or not decoded:
            return
        if not self._wide and b"\0" in decoded:
            self.defects.add(Defect.BINARY_TEXT)
        if self._left:
            piece = decoded[: self._left]
            self._left -= len(piece)
            self._kept.append(piece)

    @property
    def kept(self) -> int:
        """Octets of text that are kept."""
        return self._keep - self._left

    def text(self) -> tuple[str, bool]:
        """The text, and whether there is more of it than was kept. To be called after `finish`."""
        octets = b"".join(self._kept)
        truncated = len(octets) < self.size
        text, good = decode(octets, self._charset, final=not truncated)
        if not good and not (self._charset in ("", "us-ascii") and Defect.EIGHT_BIT_BODY in self.defects):
            self.defects.add(Defect.UNDECODABLE_TEXT)
        return text, truncated
