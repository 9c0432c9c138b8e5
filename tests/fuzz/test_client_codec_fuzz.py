"""Whatever a next hop sends, the client codec stays bounded, raises nothing and ends every transaction once."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.transport.client import Codec
from gateway.transport.events import Finished, Phase, Refused, Signal
from gateway.transport.replying import LINE_OCTETS

REPLIES = st.sampled_from(
    [
        b"220 hi\r\n",
        b"250 ok\r\n",
        b"250-peer\r\n250-PIPELINING\r\n250 STARTTLS\r\n",
        b"250-more\r\n",
        b"354 go\r\n",
        b"421 bye\r\n",
        b"450 4.2.1 later\r\n",
        b"550-5.1.1 no\r\n550 5.1.1 no\r\n",
        b"552 full\r\n",
        b"\r\n",
        b"\n",
    ]
)
OCTETS = st.one_of(REPLIES, st.binary(max_size=40), st.sampled_from([b"2", b"5", b"-", b"\r", b"x" * 5000]))


@settings(max_examples=400, deadline=None)
@given(st.lists(OCTETS, max_size=40), st.integers(1, 5), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_any_octets_are_survived(
    chunks: list[bytes], rcpts: int, lmtp: bool, wants_tls: bool, chunking: bool, along: bool
):
    codec = Codec("gate.test", lmtp=lmtp, wants_tls=wants_tls)
    open_transactions = 0

    def act(events: list) -> None:
        nonlocal open_transactions
        for event in events:
            if isinstance(event, Finished):
                open_transactions -= 1
                assert len(event.replies) == rcpts
                assert event.open is (codec.phase is not Phase.CLOSED)
            elif isinstance(event, Refused):
                assert event.reply.code >= 400
            elif event is Signal.SEND_CONTENT and chunking:
                codec.chunk(4, last=False)
                codec.chunk(4, last=True)
            elif event is Signal.SEND_CONTENT:
                codec.content_sent()
            elif event is Signal.START_TLS:
                codec.tls_established()
        if codec.phase is Phase.IDLE:
            whole = b"content" if along else b""
            codec.begin(b"MAIL FROM:<>\r\n", [b"RCPT TO:<a@a.test>\r\n"] * rcpts, chunking=chunking, whole=whole)
            open_transactions += 1

    for chunk in chunks:
        act(codec.receive(chunk))
        codec.outgoing()
        assert open_transactions in (0, 1)
        assert codec._reader.kept <= LINE_OCTETS
    for event in codec.lost("gone"):
        open_transactions -= isinstance(event, Finished)
    assert open_transactions == 0
    assert codec.receive(b"250 ok\r\n") == []


@settings(max_examples=200, deadline=None)
@given(st.lists(REPLIES, max_size=20), st.lists(st.integers(0, 400), max_size=10))
def test_how_the_octets_are_cut_changes_nothing(replies: list[bytes], cuts: list[int]):
    wire = b"".join(replies)
    at = [0, *sorted(c % (len(wire) + 1) for c in cuts), len(wire)]

    def run(chunks: list[bytes]) -> list:
        codec = Codec("gate.test")
        return [event for chunk in chunks for event in codec.receive(chunk)]

    assert run([wire[a:b] for a, b in pairwise(at)]) == run([wire])
