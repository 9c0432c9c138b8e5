"""Messages written in 7 bits: structure stays, signed parts are not touched, and what is decoded is what it was."""

from __future__ import annotations

import email
import email.policy
from email.message import Message

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.kit.strategies import hostile_messages
from gateway.mail.sevenbit import MAX_DEPTH, Unconvertible, to_seven_bit

TEXT = b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
UMLAUT = "Gr\u00fc\u00dfe".encode()


def decoded(message: Message) -> list[tuple[str, bytes]]:
    """The leaves in order: type and decoded octets, line ends at the end apart, which belong to delimiters."""
    return [
        (part.get_content_type(), part.get_payload(decode=True).rstrip(b"\r\n"))
        for part in message.walk()
        if not part.is_multipart()
    ]


def parts(content: bytes) -> list[tuple[str, bytes]]:
    return decoded(email.message_from_bytes(content, policy=email.policy.compat32))


def multipart(*inside: bytes, kind: bytes = b"mixed", boundary: bytes = b"b") -> bytes:
    head = b"MIME-Version: 1.0\r\nContent-Type: multipart/" + kind + b'; boundary="' + boundary + b'"\r\n\r\n'
    return head + b"".join(b"--" + boundary + b"\r\n" + p + b"\r\n" for p in inside) + b"--" + boundary + b"--\r\n"


def test_a_message_in_7_bits_stays_as_it_is():
    content = TEXT + b"\r\nplain\r\n"
    assert to_seven_bit(content) is content


def test_text_becomes_quoted_printable_and_the_header_says_so_in_the_same_place():
    out = to_seven_bit(TEXT + b"Subject: x\r\n\r\n" + UMLAUT + b" = \r\n.\r\n")
    assert out == (TEXT.replace(b"8bit", b"quoted-printable") + b"Subject: x\r\n\r\nGr=C3=BC=C3=9Fe =3D=20\r\n=2E\r\n")


def test_what_was_no_mime_becomes_mime_in_an_unknown_charset():
    assert to_seven_bit(b"Subject: x\r\n\r\n\xe9\r\n") == (
        b"Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=unknown-8bit\r\n"
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\n=E9\r\n"
    )


def test_other_types_become_base64():
    out = to_seven_bit(b"MIME-Version: 1.0\r\nContent-Type: image/png\r\n\r\n\x89PNG\r\n")
    assert out.endswith(b"Content-Transfer-Encoding: base64\r\n\r\niVBORw0K\r\n")


def test_a_multipart_keeps_its_structure_and_its_parts_of_7_bits_every_octet():
    signed = multipart(b"\r\n plain \r\n", b"Content-Type: x/y\r\n\r\nsig", kind=b"signed", boundary=b"s")
    signed = signed.removeprefix(b"MIME-Version: 1.0\r\n")
    content = multipart(b"Content-Type: text/html\r\n\r\n" + UMLAUT, signed, b"\r\n" + UMLAUT)
    out = to_seven_bit(content.replace(b"mixed;", b"mixed; x=y;"))
    assert out.isascii() and signed in out
    assert out.count(b"--b\r\n") == 3 and out.count(b"quoted-printable") == 2
    assert parts(out) == parts(content)


def test_a_multipart_in_8bit_says_7bit_afterwards():
    content = multipart(b"\r\n" + UMLAUT).replace(b"1.0\r\n", b"1.0\r\nContent-Transfer-Encoding: 8BIT\r\n")
    assert to_seven_bit(content).startswith(b"MIME-Version: 1.0\r\nContent-Transfer-Encoding: 7bit\r\n")


def test_a_message_in_a_message_is_converted_inside():
    inner = TEXT + b"Subject: inner\r\n\r\n" + UMLAUT
    content = multipart(b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + inner)
    out = to_seven_bit(content)
    assert b"message/rfc822\r\nContent-Transfer-Encoding: 7bit\r\n" in out and b"Subject: inner" in out
    assert parts(out) == parts(content)


def test_an_internationalized_message_in_a_message_is_encoded_as_a_whole():
    content = multipart(b"Content-Type: message/global\r\n\r\nSubject: " + UMLAUT + b"\r\n")
    assert b"quoted-printable\r\n\r\nSubject: Gr=C3=BC=C3=9Fe\r\n\r\n--b--" in to_seven_bit(content)


