"""The attachment-trust policy: which file needs which trust, and who has it."""

from __future__ import annotations

import email.policy
import io
import zipfile
from email.message import EmailMessage

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.sdk import PROCEED, Action, AddHeader, Attachment, Attachments, AuthResult, Dmarc
from gateway.sdk.testing import Bench, make_message, make_session
from policies.attachment_trust import AttachmentTrust, AttachmentTrustOptions
from tests.policies.whole import send

MACRO = Attachment("a.docm", macro=True)
ENCRYPTED = Attachment("a.zip", encrypted=True, extensions=("zip",))
OPAQUE = Attachment("a.7z", opaque=True)
PROGRAM = Attachment("a.exe", executable=True)
DISGUISED = Attachment("a.pdf.exe", double_extension=True)
PLAIN = Attachment("a.pdf", extensions=("pdf",))
BASE = {"partners": ["partner.test"], "action": "reject"}


def judge(
    *items: Attachment, author: str = "a@sender.test", proof: str = "pass", complete=True, trusted=False, **options
):
    findings: list = [Attachments(items, complete)]
    if proof:
        findings.append(Dmarc(AuthResult(proof), author.rpartition("@")[2]))
    return Bench().judge(
        AttachmentTrust,
        BASE | options,
        session=make_session(trusted=trusted),
        message=make_message(f"From: {author}\r\n\r\n".encode() if author else b"\r\n"),
        findings=findings,
    )


@pytest.mark.parametrize(
    ("item", "stranger", "authenticated", "partner"),
    [
        (PLAIN, True, True, True),
        (ENCRYPTED, False, True, True),
        (OPAQUE, False, True, True),
        (MACRO, False, False, True),
        (PROGRAM, False, False, False),
        (DISGUISED, False, False, False),
    ],
)
def test_each_kind_is_taken_from_whom_is_trusted_enough(item, stranger, authenticated, partner):
    assert judge(item, author="a@partner.test") == PROCEED if partner else judge(item, author="a@partner.test").decisive
    assert (judge(item) == PROCEED) is authenticated
    assert (judge(item, proof="fail") == PROCEED) is stranger
    assert (judge(item, author="a@partner.test", proof="fail") == PROCEED) is stranger
    assert (judge(item, author="") == PROCEED) is stranger


def test_a_refusal_is_bland_and_the_reason_names_file_kind_and_author():
    verdict = judge(MACRO)
    assert str(verdict.reply) == "550 5.7.1 an attachment of this kind is not accepted from this sender"
    assert verdict.reason == "'a.docm' is a document with macros, which partners may send, author is authenticated"


def test_of_several_files_the_one_that_needs_most_counts():
    assert "a.exe" in judge(ENCRYPTED, PROGRAM, MACRO).reason
    assert judge(PLAIN, ENCRYPTED) == PROCEED


def test_degrees_can_be_chosen_by_kind_and_by_extension():
    assert judge(MACRO, proof="fail", macro="anybody") == PROCEED
    assert judge(ENCRYPTED, encrypted="nobody", author="a@partner.test").decisive
    extensions = {"extensions": {".PDF": "partners"}}
    assert judge(PLAIN, **extensions).decisive
    assert judge(PLAIN, author="a@partner.test", **extensions) == PROCEED


def test_of_several_authors_the_least_trusted_counts():
    assert judge(MACRO, author="a@other.test, b@partner.test").decisive


def test_what_was_not_looked_at_needs_trust_as_well():
    assert judge(complete=False, proof="fail").decisive
    assert judge(complete=False) == PROCEED
    assert judge(complete=False, proof="fail", unread="anybody") == PROCEED


@pytest.mark.parametrize("proof", ["temperror", ""])
def test_an_author_who_cannot_be_checked_is_deferred_and_not_refused_for_good(proof):
    verdict = judge(ENCRYPTED, proof=proof)
    assert (verdict.action, verdict.reply.status) == (Action.DEFER, "4.7.26")
    assert judge(PROGRAM, proof=proof).action is Action.REJECT, "nobody may send it"
    assert judge(ENCRYPTED, proof=proof, action="quarantine").action is Action.QUARANTINE


@pytest.mark.parametrize("proof", ["temperror", ""])
def test_whom_no_proof_would_help_is_refused_and_not_asked_to_come_again(proof):
    assert judge(MACRO, proof=proof).action is Action.REJECT
    assert judge(MACRO, author="a@partner.test", proof=proof).action is Action.DEFER


def test_a_mark_says_what_was_needed():
    verdict = judge(MACRO, action="tag")
    assert verdict.action is Action.PROCEED
    assert AddHeader("X-Attachment-Trust", "a file here is taken from partners only") in verdict.edits


def test_trusted_clients_pass_and_without_the_finding_nobody_is_asked():
    assert judge(PROGRAM, trusted=True) == PROCEED
    with pytest.raises(LookupError):
        Bench().judge(AttachmentTrust, BASE)


@pytest.mark.parametrize("options", [{"macro": "friends"}, {"partners": ["a b"]}, {"extensions": {"pdf": "x"}}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        AttachmentTrustOptions.model_validate(BASE | options)


@settings(max_examples=80)
@given(name=st.text(max_size=300), author=st.text('a@partner.test<>"(', max_size=60))
def test_hostile_names_get_a_verdict_and_a_reason_of_one_line(name, author):
    author = author or "x"
    verdict = judge(Attachment(name, macro=True), author=author, action="tag")
    assert verdict.action is Action.PROCEED and len(verdict.reason) < 1_500
    assert verdict.reason.isprintable()


def with_program() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("word/document.xml", "<w:document/>")
        archive.writestr("word/vbaProject.bin", b"\xd0\xcf\x11\xe0" + bytes(60))
    message = EmailMessage(email.policy.SMTP)
    message["Subject"] = "report"
    message.set_content("see the file")
    message.add_attachment(
        packed.getvalue(),
        maintype="application",
        subtype="vnd.ms-word.document.macroEnabled.12",
        filename="report.docm",
    )
    return message.as_bytes()


def test_in_a_pipeline_a_document_with_macros_comes_in_from_a_partner_only():
    entries = ["spf", "dkim", "dmarc", "mime", "attachments", {"attachment-trust": BASE}]
    partner = b"From: a@partner.test\r\n" + with_program()
    assert not send(entries, partner, sender="a@partner.test")[0].verdict.decisive
    for content, sender in (
        (partner, "ben@sender.example"),
        (b"From: b@sender.example\r\n" + with_program(), "b@sender.example"),
    ):
        decided, _ = send(entries, content, sender=sender)
        assert (decided.verdict.action, decided.entry) == (Action.REJECT, "attachment-trust")
        assert "'report.docm' is a document with macros" in decided.verdict.reason
