"""Whose mail a domain takes: everybody's, those on a list, those whom its next hop or an LDAP directory knows.

*RFCs*: 5233 section 4 (subaddresses).
"""

from __future__ import annotations

import codecs
import re
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    PrivateAttr,
    Tag,
    WithJsonSchema,
    model_validator,
)

from gateway.config.values import CaFile, Duration, Flag, ReadableFile, Section, Text, refuse
from gateway.mail.address import AddressError, parse_mailbox
from gateway.sdk.files import FileContent, read_file
from gateway.sdk.findings import WhenDown
from gateway.services.ldap_options import LdapOptions, check_dn, check_filter, check_library, parse_uri

LIST_OCTETS: Final = 64 << 20
"""Size of a list file, at most."""

# Nearly every line is one of these; the full grammar takes ten times as long.
_PLAIN: Final = re.compile(rb"[A-Za-z0-9_+=-]+(?:\.[A-Za-z0-9_+=-]+)*\Z")
_LOCAL_PART_OCTETS: Final = 64
_SOURCES: Final = ("list", "list_file", "verify", "ldap")
_ONE_OF: Final = "give one of list, list_file, verify and ldap"


class RecipientCheck(StrEnum):
    """How recipients of a domain are checked."""

    ANY = "any"
    LIST = "list"
    CALLOUT = "callout"
    LDAP = "ldap"


def local_part(text: str) -> str:
    """A local part as lists compare it: unquoted, in lower case (see `Address.key`). Raises ValueError."""
    try:
        return parse_mailbox(f"{text}@list.invalid", utf8=True).local.lower()
    except AddressError as error:
        raise ValueError(f"{text[:64]!r} is no local part: {error}") from error


def parse_list(data: bytes) -> frozenset[str]:
    """Local parts, one a line; a line that begins with ``#`` is a comment. Raises ValueError, saying which line.

    Some editors put a byte order mark in front, which is none of the first one's letters.

    A file without any is refused: it is one that somebody is just writing, sooner than a domain without people.
    """
    out = set()
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).splitlines(), 1):
        octets = line.strip()
        if _PLAIN.match(octets) and len(octets) <= _LOCAL_PART_OCTETS:
            out.add(octets.decode("ascii").lower())
        elif octets and not octets.startswith(b"#"):
            try:
                out.add(local_part(octets.decode()))
            except UnicodeDecodeError as error:
                raise ValueError(f"line {number}: not UTF-8") from error
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    if not out:
        raise ValueError("no address in it; to take mail for nobody, write list: []")
    return frozenset(out)


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _uri(value: str) -> str:
    parse_uri(value)
    return value


def _filter(value: str) -> str:
    check_library()
    check_filter(value)
    return value


def _dn(value: str) -> str:
    check_library()
    check_dn(value)
    return value


