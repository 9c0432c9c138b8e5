"""Encoded words: text of any kind in header fields that hold ASCII only.

Decoding is as lenient as mail programs are: what cannot be decoded stays as it stands, or becomes U+FFFD, and nothing
raises. Encoding gives UTF-8 and base64, in words that keep whole characters.

*RFCs*: 2047 sections 2 (syntax), 4 (encodings), 5 and 6.2 (white space between words), 2231 section 5 (languages).
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from functools import lru_cache
from typing import Final

_WORD: Final = re.compile(r"=\?([A-Za-z0-9._:+\-]{1,60})(?:\*[A-Za-z0-9\-]{0,40})?\?([BbQq])\?([^?]*)\?=")
_ESCAPED: Final = re.compile(rb"=([0-9A-Fa-f]{2})")
_OCTETS: Final = 45
"""Octets that one word holds: 60 characters of base64, and 12 around them; 75 are allowed."""
_UNSAFE: Final = frozenset({"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape"})
"""Codecs of Python's that are no charset of mail; two of them take quadratic time."""
_LARGER: Final = {"gb2312": "gb18030", "gbk": "gb18030", "ascii": "utf-8", "euc_kr": "cp949"}
"""Charsets that are named where a larger one is meant."""


@lru_cache(maxsize=256)
def charset_codec(charset: str) -> str:
    """The name of Python's codec for a MIME charset; ``utf-8`` for one that nobody knows."""
    try:
        found = codecs.lookup(charset.strip())
    except (LookupError, ValueError):
        return "utf-8"
    # A codec that gives no text (hex, zlib) is none of a charset.
    if not getattr(found, "_is_text_encoding", True) or found.name.replace("_", "-") in _UNSAFE:
        return "utf-8"
    return _LARGER.get(found.name, found.name)


def decode_octets(octets: bytes, charset: str) -> str:
    """Text of octets in this charset; what cannot be decoded becomes U+FFFD."""
    try:
        return octets.decode(charset_codec(charset), "replace")
    except (LookupError, ValueError):
        return octets.decode("utf-8", "replace")


def decode_words(text: str) -> str:
    """A header value with its encoded words decoded; white space between two of them is none of the text."""
    out: list[str] = []
    held, held_charset, end = b"", "", 0
    for match in _WORD.finditer(text):
        octets = _octets(match[2], match[3])
        if octets is None:
            continue
        between = text[end : match.start()]
        after_word = bool(held_charset) and not between.strip(" \t\r\n")
        charset = match[1].lower()
        if after_word and charset == held_charset:
            # Some senders cut a character in two: decode what belongs together at once.
            held += octets
        else:
            if held_charset:
                out.append(decode_octets(held, held_charset))
            if not after_word:
                out.append(between)
            held, held_charset = octets, charset
        end = match.end()
    if held_charset:
        out.append(decode_octets(held, held_charset))
    return "".join(out) + text[end:]


def _octets(encoding: str, text: str) -> bytes | None:
    """What one word holds, None when it holds nothing readable."""
    raw = text.encode("utf-8", "surrogateescape")
    if encoding in "Qq":
        return _ESCAPED.sub(lambda m: bytes((int(m[1], 16),)), raw.replace(b"_", b" "))
    stripped = raw.rstrip(b"=")
    try:
        return base64.b64decode(stripped + b"=" * (-len(stripped) % 4))
    except binascii.Error:
        return None


def encode_words(text: str) -> str:
    """The text as encoded words, each on a line of its own after the first (``\\n`` and a space between them)."""
    words: list[str] = []
    chunk = b""
    for character in text:
        octets = character.encode("utf-8", "replace")
        if len(chunk) + len(octets) > _OCTETS:
            words.append(_word(chunk))
            chunk = b""
        chunk += octets
    words.append(_word(chunk))
    return "\n ".join(words)


def _word(octets: bytes) -> str:
    return f"=?utf-8?b?{base64.b64encode(octets).decode('ascii')}?="


def begins_with_word(text: str) -> bool:
    """Whether a header value begins with an encoded word."""
    return _WORD.match(text.lstrip(" \t\r\n")) is not None
