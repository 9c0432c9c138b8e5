"""The MIME parser against arbitrary octets, and against Python's own reader on well-formed messages.

Nothing raises, everything is bounded, and how the octets are cut into blocks changes nothing.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import itertools
import json
from email.headerregistry import Address
from email.message import EmailMessage, Message

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.kit.strategies import hostile_messages, messages
from gateway.sdk.testing import BytesContent
from gateway.sdk.words import CHARSETS, decode, decode_words
from plugins.content.decoding import decoder
from plugins.content.fields import parse_value
from plugins.content.parser import Limits, Parsed, Parser
from plugins.content.reading import decoded

SCRAPS = st.sampled_from(
    [
        b"Content-Type: multipart/mixed; boundary=b\r\n",
        b'Content-Type: multipart/alternative; boundary="b b"\r\n',
        b"Content-Type: multipart/digest; boundary=bb\r\n",
        b"Content-Type: message/rfc822\r\n",
        b"Content-Type: text/html; charset=utf-16\r\n",
        b"Content-Transfer-Encoding: base64\r\n",
        b"Content-Transfer-Encoding: quoted-printable\r\n",
        b"Content-Transfer-Encoding: x-uuencode\r\n",
        b"Content-Disposition: attachment; filename*0*=utf-8''%41; filename*1=b\r\n",
        b"--b\r\n",
        b"--b--\r\n",
        b"--b b\r\n",
        b"--bb  \r\n",
        b'Content-Disposition: \xff; filename="=?utf-7?q?+2AA-?=\xff"\r\n',
        b"Content-Transfer-Encoding: \xfe\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b"--",
        b" folded\r\n",
        b"QUJD",
        b"==",
        b"=C3=A4=\r\n",
        b"begin 644 x\r\n#86)C\r\nend\r\n",
        b"\0\xff",
        b"x" * 300,
    ]
)
OCTETS = st.lists(SCRAPS | st.binary(max_size=8), max_size=30).map(b"".join) | messages() | hostile_messages()
LIMITS = Limits(depth=4, parts=12, header=400, text=200)


def read(content: bytes, cuts: list[int], limits: Limits) -> Parsed:
    parser = Parser(limits)
    at = 0
    for cut in sorted(cuts):
        parser.feed(content[at:cut])
        at = max(at, cut)
    parser.feed(content[at:])
    return parser.finish()


@given(OCTETS, st.lists(st.integers(0, 600), max_size=8))
@example(b"Content-Type: message/rfc822\r\n" * 3, [])
@example(b"Content-Disposition: \xff; filename*=utf-7''+2AA-\r\n", [])
@example(b'Content-Type: a/b; charset=\xff; name="=?utf-7?q?+2AA-?=\xff"\r\nContent-Transfer-Encoding: \xfe\r\n', [])
def test_any_octets_are_read_the_same_way_however_they_come_and_within_the_limits(content, cuts):
    parsed = read(content, [], LIMITS)
    assert read(content, cuts, LIMITS) == parsed
    assert len(parsed.parts) <= LIMITS.parts
    assert sum(len(text.text) for text in parsed.texts) <= LIMITS.text
    assert max(part.depth for part in parsed.parts) <= LIMITS.depth
    json.dumps([part.to_json() for part in parsed.parts], ensure_ascii=False).encode()
    for part in parsed.parts:
        assert 0 <= part.header <= part.body <= part.end <= len(content)
    leaves = [part for part in parsed.parts if not part.composite]
    for before, after in itertools.pairwise(leaves):
        assert before.end <= after.header


@given(OCTETS)
def test_the_second_pass_gives_as_many_octets_as_the_first_one_counted(content):
    body = BytesContent(content)
    parsed = read(body.data, [], Limits())
    leaves = [part for part in parsed.parts if not part.composite]

    async def sizes() -> dict[str, int]:
        out = dict.fromkeys((part.section for part in leaves), 0)
        async for piece in decoded(body, leaves):
            out[piece.part.section] += len(piece.octets)
        return out

    assert asyncio.run(sizes()) == {part.section: part.size for part in leaves}


@given(
    st.sampled_from(["base64", "quoted-printable", "x-uuencode"]),
    st.lists(st.sampled_from([b"QQ", b"=", b"==", b"=\r\n", b" ", b"\r\n", b"\xff", b"=4"]) | st.binary(max_size=4)),
    st.integers(1, 9),
)
def test_a_decoder_gives_the_same_however_its_input_is_cut(encoding, scraps, step):
    octets = b"".join(scraps)
    whole, cut = decoder(encoding), decoder(encoding)
    expected = whole.feed(octets) + whole.finish()
    pieces = [cut.feed(octets[at : at + step]) for at in range(0, len(octets), step)]
    assert b"".join(pieces) + cut.finish() == expected
    assert cut.defects == whole.defects


@given(st.text(alphabet="abc\"\\;=*()%'0? \t\udc83", max_size=200))
def test_any_value_of_a_field_is_read(value):
    head, parameters = parse_value(value)
    assert len(head) <= len(value)
    assert set(parameters.values) == {name for name, _ in parameters.all}


@given(
    st.lists(st.sampled_from(["=?", "?=", "?B?", "?q?", "utf-8", "hz", "utf-7", "w6Q=", "=E4", "_", " "]) | st.text()),
    st.binary(max_size=20),
    st.sampled_from([*sorted(CHARSETS), "", "no-such"]),
)
def test_any_words_are_decoded_to_text(scraps, octets, charset):
    assert isinstance(decode_words("".join(scraps)).encode(), bytes)
    for final in (True, False):
        text, _ = decode(octets, charset, final=final)
        assert len(text.encode()) <= 12 * len(octets) + 4


# Well-formed messages, made and read by Python's email package.

WORDS = st.text(alphabet="abcdefgh äöü€日本 .,-=_?!\n", max_size=60)
NAMES = st.text(alphabet="abc äß日._-()'%", min_size=1, max_size=20).map(str.strip).filter(bool)
CTE = st.sampled_from(["base64", "quoted-printable", "8bit"])


def text_of(words: str, subtype: str, cte: str) -> EmailMessage:
    message = EmailMessage()
    message.set_content(words, subtype=subtype, cte=cte)
    return message


def file_of(octets: bytes, name: str, cte: str) -> EmailMessage:
    message = EmailMessage()
    message.set_content(octets, "application", "x-test", disposition="attachment", filename=name, cte=cte)
    return message


def tree_of(parts: list[EmailMessage], subtype: str) -> EmailMessage:
    message = EmailMessage()
    message["MIME-Version"] = "1.0"
    message["Content-Type"] = f"multipart/{subtype}"
    message.set_payload(parts)
    return message


def letter_of(inner: EmailMessage) -> EmailMessage:
    message = EmailMessage()
    message.set_content(inner)
    return message


LEAVES = st.builds(text_of, WORDS, st.sampled_from(["plain", "html"]), CTE) | st.builds(
    file_of, st.binary(max_size=200), NAMES, st.just("base64")
)
TREES = st.recursive(
    LEAVES,
    lambda parts: (
        st.builds(
            tree_of, st.lists(parts, min_size=1, max_size=4), st.sampled_from(["mixed", "alternative", "related"])
        )
        | st.builds(letter_of, parts)
    ),
    max_leaves=12,
)


def flat(message: Message) -> list[tuple[str, str | None, bytes | None]]:
    """As Python reads it: type, file name, and decoded octets of what holds no other parts."""
    out = [
        (part.get_content_type(), part.get_filename(), None if part.is_multipart() else part.get_payload(decode=True))
        for part in message.walk()
    ]
    return out  # type: ignore[return-value]


@given(TREES)
def test_well_formed_messages_are_read_as_python_reads_them(tree):
    tree["From"] = Address("A", "a", "sender.example")
    tree["Date"] = "Mon, 02 Nov 2026 10:00:00 +0000"
    tree["Message-ID"] = "<1@sender.example>"
    octets = tree.as_bytes(policy=email.policy.SMTP)
    theirs = flat(email.message_from_bytes(octets, policy=email.policy.SMTP))
    parsed = read(octets, [], Limits())

    async def ours() -> list[tuple[str, str | None, bytes | None]]:
        bodies = {part.section: b"" for part in parsed.parts if not part.composite}
        async for piece in decoded(BytesContent(octets), [part for part in parsed.parts if not part.composite]):
            bodies[piece.part.section] += piece.octets
        return [(part.type, part.filename or None, bodies.get(part.section)) for part in parsed.parts]

    assert asyncio.run(ours()) == theirs
