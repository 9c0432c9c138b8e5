"""The way to a destination: its servers, their addresses, and a connection to the first that works.

*Promises*: a worse server is tried only when the better ones have failed; servers that are as good as each other, and
all addresses of a server, are tried side by side as `gateway.transport.race` does. The TLS rules that hold for a
connection are those of the server that it leads to.

*Fails by*: `Unreachable` values; of several troubles the one that leaves the most hope.

*RFCs*: 5321 section 5.1 (order, loops), 8305 (trying addresses).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.mail.reply import clean
from gateway.ops import log
from gateway.sdk.services import Dns
from gateway.transport import hosts
from gateway.transport.connection import Connection
from gateway.transport.hosts import Exchangers, Located, Unreachable, deferred
from gateway.transport.options import SmtpOptions
from gateway.transport.order import SHARE, order
from gateway.transport.race import Race
from gateway.transport.rotation import REST, Rotation
from gateway.transport.rule import Rule
from gateway.transport.transport import Destination, Fault, Result, Server

_log = log.get()

Rules = Sequence[Rule]
FindRules = Callable[[Server, Located, Exchangers], Awaitable[Rules | Unreachable]]


@dataclass(frozen=True, slots=True)
class Place:
    """One address of a server; empty for a unix socket."""

    server: Server
    address: str
    located: Located


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known of a server: where it is, in the order of trying, and whether it is ourselves."""

    server: Server
    located: Located | Unreachable
    own: bool = False


class Caller(Protocol):
    """What makes a connection out of a place."""

    async def dial(self, place: Place, rules: Rules) -> Connection | Unreachable:
        """Connect, and no more."""

    async def greet(self, place: Place, rules: Rules, connection: Connection) -> Connection | Unreachable:
        """Wait until MAIL can be said, by the first of the rules that can be kept."""

    def has_room(self) -> bool:
        """Whether there may be one more connection beside those there are."""


class Approach:
    """Finds the servers of one destination."""

    def __init__(self, destination: Destination, options: SmtpOptions, dns: Dns, rng: random.Random) -> None:
        self._destination = destination
        self._options = options
        self._dns = dns
        self._rng = rng
        self._rotation: Rotation | None = None
        if len(destination.servers) > 1:
            self._rotation = Rotation(destination.servers, rng, lambda: asyncio.get_running_loop().time())

    async def find(self) -> Exchangers | Unreachable:
        """The servers, as one attempt tries them."""
        destination = self._destination
        if destination.mx:
            name = self._options.hostname
            return await hosts.exchangers(destination.host, self._dns, name, self._rng, destination.port)
        return Exchangers(self._rotation.order() if self._rotation else (destination.servers,))

    async def locate(self, servers: Sequence[Server]) -> list[Sight]:
        """Where these servers are."""
        return list(await asyncio.gather(*[self._locate(server) for server in servers]))

    async def _locate(self, server: Server) -> Sight:
        if server.path:
            return Sight(server, Located([""]))
        strange = self._destination.mx or self._destination.literal
        located = await hosts.locate(server.host, self._dns, configured=not self._destination.mx)
        if isinstance(located, Unreachable):
            return Sight(server, located)
        own = strange and any(self._options.own.has(address) for address in located.addresses)
        ordered = order(located.addresses, self._options.families)
        if not ordered:
            wanted = self._options.families.value
            return Sight(server, deferred("4.1", f"{server.host} has no {wanted} address", server.host), own)
        return Sight(server, Located(ordered, located.authentic, located.alias), own)

    async def connect(self, find_rules: FindRules, caller: Caller, found: Exchangers) -> Connection | Unreachable:
        """A connection that is ready for MAIL: to the first of the servers that can be reached, in order."""
        trouble: Unreachable | None = None
        left = self._options.max_addresses
        for number, group in enumerate(found.groups, 1):
            if not left:
                break
            sights = await self.locate(group[:left])
            if any(sight.own for sight in sights):
                # Whoever is no better than ourselves would send it back to us.
                return trouble or hosts.loops(self._destination.host)
            alone = number == len(found.groups) and len(group) == 1
            race = _Attempt(self, find_rules, caller, found, sights, left, None if alone else SHARE)
            ran = await race.run(trouble)
            if isinstance(ran, Connection):
                return ran
            trouble, left = ran, race.left
            if trouble is not None and trouble.everywhere:
                break
        return trouble or deferred("4.1", "no address to connect to")

    def note(self, server: Server, trouble: Unreachable | None = None) -> None:
        """Take note of whether a server could be reached. Trouble of our own says nothing of the server."""
        if self._rotation is None or (trouble is not None and trouble.fault is Fault.OURS):
            return
        if trouble is None and self._rotation.worked(server):
            _log.info("hop.back", server=str(server), destination=str(self._destination))
        elif trouble is not None and self._rotation.failed(server):
            reason = clean(str(trouble.reply))
            _log.warning(
                "hop.resting", server=str(server), destination=str(self._destination), reason=reason, seconds=REST
            )

    @property
    def next_address(self) -> float:
        """Seconds that an address has before the next is tried."""
        return self._options.next_address


