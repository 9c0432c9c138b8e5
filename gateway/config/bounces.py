"""Bounces and return paths: who is told what, and which sender a message leaves with."""

from __future__ import annotations

import os
import stat
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, WithJsonSchema, model_validator

from gateway.config.values import DomainKey, DomainName, Duration, FilePath, Flag, Section, parse_domain_name, refuse
from gateway.mail.address import Address, AddressError, parse_mailbox
from gateway.mail.srs import HASH_MAX, HASH_MIN, Srs
from gateway.mail.verp import Verp
from gateway.sdk.options import parse_duration as seconds

SECRET_OCTETS: Final = 16
SECRETS: Final = 20
_FILE_OCTETS: Final = 65_536
_DAY: Final = 86400.0


def _address(value: Any) -> str:
    """An address in ASCII, its domain in A-labels, so that every host can be told it."""
    if not isinstance(value, str):
        raise ValueError("expected an address such as postmaster@example.org")
    try:
        found = parse_mailbox(value, utf8=True)
        found = Address(found.local, found.ascii_domain)
    except AddressError as error:
        raise ValueError(f"expected an address such as postmaster@example.org: {error}") from error
    if found.needs_smtputf8:
        raise ValueError("not every mail host takes an address whose local part is not ASCII")
    return str(found)


def _verp_sender(value: Any) -> str:
    """The key of an address, or ``@`` and a domain in A-labels."""
    if isinstance(value, str) and value.startswith("@"):
        return "@" + parse_domain_name(value[1:])
    if not isinstance(value, str):
        raise ValueError("expected an address, or @ and a domain")
    try:
        return parse_mailbox(value, utf8=True).key
    except AddressError as error:
        raise ValueError(f"expected an address, or @ and a domain: {error}") from error


To = Literal["proven", "never"]
MailAddress = Annotated[str, BeforeValidator(_address), WithJsonSchema({"type": "string", "pattern": "@"})]
VerpSender = Annotated[str, BeforeValidator(_verp_sender), WithJsonSchema({"type": "string", "pattern": "@"})]


def short_bounces(value: Any) -> Any:
    """The short form: who gets bounces, by itself."""
    return {"to": value} if isinstance(value, str) else value


class Bounces(Section):
    """What senders and postmaster are told. Short form: `bounces: never` says who gets bounces, and no more."""

    to: To = "proven"
    """`proven`: a DSN goes only to relay clients' senders and to those whom SPF or DMARC proved; other mail that cannot
    be delivered is put on hold. `never`: all of it is put on hold."""
    address: MailAddress | None = None
    """Author (From) of what Gatepost writes. Default: MAILER-DAEMON at `hostname`."""
    returned: Literal["headers", "full"] = "headers"
    """What a DSN returns of the message when its sender did not say (RET): the header section, or all of it up to
    100 KiB."""
    double: Literal["postmaster", "hold", "drop"] = "postmaster"
    """What becomes of mail from the null sender, which is a bounce as a rule, when it cannot be delivered: the
    postmaster gets a report with it, it is put on hold, or it is removed."""
    postmaster: MailAddress | None = None
    """Who gets these reports, and is named in DSNs. Default: postmaster at `hostname` if that is one of `domains`, else
    at the first of them."""


class VerpOptions(Section):
    """Variable envelope return paths."""

    senders: tuple[VerpSender, ...] = Field(min_length=1, max_length=10_000)
    """Whose mail leaves with the recipient in its sender: addresses, or `@example.org` for a domain's."""
    delimiters: Annotated[str, Field(pattern=r"^[-+=]{2}$")] = "+="
    """What stands before the recipient, and in place of its `@`: `owner+user=example.net@example.org`."""

    @property
    def scheme(self) -> Verp:
        return Verp(frozenset(self.senders), self.delimiters)


class SrsOptions(Section):
    """The Sender Rewriting Scheme."""

    domain: DomainName
    """Domain of rewritten senders. Its MX must lead here; it need not be one of `domains`."""
    secrets_file: FilePath
    """File with secrets of 16 characters or more, one in a line, not readable by everybody: the first one signs, all of
    them are good for reading."""
    keep: tuple[DomainKey, ...] = Field((), max_length=10_000)
    """Senders of these domains are not rewritten, as those of `domains`; `.example.org` stands for all subdomains."""
    valid: Annotated[Duration, Field(ge=_DAY, le=511 * _DAY)] = seconds("21d")
    """How long bounces to a rewritten address are taken; whole days."""
    hash_length: Annotated[int, Field(strict=True, ge=HASH_MIN, le=HASH_MAX)] = 8
    """Characters of the hash; others write 4. No shorter one is believed."""
    over_long: Flag = False
    """Whether a sender is rewritten when its local part becomes longer than 64 octets (RFC 5321 section 4.5.3.1.1);
    else it stays as it is."""
    bounces_only: Flag = True
    """Whether only the null sender may write to a rewritten address."""

    _secrets: tuple[bytes, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _read(self) -> Self:
        try:
            self._secrets = _read_secrets(self.secrets_file)
        except ValueError as error:
            raise refuse(("secrets_file",), str(error)) from None
        return self

    @property
    def scheme(self) -> Srs:
        return Srs(
            self.domain, self._secrets, self.hash_length, int(self.valid // _DAY), self.over_long, self.bounces_only
        )


def _read_secrets(path: str) -> tuple[bytes, ...]:
    """The secrets in a file. Raises ValueError, whose text never holds one."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IROTH | stat.S_IWOTH):
                raise ValueError(f"{path} holds secrets, and everybody can read or write it: chmod o= {path}")
            data = file.read(_FILE_OCTETS + 1)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    lines = [(n, line.strip()) for n, line in enumerate(data.splitlines(), 1)]
    found = [(n, line) for n, line in lines if line and not line.startswith(b"#")]
    if len(data) > _FILE_OCTETS or len(found) > SECRETS:
        raise ValueError(f"{path} holds more than {SECRETS} secrets or {_FILE_OCTETS} octets")
    if not found:
        raise ValueError(f"{path} holds no secret; `openssl rand -base64 24` makes one")
    for number, secret in found:
        if len(secret) < SECRET_OCTETS:
            raise ValueError(f"{path}, line {number}: a secret has {SECRET_OCTETS} characters at least")
    return tuple(secret for _, secret in found)
