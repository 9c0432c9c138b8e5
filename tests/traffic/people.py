"""Who sends to us on a made-up day: domains, and client hosts with a name and a reputation. What is true of them is
written down here once; the zone is made from it, and so is what one expects of the filters.

Addresses are those set aside for benchmarks (198.18.0.0/15, RFC 2544) and documentation (2001:db8::/32, RFC 3849);
names end in ``.test``.
"""

from __future__ import annotations

import ipaddress
import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tests.traffic import words

BLOCKED: Final = "block.lists.test"
DRONES: Final = "drones.lists.test"
TRUSTED: Final = "trusted.lists.test"
LISTS: Final = (BLOCKED, DRONES, TRUSTED)

OURS: Final = "example.org"
RELAXED: Final = "example.net"
"""Our domain with a pipeline of its own."""
HOSTNAME: Final = "mx.example.org"
DROPPED: Final = ipaddress.IPv4Network("198.18.250.0/24")
"""The network that is not even greeted."""
BULK: Final = "bulk.test"
"""Below it are senders whom the postmaster blocks."""
CLOSED: Final = f"closed@{OURS}"
"""A mailbox that exists and takes nothing."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class Reverse(StrEnum):
    """What the client's address leads to in the DNS."""

    CONFIRMED = "a name that leads back"
    GENERIC = "a name given in bulk, that leads back"
    FORGED = "a name that does not lead back"
    NONE = "no name"


class Helo(StrEnum):
    """What the client says at EHLO."""

    OWN = "its name"
    OURS = "our name"
    BARE = "an address without brackets"
    MISSING = "a name that does not exist"


@dataclass(frozen=True)
class Client:
    """A host that sends mail. `listed` are the DNS lists that list it; `sure`: its own name has an SPF record."""

    address: IPAddress
    name: str
    reverse: Reverse = Reverse.CONFIRMED
    helo: Helo = Helo.OWN
    listed: frozenset[str] = frozenset()
    sure: bool = False

    @property
    def greeting(self) -> str:
        """The name it gives at EHLO."""
        return {
            Helo.OWN: self.name,
            Helo.OURS: HOSTNAME,
            Helo.BARE: str(self.address),
            Helo.MISSING: f"gone.{self.name}",
        }[self.helo]


@dataclass(frozen=True)
class Domain:
    """A domain in whose name mail comes. `networks` are those that its SPF record lets send, None without a record, and
    `otherwise` is what that record says of others; `dmarc` is its policy, empty without one."""

    name: str
    networks: tuple[IPNetwork, ...] | None = None
    otherwise: str = "-all"
    signs: bool = False
    dmarc: str = ""

    def spf(self, client: Client) -> str:
        """What SPF says when this client sends in its name (RFC 7208 section 2.6)."""
        if self.networks is None:
            return "none"
        if any(client.address in network for network in self.networks):
            return "pass"
        return {"-all": "fail", "~all": "softfail", "?all": "neutral"}[self.otherwise]


@dataclass(frozen=True)
class House:
    """A sender with hosts of its own: a company, a provider of bulk mail, a mailing list."""

    domain: Domain
    clients: tuple[Client, ...]


