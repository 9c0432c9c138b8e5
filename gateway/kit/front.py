"""A front door in this process: real listener and spool on ports of their own, around whatever desk it is given."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter as Tally
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

from gateway.mail.session import IPAddress
from gateway.smtp.intake import Desk
from gateway.smtp.lines import OpenLines
from gateway.smtp.listener import Front
from gateway.smtp.options import ListenerOptions
from gateway.spool.shard import OnStep, no_step
from gateway.spool.spool import Spool, SpoolOptions
from gateway.spool.sqlite import SqliteSpool


class Count:
    """Implements `gateway.smtp.conversation.Counter` for one process."""

    def __init__(self) -> None:
        self.by_client: Tally[IPAddress] = Tally()

    def session_opened(self, client: IPAddress) -> None:
        self.by_client[client] += 1

    def session_closed(self, client: IPAddress) -> None:
        self.by_client[client] -= 1

    def sessions(self) -> int:
        return self.by_client.total()

    def sessions_of(self, client: IPAddress) -> int:
        return self.by_client[client]


@contextlib.asynccontextmanager
async def open_spool(directory: Path, on_step: OnStep = no_step) -> AsyncIterator[Spool]:
    """A spool of one worker in this directory."""
    spool = await SqliteSpool.open(SpoolOptions(str(directory), min_free=0), on_step=on_step)
    try:
        yield spool
    finally:
        await spool.close()


@contextlib.asynccontextmanager
async def open_front(
    desk: Desk, listeners: Sequence[ListenerOptions], lines: OpenLines | None = None
) -> AsyncIterator[tuple[Front, list[int]]]:
    """Listen on 127.0.0.1, once for each of `listeners`, whose address is made that of its port; gives the ports.

    At the end sessions that are still open are cut off.
    """
    front = Front(desk, Count(), lines)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in listeners]
        ports = [sock.getsockname()[1] for sock in sockets]
        named = [
            replace(listener, address=f"127.0.0.1:{port}") for listener, port in zip(listeners, ports, strict=True)
        ]
        await front.listen(list(zip(named, sockets, strict=True)))
        try:
            yield front, ports
        finally:
            await front.drain(0)
