"""A next hop on loopback that does what a test tells it, and remembers what it was told."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import uvloop

from gateway.mail.address import NULL_SENDER, Address, Sender, parse_mailbox
from gateway.mail.envelope import MailParameters, Origin, Recipient
from gateway.mail.message import Content
from gateway.sdk.testing import BytesContent, FakeDns
from gateway.transport.options import PLAIN_HOP, HopOptions, SmtpOptions, Timeouts
from gateway.transport.smtp import SmtpTransport
from gateway.transport.transport import Delivery, Destination, Kind, Outcome, Security
from tests.support.process import free_port

_T = TypeVar("_T")

LOOP = "uvloop"
NO_PARAMETERS = MailParameters()
EXTENSIONS = ("PIPELINING", "SIZE", "8BITMIME", "ENHANCEDSTATUSCODES", "DSN")


class Link:
    """One connection, from the next hop's side."""

    def __init__(self, peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peer = peer
        self.reader = reader
        self.writer = writer

    async def say(self, *replies: str) -> None:
        self.writer.write("".join(f"{reply}\r\n" for reply in replies).encode())
        await self.writer.drain()

    async def hear(self, *verbs: str) -> list[str]:
        """The next commands, which must begin with these words; at the end of the connection, ConnectionError."""
        lines = []
        for verb in verbs:
            raw = await self.reader.readline()
            if not raw.endswith(b"\n"):
                raise ConnectionResetError("the client has gone")
            line = raw.decode().rstrip("\r\n")
            self.peer.heard.append(line)
            self.peer.news.set()
            if line == "QUIT" != verb:
                await self.say("221 bye")
                raise ConnectionResetError("the client has said goodbye")
            assert line.upper().startswith(verb.upper()), f"expected {verb}, heard {line}"
            lines.append(line)
        return lines

    async def content(self) -> bytes:
        """Content up to the final dot, still with its doubled dots."""
        data = await self.reader.readuntil(b"\r\n.\r\n")
        self.peer.contents.append(data[:-3])
        return data

    async def chunk(self) -> tuple[bytes, bool]:
        """The next BDAT: its octets, and whether it is the last."""
        (line,) = await self.hear("BDAT")
        octets = await self.reader.readexactly(int(line.split()[1]))
        self.peer.contents.append(octets)
        return octets, line.endswith(" LAST")

    async def greet(self, *extensions: str) -> None:
        """Greeting and EHLO."""
        await self.say("220 peer.test ESMTP")
        await self.hello(*extensions)

    async def hello(self, *extensions: str) -> None:
        await self.hear("EHLO")
        lines = ["peer.test", *(extensions or EXTENSIONS)]
        await self.say(*(f"250{'-' if i + 1 < len(lines) else ' '}{line}" for i, line in enumerate(lines)))

    async def take(self, rcpts: int = 1, reply: str = "250 2.0.0 taken") -> None:
        """One pipelined transaction without a hitch."""
        await self.hear("MAIL", *["RCPT"] * rcpts, "DATA")
        await self.say(*["250 ok"] * (1 + rcpts), "354 go on")
        await self.content()
        await self.say(reply)

    async def start_tls(self, context: ssl.SSLContext) -> None:
        await self.hear("STARTTLS")
        await self.say("220 go ahead")
        plain = self.writer.transport
        try:
            await self.writer.start_tls(context)
        except AttributeError:
            # A StreamWriter of Python 3.11 trips over its own None when the client gave up the handshake.
            self.writer._transport = plain  # type: ignore[attr-defined]  # StreamWriter's, which types do not show
            raise ConnectionResetError("the handshake failed") from None

    async def end(self) -> None:
        """Wait for the client to go, with or without QUIT."""
        while raw := await self.reader.readline():
            self.peer.heard.append(raw.decode().rstrip("\r\n"))
            if raw == b"QUIT\r\n":
                await self.say("221 bye")

    def drop(self) -> None:
        """Close without a word."""
        self.writer.transport.abort()


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a test's coroutine, bounded in time, on the event loop that `LOOP` names."""

    async def bounded() -> _T:
        return await asyncio.wait_for(main, 20)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop if LOOP == "uvloop" else None) as runner:
        return runner.run(bounded())


