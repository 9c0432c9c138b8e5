"""All cases of the public RFC 7208 test suite through the spf plugin. What differs stands in docs/spf-suite.md."""

from __future__ import annotations

import hashlib

import pytest

from gateway.sdk import NULL_SENDER, Address, MailParameters, Sender, Spf, Transaction
from gateway.sdk.testing import Bench, make_session
from plugins.spf import SpfPlugin
from tests.support.spf_suite import DEFAULT, PAGE, PATH, Case, ZoneDns, cases, listed

COUNT = 203


def sender_of(case: Case) -> Sender:
    """As the suite has it: also what no SMTP client could say."""
    if not case.sender:
        return NULL_SENDER
    local, _, domain = case.sender.rpartition("@")
    return Address(local, domain)


def judged(case: Case) -> Spf:
    transaction = Transaction("t", make_session(case.client, helo=case.helo), sender_of(case), MailParameters())
    finding = Bench(dns=ZoneDns(case.zone)).find(SpfPlugin, transaction=transaction)
    assert isinstance(finding, Spf)
    return finding


@pytest.fixture(scope="module")
def found() -> dict[str, Spf]:
    return {case.id: judged(case) for case in cases()}


def test_the_suite_is_whole_and_unchanged():
    digest = hashlib.sha256(PATH.read_bytes()).hexdigest()
    assert digest == "901f561a6e2b1c1590a40a61b1ac7601226fd7045a7aae591a4d25421358d6f9"
    assert len({case.id for case in cases()}) == len(cases()) == COUNT
    assert f"All {COUNT} cases" in PAGE.read_text()


def test_results_and_explanations_are_the_suites_except_where_they_are_listed(found):
    differing = {}
    for case in cases():
        finding = found[case.id]
        explanation = "" if case.explanation == DEFAULT else case.explanation
        wrong_words = explanation is not None and explanation != finding.explanation
        if finding.result not in case.results or wrong_words:
            differing[case.id] = (finding.result.value,)
    assert differing == listed("Through the plugin")


def test_where_the_suite_leaves_a_choice_ours_is_listed(found):
    chosen = {case.id: found[case.id].result.value for case in cases() if len(case.results) > 1}
    page = listed("Where the suite allows several results")
    assert chosen == {id: plugin for id, (plugin, _) in page.items()}


def test_the_suite_has_explanations_and_names_that_time_out():
    assert sum(case.explanation is not None for case in cases()) == 22
    assert {name for case in cases() for name in case.zone.silent} >= {"err.example.com", "e21msg.example.com"}


def test_no_case_takes_more_than_the_limits_allow(found):
    for case in cases():
        finding = found[case.id]
        over = finding.lookups > 10 or finding.void_lookups > 2
        assert not over or finding.result == "permerror", case.id
        assert finding.lookups <= 11, case.id
        assert finding.void_lookups <= 3, case.id
