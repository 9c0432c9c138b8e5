"""What an LDAP server is asked for a recipient: where, below which entry, and with which filter.

*Promises*: whatever stands in an address, it stays one value in the filter.

*RFCs*: 4515 section 3 (filters and their escapes), 4516 section 2 (URLs; host and port only).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from gateway.mail.address import Address

_PORTS: Final = {"ldap": 389, "ldaps": 636}
_URI: Final = re.compile(r"(ldaps?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?/?\Z")
_NAME: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]*[a-z0-9])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9])?)*\Z")
_PLACEHOLDER: Final = re.compile(r"%(.?)", re.DOTALL)
# What stands for itself in a filter. Everything else is escaped, also where it need not be.
_PLAIN: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@.-_+")


@dataclass(frozen=True, slots=True)
class LdapServer:
    """One server; `tls` says that the connection begins with TLS (``ldaps``)."""

    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'ldaps' if self.tls else 'ldap'}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class LdapOptions:
    """How a domain's recipients are looked up. `timeout` is in seconds, for one question with all servers together;
    `connect_timeout` for connecting to one server, TLS and bind included. `connections` at once, per worker."""

    servers: tuple[LdapServer, ...]
    base: str
    filter: str = "(mail=%s)"
    scope: str = "subtree"
    bind_dn: str | None = None
    password_file: str = ""
    starttls: bool = False
    tls_ca: str = ""
    timeout: float = 4.0
    connect_timeout: float = 2.0
    connections: int = 4


def parse_uri(text: str) -> LdapServer:
    """A server from ``ldap://host:port`` or ``ldaps://host:port``. Raises ValueError for anything else."""
    match = _URI.match(text)
    if match is None:
        raise ValueError(f"{text!r} is no LDAP server; write ldap://host, ldap://host:port or ldaps://host:port")
    scheme, host, port = match[1], match[2].lower(), int(match[3] or _PORTS[match[1]])
    if host.startswith("["):
        try:
            host = str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise ValueError(f"{text!r}: {match[2]} is no IPv6 address") from None
    elif not _NAME.match(host):
        raise ValueError(f"{text!r}: {host!r} is neither a host name nor an IP address")
    if not 1 <= port <= 65535:
        raise ValueError(f"{text!r}: {port} is no port; write a number from 1 to 65535")
    return LdapServer(host, port, scheme == "ldaps")


def escape(text: str) -> str:
    """Text as a value in a filter (RFC 4515 section 3)."""
    return "".join(chr(octet) if octet in _PLAIN else f"\\{octet:02x}" for octet in text.encode("utf-8", "replace"))


def fill(template: str, address: Address) -> str:
    """The filter for an address: ``%s`` the whole address, ``%u`` its local part, ``%d`` its domain, ``%%`` a percent.

    All in lower case, the domain as A-labels. Raises ValueError for another placeholder.
    """
    values = {"s": address.key, "u": address.local.lower(), "d": address.ascii_domain}

    def value(match: re.Match[str]) -> str:
        if match[1] == "%":
            return "%"
        if match[1] not in values:
            raise ValueError(f"{match[0]!r} is no placeholder; there are %s, %u, %d, and %% for a percent sign")
        return escape(values[match[1]])

    return _PLACEHOLDER.sub(value, template)


def check_library() -> None:
    """Raises ValueError, saying what to do, when the optional package is missing."""
    try:
        import ldap3  # noqa: F401
    except ImportError:
        raise ValueError("needs the package ldap3: install gatepost[ldap]") from None


def check_filter(template: str) -> None:
    """Raises ValueError when this is no filter for recipients. Needs the library."""
    from ldap3.core.exceptions import LDAPExceptionError
    from ldap3.operation.search import compile_filter, parse_filter

    filled = fill(template, Address("anna", "example.org"))
    if not {"s", "u"} & set(_PLACEHOLDER.findall(template)):
        raise ValueError("names no recipient; write %s for the address or %u for its local part, as in (mail=%s)")
    try:
        compile_filter(parse_filter(filled, None, False, False, None, False).elements[0])
    except (LDAPExceptionError, LookupError, AttributeError) as error:
        raise ValueError(f"is no LDAP filter: {error}; write one such as (&(objectClass=person)(mail=%s))") from error


def check_dn(text: str) -> None:
    """Raises ValueError when this is no distinguished name. Needs the library."""
    from ldap3.core.exceptions import LDAPExceptionError
    from ldap3.utils.dn import parse_dn

    try:
        parse_dn(text)
    except LDAPExceptionError as error:
        raise ValueError(f"is no distinguished name: {error}; write one such as ou=people,dc=example,dc=org") from error
