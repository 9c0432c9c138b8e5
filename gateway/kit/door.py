"""A front door that tests talk SMTP to: the real server, spool and pipeline on loopback, in a thread of their own.

Nothing is delivered: what was taken stands in `Door.queued`. Tests get sessions from the fixture `smtp_session`, which
closes everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import threading
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

import uvloop

from gateway.kit.client import PATIENCE, SmtpClient
from gateway.kit.front import open_front, open_spool
from gateway.kit.pipeline import Queued
from gateway.kit.record import DecisionRecord
from gateway.kit.setting import Entries, start_setting
from gateway.mail.reply import Reply
from gateway.sdk.plugin import Plugin
from gateway.sdk.policy import Policy
from gateway.sdk.testing import Bench
from gateway.smtp.intake import Desk
from gateway.smtp.lines import OpenLines
from gateway.smtp.options import ListenerOptions, Networks

__all__ = [
    "Door",
    "SmtpSession",
]

_T = TypeVar("_T")

_LOOPBACK: Final = Networks((ipaddress.ip_network("127.0.0.0/8"),))
_REFERENCE: Final = re.compile(r"(?:\(ref |queued as )([0-9A-Z]+)\)?\Z")


class SmtpSession(SmtpClient):
    """One client's connection to a `Door`."""

    def __init__(self, door: Door, client: str) -> None:
        address = ipaddress.ip_address(client)
        family, own = ("TCP4", "127.0.0.1") if address.version == 4 else ("TCP6", "::1")
        self.door = door
        super().__init__(door.proxied_port, f"PROXY {family} {address} {own} 40000 25\r\n".encode())

    @property
    def queued(self) -> list[Queued]:
        """What the door has queued, from whomever."""
        return self.door.queued

    def record(self, of: Reply | str) -> DecisionRecord:
        """The decision record; see `Door.record`."""
        return self.door.record(of)


class Door:
    """A front door that is open until `close`. `directory` is for its spool.

    `address` is where any SMTP client may connect; sessions made with `connect` come from whatever client address a
    test wants, by PROXY header on a port of their own. For the other arguments see `gateway.kit.setting.make_setting`.
    """

    def __init__(self, directory: Path, pipeline: Entries, *things: type[Plugin] | type[Policy], **more: Any) -> None:
        self._stack = contextlib.AsyncExitStack()
        self._clients: list[SmtpSession] = []
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="gatepost-door", daemon=True)
        self._thread.start()
        ready.wait(PATIENCE)
        try:
            self._call(self._open(directory, pipeline, things, more))
        except BaseException:
            self._end()
            raise

    def _run(self, ready: threading.Event) -> None:
        async def live() -> None:
            self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
            ready.set()
            await self._over.wait()

        # As workers do. The runner ends whatever is left on the loop, its threads too.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(live())

    async def _open(
        self, directory: Path, pipeline: Entries, things: tuple[type[Plugin] | type[Policy], ...], more: dict[str, Any]
    ) -> None:
        lines = OpenLines()
        async with contextlib.AsyncExitStack() as stack:
            self._spool = await stack.enter_async_context(open_spool(directory))
            self._setting = await start_setting(pipeline, *things, **{"lines": lines, **more})
            stack.push_async_callback(self._setting.close)
            setting = self._setting
            desk = Desk(
                setting.options, setting.domains, setting.pipelines, self._spool, setting.bench.clock, lambda: None
            )
            listeners = [ListenerOptions(""), ListenerOptions("", proxy_trusted=_LOOPBACK)]
            _, ports = await stack.enter_async_context(open_front(desk, listeners, lines))
            self.address = ("127.0.0.1", ports[0])
            self.proxied_port = ports[1]
            self._stack = stack.pop_all()

    @property
    def bench(self) -> Bench:
        """The fakes: ``session.door.bench.clock.advance(300)``."""
        return self._setting.bench

    def connect(self, client: str = "192.0.2.1") -> SmtpSession:
        """A new session of a client at this address; its greeting has been heard."""
        session = SmtpSession(self, client)
        self._clients.append(session)
        return session

    @property
    def queued(self) -> list[Queued]:
        """What was queued, in the order of ids: messages to be delivered, and those in quarantine."""
        return self._call(self._queued())

    def record(self, of: Reply | str) -> DecisionRecord:
        """The decision record of the message that this reply queued or refused, or of this id.

        Raises LookupError when there is none.
        """
        if isinstance(of, Reply):
            reference = _REFERENCE.search(of.text)
            if not reference:
                raise LookupError(f"{str(of)!r} refers to nothing")
            of = reference[1]
        return self._call(self._record(of))

    def records(self) -> list[DecisionRecord]:
        """All decision records, in the order of ids: also of sessions that were refused, and of what was given up."""
        return self._call(self._records())

    def close(self) -> None:
        """Hang up on all sessions, and end everything; a second time nothing happens."""
        if not self._thread.is_alive():
            return
        for client in self._clients:
            client.close()
        try:
            self._call(self._stack.aclose())
        finally:
            self._end()

    def __enter__(self) -> Door:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(PATIENCE)

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    async def _queued(self) -> list[Queued]:
        out = []
        for stored in await self._spool.list():
            found = await self._spool.show(stored.id)
            if found is not None:
                content = b"".join([block async for block in found.content.blocks()])
                out.append(Queued(stored.id, stored.state, stored.envelope, content, stored.reason))
        return out

    async def _record(self, id: str) -> DecisionRecord:
        await self._setting.told()
        for explained in await self._spool.explain(id):
            return DecisionRecord(explained.record)
        raise LookupError(f"there is no record of {id}")

    async def _records(self) -> list[DecisionRecord]:
        await self._setting.told()
        return [DecisionRecord(record) for record in await self._spool.records()]
