"""Fakes of the services that a plugin is given, for tests: they pass the contract tests of the real ones.

Authors find them in `gateway.sdk.testing`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Final

from gateway.mail.address import NULL_SENDER, Address, AddressError, Sender, ascii_domain
from gateway.mail.session import Session
from gateway.sdk.services import (
    Answer,
    Callout,
    CalloutState,
    Clock,
    DnsStatus,
    Mx,
    OutboxError,
    RecipientRule,
    Record,
    State,
    StateError,
    Store,
    Taken,
    Tlsa,
)

_CHAIN: Final = 16


class ManualClock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, now: float = 1_000_000_000.0) -> None:
        self._now = now

    def now(self) -> float:
        """Seconds since 1970, UTC."""
        return self._now

    def monotonic(self) -> float:
        """The same seconds: this clock never goes back."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass; raises ValueError for time that goes back."""
        if seconds < 0:
            raise ValueError("time does not go back")
        self._now += seconds


class FakeDns:
    """DNS from dictionaries: a map from name to records for each type.

    A name that stands nowhere does not exist. Answers about the names in `authentic`, and about names below them, are
    validated by DNSSEC as far as each alias on the way is. `fails` are names whose nameservers do not answer; `slow`
    says for how many turns of the event loop a name's answer is kept back. `asked` lists the questions, in order.
    """

    def __init__(
        self,
        *,
        a: Mapping[str, Sequence[str]] | None = None,
        aaaa: Mapping[str, Sequence[str]] | None = None,
        mx: Mapping[str, Sequence[tuple[int, str]]] | None = None,
        txt: Mapping[str, Sequence[str | bytes]] | None = None,
        ptr: Mapping[str, Sequence[str]] | None = None,
        cname: Mapping[str, str] | None = None,
        ns: Mapping[str, Sequence[str]] | None = None,
        tlsa: Mapping[str, Sequence[Tlsa]] | None = None,
        authentic: Iterable[str] = (),
        fails: Iterable[str] = (),
        slow: Mapping[str, int] | None = None,
        ttl: float = 300.0,
    ) -> None:
        self.asked: list[tuple[str, str]] = []
        self._fails = {_dns_name(n) for n in fails}
        self._slow = {_dns_name(n): turns for n, turns in (slow or {}).items()}
        self._authentic = {_dns_name(n) for n in authentic}
        self._ttl = ttl
        self._records: dict[tuple[str, str], tuple[Record, ...]] = {}
        for rdtype, names in (("A", a), ("AAAA", aaaa)):
            self._put(rdtype, {n: list(v) for n, v in (names or {}).items()})
        self._put("TLSA", tlsa or {})
        for rdtype, names in (("PTR", ptr), ("NS", ns)):
            self._put(rdtype, {n: [_dns_name(t) for t in v] for n, v in (names or {}).items()})
        self._put("CNAME", {n: [_dns_name(t)] for n, t in (cname or {}).items()})
        self._put("TXT", {n: [t.encode() if isinstance(t, str) else t for t in v] for n, v in (txt or {}).items()})
        hosts = {n: sorted((p, _dns_name(h)) for p, h in v) for n, v in (mx or {}).items()}
        self._put("MX", {n: [Mx(p, h) for p, h in v] for n, v in hosts.items()})

    def _put(self, rdtype: str, names: Mapping[str, Sequence[Record]]) -> None:
        for name, records in names.items():
            self._records[_dns_name(name), rdtype] = tuple(records)

    async def lookup(self, name: str, rdtype: str) -> Answer:
        """Answer from the dictionaries; raises ValueError for a type that cannot be asked for."""
        if rdtype not in ("A", "AAAA", "MX", "TXT", "PTR", "CNAME", "NS", "TLSA"):
            raise ValueError(f"{rdtype} is no record type that can be asked for")
        wanted = _dns_name(name)
        self.asked.append((wanted, rdtype))
        for _ in range(self._slow.get(wanted, 0)):
            await asyncio.sleep(0)
        labels = wanted.split(".")
        if len(wanted) > 253 or not all(0 < len(label) < 64 for label in labels):
            return Answer(DnsStatus.NXDOMAIN)
        authentic, chain = True, ""
        for _ in range(_CHAIN + 1):
            authentic = authentic and self._is_authentic(wanted)
            if wanted in self._fails:
                return Answer(DnsStatus.FAILED, problem="SERVFAIL")
            if records := self._records.get((wanted, rdtype)):
                return Answer(DnsStatus.OK, records, self._ttl, authentic=authentic, alias=chain)
            alias = self._records.get((wanted, "CNAME"))
            if not alias:
                status = DnsStatus.NODATA if self._exists(wanted) else DnsStatus.NXDOMAIN
                return Answer(status, ttl=self._ttl, authentic=authentic, alias=chain)
            wanted = chain = str(alias[0])
        return Answer(DnsStatus.FAILED, problem="CNAME chain is too long")

    def _is_authentic(self, name: str) -> bool:
        return any(name == known or name.endswith("." + known) for known in self._authentic)

    def _exists(self, name: str) -> bool:
        """A name exists when it has records or when a name below it has (RFC 8020)."""
        return any(known == name or known.endswith("." + name) for known, _ in self._records)


