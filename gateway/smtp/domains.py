"""The domains we take mail for, as the front door needs them: ours or not, and judged by which pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.mail.address import Address
from gateway.sdk.services import RecipientRule


@dataclass(frozen=True, slots=True)
class Domain:
    """One domain of ours. `listed` holds local parts in lower case; None when recipients are not checked by list."""

    name: str
    pipeline: str = ""
    rule: RecipientRule = RecipientRule.ANY
    listed: frozenset[str] | None = None


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

    def rule(self, address: Address) -> RecipientRule:
        """What the configuration says about this recipient. ``postmaster`` is always taken (RFC 5321 section 4.5.1)."""
        domain = self.find(address)
        if domain is None:
            return RecipientRule.NOT_OURS
        if domain.listed is None:
            return domain.rule
        local = address.local.lower()
        return RecipientRule.LISTED if local in domain.listed or local == "postmaster" else RecipientRule.NOT_LISTED

    def postmaster(self, hostname: str) -> Address | None:
        """Where mail for the bare ``postmaster`` goes: to our own name's domain if it is ours, else to the first."""
        own = Address("postmaster", hostname)
        if self.find(own) is not None:
            return own
        first = next((name for name in self._domains if not name.startswith(".")), None)
        return Address("postmaster", first) if first else None
