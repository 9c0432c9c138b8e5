"""One score from what speaks against a message and for it: set aside what is doubtful instead of refusing it.

`client-score` judges a client before there is content. This is the other one: it sees the message, the spam filter's
opinion and who is proved, and a sum that is not high enough to be sure leads to a mark or to quarantine. The verdict's
reason lists every weight, also when the mail goes on.

A finding that is missing, or that says that something could not be checked, weighs nothing: trouble is no evidence.

*RFCs*: 9989 (DMARC), 7208 (section 2.6, SPF results), 8601 (section 2.7.3, iprev).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, FiniteFloat, PlainSerializer, model_validator

from gateway.sdk import (
    PROCEED,
    Action,
    Attachments,
    AuthResult,
    ContentChecks,
    Defect,
    Dkim,
    Dmarc,
    Dnsbl,
    Geo,
    Message,
    Mime,
    Policy,
    PolicyOptions,
    Proof,
    Response,
    ReverseName,
    Session,
    SpamScore,
    Spf,
    SpfResult,
    UriHits,
    Verdict,
    prove_author,
    read_authors,
    respond,
)
from gateway.sdk.actions import set_header

_Weight = Annotated[FiniteFloat, Field(ge=-1000, le=1000)]
_Countries = Annotated[
    frozenset[str],
    AfterValidator(lambda some: frozenset(code.upper() for code in some)),
    PlainSerializer(sorted, return_type=list[str], when_used="json"),
]
Contribution = tuple[str, float]
"""What weighs, and how much."""


class MessageScoreOptions(PolicyOptions):
    """Options of `message-score`."""

    tag_at: _Weight | None = Field(5.0, description="Mark from this sum on; null never does.")
    quarantine_at: _Weight | None = Field(8.0, description="Set aside from this sum on; null never does.")
    reject_at: _Weight | None = Field(
        None, description="Refuse for good (`550 5.7.1`) from this sum on; null never does."
    )
    header: str = Field(
        "X-Message-Score",
        pattern=r"^[A-Za-z][A-Za-z0-9-]{0,60}$",
        description="Field with the sum, for what is marked or set aside.",
    )
    spam: _Weight = Field(1.0, description="Factor for the score of `spamd` or `rspamd`.")
    checks: _Weight = Field(1.0, description="Factor for the score of `content-checks`.")
    dnsbl: _Weight = Field(1.0, description="Factor for the score of `dnsbl`.")
    uris: _Weight = Field(1.0, description="Factor for the score of `uribl`.")
    author_proved: _Weight = Field(-1.0, description="DMARC passes, or SPF or DKIM of the author's own domain does.")
    author_unproved: _Weight = Field(1.5, description="None of these does.")
    spf_fail: _Weight = Field(2.0, description="SPF does not let the client send for the sender's domain.")
    spf_softfail: _Weight = Field(1.0, description="SPF says that it probably may not.")
    rdns_none: _Weight = Field(1.5, description="The client has no confirmed reverse name.")
    abroad: _Weight = Field(0.0, description="The client is in none of `countries`, or nobody knows where.")
    countries: _Countries = Field(
        frozenset(), max_length=300, description="ISO codes of the countries that mail usually comes from."
    )
    defect: _Weight = Field(0.5, description="Each of `defects` that the message has.")
    defects: Annotated[frozenset[Defect], PlainSerializer(sorted, return_type=list[str], when_used="json")] = Field(
        frozenset({Defect.MISSING_DATE, Defect.MISSING_MESSAGE_ID, Defect.DUPLICATE_SUBJECT, Defect.NUL_IN_HEADER}),
        description="Defects that count; see the card of `mime`.",
    )
    risky: _Weight = Field(2.0, description="A file that is encrypted, has macros, or is not looked into.")
    risky_stranger: _Weight = Field(
        3.0, description="The same once more, from an author who is not proved, or a client without a name or abroad."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        limits = [limit for limit in (self.tag_at, self.quarantine_at, self.reject_at) if limit is not None]
        if limits != sorted(set(limits)):
            raise ValueError("tag_at, quarantine_at and reject_at must rise, or some are never reached")
        if self.abroad and not self.countries:
            raise ValueError("abroad needs countries: without any, every client would be abroad")
        return self


_SPF: Final = {SpfResult.FAIL: "spf_fail", SpfResult.SOFTFAIL: "spf_softfail"}


class MessageScore(Policy):
    """Adds up doubts about a message, and sets it aside; judged at message. Trusted clients pass."""

    name = "message-score"
    Options = MessageScoreOptions
    options: MessageScoreOptions

    def on_message(
        self,
        session: Session,
        message: Message,
        spam: SpamScore | None,
        checks: ContentChecks | None,
        dnsbl: Dnsbl | None,
        uris: UriHits | None,
        dmarc: Dmarc | None,
        dkim: Dkim | None,
        spf: Spf | None,
        reverse: ReverseName | None,
        geo: Geo | None,
        mime: Mime | None,
        attachments: Attachments | None,
    ) -> Verdict:
        if session.trusted:
            return PROCEED
        parts = [
            *self._factors(spam, checks, dnsbl, uris),
            *self._author(message, dmarc, dkim, spf),
            *self._client(reverse, geo),
            *self._content(mime, attachments),
        ]
        doubts = {name for name, _ in parts} & {"author_unproved", "rdns_none", "abroad"}
        if doubts and any(name == "risky" for name, _ in parts):
            parts.append(("risky_stranger", self.options.risky_stranger))
        weighing = [(name, weight) for name, weight in parts if weight]
        # Weights are short decimals, and so is their sum; binary fractions would miss a limit by nothing.
        total = round(sum(weight for _, weight in weighing), 6)
        return self._judge(total, weighing)

    def _judge(self, total: float, parts: list[Contribution]) -> Verdict:
        reason = f"score {total:g}"
        if parts:
            reason += ": " + ", ".join(f"{name} {weight:+g}" for name, weight in parts)
        for response, limit in (
            (Response.REJECT, self.options.reject_at),
            (Response.QUARANTINE, self.options.quarantine_at),
            (Response.TAG, self.options.tag_at),
        ):
            if limit is not None and total >= limit:
                edits = set_header(self.options.header, f"{total:g}")
                return respond(response, reason, *edits, text="the message is not accepted")
        return Verdict(Action.PROCEED, reason=reason)

    def _factors(
        self, spam: SpamScore | None, checks: ContentChecks | None, dnsbl: Dnsbl | None, uris: UriHits | None
    ) -> Iterator[Contribution]:
        if spam is not None and not spam.skipped:
            yield spam.scanner, round(spam.score * self.options.spam, 6)
        if checks is not None:
            yield "checks", round(checks.score * self.options.checks, 6)
        if dnsbl is not None:
            yield "dnsbl", round(dnsbl.score * self.options.dnsbl, 6)
        if uris is not None:
            yield "uris", round(uris.score * self.options.uris, 6)

    def _author(
        self, message: Message, dmarc: Dmarc | None, dkim: Dkim | None, spf: Spf | None
    ) -> Iterator[Contribution]:
        domains = {author.domain for author in read_authors(message)} or {""}
        proofs = {prove_author(domain, dmarc=dmarc, dkim=dkim, spf=spf) for domain in domains}
        if dmarc is None and dkim is None and spf is None:
            return
        if proofs == {Proof.PROVED}:
            yield "author_proved", self.options.author_proved
        elif Proof.UNPROVED in proofs:
            yield "author_unproved", self.options.author_unproved
        if spf is not None and (option := _SPF.get(spf.result)):
            yield option, getattr(self.options, option)

    def _client(self, reverse: ReverseName | None, geo: Geo | None) -> Iterator[Contribution]:
        if reverse is not None and reverse.result in (AuthResult.FAIL, AuthResult.PERMERROR):
            yield "rdns_none", self.options.rdns_none
        if geo is not None and self.options.countries and geo.country not in self.options.countries:
            yield "abroad", self.options.abroad

    def _content(self, mime: Mime | None, attachments: Attachments | None) -> Iterator[Contribution]:
        for defect in mime.defects if mime is not None else ():
            if defect in self.options.defects:
                yield defect.value, self.options.defect
        if attachments is not None and any(i.macro or i.encrypted or i.opaque for i in attachments.items):
            yield "risky", self.options.risky
