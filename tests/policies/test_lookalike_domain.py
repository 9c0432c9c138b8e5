"""The lookalike-domain policy: which domains look like ours, where they stand, and what is done."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.sdk import PROCEED, Action, AddHeader, ChangeHeader, DeleteHeader
from gateway.sdk.testing import Bench, make_message, make_session, make_transaction
from policies.lookalike_domain import LookalikeDomain, LookalikeDomainOptions
from tests.policies.whole import send

BASE = {"protect": ["example.org", "acme.co.test"], "action": "reject"}


def judge(domain: str, *, header: str = "From", sender: str = "x@s.test", trusted=False, **options):
    message = make_message(f"{header}: X <x@{domain}>\r\nSubject: hello\r\n\r\n".encode())
    transaction = make_transaction(make_session(trusted=trusted), sender=sender)
    return Bench().judge(LookalikeDomain, BASE | options, transaction=transaction, message=message)


@pytest.mark.parametrize(
    ("domain", "likeness"),
    [
        ("examp1e.org", "letters"),
        ("exarnple.org", "letters"),
        ("ex\u0430mple.org", "letters"),
        ("xn--exmple-4nf.org", "letters"),
        ("mail.examp1e.org", "letters"),
        ("acrne.co.test", "letters"),
        ("exmaple.org", "typo"),
        ("exmple.org", "typo"),
        ("eexample.org", "typo"),
        ("exanple.org", "typo"),
        ("example.org.evil.test", "within"),
        ("example-org.evil.test", "within"),
        ("login-example.test", "within"),
        ("mail.examp1e-billing.test", "within"),
        ("acme.co.test.evil.test", "within"),
    ],
)
def test_a_domain_that_looks_like_a_protected_one_is_refused(domain, likeness):
    verdict = judge(domain)
    assert str(verdict.reply) == "550 5.7.1 the sender's domain is not accepted"
    assert verdict.reason.endswith(f"({likeness})")


@pytest.mark.parametrize(
    "domain",
    [
        "example.org",
        "news.example.org",
        "acme.co.test",
        "examples.net",
        "sample.org",
        "example.com",
        "example.helpdesk.test",
        "acmes.co.test",
        "acne.co.test",
        "co.test",
        "org",
        "[192.0.2.1]",
    ],
)
def test_protected_ones_and_others_pass(domain):
    assert judge(domain) == PROCEED


def test_another_ending_counts_when_asked_for():
    verdict = judge("example.com", like=["ending"])
    assert verdict.reason == "from example.com looks like example.org (ending)"
    assert judge("exmaple.org", like=["ending"]) == PROCEED


@pytest.mark.parametrize(
    "domain", ["mail.example.com", "example.co.uk", "mail.example.com.au", "acme.com", "mail.acme.com", "acme.co.uk"]
)
def test_another_ending_may_have_more_labels_or_fewer_and_what_stands_below_makes_no_difference(domain):
    assert judge(domain, like=["ending"]).reason.endswith("(ending)")


@pytest.mark.parametrize("domain", ["example.helpdesk.test", "example.shops.uk", "co.uk"])
def test_a_name_below_another_company_is_no_other_ending(domain):
    assert judge(domain, like=["ending"]) == PROCEED


def test_known_domains_pass_with_all_below():
    assert judge("mail.exmaple.org", known=["exmaple.org"]) == PROCEED


def test_each_place_is_looked_at_unless_told_otherwise():
    assert judge("exmaple.org", header="Reply-To").reason.startswith("reply-to exmaple.org")
    assert judge("s.test", sender="x@exmaple.org").reason.startswith("sender exmaple.org")
    assert judge("exmaple.org", header="Reply-To", places=["from", "sender"]) == PROCEED
    assert judge("s.test", sender="x@exmaple.org", places=["from"]) == PROCEED
    assert judge("s.test", sender="") == PROCEED


def test_short_names_are_left_alone_by_what_would_hit_everybody():
    assert judge("acmes.co.test", shortest=4).decisive
    assert judge("acme-shop.test") == PROCEED
    assert judge("acme-shop.test", shortest=4).decisive


def test_by_default_the_message_is_marked():
    verdict = judge("exmaple.org", action="tag", subject="[odd domain]")
    assert verdict.action is Action.PROCEED
    assert verdict.edits == (
        DeleteHeader("X-Lookalike-Domain"),
        AddHeader("X-Lookalike-Domain", "exmaple.org looks like example.org"),
        ChangeHeader("Subject", 1, "[odd domain] hello"),
    )


def test_trusted_clients_pass():
    assert judge("exmaple.org", trusted=True) == PROCEED


@pytest.mark.parametrize(
    "options", [{"protect": []}, {"protect": ["no domain"]}, {"like": []}, {"like": ["odd"]}, {"shortest": 1}]
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        LookalikeDomainOptions.model_validate(BASE | options)


@settings(max_examples=150)
@given(st.text("example.org-xn<>@,1\u0430\u00fc", max_size=300))
def test_hostile_domains_get_a_verdict_and_what_is_added_can_be_written(domain):
    verdict = judge(domain, action="tag")
    assert verdict.action is Action.PROCEED and verdict.reason.isprintable()
    assert judge(domain) == judge(domain)


def test_in_a_pipeline_it_judges_what_authentication_passes():
    entries = ["spf", "dkim", "dmarc", {"lookalike-domain": BASE}]
    decided, _ = send(entries, b"From: Ben <ben@examp1e.org>\r\n\r\n")
    assert (decided.verdict.action, decided.entry) == (Action.REJECT, "lookalike-domain")
    decided, _ = send(entries, b"From: Ben <ben@sender.example>\r\nReply-To: <b@example-org.test>\r\n\r\n")
    assert decided.verdict.reason == "reply-to example-org.test looks like example.org (within)"
    assert not send(entries, b"From: Ben <ben@sender.example>\r\n\r\n")[0].verdict.decisive
