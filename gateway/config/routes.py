"""Domains and routes: where mail goes, and how the way there is protected."""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import replace
from typing import Annotated, Any, Final, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, WithJsonSchema, model_validator

from gateway.config.hop import SmtpHop
from gateway.config.problems import Path
from gateway.config.recipients import RecipientCheck, Recipients, RecipientsChoice
from gateway.config.values import (
    CaFile,
    Count,
    DomainKey,
    Duration,
    Flag,
    Section,
    parse_domain_key,
    parse_sender_key,
    refuse,
    resolve_path,
    section,
)
from gateway.sdk.files import FileContent
from gateway.sdk.options import OptionsModel
from gateway.sdk.options import parse_duration as seconds
from gateway.transport.order import Families
from gateway.transport.routing import FORMS, join_next_hops, parse_next_hop
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


class Alternative(OptionsModel):
    """One of several next hops, as RFC 2782 has them."""

    hop: NextHop
    """`smtp:` or `lmtp:`, all of a list the same."""
    priority: Annotated[Count, Field(le=65535)] | None = None
    """The lowest goes first. Default: its place in the list."""
    weight: Annotated[Count, Field(le=65535)] = 1
    """Its share among those with the same priority."""


def _alternatives(value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ValueError("expected a list of next hops")
    return [{"hop": one} if isinstance(one, str) else one for one in value]


NextHops = Annotated[
    Annotated[NextHop, Tag("one")]
    | Annotated[
        tuple[Alternative, ...],
        BeforeValidator(
            _alternatives,
            json_schema_input_type=Annotated[list[str | Alternative], Field(min_length=1, max_length=20)],
        ),
        Field(min_length=1, max_length=20),
        Tag("several"),
    ],
    Discriminator(lambda value: "several" if isinstance(value, (list, tuple)) else "one"),
]
CertificateName = Annotated[str, BeforeValidator(_name)]
_DANE: Final = (Security.DANE, Security.DANE_ONLY)


class Hop(Section):
    """A next hop with its security. Each subclass says whether `next_hop` has a default."""

    next_hop: NextHops
    """Where it goes."""

    tls: Security = Security.OPPORTUNISTIC
    """`none`, `opportunistic`, `require` (any certificate), `verify` (a certificate for the next hop's name), `dane`
    (by its TLSA records, if it has any) or `dane-only` (by its TLSA records)."""
    tls_ca: CaFile | None = None
    """PEM file of the CAs to trust for `verify`. Default: the system's."""
    tls_names: tuple[CertificateName, ...] = ()
    """Names that the certificate may be for with `verify`; `.example.net` for all names below. Default: the host's."""

    smtp: SmtpHop = section()
    """How a server is spoken to."""

    @model_validator(mode="after")
    def _tls_fits(self) -> Self:
        _check_alternatives(self.next_hop)
        if self.tls in _DANE and any(_is_address(hop.host) for hop in self.destination.servers):
            raise refuse(("tls",), "an address has no TLSA records; name the next hop by its host name")
        if problem := self.smtp.problem(self.destination):
            raise refuse(("smtp", problem[0]), problem[1])
        return self

    @property
    def destination(self) -> Destination:
        if isinstance(self.next_hop, str):
            found = self._parse(self.next_hop)
        else:
            several = enumerate(self.next_hop, 1)
            found = join_next_hops([(self._parse(a.hop), a.priority or place, a.weight) for place, a in several])
        if found.kind not in (Kind.SMTP, Kind.LMTP):
            return found
        return replace(found, tls_names=self.tls_names, hop=self.smtp.options())

    def _parse(self, hop: str) -> Destination:
        return parse_next_hop(hop, security=self.tls, tls_ca=self.tls_ca or "")


def _check_alternatives(given: str | tuple[Alternative, ...]) -> None:
    if isinstance(given, str):
        return
    priorities = [alternative.priority or place for place, alternative in enumerate(given, 1)]
    counts = Counter(priorities)
    for place, alternative in enumerate(given):
        if "weight" in alternative.model_fields_set and counts[priorities[place]] == 1:
            raise refuse(("next_hop", place, "weight"), "means nothing: no other next hop has the same priority")
    try:
        join_next_hops([(parse_next_hop(alternative.hop), 1, 1) for alternative in given])
    except ValueError as error:
        raise refuse(("next_hop",), str(error)) from None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Domain(Hop):
    """A domain that we take mail for."""

    next_hop: NextHops
    """`smtp:HOST:PORT`, `lmtp:HOST:PORT`, `lmtp:unix:PATH`, `maildir:PATH`, `mbox:PATH`, `https://HOST/PATH`,
    `transport:NAME`, `discard` or `mx`; or a list of the first three, each by itself or as a mapping of `hop`,
    `priority` and `weight`."""
    recipients: RecipientsChoice | None = None
    """`any`, or how they are checked. Default: callout for smtp and lmtp, any for the others."""
    pipeline: str | None = None
    """Its own pipeline, by name. Default: the listener's."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        kind = self.destination.kind
        if kind not in (Kind.SMTP, Kind.LMTP):
            for key in ("tls", "tls_ca", "tls_names", "smtp"):
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

    next_hop: NextHops = "mx"
    """`mx` follows the domain's MX records; otherwise a next hop or a list of them, as for domains."""


def _route(value: Any) -> Any:
    return {"next_hop": value} if isinstance(value, (str, list)) else value


AnyRoute = Annotated[Route, BeforeValidator(_route)]
SenderKey = Annotated[str, BeforeValidator(parse_sender_key), WithJsonSchema({"type": "string"})]


class Routes(Section):
    """Where mail for domains that are not ours goes."""

    default: AnyRoute = section()
    """`mx`, a next hop, or a mapping of `next_hop`, `tls`, `tls_ca`, `tls_names` and `smtp`."""
    domains: dict[DomainKey, AnyRoute] = {}
    """Recipients' domains with a way of their own, as for `default`; `.example.net` stands for all subdomains."""
    senders: dict[SenderKey, AnyRoute] = {}
    """Senders whose mail to other domains than these goes another way: an address, a domain, `.example.org` for all its
    subdomains, or `<>` for the null sender."""
    address_literals: Flag = False
    """Whether clients in `relay_from` may send to addresses such as `anna@[192.0.2.1]`, which goes to that address."""
    addresses: Families = Families.IPV4_FIRST
    """Which addresses of a host are used, and which first: `ipv4-first`, `ipv6-first`, `ipv4` or `ipv6`."""
    next_address_after: Annotated[Duration, Field(ge=0.01, le=60)] = seconds("250ms")
    """How long an address may take to answer before the next one is tried beside it."""
    max_addresses: Annotated[Count, Field(le=100)] = 10
    """Addresses that are tried in one attempt, of all hosts together."""

    @property
    def all(self) -> dict[Path, Route]:
        """Every route by where it stands in the file."""
        found: dict[Path, Route] = {("routes", "default"): self.default}
        for table, routes in (("domains", self.domains), ("senders", self.senders)):
            found |= {("routes", table, key): route for key, route in routes.items()}
        return found
