"""Refuse clients that introduce themselves with our own name, or with a bare address.

No host but ours has our name, and a stranger that uses it means to look like one of us. A bare address is no valid
HELO (RFC 5321 section 4.1.4 wants a domain or an address literal in brackets).
"""

from __future__ import annotations

import ipaddress

from pydantic import Field, field_validator

from gateway.sdk import PROCEED, Policy, PolicyOptions, Recipient, Session, Verdict, reject


class HeloIdentityOptions(PolicyOptions):
    """Options of `helo-identity`."""

    own_names: frozenset[str] = Field(
        frozenset(), description="Host names and domains of ours that no stranger may call itself by."
    )
    subdomains: bool = Field(False, description="Protect names below `own_names`, too.")
    reject_bare_address: bool = Field(True, description="Refuse an address without brackets.")
    reject_literal: bool = Field(False, description="Refuse an address in brackets, which the standard allows.")

    @field_validator("own_names")
    @classmethod
    def _lower(cls, value: frozenset[str]) -> frozenset[str]:
        return frozenset(name.lower().removesuffix(".") for name in value)


class HeloIdentity(Policy):
    """Judged at RCPT, where every client understands a refusal; postmaster can always be written to."""

    name = "helo-identity"
    Options = HeloIdentityOptions
    options: HeloIdentityOptions

    def on_rcpt(self, session: Session, recipient: Recipient) -> Verdict:
        if session.trusted or recipient.address.has_local(("postmaster",)):
            return PROCEED
        helo = session.helo.lower().removesuffix(".")
        if self._is_own(helo):
            return reject("7.1", "host name is not yours", reason=f"HELO {helo} is one of our own names")
        if self.options.reject_bare_address and _is_address(helo):
            return reject("7.1", "host name is no host name", reason="HELO is a bare address")
        if self.options.reject_literal and helo.startswith("["):
            return reject("7.1", "host name is no host name", reason="HELO is an address literal")
        return PROCEED

    def _is_own(self, name: str) -> bool:
        own = self.options.own_names
        return name in own or (self.options.subdomains and any(name.endswith("." + suffix) for suffix in own))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
