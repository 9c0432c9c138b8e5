"""The policy protocol against arbitrary octets, texts and values: only its own errors, and no broken lines."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.sdk import AddHeader, AddRecipient, Redirect, Reroute, Stage
from gateway.sdk.testing import Bench
from gateway.transport.routing import parse_next_hop
from plugins.delegation import DelegationPlugin
from plugins.delegation.actions import ActionError, Word, parse_action
from plugins.delegation.codec import VALUE_OCTETS, CodecError, ReplyReader, encode

PIECES = st.sampled_from(
    [b"action=", b"OK", b"\n", b"\n\n", b"=", b"x=y\n", b"\r", b"\0", b"\xff", b"\xc3", b"REJECT 5"]
)
OCTETS = st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=12).map(b"".join))
WORDS = st.sampled_from([*Word, *(word.lower() for word in Word), "450", "521", "999", "4711", ""])
TEXTS = st.one_of(
    st.text(max_size=100),
    st.sampled_from(
        ["X: y", "X:", ": x", "a@b.example", "<a@b.example>", "smtp:[::1]:25", "lmtp:unix:/x", "smtp:", "5.7.1 no"]
    ),
)


def outcome(pieces: list[bytes], limit: int) -> str | None:
    """What a reader makes of octets that come in these pieces: the action, or None for no reply."""
    reader = ReplyReader(limit)
    try:
        for piece in pieces:
            reader.feed(piece)
    except CodecError:
        return None
    return reader.action if reader.state == "done" else None


@given(OCTETS, st.data())
def test_a_reply_means_the_same_however_it_is_cut_into_pieces(octets, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=5)))
    pieces = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
    assert outcome(pieces, 1000) == outcome([octets], 1000)


@given(OCTETS, st.integers(0, 50))
def test_no_reply_longer_than_the_limit_is_read(octets, limit):
    if len(octets) > limit:
        assert outcome([bytes([octet]) for octet in octets], limit) is None


@given(st.lists(st.tuples(st.sampled_from(["sender", "helo_name"]), st.text())))
@example([("sender", "a\nrequest=x\n\n")])
@example([("helo_name", "\ud800\x85\u2028" + "ö" * VALUE_OCTETS)])
def test_a_request_has_as_many_lines_as_attributes(pairs):
    text = encode(pairs).decode()
    assert text.endswith("\n")
    assert len(text.splitlines()) == len(pairs) + 1
    assert "\0" not in text
    for (name, _), line in zip(pairs, text.split("\n"), strict=False):
        assert line.startswith(f"{name}=")
        assert len(line.encode()) <= len(name) + 1 + VALUE_OCTETS


@given(WORDS, TEXTS, st.sampled_from([Stage.CONNECT, Stage.RCPT, Stage.MESSAGE]))
@example("FILTER", "smtp:[v6:]", Stage.RCPT)
@example("PREPEND", "X: \ud800", Stage.RCPT)
@example("421", "\n250 OK", Stage.RCPT)
def test_an_action_is_carried_out_whole_or_is_an_error(word, text, stage):
    try:
        found = parse_action(f"{word} {text}", "service")
    except ActionError:
        return
    options = {"connect": "127.0.0.1:1", "at": [stage.value]}
    verdict = Bench().judge(DelegationPlugin, options, stage, findings=[found])
    if verdict.reply:
        assert 400 <= verdict.reply.code <= 599
        assert verdict.reply.wire().count(b"\r\n") == verdict.reply.text.count("\n") + 1
    for edit in verdict.edits:
        match edit:
            case Reroute():
                parse_next_hop(edit.next_hop)
            case AddRecipient() | Redirect():
                assert edit.recipient.address.domain
            case _:
                assert isinstance(edit, AddHeader)