def _dns_name(text: str) -> str:
    try:
        text = ascii_domain(text)
    except AddressError:
        return ""
    return text.lower().removesuffix(".")


class FakeState:
    """Shared state in a dictionary. Set `broken` to see what a plugin does when the store does not answer."""

    def __init__(self, clock: Clock) -> None:
        self.broken = False
        self._clock = clock
        self._entries: dict[str, tuple[bytes, float]] = {}
        self._buckets: dict[str, tuple[float, float]] = {}
        self._tallies: dict[str, tuple[float, dict[str, int]]] = {}

    def _check(self, key: str, value: bytes = b"", ttl: float = 1.0) -> None:
        if self.broken:
            raise StateError("the fake store is broken")
        if not 0 < len(key) <= 512:
            raise ValueError("a key has 1 to 512 characters")
        key.encode()
        if len(value) > 65_536:
            raise ValueError("a value has at most 65536 octets")
        if ttl <= 0:
            raise ValueError("a time to live is over 0 seconds")

    @property
    def exact(self) -> State:
        return self

    async def get(self, key: str) -> bytes | None:
        """The value, or None when there is none or its time is over."""
        self._check(key)
        value, expires = self._entries.get(key, (b"", 0.0))
        return value if expires > self._clock.now() else None

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        """Store for `ttl` seconds."""
        self._check(key, value, ttl)
        self._entries[key] = (bytes(value), self._clock.now() + ttl)

    async def put_new(self, key: str, value: bytes, ttl: float) -> bytes | None:
        """Store unless there is a value; give the value that was there, None when ours was stored."""
        self._check(key, value, ttl)
        there = await self.get(key)
        if there is None:
            await self.put(key, value, ttl)
        return there

    async def delete(self, key: str) -> None:
        """Forget the key."""
        self._check(key)
        self._entries.pop(key, None)

    async def take(self, key: str, *, capacity: float, per_second: float, cost: float = 1.0) -> Taken:
        """Take `cost` tokens from the bucket `key`, all or none."""
        self._check(key)
        if capacity <= 0 or per_second <= 0 or cost < 0:
            raise ValueError("a bucket needs a capacity and a rate over 0, and costs are not negative")
        now = self._clock.now()
        tokens, updated = self._buckets.get(key, (capacity, now))
        tokens = min(capacity, tokens + max(0.0, now - updated) * per_second)
        allowed = tokens + 1e-9 >= cost
        tokens = max(0.0, tokens - cost) if allowed else tokens
        self._buckets[key] = (tokens, now)
        return Taken(allowed, tokens, 0.0 if allowed else (cost - tokens) / per_second)

    async def count(self, key: str, member: str, ttl: float, by: int = 1) -> int:
        """Add `by` to the count of `member` in the tally `key`; gives the new count."""
        self._check(key, ttl=ttl)
        if not 0 < len(member) <= 2048:
            raise ValueError("a member has 1 to 2048 characters")
        member.encode()
        expires, counts = self._tallies.get(key, (0.0, {}))
        if expires <= self._clock.now():
            expires, counts = self._clock.now() + ttl, {}
        counts[member] = counts.get(member, 0) + by
        self._tallies[key] = expires, counts
        return counts[member]

    async def tally(self, key: str, limit: int = 10_000) -> dict[str, int]:
        """The counts of a tally, at most `limit` members, the largest counts first."""
        self._check(key)
        expires, counts = self._tallies.get(key, (0.0, {}))
        if expires <= self._clock.now():
            return {}
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit])


