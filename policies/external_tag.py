"""Tell recipients which mail comes from outside, and which of it nobody answers for.

Mail of trusted clients is from inside. So is mail by authors of the domains that are named here (our own services, the
parent company), if it is proved that it comes from them; a domain's name alone is no proof.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, Field

from gateway.sdk import (
    PROCEED,
    Arc,
    Dkim,
    Dmarc,
    DomainNames,
    Edit,
    Message,
    Policy,
    PolicyOptions,
    Proof,
    Session,
    Spf,
    Verdict,
    annotate,
    find_domain,
    prove_author,
    read_authors,
)
from gateway.sdk.actions import check_tag, delete_header, set_header, tag_subject

_Tag = Annotated[str, AfterValidator(lambda tag: tag and check_tag(tag))]
_WORDS: Final = {Proof.PROVED: "authenticated", Proof.UNPROVED: "unauthenticated", Proof.UNKNOWN: "unchecked"}


class ExternalTagOptions(PolicyOptions):
    """Options of `external-tag`."""

    subject: _Tag = Field("[EXT]", description="Tag before the subject of mail from outside; empty for none.")
    unproved: _Tag = Field(
        "", description="Tag instead, where nobody answers for the author's domain; empty for the same one."
    )
    header: str = Field(
        "X-External-Sender",
        pattern=r"^([A-Za-z][A-Za-z0-9-]{0,60})?$",
        description="Field that says `authenticated`, `unauthenticated` or `unchecked`; empty for none.",
    )
    inside: DomainNames = Field(
        frozenset(),
        max_length=1_000,
        description="Author domains, with all below, that are not outside if it is proved that the mail is theirs.",
    )


class ExternalTag(Policy):
    """Marks mail from outside, and mail that nobody answers for; judged at message, decides nothing."""

    name = "external-tag"
    Options = ExternalTagOptions
    options: ExternalTagOptions

    def on_message(
        self,
        session: Session,
        message: Message,
        dmarc: Dmarc | None,
        dkim: Dkim | None,
        spf: Spf | None,
        arc: Arc | None,
    ) -> Verdict:
        if session.trusted:
            return PROCEED
        authors = {author.domain for author in read_authors(message)} or {""}
        proofs = {
            prove_author(domain, self.options.inside, dmarc=dmarc, dkim=dkim, spf=spf, arc=arc) for domain in authors
        }
        if proofs == {Proof.PROVED} and all(find_domain(domain, self.options.inside) for domain in authors):
            # Nobody outside may have written the field for us.
            forged = self.options.header and message.first(self.options.header) is not None
            return annotate(*delete_header(self.options.header)) if forged else PROCEED
        worst = next(proof for proof in (Proof.UNPROVED, Proof.UNKNOWN, Proof.PROVED) if proof in proofs)
        return annotate(*self._edits(message, worst))

    def _edits(self, message: Message, proof: Proof) -> tuple[Edit, ...]:
        edits: tuple[Edit, ...] = ()
        if self.options.header:
            edits += set_header(self.options.header, _WORDS[proof])
        tag = self.options.unproved if proof is Proof.UNPROVED and self.options.unproved else self.options.subject
        return edits + tag_subject(message, tag) if tag else edits
