"""The restricted-recipients policy: who may write to a list."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.pipeline.loader import PipelineError
from gateway.sdk import PROCEED, Action, OptionError, Spf, SpfResult
from gateway.sdk.testing import Bench, FakeDns, make_recipient, make_session, make_transaction
from policies.restricted_recipients import RestrictedRecipients, RestrictedRecipientsOptions
from tests.policies.whole import SPF, send

LISTS = {"All@Example.org": [], "staff@example.org": ["partner.test", "Boss@home.test"]}


def spf(result: str) -> Spf:
    return Spf(SpfResult(result), "partner.test", SpfResult.NONE, "h.test")


def judge(recipient: str, sender: str, *findings, client="192.0.2.1", trusted=False, **options):
    session = make_session(client, trusted=trusted)
    return Bench().judge(
        RestrictedRecipients,
        {"lists": LISTS} | options,
        transaction=make_transaction(session, sender=sender),
        recipient=make_recipient(recipient),
        findings=findings or [spf("none")],
    )


@pytest.mark.parametrize("recipient", ["all@example.org", "ALL@EXAMPLE.ORG", "all+x@example.org", "staff@example.org"])
@pytest.mark.parametrize("sender", ["x@mail.test", "x@notpartner.test", "boss@other.test", ""])
def test_strangers_are_refused_recipient_by_recipient(recipient, sender):
    verdict = judge(recipient, sender, spf("pass"))
    assert str(verdict.reply) == "550 5.7.2 not authorised to write to this recipient"
    assert "may not write to" in verdict.reason


@pytest.mark.parametrize("sender", ["a@partner.test", "a@sub.partner.test", "BOSS@home.test"])
def test_senders_that_are_named_may_write_where_spf_proves_them(sender):
    assert judge("staff@example.org", sender, spf("pass")) == PROCEED
    assert judge("all@example.org", sender, spf("pass")).action is Action.REJECT, "to their list only"
    for result in ("fail", "softfail", "neutral", "none", "permerror"):
        assert judge("staff@example.org", sender, spf(result)).reply.status == "5.7.2"
    verdict = judge("staff@example.org", sender, spf("temperror"))
    assert (verdict.action, verdict.reply.status) == (Action.DEFER, "4.7.24")


def test_a_check_that_failed_is_deferred():
    policy = RestrictedRecipients(RestrictedRecipientsOptions.model_validate({"lists": LISTS}))
    session = make_session()
    transaction = make_transaction(session, sender="a@partner.test")
    assert policy.on_rcpt(session, transaction, make_recipient("staff@example.org"), None).action is Action.DEFER


def test_our_own_machines_may_write_to_all():
    assert judge("all@example.org", "x@mail.test", trusted=True) == PROCEED
    networks = ["198.51.100.0/24", "2001:db8::/32"]
    assert judge("all@example.org", "x@mail.test", client="198.51.100.7", networks=networks) == PROCEED
    assert judge("all@example.org", "", client="2001:db8::1", networks=networks) == PROCEED
    assert judge("all@example.org", "x@mail.test", networks=networks).decisive


@pytest.mark.parametrize(
    "recipient", ["anna@example.org", "all@example.com", "all-x@example.org", "postmaster", "+@example.org"]
)
def test_other_recipients_are_not_of_interest(recipient):
    assert judge(recipient, "x@mail.test") == PROCEED


def test_subaddresses_are_those_of_the_delimiter():
    assert judge("all-x@example.org", "x@mail.test", delimiter="-").decisive
    assert judge("all+x@example.org", "x@mail.test", delimiter="") == PROCEED


def test_a_list_with_the_delimiter_in_its_name_has_subaddresses_too():
    lists = {"project-x@example.org": ["partner.test"], "project@example.org": ["other.test"]}
    options: dict = {"lists": lists, "delimiter": "-"}
    for recipient in ("project-x-y@example.org", "project-x-y-z@example.org"):
        assert judge(recipient, "x@mail.test", spf("pass"), **options).decisive
        assert judge(recipient, "a@partner.test", spf("pass"), **options).decisive, "it may lead to project@"
        assert judge(recipient, "a@other.test", spf("pass"), **options).decisive
    assert judge("project-x@example.org", "a@partner.test", spf("pass"), **options) == PROCEED
    assert judge("project-y@example.org", "a@other.test", spf("pass"), **options) == PROCEED
    only = {"lists": {"project-x@example.org": ["partner.test"]}, "delimiter": "-"}
    assert judge("project-x-y@example.org", "a@partner.test", spf("pass"), **only) == PROCEED


def test_named_senders_need_somebody_who_checks_them():
    with pytest.raises(OptionError, match="list spf"):
        Bench().judge(RestrictedRecipients, {"lists": LISTS})
    with pytest.raises(PipelineError, match="list spf"):
        send([{"restricted-recipients": {"lists": LISTS}}], b"\r\n")
    assert Bench().judge(RestrictedRecipients, {"lists": {"all@example.org": []}}) == PROCEED


@pytest.mark.parametrize(
    "lists",
    [{}, {"all": []}, {"a@b.test": ["no domain"]}, {"a@b.test": ["x@"]}, {"a@b.test": [], "A@B.test": []}],
)
def test_wrong_options_are_refused(lists):
    with pytest.raises(ValidationError):
        RestrictedRecipientsOptions.model_validate({"lists": lists})


@settings(max_examples=100)
@given(st.from_regex(r"[a-z+.\"!]{0,20}", fullmatch=True))
def test_no_spelling_of_a_subaddress_gets_around_the_list(rest):
    recipient = "all+" + "".join(c for c in rest if c.isalnum() or c in "+!") + "x@example.org"
    assert judge(recipient, "x@mail.test", spf("pass")).action is Action.REJECT


def test_in_a_pipeline_one_recipient_is_refused_and_the_other_is_not():
    entries = ["spf", {"restricted-recipients": {"lists": LISTS}}]
    both = {"recipients": ["anna@example.org", "staff@example.org"]}
    decided, _ = send(entries, b"\r\n", **both)
    assert (decided.verdict.reply.status, decided.entry) == ("5.7.2", "restricted-recipients")
    assert not send(entries, b"\r\n", sender="ben@partner.test", **both)[0].verdict.decisive
    forged = FakeDns(txt={**SPF, "partner.test": ["v=spf1 ~all"]})
    assert send(entries, b"\r\n", sender="ben@partner.test", dns=forged, **both)[0].verdict.reply.status == "5.7.2"
