"""Hostile tables, patterns, encoded words, bodies and parts: bounded, never an exception, never a broken message."""

from __future__ import annotations

import asyncio
import email
from email import policy

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.mail.message import split_header
from gateway.sdk import DeleteHeader, HeaderField, MimePart, ReplaceBody, apply_edits
from gateway.sdk.actions import header_value, tag_subject
from gateway.sdk.testing import Bench, make_message, make_transaction
from gateway.sdk.words import decode_words, encode_words
from plugins.content.detectors import DETECTORS, luhn, masked
from plugins.content.insertion import Raw, Unreadable, insert
from plugins.content.markup import plain_text
from plugins.content.pattern import Kind, compile_pattern, read_flags
from plugins.content.scan import CHUNK, Field, Line, Scanner
from plugins.content.table import Place, logical_lines, parse_table

_SNIPPETS = [
    b"\r\n", b"\r\n\r\n", b"--b", b"--b--", b"--bc", b"--c", b"Content-Type: multipart/mixed; boundary=b\r\n",
    b"Content-Type: multipart/digest;\r\n boundary=\"c\"\r\n", b"Content-Type: message/rfc822\r\n", b"Subject: x\r\n",
    b" folded\r\n", b"no field\r\n", b": \r\n", b"x" * 3000, b"-", b"\0\xff", b"\r\n--", b"Content-Type:\r\n",
]  # fmt: skip
BODIES = st.lists(st.sampled_from(_SNIPPETS) | st.binary(max_size=8), max_size=12).map(
    lambda pieces: b"".join(pieces).replace(b"\r\n", b"\n").replace(b"\r", b" ").replace(b"\n", b"\r\n")
)
ROOT = (HeaderField("Content-Type", b"Content-Type: multipart/mixed; boundary=b\r\n"),)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def scanned(body: bytes, step: int, lines: int) -> list[Field | Line]:
    scanner = Scanner(ROOT, lines=lines)
    events = [event for at in range(0, len(body), step) for event in scanner.feed(body[at : at + step])]
    return [*events, *scanner.finish()]


@settings(max_examples=100)
@given(BODIES, st.sampled_from([1, 2, 3, 7, 50, 2047, 2049]), st.sampled_from([0, 40, 1 << 20]))
def test_a_body_is_read_the_same_in_pieces_of_any_size(body, step, lines):
    whole = scanned(body, len(body) + 1, lines)
    assert scanned(body, step, lines) == whole
    end = 0
    for event in whole:
        assert end <= event.start <= event.end <= len(body)
        assert len(event.octets) <= max(CHUNK, 102_400)
        end = event.end
        raw = body[event.start : event.end]
        assert raw.removesuffix(b"\r\n").replace(b"\r\n", b"\n")[: len(event.octets)] == event.octets


@given(BODIES)
def test_what_is_neither_a_line_nor_a_field_is_an_empty_line(body):
    end, between = 0, []
    for event in scanned(body, 1 << 20, 1 << 20):
        between.append(body[end : event.start])
        end = event.end
    assert {*between, body[end:]} <= {b"", b"\r\n"}


@settings(max_examples=80)
@given(BODIES, st.lists(st.sampled_from(["/b/ IGNORE", "/./ PREPEND X: $$", "/(.*)/ REPLACE Y: $1", "!/x/ STRIP"])))
def test_what_rules_make_of_a_message_is_a_message(body, rules):
    content = b"Subject: a\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n" + body
    message = make_message(content)
    places = ["header", "mime-header", "nested-header", "body"]
    options = {"tables": [{"match": places, "entries": rules or ["/x/ WARN"]}], "segment": "1MiB"}
    found = Bench().find("content-checks", options, message=message, transaction=make_transaction())
    edited = message.edited(found.edits)
    out = asyncio.run(edited.octets(1 << 30))
    assert len(out) == edited.content.size
    assert b"\n" not in out.replace(b"\r\n", b"") and b"\r" not in out.replace(b"\r\n", b"")
    fields, _ = split_header(out)
    assert [field.raw for field in fields][: len(edited.fields)] == [field.raw for field in edited.fields]


@given(st.binary(max_size=300) | TEXT.map(lambda text: f"/{text}/ REJECT {text}\nif /{text}/i\nendif".encode()))
@example(b"/a/ REJECT\n  b\n#c\n /d")
def test_a_table_is_read_or_refused_with_its_line(data):
    for kind in Kind:
        try:
            table = parse_table(logical_lines(data), kind, frozenset({Place.HEADER}), decoded=False)
        except ValueError as error:
            assert str(error).startswith("line ")
            continue
        table.find(data[:200])


