"""Recipients in an LDAP directory: is there an entry for this address?

A few threads with a connection each ask; the event loop never waits for a socket. A connection is kept and used again;
when it turns out to be lost, a fresh one is opened for the same question. Servers are tried in their order, those that
failed just now last.

*Promises*: a question ends within `LdapOptions.timeout`, and so does its thread. The password is in no text.

*Fails by*: `CalloutState.UNAVAILABLE` for everything that is not a plain answer; a base that does not exist, too, since
that is a mistake of ours and says nothing about the recipient.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gateway.mail.address import Address
from gateway.ops import log
from gateway.sdk.services import Callout, CalloutState
from gateway.services.ldap_options import LdapOptions, LdapServer, fill
from gateway.services.tasks import Tasks

if TYPE_CHECKING:
    from gateway.services.ldap_link import Link

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""Gives the addresses of a host name; raises OSError when there are none to be had."""

AVOID_SECONDS: Final = 30.0
"""How long a server that failed is tried after the others."""
_IDLE_SECONDS: Final = 60.0
_LEAST_SECONDS: Final = 0.05
"""With less time than this left, a question is not begun."""
_BUSY: Final = "all connections to the directory are busy"
_ADDRESSES: Final = 2
"""Of one server, tried in one question."""

_log = log.get()


@dataclass(frozen=True, slots=True)
class _Found:
    """What a thread found out: True or False, or None and the trouble. `link` can be used again."""

    found: bool | None
    trouble: str = ""
    link: Link | None = None


class LdapStore:
    """Implements one domain's side of `gateway.sdk.services.Directory.callout`."""

    def __init__(self, options: LdapOptions, resolve: Resolve) -> None:
        self._options = options
        self._resolve = resolve
        self._threads = ThreadPoolExecutor(options.connections, thread_name_prefix="ldap")
        self._slots = asyncio.Semaphore(options.connections)
        self._idle: list[tuple[Link, float]] = []
        self._avoid: dict[LdapServer, float] = {}
        self._tasks = Tasks()
        self._closed = False

    async def ask(self, addresses: Sequence[Address]) -> Callout:
        """Whether one of the addresses has an entry; they are asked for in order. Does not raise."""
        # Cancelled, we leave at once; the thread has a deadline of its own and gives its connection back.
        return await asyncio.shield(self._tasks.start(self._ask(addresses), name="ldap.ask"))

    async def close(self) -> None:
        """Close all connections; questions under way end first."""
        self._closed = True
        await self._tasks.wait()
        loop = asyncio.get_running_loop()
        for link, _ in self._idle:
            await loop.run_in_executor(self._threads, link.close)
        self._idle.clear()
        self._threads.shutdown(wait=False)

    async def _ask(self, addresses: Sequence[Address]) -> Callout:
        deadline = time.monotonic() + self._options.timeout
        filters = [fill(self._options.filter, address) for address in addresses]
        try:
            async with asyncio.timeout(self._options.timeout):
                await self._slots.acquire()
        except TimeoutError:
            return _down(_BUSY)
        try:
            if deadline - time.monotonic() < _LEAST_SECONDS:
                return _down(_BUSY)
            found = await self._found(filters, deadline)
        finally:
            self._slots.release()
        if found.found is None:
            return _down(found.trouble)
        if found.found:
            return Callout(CalloutState.EXISTS, "the directory has an entry")
        return Callout(CalloutState.UNKNOWN, "the directory has no entry")

    async def _found(self, filters: list[str], deadline: float) -> _Found:
        loop = asyncio.get_running_loop()
        found = _Found(None)
        if kept := self._take():
            found = await loop.run_in_executor(self._threads, self._search, kept, filters, deadline)
        if found.found is None:
            try:
                async with asyncio.timeout_at(loop.time() + max(0.0, deadline - time.monotonic())):
                    targets, trouble = await self._targets()
            except TimeoutError:
                return _Found(None, found.trouble or "the names of the LDAP servers cannot be resolved in time")
            found = await loop.run_in_executor(
                self._threads, self._fresh, targets, filters, deadline, found.trouble or trouble
            )
        if found.link is not None:
            self._give_back(found.link)
        return found

    def _take(self) -> Link | None:
        """The connection used last, if it was not idle for so long that the server may have forgotten it."""
        now = time.monotonic()
        while self._idle:
            link, since = self._idle.pop()
            if now - since < _IDLE_SECONDS:
                return link
            self._threads.submit(link.close)
        return None

    def _give_back(self, link: Link) -> None:
        if self._closed:
            self._threads.submit(link.close)
        else:
            self._idle.append((link, time.monotonic()))

    async def _targets(self) -> tuple[list[tuple[LdapServer, str]], str]:
        """Servers and addresses in the order to try them, and what is wrong with names."""
        now = time.monotonic()
        servers = sorted(self._options.servers, key=lambda server: self._avoid.get(server, 0.0) > now)
        targets: list[tuple[LdapServer, str]] = []
        trouble = ""
        for server in servers:
            try:
                addresses = await self._resolve(server.host)
            except OSError as error:
                trouble = str(error)
                continue
            targets += [(server, address) for address in addresses[:_ADDRESSES]]
        return targets, trouble

    # In a thread.

    def _search(self, link: Link, filters: list[str], deadline: float) -> _Found:
        """Ask over a connection; leaves half of the time for another server if there is none in it."""
        from gateway.services.ldap_link import LinkError

        try:
            limit = _share(deadline, others=True)
            return _Found(any(link.search(self._options, text, limit) for text in filters), link=link)
        except LinkError as error:
            if error.slow:
                self._lost(link.server, str(error))
            return _Found(None, f"{link.server}: {error}")

    def _fresh(
        self, targets: list[tuple[LdapServer, str]], filters: list[str], deadline: float, trouble: str
    ) -> _Found:
        """Ask the first server that can be reached."""
        from gateway.services.ldap_link import Link, LinkError

        for i, (server, address) in enumerate(targets):
            limit = _share(deadline, others=i + 1 < len(targets))
            if limit <= time.monotonic():
                break
            try:
                until = min(limit, time.monotonic() + self._options.connect_timeout)
                link = Link.open(server, address, self._options, until)
                found = any(link.search(self._options, text, limit) for text in filters)
            except LinkError as error:
                trouble = f"{server}: {error}"
                self._lost(server, str(error))
                continue
            if self._avoid.pop(server, None) is not None:
                _log.info("ldap.server_back", server=str(server))
            return _Found(found, link=link)
        return _Found(None, trouble or "no answer in time")

    def _lost(self, server: LdapServer, reason: str) -> None:
        if server not in self._avoid:
            _log.warning("ldap.server_lost", server=str(server), reason=reason)
        self._avoid[server] = time.monotonic() + AVOID_SECONDS


def _share(deadline: float, *, others: bool) -> float:
    """Until when one server may take: all of what is left, or half of it when others may have to be asked."""
    left = deadline - time.monotonic()
    return time.monotonic() + (left / 2 if others else left)


def _down(text: str) -> Callout:
    return Callout(CalloutState.UNAVAILABLE, text, down=True)
