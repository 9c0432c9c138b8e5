"""The client-score policy on the bench: what weighs, what the sum decides, and that the reason shows it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.sdk import (
    PROCEED,
    Action,
    AuthResult,
    Dnsbl,
    DomainState,
    Finding,
    HeloName,
    ListHit,
    ReverseName,
    SenderDomain,
    Spf,
    SpfResult,
    Verdict,
)
from gateway.sdk.testing import Bench, make_recipient, make_session
from policies.client_score import ClientScore, ClientScoreOptions

PROBLEMS = (
    "not-a-name",
    "bare-address",
    "literal-mismatch",
    "our-name",
    "single-label",
    "no-such-name",
    "unresolvable",
)
DEFAULT = ClientScoreOptions()


def judge(*findings: Finding, trusted: bool = False, recipient: str = "anna@example.org", **options: Any) -> Verdict:
    return Bench().judge(
        ClientScore,
        options,
        session=make_session(trusted=trusted),
        recipient=make_recipient(recipient),
        findings=findings,
    )


def score(verdict: Verdict) -> float:
    return float(verdict.reason.split(":")[0].split(";")[0].removeprefix("score "))


def listed(*weights: float) -> Dnsbl:
    hits = tuple(ListHit(f"l{i}.test", ("127.0.0.2",), weight) for i, weight in enumerate(weights))
    return Dnsbl(sum(weights), hits)


def spf(result: SpfResult, helo: SpfResult = SpfResult.NONE) -> Spf:
    return Spf(result, "sender.example", helo, "client.example")


def rdns(result: AuthResult, name: str = "", *names: str) -> ReverseName:
    return ReverseName(result, "192.0.2.1", name, names)


def test_several_small_doubts_refuse_a_client_and_the_reason_shows_the_sum():
    findings = (
        listed(2, -1),
        HeloName("laptop", ("single-label", "no-such-name")),
        rdns(AuthResult.FAIL, "", "dyn.example"),
        SenderDomain("sender.example", DomainState.MISSING),
        spf(SpfResult.SOFTFAIL),
    )
    verdict = judge(*findings)
    assert verdict.action is Action.REJECT
    assert str(verdict.reply) == "550 5.7.1 client is not trusted"
    assert verdict.reason == (
        "score 11: dnsbl l0.test +2, dnsbl l1.test -1, helo_single_label +1.5, helo_no_such_name +1.5,"
        " rdns_unconfirmed +1.5, sender_missing +4, spf_softfail +1.5"
    )
    for finding in findings:
        assert judge(finding, reject_at=8).action is Action.PROCEED, "none of them is enough by itself"


def test_the_reason_shows_the_sum_when_the_mail_goes_on_too():
    verdict = judge(rdns(AuthResult.PASS, "mail.example", "mail.example"), spf(SpfResult.PASS))
    assert verdict.action is Action.PROCEED
    assert verdict.reason == "score -2: rdns_confirmed -0.5, spf_pass -1.5; without dnsbl, helo, sender"


def test_findings_that_are_missing_weigh_nothing_and_are_named():
    verdict = judge()
    assert not verdict.decisive
    assert verdict.reason == "score 0; without dnsbl, helo, rdns, sender, spf"


def test_limits_are_reached_at_their_value_and_not_before():
    assert judge(listed(5), reject_at=5, defer_at=3).action is Action.REJECT
    assert judge(listed(4.9), reject_at=5, defer_at=3).action is Action.DEFER
    assert judge(listed(2.9), reject_at=5, defer_at=3).action is Action.PROCEED
    assert judge(listed(99), reject_at=None).action is Action.PROCEED
    # 0.1 + 0.2 is a little more than 0.3, and 0.7 + 0.1 a little less than 0.8.
    assert judge(listed(0.7, 0.1), reject_at=0.8).action is Action.REJECT


def test_deferring_says_4_7_1():
    assert str(judge(listed(5), defer_at=5).reply) == "450 4.7.1 client is not trusted, try again later"


@pytest.mark.parametrize("problem", PROBLEMS)
def test_each_helo_problem_has_a_weight_of_its_own(problem):
    option = f"helo_{problem.replace('-', '_')}"
    helo = HeloName("x", (problem,))
    assert score(judge(helo)) == getattr(DEFAULT, option) > 0
    assert score(judge(helo, **{option: 0.25})) == 0.25
    assert score(judge(helo, **{option: 0})) == 0


def test_a_helo_problem_that_is_not_known_here_weighs_nothing_and_one_named_twice_weighs_once():
    assert score(judge(HeloName("x", ("made-up", "is-rdns", "")))) == 0
    assert score(judge(HeloName("x", ("single-label", "single-label")))) == DEFAULT.helo_single_label


@pytest.mark.parametrize(
    ("state", "option"),
    [
        (DomainState.MISSING, "sender_missing"),
        (DomainState.NONE, "sender_none"),
        (DomainState.NULL_MX, "sender_null_mx"),
        (DomainState.BOGUS, "sender_bogus"),
        (DomainState.UNKNOWN, "sender_unknown"),
        (DomainState.RESOLVES, ""),
        (DomainState.NOT_ASKED, ""),
    ],
)
def test_each_state_of_the_senders_domain_has_a_weight_of_its_own(state, option):
    options = {option: 0.25} if option else {}
    assert score(judge(SenderDomain("sender.example", state), **options)) == (0.25 if option else 0)


@pytest.mark.parametrize("result", list(SpfResult))
def test_each_spf_result_has_a_weight_of_its_own(result):
    assert score(judge(spf(result), **{f"spf_{result}": 0.25})) == 0.25


def test_spf_of_helo_weighs_when_it_fails():
    assert score(judge(spf(SpfResult.NONE, SpfResult.FAIL))) == DEFAULT.spf_helo_fail


def test_the_reverse_name_weighs_by_what_it_is():
    assert score(judge(rdns(AuthResult.PERMERROR))) == DEFAULT.rdns_none
    assert score(judge(rdns(AuthResult.FAIL))) == DEFAULT.rdns_none
    assert score(judge(rdns(AuthResult.FAIL, "", "a.example"))) == DEFAULT.rdns_unconfirmed
    assert score(judge(rdns(AuthResult.PASS, "a.example", "a.example"))) == DEFAULT.rdns_confirmed
    assert score(judge(rdns(AuthResult.TEMPERROR))) == 0
    assert score(judge(rdns(AuthResult.NONE))) == 0


def test_a_helo_that_is_the_confirmed_reverse_name_speaks_for_the_client():
    found = rdns(AuthResult.PASS, "mail.example", "mail.example")
    expected = DEFAULT.rdns_confirmed + DEFAULT.helo_is_rdns
    assert score(judge(HeloName("MAIL.example."), found)) == expected
    assert score(judge(HeloName("other.example"), found)) == DEFAULT.rdns_confirmed
    assert score(judge(HeloName(""), rdns(AuthResult.TEMPERROR))) == 0


def test_trouble_weighs_nothing_by_default():
    trouble = (
        Dnsbl(0, (), ("bl.test",)),
        HeloName("a.example", (), None),
        rdns(AuthResult.TEMPERROR),
        SenderDomain("sender.example", DomainState.UNKNOWN),
        spf(SpfResult.TEMPERROR, SpfResult.TEMPERROR),
    )
    assert score(judge(*trouble)) == 0


def test_the_factor_of_dnsbl_scales_its_hits():
    assert judge(listed(2, -1), dnsbl=0.5).reason.startswith("score 0.5: dnsbl l0.test +1, dnsbl l1.test -0.5")


@pytest.mark.parametrize("address", ["postmaster@example.org", "Postmaster"])
def test_trusted_clients_pass_and_everybody_may_write_to_postmaster(address):
    assert judge(listed(99), trusted=True) == PROCEED
    assert judge(listed(99), recipient=address) == PROCEED
    assert judge(listed(99), recipient=address, exempt=[]).action is Action.REJECT


@pytest.mark.parametrize(
    "options",
    [{"reject_at": 5, "defer_at": 5}, {"reject_at": float("nan")}, {"spf_pass": 1e9}, {"helo_odd": 1}, {"dnsbl": "x"}],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        ClientScoreOptions.model_validate(options)


@settings(max_examples=80)
@given(
    weights=st.lists(st.decimals(-9, 9, places=2).map(float), max_size=6),
    problems=st.lists(st.sampled_from(PROBLEMS), max_size=7, unique=True),
    state=st.sampled_from(list(DomainState)),
    result=st.sampled_from(list(SpfResult)),
)
def test_the_reason_adds_up_to_the_score_and_the_score_decides(weights, problems, state, result):
    findings = (listed(*weights), HeloName("x", tuple(problems)), SenderDomain("s.example", state), spf(result))
    verdict = judge(*findings, reject_at=8, defer_at=4)
    body = verdict.reason.partition(": ")[2].split(";")[0]
    total = round(sum(float(part.split()[-1]) for part in body.split(", ") if part), 2)
    assert score(verdict) == total
    expected = Action.REJECT if total >= 8 else Action.DEFER if total >= 4 else Action.PROCEED
    assert verdict.action is expected
    assert judge(*findings, reject_at=8, defer_at=4) == verdict
