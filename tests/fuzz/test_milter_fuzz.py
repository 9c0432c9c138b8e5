"""What a milter says may be anything: the codec gives events or `MilterError`, and edits stay within their fields."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sdk import AddHeader, ChangeHeader, HeaderField, apply_edits
from plugins.milter.changes import Changes
from plugins.milter.codec import Codec, Phase
from plugins.milter.packets import (
    Answer,
    BodyReplaced,
    Command,
    HeaderAdded,
    HeaderChanged,
    HeaderInserted,
    MilterError,
    Modification,
    Progress,
    Quarantined,
    RecipientAdded,
    RecipientDeleted,
    Said,
    SenderChanged,
)
from tests.support.scripted_milter import CONTINUE, REJECT, packet

STEPS = st.integers(0, 0x1FFFFF)
LETTERS = "acdrstyfpO4+2-behimq?"
TEXT = st.text(st.characters(codec="latin-1", exclude_characters="\0"), max_size=30)
PACKETS = st.builds(
    lambda letter, number, data: packet(letter, number + data),
    st.sampled_from(LETTERS),
    st.sampled_from([b"", b"\0\0\0\1", b"\xff\xff\xff\xff"]),
    st.one_of(st.binary(max_size=30), st.builds(lambda a, b: f"{a}\0{b}\0".encode(), TEXT, TEXT)),
)


def agreed(steps: int = 0) -> Codec:
    codec = Codec()
    codec.negotiate()
    codec.receive(packet("O", struct.pack(">III", 6, 0x1FF, steps)))
    return codec


@given(st.binary(max_size=200))
def test_any_octets_may_answer_our_options(octets):
    codec = Codec()
    codec.negotiate()
    with contextlib.suppress(MilterError):
        for event in codec.receive(octets):
            assert not isinstance(event, Answer)


@given(st.lists(PACKETS, max_size=8), st.sampled_from(list(Command)), st.binary(max_size=8))
def test_any_packets_may_answer_any_command(packets, command, rest):
    codec = agreed()
    codec.phase = Phase.END
    codec._due.append(command)
    with contextlib.suppress(MilterError):
        events = codec.receive(b"".join(packets) + rest)
        assert sum(isinstance(event, Answer) for event in events) <= 1
        if codec.awaited:
            assert not any(isinstance(event, Answer) for event in events)
        if command is not Command.END:
            assert all(isinstance(event, (Answer, Progress)) for event in events)


@given(st.lists(PACKETS, max_size=5), st.data())
def test_how_the_octets_are_cut_changes_nothing(packets, data):
    whole = b"".join(packets) + CONTINUE
    cut = data.draw(st.lists(st.integers(0, len(whole)), max_size=5).map(sorted))

    def run(pieces: list[bytes]) -> tuple[list[object], bool]:
        codec = agreed()
        codec.phase = Phase.END
        codec._due.append(Command.END)
        events: list[object] = []
        try:
            for piece in pieces:
                events += codec.receive(piece)
                if codec.trouble:
                    return events, True
        except MilterError:
            return events, True
        return events, False

    edges = [0, *cut, len(whole)]
    pieces = [whole[a:b] for a, b in itertools.pairwise(edges)]
    assert run(pieces) == run([whole])


@given(STEPS, st.lists(st.sampled_from("CHMRTLNBEAKQ"), max_size=20))
def test_whatever_is_declined_or_silent_the_codec_says_only_what_may_come(steps, order):
    codec = agreed(steps)
    say = {
        "C": lambda: codec.connect("a", "192.0.2.1", 25),
        "H": lambda: codec.helo("a", {"j": "x"}),
        "M": lambda: codec.mail(["<a@b>"], {}),
        "R": lambda: codec.rcpt(["<a@b>"], {}),
        "T": lambda: codec.data({}),
        "L": lambda: codec.header(b"A", b"b"),
        "N": lambda: codec.eoh({}),
        "B": lambda: codec.body(b"x"),
        "E": lambda: codec.end({}),
        "A": codec.abort,
        "K": lambda: codec.quit(keep=True),
        "Q": codec.quit,
    }
    for letter in order:
        before = codec.phase
        try:
            said = say[letter]()
        except ValueError:
            assert codec.phase is before
            continue
        if codec.awaited:
            assert said
            codec.receive(CONTINUE)
            assert codec.awaited is None


def content_ahead(codec: Codec, fields: int, pieces: int) -> None:
    """A message's content and its end, all said before anything is answered."""
    codec.connect("a", "192.0.2.1", 25)
    if codec.awaited:
        codec.receive(CONTINUE)
    for say in (lambda: codec.mail(["<a@b>"], {}), lambda: codec.rcpt(["<a@b>"], {}), lambda: codec.data({})):
        say()
        if codec.awaited:
            codec.receive(CONTINUE)
    for _ in range(fields):
        codec.header(b"A", b"b")
    codec.eoh({})
    for _ in range(pieces):
        codec.body(b"x")
    codec.end({})