def test_raw_octets_in_quoted_printable_are_quoted():
    head = b"MIME-Version: 1.0\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    assert to_seven_bit(head + b"a=\r\n=3D\xe9\r\n") == head + b"a=\r\n=3D=E9\r\n"


SIGNED = multipart(b"\r\n" + UMLAUT, b"Content-Type: x/y\r\n\r\nsig", kind=b"signed")


def _nested(levels: int) -> bytes:
    content = b"\r\n" + UMLAUT
    for level in range(levels):
        content = multipart(content, boundary=b"b%d." % level)
    return content


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (SIGNED, "multipart/signed"),
        (b"Subject: \xe9\r\n\r\nx\r\n", "header field Subject"),
        (multipart(b"X: \xe9\r\n\r\nx"), "header field X"),
        (TEXT.replace(b"8bit", b"base64") + b"\r\n\xe9\r\n", "its encoding has none"),
        (TEXT.replace(b"8bit", b"x-unheard") + b"\r\n\xe9\r\n", "its encoding has none"),
        (TEXT + TEXT + b"\r\n\xe9\r\n", "more than once"),
        (b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed\r\n\r\n--b\r\n\r\n\xe9\r\n--b--\r\n", "no boundary"),
        (multipart(b"\r\nx").replace(b"--b", b"--c\xe9"), "no parts"),
        (b"MIME-Version: 1.0\r\nContent-Type: message/partial\r\n\r\n\xe9\r\n", "message/partial"),
        (b"MIME-Version: 1.0\r\nContent-Type: ;multipart\r\n\r\n\xe9\r\n", "cannot be read"),
        (b"Subject: x\r\nno field \xe9\r\n\r\nx\r\n", "empty line"),
        (_nested(MAX_DEPTH + 2), "too many parts"),
        (multipart(*[b"\r\n\xe9"] * 10_001), "too many parts"),
    ],
)
def test_what_cannot_be_converted_says_why(content, why):
    with pytest.raises(Unconvertible, match=why):
        to_seven_bit(content)


BODIES = st.lists(
    st.sampled_from([b"\xc3\xa9", b"\xff", b"a", b" ", b"\t", b"=", b".", b"\r\n", b"x" * 80, b"--b", b"From ", b"\0"])
).map(b"".join)
LEAVES = st.tuples(
    st.sampled_from([b"text/plain", b"text/html; charset=utf-8", b"image/png", b"application/pdf"]),
    st.sampled_from([b"", b"Content-Transfer-Encoding: 8bit\r\n", b"Content-Transfer-Encoding: binary\r\n"]),
    BODIES,
).map(lambda leaf: b"Content-Type: " + leaf[0] + b"\r\n" + leaf[1] + b"\r\n" + leaf[2])


def _containers(inside: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    several = st.lists(inside, min_size=1, max_size=3)
    joined = st.tuples(several, st.integers(0, 10**9)).map(
        lambda made: multipart(*made[0], boundary=b"=_%d" % made[1]).removeprefix(b"MIME-Version: 1.0\r\n")
    )
    return joined | inside.map(lambda part: b"Content-Type: message/rfc822\r\n\r\nMIME-Version: 1.0\r\n" + part)


@settings(max_examples=50)
@given(st.recursive(LEAVES, _containers, max_leaves=6))
def test_every_part_decodes_to_what_it_was(entity):
    content = b"Subject: x\r\nMIME-Version: 1.0\r\n" + entity
    try:
        out = to_seven_bit(content)
    except Unconvertible as error:
        # Two multiparts drew the same boundary, or a body is too much like one.
        assert "no parts" in str(error) or "empty line" in str(error), error
        return
    assert out.isascii() and max(map(len, out.split(b"\r\n"))) <= 998
    assert parts(out) == parts(content)


@settings(max_examples=50)
@given(hostile_messages() | st.binary(max_size=200))
def test_any_octets_become_7_bits_or_a_reason(content):
    try:
        assert to_seven_bit(content).isascii()
    except Unconvertible as error:
        assert str(error).isascii() and len(str(error)) < 1200
