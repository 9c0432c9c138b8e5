"""What stock aiosmtpd gets wrong, line by line: the same dialogue must hold at our door and must not at its own.

So no line can come to be true for want of asking, and a fix upstream shows itself: then what we replaced can go.
docs/decisions/0001-front-door.md has the list.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest
from aiosmtpd.controller import Controller

from gateway.mail.address import NULL_SENDER
from gateway.smtp.data import Newlines
from gateway.smtp.listener import tls_context
from gateway.smtp.options import Limits, Timeouts
from tests.smtp.door import Client, Door, door, networks, run
from tests.smtp.faults import failing
from tests.support.process import free_port
from tests.support.servers import Certificate

HEADER = b"PROXY TCP4 192.0.2.7 127.0.0.1 999 25\r\n"


class Side(Protocol):
    """One of the two doors, as the dialogues see it."""

    async def connect(self, first: bytes = b"") -> Client: ...

    async def contents(self) -> list[bytes]:
        """The messages that were taken."""

    async def clients(self) -> list[str]:
        """Whom they came from, as far as whoever judges them can tell."""

    async def senders(self) -> list[Any]:
        """Their senders, as whoever judges them sees them."""


class Ours:
    """Gatepost."""

    def __init__(self, opened: Door) -> None:
        self._door = opened

    async def connect(self, first: bytes = b"") -> Client:
        return await self._door.connect(first=first)

    async def contents(self) -> list[bytes]:
        return await self._door.bodies()

    async def clients(self) -> list[str]:
        records = [await self._door.record(stored.message.id) for stored in await self._door.stored()]
        return [record["client"]["ip"] for record in records]

    async def senders(self) -> list[Any]:
        return [stored.message.envelope.sender for stored in await self._door.stored()]


class Handler:
    """A plain handler, that keeps what it is given."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []
        self.clients: list[str] = []
        self.senders: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.contents.append(envelope.content)
        proxied = session.proxy_data
        self.clients.append(str(proxied.src_addr) if proxied else session.peer[0])
        self.senders.append(envelope.mail_from)
        return "250 OK"


class Trusting(Handler):
    """As one must write it for PROXY headers to be taken at all."""

    async def handle_PROXY(self, server: Any, session: Any, envelope: Any, data: Any) -> bool:
        return True


class Broken(Handler):
    """With a bug."""

    async def handle_MAIL(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        raise RuntimeError("secret")


class Stock:
    """aiosmtpd as it comes."""

    def __init__(self, port: int, handler: Handler) -> None:
        self._port = port
        self._handler = handler
        self.opened: list[Client] = []

    async def connect(self, first: bytes = b"") -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self._port))
        client.send(first)
        self.opened.append(client)
        return client

    async def contents(self) -> list[bytes]:
        return self._handler.contents

    async def clients(self) -> list[str]:
        return self._handler.clients

    async def senders(self) -> list[Any]:
        return self._handler.senders


@contextlib.asynccontextmanager
async def stock(handler: Handler, **options: Any) -> AsyncIterator[Stock]:
    controller = Controller(handler, hostname="127.0.0.1", port=free_port(), **options)
    controller.start()
    side = Stock(controller.port, handler)
    try:
        yield side
    finally:
        for client in side.opened:
            client.close()
        controller.stop()


Dialogue = Callable[[Side], Awaitable[bool]]


@dataclass(frozen=True)
class Row:
    """A promise as a dialogue that gives True where it is kept, and how to open the two doors for it."""

    dialogue: Dialogue
    ours: dict[str, Any] = field(default_factory=dict)
    handler: type[Handler] = Handler
    stock: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.dialogue.__name__


async def proxy_data_lasts_through_starttls(side: Side) -> bool:
    client = await side.connect(HEADER)
    await client.hello()
    await client.starttls()
    await client.expect("EHLO client.test", "250")
    await client.message()
    return await side.clients() == ["192.0.2.7"]


async def the_null_sender_is_no_string(side: Side) -> bool:
    client = await side.connect()
    await client.hello()
    await client.message(sender="")
    return await side.senders() == [NULL_SENDER]


async def auth_is_not_offered_over_tls(side: Side) -> bool:
    client = await side.connect()
    await client.hello()
    await client.starttls()
    return "AUTH" not in await client.expect("EHLO client.test", "250")


async def ehlo_offers_what_an_edge_needs(side: Side) -> bool:
    client = await side.connect()
    offered = {line[4:].split()[0] for line in (await client.hello()).splitlines()[1:]}
    wanted = {"PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN", "CHUNKING", "STARTTLS"}
    return offered == wanted


async def dsn_parameters_are_taken(side: Side) -> bool:
    client = await side.connect()
    await client.hello()
    replies = [
        await client.say("MAIL FROM:<a@sender.test> RET=HDRS ENVID=QqAb+2B"),
        await client.say("RCPT TO:<b@example.org> NOTIFY=NEVER ORCPT=rfc822;B+40Example.ORG"),
    ]
    return all(reply.startswith("250") for reply in replies)


async def paths_need_brackets(side: Side) -> bool:
    client = await side.connect()
    await client.hello()
    return (await client.say("MAIL FROM:a@sender.test")).startswith("501")


async def a_command_that_ends_in_a_bare_line_feed_can_be_refused(side: Side) -> bool:
    client = await side.connect()
    await client.hello()
    client.send(b"NOOP\n")
    return (await client.reply()).startswith("500")


async def no_bare_line_end_is_kept(side: Side) -> bool:
    client = await side.connect()
    await client.hello()
    await client.message(b"Subject: x\r\n\r\none\n.\r\ntwo\r.\r\nthree\r\n")
    (content,) = await side.contents()
    return not re.search(rb"\r(?!\n)|(?<!\r)\n", content)


