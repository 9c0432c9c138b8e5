"""Text in other charsets: encoded words of header fields, and the charsets themselves.

Reading is as lenient as mail programs are: what cannot be decoded stays as it stands or becomes U+FFFD, and nothing
raises. Python knows codecs that are no charsets, or that cost more than their input is worth, so charsets are those of
a list. Writing gives UTF-8 and base64, in words that keep whole characters.

*RFCs*: 2047 sections 2 (syntax), 4 (encodings), 5 and 6.2 (white space between words), 2231 section 5 (languages),
2781 section 4.3 (byte order).
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from encodings import normalize_encoding
from encodings.aliases import aliases
from typing import TYPE_CHECKING, Final

from gateway.sdk.deprecation import old_names

__all__ = [
    "CHARSETS",
    "begins_with_word",
    "decode",
    "decode_words",
    "encode_words",
    "find_charset",
    "has_encoded_word",
]

if not TYPE_CHECKING:
    # Type checkers shall know only the names that are here.
    __getattr__ = old_names(__name__)

_OCTETS: Final = 45
"""Octets that one written word holds: 60 characters of base64, and 12 around them; 75 are allowed."""
_ENCODED_WORD: Final = re.compile(r"=\?([^?\s\x00-\x20]{1,80})\?([BbQq])\?([^?\r\n]{0,2000})\?=")
_ENCODED_GAP: Final = re.compile(r"(\?=)[ \t\r\n]{1,1000}(=\?[^?\s]{1,80}\?[BbQq]\?)")
# Halves of characters, which UTF-7 can spell out, and which nothing can be made of.
_LONE: Final = re.compile("[\ud800-\udfff]")
_NOT_BASE64: Final = re.compile(r"[^A-Za-z0-9+/]")

_CODECS: Final = {
    aliases.get(normalize_encoding(name), normalize_encoding(name)): codecs.lookup(name).name
    for name in (
        "ascii utf-8 utf-7 utf-16 utf-16-le utf-16-be utf-32 utf-32-le utf-32-be "
        "iso8859-1 iso8859-2 iso8859-3 iso8859-4 iso8859-5 iso8859-6 iso8859-7 iso8859-8 iso8859-9 iso8859-10 "
        "iso8859-11 iso8859-13 iso8859-14 iso8859-15 iso8859-16 "
        "cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258 cp437 cp720 cp737 cp775 cp850 cp852 cp855 "
        "cp857 cp858 cp860 cp861 cp862 cp863 cp864 cp865 cp866 cp869 cp874 cp932 cp949 cp950 cp1125 "
        "koi8-r koi8-u koi8-t kz1048 tis-620 mac-roman mac-cyrillic mac-greek mac-turkish mac-latin2 mac-iceland "
        "gb2312 gbk gb18030 hz big5 big5hkscs euc-jp euc-kr euc-jis-2004 shift_jis shift_jis_2004 johab ptcp154 "
        "iso2022-jp iso2022-jp-1 iso2022-jp-2 iso2022-jp-2004 iso2022-jp-3 iso2022-jp-ext iso2022-kr"
    ).split()
}
"""The modules of Python's codecs for charsets, and the codecs' names."""
CHARSETS: Final = frozenset(_CODECS.values())
# Python is not asked for a name that a stranger made up: it looks for a module, and never forgets that there is none.
_KNOWN: Final = _CODECS | {name: _CODECS[module] for name, module in aliases.items() if module in _CODECS}
_MARKED: Final = {
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
}
_ALIASES: Final = {
    "x-sjis": "shift_jis",
    "x-gbk": "gbk",
    "x-euc-jp": "euc-jp",
    "x-mac-cyrillic": "mac-cyrillic",
    "windows-874": "cp874",
    "windows-949": "cp949",
    "ks_c_5601-1987": "cp949",
    "iso-8859-8-i": "iso8859-8",
    "iso-8859-6-i": "iso8859-6",
    "unicode-1-1-utf-7": "utf-7",
    "ansi_x3.110-1983": "iso8859-1",
    "default": "ascii",
    "unknown-8bit": "ascii",
}


def find_charset(name: str) -> str:
    """The codec of a MIME charset (RFC 2045 section 5.1, RFC 2231 section 5 for a language after ``*``); empty for a
    charset that is not known."""
    name = name.strip().lower().partition("*")[0]
    name = _ALIASES.get(name, name)
    if not name or len(name) > 40 or not name.isascii() or "\0" in name:
        return ""
    name = normalize_encoding(name)
    return _KNOWN.get(name) or _KNOWN.get(name.replace(".", "_"), "")


def decode(octets: bytes, charset: str, *, final: bool = True) -> tuple[str, bool]:
    """Text of octets in a charset, and whether all of it was in that charset; what is not becomes U+FFFD.

    A charset that is not known, and ASCII with octets that it does not have, is read as UTF-8 where it is that, else as
    Windows-1252, as readers do. With `final` false a character that is cut off at the end is no error.
    """
    codec = find_charset(charset or "us-ascii")
    if codec in ("", "ascii") and octets.isascii():
        return octets.decode("ascii"), True
    if codec in _MARKED and not octets.startswith(_MARKED[codec]):
        # RFC 2781 section 4.3; Python's codec would read the machine's own order.
        codec += "-be"
    if codec not in ("", "ascii"):
        decoder = codecs.getincrementaldecoder(codec)
        try:
            return _LONE.sub("\ufffd", decoder("strict").decode(octets, final)), True
        except UnicodeError:
            return _LONE.sub("\ufffd", decoder("replace").decode(octets, final)), False
    try:
        return codecs.getincrementaldecoder("utf-8")("strict").decode(octets, final), False
    except UnicodeDecodeError:
        return octets.decode("cp1252", "replace"), False


def has_encoded_word(text: str) -> bool:
    """Whether there is an encoded word in it."""
    return _ENCODED_WORD.search(text) is not None


def decode_words(text: str) -> str:
    """A field's value with its encoded words decoded; white space between two of them goes (RFC 2047 section 6.2).

    Words that belong together but were cut within a character, as some senders do, are decoded together.
    """
    if "=?" not in text:
        return text
    text = _ENCODED_GAP.sub(r"\1\2", text)
    out: list[str] = []
    pending: tuple[str, bytes] | None = None
    at = 0
    for word in _ENCODED_WORD.finditer(text):
        if pending and (word.start() > at or word[1].lower() != pending[0]):
            out.append(decode(pending[1], pending[0])[0])
            pending = None
        out.append(text[at : word.start()])
        octets = _word_octets(word[2], word[3])
        pending = (word[1].lower(), (pending[1] if pending else b"") + octets)
        at = word.end()
    if pending:
        out.append(decode(pending[1], pending[0])[0])
    out.append(text[at:])
    return "".join(out)


def _word_octets(encoding: str, text: str) -> bytes:
    """The octets of an encoded word; what is wrong in it is left out, as in bodies."""
    if encoding in "Qq":
        return binascii.a2b_qp(text.encode("utf-8", "surrogateescape"), header=True)
    clean = _NOT_BASE64.sub("", text)
    clean = clean[: len(clean) - (len(clean) % 4 == 1)]
    return binascii.a2b_base64(clean + "=" * (-len(clean) % 4))


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
    return _ENCODED_WORD.match(text.lstrip(" \t\r\n")) is not None
