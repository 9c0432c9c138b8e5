"""TLS towards other domains: what they publish about it, and what they want to hear of it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from gateway.config.values import Flag, Section, Text
from gateway.mail.address import AddressError, parse_mailbox


def _sender(value: Any) -> str:
    try:
        address = parse_mailbox(value) if isinstance(value, str) else None
    except AddressError as error:
        raise ValueError(str(error)) from error
    if address is None or not address.domain or address.domain.startswith("["):
        raise ValueError("expected an address such as tls-reports@example.org")
    return str(address)


class TlsReports(Section):
    """Daily reports to domains that ask for them (RFC 8460)."""

    email: Annotated[str, BeforeValidator(_sender)]
    """Address that sends them."""
    organization: Annotated[Text, Field(max_length=200)] | None = None
    """Who we are. Default: the hostname."""
    contact: Annotated[Text, Field(max_length=200)] | None = None
    """Whom to ask about a report. Default: `email`."""


class OutboundTls(Section):
    """TLS towards domains whose mail hosts are found by MX."""

    mta_sts: Flag = True
    """Keep to the MTA-STS policies that domains publish; they are fetched over HTTPS."""
    reports: TlsReports | None = None
    """TLS reports. Without it nothing is counted for them, and none is sent."""
