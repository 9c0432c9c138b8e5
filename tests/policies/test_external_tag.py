"""The external-tag policy: what is outside, and how it is marked."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.sdk import PROCEED, Action, AddHeader, AuthResult, ChangeHeader, DeleteHeader, Dmarc
from gateway.sdk.testing import Bench, FakeDns, make_message, make_session
from policies.external_tag import ExternalTag, ExternalTagOptions
from tests.policies.whole import SPF, send


def judge(content: bytes, *findings, trusted=False, **options):
    return Bench().judge(
        ExternalTag, options, session=make_session(trusted=trusted), message=make_message(content), findings=findings
    )


def mail(author: str = "ben@sender.test", more: str = "") -> bytes:
    return f"From: {author}\r\nSubject: hello\r\n{more}\r\n".encode()


def dmarc(result: str, domain: str = "sender.test") -> Dmarc:
    return Dmarc(AuthResult(result), domain)


def marks(verdict) -> tuple[str, str]:
    """The field's value, and the subject."""
    assert verdict.action is Action.PROCEED
    added = [edit.value for edit in verdict.edits if isinstance(edit, AddHeader)]
    changed = [edit.value for edit in verdict.edits if isinstance(edit, ChangeHeader)]
    return "".join(added), "".join(changed)


@pytest.mark.parametrize(
    ("findings", "word"),
    [([dmarc("pass")], "authenticated"), ([dmarc("fail")], "unauthenticated"), ([], "unchecked")],
)
def test_mail_from_outside_is_marked_with_what_is_known_of_its_author(findings, word):
    verdict = judge(mail(), *findings)
    assert marks(verdict) == (word, "[EXT] hello")
    assert verdict.edits[0] == DeleteHeader("X-External-Sender"), "nobody else's word is left"


def test_what_nobody_answers_for_may_have_a_tag_of_its_own():
    assert marks(judge(mail(), dmarc("fail"), unproved="[unverified]"))[1] == "[unverified] hello"
    assert marks(judge(mail(), dmarc("pass"), unproved="[unverified]"))[1] == "[EXT] hello"
    assert marks(judge(mail(), unproved="[unverified]"))[1] == "[EXT] hello"


def test_each_mark_can_be_left_out():
    assert marks(judge(mail(), subject="")) == ("unchecked", "")
    assert marks(judge(mail(), header="")) == ("", "[EXT] hello")
    assert judge(mail(), header="", subject="") == PROCEED


def test_a_reply_is_not_tagged_twice():
    assert marks(judge(b"From: a@b.test\r\nSubject: Re: [EXT] hello\r\n\r\n")) == ("unchecked", "")


def test_proved_authors_of_named_domains_are_inside_and_others_in_their_name_are_not():
    inside = {"inside": ["sender.test"]}
    assert judge(mail(), dmarc("pass"), **inside) == PROCEED
    assert judge(mail("a@sub.sender.test"), dmarc("pass", "sub.sender.test"), **inside) == PROCEED
    assert marks(judge(mail(), dmarc("fail"), **inside))[0] == "unauthenticated"
    assert marks(judge(mail(), **inside))[0] == "unchecked"
    assert marks(judge(mail("a@sender.test, b@other.test"), dmarc("pass"), **inside))[0] != "authenticated"


def test_who_is_inside_gets_no_forged_mark():
    verdict = judge(mail(more="X-External-Sender: x\r\n"), dmarc("pass"), inside=["sender.test"])
    assert verdict.edits == (DeleteHeader("X-External-Sender"),)


def test_mail_without_an_author_is_outside():
    assert marks(judge(b"Subject: hello\r\n\r\n", inside=["sender.test"])) == ("unauthenticated", "[EXT] hello")


def test_trusted_clients_are_inside():
    assert judge(mail(), trusted=True) == PROCEED


@pytest.mark.parametrize("options", [{"subject": "a\nb"}, {"header": "X Y"}, {"inside": ["a b"]}, {"odd": 1}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        ExternalTagOptions.model_validate(options)


@settings(max_examples=100)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_hostile_fields_are_marked_and_never_decided(author, subject):
    content = b"From: " + author.replace(b"\r", b"") + b"\r\nSubject: " + subject.replace(b"\r", b"") + b"\r\n\r\n"
    verdict = judge(content, dmarc("pass"), inside=["sender.test"])
    assert verdict.action is Action.PROCEED and (verdict.edits or b"sender.test" in author)


def test_in_a_pipeline_the_mark_says_what_spf_and_dmarc_found():
    dns = FakeDns(txt={**SPF, "_dmarc.partner.test": ["v=DMARC1; p=none"]})
    entries = ["spf", "dkim", "dmarc", {"external-tag": {"inside": ["partner.test"]}}]
    content = b"From: Ben <ben@%s>\r\nSubject: hello\r\n\r\n"
    assert send(entries, content % b"partner.test", sender="ben@partner.test", dns=dns)[1] == ()
    _, edits = send(entries, content % b"partner.test", dns=dns)
    assert AddHeader("X-External-Sender", "unauthenticated") in edits
    _, edits = send(entries, content % b"sender.example", dns=dns)
    assert AddHeader("X-External-Sender", "authenticated") in edits
    assert ChangeHeader("Subject", 1, "[EXT] hello") in edits
