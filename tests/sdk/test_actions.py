"""What is done to a message, as edits."""

from __future__ import annotations

from dataclasses import replace
from email import message_from_bytes, policy

import pytest

from gateway.mail.address import NULL_SENDER
from gateway.mail.edit import (
    AddHeader,
    AddRecipient,
    ChangeHeader,
    DeleteHeader,
    DeleteRecipient,
    Redirect,
    apply_edits,
    edit_envelope,
)
from gateway.mail.envelope import Envelope, Notify, Recipient
from gateway.sdk import Message
from gateway.sdk.actions import (
    add_header,
    archive,
    bcc,
    check_tag,
    delete_header,
    header_value,
    mailbox,
    redirect,
    set_header,
    tag_subject,
)
from gateway.sdk.testing import make_message, make_transaction


def message(*lines: bytes) -> Message:
    return make_message(b"".join(line + b"\r\n" for line in lines) + b"\r\nHello\r\n")


def octets(message: Message, edits) -> bytes:
    return b"".join(field.raw for field in apply_edits(message.fields, edits))


def read(message: Message, edits) -> str:
    """The subject as Python's email package reads it afterwards."""
    return str(message_from_bytes(octets(message, edits) + b"\r\n", policy=policy.default)["subject"])


def tagged(*lines: bytes, prefix: str = "[SPAM]") -> str:
    made = message(*lines)
    return read(made, tag_subject(made, prefix))


def test_a_tag_is_put_before_the_subject_and_the_rest_stays_as_it_was_written():
    made = message(b"From: a@b.test", b"Subject:  Buy =?utf-8?q?n=C3=B6w?=", b"To: c@d.test")
    assert octets(made, tag_subject(made, "[SPAM] ")) == (
        b"From: a@b.test\r\nSubject: [SPAM] Buy =?utf-8?q?n=C3=B6w?=\r\nTo: c@d.test\r\n"
    )


@pytest.mark.parametrize(
    "subject",
    [
        b"[SPAM] buy",
        b"[spam] buy",
        b"Re: [SPAM] buy",
        b"AW: WG: [SPAM] buy",
        b"Re[2]: [SPAM] buy",
        b"=?utf-8?q?=5BSPAM=5D_buy?=",
        b"=?utf-8?q?Re=3A_=5BSPAM=5D?= buy",
        b"\r\n [SPAM] buy",
    ],
)
def test_a_subject_is_tagged_once(subject):
    assert tag_subject(message(b"Subject: " + subject), "[SPAM]") == ()


@pytest.mark.parametrize("subject", [b"buy [SPAM]", b"this is [SPAM] not", b"[SPA", b"1: [SPAM]"])
def test_a_tag_elsewhere_than_at_the_beginning_does_not_count(subject):
    assert len(tag_subject(message(b"Subject: " + subject), "[SPAM]")) == 1


