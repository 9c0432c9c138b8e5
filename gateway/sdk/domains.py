"""Domains as options name them, and whether another one belongs to them.

*RFCs*: 5890 (A-labels).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated, Final

import idna
from pydantic import AfterValidator, PlainSerializer

from gateway.mail.address import Address, AddressError, parse_mailbox

DOMAIN_CHARACTERS: Final = 253


def _names(domains: Iterable[str]) -> frozenset[str]:
    return frozenset(_name(domain) for domain in domains)


def _name(domain: str) -> str:
    name = read_domain(domain)
    if not name:
        raise ValueError(f"{domain[:100]!r} is no domain")
    return name


DomainNames = Annotated[
    frozenset[str], AfterValidator(_names), PlainSerializer(sorted, return_type=list[str], when_used="json")
]
"""Option type: domains, kept in lower-case A-labels; what is no domain is refused. Ask with `find_domain`."""


def find_domain(domain: str, domains: Collection[str]) -> str:
    """Which of `domains` this one is, or is below of: the longest; empty when none. In lower-case A-labels."""
    while domain:
        if domain in domains:
            return domain
        domain = domain.partition(".")[2]
    return ""


def domain_of(address: object) -> str:
    """The domain of an address in lower-case A-labels; empty for the null sender and the bare ``postmaster``."""
    return address.ascii_domain if isinstance(address, Address) else ""


def read_domain(text: str) -> str:
    """A domain as somebody wrote it in lower-case A-labels; empty for what is none."""
    name = text.strip().removesuffix(".")
    if len(name) > DOMAIN_CHARACTERS or name.startswith("["):
        return ""
    try:
        # The grammar of a mailbox says what a domain is.
        return parse_mailbox(f"x@{name}", utf8=True).ascii_domain
    except AddressError:
        return ""


def show_domain(domain: str) -> str:
    """A-labels as a reader may see them: U-labels where they can be decoded (RFC 5890), in lower case."""
    return ".".join(map(_shown, domain.lower()[:DOMAIN_CHARACTERS].split(".")))


def _shown(label: str) -> str:
    if not label.startswith("xn--"):
        return label
    try:
        return idna.ulabel(label)
    except (idna.IDNAError, UnicodeError):
        return label
