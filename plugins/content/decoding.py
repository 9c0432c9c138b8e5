"""Transfer encodings, octets in, octets out, in pieces of any size (RFC 2045 section 6).

Whatever comes, something goes out: what a reader would skip is skipped, and said as a defect. How a body is cut into
pieces makes no difference to what comes out.
"""

from __future__ import annotations

import binascii
import re
from typing import Final, Protocol

from gateway.sdk import Defect

_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
_SPACE: Final = b" \t\r\n"
_FOREIGN: Final = bytes(set(range(256)) - set(_ALPHABET))
_GARBAGE: Final = bytes(set(range(256)) - set(_ALPHABET) - set(_SPACE))
_EVERYTHING_ELSE: Final = bytes(set(range(256)) - set(_GARBAGE))
_MOST_PADDINGS: Final = 1000
_LONGEST_LINE: Final = 64 << 10
_BAD_QP: Final = re.compile(rb"=(?![0-9A-Fa-f]{2}|[ \t]{0,200}(?:\r?\n|\Z))")
_UU_BEGIN: Final = re.compile(rb"begin(?:-base64)? [0-7]{3,4} ")


class Decoder(Protocol):
    """Decodes one body. `defects` are complete after `finish`."""

    defects: set[Defect]

    def feed(self, octets: bytes) -> bytes:
        """Take some, give what can be decoded by now."""

    def finish(self) -> bytes:
        """The rest."""


class Identity:
    """7bit, 8bit, binary: no encoding."""

    def __init__(self) -> None:
        self.defects: set[Defect] = set()

    def feed(self, octets: bytes) -> bytes:
        return octets

    def finish(self) -> bytes:
        return b""


class Base64:
    """Base64 (RFC 2045 section 6.8). What comes after padding is decoded, too: there are readers who do."""

    def __init__(self) -> None:
        self.defects: set[Defect] = set()
        self._carry = b""
        self._paddings = 0
        self._padding = False

    def feed(self, octets: bytes) -> bytes:
        if self._paddings > _MOST_PADDINGS:
            return b""
        clean = octets.translate(None, _FOREIGN)
        if octets.translate(None, _EVERYTHING_ELSE):
            self.defects.add(Defect.BASE64_GARBAGE)
        if b"=" not in clean:
            return self._take(clean)
        first, *others = clean.split(b"=", _MOST_PADDINGS + 1)
        out = [self._take(first)]
        for piece in others:
            out.append(self._pad())
            out.append(self._take(piece))
        return b"".join(out)

    def _take(self, clean: bytes) -> bytes:
        if not clean or self._paddings > _MOST_PADDINGS:
            return b""
        if self._padding:
            self.defects.add(Defect.BASE64_AFTER_PADDING)
            self._padding = False
        data = self._carry + clean
        whole = len(data) & ~3
        self._carry = data[whole:]
        return binascii.a2b_base64(data[:whole])

    def _pad(self) -> bytes:
        """An equals sign: the first of them ends a group."""
        self._paddings += 1
        if self._paddings > _MOST_PADDINGS:
            self.defects.add(Defect.BASE64_AFTER_PADDING)
        if not self._carry:
            # The second one of a pair is all that may stand there.
            if not self._padding:
                self.defects.add(Defect.BASE64_LENGTH)
            return b""
        self._padding = True
        return self._flush()

    def _flush(self) -> bytes:
        carry, self._carry = self._carry, b""
        if len(carry) < 2:
            self.defects.add(Defect.BASE64_LENGTH)
            return b""
        return binascii.a2b_base64(carry + b"=" * (4 - len(carry)))

    def finish(self) -> bytes:
        if self._carry:
            self.defects.add(Defect.BASE64_LENGTH)
            return self._flush()
        return b""


class Lines:
    """Collects whole lines for an encoding that needs them.

    A line that is longer than 64 KiB is taken for several, so that no more than that has to be held. Lines are cut at
    the same places however the body came.
    """

    def __init__(self) -> None:
        self.defects: set[Defect] = set()
        self._carry = b""

    def feed(self, octets: bytes) -> bytes:
        data = self._carry + octets
        out = []
        at = 0
        while at < len(data):
            end = data.rfind(b"\n", at, at + _LONGEST_LINE) + 1
            if not end:
                end = at + _LONGEST_LINE
                if end > len(data):
                    break
            out.append(self._decode(data[at:end]))
            at = end
        self._carry = data[at:]
        return b"".join(out)

    def finish(self) -> bytes:
        data, self._carry = self._carry, b""
        return self._decode(data) if data else b""

    def _decode(self, data: bytes) -> bytes:
        return data


class QuotedPrintable(Lines):
    """Quoted-printable (RFC 2045 section 6.7): white space at the end of a line goes, garbage stays as it stands."""

    def _decode(self, data: bytes) -> bytes:
        if _BAD_QP.search(data) or not data.isascii():
            self.defects.add(Defect.QP_GARBAGE)
        if b" \r\n" in data or b"\t\r\n" in data or data.endswith((b" ", b"\t")):
            data = b"\r\n".join(line.rstrip(b" \t") for line in data.split(b"\r\n"))
        return binascii.a2b_qp(data)


class UuEncoded(Lines):
    """x-uuencode: between ``begin`` and ``end``; lines that are none are skipped."""

    def __init__(self) -> None:
        super().__init__()
        self._inside = False

    def _decode(self, data: bytes) -> bytes:
        out = []
        for line in data.split(b"\n"):
            line = line.rstrip(b"\r")
            if not self._inside:
                self._inside = _UU_BEGIN.match(line) is not None
            elif line == b"end":
                self._inside = False
            elif line:
                try:
                    out.append(binascii.a2b_uu(line))
                except binascii.Error:
                    self.defects.add(Defect.UU_GARBAGE)
        return b"".join(out)


_DECODERS: Final[dict[str, type[Identity] | type[Base64] | type[QuotedPrintable] | type[UuEncoded]]] = {
    "": Identity,
    "7bit": Identity,
    "8bit": Identity,
    "binary": Identity,
    "base64": Base64,
    "quoted-printable": QuotedPrintable,
    "x-uuencode": UuEncoded,
    "x-uue": UuEncoded,
    "uuencode": UuEncoded,
}


def known(encoding: str) -> bool:
    """Whether this transfer encoding is one."""
    return encoding in _DECODERS


def decoder(encoding: str) -> Decoder:
    """The decoder of a transfer encoding; one that is not known leaves octets as they are."""
    return _DECODERS.get(encoding, Identity)()
