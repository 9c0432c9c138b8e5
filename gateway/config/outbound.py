"""TLS towards other domains: what they publish about it, and what they want to hear of it."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from gateway.config.values import Flag, ReadableFile, Section, Text, refuse
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
    dkim_selector: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] | None = None
    """Selector of the DKIM key of the address's domain; needs `dkim_key`. Most receivers want reports to be signed."""
    dkim_key: ReadableFile | None = None
    """PEM file of that key, RSA or Ed25519."""

    @model_validator(mode="after")
    def _signed(self) -> Self:
        if (self.dkim_key is None) != (self.dkim_selector is None):
            missing = "dkim_key" if self.dkim_key is None else "dkim_selector"
            raise refuse((missing,), "dkim_selector and dkim_key go together")
        return self


class OutboundTls(Section):
    """TLS towards domains whose mail hosts are found by MX."""

    mta_sts: Flag = True
    """Keep to the MTA-STS policies that domains publish; they are fetched over HTTPS."""
    reports: TlsReports | None = None
    """TLS reports. Without it nothing is counted for them, and none is sent."""
