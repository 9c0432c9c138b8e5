"""One score from many small doubts: DNS lists, HELO name, reverse name, sender's domain, SPF.

None of these alone says enough to refuse a client; several together do. Each fact has a weight, below 0 for what speaks
for a client, and the sum decides. The reason of the verdict lists every weight that went into the sum, also when
the mail goes on, so that `gatepost explain` shows how it came about.

A finding that is missing, or that says that the DNS did not answer, weighs nothing unless its option says otherwise:
trouble is no evidence.

*RFCs*: 5321 (section 4.5.1 postmaster), 8601 (section 2.7.3 iprev), 7208 (section 2.6 SPF results).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Self

from pydantic import Field, FiniteFloat, model_validator

from gateway.sdk import (
    PROCEED,
    Action,
    AuthResult,
    Dnsbl,
    DomainState,
    HeloName,
    LocalParts,
    Policy,
    PolicyOptions,
    Recipient,
    ReverseName,
    SenderDomain,
    Session,
    Spf,
    SpfResult,
    Verdict,
    defer,
    reject,
)

_Weight = Annotated[FiniteFloat, Field(ge=-1000, le=1000)]


class ClientScoreOptions(PolicyOptions):
    """Options of `client-score`."""

    reject_at: _Weight | None = Field(8.0, description="Refuse for good from this sum on; null never does.")
    defer_at: _Weight | None = Field(None, description="Refuse for now from this sum on; null never does.")
    exempt: LocalParts = Field(
        frozenset({"postmaster"}), description="Local parts that any client may write to (RFC 5321 section 4.5.1)."
    )
    dnsbl: _Weight = Field(1.0, description="Factor for the score of `dnsbl`, which has weights of its own.")
    helo_not_a_name: _Weight = Field(3.0, description="HELO is no name at all.")
    helo_bare_address: _Weight = Field(3.0, description="HELO is an address without brackets.")
    helo_literal_mismatch: _Weight = Field(2.5, description="HELO is an address in brackets, and not the client's.")
    helo_our_name: _Weight = Field(6.0, description="HELO is a name of ours.")
    helo_single_label: _Weight = Field(1.5, description="HELO is a name without a domain.")
    helo_no_such_name: _Weight = Field(1.5, description="HELO is a name that does not exist.")
    helo_unresolvable: _Weight = Field(1.0, description="HELO is a name without addresses.")
    rdns_none: _Weight = Field(3.0, description="The client has no reverse name.")
    rdns_unconfirmed: _Weight = Field(1.5, description="Its reverse name does not lead back to it.")
    rdns_confirmed: _Weight = Field(-0.5, description="Its reverse name leads back to it.")
    helo_is_rdns: _Weight = Field(-1.0, description="HELO is the confirmed reverse name.")
    sender_missing: _Weight = Field(4.0, description="The sender's domain does not exist.")
    sender_none: _Weight = Field(3.0, description="The sender's domain has neither MX nor addresses.")
    sender_null_mx: _Weight = Field(4.0, description="The sender's domain says that it takes no mail.")
    sender_bogus: _Weight = Field(4.0, description="The sender's mail hosts cannot be reached by anybody.")
    sender_unknown: _Weight = Field(0.0, description="The DNS says nothing of the sender's domain for now.")
    spf_pass: _Weight = Field(-1.5, description="SPF lets the client send for the sender's domain.")
    spf_fail: _Weight = Field(3.0, description="SPF does not let it.")
    spf_softfail: _Weight = Field(1.5, description="SPF says that it probably may not.")
    spf_neutral: _Weight = Field(0.0, description="SPF says nothing either way.")
    spf_none: _Weight = Field(0.0, description="The sender's domain has no SPF record.")
    spf_permerror: _Weight = Field(1.0, description="The sender domain's SPF records are broken.")
    spf_temperror: _Weight = Field(0.0, description="The SPF records could not be had.")
    spf_helo_fail: _Weight = Field(3.0, description="SPF does not let the client use its HELO name.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.reject_at is not None and self.defer_at is not None and self.defer_at >= self.reject_at:
            raise ValueError("defer_at must be less than reject_at, or it is never reached")
        return self


_SENDER: Final = {
    DomainState.MISSING: "sender_missing",
    DomainState.NONE: "sender_none",
    DomainState.NULL_MX: "sender_null_mx",
    DomainState.BOGUS: "sender_bogus",
    DomainState.UNKNOWN: "sender_unknown",
}
_NO_NAME: Final = (AuthResult.PERMERROR, AuthResult.FAIL)
_SPF_RESULTS: Final = {result: f"spf_{result}" for result in SpfResult}
_HELO_OPTIONS: Final = frozenset(
    f"helo_{problem}"
    for problem in (
        "not_a_name",
        "bare_address",
        "literal_mismatch",
        "our_name",
        "single_label",
        "no_such_name",
        "unresolvable",
    )
)

Contribution = tuple[str, float]
"""What weighs (the option's name, or the list's), and how much."""


class ClientScore(Policy):
    """Judged at RCPT, when all is known that needs no content. Trusted clients pass; all may write to postmaster."""

    name = "client-score"
    Options = ClientScoreOptions
    options: ClientScoreOptions

    def on_rcpt(
        self,
        session: Session,
        recipient: Recipient,
        dnsbl: Dnsbl | None,
        helo: HeloName | None,
        reverse: ReverseName | None,
        sender: SenderDomain | None,
        spf: Spf | None,
    ) -> Verdict:
        if session.trusted or recipient.address.has_local(self.options.exempt):
            return PROCEED
        parts = [
            *self._lists(dnsbl),
            *self._helo(helo, reverse),
            *self._reverse(reverse),
            *self._sender(sender),
            *self._spf(spf),
        ]
        # Weights are short decimals, and so is their sum; binary fractions would miss a limit by nothing.
        total = round(sum(weight for _, weight in parts), 6)
        reason = self._explain(total, parts, dnsbl=dnsbl, helo=helo, rdns=reverse, sender=sender, spf=spf)
        if self.options.reject_at is not None and total >= self.options.reject_at:
            return reject("7.1", "client is not trusted", reason=reason)
        if self.options.defer_at is not None and total >= self.options.defer_at:
            return defer("7.1", "client is not trusted, try again later", code=450, reason=reason)
        return Verdict(Action.PROCEED, reason=reason)

    def _weight(self, option: str) -> Iterator[Contribution]:
        weight: float = getattr(self.options, option)
        if weight:
            yield option, weight

    def _lists(self, dnsbl: Dnsbl | None) -> Iterator[Contribution]:
        for hit in dnsbl.hits if dnsbl else ():
            if weight := hit.weight * self.options.dnsbl:
                yield f"dnsbl {hit.zone}", weight

    def _helo(self, helo: HeloName | None, reverse: ReverseName | None) -> Iterator[Contribution]:
        if helo is None:
            return
        for problem in dict.fromkeys(helo.problems):
            option = f"helo_{problem.replace('-', '_')}"
            if option in _HELO_OPTIONS:
                yield from self._weight(option)
        if reverse and reverse.name and helo.name.lower().removesuffix(".") == reverse.name.lower():
            yield from self._weight("helo_is_rdns")

    def _reverse(self, reverse: ReverseName | None) -> Iterator[Contribution]:
        if reverse is None:
            return
        if reverse.result is AuthResult.PASS:
            yield from self._weight("rdns_confirmed")
        elif reverse.result in _NO_NAME:
            yield from self._weight("rdns_unconfirmed" if reverse.names else "rdns_none")

    def _sender(self, sender: SenderDomain | None) -> Iterator[Contribution]:
        if sender is not None and (option := _SENDER.get(sender.state)):
            yield from self._weight(option)

    def _spf(self, spf: Spf | None) -> Iterator[Contribution]:
        if spf is None:
            return
        yield from self._weight(_SPF_RESULTS[spf.result])
        if spf.helo is SpfResult.FAIL:
            yield from self._weight("spf_helo_fail")

    @staticmethod
    def _explain(total: float, parts: list[Contribution], **findings: object) -> str:
        """``score 4.5: dnsbl bl.test +3, rdns_unconfirmed +1.5; without spf``."""
        out = f"score {total:g}"
        if parts:
            out += ": " + ", ".join(f"{name} {weight:+g}" for name, weight in parts)
        missing = [name for name, finding in findings.items() if finding is None]
        return out + (f"; without {', '.join(missing)}" if missing else "")
