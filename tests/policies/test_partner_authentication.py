"""The partner-authentication policy: who must authenticate, and what happens when that fails or cannot be told."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.pipeline.loader import PipelineError
from gateway.sdk import (
    PROCEED,
    Action,
    AddHeader,
    Arc,
    AuthResult,
    Dkim,
    DkimSignature,
    Dmarc,
    DmarcPolicy,
    OptionError,
    Spf,
    SpfResult,
)
from gateway.sdk.testing import Bench, FakeDns, make_message, make_session, make_transaction
from policies.partner_authentication import PartnerAuthentication, PartnerAuthenticationOptions
from tests.policies.whole import SPF, send

BASE = {"partners": ["partner.test"]}


def judge(author: str, *findings, sender: str = "x@s.test", trusted=False, **options):
    return Bench().judge(
        PartnerAuthentication,
        BASE | options,
        transaction=make_transaction(make_session(trusted=trusted), sender=sender),
        message=make_message(f"From: {author}\r\n\r\n".encode()),
        findings=findings,
    )


def dmarc(result: str, domain: str = "partner.test", policy: DmarcPolicy | None = None) -> Dmarc:
    return Dmarc(AuthResult(result), domain, policy=policy)


def spf(result: str, domain: str = "partner.test") -> Spf:
    return Spf(SpfResult(result), domain, SpfResult.NONE, "h.test")


def test_forged_mail_of_a_partner_is_refused_whatever_its_record_asks_for():
    verdict = judge("a@partner.test", dmarc("fail", policy=DmarcPolicy.NONE))
    assert str(verdict.reply) == "550 5.7.26 mail from this domain must be authenticated"
    assert verdict.reason == "author domain partner.test is not authenticated, DMARC fail"
    assert judge("a@sub.partner.test", dmarc("fail", "sub.partner.test")).action is Action.REJECT
    assert judge("a@partner.test", spf("none"), Dkim()).action is Action.REJECT, "no record is no excuse"


@pytest.mark.parametrize(
    "findings",
    [
        [dmarc("pass")],
        [dmarc("none"), spf("pass")],
        [dmarc("none"), spf("fail"), Dkim((DkimSignature(AuthResult.PASS, "mail.partner.test"),))],
        [dmarc("fail"), Arc(AuthResult.PASS, ("list.test",), True, (("dmarc", "pass", "partner.test"),))],
    ],
)
def test_what_is_authenticated_passes(findings):
    assert judge("a@partner.test", *findings) == PROCEED


def test_others_and_exceptions_pass():
    assert judge("a@other.test", dmarc("fail", "other.test")) == PROCEED
    assert judge("a@notpartner.test", dmarc("fail", "notpartner.test")) == PROCEED
    assert (
        judge("a@lists.partner.test", dmarc("fail", "lists.partner.test"), except_for=["lists.partner.test"]) == PROCEED
    )
    assert judge("a@partner.test", dmarc("fail"), trusted=True) == PROCEED


@pytest.mark.parametrize("finding", [dmarc("temperror"), spf("temperror")])
def test_what_cannot_be_checked_is_deferred_and_not_refused_for_good(finding):
    verdict = judge("a@partner.test", finding)
    assert str(verdict.reply) == "451 4.7.26 the sender cannot be checked now, try again later"
    assert judge("a@partner.test", finding, action="quarantine") == PROCEED


def test_a_forged_author_beside_an_unchecked_one_decides():
    signatures = Dkim((DkimSignature(AuthResult.TEMPERROR, "partner.test"),))
    assert judge("a@partner.test, b@b.test", signatures, partners=["partner.test", "b.test"]).action is Action.REJECT


def test_milder_responses():
    verdict = judge("a@partner.test", dmarc("fail"), action="tag")
    assert verdict.action is Action.PROCEED
    assert AddHeader("X-Unauthenticated-Partner", "author domain partner.test") in verdict.edits
    assert judge("a@partner.test", dmarc("fail"), action="quarantine").action is Action.QUARANTINE


def test_the_envelope_is_judged_when_asked_for():
    forged = {"sender": "a@partner.test", "envelope": True}
    assert judge("x@s.test", spf("pass"), dmarc("pass", "s.test"), **forged) == PROCEED
    assert judge("x@s.test", spf("softfail"), dmarc("pass", "s.test"), **forged).reason.startswith("sender domain")
    assert judge("x@s.test", spf("temperror"), **forged).action is Action.DEFER
    assert judge("x@s.test", spf("softfail"), sender="a@partner.test") == PROCEED
    assert judge("x@s.test", spf("softfail", "h.test"), sender="", envelope=True) == PROCEED


def test_without_anybody_who_checks_the_options_are_refused():
    with pytest.raises(OptionError, match="list spf, dkim and dmarc"):
        judge("a@partner.test")
    with pytest.raises(OptionError, match="list spf in"):
        judge("a@partner.test", dmarc("pass"), envelope=True)
    with pytest.raises(PipelineError, match="nobody checks them"):
        send([{"partner-authentication": BASE}], b"\r\n")


@pytest.mark.parametrize("options", [{"partners": []}, {"partners": ["a b"]}, {"action": "discard"}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        PartnerAuthenticationOptions.model_validate(BASE | options)


@settings(max_examples=100)
@given(st.text('a@partner.test<>"(),;:\\ \u0430', max_size=80))
def test_a_partner_is_seen_among_whatever_stands_around_it(text):
    assert judge(text, dmarc("permerror", ""), spf("fail", "s.test")).action in (Action.PROCEED, Action.REJECT)
    hidden = f"{text.replace(chr(34), '').replace('(', '').replace(chr(92), '')}, <a@partner.test>"
    assert judge(hidden, dmarc("permerror", ""), spf("fail", "s.test")).action is Action.REJECT


def test_in_a_pipeline_spf_proves_a_partner_without_a_record_and_dmarc_one_with():
    entries = ["spf", "dkim", "dmarc", {"partner-authentication": BASE}]
    content = b"From: Ben <ben@partner.test>\r\n\r\n"
    assert not send(entries, content, sender="ben@partner.test")[0].verdict.decisive
    decided, _ = send(entries, content)
    assert (str(decided.verdict.reply)[:10], decided.entry) == ("550 5.7.26", "partner-authentication")
    with_record = {**SPF, "_dmarc.partner.test": ["v=DMARC1; p=none"]}
    assert send(entries, content, dns=FakeDns(txt=with_record))[0].entry == "partner-authentication"
    away = FakeDns(txt=SPF, fails=["_dmarc.partner.test"])
    decided, _ = send(entries, content, sender="ben@partner.test", dns=away)
    assert (decided.verdict.action, decided.entry) == (Action.DEFER, "partner-authentication")
