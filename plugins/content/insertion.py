"""A text put into one part of a message, in the part's own charset and transfer encoding.

A part of ordinary size is decoded, added to and encoded anew; of a large one only its begin or its end changes. Where a
text has characters that the part's charset lacks, HTML gets character references; plain text becomes UTF-8, and its
header section says so.

*RFCs*: 2045 section 6 (encodings), 2046 section 4.1 (text and its charset), 5322 section 2.1.1 (length of lines).
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from dataclasses import dataclass
from typing import Final

from gateway.sdk import MimePart, field_value
from gateway.sdk.words import find_charset
from plugins.content.decoding import decoder

TAIL: Final = 4_096
"""Octets at the end of a large part that must be known to add to it."""
LINE_OCTETS: Final = 990
_WIDE: Final = ("utf-16", "utf-32", "utf-7", "utf_16", "utf_32", "utf_7")
_ENCODINGS: Final = frozenset({"", "7bit", "8bit", "binary", "quoted-printable", "base64"})
_BODY_END: Final = re.compile(rb"</body\s*>", re.IGNORECASE)
_BODY_BEGIN: Final = re.compile(rb"<body\b[^<>]{0,4000}>", re.IGNORECASE)
_CHARSET: Final = re.compile(r';\s*charset\s*=\s*(?:"[^"]*"|[^\s;"]*)', re.IGNORECASE)
_PGP: Final = re.compile(rb"(?m)^-----BEGIN PGP (SIGNED )?MESSAGE-----")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]+={0,2}\Z")
_SPACE: Final = b" \t\r\n"


class Unreadable(Exception):
    """The part cannot be added to: it is not what it says, or in a charset or encoding that nobody knows."""


@dataclass(frozen=True, slots=True)
class Raw:
    """A part's body as it stands: all of it, or, of a large one, `begin` and `end` of it."""

    begin: bytes
    end: bytes
    whole: bool


@dataclass(frozen=True, slots=True)
class Inserted:
    """Octets for the body: in place of all of it, of its last `replaces`, or at its begin (`at_begin`).

    `encoding` and `charset` are new ones, where the header section must change; else empty.
    """

    octets: bytes
    replaces: int = 0
    at_begin: bool = False
    charset: str = ""
    encoding: str = ""


def pgp_kind(part: MimePart, raw: Raw) -> str:
    """``signed`` or ``encrypted`` for a text that OpenPGP covers in place, else empty."""
    found = _PGP.search(decoder(part.encoding).feed(raw.begin) if part.encoding == "base64" else raw.begin)
    return "" if not found else "signed" if found[1] else "encrypted"


def insert(part: MimePart, raw: Raw, text: str, *, top: bool) -> Inserted:
    """`text`, plain or HTML as the part is, put into it. Its lines end in ``\\n``. Raises `Unreadable`."""
    codec = find_charset(part.charset or "us-ascii")
    if not codec or codec.startswith(_WIDE) or part.encoding not in _ENCODINGS:
        raise Unreadable
    lines = text.strip("\n").replace("\n", "\r\n")
    if part.type == "text/html":
        return _insert(part, raw, lines.encode("ascii", "xmlcharrefreplace"), top=top)
    try:
        octets = lines.encode(codec)
    except UnicodeEncodeError:
        octets = None
    if octets is not None and (octets.isascii() or part.encoding not in ("", "7bit")):
        return _insert(part, raw, octets, top=top)
    if raw.whole and (changed := _as_utf8(part, raw, lines, codec, top=top)):
        return changed
    plain = "".join(c for c in unicodedata.normalize("NFKD", lines) if not unicodedata.combining(c))
    return _insert(part, raw, plain.encode("ascii", "replace"), top=top)


def _as_utf8(part: MimePart, raw: Raw, lines: str, codec: str, *, top: bool) -> Inserted | None:
    """The whole part in UTF-8, None when it is not in the charset that it names."""
    try:
        text = _decoded(part, raw.begin).decode(codec)
    except UnicodeDecodeError:
        return None
    octets = _joined(text.encode("utf-8"), lines.encode("utf-8"), html=False, top=top)
    encoding = "base64" if part.encoding == "base64" else "quoted-printable"
    return Inserted(_encode(octets, encoding), len(raw.begin), charset="utf-8", encoding=encoding)