class FakeLines:
    """Connections before their greeting: a client in `talkers`, by address, talks after so many seconds."""

    def __init__(self, clock: ManualClock, talkers: Mapping[str, float] | None = None) -> None:
        self.talkers: dict[str, float] = dict(talkers or {})
        self._clock = clock

    async def early(self, session: Session, seconds: float) -> bool:
        """Whether it talks within `seconds`; the clock goes on by as much as was waited."""
        after = self.talkers.get(str(session.client))
        await asyncio.sleep(0)
        self._clock.advance(seconds if after is None else min(seconds, after))
        return after is not None and after <= seconds


class FakeOutbox:
    """Keeps what was sent in `sent`. Set `broken` to see what a plugin does when nothing can be queued."""

    def __init__(self) -> None:
        self.broken = False
        self.sent: list[tuple[Sender, tuple[Address, ...], bytes]] = []

    async def send(self, sender: Sender, recipients: Sequence[Address], content: bytes) -> str:
        """Keep the message; gives a queue id."""
        await asyncio.sleep(0)
        if self.broken:
            raise OutboxError("the fake outbox is broken")
        self.sent.append((sender, tuple(recipients), content))
        return f"SENT{len(self.sent):010}"


class FakeDirectory:
    """Domains and recipients from dictionaries, all keyed by address or by domain; the address wins.

    An address without a rule is not ours. A callout that is not scripted finds that the recipient exists; a store that
    is not has its domain's name. `called` lists the addresses that were called out for.
    """

    def __init__(
        self,
        rules: Mapping[str, RecipientRule] | None = None,
        callouts: Mapping[str, Callout] | None = None,
        stores: Mapping[str, Store] | None = None,
    ) -> None:
        self.rules: dict[str, RecipientRule] = dict(rules or {})
        self.callouts: dict[str, Callout] = dict(callouts or {})
        self.stores: dict[str, Store] = dict(stores or {})
        self.called: list[str] = []

    async def rule(self, address: Address) -> RecipientRule:
        """What the configuration would say about this recipient."""
        return self._rule(address)

    def _rule(self, address: Address) -> RecipientRule:
        return self.rules.get(address.key, self.rules.get(address.ascii_domain, RecipientRule.NOT_OURS))

    def store(self, address: Address) -> Store | None:
        """Who would know this recipient."""
        if self._rule(address) is RecipientRule.NOT_OURS:
            return None
        named = Store(address.ascii_domain)
        return self.stores.get(address.key, self.stores.get(address.ascii_domain, named))

    async def callout(self, address: Address) -> Callout:
        """What the store would say."""
        self.called.append(address.key)
        await asyncio.sleep(0)
        exists = Callout(CalloutState.EXISTS, "250 2.1.5 ok")
        return self.callouts.get(address.key, self.callouts.get(address.ascii_domain, exists))


class FakeCallouts:
    """What foreign mail hosts say, by address or by domain; what is not scripted exists.

    `asked` lists what was asked for, in order: address, sender as text, and whether private networks were allowed.
    """

    def __init__(self, answers: Mapping[str, Callout] | None = None) -> None:
        self.answers: dict[str, Callout] = dict(answers or {})
        self.asked: list[tuple[str, str, bool]] = []

    async def ask(self, address: Address, *, sender: Sender = NULL_SENDER, private: bool = False) -> Callout:
        """What the mail hosts of the address's domain would say."""
        self.asked.append((address.key, str(sender), private))
        await asyncio.sleep(0)
        exists = Callout(CalloutState.EXISTS, "250 2.1.5 ok")
        return self.answers.get(address.key, self.answers.get(address.ascii_domain, exists))


class BytesContent:
    """A message's content from bytes; line ends are made CRLF."""

    def __init__(self, data: bytes) -> None:
        self._data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")

    @property
    def size(self) -> int:
        """Octets."""
        return len(self._data)

    @property
    def eight_bit(self) -> bool:
        """Whether any octet is over 127."""
        return not self._data.isascii()

    @property
    def data(self) -> bytes:
        """All of it at once."""
        return self._data

    async def blocks(self) -> AsyncIterator[bytes]:
        """The octets in blocks of at most 1 MiB."""
        for at in range(0, len(self._data), 1 << 20):
            yield self._data[at : at + (1 << 20)]