async def a_long_line_arrives(side: Side) -> bool:
    client = await side.connect()
    await client.hello()
    content = b"Subject: x\r\n\r\n" + b"x" * 5000 + b"\r\n"
    await client.message(content)
    return await side.contents() == [content]


async def memory_does_not_grow_with_the_message(side: Side) -> bool:
    client = await side.connect()
    await client.hello()
    await client.envelope()
    await client.expect("DATA", "354")
    client.send(b"Subject: x\r\n\r\n")
    tracemalloc.start()
    try:
        block = (b"x" * 998 + b"\r\n") * 64
        for _ in range(400):
            client.send(block)
            await client.writer.drain()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    client.send(b".\r\n")
    assert (await client.reply()).startswith("250")
    return grown < 4_000_000


async def an_http_verb_ends_the_session(side: Side) -> bool:
    client = await side.connect()
    await client.greeting()
    client.send(b"POST / HTTP/1.1\r\nHost: x\r\n\r\nQUIT\r\n")
    replies = (await client.last_words()).splitlines()
    return len(replies) == 1


async def the_length_limit_stays_what_it_is(side: Side) -> bool:
    client = await side.connect()
    await client.hello()
    line = ("MAIL FROM:<" + "a" * 60 + "@" + ".".join(["b" * 50] * 3) + ">").ljust(603)
    before = await client.say(line)
    for _ in range(2):
        await client.expect("EHLO client.test", "250")
    return await client.say(line) == before


NO_ADDRESSES = [
    "(c)a@sender.test",
    "a@sender..test",
    "a@-sender.test",
    "a@sender_.test",
    "a@[nonsense]",
    "a",
    "a b@c.test",
]


async def addresses_follow_the_grammar_of_smtp(side: Side) -> bool:
    client = await side.connect()
    await client.hello()
    taken = []
    for address in NO_ADDRESSES:
        reply = await client.say(f"MAIL FROM:<{address}>")
        if reply.startswith("250"):
            taken.append(address)
            await client.expect("RSET", "250")
    return not taken


async def a_proxy_header_from_a_stranger_is_refused(side: Side) -> bool:
    client = await side.connect(HEADER)
    return not (await client.reply()).startswith("220")


async def a_state_has_a_patience_of_its_own(side: Side) -> bool:
    client = await side.connect()
    await client.hello()
    await asyncio.sleep(0.3)
    await client.envelope()
    await client.expect("DATA", "354")
    waiting = asyncio.get_running_loop().create_task(client.reply())
    done, _ = await asyncio.wait({waiting}, timeout=0.6)
    waiting.cancel()
    return bool(done) and waiting.result().startswith("421")


async def sessions_of_one_client_are_limited(side: Side) -> bool:
    for _ in range(3):
        await (await side.connect()).greeting()
    late = await side.connect()
    return (await late.reply()).startswith("421")


async def a_bug_is_a_451_and_tells_nothing(side: Side) -> bool:
    client = await side.connect()
    await client.hello()
    reply = await client.say("MAIL FROM:<a@sender.test>")
    return reply.startswith("451 4.3.0") and "RuntimeError" not in reply and "secret" not in reply


TLS: Any = object()
"""Stands for the server's context, which needs files."""

PROXIED = {"proxy_protocol_timeout": 5, "tls_context": TLS}
ROWS = [
    Row(proxy_data_lasts_through_starttls, {"proxy": networks("127.0.0.0/8"), "tls": TLS}, Trusting, PROXIED),
    Row(the_null_sender_is_no_string),
    Row(auth_is_not_offered_over_tls, {"tls": TLS}, Handler, {"tls_context": TLS}),
    Row(ehlo_offers_what_an_edge_needs, {"tls": TLS}, Handler, {"tls_context": TLS, "enable_SMTPUTF8": True}),
    Row(dsn_parameters_are_taken),
    Row(paths_need_brackets),
    Row(a_command_that_ends_in_a_bare_line_feed_can_be_refused, {"newlines": Newlines.REJECT}),
    Row(no_bare_line_end_is_kept),
    Row(a_long_line_arrives),
    Row(memory_does_not_grow_with_the_message),
    Row(an_http_verb_ends_the_session),
    Row(the_length_limit_stays_what_it_is, {"limits": Limits(command_line=600)}),
    Row(addresses_follow_the_grammar_of_smtp),
    Row(a_proxy_header_from_a_stranger_is_refused, {"proxy": networks("192.0.2.0/24")}, Trusting, PROXIED),
    Row(a_state_has_a_patience_of_its_own, {"timeouts": Timeouts(data_block=0.2)}, Handler, {"timeout": 300}),
    Row(sessions_of_one_client_are_limited, {"limits": Limits(sessions_per_client=3)}),
    Row(a_bug_is_a_451_and_tells_nothing, {"spool": failing(check_room=RuntimeError("secret"))}, Broken),
]


def filled(options: dict[str, Any], context: ssl.SSLContext) -> dict[str, Any]:
    return {name: context if value is TLS else value for name, value in options.items()}


@pytest.fixture
def context(certificate: Certificate) -> ssl.SSLContext:
    return tls_context(str(certificate.certificate), str(certificate.key))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_our_door_keeps_the_promise(row: Row, context: ssl.SSLContext):
    async def test() -> bool:
        async with door(**filled(row.ours, context)) as opened:
            return await row.dialogue(Ours(opened))

    assert run(test)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_stock_aiosmtpd_does_not(row: Row, context: ssl.SSLContext):
    async def test() -> bool:
        async with stock(row.handler(), **filled(row.stock, context)) as side:
            return await row.dialogue(side)

    assert not run(test)