@given(STEPS, st.integers(0, 5), st.integers(0, 3), st.data())
def test_content_said_ahead_is_answered_in_its_order_up_to_what_settles_the_message(steps, fields, pieces, data):
    codec = agreed(steps)
    content_ahead(codec, fields, pieces)
    due = list(codec._due)
    assert due[-1] is Command.END and codec.due == len(due)
    settled = data.draw(st.integers(0, len(due) - 1))
    with contextlib.suppress(MilterError):
        events = codec.receive(CONTINUE * settled + REJECT + CONTINUE * (len(due) - settled - 1))
        assert [event.said for event in events] == [Said.CONTINUE] * settled + [Said.REJECT]
        assert codec.awaited is None
        assert codec.phase is (Phase.SESSION if settled == len(due) - 1 else Phase.CLOSED)
        assert (codec.trouble is None) is (settled == len(due) - 1)
        assert not codec.reusable


def test_only_content_may_be_said_ahead():
    codec = agreed()
    codec.connect("a", "192.0.2.1", 25)
    for say in (lambda: codec.helo("a", {}), lambda: codec.mail(["<a@b>"], {}), codec.abort, codec.quit):
        with pytest.raises(ValueError, match="is due"):
            say()
    codec = agreed()
    content_ahead(codec, 1, 1)
    for say in (codec.abort, codec.quit, lambda: codec.mail(["<a@b>"], {})):
        with pytest.raises(ValueError, match=r"due|cannot"):
            say()


FIELDS = [HeaderField(name, f"{name}: x\r\n".encode()) for name in ("A", "B", "A", "Subject")]
NAMES = st.one_of(st.sampled_from(["A", "b", "X"]), TEXT)
CHANGES = st.one_of(
    st.builds(HeaderAdded, NAMES, st.text(max_size=30)),
    st.builds(HeaderInserted, st.integers(0, 8), NAMES, st.text(max_size=30)),
    st.builds(HeaderChanged, st.integers(0, 5), NAMES, st.text(max_size=30)),
    st.builds(BodyReplaced, st.binary(max_size=30)),
    st.builds(SenderChanged, TEXT, TEXT),
    st.builds(RecipientAdded, TEXT, TEXT),
    st.builds(RecipientDeleted, TEXT),
    st.builds(Quarantined, TEXT),
)


@given(st.lists(CHANGES, max_size=10), st.booleans())
def test_no_change_breaks_out_of_its_field(changes: list[Modification], leading_space: bool):
    collected = Changes(FIELDS, leading_space=leading_space, most=8, body_size=100)

    async def take() -> None:
        for change in changes:
            await collected.take(change)

    with contextlib.suppress(MilterError):
        asyncio.run(take())
    for edit in collected.edits():
        if isinstance(edit, (AddHeader, ChangeHeader)):
            assert "\r" not in edit.value
    for field in apply_edits(FIELDS, collected.edits()):
        first, *others = field.raw.removesuffix(b"\r\n").split(b"\r\n")
        assert first.startswith(field.name.encode() + b":")
        assert all(line[:1] in (b" ", b"\t") and line.strip(b" \t") for line in others)
        assert b"\n" not in field.raw.replace(b"\r\n", b"")


@given(st.lists(CHANGES, max_size=10))
def test_fields_are_numbered_as_they_are_when_the_edits_are_made(changes: list[Modification]):
    """What `Changes` thinks of the order of fields is what the edits lead to."""
    collected = Changes(FIELDS, leading_space=False, most=100, body_size=1000)

    async def take() -> None:
        for change in changes:
            await collected.take(change)

    try:
        asyncio.run(take())
    except MilterError:
        return
    made = [field.name.lower() for field in apply_edits(FIELDS, collected.edits())]
    assert made == collected.names
