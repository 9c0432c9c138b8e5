"""Rate limits: a token bucket per client, network, sender or recipient, shared by all workers.

A bucket holds `burst` tokens, starts full and is refilled steadily. A message, or a recipient, that finds it empty is
deferred; nothing is ever refused for good.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from gateway.sdk import (
    NULL_SENDER,
    PROCEED,
    Plugin,
    PluginOptions,
    Policy,
    Rate,
    Recipient,
    Session,
    Stage,
    Transaction,
    Verdict,
    acts,
    defer,
)
from gateway.sdk.options import parse_duration

Part = Literal["client", "network", "sender", "sender_domain", "recipient", "recipient_domain"]

_RATE = re.compile(r"(\d{1,9})\s*/\s*(\d+(?:\.\d+)?)?\s*(s|m|h|d)\Z")
_RECIPIENT_PARTS: Final = frozenset({"recipient", "recipient_domain"})
_KEY_CHARACTERS: Final = 200


def parse_rate(text: str) -> tuple[int, float]:
    """``100/1h`` as (100, tokens per second); raises ValueError with the form that is understood."""
    match = _RATE.match(text)
    if match:
        count, seconds = int(match[1]), parse_duration(f"{match[2] or 1}{match[3]}")
        if count and seconds:
            return count, count / seconds
    raise ValueError("expected a rate such as 100/1h, 20/10m or 5/s, over 0")


class RateLimitOptions(PluginOptions):
    """Options of `ratelimit`."""

    key: tuple[Part, ...] = Field(
        ("client",), min_length=1, max_length=6, description="What has a bucket of its own; a list combines."
    )
    rate: str = Field("100/1h", description="How many in how much time.")
    burst: int | None = Field(None, gt=0, description="Most tokens a bucket holds. Default: the number in `rate`.")
    count: Literal["messages", "recipients"] = Field("messages", description="What takes a token.")
    exempt_trusted: bool = Field(True, description="Let clients in `relay_from` pass uncounted.")
    ipv4_prefix: int = Field(24, ge=8, le=32, description="Bits of a `network` of IPv4.")
    ipv6_prefix: int = Field(64, ge=16, le=128, description="Bits of a `network` of IPv6; a `client`, too.")

    @field_validator("key", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("rate")
    @classmethod
    def _readable(cls, value: str) -> str:
        parse_rate(value)
        return value

    @model_validator(mode="after")
    def _agree(self) -> RateLimitOptions:
        if len(set(self.key)) != len(self.key):
            raise ValueError("key names the same part twice")
        return self

    @property
    def at_rcpt(self) -> bool:
        """Whether tokens are taken at RCPT; else once, at MAIL."""
        return self.count == "recipients" or not _RECIPIENT_PARTS.isdisjoint(self.key)


@dataclass(frozen=True, slots=True)
class RecipientRate(Rate):
    """A token bucket was asked for one recipient."""


class RateLimitPolicy(Policy):
    """Defer what exceeds its rate."""

    name = "ratelimit"
    Options = RateLimitOptions
    options: RateLimitOptions

    def on_mail(self, rate: Rate) -> Verdict:
        return self._judge(rate, 451)

    def on_rcpt(self, rate: RecipientRate) -> Verdict:
        return self._judge(rate, 450)

    def _judge(self, rate: Rate, code: int) -> Verdict:
        if rate.allowed:
            return PROCEED
        reason = f"over {self.options.rate} for {rate.key}"
        return defer("7.1", "too many messages, try again later", code=code, reason=reason)


class RateLimitPlugin(Plugin):
    """Takes a token at MAIL, or for every recipient at RCPT, as the options say."""

    name = "ratelimit"
    Options = RateLimitOptions
    policy = RateLimitPolicy
    options: RateLimitOptions

    async def start(self) -> None:
        count, self._per_second = parse_rate(self.options.rate)
        self._capacity = float(self.options.burst or count)

    @acts(Stage.MAIL)
    async def at_mail(self, transaction: Transaction) -> Rate:
        """One token for the message, unless recipients are what counts."""
        if self.options.at_rcpt or self._exempt(transaction.session):
            return Rate(True, "", self._capacity, 0.0)
        return Rate(*await self._take(transaction, None))

    @acts(Stage.RCPT)
    async def at_rcpt(self, transaction: Transaction, recipient: Recipient) -> RecipientRate:
        """One token for the recipient, if recipients are what counts."""
        if not self.options.at_rcpt or self._exempt(transaction.session):
            return RecipientRate(True, "", self._capacity, 0.0)
        return RecipientRate(*await self._take(transaction, recipient))

    def _exempt(self, session: Session) -> bool:
        return self.options.exempt_trusted and session.trusted

    async def _take(self, transaction: Transaction, recipient: Recipient | None) -> tuple[bool, str, float, float]:
        shown = " ".join(f"{part} {self._value(part, transaction, recipient)}" for part in self.options.key)
        # The rate is part of the key: another entry, or a changed limit, begins with a bucket of its own.
        bucket = f"ratelimit {self.options.count} {self.options.rate} {self._capacity:g} {shown}"
        if len(bucket) > _KEY_CHARACTERS or not bucket.isascii():
            bucket = "ratelimit " + hashlib.sha256(bucket.encode("utf-8", "surrogatepass")).hexdigest()
        taken = await self.services.state.take(bucket, capacity=self._capacity, per_second=self._per_second)
        return taken.allowed, shown, round(taken.remaining, 3), round(taken.wait, 3)

    def _value(self, part: Part, transaction: Transaction, recipient: Recipient | None) -> str:
        session, sender = transaction.session, transaction.sender
        match part:
            case "client":
                return self._network(session, 32)
            case "network":
                return self._network(session, self.options.ipv4_prefix)
            case "sender" | "sender_domain":
                # Everybody's bounces share the null sender: count them per client, or one flood defers them all.
                if sender is NULL_SENDER:
                    return f"<> from {self._network(session, 32)}"
                return sender.key if part == "sender" else sender.ascii_domain
            case "recipient":
                return recipient.address.key if recipient else ""
            case "recipient_domain":
                return recipient.address.ascii_domain if recipient else ""

    def _network(self, session: Session, ipv4_prefix: int) -> str:
        """The client's network; of IPv6 always a network, since a client has as many addresses as it wants."""
        client = session.client
        if isinstance(client, ipaddress.IPv6Address) and client.ipv4_mapped:
            client = client.ipv4_mapped
        prefix = ipv4_prefix if client.version == 4 else self.options.ipv6_prefix
        network = ipaddress.ip_network((client, prefix), strict=False)
        return str(network.network_address) if network.num_addresses == 1 else str(network)
