"""Whatever a client sends: content decodes as the rules say however it is cut, and parsers fail in one way only."""

from __future__ import annotations

import re
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.mail.address import Address, NullSender
from gateway.mail.session import Session
from gateway.smtp import proxy, xclient
from gateway.smtp.command import (
    CommandError,
    parse_bdat,
    parse_helo,
    parse_mail,
    parse_rcpt,
    split_line,
)
from gateway.smtp.data import ChunkDecoder, DataDecoder
from tests.smtp.test_xclient import SESSION

STRAY = re.compile(rb"\r(?!\n)|(?<!\r)\n")
PIECES = st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"\r\n.", b"\r\n.\r\n", b"..", b"a", b"\0", b"\xff", b"bc"])
CONTENT = st.lists(PIECES, max_size=30).map(b"".join)
CUTS = st.lists(st.integers(0, 60), max_size=12)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    return [data[a:b] for a, b in pairwise(at)] or [b""]


def mended(data: bytes) -> bytes:
    return STRAY.sub(lambda match: b"\r\n" if match[0] == b"\n" else b" ", data)


def model(data: bytes) -> tuple[bytes, bytes | None]:
    """RFC 5321 section 4.5.2 in one go: the content, and what came after the end if there is one."""
    whole = b"\r\n" + data
    end = whole.find(b"\r\n.\r\n")
    content, rest = (whole, None) if end < 0 else (whole[: end + 2], whole[end + 5 :])
    return mended(content.replace(b"\r\n.", b"\r\n")[2:]), rest


def decode(pieces: list[bytes]) -> tuple[bytes, bytes | None, bool]:
    decoder = DataDecoder()
    out = b""
    for i, piece in enumerate(pieces):
        got, rest = decoder.feed(piece)
        assert not STRAY.search(got)
        out += got
        if rest is not None:
            return out, rest + b"".join(pieces[i + 1 :]), decoder.stray
    return out, None, decoder.stray


@settings(max_examples=700)
@given(CONTENT, CUTS)
@example(b"\r\r\n.\r\n", [1, 2])
@example(b"\r\n.\r.\r\n.\r\n", [3])
@example(b"\r\n" * 8 + b".\r\n", [5, 9, 13])
def test_content_ends_and_decodes_as_the_model_says_however_it_is_cut(data: bytes, cuts: list[int]):
    content, rest, stray = decode(cut(data, cuts))
    expected, expected_rest = model(data)
    assert rest == expected_rest
    if rest is not None:
        assert content == expected
        unstuffed = (b"\r\n" + data)[: (b"\r\n" + data).find(b"\r\n.\r\n") + 2].replace(b"\r\n.", b"\r\n")[2:]
        assert stray == bool(STRAY.search(unstuffed))
    else:
        # A little is held back until it is known what it is.
        assert expected.startswith(content)
        assert len(content) >= len(expected) - 16


@settings(max_examples=400)
@given(CONTENT, CUTS)
def test_content_that_was_stuffed_comes_back(text: bytes, cuts: list[int]):
    content = mended(text) + b"\r\n"
    stuffed = (b"." if content.startswith(b".") else b"") + content.replace(b"\r\n.", b"\r\n..") + b".\r\n"
    assert decode(cut(stuffed, cuts)) == (content, b"", False)


@settings(max_examples=400)
@given(CONTENT, CUTS)
def test_chunks_decode_as_the_model_says_however_they_are_cut(data: bytes, cuts: list[int]):
    decoder = ChunkDecoder()
    pieces = [decoder.feed(piece) for piece in cut(data, cuts)] + [decoder.end()]
    content = b"".join(pieces)
    assert content == mended(data)
    assert not STRAY.search(content)
    assert decoder.stray == bool(STRAY.search(data))


