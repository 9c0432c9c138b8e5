"""Options of `greylist`."""

from __future__ import annotations

import re
from typing import Final, Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from gateway.sdk import AuthResult, Duration, PluginOptions, SpfResult

_DAY: Final = 86_400.0
_NAME: Final = re.compile(r"(?=.{1,253}\Z)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})\.)+[A-Za-z0-9-]{1,63}\Z")

# Names that hosts of these senders carried, confirmed by their addresses, in Received fields of public mailing lists;
# postgrey 1.37 lists the same senders as pools.
POOLS: Final[dict[str, tuple[str, ...]]] = {
    "google": ("google.com",),
    "microsoft": ("protection.outlook.com",),
    "amazon-ses": ("amazonses.com",),
    "yahoo": ("yahoo.com",),
}


class GreylistOptions(PluginOptions):
    """Options of `greylist`."""

    at: Literal["rcpt", "message"] = Field(
        "rcpt", description="Where to judge: at RCPT, or after DATA, where DKIM proves the sender, too."
    )
    when: Literal["suspicious", "always"] = Field(
        "suspicious", description="Whom to greylist: clients against which something speaks, or everybody."
    )
    delay: Duration = Field(300.0, gt=0, le=_DAY, description="How long a client has to wait before a retry passes.")
    window: Duration = Field(_DAY, gt=0, description="How long after the first attempt a retry is taken for one.")
    remember: Duration = Field(36 * _DAY, gt=0, description="How long who has passed is known without sending again.")
    learn_after: int = Field(
        5, ge=0, le=1000, description="Accepted messages after which all mail of a client passes; 0 never."
    )
    ipv4_prefix: int = Field(24, ge=8, le=32, description="Bits of a network of IPv4 that count as one client.")
    ipv6_prefix: int = Field(64, ge=16, le=128, description="Bits of a network of IPv6 that count as one client.")
    exempt: tuple[str, ...] = Field(
        ("postmaster", "abuse"), description="Local parts of recipients that are never greylisted."
    )
    null_sender: Literal["message", "exempt"] = Field(
        "message", description="What to do with the null sender: judge it after DATA, or never."
    )
    pools: dict[str, tuple[str, ...]] = Field(
        POOLS, max_length=100, description="Senders with many networks: name -> domains of their hosts."
    )
    pooled: Literal["one-key", "exempt"] = Field(
        "one-key", description="What a pool is: one client, or nobody to greylist."
    )
    suspicious_score: FiniteFloat | None = Field(
        1.0, description="Suspicious from this score of `dnsbl` on; null never is."
    )
    suspicious_spf: tuple[SpfResult, ...] = Field(
        (
            SpfResult.NONE,
            SpfResult.NEUTRAL,
            SpfResult.SOFTFAIL,
            SpfResult.FAIL,
            SpfResult.TEMPERROR,
            SpfResult.PERMERROR,
        ),
        description="Results of `spf` that are suspicious.",
    )
    suspicious_reverse: tuple[AuthResult, ...] = Field(
        (AuthResult.NONE, AuthResult.FAIL, AuthResult.PERMERROR),
        description="Results of the reverse name's check that are suspicious.",
    )
    suspicious_helo: bool = Field(True, description="Whether a problem with the HELO name is suspicious.")
    exempt_score: FiniteFloat | None = Field(
        -1.0, description="Never greylist down from this score of `dnsbl` (allow lists); null does."
    )
    pending: int = Field(
        10_000, ge=10, description="First attempts that are remembered of one client per `window`; more only wait."
    )
    tell_wait: bool = Field(False, description="Say in the reply how many seconds to wait.")

    @field_validator("exempt")
    @classmethod
    def _lower(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(part.lower() for part in value)

    @field_validator("pools")
    @classmethod
    def _names(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for pool, names in value.items():
            if not pool or not pool.isprintable() or len(pool) > 50:
                raise ValueError("a pool has a printable name of at most 50 characters")
            if not names or not all(_NAME.match(name) for name in names):
                raise ValueError(f"pool {pool}: name the domains of its hosts, such as example.org")
        return {pool: tuple(name.lower() for name in names) for pool, names in value.items()}

    @model_validator(mode="after")
    def _agree(self) -> GreylistOptions:
        if self.window <= self.delay:
            raise ValueError("window must be longer than delay, or no retry can pass")
        if self.remember < self.window:
            raise ValueError("remember must not be shorter than window")
        return self