def test_a_tag_with_letters_beyond_ascii_is_encoded_and_the_space_after_it_is_kept():
    assert tagged(b"Subject: Gru\xc3\x9f".replace(b"\xc3\x9f", b"ss"), prefix="[äußerlich]") == "[äußerlich] Gruss"
    assert tagged(b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=", prefix="[äußerlich]") == "[äußerlich] Grüße"
    made = message(b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=")
    assert octets(made, tag_subject(made, "[äußerlich]")).isascii()


def test_a_long_subject_is_folded_after_the_tag_and_keeps_its_own_folds():
    long = b"Subject: " + b"word " * 12 + b"and more\r\n\tof it " + b"x" * 40
    made = message(long)
    out = octets(made, tag_subject(made, "[external]"))
    assert out.startswith(b"Subject: [external]\r\n word word") and b"\r\n\tof it" in out
    assert all(len(line) <= 78 for line in out.split(b"\r\n"))


def test_a_message_without_a_subject_is_given_one():
    made = message(b"From: a@b.test")
    assert octets(made, tag_subject(made, "[SPAM]")) == b"From: a@b.test\r\nSubject: [SPAM]\r\n"
    for empty in (b"Subject:", b"Subject: ", b"Subject: \r\n  "):
        assert tagged(empty) == "[SPAM]"


def test_every_one_of_several_subjects_is_tagged():
    made = message(b"Subject: one", b"subject: [SPAM] two", b"SUBJECT: three")
    edits = tag_subject(made, "[SPAM]")
    assert [(edit.nth, edit.value) for edit in edits] == [(1, "[SPAM] one"), (3, "[SPAM] three")]
    assert len(tag_subject(message(*[b"Subject: x"] * 500), "[SPAM]")) == 20


def test_octets_that_no_edit_may_hold_do_not_break_a_subject():
    made = message(b"Subject: a\0b\x7f c\xff\xfe d")
    assert octets(made, tag_subject(made, "[SPAM]")) == b"Subject: [SPAM] a?b? c\xff\xfe d\r\n"


@pytest.mark.parametrize("bad", ["", "  ", "a\nb", "a\r\nBcc: x@y.test", "x" * 101, "\x00"])
def test_a_tag_that_could_break_a_header_section_is_refused(bad):
    with pytest.raises(ValueError, match="a tag of a subject"):
        check_tag(bad)


def test_a_header_is_added_set_or_deleted():
    made = message(b"X-Mark: theirs", b"Subject: a", b"x-mark: theirs too")
    assert octets(made, add_header("X-Mark", "ours")).startswith(b"X-Mark: ours\r\nX-Mark: theirs\r\n")
    assert octets(made, set_header("X-Mark", "ours")) == b"X-Mark: ours\r\nSubject: a\r\n"
    assert octets(made, delete_header("X-Mark")) == b"Subject: a\r\n"
    assert add_header("X-Mark", "ours", index=3) == (AddHeader("X-Mark", "ours", 3),)
    assert set_header("X-Mark", "ours")[0] == DeleteHeader("X-Mark")


def test_a_header_value_is_encoded_and_folded_as_it_must_be():
    assert header_value("X-Note", " plain ") == "plain"
    assert header_value("X-Note", "Grüße").startswith("=?utf-8?b?")
    folded = header_value("X-Note", "word " * 40)
    assert all(len(line) <= 78 for line in f"X-Note: {folded}".split("\n"))
    assert folded.replace("\n", "") == ("word " * 40).strip()
    unbroken = header_value("X-Note", "x" * 2000)
    assert all(len(line) <= 78 for line in unbroken.split("\n")), "what cannot be folded is encoded"
    for bad in ("a\nb", "a\rb", "a\0b"):
        with pytest.raises(ValueError, match="control"):
            header_value("X-Note", bad)
    with pytest.raises(ValueError, match="no header field name"):
        add_header("X Note", "a")


def test_a_redirect_takes_all_recipients_out_and_puts_one_in():
    txn = make_transaction(recipients=["anna@example.org", "ben@example.org"])
    edits = redirect(txn, "carl@example.org")
    assert [str(edit.address) for edit in edits if isinstance(edit, DeleteRecipient)] == [
        "anna@example.org",
        "ben@example.org",
    ]
    assert isinstance(edits[-1], AddRecipient) and str(edits[-1].recipient.address) == "carl@example.org"
    kept = redirect(txn, "Ben@example.org")
    assert [str(e.address) for e in kept if isinstance(e, DeleteRecipient)] == ["anna@example.org"]


def test_a_redirect_takes_along_what_the_sender_wants_to_be_told_of():
    anna = Recipient(mailbox("anna@example.org"), frozenset({Notify.SUCCESS}), "rfc822;anna@example.org")
    ben = Recipient(mailbox("ben@example.org"), frozenset({Notify.SUCCESS}), "rfc822;ben@example.org")
    never = Recipient(mailbox("dora@example.org"), frozenset({Notify.NEVER}))

    def wishes(*recipients: Recipient) -> tuple[set[str], str]:
        edits = redirect(replace(make_transaction(recipients=[]), recipients=recipients), "carl@example.org")
        (sent,) = edit_envelope(Envelope(NULL_SENDER, recipients), edits).recipients
        (plain,) = edit_envelope(Envelope(NULL_SENDER, recipients), [Redirect(Recipient(sent.address))]).recipients
        assert plain == sent
        return {notify.value for notify in sent.notify}, sent.orcpt

    assert wishes(anna) == ({"SUCCESS"}, "rfc822;anna@example.org")
    assert wishes(anna, ben) == ({"SUCCESS"}, "")
    assert wishes(never) == ({"NEVER"}, "")
    assert wishes(anna, never) == (set(), "")
    own = Redirect(Recipient(mailbox("carl@example.org"), frozenset({Notify.NEVER})))
    (kept,) = edit_envelope(Envelope(NULL_SENDER, (anna,)), [own]).recipients
    assert kept == own.recipient


def test_blind_copies_are_asked_for_without_notices():
    (one, two) = bcc("archive@example.org", mailbox("other@example.org"))
    assert str(one.recipient.address) == "archive@example.org" and one.recipient.notify == {"NEVER"}
    assert str(two.recipient.address) == "other@example.org"
    for bad in ("archive", "", "a b@c.test", "<a@b.test>"):
        with pytest.raises(ValueError, match=r"^'"):
            bcc(bad)


def test_an_archive_is_told_the_envelope_only_where_that_tells_nobody_of_blind_copies():
    made = message(
        b"To: Anna <anna@example.org>,", b" x@y.test", b"Cc: (all) BEN@example.org", b"X-Envelope-To: forged"
    )
    forms = {
        ("blind@example.org",): "blind@example.org",
        ("anna@example.org", "ben@example.org"): "anna@example.org, ben@example.org",
        ("anna@example.org", "blind@example.org"): None,
        ("anna@example.org", "na@example.org"): None,
    }
    for recipients, expected in forms.items():
        txn = make_transaction(recipients=recipients)
        edits = archive(txn, made, "archive@example.org", header="X-Envelope-To")
        assert isinstance(edits[-1], AddRecipient)
        if expected is None:
            assert len(edits) == 1
        else:
            assert edits[0] == DeleteHeader("X-Envelope-To") and edits[1].value == expected
    assert [type(e) for e in archive(txn, made, "archive@example.org", "b@c.test")] == [AddRecipient, AddRecipient]


def test_a_change_keeps_its_place_among_fields_of_the_same_name():
    made = message(b"X: 1", b"Subject: a", b"Y: 2")
    assert tag_subject(made, "[t]") == (ChangeHeader("Subject", 1, "[t] a"),)