@given(st.text(st.sampled_from("ab\\[](){}^$.*+?|-: <>'`0,Qdwhd\nx"), max_size=30), st.binary(max_size=40))
def test_a_pattern_is_translated_or_refused(written, octets):
    for kind, letters in ((Kind.REGEXP, ""), (Kind.PCRE, ""), (Kind.PCRE, "xm"), (Kind.REGEXP, "m")):
        try:
            pattern = compile_pattern(written, kind, read_flags(kind, letters))
        except ValueError as error:
            assert str(error)
            continue
        pattern.search(octets)


@given(TEXT, TEXT)
def test_encoded_words_give_back_what_was_put_in(text, other):
    assert decode_words(encode_words(text)) == text
    assert decode_words(encode_words(text) + "\n " + encode_words(other)) == text + other


@given(st.text(max_size=100) | st.text(st.sampled_from("=?utf-8bBqQ_aA \t\n*"), max_size=60))
def test_whatever_looks_like_an_encoded_word_is_read_and_does_not_grow(text):
    assert len(decode_words(text)) <= len(text)


@given(st.binary(max_size=80), st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=20))
def test_a_tagged_subject_is_one_field_and_is_tagged_once(value, tag):
    value = value.replace(b"\r", b"").replace(b"\n", b"\r\n ")
    message = make_message(b"Subject:" + value + b"\r\n\r\n")
    edits = tag_subject(message, tag)
    fields = apply_edits(message.fields, edits)
    assert len(split_header(b"".join(field.raw for field in fields))[0]) == len(fields) == 1
    assert tag_subject(make_message(fields[0].raw + b"\r\n"), tag) == ()


@given(TEXT)
def test_a_header_value_is_refused_or_keeps_what_it_says(text):
    try:
        value = header_value("X-Note", text)
    except ValueError:
        return
    assert decode_words(value.replace("\n", "")) == text.strip() or "=?" in text
    assert all(len(line) <= 998 for line in value.split("\n"))


@given(st.text(st.sampled_from("<>!-/ abpdivscriptstyle&#;0x\n="), max_size=200))
def test_html_of_any_kind_becomes_text_and_does_not_grow(source):
    assert len(plain_text(source)) <= len(source)


@given(st.text(st.sampled_from("0123456789 -.DEGBXY/AB"), max_size=200))
def test_detectors_give_values_that_stand_in_the_text(text):
    for name, detector in DETECTORS.items():
        end = 0
        for value in detector.find(text):
            assert end <= value.start < value.end <= len(text)
            end = value.end if name != "iban" else value.start
            kept = "".join(c for c in text[value.start : value.end] if c.isalnum()).upper()
            assert kept == value.value
            assert name != "payment-card" or luhn(value.value)
            assert value.value not in masked(value.value)


PLAIN = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=60)
CHARSETS = st.sampled_from(["us-ascii", "utf-8", "iso-8859-1", "koi8-r", "gb2312", "iso-2022-jp", "utf-16", "", "x-no"])
ENCODINGS = st.sampled_from(["", "7bit", "8bit", "binary", "quoted-printable", "base64", "x-own"])


@given(st.binary(max_size=80), CHARSETS, ENCODINGS, PLAIN, st.booleans(), st.booleans(), st.booleans())
def test_a_text_is_put_into_any_part_or_the_part_is_left(body, charset, encoding, text, html, top, whole):
    part = MimePart("1", "text/html" if html else "text/plain", charset=charset, encoding=encoding, end=len(body))
    try:
        made = insert(part, Raw(body, body, whole), text or "x", top=top)
    except Unreadable:
        return
    assert 0 <= made.replaces <= len(body)
    assert made.charset in ("", "utf-8") and bool(made.charset) == bool(made.encoding)
    if (made.encoding or encoding) in ("quoted-printable", "base64"):
        assert made.octets.isascii()
    assert b"\r" not in made.octets.replace(b"\r\n", b"") or b"\r" in body


@settings(max_examples=60)
@given(BODIES, st.booleans())
def test_a_disclaimer_leaves_a_message_whose_other_parts_are_what_they_were(body, top):
    content = (
        b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhello\r\n--b\r\n" + body
    )
    message = make_message(content)
    options = {"text": "Größe", "position": "top" if top else "bottom"}
    found = Bench().find("disclaimer", options, message=message, transaction=make_transaction())
    if found.state != "added":
        assert found.edits == ()
        return
    assert sum(isinstance(edit, ReplaceBody) for edit in found.edits) == 1
    assert not any(isinstance(edit, DeleteHeader) for edit in found.edits)
    edited = message.edited(found.edits)
    out = asyncio.run(edited.octets(1 << 30))
    assert len(out) == edited.content.size and out.endswith(body)
    first = next(email.message_from_bytes(out, policy=policy.default).iter_parts())
    assert "Größe" in first.get_content() and "hello" in first.get_content()
