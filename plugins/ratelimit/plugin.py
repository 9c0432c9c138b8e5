"""The plugin that takes tokens and looks at buckets, and its policy."""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from prometheus_client import Counter

from gateway.sdk import (
    NULL_SENDER,
    PROCEED,
    Ending,
    Geo,
    Message,
    Plugin,
    Policy,
    Rate,
    Recipient,
    Services,
    Session,
    Stage,
    Transaction,
    Verdict,
    acts,
    defer,
    disconnect,
)
from plugins.ratelimit.limits import Counted, LimitOptions, Part, RateLimitOptions, Use

LIMITED = Counter(
    "gatepost_ratelimit_limited", "What found its bucket empty, by what is counted for whom.", ["counted", "key"]
)

_KEY_CHARACTERS: Final = 200
_TOO_MUCH: Final = {
    Counted.CONNECTIONS: "too many connections",
    Counted.RECIPIENTS: "too many recipients",
    Counted.BYTES: "too much data",
    Counted.INVALID_RECIPIENTS: "too many unknown recipients",
    Counted.ERRORS: "too many errors",
}


class RateLimitPolicy(Policy):
    """Defer what exceeds its rate."""

    name = "ratelimit"
    version = "2"
    Options = RateLimitOptions
    options: RateLimitOptions

    def __init__(self, options: RateLimitOptions) -> None:
        super().__init__(options)
        self.narrow(options.stages)

    def on_connect(self, rate: Rate) -> Verdict:
        if rate.allowed:
            return PROCEED
        return disconnect("7.0", _text(rate), reason=self._reason(rate))

    def on_mail(self, rate: Rate) -> Verdict:
        return self._judge(rate, 451)

    def on_rcpt(self, rate: Rate) -> Verdict:
        return self._judge(rate, 450)

    def on_message(self, rate: Rate) -> Verdict:
        return self._judge(rate, 451)

    def _judge(self, rate: Rate, code: int) -> Verdict:
        return PROCEED if rate.allowed else defer("7.1", _text(rate), code=code, reason=self._reason(rate))

    def _reason(self, rate: Rate) -> str:
        return f"over {rate.limit or self.options.rate} for {rate.key}"


def _text(rate: Rate) -> str:
    """What the client is told: what it has too much of, and neither how much it may have nor who else counts."""
    counted = Counted(rate.counted) if rate.counted else Counted.MESSAGES
    return f"{_TOO_MUCH.get(counted, 'too many messages')}, try again later"


@dataclass(frozen=True, slots=True)
class _Event:
    """What is known of what comes, or ended."""

    session: Session
    transaction: Transaction | None = None
    recipient: Recipient | None = None
    geo: Geo | None = None


class _Limit:
    """A limit made ready."""

    def __init__(self, options: LimitOptions) -> None:
        self.options = options
        self.capacity = options.capacity
        self.per_second = options.per_second
        self.uses = options.uses
        self.name = f"{options.rate} {options.count.value}"
        self.limited = LIMITED.labels(options.count.value, "+".join(options.key))

    def cost(self, octets: int) -> float:
        """Tokens for one that comes. A message that is larger than the bucket costs all that is in a full one."""
        return min(float(max(1, octets)), self.capacity) if self.options.count is Counted.BYTES else 1.0


