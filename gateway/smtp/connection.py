"""One connection without what is said over it: octets in, octets out, patience, TLS.

*Promises*: a client that stops reading, writing or closing is let go when its time is up. Octets that came before a TLS
handshake are either part of the handshake or gone.

*RFCs*: 5321 section 4.5.3.2 (timeouts), 3207 (STARTTLS).
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import ssl
from typing import Any, Final

from gateway.mail.reply import Reply
from gateway.mail.session import ClientCertificate, IPAddress, Tls, plain_address
from gateway.smtp.inbox import Inbox

TIMED_OUT: Final = Reply(421, "4.2", "timed out waiting for you")

_LINGER: Final = 10.0
"""Seconds that a client has to take our last words after the session."""


class Connection(asyncio.Protocol):
    """The life of a connection. A subclass says in `_handle_client` what happens in it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.transport: Any = None
        self._inbox = Inbox(loop)
        self._out: list[bytes] = []
        self._end = "quit"
        self._handler_coroutine: asyncio.Task[None] | None = None
        self._timeout_handle: asyncio.TimerHandle | None = None
        self._alarm = math.inf
        self._deadline = math.inf
        self._hard_deadline = math.inf
        self._patience = 0.0
        self._blocked: asyncio.Future[None] | None = None
        self._in_tls = False
        self._little_is_enough = False
        """Whether any octet within the time will do, since all of it together is bounded by a later deadline."""

    async def _handle_client(self) -> None:
        """The session, from the first octet to the last."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._inbox.attach(transport)
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
        self._forget_alarm()
        self.resume_writing()
        self.transport = None

    # Time

    def _wait_until(self, seconds: float) -> None:
        """The client has `seconds` for its next contribution."""
        self._little_is_enough = False
        self._deadline = min(self.loop.time() + seconds, self._hard_deadline)
        # An alarm that goes off too early sets itself again, which is cheaper than moving it at each command.
        if self._deadline < self._alarm:
            self._set_alarm()

    def _wait_for_content(self, block: float, last: float) -> None:
        """The client has `block` seconds for some more octets, and all of its content has to be there at `last`."""
        now = self.loop.time()
        self._wait_until(min(block, last - now))
        self._little_is_enough = now + block < min(last, self._hard_deadline)

    def _work(self) -> None:
        """It is our turn: the pipeline and the disk have deadlines of their own, and the client's does not run."""
        self._deadline = math.inf

    def _set_alarm(self) -> None:
        self._forget_alarm()
        self._alarm = self._deadline
        self._timeout_handle = self.loop.call_at(self._alarm, self._timeout_cb)

    def _forget_alarm(self) -> None:
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
        self._timeout_handle = None
        self._alarm = math.inf

    def _timeout_cb(self) -> None:
        self._forget_alarm()
        if self.transport is None or self._deadline == math.inf:
            return
        if self.loop.time() < self._deadline:
            self._set_alarm()
            return
        if self._little_is_enough and self._inbox.nudge():
            # Some content came, less than its reader is woken for. It reads on, and waits anew.
            self._deadline = math.inf
            return
        self._end = "timeout"
        self._say(TIMED_OUT)
        self._inbox.end()
        self._let_go()

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
            self._wait_until(self._patience)
            await self._blocked

    def _let_go(self) -> None:
        """Say what is left to say and close. Who does not take it within a while is cut off."""
        transport = self.transport
        if transport is None:
            return
        self._write_out()
        stuck = self._blocked is not None
        transport.close()
        if stuck:
            transport.abort()
        elif transport.get_write_buffer_size():
            self.loop.call_later(_LINGER, transport.abort)

    # Addresses and TLS

    def _peer(self) -> tuple[IPAddress, int]:
        name = self.transport.get_extra_info("peername") if self.transport else None
        if not name:
            return ipaddress.IPv4Address("0.0.0.0"), 0
        return plain_address(ipaddress.ip_address(name[0].partition("%")[0])), name[1]

    async def _start_tls(self, context: ssl.SSLContext, seconds: float) -> Tls:
        """Hand the connection to TLS. Raises OSError (of which ssl.SSLError is one) when the handshake fails.

        What the inbox holds is the beginning of the handshake, which came together with a PROXY header. STARTTLS
        empties it before.
        """
        early = bytes(self._inbox.buffer)
        self._inbox.clear()
        self._out.clear()
        self._wait_until(seconds + 5)
        if self.transport is None:
            raise ConnectionResetError
        if early:
            # By the time this runs, start_tls has put TLS in our place and not yet begun the handshake.
            self.loop.call_soon(_pass_on, self.transport, early)
        transport = await self.loop.start_tls(
            self.transport,
            self,
            context,
            server_side=True,
            ssl_handshake_timeout=seconds,
            # What is not said goodbye to in TLS lingers, and no limit on sessions counts it any more.
            ssl_shutdown_timeout=_LINGER,
        )
        if transport is None:
            raise ConnectionResetError
        self.transport = transport
        self._in_tls = True
        self._inbox.attach(transport)
        self._work()
        ended, cipher = transport.get_extra_info("ssl_object"), transport.get_extra_info("cipher")
        # There only where clients are asked for a certificate (`gateway.smtp.asking`).
        client: ClientCertificate | None = getattr(ended, "client", None)
        return Tls(ended.version() or "", cipher[0] if cipher else "", client=client)


def _pass_on(transport: Any, data: bytes) -> None:
    """Give octets to the transport's protocol as if they came from the network now."""
    protocol: asyncio.BufferedProtocol = transport.get_protocol()
    while data:
        view = memoryview(protocol.get_buffer(len(data)))
        size = min(len(view), len(data))
        view[:size] = data[:size]
        protocol.buffer_updated(size)
        data = data[size:]
