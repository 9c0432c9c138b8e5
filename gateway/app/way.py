"""Which way mail for an address would go now: looked up as for real mail, and not tried. Nothing is connected to."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.app.outbound import delivery_options, make_policies, make_resolver, make_router
from gateway.app.simulation import copy_state
from gateway.config import Config
from gateway.mail.address import Address, AddressError, Sender
from gateway.services.clock import SystemClock
from gateway.services.state import SqliteState
from gateway.smtp.domains import Domain, Domains
from gateway.transport import hosts
from gateway.transport.approach import Approach, Sight
from gateway.transport.hosts import Exchangers, Unreachable, failed
from gateway.transport.protection import Protection
from gateway.transport.routing import Way
from gateway.transport.rule import Rule
from gateway.transport.transport import Destination, Kind

SERVERS: Final = 50
"""Most servers of a destination that are looked up."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A server that would be tried. `addresses` are in their order; none, and `problem`, where it cannot be.

    `rules` are those for TLS, the next when the one before fails.
    """

    host: str
    port: int
    path: str
    priority: int
    weight: int
    addresses: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        place: dict[str, Any] = {"path": self.path} if self.path else {"host": self.host, "port": self.port}
        told = {"priority": self.priority, "weight": self.weight, "addresses": list(self.addresses)}
        return place | told | {"tls": [_rule(rule) for rule in self.rules], "problem": self.problem or None}


def _rule(rule: Rule) -> dict[str, Any]:
    tlsa = [str(record) for record in rule.tlsa]
    return {"policy": rule.policy, "level": rule.level.name.lower(), "names": list(rule.names), "tlsa": tlsa}


@dataclass(frozen=True, slots=True)
class Journey:
    """The way to an address. `taken` says from whom: everybody, relay_from or nobody.

    `servers` are in the order of trying. `refusal` is what would become of the mail where it cannot go anywhere now.
    """

    recipient: Address
    taken: str
    way: Way | None
    servers: tuple[Stop, ...] = ()
    refusal: Unreachable | None = None

    def to_json(self) -> dict[str, Any]:
        destination = self.way.destination if self.way else None
        return {
            "recipient": str(self.recipient),
            "taken_from": self.taken,
            "route": self.way.key if self.way else None,
            "destination": str(destination) if destination else None,
            "transport": destination.kind.value if destination else None,
            "tls": destination.security.value if destination and _speaks(destination) else None,
            "servers": [server.to_json() for server in self.servers],
            "refusal": self.refusal and {"result": self.refusal.result.value, "reply": str(self.refusal.reply)},
        }


async def find_way(config: Config, recipient: Address, sender: Sender, rng: random.Random | None = None) -> Journey:
    """The way of mail from this sender. Raises `gateway.sdk.services.StateError`, OSError and `sqlite3.Error`."""
    domains = Domains({name: Domain(name) for name in config.domains})
    if not recipient.domain:
        recipient = domains.postmaster(config.hostname) or recipient
    taken = _taken(config, domains, recipient)
    try:
        way = make_router(config).find(recipient, sender=sender)
    except AddressError as error:
        return Journey(recipient, taken, None, refusal=failed(550, "1.2", str(error)))
    if not _speaks(way.destination):
        return Journey(recipient, taken, way)
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="gatepost-route-") as folder:
        # MTA-STS policies that were fetched hold, and what is fetched now stays here.
        await asyncio.to_thread(copy_state, Path(config.state.path), Path(folder))
        state, dns = SqliteState(Path(folder), clock), make_resolver(config, clock)
        await state.start()
        policies = make_policies(config, dns, state, clock)
        try:
            protection = Protection(way.destination, dns, policies)
            approach = Approach(way.destination, delivery_options(config), dns, rng or random.Random())
            servers, refusal = await _look(approach, protection, way.destination)
        finally:
            if policies is not None:
                await policies.close()
            await dns.close()
            await state.close()
    return Journey(recipient, taken, way, tuple(servers), refusal)


def _taken(config: Config, domains: Domains, recipient: Address) -> str:
    if domains.find(recipient) is not None:
        return "everybody"
    literal = recipient.domain.startswith("[")
    return "relay_from" if config.relay_from and (not literal or config.routes.address_literals) else "nobody"


def _speaks(destination: Destination) -> bool:
    return destination.kind in (Kind.SMTP, Kind.LMTP)


async def _look(
    approach: Approach, protection: Protection, destination: Destination
) -> tuple[list[Stop], Unreachable | None]:
    """The servers up to ourselves, and why none of them can be tried."""
    found = await approach.find()
    if isinstance(found, Unreachable):
        return [], found
    servers: list[Stop] = []
    trouble: Unreachable | None = None
    for group in found.groups:
        sights = await approach.locate(group[: max(SERVERS - len(servers), 0)])
        if any(sight.own for sight in sights):
            trouble = trouble or (None if servers else hosts.loops(destination.host))
            break
        for sight in sights:
            server, problem = await _see(sight, protection, found)
            servers.append(server)
            trouble = trouble or problem
    return servers, None if any(server.addresses or server.path for server in servers) else trouble


async def _see(sight: Sight, protection: Protection, found: Exchangers) -> tuple[Stop, Unreachable | None]:
    server, located = sight.server, sight.located
    place = (server.host, server.port, server.path, server.priority, server.weight)
    if isinstance(located, Unreachable):
        return Stop(*place, problem=str(located.reply)), located
    if server.path:
        return Stop(*place), None
    rules = await protection.rules(server.host, located, found, port=server.port)
    if isinstance(rules, Unreachable):
        return Stop(*place, problem=str(rules.reply)), rules
    return Stop(*place, tuple(located.addresses), tuple(rules)), None


def describe_rules(rules: Sequence[Rule]) -> str:
    """The rules as one short text for people."""
    return ", else ".join(f"{rule.policy} ({rule.level.name.lower()})" for rule in rules)
