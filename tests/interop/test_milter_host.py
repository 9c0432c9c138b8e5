"""Milter classes behave inside Gatepost as they do behind libmilter and Postfix.

Dialogue by dialogue there are the same callbacks with the same arguments, the same refusals, and the same messages at
the next hop. What may differ is written down here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.support.both_ways import Delivered, GatepostDoor, Met, PostfixDoor, delivered, talk
from tests.support.postfix import SmtpSink

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Dialogue:
    """What a client says to a class; `id` is in the messages, too."""

    milter: str
    id: str
    lines: tuple[bytes, ...]
    source: str = "127.0.0.1"


def message(id: str, more: bytes = b"", body: bytes = b"Hello.\r\n..dot\r\n") -> bytes:
    head = (
        b"Received: from a.example\r\n\tby b.example; now\r\nX-Case: " + id.encode() + b"\r\n"
        b"From: Ann <ann@sender.example>\r\nDate: Sun, 01 Nov 2026 10:00:00 +0000\r\nMessage-Id: <1@sender.example>\r\n"
        b"Subject:  two  spaces \r\nX-Tab:\ttab\r\nX-None:none\r\nX-Folded: one\r\n  two\r\n"
        b"X-Twice: 1\r\nX-Gone: a\r\nX-Twice: 2\r\nX-Gone-Too: b\r\n"
        b"X-Many: 1\r\nX-Many: 2\r\nX-Many: 3\r\nX-Many: 4\r\n"
    )
    return head + more + b"\r\n" + body + b"."


def mail(
    content: bytes, *recipients: str, sender: str = "ben@sender.example", parameters: str = ""
) -> tuple[bytes, ...]:
    return (
        f"MAIL FROM:<{sender}>{parameters}".encode(),
        *(f"RCPT TO:<{recipient}>".encode() for recipient in recipients or ("anna@example.org",)),
        b"DATA",
        content,
    )


def simple(milter: str, *recipients: str, name: str = "", **more: Any) -> Dialogue:
    id = name or milter.lower()
    return Dialogue(milter, id, (b"EHLO client.example", *mail(message(id, **more), *recipients), b"QUIT"))


BIG = (b"x" * 70 + b"\r\n") * 2000
HELO = b"EHLO client.example"


def obedient() -> Iterator[Dialogue]:
    """Every code at every callback, and a second message after it where the session goes on."""
    for word in ("accept", "reject", "tempfail", "discard", "skip"):
        for where in ("hello", "envfrom", "envrcpt", "data", "header", "eoh", "body", "eom"):
            if (word, where) == ("discard", "hello"):
                continue  # behind Postfix the callbacks go on, and the message is discarded all the same
            id, asked = f"{word}-{where}", f"{word}.{where}"
            sender = f"{asked}@sender.example" if where == "envfrom" else "ben@sender.example"
            late = ("data", "eoh", "body", "eom", "envrcpt")
            recipients = ("a@example.org", *((f"{asked}@example.org",) if where in late else ()), "c@example.org")
            more = b"X-Asked: x\r\nX-Asks: " + asked.encode() + b"\r\nX-After: y\r\n" if where == "header" else b""
            content = message(id, more, BIG)
            yield Dialogue(
                "Obedient",
                id,
                (
                    f"EHLO {asked}.example".encode() if where == "hello" else HELO,
                    *mail(content, *recipients, sender=sender),
                    *mail(message(f"{id}-next"), "b@example.org"),
                    b"QUIT",
                ),
            )


REPLIES = ("plain", "status", "lines", "percent", "later", "contrary", "temporary", "refused", "ok")
EIGHT_BIT = b"X-Eight: \xff\xc3\xa4\r\n"
DIALOGUES: tuple[Dialogue, ...] = (
    simple("Recording", more=EIGHT_BIT),
    simple("Recording", name="big", body=BIG),
    simple("Recording", name="empty", body=b""),
    Dialogue("Recording", "null", (HELO, *mail(message("null"), sender=""), b"QUIT")),
    Dialogue(
        "Recording",
        "parameters",
        (
            HELO,
            b"MAIL FROM:<ben@sender.example> SIZE=1000 BODY=8BITMIME RET=HDRS ENVID=ab",
            b"RCPT TO:<anna@example.org> NOTIFY=NEVER ORCPT=rfc822;anna@example.org",
            b"DATA",
            message("parameters"),
            b"QUIT",
        ),
    ),
    Dialogue(
        "Recording",
        "given-up",
        (
            HELO,
            *mail(b"")[:2],
            b"RSET",
            b"NOOP",
            *mail(b"")[:2],
            b"EHLO again.example",
            *mail(message("given-up")),
            *mail(b"", sender="c@sender.example")[:2],
            b"QUIT",
        ),
    ),
    simple("Editing", "anna@example.org", "gone@example.org"),
    simple("Deleting"),
    simple("Quarantining"),
    replace(simple("Closed"), source="127.0.0.2"),
    simple("Spaced"),
    simple("Sparing", more=EIGHT_BIT),
    Dialogue(
        "Replying", "replying", (HELO, *mail(message("replying"), *(f"{w}@example.org" for w in REPLIES)), b"QUIT")
    ),
    Dialogue("Replying", "closing", (HELO, *mail(b"", "closing@example.org")[:2], b"QUIT")),
    *obedient(),
)
CLASSES = (*dict.fromkeys(dialogue.milter for dialogue in DIALOGUES), "Curious")
HELD = 1
"""Messages that are set aside, by Quarantining."""


@dataclass(frozen=True)
class Side:
    """One front door and what came of all dialogues with it."""

    met: dict[str, Met]
    delivered: dict[str, Delivered]
    macros: list[Any]


def played(door: PostfixDoor | GatepostDoor, sink: SmtpSink) -> Side:
    met = {dialogue.id: talk(door, dialogue.milter, dialogue.lines, dialogue.source) for dialogue in DIALOGUES}
    macros = talk(door, "Curious", simple("Curious", "anna@example.org", "ben@example.org").lines).calls
    door.settle(HELD)
    return Side(met, delivered(sink), [call[1:] for call in macros if call[0] == "macros"])


@pytest.fixture(scope="module")
def sides() -> Iterator[tuple[Side, Side]]:
    """Behind Postfix, and inside Gatepost."""
    sinks = [SmtpSink(dump=True) for _ in range(2)]
    doors: list[PostfixDoor | GatepostDoor] = []
    try:
        with pytest.MonkeyPatch.context() as patch:
            doors.append(PostfixDoor(CLASSES, sinks[0]))
            doors.append(GatepostDoor(CLASSES, sinks[1], patch))
            yield played(doors[0], sinks[0]), played(doors[1], sinks[1])
    finally:
        for one in (*doors, *sinks):
            one.stop()


def comparable(calls: Sequence[Any]) -> list[Any]:
    """Callbacks without what may differ.

    The client's port is another one. libmilter calls `abort` twice when a client leaves in the middle of a message (for
    Postfix says so twice); once is meant. Octets that no text can hold are the same octets.
    """
    out: list[Any] = []
    for name, *arguments in calls:
        if name == "connect" and len(arguments) == 3:
            arguments = [*arguments[:2], arguments[2][0]]
        if not (name == "abort" and out and out[-1][0] == "abort"):
            out.append([name, *arguments])
    return out


@pytest.mark.parametrize("dialogue", DIALOGUES, ids=lambda dialogue: dialogue.id)
def test_the_callbacks_and_their_arguments_are_the_same(sides, dialogue):
    postfix, gatepost = (comparable(side.met[dialogue.id].calls) for side in sides)
    assert len(postfix) >= 2
    assert gatepost == postfix


@pytest.mark.parametrize("dialogue", DIALOGUES, ids=lambda dialogue: dialogue.id)
def test_the_client_hears_the_same_refusals(sides, dialogue):
    # Words that are no milter's own are each MTA's: of those, code and status count.
    def heard(refusal: str) -> str:
        code, status, *_ = refusal.split()
        if dialogue.milter == "Closed":
            return code  # instead of the greeting, where Postfix says no status
        return f"{code} {status}" if status in ("5.7.1", "4.7.1") else refusal

    postfix, gatepost = (list(map(heard, side.met[dialogue.id].refusals)) for side in sides)
    assert gatepost == postfix


@pytest.mark.parametrize(
    "id", [d.id + more for d in DIALOGUES for more in ("", "-next") if not more or d.milter == "Obedient"]
)
def test_the_same_messages_arrive_with_the_same_changes(sides, id):
    postfix, gatepost = (side.delivered.get(id) for side in sides)
    assert gatepost == postfix


def test_enough_arrived_for_that_to_mean_something(sides):
    postfix, _ = sides
    assert len(postfix.delivered) > 40
    assert {"editing", "deleting", "spaced", "sparing", "skip-eom-next"} <= postfix.delivered.keys()
    assert not {"quarantining", "closed", "reject-eom", "discard-eom"} & postfix.delivered.keys()


OWN_VALUES = {
    "v": "each MTA's own name",
    "i": "each MTA's own queue id; Postfix has none before the second recipient",
    "{mail_host}": "Postfix says the next hop of a message to the sender",
    "{rcpt_host}": "Postfix says the next hop, Gatepost the domain",
}


def test_macros_that_postfix_gives_are_there_with_the_same_values_at_each_callback(sides):
    postfix, gatepost = (side.macros for side in sides)
    assert [callback for callback, _ in gatepost] == [callback for callback, _ in postfix]
    for (callback, theirs), (_, ours) in zip(postfix, gatepost, strict=True):
        assert theirs.keys() <= ours.keys(), callback
        for name in theirs.keys() - OWN_VALUES.keys():
            assert ours[name] == theirs[name], (callback, name)
