"""Domains and routes: where mail goes, and how the way there is protected."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Annotated, Any, Final, Self

from pydantic import BeforeValidator, ValidationInfo, model_validator

from gateway.config.recipients import RecipientCheck, Recipients, RecipientsChoice
from gateway.config.values import CaFile, Section, parse_domain_key, refuse, resolve_path, section
from gateway.sdk.files import FileContent
from gateway.transport.routing import FORMS, parse_next_hop
from gateway.transport.transport import Destination, Kind, Security


def _next_hop(value: Any, info: ValidationInfo) -> str:
    """Check a next hop, and make a path in it absolute."""
    if not isinstance(value, str):
        raise ValueError(f"expected a next hop: {FORMS}")
    text: str = value.strip()
    for scheme in ("maildir:", "mbox:", "smtp:unix:", "lmtp:unix:"):
        if text.startswith(scheme) and len(text) > len(scheme):
            text = scheme + resolve_path(text[len(scheme) :], info)
    parse_next_hop(text)
    return text


def _name(value: Any) -> str:
    if isinstance(value, str) and value.startswith(("*", "[")):
        raise ValueError("expected a name, or a dot and a domain for all names below it")
    return parse_domain_key(value)


NextHop = Annotated[str, BeforeValidator(_next_hop)]
CertificateName = Annotated[str, BeforeValidator(_name)]
_DANE: Final = (Security.DANE, Security.DANE_ONLY)


class Hop(Section):
    """A next hop with its security. Each subclass says whether `next_hop` has a default."""

    next_hop: NextHop
    """Where it goes."""

    tls: Security = Security.OPPORTUNISTIC
    """`none`, `opportunistic`, `require` (any certificate), `verify` (a certificate for the next hop's name), `dane`
    (by its TLSA records, if it has any) or `dane-only` (by its TLSA records)."""
    tls_ca: CaFile | None = None
    """PEM file of the CAs to trust for `verify`. Default: the system's."""
    tls_names: tuple[CertificateName, ...] = ()
    """Names that the certificate may be for with `verify`; `.example.net` for all names below. Default: the host's."""

    @model_validator(mode="after")
    def _tls_fits(self) -> Self:
        host = self.destination.host
        if self.tls in _DANE and host and _is_address(host):
            raise refuse(("tls",), "an address has no TLSA records; name the next hop by its host name")
        return self

    @property
    def destination(self) -> Destination:
        found = parse_next_hop(self.next_hop, security=self.tls, tls_ca=self.tls_ca or "")
        return replace(found, tls_names=self.tls_names) if self.tls_names else found


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Domain(Hop):
    """A domain that we take mail for."""

    next_hop: NextHop
    """`smtp:HOST:PORT`, `lmtp:HOST:PORT`, `lmtp:unix:PATH`, `maildir:PATH`, `mbox:PATH`, `https://HOST/PATH`,
    `transport:NAME`, `discard` or `mx`."""
    recipients: RecipientsChoice | None = None
    """`any`, or how they are checked. Default: callout for smtp and lmtp, any for the others."""
    pipeline: str | None = None
    """Its own pipeline, by name. Default: the listener's."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        kind = self.destination.kind
        if kind not in (Kind.SMTP, Kind.LMTP):
            for key in ("tls", "tls_ca", "tls_names"):
                if key in self.model_fields_set:
                    raise refuse((key,), f"means nothing for {self.destination if kind is Kind.NAMED else kind}")
            if self.check is RecipientCheck.CALLOUT:
                raise refuse(("recipients",), f"{kind} cannot be asked for its recipients")
        return self

    @property
    def check(self) -> RecipientCheck:
        """How recipients are checked, the default resolved."""
        match self.recipients:
            case "any":
                return RecipientCheck.ANY
            case Recipients():
                return self.recipients.check
        return RecipientCheck.CALLOUT if self.destination.kind in (Kind.SMTP, Kind.LMTP) else RecipientCheck.ANY

    @property
    def listed(self) -> frozenset[str]:
        """The local parts of a listed domain, in lower case; empty when it is checked in another way."""
        return self.recipients.listed if isinstance(self.recipients, Recipients) else frozenset()

    @property
    def list_read(self) -> FileContent[frozenset[str]] | None:
        """What the list file held; None without one."""
        return self.recipients.list_read if isinstance(self.recipients, Recipients) else None


class Route(Hop):
    """Where mail for a domain that is not ours goes."""

    next_hop: NextHop = "mx"
    """`mx` follows the domain's MX records; otherwise a next hop, as for domains."""


def _route(value: Any) -> Any:
    return {"next_hop": value} if isinstance(value, str) else value


class Routes(Section):
    """Where mail for domains that are not ours goes."""

    default: Annotated[Route, BeforeValidator(_route)] = section()
    """`mx`, a next hop, or a mapping of `next_hop`, `tls`, `tls_ca` and `tls_names`."""
