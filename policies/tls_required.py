"""Mail that must not come in the clear: from some senders, from some networks, to some recipients, or at all.

*RFCs*: 3207 (section 4, 530 without STARTTLS), 8996 (TLS before 1.2 is not to be used).
"""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, PlainSerializer, model_validator

from gateway.sdk import (
    PROCEED,
    DomainNames,
    LocalParts,
    Policy,
    PolicyOptions,
    Recipient,
    Session,
    Transaction,
    Verdict,
    defer,
    domain_of,
    find_domain,
    reject,
)
from gateway.sdk.actions import mailbox

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Addresses = Annotated[
    frozenset[str],
    AfterValidator(lambda some: frozenset(mailbox(one).key for one in some)),
    PlainSerializer(sorted, return_type=list[str], when_used="json"),
]
_VERSIONS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")


class Refusal(StrEnum):
    """How a client without TLS is refused."""

    REJECT = "reject"
    DEFER = "defer"


class Version(StrEnum):
    """The oldest version that will do."""

    TLS_1_2 = "TLSv1.2"
    TLS_1_3 = "TLSv1.3"


class TlsRequiredOptions(PolicyOptions):
    """Options of `tls-required`."""

    senders: DomainNames = Field(
        frozenset(), max_length=10_000, description="Sender domains (MAIL FROM), with all below, that must use TLS."
    )
    networks: tuple[_Network, ...] = Field((), max_length=1_000, description="Clients that must.")
    recipient_domains: DomainNames = Field(
        frozenset(), max_length=10_000, description="Domains, with all below, whose recipients get mail over TLS only."
    )
    recipients: _Addresses = Field(frozenset(), max_length=10_000, description="Addresses that get mail over TLS only.")
    everybody: bool = Field(False, description="All mail must come over TLS, but for `exempt`.")
    version: Version = Field(Version.TLS_1_2, description="The oldest version that will do: `TLSv1.2` or `TLSv1.3`.")
    action: Refusal = Field(
        Refusal.REJECT, description="`reject` (`530 5.7.0`), or `defer` (`450 4.7.0`) for clients that may learn."
    )
    exempt: LocalParts = Field(
        frozenset({"postmaster", "tlsrpt"}), description="Local parts that any client may write to in the clear."
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.everybody or self.senders or self.networks or self.recipient_domains or self.recipients):
            raise ValueError(
                "name senders, networks, recipient_domains or recipients, or say everybody: true if you mean it"
            )
        return self


class TlsRequired(Policy):
    """Refuses mail in the clear; judged at RCPT, one by one. Trusted clients pass unless their network is named."""

    name = "tls-required"
    Options = TlsRequiredOptions
    options: TlsRequiredOptions

    def on_rcpt(self, session: Session, transaction: Transaction, recipient: Recipient) -> Verdict:
        if recipient.address.has_local(self.options.exempt) or self._is_safe(session):
            return PROCEED
        why = self._why(session, transaction, recipient)
        if not why:
            return PROCEED
        has = f"TLS is {session.tls.version}" if session.tls is not None else "no TLS"
        if self.options.action is Refusal.DEFER:
            return defer("7.0", "a secure connection is required", code=450, reason=f"{has}, {why}")
        # RFC 3207 section 4 has 530 for what needs STARTTLS first; a client that is in TLS has to give up.
        code = 530 if session.tls is None else 550
        return reject("7.0", "a secure connection is required", code=code, reason=f"{has}, {why}")

    def _is_safe(self, session: Session) -> bool:
        if session.tls is None:
            return False
        version = session.tls.version
        return version in _VERSIONS and _VERSIONS.index(version) >= _VERSIONS.index(self.options.version)

    def _why(self, session: Session, transaction: Transaction, recipient: Recipient) -> str:
        """Why TLS is required here; empty where it is not."""
        client = session.client
        if any(client.version == network.version and client in network for network in self.options.networks):
            return "required of this network"
        if session.trusted:
            return ""
        if domain := find_domain(domain_of(transaction.sender), self.options.senders):
            return f"required of senders in {domain}"
        if domain := find_domain(domain_of(recipient.address), self.options.recipient_domains):
            return f"required for recipients in {domain}"
        if recipient.address.key in self.options.recipients:
            return f"required for {recipient.address.key}"
        return "required of everybody" if self.options.everybody else ""
