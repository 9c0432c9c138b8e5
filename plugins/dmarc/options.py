"""Options of `dmarc`."""

from __future__ import annotations

import ipaddress
import re
from enum import StrEnum
from typing import Final

from pydantic import Field, field_validator

from gateway.sdk import DmarcPolicy, Duration, OptionsModel, PluginOptions

_MAILBOX: Final = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@(?=.{1,253}\Z)[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+\Z"
)
_DOMAIN: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\Z")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Rules(StrEnum):
    """By which standard a message is judged."""

    RFC9989 = "rfc9989"
    RFC7489 = "rfc7489"


class TempError(StrEnum):
    """What is done when DMARC cannot be evaluated now."""

    PROCEED = "proceed"
    DEFER = "defer"


class ReportOptions(OptionsModel):
    """Aggregate reports (RFC 9990)."""

    org_name: str = Field(min_length=1, max_length=100, description="Name of who reports.")
    email: str = Field(description="Sender of the reports; its domain must pass DMARC, and names us as the submitter.")
    enabled: bool = Field(True, description="Collect and send.")
    contact: str = Field("", max_length=200, description="How else you can be reached.")
    interval: Duration = Field(
        86_400.0, ge=10, le=86_400, description="Time that one report covers; days begin at 00:00 UTC."
    )
    wait: Duration = Field(
        600.0, ge=0, le=43_200, description="Time from the end of that until reports are made, for what ends late."
    )
    max_domains: int = Field(2_000, ge=1, le=20_000, description="Policy domains that are reported on, per interval.")
    max_rows: int = Field(
        500, ge=1, le=5_000, description="Rows of a report; what comes on top is only counted, in its error element."
    )
    destinations: int = Field(4, ge=1, le=10, description="Addresses that get one domain's report.")
    exclude: tuple[str, ...] = Field(
        (), description="Recipients whose mail is not counted, such as the mailbox for the reports of others."
    )

    @field_validator("email")
    @classmethod
    def _mailbox(cls, value: str) -> str:
        if not _MAILBOX.match(value):
            raise ValueError("expected an address such as dmarc-reports@example.org")
        return value

    @field_validator("interval")
    @classmethod
    def _whole_days(cls, value: float) -> float:
        if value % 1 or 86_400 % value:
            raise ValueError("a day must hold a whole number of intervals: 24h, 12h, 8h, 6h, 1h, ...")
        return value

    @field_validator("exclude")
    @classmethod
    def _lower(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(address.lower() for address in value)


class DmarcOptions(PluginOptions):
    """Options of `dmarc`."""

    rules: Rules = Field(Rules.RFC9989, description="rfc9989 (tree walk) or rfc7489 (public suffix list, pct).")
    reject: DmarcPolicy = Field(DmarcPolicy.REJECT, description="What is done where the published policy is reject.")
    quarantine: DmarcPolicy = Field(
        DmarcPolicy.QUARANTINE, description="What is done where the published policy is quarantine."
    )
    no_author: DmarcPolicy = Field(
        DmarcPolicy.QUARANTINE, description="What is done when From is missing, malformed or names too many domains."
    )
    temperror: TempError = Field(
        TempError.PROCEED, description="Proceed or defer when the result cannot be known for now."
    )
    exempt_domains: tuple[str, ...] = Field(
        (), description="Author domains, with their sub-domains, whose policy is not applied."
    )
    exempt_networks: tuple[Network, ...] = Field((), description="Clients for whom no policy is applied.")
    trust_arc: bool = Field(
        True, description="Apply no policy when a trusted ARC chain says that the author's domain had passed."
    )
    reports: ReportOptions | None = Field(None, description="Aggregate reports; null sends none.")

    @field_validator("exempt_domains")
    @classmethod
    def _domains(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        lower = tuple(domain.lower().removesuffix(".") for domain in value)
        for domain in lower:
            if not _DOMAIN.match(domain):
                raise ValueError(f"{domain!r} is no domain; write internationalised ones as A-labels (xn--...)")
        return lower

    @field_validator("quarantine")
    @classmethod
    def _no_stricter(cls, value: DmarcPolicy) -> DmarcPolicy:
        if value is DmarcPolicy.REJECT:
            raise ValueError("quarantine is handled as quarantine or as none, and never more strictly than asked for")
        return value
