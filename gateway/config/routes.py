"""Domains and routes: where mail goes, whose recipients are known, and how the way there is protected."""

from __future__ import annotations

import ssl
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    PrivateAttr,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from gateway.config.values import ReadableFile, Section, refuse, resolve_path, section
from gateway.mail.address import AddressError, parse_mailbox
from gateway.transport.routing import FORMS, parse_next_hop
from gateway.transport.transport import Destination, Kind, Security

_LIST_FILE_OCTETS: Final = 64 << 20


def _next_hop(value: Any, info: ValidationInfo) -> str:
    """Check a next hop, and make a path in it absolute."""
    if not isinstance(value, str):
        raise ValueError(f"expected a next hop: {FORMS}")
    text: str = value.strip()
    for scheme in ("maildir:", "smtp:unix:", "lmtp:unix:"):
        if text.startswith(scheme) and len(text) > len(scheme):
            text = scheme + resolve_path(text[len(scheme) :], info)
    parse_next_hop(text)
    return text


def _security(value: Any) -> Any:
    if value in ("dane", "dane-only"):
        raise ValueError(f"{value} is not built yet; one of none, opportunistic, require, verify")
    return value


def _ca_file(value: Any, info: ValidationInfo) -> str:
    path = resolve_path(value, info)
    try:
        ssl.create_default_context(cafile=path)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "strerror", None) if not isinstance(error, ssl.SSLError) else None
        raise ValueError(f"cannot read CA certificates from {path}: {reason or 'no PEM certificates'}") from error
    return path


NextHop = Annotated[str, BeforeValidator(_next_hop)]
CaFile = Annotated[str, BeforeValidator(_ca_file)]
TlsLevel = Annotated[Security, BeforeValidator(_security)]


class RecipientCheck(StrEnum):
    """How recipients of a domain are checked."""

    ANY = "any"
    LIST = "list"
    CALLOUT = "callout"


def local_part(text: str) -> str:
    """A local part as lists compare it: unquoted, in lower case (see `Address.key`). Raises ValueError."""
    try:
        return parse_mailbox(f"{text}@list.invalid", utf8=True).local.lower()
    except AddressError as error:
        raise ValueError(f"{text[:64]!r} is no local part: {error}") from error


def _read_list(path: str) -> frozenset[str]:
    """Local parts, one a line; what follows ``#`` at the start of a line is a comment. Raises ValueError."""
    with open(path, "rb") as file:
        data = file.read(_LIST_FILE_OCTETS + 1)
    if len(data) > _LIST_FILE_OCTETS:
        raise ValueError(f"{path} is larger than {_LIST_FILE_OCTETS >> 20} MiB")
    out = set()
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8") from error
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not text.startswith("#"):
            try:
                out.add(local_part(text))
            except ValueError as error:
                raise ValueError(f"{path} line {number}: {error}") from error
    return frozenset(out)


class Recipients(Section):
    """Which recipients a domain has."""

    list: tuple[str, ...] | None = None
    """Their local parts."""
    list_file: ReadableFile | None = None
    """A file with their local parts, one a line; read at start and at reload."""
    verify: Literal["callout"] | None = None
    """`callout` asks the next hop during the session and remembers its answer."""

    _listed: frozenset[str] = PrivateAttr(frozenset())

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("give one of list, list_file and verify")
        try:
            if self.list is not None:
                self._listed = frozenset(map(local_part, self.list))
            elif self.list_file is not None:
                self._listed = _read_list(self.list_file)
        except ValueError as error:
            raise refuse((*self.model_fields_set,), str(error)) from error
        return self

    @property
    def check(self) -> RecipientCheck:
        return RecipientCheck.CALLOUT if self.verify else RecipientCheck.LIST

    @property
    def listed(self) -> frozenset[str]:
        """All listed local parts in lower case."""
        return self._listed


def _any(value: Any) -> Any:
    if value != "any":
        raise ValueError("expected any, or a mapping with one of list, list_file and verify")
    return value


RecipientsChoice = Annotated[
    Annotated[Literal["any"], BeforeValidator(_any), Tag("any")] | Annotated[Recipients, Tag("check")],
    Discriminator(lambda value: "any" if isinstance(value, str) else "check"),
]


class Hop(Section):
    """A next hop with its security. Each subclass says whether `next_hop` has a default."""

    next_hop: NextHop
    """Where it goes."""

    tls: Annotated[TlsLevel, WithJsonSchema({"enum": [level.value for level in Security]})] = Security.OPPORTUNISTIC
    """`none`, `opportunistic`, `require` (any certificate) or `verify` (a certificate for the next hop's name)."""
    tls_ca: CaFile | None = None
    """PEM file of the CAs to trust for `verify`. Default: the system's."""

    @property
    def destination(self) -> Destination:
        return parse_next_hop(self.next_hop, security=self.tls, tls_ca=self.tls_ca or "")


class Domain(Hop):
    """A domain that we take mail for."""

    next_hop: NextHop
    """`smtp:HOST:PORT`, `lmtp:HOST:PORT`, `lmtp:unix:PATH`, `maildir:PATH`, `discard` or `mx`."""
    recipients: RecipientsChoice | None = None
    """`any`, or how they are checked. Default: callout for smtp and lmtp, any for the others."""
    pipeline: str | None = None
    """Its own pipeline, by name. Default: the listener's."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        kind = self.destination.kind
        if kind not in (Kind.SMTP, Kind.LMTP):
            for key in ("tls", "tls_ca"):
                if key in self.model_fields_set:
                    raise refuse((key,), f"means nothing for {kind}")
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


class Route(Hop):
    """Where mail for a domain that is not ours goes."""

    next_hop: NextHop = "mx"
    """`mx` follows the domain's MX records; otherwise a next hop."""


def _route(value: Any) -> Any:
    return {"next_hop": value} if isinstance(value, str) else value


class Routes(Section):
    """Where mail for domains that are not ours goes."""

    default: Annotated[Route, BeforeValidator(_route)] = section()
    """`mx`, a next hop, or a mapping of `next_hop`, `tls` and `tls_ca`."""
