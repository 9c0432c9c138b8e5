"""The front door in this process: real listener, spool and pipeline on a loopback port, and a client of raw octets."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from gateway.kit.front import open_front, open_spool
from gateway.pipeline.loader import Catalog, Pipeline, load
from gateway.sdk import Plugin, Policy, Services
from gateway.services.clock import SystemClock
from gateway.smtp.conversation import Conversation
from gateway.smtp.domains import Domain, Domains
from gateway.smtp.intake import Desk
from gateway.smtp.lines import OpenLines
from gateway.smtp.listener import Front
from gateway.smtp.options import Limits, ListenerOptions, Networks, SmtpOptions, Timeouts, TlsMode
from gateway.spool.spool import Claimed, Spool, Step
from tests.support.process import new_directory

T = TypeVar("T")

HOSTNAME = "mx.example.org"
MESSAGE = b"From: a@sender.test\r\nTo: b@example.org\r\nSubject: x\r\n\r\nHello.\r\n"
PATIENCE = 10.0
"""Seconds after which a test that waits for an answer has failed."""


def networks(*texts: str) -> Networks:
    return Networks(tuple(ipaddress.ip_network(text) for text in texts))


def pipeline(entries: Sequence[Any] = (), *things: type[Plugin] | type[Policy], name: str = "default") -> Pipeline:
    """A pipeline of plugins and policies made for a test; nothing in it may use the network."""
    nobody: Any = None
    services = Services(nobody, nobody, SystemClock(), nobody, HOSTNAME, HOSTNAME)
    plugins = {thing.name: thing for thing in things if issubclass(thing, Plugin)}
    policies = {thing.name: thing for thing in things if issubclass(thing, Policy)}
    return load(name, entries, services, known=Catalog(plugins, policies))


@dataclass
class Client:
    """Says octets and hears replies."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    heard: list[str] = field(default_factory=list)

    def send(self, data: bytes) -> None:
        """Send, unless the other side is gone; what it said before that can still be heard."""
        if not self.writer.is_closing():
            self.writer.write(data)

    async def reply(self) -> str:
        """The next reply with its line ends as LF; empty at the end of the connection."""
        lines: list[str] = []
        while True:
            line = (await asyncio.wait_for(self.reader.readline(), PATIENCE)).decode("ascii")
            if not line:
                return "\n".join(lines)
            assert line.endswith("\r\n"), f"no whole reply line: {line!r}"
            assert line[:3].isdigit() and line[3] in "- ", f"no reply: {line!r}"
            lines.append(line[:-2])
            if line[3] == " ":
                self.heard.append("\n".join(lines))
                return self.heard[-1]

    async def line(self) -> bytes:
        """The next line as it came."""
        return await asyncio.wait_for(self.reader.readline(), PATIENCE)

    async def say(self, line: str | bytes) -> str:
        """Send a command line and give its reply."""
        self.send((line.encode() if isinstance(line, str) else line) + b"\r\n")
        return await self.reply()

    async def expect(self, line: str | bytes, code: str) -> str:
        """As `say`; the reply must begin with `code`."""
        reply = await self.say(line)
        assert reply.startswith(code), f"{line!r}: {reply!r}, expected {code}"
        return reply

    async def greeting(self, code: str = "220") -> str:
        reply = await self.reply()
        assert reply.startswith(code), f"greeting: {reply!r}"
        return reply

    async def hello(self) -> str:
        """Hear the greeting, say EHLO."""
        await self.greeting()
        return await self.expect("EHLO client.test", "250")

    async def envelope(self, *recipients: str, sender: str = "a@sender.test") -> None:
        await self.expect(f"MAIL FROM:<{sender}>", "250")
        for recipient in recipients or ("b@example.org",):
            await self.expect(f"RCPT TO:<{recipient}>", "250")

    async def message(self, content: bytes = MESSAGE, *recipients: str, sender: str = "a@sender.test") -> str:
        """A whole transaction by DATA; gives the last reply. `content` is sent as it is, then the final dot."""
        await self.envelope(*recipients, sender=sender)
        await self.expect("DATA", "354")
        self.send(content + b".\r\n")
        return await self.reply()

    async def ended(self) -> bool:
        """Whether the other side closes, and says nothing before it does."""
        try:
            return await asyncio.wait_for(self.reader.read(1), PATIENCE) == b""
        except ConnectionError:
            return True

    async def last_words(self) -> str:
        """Everything until the other side closes."""
        heard = b""
        try:
            while block := await asyncio.wait_for(self.reader.read(65536), PATIENCE):
                heard += block
        except ConnectionError:
            pass
        return heard.decode("ascii", "replace")

    async def drip(self, octets: bytes, every: float = 0.02) -> str:
        """Send `octets` again and again until the other side closes; gives everything it said."""
        words = asyncio.get_running_loop().create_task(self.last_words())
        while not words.done():
            self.send(octets)
            await asyncio.wait({words}, timeout=every)
        return words.result()

    async def starttls(self, context: ssl.SSLContext | None = None) -> None:
        await self.expect("STARTTLS", "220")
        await self.handshake(context)

    async def handshake(self, context: ssl.SSLContext | None = None) -> None:
        # The loop's own start_tls, since StreamWriter's is missing in some versions of uvloop's streams.
        context = context or trusting_context()
        await asyncio.wait_for(self.writer.start_tls(context, server_hostname="localhost"), PATIENCE)

    def close(self) -> None:
        self.writer.close()