class RateLimitPlugin(Plugin):
    """Takes tokens for what comes and for what went wrong, and finds out who has none left."""

    name = "ratelimit"
    Options = RateLimitOptions
    policy = RateLimitPolicy
    options: RateLimitOptions

    def __init__(self, options: RateLimitOptions, services: Services) -> None:
        super().__init__(options, services)
        self._limits = tuple(_Limit(limit) for limit in options.every)
        located = any("asn" in limit.key for limit in options.every)
        self.narrow(options.stages, without=() if located else {Geo})

    @acts(Stage.CONNECT)
    async def at_connect(self, session: Session, geo: Geo | None) -> Rate:
        """Connections take a token; what went wrong before is looked at."""
        return await self._ask(Stage.CONNECT, [_Event(session, geo=geo)])

    @acts(Stage.MAIL)
    async def at_mail(self, transaction: Transaction, geo: Geo | None) -> Rate:
        """Messages take a token; there must be as many as octets were declared (RFC 1870)."""
        event = _Event(transaction.session, transaction, geo=geo)
        return await self._ask(Stage.MAIL, [event], transaction.parameters.size)

    @acts(Stage.RCPT)
    async def at_rcpt(self, transaction: Transaction, recipient: Recipient, geo: Geo | None) -> Rate:
        """Recipients take a token, and messages whose key has a recipient."""
        event = _Event(transaction.session, transaction, recipient, geo)
        return await self._ask(Stage.RCPT, [event], transaction.parameters.size)

    @acts(Stage.MESSAGE)
    async def at_message(self, transaction: Transaction, message: Message, geo: Geo | None) -> Rate:
        """The message takes as many tokens as it has octets."""
        events = [_Event(transaction.session, transaction, r, geo) for r in (None, *transaction.recipients)]
        return await self._ask(Stage.MESSAGE, events, message.content.size)

    async def ended(self, ending: Ending) -> None:
        """Take a token for an unknown recipient or an error, whether or not there is one left."""
        if self._exempt(ending.session):
            return
        event = _Event(ending.session, ending.transaction, ending.recipient, ending.finding(Geo))
        for limit in self._limits:
            if limit.options.learns(ending):
                for values in self._values(limit, [event]):
                    await self._take(limit, values, 1.0)

    def _exempt(self, session: Session) -> bool:
        return self.options.exempt_trusted and session.trusted

    async def _ask(self, stage: Stage, events: list[_Event], octets: int = 0) -> Rate:
        """The first limit that is exceeded; when none is, the one with the least left of what it may have.

        A bucket that must give to several keys at once is looked at first, so that a refusal takes nothing from any.
        """
        tightest, least = Rate(True, "", self._limits[0].capacity, 0.0), float("inf")
        if self._exempt(events[0].session):
            return tightest
        for limit in self._limits:
            use = limit.uses.get(stage)
            if use is None:
                continue
            keys, cost = self._values(limit, events), limit.cost(octets)
            rates = [await self._look(limit, values, cost) for values in keys] if use is Use.LOOK or keys[1:] else []
            if use is Use.TAKE and all(rate.allowed for rate in rates):
                rates = [await self._take(limit, values, cost) for values in keys]
            for rate in rates:
                if not rate.allowed:
                    limit.limited.inc()
                    return rate
                if rate.remaining / limit.capacity < least:
                    tightest, least = rate, rate.remaining / limit.capacity
        return tightest

    async def _look(self, limit: _Limit, values: tuple[str, ...], cost: float) -> Rate:
        """Whether there are `cost` tokens; takes none."""
        taken = await self.services.state.take(
            self._bucket(limit, values), capacity=limit.capacity, per_second=limit.per_second, cost=0
        )
        # Refilled tokens are sums of fractions.
        short = cost - taken.remaining
        return self._rate(limit, values, short <= 1e-9, taken.remaining, max(0.0, short) / limit.per_second)

    async def _take(self, limit: _Limit, values: tuple[str, ...], cost: float) -> Rate:
        taken = await self.services.state.take(
            self._bucket(limit, values), capacity=limit.capacity, per_second=limit.per_second, cost=cost
        )
        return self._rate(limit, values, taken.allowed, taken.remaining, taken.wait)

    def _rate(self, limit: _Limit, values: tuple[str, ...], allowed: bool, remaining: float, wait: float) -> Rate:
        shown = " ".join(f"{part} {value}" for part, value in zip(limit.options.key, values, strict=True))
        return Rate(
            allowed,
            shown,
            round(remaining, 3),
            0.0 if allowed else round(wait, 3),
            counted=limit.options.count.value,
            limit=limit.name,
        )

    def _bucket(self, limit: _Limit, values: tuple[str, ...]) -> str:
        """The bucket's key. The limit is part of it: another one, or one that was changed, has a bucket of its own."""
        options = limit.options
        key = "ratelimit " + json.dumps([options.count, options.rate, limit.capacity, options.key, values])
        return key if len(key) <= _KEY_CHARACTERS else "ratelimit " + hashlib.sha256(key.encode()).hexdigest()

    def _values(self, limit: _Limit, events: Iterable[_Event]) -> list[tuple[str, ...]]:
        """What stands in the place of the key's parts, for each event that has them all, once each."""
        found: dict[tuple[str, ...], None] = {}
        for event in events:
            values = tuple(self._value(part, event) for part in limit.options.key)
            if all(values):
                found[values] = None
        return list(found)

    def _value(self, part: Part, event: _Event) -> str:
        """One part, empty when it is not known."""
        address = event.recipient.address if event.recipient else None
        match part:
            case "client":
                return self._network(event.session, 32)
            case "network":
                return self._network(event.session, self.options.ipv4_prefix)
            case "asn":
                # Networks of which nobody knows whose they are must not share one bucket.
                known = event.geo is not None and event.geo.asn > 0
                return f"AS{event.geo.asn}" if known and event.geo else self._value("network", event)
            case "helo":
                return event.session.helo.lower()
            case "sender" | "sender_domain":
                return self._sender(part, event)
            case "recipient":
                return address.key if address else ""
            case "recipient_domain":
                return address.ascii_domain or address.key if address else ""

    def _sender(self, part: Part, event: _Event) -> str:
        if event.transaction is None:
            return ""
        sender = event.transaction.sender
        # Everybody's bounces share the null sender: count them per client, or one flood defers them all.
        if sender is NULL_SENDER:
            return f"<> from {self._network(event.session, 32)}"
        return sender.key if part == "sender" else sender.ascii_domain

    def _network(self, session: Session, ipv4_prefix: int) -> str:
        """The client's network; of IPv6 always a network, since a client has as many addresses as it wants."""
        client = session.client
        if isinstance(client, ipaddress.IPv6Address) and client.ipv4_mapped:
            client = client.ipv4_mapped
        prefix = ipv4_prefix if client.version == 4 else self.options.ipv6_prefix
        network = ipaddress.ip_network((client, prefix), strict=False)
        return str(network.network_address) if network.num_addresses == 1 else str(network)
