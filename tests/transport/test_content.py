"""Dots and line ends of content, whole and in blocks."""

from __future__ import annotations

import asyncio
import re
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.sdk.testing import BytesContent
from gateway.transport.content import DotStuffer, FromQuoter, LineFeeds, stuff, whole

# Contents out of the pieces that matter; any split of them.
PIECES = st.lists(st.sampled_from([b".", b"\r\n", b"\r", b"\n", b"a", b"..", b"\r\n.\r\n"]), max_size=30).map(b"".join)
CRLF = st.lists(st.sampled_from([b".", b"\r\n", b"a", b"..", b".\r\n"]), max_size=30).map(b"".join)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(at)]


def naive(data: bytes) -> bytes:
    """Dot-stuffing line by line, as RFC 5321 section 4.5.2 tells it."""
    lines = data.split(b"\r\n")
    if lines[-1] == b"":
        lines.pop()
    return b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines) + b".\r\n"


def unstuff(wire: bytes) -> bytes:
    """What a server makes of it: lines up to the single dot, without one leading dot."""
    out = []
    lines = wire.split(b"\r\n")
    for i, line in enumerate(lines):
        if line == b".":
            assert lines[i + 1 :] == [b""], "something follows the final dot"
            return b"".join(out)
        out.append((line[1:] if line.startswith(b".") else line) + b"\r\n")
    raise AssertionError("no final dot")


@settings(max_examples=200, deadline=None)
@given(PIECES)
def test_whole_content_is_stuffed_as_the_naive_model_says(data: bytes):
    assert stuff(data) == naive(data)


@settings(max_examples=300, deadline=None)
@given(PIECES, st.lists(st.integers(0, 100), max_size=8))
def test_any_split_into_blocks_gives_the_same_octets(data: bytes, cuts: list[int]):
    stuffer = DotStuffer()
    wire = b"".join([stuffer.feed(block) for block in split(data, cuts)]) + stuffer.end()
    assert wire == naive(data)


@settings(max_examples=200, deadline=None)
@given(CRLF)
def test_a_server_reads_back_what_was_sent(data: bytes):
    expected = data if not data or data.endswith(b"\r\n") else data + b"\r\n"
    assert unstuff(stuff(data)) == expected


@settings(max_examples=200, deadline=None)
@given(PIECES, st.lists(st.integers(0, 100), max_size=8))
def test_a_maildir_gets_line_feeds_however_the_blocks_are_cut(data: bytes, cuts: list[int]):
    lines = LineFeeds()
    assert b"".join([lines.feed(b) for b in split(data, cuts)]) + lines.end() == data.replace(b"\r\n", b"\n")


def test_a_line_that_is_only_a_dot_does_not_end_the_content():
    assert stuff(b"a\r\n.\r\nb\r\n") == b"a\r\n..\r\nb\r\n.\r\n"


def test_a_missing_last_line_end_is_added_before_the_dot():
    assert stuff(b"a") == b"a\r\n.\r\n"


def test_an_empty_content_is_a_lone_dot():
    stuffer = DotStuffer()
    assert stuff(b"") == stuffer.feed(b"") + stuffer.end() == b".\r\n"


def test_whole_joins_all_blocks():
    data = b"x" * (3 << 20)
    assert asyncio.run(whole(BytesContent(data))) == data


FROMS = st.lists(st.sampled_from([b"From ", b"From", b"F", b"ro", b"m ", b">", b">>", b"\n", b"x"]), max_size=30).map(
    b"".join
)


@given(FROMS, st.lists(st.integers(0, 1000), max_size=8))
def test_lines_that_begin_with_from_are_quoted_wherever_blocks_end(data: bytes, cuts: list[int]):
    quoter = FromQuoter()
    out = b"".join(quoter.feed(block) for block in split(data, cuts)) + quoter.end()
    assert out == re.sub(rb"(?m)^(>*From )", rb">\1", data)
    assert re.sub(rb"(?m)^>(>*From )", rb"\1", out) == data, "and can be unquoted"


def test_long_runs_of_the_quoting_sign_are_quoted_in_no_time():
    quoter = FromQuoter()
    blocks = [b"\n" + b">" * (1 << 20)] * 3 + [b"From x"]
    assert b"".join(quoter.feed(block) for block in blocks) + quoter.end() == b"".join(blocks[:3]) + b">From x"