class People:
    """All who may send, drawn from the dice; each kind has networks of its own."""

    def __init__(self, dice: random.Random, size: int) -> None:
        """`size` is how many transactions the day is to have: more mail comes from more hosts."""
        self._dice = dice
        self._networks = [n for n in range(384) if n != 250]
        self._names: set[str] = set()
        some = min(40, max(2, size // 400))
        self.partners = [self._house(3, signs=True, dmarc="reject") for _ in range(some)]
        self.cautious = [self._house(2, otherwise="~all", signs=True, dmarc="quarantine") for _ in range(some)]
        self.small = [self._house(1, spf=False) for _ in range(2 * some)]
        self.customers = [self._domain(signs=True, dmarc="none", network=None) for _ in range(some)]
        providers = min(60, max(2, size // 600))
        self.bulk = [self._house(4, signs=True, listed=(TRUSTED,) if n % 2 else ()) for n in range(providers)]
        self.greedy = self._house(1, signs=True)
        self.snowshoe = [self._house(6, signs=True, listed=(BLOCKED,)) for _ in range(max(1, some // 2))]
        self.lists = [self._house(1, signs=True), self._house(1, signs=True)]
        self.forwarders = [self._house(1, spf=False) for _ in range(max(1, some // 2))]
        self.blocked = [self._house(1, name=f"{self._label()}.{BULK}") for _ in range(2)]
        self.bots = [self._bot(n) for n in range(min(20_000, max(8, size // 8)))]
        self.dropped = [self._client(DROPPED, n, f"host{n}.dropped.test") for n in range(1, 20)]
        self.domains = [house.domain for house in self._houses()] + self.customers

    @property
    def clients(self) -> list[Client]:
        return [c for house in self._houses() for c in house.clients] + self.bots + self.dropped

    def _houses(self) -> list[House]:
        honest = [*self.partners, *self.cautious, *self.small, *self.bulk, *self.lists, *self.forwarders]
        return [*honest, self.greedy, *self.snowshoe, *self.blocked]

    def _label(self) -> str:
        while True:
            label = words.label(self._dice) + str(len(self._names) or "")
            if label not in self._names:
                self._names.add(label)
                return label

    def _network(self) -> ipaddress.IPv4Network:
        """The next free one."""
        return ipaddress.IPv4Network((int(ipaddress.IPv4Address("198.18.0.0")) + (self._networks.pop(0) << 8), 24))

    def _domain(self, *, network: ipaddress.IPv4Network | None, name: str = "", **what: object) -> Domain:
        networks: tuple[IPNetwork, ...] | None = None
        if network is not None:
            networks = (network, _six(network))
        return Domain(name or f"{self._label()}.test", networks, **what)  # type: ignore[arg-type]  # its own fields

    def _house(
        self, hosts: int, *, spf: bool = True, listed: tuple[str, ...] = (), name: str = "", **what: object
    ) -> House:
        network = self._network()
        domain = self._domain(network=network if spf else None, name=name, **what)
        first = self._dice.randrange(1, 40) * 6
        clients = [
            self._client(network, first + n, f"mail{n}.{domain.name}", listed=frozenset(listed), sure=spf, six=n == 1)
            for n in range(hosts)
        ]
        return House(domain, tuple(clients))

    def _client(
        self, network: ipaddress.IPv4Network, host: int, name: str, *, six: bool = False, **what: object
    ) -> Client:
        address: IPAddress = network[host]
        if six:
            address = _six(network)[host]
        return Client(address, name, **what)  # type: ignore[arg-type]  # its own fields

    def _bot(self, number: int) -> Client:
        """A machine that was broken into, somewhere in 198.19.128.0/17."""
        dice = self._dice
        address = ipaddress.IPv4Address("198.19.128.0") + number * 37 % 32_000 + 1
        reverse = dice.choices(list(Reverse), (10, 50, 15, 25))[0]
        helo = dice.choices(list(Helo), (60, 12, 13, 15))[0]
        listed = dice.choices(((), (BLOCKED,), (DRONES,), (BLOCKED, DRONES)), (20, 25, 20, 35))[0]
        name = f"dsl-{str(address).replace('.', '-')}.{number % 9}.isp.test"
        if reverse is not Reverse.GENERIC:
            name = f"box{_letters(number)}.{number % 9}.hosting.test"
        return Client(address, name, reverse, helo, frozenset(listed))


def _six(network: ipaddress.IPv4Network) -> ipaddress.IPv6Network:
    """The network of IPv6 that goes with it."""
    base = int(ipaddress.IPv6Address("2001:db8::")) + (int(network.network_address) >> 8 << 64)
    return ipaddress.IPv6Network((base, 64))


def _letters(number: int) -> str:
    """A number in letters, since digits in a name may make it look generic."""
    return "".join(chr(97 + int(digit)) for digit in str(number))
