"""Where content ends, what was stuffed, and stray CR and LF."""

from __future__ import annotations

import pytest

from gateway.smtp.data import ChunkDecoder, DataDecoder


def decode(*pieces: bytes) -> tuple[bytes, bytes | None, bool]:
    decoder = DataDecoder()
    out, rest = b"", None
    for piece in pieces:
        assert rest is None
        got, rest = decoder.feed(piece)
        out += got
    return out, rest, decoder.stray


@pytest.mark.parametrize(
    ("wire", "content"),
    [
        (b".\r\n", b""),
        (b"\r\n.\r\n", b"\r\n"),
        (b"a\r\n.\r\n", b"a\r\n"),
        (b"..\r\n.\r\n", b".\r\n"),
        (b"a\r\n..b\r\n.\r\n", b"a\r\n.b\r\n"),
        (b"a\r\n...\r\n.\r\n", b"a\r\n..\r\n"),
        (b".a\r\n.\r\n", b"a\r\n"),
        (b"a.\r\n.\r\n", b"a.\r\n"),
        (b"\xff\x00\r\n.\r\n", b"\xff\x00\r\n"),
    ],
)
def test_content_is_unstuffed_and_ends_at_the_dot(wire, content):
    assert decode(wire) == (content, b"", False)
    # Nothing depends on how it was cut into packets.
    assert decode(*(wire[i : i + 1] for i in range(len(wire)))) == (content, b"", False)


def test_what_comes_after_the_end_is_given_back():
    assert decode(b"a\r\n.\r\nQUIT\r\n")[1] == b"QUIT\r\n"
    assert decode(b"a\r", b"\n.", b"\r\nMAIL")[1] == b"MAIL"


NO_ENDS = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r\n.\r",
    b"\r.\r\n",
    b"\r\r\n.\r\r\n",
    b"\n.\r",
    b"\r.\n",
    b"\r\n.\0\r\n",
]


@pytest.mark.parametrize("fake", NO_ENDS)
@pytest.mark.parametrize("cut", range(1, 7))
def test_only_crlf_dot_crlf_ends_the_content(fake, cut):
    wire = b"before" + fake + b"MAIL FROM:<evil@test>\r\n.\r\n"
    content, rest, stray = decode(wire[: 5 + cut], wire[5 + cut :])
    assert rest == b""
    assert b"MAIL FROM:<evil@test>" in content
    assert stray == (fake != b"\r\n.\0\r\n")
    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")


@pytest.mark.parametrize(
    ("wire", "content"),
    [
        (b"a\nb\r\n.\r\n", b"a\r\nb\r\n"),
        (b"a\rb\r\n.\r\n", b"a b\r\n"),
        (b"a\r\r\n.\r\n", b"a \r\n"),
        (b"\n\r\n.\r\n", b"\r\n\r\n"),
        (b"\r.\r\n.\r\n", b" .\r\n"),
    ],
)
def test_stray_line_ends_are_mended_and_noticed(wire, content):
    assert decode(wire) == (content, b"", True)
    assert decode(*(wire[i : i + 1] for i in range(len(wire)))) == (content, b"", True)


def test_a_line_may_have_any_length_and_is_not_kept_back():
    decoder = DataDecoder()
    out = b""
    for _ in range(100):
        piece, rest = decoder.feed(b"x" * 10_000)
        out += piece
        assert rest is None
    assert len(out) >= 999_990


def chunks(*pieces: bytes) -> tuple[bytes, bool]:
    decoder = ChunkDecoder()
    out = b"".join(decoder.feed(piece) for piece in pieces) + decoder.end()
    return out, decoder.stray


def test_chunks_are_not_unstuffed_and_do_not_end_at_dots():
    assert chunks(b"a\r\n..b\r\n.\r\nc") == (b"a\r\n..b\r\n.\r\nc", False)


def test_a_chunk_may_end_between_cr_and_lf():
    assert chunks(b"a\r", b"\nb") == (b"a\r\nb", False)
    assert chunks(b"a\r", b"b") == (b"a b", True)
    assert chunks(b"a\r") == (b"a ", True)
    assert chunks(b"a\r\n", b"\nb") == (b"a\r\n\r\nb", True)