def trusting_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Door:
    """A front door that is open. Made by `door`."""

    def __init__(self, front: Front, spool: Spool, port: int, directory: Path) -> None:
        self.front = front
        self.spool = spool
        self.port = port
        self.directory = directory
        self.clients: list[Client] = []
        self.rung = 0

    async def connect(self, source: str = "127.0.0.1", first: bytes = b"") -> Client:
        """A connection from `source`; `first` is sent at once."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0))
        client = Client(reader, writer)
        self.clients.append(client)
        if first:
            writer.write(first)
        return client

    async def connect_tls(self, first: bytes = b"", context: ssl.SSLContext | None = None) -> Client:
        """As `connect`, with implicit TLS; `first` goes before the handshake."""
        sock = socket.create_connection(("127.0.0.1", self.port))
        sock.sendall(first)
        sock.setblocking(False)
        context = context or trusting_context()
        reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname="localhost")
        client = Client(reader, writer)
        self.clients.append(client)
        return client

    async def session(self, source: str = "127.0.0.1") -> Client:
        """A connection that has said EHLO."""
        client = await self.connect(source)
        await client.hello()
        return client

    async def stored(self) -> list[Claimed]:
        """What is in the spool."""
        out = []
        for message in await self.spool.list():
            found = await self.spool.show(message.id)
            assert found is not None
            out.append(found)
        return out

    async def contents(self) -> list[bytes]:
        """The octets of each message in the spool."""
        return [b"".join([block async for block in m.content.blocks()]) for m in await self.stored()]

    async def bodies(self) -> list[bytes]:
        """As `contents`, without our Received field."""
        out = []
        for content in await self.contents():
            assert content.startswith(b"Received: from "), content
            _, found, rest = content.partition(b" +0000\r\n")
            assert found, content
            out.append(rest)
        return out

    async def record(self, id: str) -> dict[str, Any]:
        """The decision record of a transaction."""
        await asyncio.sleep(0)
        (explained,) = await self.spool.explain(id)
        return explained.record

    def servers(self) -> set[Conversation]:
        return self.front.servers


@contextlib.asynccontextmanager
async def door(
    *,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
    tls: ssl.SSLContext | None = None,
    implicit: bool = False,
    requiretls: bool = False,
    proxy: Networks | None = None,
    xclient: Networks | None = None,
    domains: Mapping[str, Domain] | None = None,
    pipelines: Mapping[str, Pipeline] | None = None,
    lines: OpenLines | None = None,
    spool: Callable[[Spool], Spool] = lambda spool: spool,
    on_step: Callable[[Step], None] = lambda step: None,
    **options: Any,
) -> AsyncIterator[Door]:
    """A front door that takes mail for example.org; `options` are those of `SmtpOptions`."""
    directory = new_directory("door")
    used = {"default": pipeline(), **(pipelines or {})}
    for each in used.values():
        await each.start()
    given = Domains(domains or {"example.org": Domain("example.org")})
    smtp = SmtpOptions(HOSTNAME, HOSTNAME, limits, timeouts, **options)
    listener = ListenerOptions(
        "",
        "default",
        tls,
        TlsMode.IMPLICIT if implicit else TlsMode.STARTTLS,
        proxy or networks(),
        xclient or networks(),
        requiretls,
    )
    opened: Door

    def ring() -> None:
        opened.rung += 1

    try:
        async with open_spool(directory, on_step) as real:
            desk = Desk(smtp, given, used, spool(real), SystemClock(), ring)
            try:
                async with open_front(desk, [listener], lines) as (front, (port,)):
                    opened = Door(front, real, port, directory)
                    yield opened
                    for client in opened.clients:
                        client.close()
                    await front.drain(PATIENCE)
                    # Whatever happened, every session was counted out again.
                    assert front.counter.sessions() == 0
            finally:
                for each in used.values():
                    await each.close()
    finally:
        shutil.rmtree(directory)


def run(test: Callable[[], Awaitable[T]]) -> T:
    """Run on the event loop that workers use."""

    async def main() -> T:
        return await test()

    return uvloop.run(main())
