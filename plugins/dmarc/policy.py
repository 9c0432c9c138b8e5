"""What is done by a DMARC result, and why not what its domain asks for: the default policy, pure.

The reports need the same answer after the fact, so it is computed here for both.

*RFCs*: 9989 sections 5.4 and 7; 7960 (mailing lists and forwarders); 7372 section 3.3 (X.7.26); 9990 section 3.1.6.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.sdk import (
    Action,
    Arc,
    AuthResult,
    Dmarc,
    DmarcPolicy,
    Policy,
    Session,
    Verdict,
    defer,
    quarantine,
    reject,
)
from plugins.dmarc.options import DmarcOptions, TempError

_METHODS: Final = ("dmarc", "spf", "dkim")


class Override(StrEnum):
    """Why a message was handled otherwise than its domain asks for (RFC 9990 section 3.1.6)."""

    LOCAL_POLICY = "local_policy"
    MAILING_LIST = "mailing_list"
    OTHER = "other"
    POLICY_TEST_MODE = "policy_test_mode"
    TRUSTED_FORWARDER = "trusted_forwarder"


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done with the message; `override` and `comment` say why, when that is not what the policy says."""

    handling: DmarcPolicy
    override: Override | None = None
    comment: str = ""


def decide(options: DmarcOptions, session: Session, dmarc: Dmarc, arc: Arc | None) -> Decision:
    """What is done by this result, failures of the DNS and of From aside."""
    asked = dmarc.policy or DmarcPolicy.NONE
    if dmarc.result is not AuthResult.FAIL or asked is DmarcPolicy.NONE:
        return Decision(DmarcPolicy.NONE)
    if exempt := _exempt(options, session, dmarc, arc):
        return exempt
    handling = options.reject if asked is DmarcPolicy.REJECT else options.quarantine
    if handling is not asked:
        return Decision(handling, Override.LOCAL_POLICY, f"policy {asked} is handled as {handling} here")
    return Decision(handling)


def _exempt(options: DmarcOptions, session: Session, dmarc: Dmarc, arc: Arc | None) -> Decision | None:
    # What excuses one author domain says nothing for another that stands beside it in From.
    exempt = [_exempt_domain(options, author) for author in (dmarc.domain, *dmarc.others)]
    if all(exempt):
        return Decision(DmarcPolicy.NONE, Override.LOCAL_POLICY, f"author domain {exempt[0]} is exempt")
    if exempt_client(options, session):
        return Decision(DmarcPolicy.NONE, Override.TRUSTED_FORWARDER, "client is exempt")
    if options.trust_arc and arc is not None and not dmarc.others and (said := _vouched(arc, dmarc)):
        kind = Override.MAILING_LIST if dmarc.list_id else Override.TRUSTED_FORWARDER
        return Decision(DmarcPolicy.NONE, kind, f"ARC sealed by {arc.sealers[-1]}: {said}")
    return None


def _exempt_domain(options: DmarcOptions, author: str) -> str:
    """The entry of `exempt_domains` that an author domain belongs to, empty when there is none."""
    return next((name for name in options.exempt_domains if author == name or author.endswith("." + name)), "")


def exempt_client(options: DmarcOptions, session: Session) -> bool:
    return any(session.client.version == net.version and session.client in net for net in options.exempt_networks)


def _vouched(arc: Arc, dmarc: Dmarc) -> str:
    """Which result of a trusted chain says that the author's domain was proved before the message was changed."""
    if arc.result is not AuthResult.PASS or not arc.trusted or not arc.sealers:
        return ""
    family = dmarc.organizational or dmarc.domain
    for method, result, domain in arc.results:
        if method.lower() in _METHODS and result.lower() == "pass":
            name = domain.lower()
            if name == dmarc.domain or (method.lower() != "dmarc" and (name == family or name.endswith("." + family))):
                return f"{method}=pass for {name}"
    return ""


class DmarcDefault(Policy):
    """Do what the author's domain asks for, unless there is a reason not to."""

    name = "dmarc"
    Options = DmarcOptions
    options: DmarcOptions

    def on_message(self, session: Session, dmarc: Dmarc, arc: Arc | None) -> Verdict:
        if session.trusted:
            return Verdict(Action.PROCEED, reason="client is trusted")
        if dmarc.result is AuthResult.TEMPERROR and self.options.temperror is TempError.DEFER:
            return defer("7.0", "the author domain cannot be checked now, try again later", reason=dmarc.problem)
        if dmarc.result is AuthResult.PERMERROR and not dmarc.domain:
            return self._without_author(session, dmarc)
        decision = decide(self.options, session, dmarc, arc)
        if decision.handling is DmarcPolicy.NONE:
            reason = f"DMARC fails, {decision.override}: {decision.comment}" if decision.override else ""
            return Verdict(Action.PROCEED, reason=reason)
        reason = f"DMARC fails for {dmarc.domain}, policy {dmarc.policy} of {dmarc.record_domain}"
        if decision.comment:
            reason += f" ({decision.comment})"
        if decision.handling is DmarcPolicy.QUARANTINE:
            return quarantine(reason)
        return reject("7.26", f"refused by the DMARC policy of {dmarc.domain}", reason=reason)

    def _without_author(self, session: Session, dmarc: Dmarc) -> Verdict:
        handling = self.options.no_author
        if handling is DmarcPolicy.NONE or exempt_client(self.options, session):
            return Verdict(Action.PROCEED, reason=dmarc.problem)
        if handling is DmarcPolicy.QUARANTINE:
            return quarantine(dmarc.problem)
        return reject("7.1", "the From field does not name one author domain", reason=dmarc.problem)