Uris = Annotated[
    tuple[Annotated[str, AfterValidator(_uri)], ...],
    BeforeValidator(_one_or_more),
    Field(min_length=1, max_length=10),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
Dn = Annotated[Text, AfterValidator(_dn)]
Filter = Annotated[Text, AfterValidator(_filter)]


class Ldap(Section):
    """An LDAP directory that knows a domain's recipients: those that the filter finds an entry for."""

    uri: Uris
    """`ldap://HOST:PORT` or `ldaps://HOST:PORT`, or a list of them: the first that answers is asked."""
    base: Dn
    """The entry below which is searched, such as `ou=people,dc=example,dc=org`."""
    filter: Filter = "(mail=%s)"
    """What an entry must match: `%s` stands for the address, `%u` for its local part, `%d` for its domain."""
    scope: Literal["subtree", "one", "base"] = "subtree"
    """`subtree`: all below the base; `one`: directly below it; `base`: the base itself."""
    bind_dn: Dn | None = None
    """Whom to bind as. Default: nobody."""
    password_file: ReadableFile | None = None
    """A file with the password for it in its first line; read at each new connection."""
    starttls: Flag = False
    """Begin TLS with StartTLS. The certificate is checked, as it is with `ldaps`."""
    tls_ca: CaFile | None = None
    """PEM file of the CAs to trust. Default: the system's."""
    timeout: Duration = 4.0
    """For one question, all servers together; after it the directory counts as down."""
    connect_timeout: Duration = 2.0
    """For connecting to one server, with TLS and bind."""
    connections: Annotated[int, Field(strict=True, ge=1, le=64)] = 4
    """At once, per worker."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        check_library()
        if (self.bind_dn is None) != (self.password_file is None):
            given, missing = ("bind_dn", "password_file") if self.bind_dn else ("password_file", "bind_dn")
            raise refuse((given,), f"needs {missing}, too")
        if self.password_file is not None:
            with open(self.password_file, "rb") as file:
                if not file.readline(4096).strip(b"\r\n"):
                    # A bind with an empty password succeeds as nobody (RFC 4513 section 5.1.2).
                    raise refuse(("password_file",), "the first line is empty; it must hold the password")
        servers = [parse_uri(uri) for uri in self.uri]
        if self.starttls and any(server.tls for server in servers):
            raise refuse(("starttls",), "does not go with ldaps://, which begins with TLS")
        if self.tls_ca and not self.starttls and not any(server.tls for server in servers):
            raise refuse(("tls_ca",), "means nothing without ldaps:// or starttls: true")
        return self

    def options(self) -> LdapOptions:
        """As the look-up takes it."""
        return LdapOptions(
            tuple(parse_uri(uri) for uri in self.uri),
            self.base,
            self.filter,
            self.scope,
            self.bind_dn,
            self.password_file or "",
            self.starttls,
            self.tls_ca or "",
            self.timeout,
            self.connect_timeout,
            self.connections,
        )


def _separators(value: str) -> str:
    if not 1 <= len(value) <= 4 or any(not c.isascii() or c.isalnum() or c in '@"\\ .' for c in value):
        raise ValueError('expected separators such as "+" or "+-": at most four characters, no letters or digits')
    return value


class Recipients(Section):
    """Which recipients a domain has."""

    list: tuple[str, ...] | None = None
    """Their local parts."""
    list_file: ReadableFile | None = None
    """A file with their local parts, one a line; read again when it changes."""
    verify: Literal["callout"] | None = None
    """`callout` asks the next hop during the session and remembers its answer."""
    ldap: Ldap | None = None
    """They are looked up in an LDAP directory, and the answer is remembered."""
    when_down: Annotated[WhenDown, PlainSerializer(str)] | None = None
    """While the next hop or the directory does not answer: `defer` or `accept`. Default: as plugin `recipient` says."""
    subaddress: Annotated[str, AfterValidator(_separators)] | None = None
    """Characters that separate a subaddress: with `+`, `anna+news` is looked up, and then `anna`. Default: none."""

    _listed: frozenset[str] = PrivateAttr(frozenset())
    _read: FileContent[frozenset[str]] | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        sources = [name for name in _SOURCES if name in self.model_fields_set]
        if len(sources) != 1 or getattr(self, sources[0]) is None:
            raise ValueError(_ONE_OF)
        if self.subaddress is not None and self.verify:
            raise refuse(
                ("subaddress",), "does not go with verify: callout; the next hop is asked for the address as it is"
            )
        if self.when_down is not None and self.check is RecipientCheck.LIST:
            raise refuse(("when_down",), "means nothing for a list, which is never down")
        try:
            if self.list is not None:
                self._listed = frozenset(map(local_part, self.list))
            elif self.list_file is not None:
                self._read = read_file(self.list_file, parse_list, limit=LIST_OCTETS)
                self._listed = self._read.value
        except OSError as error:
            raise refuse((sources[0],), f"cannot read {self.list_file}: {error.strerror}") from error
        except ValueError as error:
            where = f"{self.list_file} " if self.list_file else ""
            raise refuse((sources[0],), f"{where}{error}") from error
        return self

    @property
    def check(self) -> RecipientCheck:
        if self.ldap:
            return RecipientCheck.LDAP
        return RecipientCheck.CALLOUT if self.verify else RecipientCheck.LIST

    @property
    def listed(self) -> frozenset[str]:
        """All listed local parts in lower case, as they were when the configuration was read."""
        return self._listed

    @property
    def list_read(self) -> FileContent[frozenset[str]] | None:
        """What the list file held then; None without one."""
        return self._read


def _any(value: Any) -> Any:
    if value != "any":
        raise ValueError("expected any, or a mapping with one of list, list_file, verify and ldap")
    return value


RecipientsChoice = Annotated[
    Annotated[Literal["any"], BeforeValidator(_any), Tag("any")] | Annotated[Recipients, Tag("check")],
    Discriminator(lambda value: "any" if isinstance(value, str) else "check"),
]
