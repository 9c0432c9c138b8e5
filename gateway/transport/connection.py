"""One connection to a next hop: the codec on a socket, with its timeouts.

An asyncio protocol, so that a reply costs one callback and a delivery two or three wake-ups.

*Promises*: every wait ends: each reply and each block of content has its own time, counted from the last complete
reply, so a peer that drips octets gains nothing. The final dot, or the last chunk, is never written unless the whole
content was.

*Fails by*: events of the codec; `problem` says what broke the connection.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any, cast

from gateway.mail.envelope import Origin
from gateway.mail.message import Content
from gateway.mail.reply import Reply
from gateway.transport import tls
from gateway.transport.client import Codec
from gateway.transport.content import DotStuffer
from gateway.transport.events import Broken, Event, Finished, Phase, Refused, Signal, Step, Unauthenticated
from gateway.transport.introduction import proxy_header
from gateway.transport.options import Proxy, Timeouts
from gateway.transport.rule import CLEAR, Rule, TlsFailed
from gateway.transport.sessions import Resumable
from gateway.transport.tls import Resuming
from gateway.transport.transport import Server

Ready = Signal | Refused | Unauthenticated | Broken
"""How a greeting ends."""


class Connection(asyncio.Protocol):
    """A connection to `host` (its name, for the record). Used by one task at a time.

    With `proxy` it begins with a PROXY header that speaks for `origin`, or for ourselves.
    """

    def __init__(
        self,
        codec: Codec,
        timeouts: Timeouts,
        host: str,
        *,
        proxy: Proxy = Proxy.NONE,
        origin: Origin | None = None,
    ) -> None:
        self.host = host
        self.origin = origin
        """For whom we speak on it, if for somebody else."""
        self.tls = ""
        self.resumed = False
        """Whether the TLS session was one of an earlier connection."""
        self.rule = CLEAR
        """What was asked of TLS."""
        self.local = ""
        """Our own address."""
        self.address = ""
        """That of the host, for whoever keeps count."""
        self.peer = ""
        """How the peer was authenticated; empty when it was not."""
        self.messages = 0
        """Transactions begun on it."""
        self.server = Server()
        """The server it leads to."""
        self.problem = ""
        self.idle_until = 0.0
        self._tls_object: Any = None
        self._codec = codec
        self._proxy = proxy
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Event] | None = None
        self._early: Event | None = None
        self._drained: asyncio.Future[None] | None = None
        self._payload: bytes | None = None
        self._chunking = False
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._answered = 0
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def offered(self) -> dict[str, str]:
        """What EHLO offered: keywords in capitals, and their values."""
        return self._codec.extensions

    @property
    def session(self) -> Resumable | None:
        """The TLS session, for a later connection; the peer sends what that needs some time after the handshake."""
        session = self._tls_object.session if self._tls_object is not None else None
        return Resumable(session, self.peer) if session is not None and session.has_ticket else None

    @property
    def forward_refused(self) -> Reply | None:
        """What was said against XFORWARD in the last transaction."""
        return self._codec.forward_refused

    @property
    def usable(self) -> bool:
        """Whether a transaction could begin on it, as far as we know."""
        return self._codec.phase is Phase.IDLE and not self._ended.done()

    @property
    def is_ended(self) -> bool:
        """Whether the socket is closed."""
        return self._ended.done()

    # What the owner asks for.

    async def hello(
        self, context: ssl.SSLContext | None, rule: Rule = CLEAR, resume: Resumable | None = None
    ) -> Ready | TlsFailed:
        """Wait through greeting, EHLO, STARTTLS where it is offered, and AUTH where we are to log in.

        Anything but `Signal.READY` ends the connection.

        The handshake takes up the session `resume`, if the peer will. After it, the peer must be who `rule` wants it to
        be; before it knows, nothing more is said to it.
        """
        self.rule = rule
        event = await self._next()
        if event is Signal.START_TLS and context is not None:
            assert self._transport is not None
            try:
                transport = await self._loop.start_tls(
                    self._transport,
                    self,
                    Resuming(context, resume.session) if resume else context,
                    server_hostname=rule.server_name or self.host,
                    ssl_handshake_timeout=self._timeouts.tls,
                )
            except (OSError, UnicodeError) as error:
                # A bad certificate, a lost connection and the timeout are OSErrors; a host name with too long a
                # label is a UnicodeError.
                self.abort()
                return TlsFailed(_say(error), tls.failure_of(error))
            if transport is None or self._ended.done():
                return TlsFailed("the connection was lost in the handshake")
            self._transport = transport
            self._tls_object = transport.get_extra_info("ssl_object")
            self.resumed = bool(self._tls_object.session_reused)
            # A resumed session is one with the peer of that time, who was who the same rule wants him to be.
            peer = resume.peer if self.resumed and resume else tls.authenticate(rule, self._tls_object)
            if isinstance(peer, TlsFailed):
                self.abort()
                return peer
            self.peer = peer
            self.tls = tls.describe(transport)
            self._codec.tls_established()
            self._flush()
            event = await self._next()
        assert not isinstance(event, Finished)
        if event is not Signal.READY:
            self.quit()
        return event

    async def introduce(self, xclient: bytes, hostname: str, origin: Origin) -> Ready:
        """Say XCLIENT, and speak for `origin` from now on. Anything but `Signal.READY` ends the connection."""
        if not self.usable:
            return Broken("the connection was lost")
        self._codec.introduce(xclient, hostname)
        self._flush()
        event = await self._next()
        assert not isinstance(event, Finished)
        if event is Signal.READY:
            self.origin = origin
        else:
            self.quit()
        return event

    async def transact(
        self,
        mail: bytes,
        rcpts: list[bytes],
        *,
        payload: bytes | None = None,
        content: Content | None = None,
        chunking: bool = False,
        before: Sequence[bytes] = (),
    ) -> Finished:
        """One transaction, after the commands `before`. The content is `payload` or `content`; without both, only ask.

        With `chunking` it goes by BDAT; else `payload` holds the final dot. On a fresh connection a payload in one
        chunk goes along with the envelope. On a kept one it waits for the replies, so that we know what was sent when
        that turns out to be dead.
        """
        self.messages += 1
        if not self.usable:
            problem = self.problem or "the connection was lost"
            return Finished((None,) * len(rcpts), mail_answered=False, open=False, problem=problem)
        self._payload, self._chunking = payload, chunking
        whole = payload if payload and chunking and self.messages == 1 else b""
        has_content = payload is not None or content is not None
        self._codec.begin(mail, rcpts, data=has_content, chunking=chunking and has_content, whole=whole, before=before)
        self._flush()
        event = await self._next()
        if event is Signal.SEND_CONTENT and content is not None:
            event = await (self._chunks(content) if chunking else self._stream(content))
        if not isinstance(event, Finished):
            raise RuntimeError(f"a transaction cannot end in {event!r}")
        return event

    def silence(self, finished: Finished) -> Reply:
        """A reply of ours for recipients whose fate the peer never told: 4.5.0 for garbage, else 4.4.2."""
        problem = self.problem or finished.problem
        return Reply(451, "5.0" if problem.startswith("the reply") else "4.2", f"{self.host}: {problem}")

    def quit(self) -> None:
        """Say QUIT and let the connection end; `ended` tells when it has."""
        if self._transport is None or self._ended.done():
            return
        if self._codec.phase is Phase.CLOSED:
            self._transport.close()
        self._codec.quit()
        self._flush()
        self._set_deadline(self._timeouts.quit)

    def abort(self) -> None:
        """End it at once, without a word."""
        self._codec.lost("given up")
        if self._transport is not None:
            self._transport.abort()

    async def ended(self) -> None:
        """Wait until the socket is closed."""
        await asyncio.shield(self._ended)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        name = transport.get_extra_info("sockname")
        self.local = str(name[0]) if isinstance(name, tuple) else ""
        if self._proxy is not Proxy.NONE:
            server = transport.get_extra_info("peername")
            client = (str(self.origin.client), self.origin.port) if self.origin else name
            self._write(proxy_header(self._proxy, client[:2], server[:2]))
        self._set_deadline(self._timeouts.hello)

    def data_received(self, data: bytes) -> None:
        events = self._codec.receive(data)
        self._flush()
        for event in events:
            self._take(event)
        if self._codec.phase is Phase.CLOSED and self._transport is not None and self._waiter is None:
            self._transport.close()
        elif self._codec.answered != self._answered:
            self._set_deadline(self._wait_time())

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
        self._give_up("the connection was lost")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause_writing(self) -> None:
        if self._drained is None:
            self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    # Inside.

    def _take(self, event: Event) -> None:
        if event is Signal.SEND_CONTENT and self._payload is not None:
            # Unless more came in the same octets and ended the transaction already.
            if self._codec.phase is Phase.CONTENT and self._chunking:
                self._write(self._codec.chunk(len(self._payload), last=True) + self._payload)
            elif self._codec.phase is Phase.CONTENT:
                self._write(self._payload)
                self._codec.content_sent()
            return
        if isinstance(event, (Finished, Broken)) and not self.problem:
            self.problem = event.problem
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(event)
        else:
            # Nobody waits: it was said before it was asked for. Kept for the next wait.
            self._early = event
        if event is not Signal.SEND_CONTENT and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    async def _next(self) -> Event:
        if self._early is not None:
            event, self._early = self._early, None
            return event
        if self._ended.done():
            return Broken("the connection was lost")
        self._waiter = self._loop.create_future()
        self._set_deadline(self._wait_time())
        try:
            return await self._waiter
        finally:
            self._waiter = None

    async def _stream(self, content: Content) -> Event:
        """Send content block by block, unless an answer or the end of the connection comes first."""
        stuffer = DotStuffer()
        async for block in content.blocks():
            if self._early is not None:
                break
            self._set_deadline(self._timeouts.block)
            self._write(stuffer.feed(block))
            if self._drained is not None:
                await self._drained
        if self._early is None:
            self._write(stuffer.end())
            self._codec.content_sent()
        return await self._next()

    async def _chunks(self, content: Content) -> Event:
        """Send content in chunks, one block late: only who has read to the end knows which one is the last."""
        held = b""
        async for block in content.blocks():
            if held and not await self._chunk(held):
                break
            held = block
        else:
            if self._early is None:
                self._write(self._codec.chunk(len(held), last=True) + held)
        return await self._next()

    async def _chunk(self, block: bytes) -> bool:
        """Send one that is not the last; False when there is to be no other."""
        if self._early is not None:
            return False
        self._set_deadline(self._timeouts.block)
        self._write(self._codec.chunk(len(block), last=False) + block)
        if self._drained is not None:
            await self._drained
        if "PIPELINING" in self.offered or (self._early is not None and self._early is not Signal.NEXT_CHUNK):
            return self._early is None
        event = await self._next()
        if event is not Signal.NEXT_CHUNK:
            self._early = event
        return event is Signal.NEXT_CHUNK

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._ended.done():
            self._transport.write(data)

    def _flush(self) -> None:
        if data := self._codec.outgoing():
            self._write(data)

    def _wait_time(self) -> float:
        """How long the reply that is due may take; 0 when none is."""
        step = self._codec.waiting_for
        if step is None:
            return self._timeouts.block if self._codec.phase is Phase.CONTENT else 0.0
        if step <= Step.STARTTLS or step in (Step.XCLIENT, Step.AUTH):
            return self._timeouts.hello
        if step is Step.DATA:
            return self._timeouts.data
        return self._timeouts.dot if step in (Step.DOT, Step.CHUNK, Step.LAST) else self._timeouts.command

    def _set_deadline(self, seconds: float) -> None:
        # The timer is set anew only when it would fire too late; when it fires too early it is set again. So a
        # delivery costs no timer of its own.
        self._answered = self._codec.answered
        if not seconds:
            self._deadline = 0.0
            return
        self._deadline = self._loop.time() + seconds
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._check_deadline)
        elif self._timer.when() > self._deadline:
            self._timer.cancel()
            self._timer = self._loop.call_at(self._deadline, self._check_deadline)

    def _check_deadline(self) -> None:
        self._timer = None
        if not self._deadline:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._check_deadline)
            return
        self._give_up("no answer in time")
        if self._transport is not None:
            self._transport.abort()

    def _give_up(self, problem: str) -> None:
        phase = self._codec.phase
        events = self._codec.lost(problem)
        if events and not self.problem:
            self.problem = f"{problem} while {phase.value}"
        for event in events:
            self._take(event)


def _say(error: Exception) -> str:
    """An exception as one short line for the record."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