def _insert(part: MimePart, raw: Raw, octets: bytes, *, top: bool) -> Inserted:
    html = part.type == "text/html"
    if raw.whole:
        joined = _joined(_decoded(part, raw.begin), octets, html=html, top=top)
        return Inserted(_encode(joined, part.encoding), len(raw.begin))
    if top:
        piece = octets + b"\r\n\r\n"
        if part.encoding == "base64":
            # Whole groups only, so that what follows needs no change.
            piece += b"\r\n" * (len(piece) % 3)
        return Inserted(_encode(piece, part.encoding) + (b"\r\n" if part.encoding == "base64" else b""), at_begin=True)
    if part.encoding != "base64":
        lead = b"\r\n" if raw.end.endswith(b"\r\n") else b"\r\n\r\n"
        return Inserted(lead + _encode(octets, part.encoding) + (b"\r\n" if lead == b"\r\n" else b""))
    return _after_base64(raw.end, octets)


def _after_base64(end: bytes, octets: bytes) -> Inserted:
    """Base64 goes on in place of its last group."""
    *before, line = end.rstrip(_SPACE).split(b"\r\n")
    # Groups that go over the end of a line would make the last one another than it seems.
    if not _BASE64.match(line) or len(line) % 4 or len(before) < 2 or any(len(each) % 4 for each in before[1:]):
        raise Unreadable
    try:
        last = binascii.a2b_base64(line)
    except binascii.Error as error:
        raise Unreadable from error
    kept = len(end) - len(end.rstrip(_SPACE)) + len(line)
    return Inserted(_encode(last + b"\r\n\r\n" + octets, "base64"), kept)


def _decoded(part: MimePart, octets: bytes) -> bytes:
    made = decoder(part.encoding)
    return made.feed(octets) + made.finish()


def _joined(body: bytes, octets: bytes, *, html: bool, top: bool) -> bytes:
    """The two in one, where a reader sees the added one first or last."""
    # Decoded text may have the line ends of the machine it was written on.
    end = b"\n" if b"\n" in body and b"\r\n" not in body else b"\r\n"
    octets = octets.replace(b"\r\n", end)
    if html:
        if top:
            found = _BODY_BEGIN.search(body)
            at = found.end() if found else 0
        else:
            ends = list(_BODY_END.finditer(body))
            at = ends[-1].start() if ends else len(body)
        return body[:at] + (end if at else b"") + octets + end + body[at:]
    if not body.strip(_SPACE):
        return octets + end
    if top:
        return octets + end + end + body
    if body.endswith(b"\n"):
        return body + end + octets + end
    return body + end + end + octets


def _encode(octets: bytes, encoding: str) -> bytes:
    """Octets in a transfer encoding, with CRLF line ends."""
    match encoding:
        case "base64":
            return base64.encodebytes(octets).replace(b"\n", b"\r\n").removesuffix(b"\r\n")
        case "quoted-printable":
            return _quoted(octets)
    return octets


def _quoted(octets: bytes) -> bytes:
    text = octets.replace(b"\r\n", b"\n")
    quoted = binascii.b2a_qp(text, quotetabs=False, istext=True, header=False)
    return quoted.replace(b"\r", b"=0D").replace(b"\n", b"\r\n")


def retyped(value: str, charset: str) -> str:
    """A Content-Type field's value with another charset; line feeds are folds."""
    plain = " ".join(value.split()) or "text/plain"
    return field_value(f"{_CHARSET.sub('', plain)}; charset={charset}")


def rehead(section: bytes, inserted: Inserted) -> bytes:
    """A part's header section, its empty line included, with the new charset and encoding."""
    fields = re.findall(rb"(?ms)^[\x21-\x39\x3b-\x7e]+[ \t]*:.*?\r\n(?![ \t])", section)
    kept: list[bytes] = []
    type_ = ""
    for field in fields:
        name, _, value = field.partition(b":")
        match name.strip().lower():
            case b"content-type":
                type_ = type_ or value.decode("utf-8", "surrogateescape")
            case b"content-transfer-encoding":
                continue
            case _:
                kept.append(field)
    head = f"Content-Type: {retyped(type_, inserted.charset)}\nContent-Transfer-Encoding: {inserted.encoding}\n\n"
    return b"".join(kept) + head.replace("\n", "\r\n").encode("utf-8", "surrogateescape")
