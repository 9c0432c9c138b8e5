"""Who wrote a message, as its readers see it, and whether that is proved. For policies that trust somebody by name.

*RFCs*: 5322 section 3.6.2 (From), 9989 (DMARC), 8617 (ARC, where the operator trusts its sealers).
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from gateway.sdk.authentication import Arc, AuthResult, Dkim, Dmarc, Spf, SpfResult
from gateway.sdk.domains import find_domain
from gateway.sdk.mailboxes import Mailbox, read_mailboxes
from gateway.sdk.stage import Message


class Proof(StrEnum):
    """Whether a domain stands behind a message that bears its name."""

    PROVED = "proved"
    UNPROVED = "unproved"
    UNKNOWN = "unknown"
    """It could not be checked for now, or nobody did."""


def read_authors(message: Message) -> tuple[Mailbox, ...]:
    """The mailboxes of all From fields."""
    return read_mailboxes(message.all("From"))


def prove_author(
    domain: str,
    names: Collection[str] = (),
    *,
    dmarc: Dmarc | None = None,
    dkim: Dkim | None = None,
    spf: Spf | None = None,
    arc: Arc | None = None,
) -> Proof:
    """Whether the author domain (A-labels) is proved: by DMARC; or, where it has no DMARC record, by SPF or DKIM.

    Without a record, an identifier counts that has the same domain; or, where `domain` is one of `names` or below one,
    an identifier within the same name. What a trusted ARC chain reports for the domain counts as proved.
    """
    if not domain:
        return Proof.UNPROVED
    if arc is not None and _vouches(arc, domain):
        return Proof.PROVED
    if dmarc is not None and dmarc.result is AuthResult.PASS and dmarc.domain == domain:
        return Proof.PROVED
    if dmarc is not None and domain in dmarc.others:
        return Proof.UNPROVED
    if dmarc is not None and dmarc.domain == domain:
        if dmarc.result is AuthResult.FAIL:
            return Proof.UNPROVED
        if dmarc.result is AuthResult.TEMPERROR:
            return Proof.UNKNOWN
    return _prove_without_record(domain, find_domain(domain, names), dkim, spf)


def _prove_without_record(domain: str, name: str, dkim: Dkim | None, spf: Spf | None) -> Proof:
    def counts(identifier: str) -> bool:
        return identifier == domain or bool(name and find_domain(identifier, (name,)))

    signatures = [s for s in (dkim.signatures if dkim is not None else ()) if counts(s.domain)]
    by_spf = spf.result if spf is not None and counts(spf.domain) else None
    if by_spf is SpfResult.PASS or any(s.result is AuthResult.PASS for s in signatures):
        return Proof.PROVED
    if by_spf is SpfResult.TEMPERROR or any(s.result is AuthResult.TEMPERROR for s in signatures):
        return Proof.UNKNOWN
    return Proof.UNKNOWN if spf is None and dkim is None else Proof.UNPROVED


def _vouches(arc: Arc, domain: str) -> bool:
    """Whether a chain that is trusted says that DMARC had passed before the message was changed on its way."""
    return (
        arc.trusted
        and arc.result is AuthResult.PASS
        and any(
            (method.lower(), result.lower(), name.lower()) == ("dmarc", "pass", domain)
            for method, result, name in arc.results
        )
    )
