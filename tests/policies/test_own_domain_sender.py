"""The own-domain-sender policy on the bench."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway.sdk import PROCEED, Action, Spf, SpfResult
from gateway.sdk.testing import Bench, make_session, make_transaction
from policies.own_domain_sender import OwnDomainSender, OwnDomainSenderOptions


def judge(sender: str, spf: str | None = "fail", *, trusted=False, **options):
    transaction = make_transaction(make_session(trusted=trusted), sender=sender)
    findings = [Spf(SpfResult(spf), "example.org", SpfResult.NONE, "h.test")] if spf else []
    options = {"own_domains": ["Example.org"]} | options
    return Bench().judge(OwnDomainSender, options, transaction=transaction, findings=findings)


@pytest.mark.parametrize("spf", ["fail", "softfail", "neutral", "none", "permerror", "temperror", None])
def test_a_stranger_in_our_name_is_set_aside(spf):
    verdict = judge("boss@EXAMPLE.org", spf)
    assert (verdict.action, verdict.reason) == (Action.QUARANTINE, "stranger sends as example.org")


@pytest.mark.parametrize("spf", ["fail", "softfail", "neutral", "none", "permerror"])
def test_strict_refuses_with_5_7_1(spf):
    assert judge("boss@example.org", spf, strict=True).reply.status == "5.7.1"


@pytest.mark.parametrize("spf", ["temperror", None])
def test_what_could_not_be_checked_is_deferred_and_not_refused_for_good(spf):
    verdict = judge("boss@example.org", spf, strict=True)
    assert (verdict.action, verdict.reply.status) == (Action.DEFER, "4.7.24")


def test_whom_spf_allows_may_send_in_our_name_unless_told_otherwise():
    assert judge("shop@example.org", "pass", strict=True) == PROCEED
    assert judge("shop@example.org", "pass", strict=True, accept_spf_pass=False).action is Action.REJECT
    assert judge("shop@example.org", None, strict=True, accept_spf_pass=False).action is Action.REJECT


def test_trusted_clients_other_domains_and_the_null_sender_proceed():
    assert judge("boss@example.org", trusted=True) == PROCEED
    assert judge("ann@sender.example") == PROCEED
    assert judge("ann@notexample.org", subdomains=True) == PROCEED
    assert judge("") == PROCEED


def test_domains_below_ours_are_protected_when_asked_for():
    assert judge("x@news.example.org") == PROCEED
    assert judge("x@news.example.org", subdomains=True).action is Action.QUARANTINE


def test_u_labels_are_compared_as_a_labels():
    assert judge("x@b\u00fccher.example", own_domains=["xn--bcher-kva.example"]).action is Action.QUARANTINE


def test_without_domains_of_ours_the_policy_is_refused():
    with pytest.raises(ValidationError):
        OwnDomainSenderOptions.model_validate({})
