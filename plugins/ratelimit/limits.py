"""What is limited: options of one limit and of the entry, and at which stages a limit has something to do."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from gateway.sdk import Ending, OptionsModel, PluginOptions, Size, Stage
from gateway.sdk.options import parse_duration, parse_size

Part = Literal["client", "network", "asn", "helo", "sender", "sender_domain", "recipient", "recipient_domain"]

_RATE = re.compile(r"(\d{1,9})\s*([A-Za-z]+)?\s*/\s*(\d+(?:\.\d+)?)?\s*(s|m|h|d)\Z")
_OF_THE_CLIENT: Final = frozenset({"client", "network", "asn"})
_OF_A_RECIPIENT: Final = frozenset({"recipient", "recipient_domain"})
_ABOUT_RECIPIENTS: Final = ("1.", "2.")
"""Subjects of enhanced status codes that speak of an address or its mailbox (RFC 3463 sections 3.2 and 3.3)."""


class Counted(StrEnum):
    """What takes tokens."""

    CONNECTIONS = "connections"
    MESSAGES = "messages"
    RECIPIENTS = "recipients"
    BYTES = "bytes"
    INVALID_RECIPIENTS = "invalid_recipients"
    ERRORS = "errors"


class Use(StrEnum):
    """What a limit does with its bucket at a stage."""

    TAKE = "take"
    LOOK = "look"


def parse_rate(text: str, *, sized: bool = False) -> tuple[int, float]:
    """``100/1h`` as (100, tokens per second), with `sized` also ``50MiB/1h``.

    Raises ValueError with the forms that are understood.
    """
    match = _RATE.match(text)
    if match and (sized or not match[2]):
        count = parse_size(f"{match[1]}{match[2]}") if match[2] else int(match[1])
        seconds = parse_duration(f"{match[3] or 1}{match[4]}")
        if count and seconds:
            return count, count / seconds
    forms = "50MiB/1h or 500kB/m" if sized else "100/1h, 20/10m or 5/s"
    hint = "; a size has its place with count: bytes" if match and match[2] and not sized else ""
    raise ValueError(f"expected a rate such as {forms}, over 0{hint}")


class LimitOptions(OptionsModel):
    """One limit."""

    key: tuple[Part, ...] = Field(
        ("client",), min_length=1, max_length=8, description="What has a bucket of its own; a list combines."
    )
    rate: str = Field("100/1h", description="How many in how much time.")
    burst: Size | None = Field(None, description="Most tokens a bucket holds. Default: the number in `rate`.")
    count: Counted = Field(
        Counted.MESSAGES,
        description=(
            "What takes a token: `connections`, `messages`, `recipients`, `bytes`, `invalid_recipients` or `errors`."
        ),
    )

    @field_validator("key", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("burst")
    @classmethod
    def _something(cls, value: int | None) -> int | None:
        if value == 0:
            raise ValueError("a bucket that holds nothing lets nothing pass; leave it out, or say at least 1")
        return value

    @model_validator(mode="after")
    def _agree(self) -> LimitOptions:
        if len(set(self.key)) != len(self.key):
            raise ValueError("key names the same part twice")
        parse_rate(self.rate, sized=self.count is Counted.BYTES)
        if self.count is Counted.CONNECTIONS and not _OF_THE_CLIENT.issuperset(self.key):
            raise ValueError("connections are counted before anything but the client is known: client, network or asn")
        return self

    @property
    def capacity(self) -> float:
        """Tokens that a full bucket holds."""
        return float(self.burst or parse_rate(self.rate, sized=True)[0])

    @property
    def per_second(self) -> float:
        """Tokens that flow in."""
        return parse_rate(self.rate, sized=True)[1]

    @property
    def uses(self) -> dict[Stage, Use]:
        """What is done with the bucket at which stage."""
        keyed = [stage for stage in (Stage.CONNECT, Stage.MAIL, Stage.RCPT) if self._known_at(stage)]
        begun = Stage.MAIL if Stage.MAIL in keyed else Stage.RCPT
        match self.count:
            case Counted.CONNECTIONS:
                return {Stage.CONNECT: Use.TAKE}
            case Counted.MESSAGES:
                return {begun: Use.TAKE}
            case Counted.RECIPIENTS:
                return {Stage.RCPT: Use.TAKE}
            case Counted.BYTES:
                return {begun: Use.LOOK, Stage.MESSAGE: Use.TAKE}
            case Counted.INVALID_RECIPIENTS | Counted.ERRORS:
                return dict.fromkeys(keyed, Use.LOOK)

    def _known_at(self, stage: Stage) -> bool:
        """Whether all parts of the key are known there."""
        if stage is Stage.CONNECT:
            return _OF_THE_CLIENT.issuperset(self.key)
        return stage is Stage.RCPT or _OF_A_RECIPIENT.isdisjoint(self.key)

    def learns(self, ending: Ending) -> bool:
        """Whether how something ended takes a token."""
        permanent = ending.reply is not None and ending.reply.permanent
        match self.count:
            case Counted.INVALID_RECIPIENTS:
                return ending.stage is Stage.RCPT and permanent and _is_about_the_recipient(ending)
            case Counted.ERRORS:
                return ending.stage is None or permanent
        return False


def _is_about_the_recipient(ending: Ending) -> bool:
    """Whether a refusal at RCPT says that the recipient is wrong. One for another cause says so by its status.

    Where no entry refused, relay control did: the recipient is not ours.
    """
    detail = ending.reply.detail if ending.reply else ""
    return not ending.entry or not detail or detail.startswith(_ABOUT_RECIPIENTS)


class RateLimitOptions(LimitOptions, PluginOptions):
    """Options of `ratelimit`: one limit, or several in `limits`."""

    limits: tuple[LimitOptions, ...] = Field(
        (),
        max_length=50,
        description="Several limits, asked in order, each with `key`, `rate`, `burst` and `count` of its own.",
    )
    exempt_trusted: bool = Field(True, description="Let clients in `relay_from` pass uncounted.")
    ipv4_prefix: int = Field(24, ge=8, le=32, description="Bits of a `network` of IPv4.")
    ipv6_prefix: int = Field(64, ge=16, le=128, description="Bits of a `network` of IPv6; a `client`, too.")

    @model_validator(mode="after")
    def _one_way(self) -> RateLimitOptions:
        if "limits" in self.model_fields_set:
            if not self.limits:
                raise ValueError("limits is empty: leave it out, or list at least one")
            if beside := self.model_fields_set & LimitOptions.model_fields.keys():
                raise ValueError(f"{', '.join(sorted(beside))} cannot stand beside limits: write it in one of them")
        if len(set(self.limits)) != len(self.limits):
            raise ValueError("limits has the same limit twice, which would take two tokens each time")
        return self

    @property
    def every(self) -> tuple[LimitOptions, ...]:
        """All limits of the entry, in order."""
        return self.limits or (self,)

    @property
    def stages(self) -> frozenset[Stage]:
        """Where this entry has something to do."""
        return frozenset(stage for limit in self.every for stage in limit.uses)
