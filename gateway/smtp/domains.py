"""The domains we take mail for, as the front door needs them: ours or not, judged by which pipeline, and for whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from gateway.mail.address import Address
from gateway.sdk.services import RecipientRule


class Names(Protocol):
    """A list that changes while we run."""

    async def current(self) -> frozenset[str]:
        """The list as it is now; does not raise."""


@dataclass(frozen=True, slots=True)
class Domain:
    """One domain of ours.

    `listed` holds local parts in lower case, `file` a list of them that may change; both are None when recipients are
    not checked by list. `subaddress` holds the characters that separate a subaddress (RFC 5233).

    `forwards` says that its mail goes on to a server or command that may read a route in a local part, and that we do
    not know its recipients by name.
    """

    name: str
    pipeline: str = ""
    rule: RecipientRule = RecipientRule.ANY
    listed: frozenset[str] | None = None
    file: Names | None = None
    subaddress: str = ""
    forwards: bool = False

    def spellings(self, address: Address) -> tuple[Address, ...]:
        """The forms in which the address is looked up: as it is, then without its subaddress."""
        local = address.local
        at = min((i for i in map(local.find, self.subaddress) if i > 0), default=0)
        return (address, Address(local[:at], address.domain)) if at else (address,)


class Domains:
    """The table. Names are A-labels in lower case; ``.example.org`` stands for all subdomains of example.org."""

    def __init__(self, domains: Mapping[str, Domain] | None = None) -> None:
        self._domains = dict(domains or {})

    def find(self, address: Address) -> Domain | None:
        """The entry for this address's domain, or None when it is not ours."""
        name = address.ascii_domain
        found = self._domains.get(name)
        while found is None and "." in name:
            name = name.partition(".")[2]
            found = self._domains.get("." + name)
        return found

    async def rule(self, address: Address) -> RecipientRule:
        """What the configuration says about this recipient. ``postmaster`` is always taken (RFC 5321 section 4.5.1)."""
        domain = self.find(address)
        if domain is None:
            return RecipientRule.NOT_OURS
        listed = domain.listed if domain.file is None else await domain.file.current()
        if listed is None:
            return domain.rule
        if address.local.lower() == "postmaster":
            return RecipientRule.LISTED
        known = any(spelling.local.lower() in listed for spelling in domain.spellings(address))
        return RecipientRule.LISTED if known else RecipientRule.NOT_LISTED

    def postmaster(self, hostname: str) -> Address | None:
        """Where mail for the bare ``postmaster`` goes: to our own name's domain if it is ours, else to the first."""
        own = Address("postmaster", hostname)
        if self.find(own) is not None:
            return own
        first = next((name for name in self._domains if not name.startswith(".")), None)
        return Address("postmaster", first) if first else None
