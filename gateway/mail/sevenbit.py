"""A message with 8-bit octets in its body, written anew in 7 bits.

Each part that holds 8-bit octets gets quoted-printable (text) or base64 (all else); multiparts and messages inside keep
their structure, and a part of 7 bits keeps every octet, so that a signature over it still holds.

*Promises*: every part decodes to the octets that it decoded to before. Bounded in size, parts and nesting.

*Fails by*: `Unconvertible`, with a reason for the sender: header fields in 8 bits, a signed part, broken MIME.

*RFCs*: 6152 section 3 (who must convert), 2045 section 6 (encodings), 2046 section 5 (multipart, message), 1847 section
2.1 (never inside multipart/signed), 1428 section 3 (unknown-8bit), 6532 section 3.7 (message/global).
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Final

from gateway.mail.message import HeaderField, split_header

MAX_OCTETS: Final = 64 << 20
MAX_DEPTH: Final = 30
MAX_PARTS: Final = 10_000
_HIGH: Final = re.compile(rb"[\x80-\xff]")
_TYPE: Final = re.compile(rb"[ \t]*([!#$%&'*+.^_`|~A-Za-z0-9-]+)/([!#$%&'*+.^_`|~A-Za-z0-9-]+)[ \t]*(?=;|\Z)")
_BOUNDARY: Final = re.compile(rb';[ \t]*boundary[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))', re.IGNORECASE)
_COMMENT: Final = re.compile(rb"\([^()]*\)")
_LONG: Final = re.compile(rb"[^\n]{1000}")
_OPAQUE: Final = (b"signed", b"encrypted")
_ENCODABLE: Final = (b"global", b"global-headers", b"global-delivery-status", b"global-disposition-notification")
_IDENTITY: Final = (b"", b"7bit", b"8bit", b"binary")


class Unconvertible(ValueError):
    """It cannot be written in 7 bits; the text says why."""


@dataclass(slots=True)
class _Budget:
    parts: int = MAX_PARTS


@dataclass(frozen=True, slots=True)
class _Entity:
    """A header and its body; `main`/`sub` are the media type, `encoding` is the transfer encoding, in lower case."""

    fields: list[HeaderField]
    body: bytes
    main: bytes
    sub: bytes
    parameters: bytes
    encoding: bytes
    budget: _Budget


def to_seven_bit(content: bytes) -> bytes:
    """The message in 7 bits; unchanged when it is that already. Raises `Unconvertible`."""
    if content.isascii():
        return content
    if len(content) > MAX_OCTETS:
        raise Unconvertible(f"it is larger than {MAX_OCTETS >> 20} MiB")
    return _message(content, _Budget(), 0)


def fits_seven_bits(content: bytes) -> bool:
    """Whether the message can be written in 7 bits."""
    try:
        to_seven_bit(content)
    except Unconvertible:
        return False
    return True


def _message(content: bytes, budget: _Budget, depth: int) -> bytes:
    """A whole message, at the top or inside."""
    fields, at = split_header(content)
    names = {f.name.lower() for f in fields}
    if "mime-version" not in names:
        # There can be no encoding without it, and what was no MIME has no charset either.
        fields.append(HeaderField("MIME-Version", b"MIME-Version: 1.0\r\n"))
        if "content-type" not in names:
            fields.append(HeaderField("Content-Type", b"Content-Type: text/plain; charset=unknown-8bit\r\n"))
    return _entity(_read(fields, content[at:], budget, b"plain"), depth)


def _read(fields: list[HeaderField], body: bytes, budget: _Budget, default: bytes) -> _Entity:
    for one in fields:
        if not one.raw.isascii():
            raise Unconvertible(f"its header field {one.name} holds 8-bit octets")
    main, sub, parameters = b"text", default, b""
    if default == b"rfc822":
        main = b"message"
    written = _value(fields, "content-type")
    if written:
        match = _TYPE.match(written)
        if match is None:
            raise Unconvertible("a part has a Content-Type that cannot be read")
        main, sub, parameters = match[1].lower(), match[2].lower(), written[match.end() :]
    encoding = _COMMENT.sub(b"", _value(fields, "content-transfer-encoding")).strip().lower()
    return _Entity(fields, body, main, sub, parameters, encoding, budget)


def _value(fields: list[HeaderField], name: str) -> bytes:
    found = [f for f in fields if f.name.lower() == name]
    if len(found) > 1:
        raise Unconvertible(f"a part has the field {found[0].name} more than once")
    return found[0].raw.partition(b":")[2].replace(b"\r\n", b"").strip() if found else b""


def _entity(entity: _Entity, depth: int) -> bytes:
    """The entity in 7 bits, header and all. Its body begins with the empty line that ends the header."""
    entity.budget.parts -= 1
    if depth > MAX_DEPTH or entity.budget.parts < 0:
        raise Unconvertible("it has too many parts in it")
    gap, body = (b"\r\n", entity.body[2:]) if entity.body.startswith(b"\r\n") else (b"", entity.body)
    if body.isascii():
        return _join(entity, b"", gap, body)
    if not gap:
        raise Unconvertible("a header in it does not end in an empty line")
    if entity.main == b"multipart":
        return _join(entity, b"7bit", gap, _multipart(entity, body, depth))
    if entity.main == b"message" and entity.sub not in _ENCODABLE:
        return _join(entity, b"7bit", gap, _inside(entity, body, depth))
    if entity.encoding == b"quoted-printable":
        return _join(entity, b"", gap, _mended(body))
    if entity.encoding not in _IDENTITY:
        raise Unconvertible("a part holds 8-bit octets, though its encoding has none")
    if entity.main in (b"text", b"message"):
        return _join(entity, b"quoted-printable", gap, quoted_printable(body))
    encoded = base64.encodebytes(body).replace(b"\n", b"\r\n")
    return _join(entity, b"base64", gap, encoded if depth == 0 else encoded.removesuffix(b"\r\n"))


def _join(entity: _Entity, encoding: bytes, gap: bytes, body: bytes) -> bytes:
    """Header and body; with `encoding`, the header says so, in the place of the old field or at the end."""
    out, said = [], not encoding or (encoding == b"7bit" and entity.encoding in (b"", b"7bit"))
    for one in entity.fields:
        if not said and one.name.lower() == "content-transfer-encoding":
            out.append(b"Content-Transfer-Encoding: " + encoding + b"\r\n")
            said = True
        else:
            out.append(one.raw)
    if not said:
        out.append(b"Content-Transfer-Encoding: " + encoding + b"\r\n")
    return b"".join(out) + gap + body


def _multipart(entity: _Entity, body: bytes, depth: int) -> bytes:
    if entity.sub in _OPAQUE:
        raise Unconvertible(f"a multipart/{entity.sub.decode()} in it holds 8-bit octets, and must not be changed")
    if entity.encoding not in _IDENTITY:
        raise Unconvertible("a multipart in it is encoded as a whole")
    found = _BOUNDARY.findall(entity.parameters)
    boundary = re.sub(rb"\\(.)", rb"\1", found[0][0] or found[0][1]).rstrip() if len(found) == 1 else b""
    if not 0 < len(boundary) <= 200:
        raise Unconvertible("a multipart in it names no boundary")
    default = b"rfc822" if entity.sub == b"digest" else b"plain"
    delimiter = re.compile(rb"(?:(?<=\r\n)|\A)--" + re.escape(boundary) + rb"(--)?[ \t]*(?:\r\n|\Z)")
    out, start, open_ = [], 0, False
    for match in delimiter.finditer(body):
        # The line end before a delimiter belongs to it, and not to the part (RFC 2046 section 5.1.1).
        piece = body[start : match.start()]
        out.append(_piece(piece, entity.budget, default, depth) if open_ else _idle(piece))
        out.append(match[0])
        start, open_ = match.end(), match[1] is None
        if not open_:
            break
    if not out:
        raise Unconvertible("a multipart in it has no parts")
    piece = body[start:]
    out.append(_piece(piece, entity.budget, default, depth) if open_ else _idle(piece))
    return b"".join(out)


def _piece(octets: bytes, budget: _Budget, default: bytes, depth: int) -> bytes:
    """One part between delimiters, with the line end that belongs to the second."""
    if octets.isascii():
        return octets
    end = b"\r\n" if octets.endswith(b"\r\n") else b""
    octets = octets.removesuffix(b"\r\n")
    fields, at = split_header(octets)
    return _entity(_read(fields, octets[at:], budget, default), depth + 1) + end


def _idle(octets: bytes) -> bytes:
    """What stands before the first delimiter or after the last one: nobody reads it."""
    return _HIGH.sub(b"?", octets)


def _inside(entity: _Entity, body: bytes, depth: int) -> bytes:
    """A message in a message. It may not be encoded, but what is in it may (RFC 2046 section 5.2.1)."""
    if entity.sub not in (b"rfc822", b"news"):
        raise Unconvertible(f"a message/{entity.sub.decode()} in it holds 8-bit octets")
    if entity.encoding not in _IDENTITY:
        raise Unconvertible("a message in it is encoded as a whole")
    return _message(body, entity.budget, depth + 1)


def quoted_printable(body: bytes) -> bytes:
    """Text in quoted-printable (RFC 2045 section 6.7); only CRLF is a line end, a bare CR or LF becomes ``=0D``."""
    return b"\r\n".join([_quoted_line(line) for line in body.split(b"\r\n")])


def _quoted_line(line: bytes) -> bytes:
    # Without text mode, it encodes line ends, and breaks long lines by an = and a LF of its own.
    return binascii.b2a_qp(line, quotetabs=False, istext=False, header=False).replace(b"=\n", b"=\r\n")


def _mended(body: bytes) -> bytes:
    """Quoted-printable with raw 8-bit octets in it, which decode as themselves."""
    out = _HIGH.sub(lambda match: b"=%02X" % match[0][0], body)
    if _LONG.search(out):
        raise Unconvertible("a part in quoted-printable has 8-bit octets in a line that would be too long without")
    return out