def statuses(outcomes: list[Outcome]) -> list[str]:
    """Outcomes as ``delivered 2.0.0``."""
    return [f"{outcome.result} {outcome.reply.status}" for outcome in outcomes]


Script = Callable[[Link], Awaitable[None]]


class Peer:
    """The server: each connection gets the next script, the last one again and again."""

    def __init__(self, scripts: tuple[Script, ...]) -> None:
        self.heard: list[str] = []
        self.contents: list[bytes] = []
        self.connections = 0
        self.port = 0
        self.failures: list[BaseException] = []
        self._scripts = scripts
        self.news = asyncio.Event()
        self._links: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = self._scripts[min(self.connections, len(self._scripts) - 1)]
        self.connections += 1
        self._links.add(writer)
        try:
            await script(Link(self, reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # The client went away or did not want our certificate; the test looks at the client's side.
        except AssertionError as error:
            self.failures.append(error)
        finally:
            writer.transport.abort()
            self._links.discard(writer)
            self.news.set()

    def count(self, verb: str) -> int:
        return sum(line.upper().startswith(verb) for line in self.heard)

    async def until(self, verb: str) -> None:
        """Wait until a connection has ended after this verb was heard."""
        await self.until_heard(verb)
        while self._links:
            await self._more()

    async def until_heard(self, verb: str) -> None:
        while not self.count(verb):
            await self._more()

    async def _more(self) -> None:
        self.news.clear()
        await asyncio.wait_for(self.news.wait(), 10)


@asynccontextmanager
async def peer(*scripts: Script) -> AsyncIterator[Peer]:
    """A peer on a port of its own; a failed expectation of a script fails the test."""
    it = Peer(scripts)
    it.port = free_port()
    server = await asyncio.start_server(it.serve, "127.0.0.1", it.port, limit=32 << 20)
    try:
        yield it
    finally:
        server.close()
        for writer in list(it._links):
            writer.transport.abort()
        await server.wait_closed()
    if it.failures:
        raise it.failures[0]


def recipient(text: str = "anna@example.net") -> Recipient:
    return Recipient(parse_mailbox(text, utf8=True))


def delivery(
    *recipients: str | Recipient,
    content: bytes | Content = b"Subject: x\r\n\r\nHello\r\n",
    sender: str = "ben@example.org",
    parameters: MailParameters = NO_PARAMETERS,
    origin: Origin | None = None,
) -> Delivery:
    """A delivery; strings are addresses."""
    whom = tuple(recipient(r) if isinstance(r, str) else r for r in recipients or ("anna@example.net",))
    from_: Sender | Address = parse_mailbox(sender, utf8=True) if sender else NULL_SENDER
    body = BytesContent(content) if isinstance(content, bytes) else content
    return Delivery("ID", from_, parameters, whom, body, origin)


def transport(
    port: int,
    *,
    host: str = "127.0.0.1",
    kind: Kind = Kind.SMTP,
    security: Security = Security.NONE,
    tls_ca: str = "",
    dns: FakeDns | None = None,
    hop: HopOptions = PLAIN_HOP,
    **options: object,
) -> SmtpTransport:
    """A transport to a peer; `options` are those of `SmtpOptions`."""
    destination = Destination(kind, host, port, security=security, tls_ca=tls_ca, hop=hop)
    defaults: dict[str, object] = {"hostname": "gate.test", "timeouts": Timeouts(quit=1.0), **options}
    return SmtpTransport(destination, SmtpOptions(**defaults), dns or FakeDns())  # type: ignore[arg-type]  # its own fields
