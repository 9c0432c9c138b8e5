"""A nameserver that does as it is told, in a thread of its own: for tests that talk to a running Gatepost."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

import dns.rrset

from tests.contract.dnsserver import DnsServer, Fault

T = TypeVar("T")

TIMEOUT = 30.0


class ScriptedDns:
    """Serves from the start. What it answers can be changed at any time; see `Fault` for what answers may suffer.

    A record is a zone line: ``"host.test. 0 IN A 192.0.2.1"``. A chain of CNAMEs is written as its records. With a TTL
    of 0, which nothing may cache, a change is seen at the next question; names that do not exist are never cached.
    """

    def __init__(self, records: Iterable[str | dns.rrset.RRset] = ()) -> None:
        self._server = DnsServer(records, negative_ttl=0)
        self.start()

    @property
    def address(self) -> str:
        """As it stands in `dns.nameservers`."""
        host, port = self._server.address
        return f"{host}:{port}"

    def start(self) -> None:
        """Listen (again), on the same port."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="dns", daemon=True)
        self._thread.start()
        self._wait(self._server.__aenter__())

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _wait(self, coroutine: object) -> None:
        assert asyncio.iscoroutine(coroutine)
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(TIMEOUT)

    def stop(self) -> None:
        """Listen no more: what is asked now finds a closed port. Without effect when it is stopped already."""
        if not self._thread.is_alive():
            return
        self._wait(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT)
        self._loop.close()

    async def _end(self) -> None:
        await self._server.__aexit__()
        # Connections over TCP whose answer is kept back.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*others, return_exceptions=True)

    def _do(self, work: Callable[[], T]) -> T:
        """Do something where the server runs, so that it sees the change whole."""

        async def run() -> T:
            return work()

        if not self._thread.is_alive():
            return work()
        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(TIMEOUT)

    def serve(self, records: Iterable[str | dns.rrset.RRset]) -> None:
        """Serve these records and no others."""
        self._do(lambda: self._server.serve(records))

    def change(self, line: str) -> None:
        """Replace the records of a name and type."""
        self._do(lambda: self._server.change(line))

    def misbehave(self, name: str, fault: Fault | None, rdtype: str = "") -> None:
        """What answers to this name suffer from now on, of one type or of all; None ends it."""
        self._do(lambda: self._server.misbehave(name, fault, rdtype))

    def keep_back(self, name: str, seconds: float) -> None:
        """Keep answers to this name back for so long from now on."""
        self._do(lambda: self._server.keep_back(name, seconds))

    def everything(self, fault: Fault | None = None, *, seconds: float = 0.0) -> None:
        """What the answers to all names suffer from now on, and for how long they are kept back; nothing ends it."""

        def change() -> None:
            self._server.everything = fault
            self._server.always = seconds

        self._do(change)

    def count(self, name: str | None = None, rdtype: str | None = None) -> int:
        """How many questions were asked, for this name and of this type; over TCP they count again."""
        return self._do(lambda: self._server.count(name, rdtype))

    @property
    def asked(self) -> list[tuple[str, str]]:
        """The questions, as name and type, in order."""
        return self._do(lambda: [(name, rdtype) for name, rdtype, _ in self._server.asked])
