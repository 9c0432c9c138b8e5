"""Where mail goes: next hops as the configuration writes them, and the table of domains.

*RFCs*: 5321 section 4.1.3 (address literals as domains), 5890 (names are compared as A-labels).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urlsplit

from gateway.mail.address import DOMAIN_OCTETS, NULL_SENDER, Address, AddressError, Sender, ascii_domain
from gateway.transport.options import WebhookOptions
from gateway.transport.transport import Destination, Kind, Security, Server

FORMS: Final = (
    "smtp:host:port, smtp:[ipv6]:port, lmtp:host:port, lmtp:unix:/path, maildir:path, mbox:path, https://host/path, "
    "transport:name, discard or mx (the port may be left out: 25 for smtp, 24 for lmtp)"
)
_PORTS: Final = {Kind.SMTP: 25, Kind.LMTP: 24}
_NAME: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]*[a-z0-9])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9])?)*\Z")
_DIGITS: Final = re.compile(r"[0-9]{1,5}\Z")
_TRANSPORT: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}?|\}")


def parse_next_hop(text: str, *, security: Security = Security.OPPORTUNISTIC, tls_ca: str = "") -> Destination:
    """A next hop from its written form; ``mx`` gives a `Destination` without a host, which `Router` fills in.

    Raises ValueError with a text for whoever wrote the configuration.
    """
    scheme, colon, rest = text.strip().partition(":")
    if scheme == "mx" and not colon:
        return Destination(Kind.SMTP, port=_PORTS[Kind.SMTP], mx=True, security=security, tls_ca=tls_ca)
    if scheme == "discard" and not colon:
        return Destination(Kind.DISCARD)
    if scheme in ("maildir", "mbox"):
        return Destination(Kind(scheme), path=check_path(rest, scheme))
    if scheme in ("http", "https"):
        return Destination(Kind.HTTP, options=WebhookOptions(check_url(text.strip())))
    if scheme == "transport":
        if not _TRANSPORT.match(rest):
            raise ValueError(f"{text!r}: {rest!r} is no name under `transports`")
        return Destination(Kind.NAMED, name=rest)
    if scheme == "pipe":
        raise ValueError("a command stands in an entry of its own under `transports`; write transport:NAME here")
    if scheme not in ("smtp", "lmtp") or not rest:
        raise ValueError(f"{text!r} is no next hop; write {FORMS}")
    kind = Kind(scheme)
    if rest.startswith("unix:"):
        path = rest.removeprefix("unix:")
        if not path or "\0" in path or len(path.encode()) > 107:
            raise ValueError(f"{text!r}: a unix socket needs a path of at most 107 octets")
        return Destination(kind, path=path, security=security, tls_ca=tls_ca)
    host, port = _host_port(text, rest)
    return Destination(kind, host, port or _PORTS[kind], security=security, tls_ca=tls_ca)


def join_next_hops(several: Sequence[tuple[Destination, int, int]]) -> Destination:
    """One destination of several next hops, each with its priority and weight. Raises ValueError.

    They stand for one another, so they speak the same protocol and share what is said of TLS.
    """
    first = several[0][0]
    for found, _, _ in several:
        if found.kind not in (Kind.SMTP, Kind.LMTP) or found.mx:
            raise ValueError(f"{found if found.kind is not Kind.SMTP else 'mx'} cannot stand beside other next hops")
        if found.kind is not first.kind:
            raise ValueError("all next hops of a list are smtp, or all are lmtp")
    hops = tuple([Server(d.host, d.port, d.path, priority, weight) for d, priority, weight in several])
    if len({(server.host, server.port, server.path) for server in hops}) < len(hops):
        raise ValueError("a next hop stands in the list twice")
    if len(hops) == 1:
        return first
    return replace(first, host="", port=0, path="", alternatives=hops)


def parse_own_next_hop(text: str) -> Destination:
    """The next hop that a message brings along, by an edit. Raises ValueError.

    Whoever edits messages need not be trusted with every file of this machine.
    """
    found = parse_next_hop(text)
    if found.kind is Kind.MBOX:
        raise ValueError("an mbox must be named by the configuration, under `transports`")
    return found


def check_path(path: str, scheme: str) -> str:
    """A path of mailboxes, with its placeholders; raises ValueError."""
    if not path or "\0" in path:
        raise ValueError(f"{scheme}: needs a path, such as {scheme}:./var/mail/{{domain}}/{{local}}")
    for match in _PLACEHOLDER.finditer(path):
        if match[0] not in ("{local}", "{domain}"):
            raise ValueError(
                f"{scheme}: {match[0]!r} in the path is no placeholder; there are {{local}} and {{domain}}"
            )
    return path


def check_url(url: str) -> str:
    """A URL to post to; raises ValueError, with a text that does not show what may be a secret in it."""
    if not url.isascii() or not url.isprintable() or " " in url or len(url) > 2000:
        raise ValueError("a URL is printable ASCII without spaces, at most 2000 characters")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"no URL: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError("a URL begins with https:// or http://")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "a URL with a name or password in it would stand in logs; give a token_file under `transports`"
        )
    if parts.fragment:
        raise ValueError("a URL to post to has no #")
    if port == 0:
        raise ValueError("0 is no port")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if not _NAME.match(host):
            raise ValueError(f"{host!r} is neither a host name nor an IP address") from None
    return url


def _host_port(text: str, rest: str) -> tuple[str, int]:
    """Host in lower case and port, 0 when it was left out."""
    if rest.startswith("["):
        inner, bracket, after = rest[1:].partition("]")
        try:
            host = str(ipaddress.ip_address(inner.lower().removeprefix("ipv6:")))
        except ValueError:
            raise ValueError(f"{text!r}: {inner!r} is no IP address") from None
        if not bracket or (after and not after.startswith(":")):
            raise ValueError(f"{text!r}: write [address]:port")
        return host, _port(text, after[1:] if after else None)
    if rest.count(":") > 1:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, as in smtp:[2001:db8::1]:25")
    host, colon, port = rest.partition(":")
    if len(host) > DOMAIN_OCTETS:
        raise ValueError(f"{text[:40]!r}...: a host name has at most {DOMAIN_OCTETS} characters")
    try:
        host = ascii_domain(host.rstrip("."))
    except AddressError as error:
        raise ValueError(f"{text!r}: {error}") from None
    if not _NAME.match(host):
        raise ValueError(f"{text!r}: {host!r} is neither a host name nor an IP address")
    return host, _port(text, port if colon else None)


def _port(text: str, port: str | None) -> int:
    if port is None:
        return 0
    if not _DIGITS.match(port) or not 1 <= int(port) <= 65535:
        raise ValueError(f"{text!r}: {port!r} is no port; write a number from 1 to 65535")
    return int(port)


_MX: Final = parse_next_hop("mx")
NULL_KEY: Final = "<>"
"""The null sender's key among routes by sender."""


