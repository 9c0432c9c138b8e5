"""Content by BDAT, against peers that take it, refuse it, leave in the middle or do not know it after all."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.transport.options import HopOptions
from gateway.transport.transport import Kind, Outcome
from tests.transport.peer import Link, Peer, Script, delivery, peer, run, statuses, transport

SMALL_CONTENT = b"Subject: x\r\n\r\n.dot\r\n"
BLOCK = b"y" * 78 + b"\r\n"


class Blocks:
    """Content of so many large blocks; with `broken`, it cannot be read to its end."""

    eight_bit = False

    def __init__(self, count: int, *, broken: bool = False) -> None:
        self.block = BLOCK * 3000
        self.count = count
        self.size = count * len(self.block)
        self.broken = broken

    async def blocks(self) -> AsyncIterator[bytes]:
        for _ in range(self.count):
            yield self.block
        if self.broken:
            raise OSError("the disk is gone")


def attempt(
    *scripts: Script, content: bytes | Blocks = SMALL_CONTENT, times: int = 1, kind: Kind = Kind.SMTP, **hop: bool
) -> tuple[list[str], Peer]:
    """The statuses of so many deliveries to two recipients, one after the other."""

    async def main() -> tuple[list[Outcome], Peer]:
        async with peer(*scripts) as it:
            t = transport(it.port, kind=kind, hop=HopOptions(**hop))
            outcomes = []
            for _ in range(times):
                outcomes += await t.deliver(delivery("anna@x.test", "ben@x.test", content=content))
            await t.close()
        return outcomes, it

    outcomes, it = run(main())
    return statuses(outcomes), it


async def takes_chunks(link: Link) -> None:
    await link.greet("PIPELINING", "CHUNKING")
    while True:
        await link.hear("MAIL", "RCPT", "RCPT")
        await link.say("250 ok", "250 ok", "250 ok")
        last = False
        while not last:
            _, last = await link.chunk()
            await link.say("250 2.0.0 taken")


async def takes_data(link: Link) -> None:
    await link.greet("PIPELINING", "CHUNKING")
    while True:
        await link.take(2)


def answers(*replies: str, pipelining: bool = True) -> Script:
    """Takes the envelope, and answers each chunk with the next of these replies; after them, it closes."""

    async def script(link: Link) -> None:
        await link.greet("CHUNKING", *["PIPELINING"] * pipelining)
        for verb in ("MAIL", "RCPT", "RCPT"):
            await link.hear(verb)
            await link.say("250 ok")
        for reply in replies:
            await link.chunk()
            await link.say(reply)
        if replies[-1:] != ("250 2.0.0 taken",):
            link.drop()
        await link.end()

    return script


def test_a_small_content_is_one_chunk_without_doubled_dots_and_the_connection_is_kept():
    told, it = attempt(takes_chunks, times=2)
    assert told == ["delivered 2.0.0"] * 4
    assert it.contents == [SMALL_CONTENT] * 2 and it.connections == 1
    assert it.heard.count(f"BDAT {len(SMALL_CONTENT)} LAST") == 2 and "DATA" not in it.heard


@pytest.mark.parametrize("pipelining", [True, False])
def test_a_large_content_goes_in_chunks_and_arrives_whole(pipelining: bool):
    content = Blocks(3)
    told, it = attempt(answers(*["250 2.0.0 taken"] * 3, pipelining=pipelining), content=content)
    assert told == ["delivered 2.0.0"] * 2
    assert b"".join(it.contents) == content.block * 3
    assert [line.endswith("LAST") for line in it.heard if line.startswith("BDAT")] == [False, False, True]


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize(
    ("replies", "status"),
    [
        (("552 5.3.4 too big",), "failed 5.3.4"),
        (("250 ok", "452 4.3.1 full"), "deferred 4.3.1"),
        (("250 ok", "250 ok", "554 5.6.0 no"), "failed 5.6.0"),
        (("250 ok", "354 what?"), "deferred 4.5.0"),
        (("250 ok", "421 4.3.2 bye"), "deferred 4.3.2"),
        (("250 ok",), "deferred 4.4.2"),
        ((), "deferred 4.4.2"),
    ],
)
def test_a_chunk_that_is_refused_or_never_answered_is_no_success(pipelining, replies, status):
    told, it = attempt(answers(*replies, pipelining=pipelining), content=Blocks(3))
    assert told == [status] * 2
    assert it.connections == 1


def test_what_cannot_be_read_to_its_end_gets_no_last_chunk():
    async def main() -> None:
        async with peer(answers("250 ok", "250 ok", "250 ok")) as it:
            t = transport(it.port)
            with pytest.raises(OSError, match="the disk"):
                await t.deliver(delivery("anna@x.test", "ben@x.test", content=Blocks(3, broken=True)))
            await t.close()
        assert "LAST" not in " ".join(it.heard)

    run(main())


@pytest.mark.parametrize("reply", ["500 5.5.1 what?", "502 5.5.1 not here"])
def test_a_next_hop_that_does_not_know_bdat_gets_data_from_then_on(reply: str):
    told, it = attempt(answers(reply), takes_data, times=2)
    assert told == ["delivered 2.0.0"] * 4
    assert it.count("BDAT") == 1 and it.count("DATA") == 2 and it.connections == 2


def test_a_kept_connection_that_died_gets_no_content_before_the_envelope_is_answered():
    async def once(link: Link) -> None:
        await link.greet("PIPELINING", "CHUNKING")
        await link.hear("MAIL", "RCPT", "RCPT")
        await link.chunk()
        await link.say("250 ok", "250 ok", "250 ok", "250 2.0.0 taken")
        await link.hear("MAIL", "RCPT", "RCPT")
        assert not link.reader._buffer  # type: ignore[attr-defined]
        link.drop()

    told, it = attempt(once, takes_chunks, times=2)
    assert told == ["delivered 2.0.0"] * 4 and it.connections == 2 and len(it.contents) == 2


def test_chunking_can_be_switched_off():
    told, it = attempt(takes_data, chunking=False)
    assert told == ["delivered 2.0.0"] * 2 and it.count("BDAT") == 0


def test_lmtp_has_a_reply_for_each_recipient_after_the_last_chunk():
    async def store(link: Link) -> None:
        await link.say("220 store LMTP")
        await link.hear("LHLO")
        await link.say("250-store", "250-PIPELINING", "250 CHUNKING")
        await link.hear("MAIL", "RCPT", "RCPT")
        await link.say("250 ok", "250 ok", "250 ok")
        await link.chunk()
        await link.say("250 2.0.0 taken", "452 4.2.2 full")
        await link.end()

    told, it = attempt(store, kind=Kind.LMTP)
    assert told == ["delivered 2.0.0", "deferred 4.2.2"] and it.contents == [SMALL_CONTENT]
