"""A next hop that answers as it pleases: no mail is lost, none counts as delivered that was not taken, and nothing is
said in the clear where TLS is required.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator, Iterator
from functools import cache
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.mail.envelope import MailParameters, Origin
from gateway.transport.options import Credentials, HopOptions, Timeouts
from gateway.transport.transport import Kind, Outcome, Result, Security
from tests.support.certificates import make_ca
from tests.support.process import new_directory
from tests.transport.peer import Link, delivery, peer, run, transport

QUICK = Timeouts(hello=0.3, tls=0.5, command=0.3, data=0.3, block=0.3, dot=0.3, quit=0.2)
LINE = b".dotted line of some content\r\n"
PEOPLE = ("anna@x.test", "ben@x.test")
ORIGIN = Origin(ipaddress.ip_address("192.0.2.7"), 4711, "client.test", "helo.test")
MOODS = ("ok", "other", "354", "450", "550", "500", "421", "garbage", "endless", "twice", "drop", "half", "silence")
TAPES = st.lists(st.sampled_from(MOODS[:1] * 12 + MOODS), max_size=16)


@cache
def server_context() -> ssl.SSLContext:
    return make_ca().issue("localhost").server(new_directory("hostile"))


class Content:
    """Two blocks, so that there are two chunks."""

    eight_bit = False
    block = LINE * 5000
    size = 2 * len(block)

    async def blocks(self) -> AsyncIterator[bytes]:
        yield self.block
        yield self.block


class Hop:
    """Speaks SMTP or LMTP well, but for the moods on its tape: one for each reply, and good ones when it has ended."""

    def __init__(self, tape: list[str], offers: tuple[str, ...], *, lmtp: bool) -> None:
        self.tape: Iterator[str] = iter(tape)
        self.offers = offers
        self.lmtp = lmtp
        self.secure = False
        self.in_the_clear: set[str] = set()
        self.taken: set[str] = set()
        self.confused = False
        """It said more than it was asked for, so that nobody can tell what answered what."""
        self.refused = False
        self.accepted: list[str] = []
        self.content = b""
        self.whole = True

    async def say(self, link: Link, good: str, *more: str) -> bool:
        """Answer by the next mood; whether that was the good reply."""
        mood = next(self.tape, "ok")
        self.refused = self.refused or mood in ("550", "500")
        match mood:
            case "ok":
                await link.say(*more, good)
                return good[0] in "23"
            case "other":
                other = "250 well" if good[0] == "3" else "220 well"
                await link.say(other)
                return good[0] == "2"
            case "twice":
                self.confused = True
                await link.say(*more, good, good)
                return True
            case "354" | "450" | "550" | "500" | "421":
                await link.say(f"{mood} odd")
                if mood == "421":
                    link.drop()
                return False
            case "garbage":
                await link.say("\0\xff not SMTP")
            case "endless":
                await link.say(*["250-more"] * 500)
            case "half":
                link.writer.write(b"250 hal")
                await link.writer.drain()
                link.drop()
            case "silence":
                await link.reader.read()
        link.drop()
        raise ConnectionResetError

    async def serve(self, link: Link) -> None:
        self.secure = False
        self.accepted = []
        await self.say(link, "220 hop.test")
        while line := await link.reader.readline():
            verb, _, rest = line.decode().rstrip("\r\n").partition(" ")
            if not self.secure:
                self.in_the_clear.add(verb)
            handler = getattr(self, f"on_{verb.lower()}", None)
            if verb == "QUIT" or handler is None:
                await link.say("221 bye" if verb == "QUIT" else "500 what?")
                self.confused = self.confused or verb != "QUIT"
                return
            await handler(link, rest)

    async def on_ehlo(self, link: Link, rest: str) -> None:
        offers = [o for o in self.offers if o != "STARTTLS" or not self.secure]
        await self.say(link, "250 SIZE", "250-hop.test", *[f"250-{offer}" for offer in offers])

    on_lhlo = on_ehlo

    async def on_helo(self, link: Link, rest: str) -> None:
        await self.say(link, "250 hop.test")

    async def on_starttls(self, link: Link, rest: str) -> None:
        if await self.say(link, "220 go ahead"):
            await link.writer.start_tls(server_context())
            self.secure = True

    async def on_auth(self, link: Link, rest: str) -> None:
        await self.say(link, "235 in")

    async def on_xclient(self, link: Link, rest: str) -> None:
        await self.say(link, "220 hop.test")

    async def on_xforward(self, link: Link, rest: str) -> None:
        await self.say(link, "250 ok")

    async def on_mail(self, link: Link, rest: str) -> None:
        self.accepted, self.content, self.whole = [], b"", True
        await self.say(link, "250 ok")

    async def on_rset(self, link: Link, rest: str) -> None:
        self.accepted = []
        await self.say(link, "250 ok")

    async def on_rcpt(self, link: Link, rest: str) -> None:
        if await self.say(link, "250 ok"):
            self.accepted.append(rest[rest.index("<") + 1 : rest.index(">")])

    async def on_data(self, link: Link, rest: str) -> None:
        if not self.accepted:
            await self.say(link, "503 nobody")
        elif await self.say(link, "354 go on"):
            data = await link.reader.readuntil(b"\r\n.\r\n")
            self.content = data[:-3].replace(b"\r\n..", b"\r\n.").removeprefix(b".")
            await self.end(link)

    async def on_bdat(self, link: Link, rest: str) -> None:
        size, _, last = rest.partition(" ")
        self.content += await link.reader.readexactly(int(size))
        if not self.accepted:
            await self.say(link, "503 nobody")
        elif last:
            await self.end(link)
        else:
            self.whole = await self.say(link, "250 ok") and self.whole

    async def end(self, link: Link) -> None:
        people, self.accepted = self.accepted, []
        for person in people if self.lmtp else people[:1]:
            if await self.say(link, "250 2.0.0 taken"):
                assert self.content in (LINE * 10_000, LINE * 3), "the content came whole"
                if self.whole:
                    self.taken |= {person} if self.lmtp else set(people)


def attempt(hop: Hop, *, large: bool, security: Security = Security.NONE, **options: Any) -> list[Outcome]:
    async def main() -> list[Outcome]:
        async with peer(hop.serve) as it:
            kind = Kind.LMTP if hop.lmtp else Kind.SMTP
            t = transport(
                it.port, kind=kind, security=security, hop=HopOptions(**options), timeouts=QUICK, max_addresses=1
            )
            content = Content() if large else LINE * 3
            outcomes = await t.deliver(delivery(*PEOPLE, content=content, origin=ORIGIN, parameters=MailParameters()))
            await asyncio.wait_for(t.close(), 5)
        return outcomes

    return run(main())


def judge(hop: Hop, outcomes: list[Outcome]) -> None:
    """What holds for whatever was said."""
    assert len(outcomes) == len(PEOPLE)
    for person, outcome in zip(PEOPLE, outcomes, strict=True):
        if outcome.result is Result.DELIVERED:
            assert hop.confused or person in hop.taken, "a false success"
        elif outcome.result is Result.FAILED:
            assert hop.refused or hop.confused, "nobody refused it for good"


OFFERS = st.lists(st.sampled_from(["PIPELINING", "CHUNKING", "8BITMIME", "DSN"]), unique=True).map(tuple)


@settings(max_examples=40, deadline=None)
@given(TAPES, OFFERS, st.booleans(), st.booleans())
@example(["ok", "ok", "ok", "ok", "ok", "drop"], ("PIPELINING", "CHUNKING"), False, False)
@example(["ok", "ok", "ok", "ok", "550", "ok", "450"], ("PIPELINING", "CHUNKING"), True, True)
@example(["ok", "ok", "ok", "ok", "ok", "ok", "half"], ("CHUNKING",), True, False)
@example(["ok", "ok", "ok", "ok", "ok", "500"], ("CHUNKING", "PIPELINING"), False, False)
@example(["ok", "ok", "ok", "ok", "ok", "450"], ("CHUNKING", "PIPELINING"), True, False)
@example(["ok", "ok", "ok", "ok", "ok", "550"], ("CHUNKING",), True, True)
@example(["ok", "ok", "ok", "ok", "ok", "354"], ("CHUNKING", "PIPELINING"), True, False)
def test_no_answer_to_data_or_chunks_loses_mail_or_makes_a_false_success(tape, offers, large, lmtp):
    hop = Hop(tape, offers, lmtp=lmtp)
    judge(hop, attempt(hop, large=large))


@settings(max_examples=25, deadline=None)
@given(TAPES, st.booleans())
@example(["ok", "ok", "ok", "ok", "twice"], True)
@example(["ok", "ok", "ok", "ok", "drop"], True)
@example(["ok", "ok", "ok", "other", "550"], False)
def test_no_answer_to_introductions_and_logins_does_either(tape, pipelining):
    offers = ("AUTH PLAIN", "XCLIENT ADDR NAME HELO", "XFORWARD ADDR NAME IDENT", "CHUNKING")
    hop = Hop(tape, (*offers, *["PIPELINING"] * pipelining), lmtp=False)
    auth = Credentials("user", password_env="HOME", without_tls=True)
    outcomes = attempt(hop, large=False, xclient=True, xforward=True, auth=auth)
    judge(hop, outcomes)
    assert "MAIL" not in hop.in_the_clear or "AUTH" in hop.in_the_clear


@settings(max_examples=20, deadline=None)
@given(TAPES, st.booleans())
@example(["ok", "ok", "twice"], True)
@example(["ok", "ok", "other"], True)
@example(["ok", "ok", "ok", "ok", "half"], False)
@example(["ok", "ok", "550"], True)
def test_where_tls_is_required_nothing_is_said_in_the_clear(tape, login):
    hop = Hop(tape, ("STARTTLS", "AUTH PLAIN", "CHUNKING", "PIPELINING"), lmtp=False)
    auth = Credentials("user", password_env="HOME") if login else None
    outcomes = attempt(hop, large=False, security=Security.REQUIRE, auth=auth)
    judge(hop, outcomes)
    assert hop.in_the_clear <= {"EHLO", "HELO", "STARTTLS", "QUIT"} or hop.confused
    assert not hop.in_the_clear & {"MAIL", "AUTH", "RCPT", "DATA", "BDAT"}
