"""Encoded words: what mail programs write is read, what we write they read."""

from __future__ import annotations

import codecs
import encodings
from email.header import decode_header, make_header

import pytest

from gateway.sdk.words import CHARSETS, begins_with_word, decode, decode_words, encode_words, find_charset


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "Grüße"),
        ("=?UTF-8?B?R3LDvMOfZQ==?=", "Grüße"),
        ("=?iso-8859-1?q?=A1Hola,_se=F1or!?=", "¡Hola, señor!"),
        ("=?iso-8859-1*es?q?se=F1or?=", "señor"),
        ("Re: =?utf-8?q?=C3=A4?= and =?utf-8?q?=C3=B6?= end", "Re: ä and ö end"),
        ("=?utf-8?q?a?= \n =?utf-8?q?b?=", "ab"),
        ("=?utf-8?b?4oKs?= =?utf-8?b?4oI=?= =?utf-8?b?rA==?=", "€€"),
        ("=?gb2312?b?xOO6ww==?=", "你好"),
        ("=?koi8-r?b?8NLJ18XU?=", "Привет"),
        ("=?no-such-charset?q?=C3=BC?=", "ü"),
        ("=?utf-8?q?broken=C3?=", "broken�"),
        ("=?utf-8?x?abc?=", "=?utf-8?x?abc?="),
        ("=?utf-8?b?A?=", ""),
        ("plain =? text ?=", "plain =? text ?="),
        ("", ""),
    ],
)
def test_encoded_words_are_read_as_mail_programs_read_them(written, meant):
    assert decode_words(written) == meant


@pytest.mark.parametrize("text", ["Grüße", "你好" * 40, "a" * 200, "€" * 100, "🙂 smile"])
def test_what_is_written_is_read_by_us_and_by_python(text):
    written = encode_words(text)
    assert decode_words(written) == text
    assert str(make_header(decode_header(written.replace("\n", "")))) == text
    assert all(len(line.strip()) <= 75 for line in written.split("\n"))


def test_a_codec_that_is_no_charset_is_not_used():
    for name in ("hex", "zlib", "idna", "punycode", "rot13", "unicode_escape", "no such", "a\0b"):
        assert find_charset(name) == "", name
    assert decode(b"7a", "hex")[0] == "7a"


@pytest.mark.parametrize("name", sorted({*CHARSETS, *encodings.aliases.aliases, "windows-1252", "ISO 8859-1"}))
def test_charsets_have_the_names_that_python_knows_them_by(name):
    try:
        found = codecs.lookup(name).name
    except LookupError:
        found = ""
    assert find_charset(name) == (found if found in CHARSETS else "")


def test_names_that_a_stranger_makes_up_are_not_kept():
    known = vars(encodings)["_cache"]
    before = len(known)
    decode_words(" ".join(f"=?x-{i}?q?a?=" for i in range(500)))
    assert len(known) == before


def test_a_word_at_the_beginning_is_seen():
    assert begins_with_word(" =?utf-8?q?a?= b")
    assert not begins_with_word("b =?utf-8?q?a?=")