WORDS = st.sampled_from(
    [
        *"""FROM: TO: from:< < > <> a@b @a,@b: " \\ @ . [ ] IPv6: % SIZE= BODY=8BITMIME SMTPUTF8 RET=FULL ENVID= NOTIFY=
    NEVER,SUCCESS ORCPT=rfc822; = +2B postmaster LAST 0 99999999999999999999999 ä ٣ NAME= ADDR= PORT= HELO=""".split(),
        " ",
        "  ",
        "\u2028",
        "\x1b",
    ]
)
ARGUMENTS = st.one_of(st.text(max_size=60), st.lists(st.one_of(WORDS, st.text(max_size=3)), max_size=12).map("".join))


@settings(max_examples=400)
@given(st.one_of(st.binary(max_size=80), ARGUMENTS.map(lambda text: text.encode("utf-8", "replace"))), st.booleans())
def test_any_line_is_a_command_or_a_command_error(line: bytes, strict: bool):
    try:
        verb, argument = split_line(line + b"\r\n", strict=strict)
    except CommandError as error:
        assert error.reply.code == 500
    else:
        assert re.fullmatch("[A-Z0-9]{1,16}", verb)
        assert "\r" not in argument and "\0" not in argument


@settings(max_examples=700)
@given(ARGUMENTS, st.booleans(), st.booleans())
def test_any_argument_is_understood_or_refused_with_a_5xx(argument: str, esmtp: bool, smtputf8: bool):
    for prefix, parse in (
        ("FROM:<", lambda a: parse_mail(a, esmtp).sender),
        ("TO:<", lambda a: parse_rcpt(a, esmtp=esmtp, smtputf8=smtputf8).address),
        ("", parse_helo),
        ("", parse_bdat),
        ("ADDR=", lambda a: xclient.apply(SESSION, xclient.parse(a), SESSION.peer)),
    ):
        for text in (argument, prefix + argument):
            try:
                parsed = parse(text)
            except CommandError as error:
                assert error.reply.permanent
                assert len(error.reply.wire()) <= 512
            else:
                check(parsed)


def check(parsed: object) -> None:
    """What was understood can be written into a header or a command without breaking out of it."""
    if isinstance(parsed, Address):
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", str(parsed))
        assert len(parsed.local.encode()) <= 64 and len(parsed.domain.encode()) <= 255
    elif isinstance(parsed, Session):
        assert "%" not in str(parsed.client)
        assert parsed.name.isprintable() and parsed.helo.isprintable()
        assert not parsed.trusted
    else:
        assert isinstance(parsed, (str, NullSender)) or hasattr(parsed, "octets")


HEADERS = st.one_of(
    st.binary(max_size=120),
    st.binary(max_size=60).map(lambda rest: proxy.V2_SIGNATURE + rest),
    st.builds(
        lambda command, family, length, rest: proxy.V2_SIGNATURE + bytes([command, family, 0, length]) + rest,
        st.sampled_from([0x20, 0x21, 0x11, 0x2F]),
        st.sampled_from([0, 0x11, 0x21, 0x12, 0x31]),
        st.integers(0, 255),
        st.binary(max_size=80),
    ),
    st.lists(
        st.sampled_from([b"PROXY ", b"TCP4 ", b"TCP6 ", b"UNKNOWN", b"1.2.3.4 ", b"::1 ", b"25", b" ", b"\r\n", b"%x"])
    ).map(b"".join),
)


@settings(max_examples=700)
@given(HEADERS)
def test_any_octets_are_a_header_or_a_proxy_error_or_too_few(data: bytes):
    try:
        found = proxy.read(data)
    except proxy.ProxyError:
        return
    if found is None:
        assert len(data) < proxy.V2_OCTETS
    else:
        header, size = found
        assert 0 < size <= len(data)
        assert header.client is None or "%" not in str(header.client)
        # The same header again, with more behind it.
        assert proxy.read(data + b"x") == found


@settings(max_examples=150)
@given(HEADERS)
def test_a_header_that_is_refused_stays_refused_with_more_octets(data: bytes):
    verdicts = []
    for size in range(1, len(data) + 1):
        try:
            verdicts.append(proxy.read(data[:size]))
        except proxy.ProxyError:
            verdicts.append(False)
    for before, after in pairwise(verdicts):
        assert before is None or before == after
