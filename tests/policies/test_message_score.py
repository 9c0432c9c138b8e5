"""The message-score policy: what weighs, what the sum does, and that the reason shows it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.sdk import (
    PROCEED,
    Action,
    AddHeader,
    Attachment,
    Attachments,
    AuthResult,
    ContentChecks,
    Defect,
    DeleteHeader,
    Dmarc,
    Dnsbl,
    Finding,
    Geo,
    Mime,
    ReverseName,
    SpamScore,
    Spf,
    SpfResult,
    UriHits,
    Verdict,
)
from gateway.sdk.testing import Bench, FakeDns, make_message, make_session
from policies.message_score import MessageScore, MessageScoreOptions
from tests.policies.whole import SPF, send

DEFAULT = MessageScoreOptions()
CONTENT = b"From: a@s.test\r\n\r\n"


def judge(*findings: Finding, trusted: bool = False, **options: Any) -> Verdict:
    return Bench().judge(
        MessageScore, options, session=make_session(trusted=trusted), message=make_message(CONTENT), findings=findings
    )


def score(verdict: Verdict) -> float:
    return float(verdict.reason.split(":")[0].removeprefix("score "))


def spf(result: str, domain: str = "other.test") -> Spf:
    return Spf(SpfResult(result), domain, SpfResult.NONE, "h.test")


def spam(points: float, **more: Any) -> SpamScore:
    return SpamScore(points, 5.0, points >= 5, "spamd", **more)


def rdns(result: str) -> ReverseName:
    return ReverseName(AuthResult(result), "192.0.2.1")


RISKY = Attachments((Attachment("a.docm", macro=True),))


@pytest.mark.parametrize(
    ("finding", "expected"),
    [
        (spam(3.5), 3.5),
        (spam(-2), -2),
        (spam(9, skipped="too large"), 0),
        (ContentChecks(score=2.5), 2.5),
        (Dnsbl(2.0), 2),
        (UriHits(1.5), 1.5),
        (Dmarc(AuthResult.PASS, "s.test"), DEFAULT.author_proved),
        (Dmarc(AuthResult.FAIL, "s.test"), DEFAULT.author_unproved),
        (Dmarc(AuthResult.TEMPERROR, "s.test"), 0),
        (spf("pass", "s.test"), DEFAULT.author_proved),
        (spf("pass"), DEFAULT.author_unproved),
        (spf("fail"), DEFAULT.author_unproved + DEFAULT.spf_fail),
        (spf("softfail"), DEFAULT.author_unproved + DEFAULT.spf_softfail),
        (spf("temperror", "s.test"), 0),
        (rdns("fail"), DEFAULT.rdns_none),
        (rdns("pass"), 0),
        (rdns("temperror"), 0),
        (Mime((), defects=(Defect.MISSING_DATE, Defect.EPILOGUE, Defect.MISSING_MESSAGE_ID)), 2 * DEFAULT.defect),
        (RISKY, DEFAULT.risky),
        (Attachments((Attachment("a.pdf"),)), 0),
    ],
)
def test_each_finding_weighs_what_its_option_says(finding, expected):
    assert score(judge(finding)) == pytest.approx(expected)


def test_nothing_found_weighs_nothing():
    assert judge() == Verdict(Action.PROCEED, reason="score 0")


def test_a_risky_file_weighs_more_from_whom_there_is_doubt_about():
    proved, unproved = Dmarc(AuthResult.PASS, "s.test"), Dmarc(AuthResult.FAIL, "s.test")
    assert score(judge(RISKY, proved)) == DEFAULT.risky + DEFAULT.author_proved
    assert judge(RISKY, unproved).reason == "score 6.5: author_unproved +1.5, risky +2, risky_stranger +3"
    assert "risky_stranger" in judge(RISKY, rdns("fail")).reason
    assert "risky_stranger" in judge(RISKY, proved, Geo("XK"), countries=["NO"]).reason
    assert "risky_stranger" not in judge(unproved, rdns("fail")).reason


def test_countries_weigh_when_some_are_named():
    options: dict[str, Any] = {"countries": ["no", "SE"], "abroad": 1.25}
    assert score(judge(Geo("NO"), **options)) == 0
    assert score(judge(Geo("XK"), **options)) == score(judge(Geo(), **options)) == 1.25
    assert score(judge(Geo("XK"))) == 0


def test_the_sum_decides_and_the_reason_lists_all_that_weighs():
    verdict = judge(spam(4), Dmarc(AuthResult.FAIL, "s.test"), rdns("fail"), tag_at=5, quarantine_at=7)
    assert verdict.reason == "score 7: spamd +4, author_unproved +1.5, rdns_none +1.5"
    assert verdict.action is Action.QUARANTINE
    assert verdict.edits == (DeleteHeader("X-Message-Score"), AddHeader("X-Message-Score", "7"))
    assert judge(spam(5)).edits == (DeleteHeader("X-Message-Score"), AddHeader("X-Message-Score", "5"))
    assert judge(spam(4.9)).edits == ()
    assert str(judge(spam(20), reject_at=15).reply) == "550 5.7.1 the message is not accepted"
    assert judge(spam(99), tag_at=None, quarantine_at=None) == Verdict(Action.PROCEED, reason="score 99: spamd +99")


def test_binary_fractions_do_not_miss_a_limit():
    assert judge(spam(0.7), Dnsbl(0.1), tag_at=0.5, quarantine_at=0.8).action is Action.QUARANTINE


def test_factors_scale_what_others_say_and_zero_leaves_it_out():
    assert score(judge(spam(4), spam=0.5)) == 2
    assert judge(spam(4), spam=0).reason == "score 0"


def test_trusted_clients_pass():
    assert judge(spam(99), trusted=True) == PROCEED


@pytest.mark.parametrize(
    "options",
    [{"tag_at": 9}, {"quarantine_at": 5, "tag_at": 5}, {"spam": float("inf")}, {"abroad": 1}, {"defects": ["odd"]}],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        MessageScoreOptions.model_validate(options)


@settings(max_examples=80)
@given(
    points=st.decimals(-50, 50, places=2).map(float),
    listed=st.decimals(0, 50, places=2).map(float),
    proof=st.sampled_from(["pass", "fail", "none", "temperror", "permerror"]),
    files=st.lists(st.booleans(), max_size=3),
)
def test_the_reason_adds_up_to_the_score_and_the_score_decides(points, listed, proof, files):
    items = tuple(Attachment("x", encrypted=encrypted) for encrypted in files)
    verdict = judge(spam(points), Dnsbl(listed), Dmarc(AuthResult(proof), "s.test"), Attachments(items))
    parts = [float(part.split()[-1]) for part in verdict.reason.partition(": ")[2].split(", ") if part]
    assert sum(parts) == pytest.approx(score(verdict), abs=0.01)
    assert (verdict.action is Action.QUARANTINE) is (score(verdict) >= 8 or (not verdict.edits and False))


def test_in_a_pipeline_several_plugins_add_up_to_quarantine():
    entries = [
        {"dnsbl": {"zones": {"bl.test": 2}}, "policy": "none"},
        "rdns",
        "spf",
        "dkim",
        "dmarc",
        "mime",
        {"content-checks": {"tables": [{"names": ["subject"], "entries": ["/prize/ SCORE 2.5"]}]}},
        {"message-score": {"quarantine_at": 7}},
    ]
    content = b"From: a@sender.example\r\nSubject: your prize\r\nDate: x\r\nMessage-ID: <1@a>\r\n\r\nx\r\n"
    dns = FakeDns(a={"9.2.0.192.bl.test": ["127.0.0.2"]}, txt={**SPF, "_dmarc.sender.example": ["v=DMARC1; p=none"]})
    decided, _ = send(entries, content, sender="x@other.test", session=make_session("192.0.2.9"), dns=dns)
    assert decided.verdict.reason == "score 7.5: checks +2.5, dnsbl +2, author_unproved +1.5, rdns_none +1.5"
    assert (decided.verdict.action, decided.entry) == (Action.QUARANTINE, "message-score")
    honest, edits = send(entries, content, dns=dns)
    assert not honest.verdict.decisive and edits == ()
