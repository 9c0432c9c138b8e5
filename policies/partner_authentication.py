"""Take mail in a partner's name only when it is proved that it comes from there.

DMARC does what a domain's owner asks for, and many owners ask for nothing, or have no record at all. With partners it
is for us to be stricter: who is named here has agreed to authenticate, so mail in its name that does not is forged or
mis-sent, and is refused whatever its record says. Without a record, SPF or DKIM of the domain itself has to pass.

*RFCs*: 9989 (DMARC), 8617 (ARC), 7372 (section 3.3, X.7.26).
"""

from __future__ import annotations

from pydantic import Field

from gateway.sdk import (
    PROCEED,
    Arc,
    Dkim,
    Dmarc,
    DomainNames,
    Given,
    Message,
    OptionError,
    Policy,
    PolicyOptions,
    Proof,
    Response,
    Session,
    Spf,
    Transaction,
    Verdict,
    defer,
    domain_of,
    find_domain,
    prove_author,
    read_authors,
    respond,
)
from gateway.sdk.actions import set_header


class PartnerAuthenticationOptions(PolicyOptions):
    """Options of `partner-authentication`."""

    partners: DomainNames = Field(
        min_length=1, max_length=10_000, description="Domains, with all below, whose mail must be authenticated."
    )
    except_for: DomainNames = Field(
        frozenset(), max_length=10_000, description="Domains below partners, with all below, that need not be."
    )
    envelope: bool = Field(
        False, description="Also judge mail with a partner in MAIL FROM and somebody else in From: SPF must pass."
    )
    action: Response = Field(
        Response.REJECT, description="What is done: `record`, `tag`, `quarantine` or `reject` (`550 5.7.26`)."
    )


class PartnerAuthentication(Policy):
    """Refuses mail in a partner's name that is not authenticated; judged at message. Trusted clients pass."""

    name = "partner-authentication"
    Options = PartnerAuthenticationOptions
    options: PartnerAuthenticationOptions

    def wire(self, given: Given) -> None:
        """Without anybody who checks, all mail of partners would be deferred for ever."""
        problems = OptionError()
        if not any(kind in given.stages for kind in (Dmarc, Dkim, Spf)):
            problems.add(("partners",), "nobody checks them: list spf, dkim and dmarc in this pipeline")
        if self.options.envelope and Spf not in given.stages:
            problems.add(("envelope",), "nobody checks it: list spf in this pipeline")
        problems.raise_if_any()

    def on_message(
        self,
        session: Session,
        transaction: Transaction,
        message: Message,
        dmarc: Dmarc | None,
        dkim: Dkim | None,
        spf: Spf | None,
        arc: Arc | None,
    ) -> Verdict:
        if session.trusted:
            return PROCEED
        unknown = ""
        for domain in dict.fromkeys(author.domain for author in read_authors(message)):
            if not self._is_partner(domain):
                continue
            proof = prove_author(domain, self.options.partners, dmarc=dmarc, dkim=dkim, spf=spf, arc=arc)
            if proof is Proof.UNPROVED:
                return self._doubt(f"author domain {domain}", dmarc)
            unknown = unknown or (f"author domain {domain}" if proof is Proof.UNKNOWN else "")
        sender = domain_of(transaction.sender)
        if self.options.envelope and self._is_partner(sender):
            proof = prove_author(sender, self.options.partners, spf=spf)
            if proof is Proof.UNPROVED:
                return self._doubt(f"sender domain {sender}", dmarc)
            unknown = unknown or (f"sender domain {sender}" if proof is Proof.UNKNOWN else "")
        if unknown and self.options.action is Response.REJECT:
            # That we could not check is no proof of forgery, and none of the contrary either.
            return defer("7.26", "the sender cannot be checked now, try again later", reason=f"{unknown} unchecked")
        return PROCEED

    def _is_partner(self, domain: str) -> bool:
        if not find_domain(domain, self.options.partners):
            return False
        return not find_domain(domain, self.options.except_for)

    def _doubt(self, what: str, dmarc: Dmarc | None) -> Verdict:
        reason = f"{what} is not authenticated, DMARC {dmarc.result if dmarc is not None else 'not checked'}"
        return respond(
            self.options.action,
            reason,
            *set_header("X-Unauthenticated-Partner", what),
            detail="7.26",
            text="mail from this domain must be authenticated",
        )
