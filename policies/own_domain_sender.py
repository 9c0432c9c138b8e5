"""Stop strangers who send in one of our own names.

A message from outside whose MAIL FROM is in a domain of ours is either one of our own services, which SPF then
confirms, or forged.
"""

from __future__ import annotations

from pydantic import Field, field_validator

from gateway.sdk import (
    PROCEED,
    Address,
    Policy,
    PolicyOptions,
    Session,
    Spf,
    SpfResult,
    Transaction,
    Verdict,
    defer,
    quarantine,
    reject,
)


class OwnDomainSenderOptions(PolicyOptions):
    """Options of `own-domain-sender`."""

    own_domains: frozenset[str] = Field(min_length=1, description="Domains of ours, in A-labels.")
    subdomains: bool = Field(False, description="Protect domains below `own_domains`, too.")
    accept_spf_pass: bool = Field(True, description="Let strangers pass whom SPF allows to send for the domain.")
    strict: bool = Field(False, description="Refuse for good instead of setting aside.")

    @field_validator("own_domains")
    @classmethod
    def _lower(cls, value: frozenset[str]) -> frozenset[str]:
        return frozenset(name.lower().removesuffix(".") for name in value)


class OwnDomainSender(Policy):
    """Judged at message, the first stage at which a message can be set aside."""

    name = "own-domain-sender"
    Options = OwnDomainSenderOptions
    options: OwnDomainSenderOptions

    def on_message(self, session: Session, transaction: Transaction, spf: Spf | None) -> Verdict:
        sender = transaction.sender
        if session.trusted or not isinstance(sender, Address) or not self._is_own(sender.ascii_domain):
            return PROCEED
        reason = f"stranger sends as {sender.ascii_domain}"
        if self.options.accept_spf_pass:
            if spf is not None and spf.result is SpfResult.PASS:
                return PROCEED
            # That we could not check is no proof of forgery: nothing is refused for good because of it.
            if self.options.strict and (spf is None or spf.result is SpfResult.TEMPERROR):
                return defer("7.24", "the sender cannot be checked now, try again later", reason=f"{reason}, unchecked")
        if self.options.strict:
            return reject("7.1", "not authorised to send as this domain", reason=reason)
        return quarantine(reason)

    def _is_own(self, domain: str) -> bool:
        own = self.options.own_domains
        return domain in own or (self.options.subdomains and any(domain.endswith("." + name) for name in own))
