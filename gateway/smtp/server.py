"""The front door: one instance per connection, and the only module that imports aiosmtpd.

aiosmtpd brings the protocol class, its life cycle and its table of commands. What it does with the bytes is replaced
here, row by row of the list in docs/decisions/0001-front-door.md: reading, writing, address parsing, DATA, TLS, PROXY,
timeouts, limits and the handling of our own errors.

*Promises*: only CRLF.CRLF ends DATA. Nothing read before a TLS handshake is used after it. Replies leave in order,
and in one write per pipelined group. An exception of ours is a 451, never a 5xx and never an accept.

*RFCs*: 5321, 2920 (PIPELINING), 1870 (SIZE), 6152 (8BITMIME), 6531 (SMTPUTF8), 2034 (ENHANCEDSTATUSCODES), 3461 (DSN),
3030 (CHUNKING), 3207 (STARTTLS).
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Protocol

from aiosmtpd.smtp import SMTP

from gateway.mail.reply import Reply
from gateway.mail.session import IPAddress, Session, Tls, new_session_id
from gateway.ops import log, metrics
from gateway.smtp import command as grammar
from gateway.smtp import proxy
from gateway.smtp.command import Bdat, CommandError
from gateway.smtp.data import ChunkDecoder, DataDecoder, Newlines
from gateway.smtp.inbox import Inbox, LineTooLong
from gateway.smtp.intake import TOO_BIG, Desk, Intake
from gateway.smtp.options import ListenerOptions, TlsMode
from gateway.spool.spool import SpoolError

_log = log.get()

OK: Final = Reply(250, "0.0", "ok")
SEND: Final = Reply(354, "", "send the message, end with <CRLF>.<CRLF>")
BYE: Final = Reply(221, "0.0", "goodbye")
TROUBLE: Final = Reply(451, "3.0", "local trouble, try again later")
NOT_KNOWN: Final = Reply(500, "5.1", "command not recognised")
HELO_FIRST: Final = Reply(503, "5.1", "say EHLO first")
MAIL_FIRST: Final = Reply(503, "5.1", "say MAIL first")
TOO_MANY_ERRORS: Final = Reply(421, "7.0", "too many errors")
TIMED_OUT: Final = Reply(421, "4.2", "timed out waiting for you")
DRAINING: Final = Reply(421, "3.2", "closing for maintenance, try again soon")
BUSY: Final = Reply(421, "3.2", "too many connections, try again later")
BUSY_CLIENT: Final = Reply(421, "7.0", "too many connections from you, try again later")
NOT_SMTP: Final = Reply(554, "5.1", "this is SMTP")
NO_PROXY: Final = Reply(421, "5.1", "no valid PROXY header")
EARLY: Final = Reply(554, "5.1", "data before it was asked for")


class Counter(Protocol):
    """Counts open sessions over all workers; a slot of `gateway.ops.board`."""

    def session_opened(self, client: IPAddress) -> None: ...

    def session_closed(self, client: IPAddress) -> None: ...

    def sessions(self) -> int: ...

    def sessions_of(self, client: IPAddress) -> int: ...


class Hall(Protocol):
    """What the connections of one worker share: the current desk, who is counted, whether we are closing."""

    desk: Desk
    draining: bool
    counter: Counter
    servers: set[Server]


class _End(Exception):
    """The session is over, how is already said."""


class Server(SMTP):
    """One connection. The methods named ``smtp_X`` are the commands; aiosmtpd's dispatch table is made of them once."""

    _commands: dict[str, Callable[[Server, str], Any]] = {}

    def __init__(self, hall: Hall, listener: ListenerOptions, loop: asyncio.AbstractEventLoop) -> None:
        # aiosmtpd's own __init__ scans all members of handler and protocol at each connection, and makes a stream
        # reader that stops at lines of 1001 octets; neither is wanted.
        self.loop = loop
        self.hall = hall
        self.desk = hall.desk
        self.listener = listener
        self.transport: Any = None
        self.session: Any = None
        self._timeout_handle: asyncio.TimerHandle | None = None
        self._handler_coroutine: asyncio.Task[None] | None = None
        self._inbox = Inbox(loop)
        self._out: list[bytes] = []
        self._deadline = 0.0
        self._hard_deadline = 0.0
        self._errors = 0
        self._greeted = False
        self._refused = False
        self._counted: IPAddress | None = None
        self._end = "quit"
        self._chunks: _Chunks | None = None
        self._blocked: asyncio.Future[None] | None = None
        self._in_tls = False
        self._busy = True
        self.intake: Intake = None  # type: ignore[assignment]  # there is one before the first command

    # The protocol's life

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._inbox.attach(transport)
        self.hall.servers.add(self)
        self._handler_coroutine = self.loop.create_task(self._handle_client(), name="smtp-session")

    def data_received(self, data: bytes) -> None:
        self._inbox.feed(data)

    def eof_received(self) -> bool:
        self._inbox.end()
        # A client that half-closes still gets its replies, except over TLS, which has no half-close.
        return not self._in_tls

    def pause_writing(self) -> None:
        self._blocked = self.loop.create_future()

    def resume_writing(self) -> None:
        if self._blocked is not None and not self._blocked.done():
            self._blocked.set_result(None)
        self._blocked = None

    def connection_lost(self, error: Exception | None) -> None:
        self._inbox.end()
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
        self.resume_writing()
        self.transport = None

    def drain(self) -> None:
        """Say goodbye now if nothing is under way; otherwise `_talk` does when the transaction is over."""
        if not self._busy and not self.intake.in_transaction:
            self._end = "draining"
            self._say(DRAINING)
            self._inbox.end()

    def abort(self) -> None:
        """Close now, whatever is under way."""
        if self._handler_coroutine is not None:
            self._handler_coroutine.cancel()

    # Time

    def _wait_until(self, seconds: float) -> None:
        """The client has `seconds` for its next contribution."""
        self._deadline = min(self.loop.time() + seconds, self._hard_deadline)
        if self._timeout_handle is None:
            self._timeout_handle = self.loop.call_at(self._deadline, self._timeout_cb)

    def _timeout_cb(self) -> None:
        """Timers are not moved at each command; a timer that fires too early just sets itself again."""
        self._timeout_handle = None
        if self.transport is None:
            return
        if self.loop.time() < self._deadline:
            self._timeout_handle = self.loop.call_at(self._deadline, self._timeout_cb)
            return
        self._end = "timeout"
        self._say(TIMED_OUT)
        self._write_out()
        self._inbox.end()
        self.transport.close()

    # Writing

    def _say(self, reply: Reply) -> None:
        self._out.append(reply.wire())

    def _write_out(self) -> None:
        if self._out and self.transport is not None:
            self.transport.write(b"".join(self._out))
        self._out.clear()

    async def _flush(self) -> None:
        self._write_out()
        if self._blocked is not None:
            await self._blocked

    # The session

    async def _handle_client(self) -> None:
        timeouts = self.desk.options.timeouts
        self._hard_deadline = self.loop.time() + timeouts.session
        self._wait_until(timeouts.greeting)
        try:
            if await self._open():
                await self._talk()
        except _End:
            pass
        except (EOFError, ConnectionError):
            if self._end == "quit":
                self._end = "lost"
        except ssl.SSLError as error:
            self._end = "tls"
            _log.info("session.tls_failed", client=str(self._peer()), reason=str(error))
        except Exception as error:  # noqa: BLE001  (the last line of defence: our bug is the client's 421)
            self._end = "error"
            _log.error("session.failed", session=getattr(self.session, "id", ""), exc_info=error)
            self._say(Reply(421, "3.0", "local trouble, try again later"))
        finally:
            await self._close()

    async def _close(self) -> None:
        try:
            if self.intake is not None:
                await self.intake.close()
        except Exception as error:  # noqa: BLE001  (the connection must be let go of whatever happens)
            _log.error("session.failed", session=self.session.id, exc_info=error)
        if self.transport is not None:
            self._write_out()
            self.transport.close()
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
        if self._counted is not None:
            self.hall.counter.session_closed(self._counted)
            metrics.SESSIONS_OPEN.dec()
        self.hall.servers.discard(self)
        metrics.SESSIONS.labels(self.listener.address, self._end).inc()
        if self.session is not None:
            _log.debug("session.closed", session=self.session.id, end=self._end)

    def _peer(self) -> tuple[IPAddress, int]:
        name = self.transport.get_extra_info("peername") if self.transport else None
        if not name:
            return ipaddress.IPv4Address("0.0.0.0"), 0
        address = ipaddress.ip_address(name[0].partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return mapped or address, name[1]

    async def _open(self) -> bool:
        """Everything before the first command. False when the session ends here."""
        peer, peer_port = self._peer()
        client, port = peer, peer_port
        if self.listener.proxy_trusted:
            if peer not in self.listener.proxy_trusted:
                return self._turn_away(NO_PROXY, "untrusted-proxy")
            try:
                header = await self._read_proxy()
            except proxy.ProxyError as error:
                _log.warning("session.bad_proxy_header", peer=str(peer), reason=str(error))
                return self._turn_away(NO_PROXY, "bad-proxy-header")
            if header.client is not None:
                client, port = getattr(header.client, "ipv4_mapped", None) or header.client, header.port
        self._counted = client
        self.hall.counter.session_opened(self._counted)
        metrics.SESSIONS_OPEN.inc()
        tls = None
        if self.listener.tls is not None and self.listener.tls_mode is TlsMode.IMPLICIT:
            tls = await self._start_tls()
        if self.hall.draining:
            return self._turn_away(DRAINING, "draining")
        limits = self.desk.options.limits
        if self.hall.counter.sessions() > limits.sessions:
            return self._turn_away(BUSY, "too-many")
        if self.hall.counter.sessions_of(self._counted) > limits.sessions_per_client:
            return self._turn_away(BUSY_CLIENT, "too-many-of-client")
        trusted = client in self.desk.options.relay_from
        self.session = Session(
            new_session_id(), client, port, peer, self.listener.address, self.desk.clock.now(), tls=tls, trusted=trusted
        )
        _log.debug("session.opened", session=self.session.id, client=str(client), peer=str(peer))
        return await self._greet()

    def _turn_away(self, reply: Reply, end: str) -> bool:
        self._end = end
        metrics.REPLIES.labels("connect", str(reply.code)).inc()
        _log.info("session.turned_away", client=str(self._peer()[0]), reason=end)
        self._say(reply)
        return False

    async def _greet(self) -> bool:
        """Judge the connection and greet. After a refusal the client may only QUIT (RFC 5321 section 3.1)."""
        self.intake = Intake(self.desk, self.session, self.listener.pipeline)
        refusal = await self.intake.connect()
        if refusal is None:
            self._say(Reply(220, "", f"{self.desk.options.hostname} ESMTP Gatepost"))
        elif refusal.temporary:
            self._say(Reply(421, refusal.detail, refusal.text))
            self._end = "refused"
            return False
        else:
            self._say(Reply(554, refusal.detail, refusal.text))
            self._refused = True
            self._end = "refused"
            if self.intake.hang_up:
                return False
        await self._flush()
        return True

    async def _read_proxy(self) -> proxy.ProxyHeader:
        while True:
            found = proxy.read(self._inbox.buffer) if self._inbox.buffer else None
            if found is not None:
                header, size = found
                del self._inbox.buffer[:size]
                return header
            await self._inbox.more()

    async def _talk(self) -> None:
        """Commands until the end."""
        options = self.desk.options
        inbox = self._inbox
        while self.transport is not None:
            if not inbox.has_line:
                if self.hall.draining and not self.intake.in_transaction:
                    self._end = "draining"
                    self._say(DRAINING)
                    return
                self._wait_until(options.timeouts.command)
                await self._flush()
            self._busy = False
            try:
                line = await inbox.line(options.limits.command_line)
                self._busy = True
            except LineTooLong:
                self._answer("line", Reply(500, "5.2", "line is too long"))
                continue
            try:
                verb, argument = grammar.split_line(line, strict=options.newlines is Newlines.REJECT)
            except CommandError as error:
                self._answer("line", error.reply)
                continue
            await self._command(verb, argument)

    async def _command(self, verb: str, argument: str) -> None:
        method = self._commands.get(verb)
        if method is None:
            if verb in grammar.HTTP_VERBS:
                self._end = "http"
                self._say(NOT_SMTP)
                raise _End
            self._answer("unknown", NOT_KNOWN)
            return
        if self._refused and verb != "QUIT":
            self._answer(verb, Reply(503, "5.1", "not for you, say QUIT"))
            return
        try:
            reply = await method(self, argument)
        except CommandError as error:
            reply = error.reply
        except (_End, EOFError, ConnectionError, ssl.SSLError):
            raise
        except Exception as error:  # noqa: BLE001  (our bug is a 451 and never an accept)
            _log.error("command.failed", session=self.session.id, command=verb, exc_info=error)
            await self.intake.abort()
            self._chunks = None
            reply = TROUBLE
        if reply is not None:
            self._answer(verb, reply)

    def _answer(self, verb: str, reply: Reply) -> None:
        """Say it, count it, and end the session when it is time to."""
        _count(verb, reply.code)
        self._say(reply)
        if self.intake.hang_up:
            self._end = "refused"
            raise _End
        if reply.code >= 400:
            self._errors += 1
            if self._errors > self.desk.options.limits.errors:
                self._end = "errors"
                self._say(TOO_MANY_ERRORS)
                raise _End

    # Commands

    async def smtp_HELO(self, argument: str) -> Reply:
        return await self._hello(argument, esmtp=False)

    async def smtp_EHLO(self, argument: str) -> Reply:
        return await self._hello(argument, esmtp=True)

    async def _hello(self, argument: str, *, esmtp: bool) -> Reply:
        name = grammar.parse_helo(argument)
        self._chunks = None
        session = replace(self.session, helo=name, esmtp=esmtp)
        refusal = await self.intake.helo(session)
        if refusal is not None:
            self._greeted = False
            return refusal
        self.session = session
        self._greeted = True
        hostname = self.desk.options.hostname
        return Reply(250, "", "\n".join([hostname, *self._extensions()]) if esmtp else hostname)

    def _extensions(self) -> list[str]:
        out = [
            "PIPELINING",
            f"SIZE {self.desk.options.limits.message_size}",
            "8BITMIME",
            "SMTPUTF8",
            "ENHANCEDSTATUSCODES",
            "DSN",
            "CHUNKING",
        ]
        if self._may_start_tls():
            out.append("STARTTLS")
        if self.session.peer in self.listener.xclient_trusted:
            out.append("XCLIENT NAME ADDR PORT PROTO HELO LOGIN REVERSE_NAME DESTADDR DESTPORT")
        return out

    def _may_start_tls(self) -> bool:
        return self.listener.tls is not None and self.listener.tls_mode is TlsMode.STARTTLS and self.session.tls is None

    async def smtp_MAIL(self, argument: str) -> Reply:
        if not self._greeted:
            return HELO_FIRST
        if self.intake.in_transaction:
            return Reply(503, "5.1", "MAIL was said already")
        if self.hall.draining:
            self._end = "draining"
            self._say(DRAINING)
            raise _End
        return await self.intake.mail(grammar.parse_mail(argument, self.session.esmtp))

    async def smtp_RCPT(self, argument: str) -> Reply:
        if not self.intake.in_transaction or self._chunks is not None:
            return MAIL_FIRST
        smtputf8 = self.intake.smtputf8
        recipient = grammar.parse_rcpt(argument, esmtp=self.session.esmtp, smtputf8=smtputf8)
        return await self.intake.rcpt(recipient)

    async def smtp_DATA(self, argument: str) -> Reply | None:
        if argument:
            return Reply(501, "5.4", "DATA takes no argument")
        if not self.intake.in_transaction or self._chunks is not None:
            return MAIL_FIRST
        if self._inbox.buffer:
            # RFC 2920 section 3.1: DATA ends a group. Who sends on without waiting smuggles, or is broken.
            self._end = "early-data"
            self._say(EARLY)
            raise _End
        refusal = await self.intake.data()
        if refusal is not None:
            return refusal
        self._say(SEND)
        await self._flush()
        return await self._read_data()

    async def _read_data(self) -> Reply:
        timeouts, limit = self.desk.options.timeouts, self.desk.options.limits.message_size
        decoder = DataDecoder()
        sink = _Sink(self.intake, limit)
        last = self.loop.time() + timeouts.data_total
        rest: bytes | None = None
        while rest is None:
            self._wait_until(min(timeouts.data_block, last - self.loop.time()))
            piece, rest = decoder.feed(await self._inbox.some())
            await sink.write(piece)
        self._inbox.give_back(rest)
        return await self._finish(sink, decoder.stray)

    async def _finish(self, sink: _Sink, stray: bool) -> Reply:
        # The pipeline and the disk have their own deadlines; the client's does not run while we work.
        self._deadline = self.loop.time() + self.desk.options.timeouts.session
        if sink.failed is not None:
            return await self.intake.fail(sink.failed)
        strict = self.desk.options.newlines is Newlines.REJECT
        return await self.intake.finish(overflow=sink.overflow, stray=stray and strict)

    async def smtp_BDAT(self, argument: str) -> Reply | None:
        try:
            bdat = grammar.parse_bdat(argument)
        except CommandError as error:
            # Without its size the chunk cannot be told from commands.
            self._end = "bad-chunk"
            self._say(error.reply)
            raise _End from error
        limit = self.desk.options.limits.message_size
        if bdat.octets > 2 * limit + (1 << 20):
            self._end = "bad-chunk"
            self._say(TOO_BIG)
            raise _End
        if self._chunks is None and self.intake.in_transaction:
            refusal = await self.intake.data()
            if refusal is None:
                self._chunks = _Chunks(_Sink(self.intake, limit))
            else:
                await self._read_chunk(bdat, None)
                return refusal
        chunks = self._chunks
        await self._read_chunk(bdat, chunks)
        if chunks is None:
            return MAIL_FIRST
        if not bdat.last and (chunks.sink.overflow or chunks.sink.failed is not None):
            self._chunks = None
            return await self._finish(chunks.sink, stray=False)
        if not bdat.last:
            return Reply(250, "0.0", f"{bdat.octets} octets received")
        self._chunks = None
        await chunks.sink.write(chunks.decoder.end())
        return await self._finish(chunks.sink, chunks.decoder.stray)

    async def _read_chunk(self, bdat: Bdat, chunks: _Chunks | None) -> None:
        """Read exactly the chunk's octets, wanted or not (RFC 3030 section 2)."""
        left = bdat.octets
        timeouts = self.desk.options.timeouts
        last = self.loop.time() + timeouts.data_total
        while left:
            self._wait_until(min(timeouts.data_block, last - self.loop.time()))
            if not self._inbox.buffer:
                await self._flush()
            data = await self._inbox.some(left)
            left -= len(data)
            if chunks is not None:
                await chunks.sink.write(chunks.decoder.feed(data))

    async def smtp_RSET(self, argument: str) -> Reply:
        if argument:
            return Reply(501, "5.4", "RSET takes no argument")
        self._chunks = None
        await self.intake.abort()
        return OK

    async def smtp_NOOP(self, argument: str) -> Reply:
        return OK

    async def smtp_HELP(self, argument: str) -> Reply:
        return Reply(214, "0.0", "see RFC 5321")

    async def smtp_VRFY(self, argument: str) -> Reply:
        return Reply(252, "5.2", "cannot say, try RCPT")

    async def smtp_EXPN(self, argument: str) -> Reply:
        return Reply(502, "5.1", "not done here")

    async def smtp_AUTH(self, argument: str) -> Reply:
        return Reply(503, "5.1", "AUTH is not offered here")

    async def smtp_QUIT(self, argument: str) -> Reply:
        if argument:
            return Reply(501, "5.4", "QUIT takes no argument")
        await self.intake.abort()
        _count("QUIT", 221)
        self._say(BYE)
        raise _End

    async def smtp_STARTTLS(self, argument: str) -> None:
        if argument:
            raise CommandError(Reply(501, "5.4", "STARTTLS takes no argument"))
        if not self._may_start_tls():
            raise CommandError(Reply(503, "5.1", "TLS is not offered or already on"))
        await self.intake.close()
        self._chunks = None
        self._say(Reply(220, "0.0", "go ahead"))
        # Between here and the handshake the event loop does not run, so nothing can slip in.
        self._inbox.clear()
        self._write_out()
        tls = await self._start_tls()
        self.session = replace(self.session, tls=tls, helo="", esmtp=False)
        self._greeted = False
        self.intake = Intake(self.desk, self.session, self.listener.pipeline)

    async def _start_tls(self) -> Tls:
        """Hand the connection to TLS. What the peer and PROXY said of addresses stays; everything else is forgotten."""
        if self.listener.tls is None:
            raise RuntimeError("no TLS context")
        seconds = self.desk.options.timeouts.tls_handshake
        self._wait_until(seconds + 5)
        transport = await self.loop.start_tls(
            self.transport, self, self.listener.tls, server_side=True, ssl_handshake_timeout=seconds
        )
        if transport is None:
            raise ConnectionResetError
        self.transport = transport
        self._in_tls = True
        self._inbox.attach(transport)
        version, cipher = transport.get_extra_info("ssl_object").version(), transport.get_extra_info("cipher")
        return Tls(version or "", cipher[0] if cipher else "")

    async def smtp_XCLIENT(self, argument: str) -> Reply | None:
        if self.session.peer not in self.listener.xclient_trusted:
            return Reply(550, "7.0", "XCLIENT is not for you")
        if self.intake.in_transaction:
            return Reply(503, "5.1", "not within a transaction")
        session = _apply_xclient(self.session, grammar.parse_xclient(argument))
        await self.intake.close()
        self.session = replace(session, trusted=session.client in self.desk.options.relay_from)
        self._greeted = bool(self.session.helo)
        if not await self._greet():
            raise _End
        return None


class _Sink:
    """Takes content into the draft until the limit or trouble; the rest is read and forgotten."""

    __slots__ = ("_intake", "_limit", "failed", "overflow")

    def __init__(self, intake: Intake, limit: int) -> None:
        self._intake = intake
        self._limit = limit
        self.overflow = False
        self.failed: SpoolError | None = None

    async def write(self, piece: bytes) -> None:
        if self.overflow or self.failed is not None:
            return
        draft = self._intake.draft
        if draft.size + len(piece) > self._limit:
            self.overflow = True
            return
        try:
            await draft.write(piece)
        except SpoolError as error:
            self.failed = error


class _Chunks:
    """A message that arrives by BDAT."""

    __slots__ = ("decoder", "sink")

    def __init__(self, sink: _Sink) -> None:
        self.sink = sink
        self.decoder = ChunkDecoder()


def _apply_xclient(session: Session, given: dict[str, str]) -> Session:
    """The session as the trusted peer describes it (Postfix XCLIENT_README). Raises `CommandError`."""
    known = {k: "" if v.upper() in grammar.UNAVAILABLE else v for k, v in given.items()}
    try:
        if known.get("ADDR"):
            text = known["ADDR"]
            client = ipaddress.ip_address(text[5:] if text[:5].upper() == "IPV6:" else text)
            session = replace(session, client=client, name="")
        if known.get("PORT"):
            session = replace(session, client_port=int(known["PORT"]))
    except ValueError as error:
        raise CommandError(Reply(501, "5.4", "XCLIENT attribute is malformed")) from error
    if "NAME" in known:
        session = replace(session, name=known["NAME"])
    if known.get("HELO"):
        session = replace(session, helo=grammar.parse_helo(known["HELO"]))
    if known.get("PROTO"):
        session = replace(session, esmtp=known["PROTO"].upper() != "SMTP")
    return session


_reply_counters: dict[tuple[str, int], Any] = {}


def _count(verb: str, code: int) -> None:
    counter = _reply_counters.get((verb, code))
    if counter is None:
        counter = _reply_counters[(verb, code)] = metrics.REPLIES.labels(verb, str(code))
    counter.inc()


Server._commands = {
    name.removeprefix("smtp_"): getattr(Server, name) for name in vars(Server) if name.startswith("smtp_")
}