class _Attempt:
    """One attempt at servers that are as good as each other."""

    def __init__(
        self,
        approach: Approach,
        find_rules: FindRules,
        caller: Caller,
        found: Exchangers,
        sights: Sequence[Sight],
        most: int,
        share: int | None,
    ) -> None:
        self._approach = approach
        self._find_rules = find_rules
        self._caller = caller
        self._found = found
        self._sights = sights
        self._rules: dict[Server, Rules | Unreachable] = {}
        self._locks = {sight.server: asyncio.Lock() for sight in sights}
        self._connecting = asyncio.Event()
        places = [
            Place(sight.server, address, sight.located)
            for sight in sights
            if isinstance(sight.located, Located)
            for address in sight.located.addresses[:share]
        ]
        self._race = Race(places, self._dial, pause=self._pause, room=caller.has_room, most=most)

    @property
    def left(self) -> int:
        """How many addresses may still be tried."""
        return self._race.left

    async def run(self, trouble: Unreachable | None) -> Connection | Unreachable | None:
        """A connection, or the trouble to report; `trouble` is that of the servers before."""
        for sight in self._sights:
            if isinstance(sight.located, Unreachable):
                trouble = self._fail(sight.server, trouble, sight.located)
        try:
            while (won := await self._race.next()) is not None:
                place, result = won
                rules = self._rules[place.server]
                if isinstance(rules, Unreachable):
                    self._forget(place.server)
                elif isinstance(result, Connection):
                    result = await self._caller.greet(place, rules, result)
                    if isinstance(result, Connection):
                        self._approach.note(place.server)
                        return result
                assert isinstance(result, Unreachable)
                trouble = self._fail(place.server, trouble, result)
                if result.everywhere:
                    return result
        finally:
            await self._race.close()
        return trouble

    def _forget(self, server: Server) -> None:
        self._race.forget(lambda place: place.server == server)

    def _fail(self, server: Server, old: Unreachable | None, new: Unreachable) -> Unreachable:
        self._approach.note(server, new)
        return worse(old, new)

    async def _pause(self) -> None:
        # Time in which the rules are looked up is no sign of an address that does not answer.
        await self._connecting.wait()
        await asyncio.sleep(self._approach.next_address)

    async def _dial(self, place: Place) -> Connection | Unreachable:
        self._connecting.clear()
        async with self._locks[place.server]:
            rules = self._rules.get(place.server)
            if rules is None:
                rules = await self._find_rules(place.server, place.located, self._found)
                self._rules[place.server] = rules
        if isinstance(rules, Unreachable):
            return rules
        self._connecting.set()
        return await self._caller.dial(place, rules)


def worse(old: Unreachable | None, new: Unreachable) -> Unreachable:
    """Of two troubles the one to report: it is for good only when every host said so."""
    if old is not None and old.result is Result.DEFERRED and new.result is Result.FAILED:
        return old
    return new