@dataclass(frozen=True, slots=True)
class Way:
    """Where mail goes, and the configuration's key that says so; empty where the message brought its next hop along."""

    destination: Destination
    key: str = ""


@dataclass(frozen=True, slots=True)
class Router:
    """Finds the destination of an address, the first of these that has an entry for it: `domains`, which are ours, and
    `routes`, both by the recipient's domain; `senders`; `default`, where None means MX.

    Keys by domain: a domain in A-labels; ``.example.org`` for all names below it; in `domains` also ``*`` for every
    other domain, and ``""`` for the bare ``postmaster`` (without it, the first entry's destination). Keys by sender: an
    address as `Address.key` has it, a domain, ``.example.org``, or ``<>``. `named` are the configuration's
    `transports`. With `literals`, mail for ``user@[192.0.2.1]`` goes to that address; without, there is no way to it.
    """

    domains: Mapping[str, Destination]
    default: Destination | None = None
    named: Mapping[str, Destination] = field(default_factory=dict)
    routes: Mapping[str, Destination] = field(default_factory=dict)
    senders: Mapping[str, Destination] = field(default_factory=dict)
    literals: bool = False

    def resolve(self, address: Address, next_hop: str = "", sender: Sender | None = None) -> Destination:
        """The destination; with `next_hop`, which a message brings along, that. Raises as `find`."""
        return self.find(address, next_hop, sender).destination

    def find(self, address: Address, next_hop: str = "", sender: Sender | None = None) -> Way:
        """The way to the address for mail of this sender; None knows of no sender, and of no route for one.

        Raises `gateway.mail.address.AddressError` for a bad domain, ValueError for a next hop that is none.
        """
        domain = address.ascii_domain
        way = Way(parse_own_next_hop(next_hop)) if next_hop else self._by_address(domain, sender)
        found = way.destination
        if found.kind is Kind.NAMED:
            if found.name not in self.named:
                raise ValueError(f"there is no transport {found.name!r}")
            return replace(way, destination=self.named[found.name])
        if found.mx and not found.host:
            return replace(way, destination=self._for_domain(found, domain))
        return way

    def _by_address(self, domain: str, sender: Sender | None) -> Way:
        if not domain and self.domains and "" not in self.domains:
            domain = next(iter(self.domains))
        if (key := _nearest(self.domains, domain)) is not None:
            return Way(self.domains[key], f"domains.{key}")
        if domain.startswith("[") and not self.literals:
            raise AddressError("mail to address literals is off")
        if (key := _nearest(self.routes, domain)) is not None:
            return Way(self.routes[key], f"routes.domains.{key}")
        if (key := self._sender_key(sender)) is not None:
            return Way(self.senders[key], f"routes.senders.{key}")
        return Way(self.default or _MX, "routes.default")

    def _sender_key(self, sender: Sender | None) -> str | None:
        if sender is None or not self.senders:
            return None
        if sender is NULL_SENDER:
            return NULL_KEY if NULL_KEY in self.senders else None
        assert isinstance(sender, Address)
        return sender.key if sender.key in self.senders else _nearest(self.senders, sender.ascii_domain)

    def _for_domain(self, template: Destination, domain: str) -> Destination:
        if domain.startswith("["):
            literal = str(ipaddress.ip_address(domain.strip("[]").removeprefix("ipv6:")))
            return replace(template, host=literal, mx=False, literal=True)
        return replace(template, host=domain)


def _nearest(table: Mapping[str, object], domain: str) -> str | None:
    """The key for a domain: itself, the nearest name above it with a dot, or ``*``."""
    if domain in table:
        return domain
    at = domain.find(".")
    while at >= 0 and not domain.startswith("["):
        if domain[at:] in table:
            return domain[at:]
        at = domain.find(".", at + 1)
    return "*" if "*" in table and domain else None
