"""Nothing that a scanner, or whoever stands in its place, can answer gets past the readers of its replies."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from gateway.mail.edit import EDITS, render_field
from gateway.sdk import AddHeader, field_value
from gateway.sdk.testing import make_message
from plugins.clamd.codec import REPLY_OCTETS, ClamdError, Instream, Outcome
from plugins.rspamd.milter import EDITS as MOST
from plugins.rspamd.milter import edits_of
from plugins.rspamd.reply import RspamdError, read_reply
from plugins.spamd.codec import BODY_OCTETS, Command, ResponseReader, SpamdError
from plugins.spamd.fields import read_header, read_report, read_symbols

MESSAGE = make_message(b"From: ann@sender.test\r\nSubject: x\r\nX-Spam: no\r\n\r\nHello.\r\n")

pieces = st.lists(st.integers(1, 40), max_size=20)


def cut(octets: bytes, sizes: list[int]) -> list[bytes]:
    """The octets in pieces of these sizes, as they may come over a connection."""
    out = []
    for size in sizes:
        out.append(octets[:size])
        octets = octets[size:]
    return [piece for piece in [*out, octets] if piece]


# clamd

clamd_words = st.sampled_from(
    [
        b"stream: ",
        b"OK",
        b" FOUND",
        b"Win.Test",
        b" ERROR",
        b"INSTREAM size limit exceeded.",
        b"\0",
        b"(aa:68)",
        b"\xff",
    ]
)
clamd_replies = st.one_of(
    st.binary(max_size=200),
    st.lists(clamd_words, max_size=8).map(b"".join),
    st.integers(REPLY_OCTETS - 3, REPLY_OCTETS + 3).map(lambda n: b"x" * n),
)


@given(clamd_replies, pieces)
def test_a_reply_of_clamd_is_understood_or_an_error(octets, sizes):
    exchange = Instream()
    try:
        for piece in cut(octets, sizes):
            exchange.receive(piece)
        exchange.closed()
    except (ClamdError, ConnectionError):
        return
    reply = exchange.reply
    assert reply is not None
    assert octets.endswith(b"\0")
    assert (reply.outcome is Outcome.CLEAN) == (octets == b"stream: OK\0")
    assert reply.text.isprintable()
    assert reply.text.isascii()
    assert len(reply.text) <= REPLY_OCTETS


@given(st.lists(st.binary(max_size=200_000), max_size=4))
def test_what_clamd_gets_is_the_content_in_frames(blocks):
    exchange = Instream()
    sent = exchange.begin() + b"".join(chunk for block in blocks for chunk in exchange.chunks(block)) + exchange.end()
    sent = sent.removeprefix(b"zINSTREAM\0")
    content = b""
    while size := int.from_bytes(sent[:4], "big"):
        content += sent[4 : 4 + size]
        sent = sent[4 + size :]
    assert sent == bytes(4)
    assert content == b"".join(blocks)


# spamd

spamd_words = st.sampled_from(
    [
        b"SPAMD/1.1 0 EX_OK\r\n",
        b"SPAMD/1.1 75 EX_TEMPFAIL\r\n",
        b"Content-length: 5\r\n",
        b"Content-length: 99999999999\r\n",
        b"Spam: True ; 6.0 / 5.0\r\n",
        b"Spam: False ; -1e9 / nan\r\n",
        b"Spam: Yes ; 999999999.999999999 / 5\r\n",
        b"\r\n",
        b"\n",
        b"GP_SIX",
        b"A: \xff\r\n",
        b"\0",
    ]
)
spamd_replies = st.one_of(
    st.binary(max_size=200),
    st.lists(spamd_words, max_size=10).map(b"".join),
    st.lists(spamd_words, max_size=6).map(lambda words: b"SPAMD/1.1 0 EX_OK\r\n" + b"".join(words)),
)


@given(st.sampled_from(list(Command)), spamd_replies, pieces)
def test_a_response_of_spamd_is_understood_or_an_error(command, octets, sizes):
    reader = ResponseReader(command)
    try:
        for piece in cut(octets, sizes):
            reader.receive(piece)
        reader.closed()
    except (SpamdError, ConnectionError):
        return
    response = reader.response
    assert response is not None
    assert octets.startswith(b"SPAMD/")
    assert math.isfinite(response.score)
    assert math.isfinite(response.threshold)
    assert len(response.body) <= BODY_OCTETS
    again = ResponseReader(command)
    again.receive(octets)
    if again.response is None:
        again.closed()
    assert again.response == response, "however it was cut"


header_words = st.sampled_from(
    [
        b"X-Spam-Status: Yes, tests=A,B\r\n",
        b"\tC\r\n",
        b"X-Spam-\0: x\r\n",
        b"Subject: \xff\x00\r\n",
        b"\r\n",
        b": ",
        b"x",
    ]
)


@given(st.one_of(st.binary(max_size=500), st.lists(header_words, max_size=20).map(b"".join)))
def test_what_spamd_writes_becomes_edits_that_can_be_made(body):
    for symbol in read_symbols(body):
        assert symbol.isascii()
        assert symbol.isprintable()
    for symbols, edits in (read_report(body), read_header(body, "x")):
        assert len(symbols) <= 1000
        for edit in edits:
            assert isinstance(edit, EDITS)
    MESSAGE.edited(read_header(body, "x")[1])


# rspamd

texts = st.text(max_size=30)
numbers = st.one_of(st.integers(), st.floats(), st.booleans(), st.none())
json_values = st.recursive(
    st.one_of(texts, numbers),
    lambda below: st.one_of(st.lists(below, max_size=4), st.dictionaries(texts, below, max_size=4)),
    max_leaves=10,
)
names = st.one_of(st.sampled_from(["X-Spam", "Subject", "X-A"]), texts)
adding = st.one_of(
    texts,
    st.fixed_dictionaries({"value": texts}, optional={"order": st.integers(-9, 9), "index": st.integers(-9, 9)}),
)
milter_blocks = st.fixed_dictionaries(
    {},
    optional={
        "add_headers": st.dictionaries(names, st.one_of(adding, st.lists(adding, max_size=3), json_values), max_size=4),
        "remove_headers": st.dictionaries(names, st.one_of(st.integers(-9, 9), json_values), max_size=4),
        "change_from": st.one_of(st.sampled_from(["<>", "a@b.test", "<a@b.test>"]), texts),
        "add_rcpt": st.lists(st.one_of(st.just("a@b.test"), texts), max_size=3),
        "reject": st.sampled_from(["discard", "quarantine", "x"]),
        "no_action": st.booleans(),
        "spam_header": json_values,
    },
)
rspamd_replies = st.one_of(
    json_values,
    st.fixed_dictionaries(
        {"action": st.sampled_from(["reject", "add header", "rewrite subject"]), "score": st.floats(-99, 99)},
        optional={
            "required_score": numbers,
            "symbols": st.dictionaries(
                texts, st.fixed_dictionaries({}, optional={"score": numbers, "options": st.lists(texts, max_size=3)})
            ),
            "messages": json_values,
            "subject": texts,
            "dkim-signature": st.one_of(texts, st.lists(texts, max_size=3)),
            "milter": st.one_of(milter_blocks, json_values),
        },
    ),
).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))


@given(st.one_of(st.binary(max_size=300), rspamd_replies))
def test_a_reply_of_rspamd_is_understood_or_an_error(octets):
    try:
        reply = read_reply(octets)
        edits = edits_of(reply, MESSAGE.fields)
    except RspamdError as error:
        assert "\n" not in str(error)
        return
    assert math.isfinite(reply.score)
    assert len(edits) <= MOST
    MESSAGE.edited(edits)
    for rule in reply.rules():
        assert len(rule) <= 300


@given(st.text(max_size=3000))
def test_any_text_can_be_the_value_of_a_field(text):
    value = field_value(text)
    raw = render_field("X-Any", AddHeader("X-Any", value).value)
    lines = raw.removesuffix(b"\r\n").split(b"\r\n")
    assert all(len(line) <= 998 for line in lines)
    assert all(line[:1] in (b" ", b"\t") and line.strip() for line in lines[1:])
