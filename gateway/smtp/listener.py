"""Listeners of one worker: connections are made of them, counted, drained and, at the end of patience, closed."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence

from gateway.ops import log
from gateway.smtp.conversation import Conversation, Counter
from gateway.smtp.intake import Desk
from gateway.smtp.lines import OpenLines
from gateway.smtp.options import ListenerOptions
from gateway.smtp.server import Server
from gateway.smtp.vantage import Vantage

_log = log.get()
_BACKLOG = 1024
_CUT_OFF_SECONDS = 2.0
"""For what sessions that are cut off have to put away, such as the file of half a message."""


class Front:
    """The worker's front door: implements `gateway.smtp.conversation.Hall`."""

    def __init__(self, desk: Desk, counter: Counter, lines: OpenLines | None = None) -> None:
        self.desk = desk
        self.lines = lines or OpenLines()
        self.draining = False
        self.counter = counter
        self.servers: set[Conversation] = set()
        self._vantages: dict[str, Vantage] = {}
        self._sockets: list[asyncio.AbstractServer] = []
        self._listeners: tuple[ListenerOptions, ...] = ()

    async def listen(self, listeners: Sequence[tuple[ListenerOptions, socket.socket]]) -> None:
        """Accept on sockets that are bound already."""
        loop = asyncio.get_running_loop()
        self._listeners = tuple(options for options, _ in listeners)

        for i, (_, sock) in enumerate(listeners):

            def factory(i: int = i) -> Server:
                return Server(self, self._listeners[i], loop)

            self._sockets.append(await loop.create_server(factory, sock=sock, backlog=_BACKLOG))

    def vantage(self, listener: str) -> Vantage:
        """See `gateway.smtp.conversation.Hall`."""
        return self._vantages.get(listener) or self._vantages.setdefault(listener, Vantage(listener))

    def renew(self, desk: Desk, listeners: Sequence[ListenerOptions]) -> None:
        """What sessions that begin from now on get; `listeners` in the order in which they were given to `listen`.

        Raises ValueError when they are not as many.
        """
        if len(listeners) != len(self._listeners):
            raise ValueError("listeners come and go with a restart only")
        self.desk, self._listeners = desk, tuple(listeners)

    async def drain(self, grace: float) -> None:
        """Stop accepting, let open transactions finish, close what is left after `grace` seconds."""
        self.draining = True
        for server in self._sockets:
            server.close()
        for session in list(self.servers):
            session.drain()
        if not await self._gone(grace):
            _log.warning("sessions.cut_off", count=len(self.servers))
            for session in list(self.servers):
                session.abort()
            await self._gone(_CUT_OFF_SECONDS)

    async def _gone(self, seconds: float) -> bool:
        """Wait for all sessions to end; whether they did."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self.servers and loop.time() < deadline:  # noqa: ASYNC110 (a set has no event)
            await asyncio.sleep(0.02)
        return not self.servers


def tls_context(certificate: str, key: str, client_ca: str = "", *, required: bool = False) -> ssl.SSLContext:
    """A server context: TLS 1.2 and up. Raises OSError, ssl.SSLError or ValueError when the files are no good.

    With `client_ca` clients are asked for a certificate, and with `required` nobody comes in without one by these CAs.
    """
    if client_ca:
        # Who asks for none has no use for another TLS.
        from gateway.smtp.asking import AskingContext
        from gateway.smtp.certificate import read_authorities

        return AskingContext(certificate, key, read_authorities(client_ca), required=required)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(certificate, key)
    return context
