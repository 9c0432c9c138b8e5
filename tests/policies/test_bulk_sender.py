"""The bulk-sender policy: what counts as bulk, what it lacks, and how much of that is too much."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.sdk import (
    PROCEED,
    Action,
    AddHeader,
    AuthResult,
    DeleteHeader,
    Dkim,
    DkimSignature,
    Dmarc,
    DmarcPolicy,
    ReverseName,
    Spf,
    SpfResult,
    Tls,
)
from gateway.sdk.testing import Bench, FakeDns, make_message, make_session
from policies.bulk_sender import BulkSender, BulkSenderOptions
from tests.policies.whole import SPF, send

TLS = Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384")
UNSUBSCRIBE = "List-Unsubscribe: <mailto:u@s.test>, <https://s.test/u>\r\n"
ONE_CLICK = UNSUBSCRIBE + "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"


def spf(result: str) -> Spf:
    return Spf(SpfResult(result), "s.test", SpfResult.NONE, "h.test")


def dkim(*results: str) -> Dkim:
    return Dkim(tuple(DkimSignature(AuthResult(result), "s.test") for result in results))


def dmarc(result: str, policy: DmarcPolicy | None = DmarcPolicy.NONE) -> Dmarc:
    return Dmarc(AuthResult(result), "s.test", policy=policy)


def rdns(result: str) -> ReverseName:
    return ReverseName(AuthResult(result), "192.0.2.1")


GOOD = (spf("pass"), dkim("pass"), dmarc("pass"), rdns("pass"))
BAD = (spf("softfail"), dkim("fail"), dmarc("none", None), rdns("fail"))


def judge(fields: str, *findings, tls=TLS, trusted=False, **options):
    message = make_message(f"From: news@s.test\r\n{fields}\r\nHello\r\n".encode())
    session = make_session(tls=tls, trusted=trusted)
    return Bench().judge(BulkSender, options, session=session, message=message, findings=findings)


def missing(verdict) -> list[str]:
    return verdict.reason.removeprefix("bulk mail without ").split(", ") if "without" in verdict.reason else []


def test_what_lacks_nothing_passes_and_the_record_says_that_it_was_looked_at():
    verdict = judge(ONE_CLICK, *GOOD)
    assert (verdict.action, verdict.reason, verdict.edits) == (
        Action.PROCEED, "bulk mail, nothing is missing", ()
    )  # fmt: skip


def test_all_that_is_missing_is_named_in_the_record_and_in_the_field():
    verdict = judge(UNSUBSCRIBE, *BAD, tls=None)
    assert missing(verdict) == ["spf", "dkim", "dmarc-record", "aligned", "one-click", "reverse-name", "tls"]
    assert verdict.edits[0] == DeleteHeader("X-Bulk-Missing")
    assert getattr(verdict.edits[1], "value", "").replace("\n", "").startswith("spf, dkim, dmarc-record")


@pytest.mark.parametrize(
    ("finding", "lacks"),
    [
        (spf("none"), ["spf"]),
        (spf("temperror"), []),
        (dkim(), ["dkim"]),
        (dkim("fail", "pass"), []),
        (dkim("temperror"), []),
        (dmarc("fail"), ["aligned"]),
        (dmarc("none", None), ["dmarc-record", "aligned"]),
        (dmarc("temperror", None), []),
        (rdns("fail"), ["reverse-name"]),
        (rdns("temperror"), []),
    ],
)
def test_each_finding_says_what_is_missing_and_trouble_is_no_lack(finding, lacks):
    others = [one for one in GOOD if type(one) is not type(finding)]
    assert missing(judge(ONE_CLICK, finding, *others)) == lacks
    assert missing(judge(ONE_CLICK, finding)) == lacks, "nobody else was listed"


@pytest.mark.parametrize(
    ("fields", "lacks"),
    [
        ("List-Id: <news.s.test>\r\n", ["one-click"]),
        ("Precedence: bulk\r\n", ["one-click"]),
        ("precedence:  LIST\r\n", ["one-click"]),
        (UNSUBSCRIBE, ["one-click"]),
        ("List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n", ["one-click"]),
        (ONE_CLICK.replace("https:", "http:"), ["one-click"]),
        (ONE_CLICK.replace("One-Click", "Two-Clicks"), ["one-click"]),
        (ONE_CLICK.lower(), []),
        (ONE_CLICK.replace(", <https", ",\r\n <https"), []),
        ("List-Id: <talk.s.test>\r\nList-Post: <mailto:talk@s.test>\r\n", []),
        ("List-Id: <news.s.test>\r\nList-Post: NO\r\n", ["one-click"]),
        ("List-Id: <news.s.test>\r\nList-Post: NO(ask us)\r\n", ["one-click"]),
        ("List-Id: <talk.s.test>\r\nList-Post: nobody@s.test\r\n", []),
        ("Feedback-ID: receipts\r\n", []),
    ],
)
def test_one_click_is_asked_of_newsletters_and_not_of_discussions_and_receipts(fields, lacks):
    assert missing(judge(fields, *GOOD)) == lacks


@pytest.mark.parametrize(
    "fields", ["", "Subject: bulk\r\n", "Precedence: normal\r\n", "List-Help: <mailto:x@s.test>\r\n"]
)
def test_mail_that_does_not_say_that_it_is_bulk_passes(fields):
    assert judge(fields, *BAD, tls=None) == PROCEED


def test_an_id_for_feedback_makes_bulk_mail_that_must_be_authenticated():
    assert missing(judge("Feedback-ID: receipts\r\n", spf("fail"), *GOOD[1:])) == ["spf"]


def test_the_number_of_lacks_decides():
    limits = {"tag_at": 2, "quarantine_at": 3, "reject_at": 7}
    assert judge(UNSUBSCRIBE, *GOOD, **limits).edits == ()
    assert judge(UNSUBSCRIBE, *GOOD, tls=None, **limits).edits
    assert judge(UNSUBSCRIBE, spf("fail"), *GOOD[1:], tls=None, **limits).action is Action.QUARANTINE
    verdict = judge(UNSUBSCRIBE, *BAD, tls=None, **limits)
    assert str(verdict.reply) == "550 5.7.1 bulk mail does not meet the requirements here"


def test_only_what_is_required_counts():
    assert missing(judge(UNSUBSCRIBE, *BAD, tls=None, require=["tls", "spf"])) == ["spf", "tls"]
    assert missing(judge(UNSUBSCRIBE, *GOOD, require=["spf"])) == []


def test_trusted_clients_pass():
    assert judge(UNSUBSCRIBE, *BAD, trusted=True) == PROCEED


@pytest.mark.parametrize(
    "options", [{"require": []}, {"require": ["odd"]}, {"tag_at": 0}, {"require": ["spf"], "reject_at": 2}]
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        BulkSenderOptions.model_validate(options)


@settings(max_examples=100)
@given(
    name=st.sampled_from(["List-Unsubscribe", "List-Unsubscribe-Post", "Precedence", "List-Id", "Feedback-ID"]),
    value=st.text("<https://List-Unsubscribe=One-Click >,\t\u0000", max_size=200) | st.just("<" * 50_000),
)
def test_hostile_fields_get_a_verdict(name, value):
    verdict = judge(f"{name}: {value}\r\n", *BAD)
    assert verdict.action is Action.PROCEED and len(verdict.reason) < 200


def test_in_a_pipeline_real_findings_say_what_is_missing():
    entries = ["rdns", "spf", "dkim", "dmarc", {"bulk-sender": {"quarantine_at": 3}}]
    content = f"From: news@sender.example\r\n{ONE_CLICK}\r\nHello\r\n".encode()
    names = {"ptr": {"1.2.0.192.in-addr.arpa": ["mail.sender.example"]}, "a": {"mail.sender.example": ["192.0.2.1"]}}
    dns = FakeDns(txt={**SPF, "_dmarc.sender.example": ["v=DMARC1; p=none"]}, **names)
    decided, edits = send(entries, content, session=make_session("192.0.2.1", tls=TLS), dns=dns)
    assert not decided.verdict.decisive and edits[-1] == AddHeader("X-Bulk-Missing", "dkim")
    decided, _ = send(entries, content, dns=dns, session=make_session("192.0.2.2"))
    assert decided.verdict.reason == "bulk mail without spf, dkim, aligned, reverse-name, tls"
    assert (decided.entry, decided.verdict.action) == ("bulk-sender", Action.QUARANTINE)
