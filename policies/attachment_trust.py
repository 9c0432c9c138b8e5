"""Files that do harm in the wrong hands, only from those whom we trust with them.

The plugin `attachments` knows what a file is and not who sent it, so what it refuses it refuses from everybody. Here
each kind of file has a degree of trust that its sender must have: anybody, a domain that is proved, or a partner.

*RFCs*: 9989 (DMARC), 7372 (section 3.3, X.7.26).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from gateway.sdk import (
    PROCEED,
    Arc,
    Attachment,
    Attachments,
    Dkim,
    Dmarc,
    DomainNames,
    Message,
    Policy,
    PolicyOptions,
    Proof,
    Response,
    Session,
    Spf,
    Verdict,
    defer,
    find_domain,
    prove_author,
    read_authors,
    respond,
)
from gateway.sdk.actions import set_header

_SHOWN: Final = 80


class Trust(StrEnum):
    """Who may send a kind of file; each of them only if those before may."""

    ANYBODY = "anybody"
    AUTHENTICATED = "authenticated"
    PARTNERS = "partners"
    NOBODY = "nobody"


_DEGREES: Final = tuple(Trust)


def _extensions(value: dict[str, Trust]) -> dict[str, Trust]:
    return {extension.lower().removeprefix("."): trust for extension, trust in value.items()}


class AttachmentTrustOptions(PolicyOptions):
    """Options of `attachment-trust`."""

    partners: DomainNames = Field(
        frozenset(), max_length=10_000, description="Domains, with all below, whose authors are partners if proved."
    )
    macro: Trust = Field(Trust.PARTNERS, description="Who may send documents with program code.")
    encrypted: Trust = Field(Trust.AUTHENTICATED, description="Who may send files that need a password.")
    opaque: Trust = Field(Trust.AUTHENTICATED, description="Who may send archives that are not looked into.")
    executable: Trust = Field(Trust.NOBODY, description="Who may send programs, by their content.")
    disguised: Trust = Field(Trust.NOBODY, description="Who may send names that are made to look like another kind.")
    unread: Trust = Field(Trust.AUTHENTICATED, description="Who may send what was not looked at to its end.")
    extensions: Annotated[dict[str, Trust], AfterValidator(_extensions)] = Field(
        {}, max_length=500, description="Last extension of a name -> who may send such files."
    )
    action: Response = Field(
        Response.QUARANTINE, description="What is done: `record`, `tag`, `quarantine` or `reject` (`550 5.7.1`)."
    )


class AttachmentTrust(Policy):
    """Takes risky files only from authors who are trusted enough; judged at message. Trusted clients pass."""

    name = "attachment-trust"
    version = "2"
    Options = AttachmentTrustOptions
    options: AttachmentTrustOptions

    def on_message(
        self,
        session: Session,
        message: Message,
        attachments: Attachments,
        dmarc: Dmarc | None,
        dkim: Dkim | None,
        spf: Spf | None,
        arc: Arc | None,
    ) -> Verdict:
        if session.trusted:
            return PROCEED
        needed, reason = self._needed(attachments)
        if needed is Trust.ANYBODY:
            return PROCEED
        trust, proof = self._trust(message, dmarc, dkim, spf, arc)
        enough = _DEGREES.index(trust) >= _DEGREES.index(needed)
        if enough and proof is Proof.PROVED:
            return PROCEED
        # Whom no proof would help is not asked to come again.
        if enough and proof is Proof.UNKNOWN and self.options.action is Response.REJECT:
            return defer("7.26", "the sender cannot be checked now, try again later", reason=f"{reason}, unchecked")
        return respond(
            self.options.action,
            f"{reason}, author is {trust if proof is Proof.PROVED else proof}",
            *set_header("X-Attachment-Trust", f"a file here is taken from {needed} only"),
            text="an attachment of this kind is not accepted from this sender",
        )

    def _needed(self, attachments: Attachments) -> tuple[Trust, str]:
        """The highest degree that a file needs, and why."""
        worst, why = Trust.ANYBODY, ""
        for item in attachments.items:
            for kind, trust in self._kinds(item):
                if _DEGREES.index(trust) > _DEGREES.index(worst):
                    worst, why = trust, f"{item.name[:_SHOWN]!r} is {kind}, which {trust} may send"
        unread = self.options.unread
        if not attachments.complete and _DEGREES.index(unread) > _DEGREES.index(worst):
            return unread, f"not all was looked at, which {unread} may send"
        return worst, why

    def _kinds(self, item: Attachment) -> Iterator[tuple[str, Trust]]:
        if item.macro:
            yield "a document with macros", self.options.macro
        if item.encrypted:
            yield "encrypted", self.options.encrypted
        if item.opaque:
            yield "an archive that is not looked into", self.options.opaque
        if item.executable:
            yield "a program", self.options.executable
        if item.double_extension:
            yield "disguised", self.options.disguised
        for extension in item.extensions:
            if trust := self.options.extensions.get(extension):
                yield f"a .{extension}", trust

    def _trust(
        self, message: Message, dmarc: Dmarc | None, dkim: Dkim | None, spf: Spf | None, arc: Arc | None
    ) -> tuple[Trust, Proof]:
        """How far the authors can be trusted where they are proved, and whether they are; of several the least."""
        domains = {author.domain for author in read_authors(message)} or {""}
        proofs = {
            prove_author(domain, self.options.partners, dmarc=dmarc, dkim=dkim, spf=spf, arc=arc) for domain in domains
        }
        partners = all(find_domain(domain, self.options.partners) for domain in domains)
        proof = next(one for one in (Proof.UNPROVED, Proof.UNKNOWN, Proof.PROVED) if one in proofs)
        return Trust.PARTNERS if partners else Trust.AUTHENTICATED, proof
