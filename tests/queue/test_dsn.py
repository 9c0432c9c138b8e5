"""DSNs, read back with the standard library's parser."""

from __future__ import annotations

import asyncio
import email
import email.policy
from dataclasses import replace
from email.message import EmailMessage
from typing import Any

import pytest

from gateway.mail.address import NULL_SENDER, Address
from gateway.mail.envelope import Body, MailParameters, Ret
from gateway.mail.sevenbit import to_seven_bit
from gateway.queue import dsn
from gateway.queue.dsn import FULL_OCTETS, Original, Writer
from gateway.queue.lifecycle import Action, Report
from gateway.spool.spool import NewDsn, State, Stored
from tests.queue.rig import CONTENT, HOST, START, Octets, address, recipient, stored

WRITER = Writer(HOST, 432000.0)
NOW = START + 3600
HEADERS = CONTENT[: CONTENT.index(b"\r\n\r\n") + 2]
ANNA = recipient("anna@example.org")
FAILED = Report(ANNA, Action.FAILED, "550 5.1.1 no such user", "store.example.org", True)
ORIGINAL = Original(HEADERS, False)
DELAYED = Report(ANNA, Action.DELAYED, "451 4.4.1 connection refused")


def make(*reports: Report, message: Stored | None = None, original: Original | None = ORIGINAL) -> NewDsn:
    return dsn.write("D1", message or stored(), reports or (FAILED,), original, NOW, WRITER)


def read(new: NewDsn) -> EmailMessage:
    parsed = email.message_from_bytes(new.content, policy=email.policy.SMTP)
    assert isinstance(parsed, EmailMessage)
    assert not parsed.defects
    return parsed


def groups(new: NewDsn) -> list[Any]:
    """The field groups of the second part: per message, then per recipient."""
    part = list(read(new).iter_parts())[1]
    payload = part.get_payload()
    if part.get_content_type() == "message/delivery-status":
        assert isinstance(payload, list)
        return payload
    # The standard library does not know the global type and takes it for one message.
    raw = new.content.split(b"global-delivery-status\r\nContent-Transfer-Encoding: 8bit\r\n\r\n")[1].split(b"\r\n--=_")[
        0
    ]
    return [email.message_from_bytes(g, policy=email.policy.SMTPUTF8) for g in raw.split(b"\r\n\r\n")]


def originals(new: NewDsn) -> EmailMessage:
    return list(read(new).iter_parts())[2]  # type: ignore[return-value]


def test_the_envelope_is_from_the_null_sender_and_owes_nothing() -> None:
    new = make().message
    assert new.id == "D1" and new.envelope.sender is NULL_SENDER and not new.owed and new.state is State.QUEUED
    assert [str(r.address) for r in new.envelope.recipients] == ["ben@example.net"]
    assert new.received == NOW and new.head == b"" and new.skip == 0
    assert new.record is not None and (new.record["id"], new.record["time"]) == ("D1", NOW)
    assert new.record["recipients"] == [{"address": "ben@example.net", "reply": ""}]
    assert new.record["dsn"] == {"kind": "failure", "about": "Q1", "recipients": ["anna@example.org"]}


def test_the_header_is_that_of_an_automatic_report() -> None:
    report = read(make())
    assert report["From"] == f"Mail Delivery System <MAILER-DAEMON@{HOST}>"
    assert report["To"] == "ben@example.net"
    assert report["Subject"] == "Mail could not be delivered"
    assert report["Date"] == "Tue, 14 Nov 2023 23:13:20 +0000"
    assert report["Message-ID"] == f"<D1@{HOST}>"
    assert report["Auto-Submitted"] == "auto-replied"
    assert report["MIME-Version"] == "1.0"
    assert report["In-Reply-To"] == report["References"] == "<1@example.net>"
    assert report.get_content_type() == "multipart/report"
    assert report.get_param("report-type") == "delivery-status"


def test_a_failure_has_every_field_of_rfc_3464() -> None:
    message = stored(parameters=MailParameters(envid="QQ+2B314159"))
    failed = replace(FAILED, recipient=recipient("anna@example.org", orcpt="rfc822;Anna+2Bx@example.org"))
    head, anna = groups(make(failed, message=message))
    assert dict(head.items()) == {
        "Original-Envelope-Id": "QQ+314159",
        "Reporting-MTA": f"dns; {HOST}",
        "X-Gatepost-Queue-ID": "Q1",
        "Arrival-Date": "Tue, 14 Nov 2023 22:13:20 +0000",
    }
    assert dict(anna.items()) == {
        "Original-Recipient": "rfc822; Anna+x@example.org",
        "Final-Recipient": "rfc822; anna@example.org",
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns; store.example.org",
        "Diagnostic-Code": "smtp; 550 5.1.1 no such user",
        "Last-Attempt-Date": "Tue, 14 Nov 2023 23:13:20 +0000",
    }


def test_without_envid_and_orcpt_their_fields_are_absent() -> None:
    head, anna = groups(make())
    assert "Original-Envelope-Id" not in head and "Original-Recipient" not in anna


def test_a_delay_says_until_when_it_is_tried() -> None:
    new = make(DELAYED)
    anna = groups(new)[1]
    assert anna["Action"] == "delayed" and anna["Status"] == "4.4.1"
    assert anna["Will-Retry-Until"] == "Sun, 19 Nov 2023 22:13:20 +0000"
    assert anna["Diagnostic-Code"] == "x-gatepost; 451 4.4.1 connection refused"
    assert "Remote-MTA" not in anna
    assert read(new)["Subject"] == "Mail is delayed"
    text = next(read(new).iter_parts()).get_content()
    assert "You need not do anything: delivery is still being tried, until Sun, 19 Nov 2023" in " ".join(text.split())


def test_only_a_recipient_that_was_tried_has_a_last_attempt() -> None:
    assert "Last-Attempt-Date" not in groups(make(replace(DELAYED, tried=False)))[1]


@pytest.mark.parametrize(
    ("action", "reply", "status"),
    [
        (Action.FAILED, "550 5.1.1 no such user", "5.1.1"),
        (Action.FAILED, "550 no such user", "5.0.0"),
        (Action.FAILED, "450 4.2.2 over quota", "4.2.2"),
        (Action.FAILED, "450 busy", "4.4.7"),
        (Action.FAILED, "", "5.0.0"),
        (Action.FAILED, "250 2.0.0 odd", "5.0.0"),
        (Action.FAILED, "550 4.1.1 classes disagree", "5.0.0"),
        (Action.DELAYED, "450 busy", "4.0.0"),
        (Action.DELAYED, "nonsense", "4.0.0"),
        (Action.RELAYED, "250 2.6.0 queued", "2.6.0"),
        (Action.DELIVERED, "250 ok", "2.0.0"),
        (Action.DELIVERED, "", "2.0.0"),
    ],
)
def test_the_status_is_the_next_hops_own_where_it_gave_one(action: Action, reply: str, status: str) -> None:
    assert groups(make(Report(ANNA, action, reply)))[1]["Status"] == status


def test_the_text_names_recipient_server_reply_and_reference() -> None:
    text = next(read(make()).iter_parts()).get_content()
    for expected in (
        "could NOT be delivered",
        "<anna@example.org>",
        "store.example.org answered: 550 5.1.1 no such user",
        f"postmaster@{HOST}",
        "reference Q1",
    ):
        assert expected in text


def test_one_dsn_may_report_several_kinds() -> None:
    new = make(replace(FAILED, action=Action.RELAYED, reply="250 2.0.0 ok"), DELAYED, FAILED)
    assert [g["Action"] for g in groups(new)[1:]] == ["relayed", "delayed", "failed"]
    assert read(new)["Subject"] == "Mail could not be delivered"


def test_success_is_called_so() -> None:
    new = make(Report(ANNA, Action.RELAYED, "250 2.0.0 ok", "store.example.org", True))
    assert read(new)["Subject"] == "Mail was delivered"
    assert b"does not send receipts" in new.content


def original_of(content: bytes, ret: Ret | None = None) -> tuple[Original, Octets]:
    octets = Octets(content)
    message = stored(parameters=MailParameters(ret=ret), size=len(content))
    return asyncio.run(dsn.read_original(message, octets)), octets


@pytest.mark.parametrize("ret", [None, Ret.HEADERS])
def test_only_the_header_section_is_returned_by_default(ret: Ret | None) -> None:
    original, _ = original_of(CONTENT, ret)
    assert original == Original(HEADERS, False)
    part = originals(make(original=original))
    assert part.get_content_type() == "text/rfc822-headers"
    assert "Subject: hello" in part.get_content()
    assert b"Body" not in make(original=original).content


def test_ret_full_returns_the_message() -> None:
    original, _ = original_of(CONTENT, Ret.FULL)
    part = originals(make(original=original))
    assert part.get_content_type() == "message/rfc822"
    inner = part.get_content()
    assert inner["Subject"] == "hello" and inner.get_content().strip() == "Body"


def test_ret_full_of_a_large_message_returns_its_header_section_and_reads_no_more() -> None:
    original, octets = original_of(CONTENT + b"x\r\n" * FULL_OCTETS, Ret.FULL)
    assert original == Original(HEADERS, False)
    assert octets.read <= 80 << 10


def test_a_huge_header_section_is_cut_between_fields() -> None:
    original, _ = original_of(b"".join(b"X-Field: %06d\r\n" % n for n in range(20000)) + b"\r\nBody")
    assert len(original.octets) <= 64 << 10
    assert original.octets.startswith(b"X-Field: 000000\r\n") and original.octets.endswith(b"\r\n")


def test_a_message_that_cannot_stand_in_a_dsn_as_it_is_returns_its_header_section() -> None:
    for body in (b"x" * 5000 + b"\r\n", b"a\0b\r\n"):
        original, _ = original_of(HEADERS + b"\r\n" + body, Ret.FULL)
        assert original == Original(HEADERS, False)


@pytest.mark.parametrize(
    ("subject", "smtputf8", "full"),
    [
        ("Grüße".encode(), True, True),
        ("Grüße".encode(), False, False),
        ("Grüße".encode("latin-1"), True, False),
        ("Grüße".encode("latin-1"), False, False),
    ],
)
def test_a_header_in_eight_bits_is_returned_in_full_only_as_utf8_to_who_asked_for_it(
    subject: bytes, smtputf8: bool, full: bool
) -> None:
    content = b"Subject: " + subject + b"\r\n\r\nBody\r\n"
    message = stored(parameters=MailParameters(ret=Ret.FULL, smtputf8=smtputf8), size=len(content))
    original = asyncio.run(dsn.read_original(message, Octets(content)))
    assert original.full is full
    assert originals(make(message=message, original=original)).get_content_type() == (
        "message/global" if full else "message/global-headers" if smtputf8 else "text/rfc822-headers"
    )


@pytest.mark.parametrize("report", [DELAYED, replace(FAILED, action=Action.RELAYED, reply="250 2.0.0 ok")])
def test_where_nothing_failed_only_the_header_section_is_returned_whatever_ret_says(report: Report) -> None:
    full = Original(CONTENT, True)
    assert originals(make(report, original=full)).get_content_type() == "text/rfc822-headers"
    assert b"\r\nBody\r\n" not in make(report, original=full).content
    assert originals(make(report, FAILED, original=full)).get_content_type() == "message/rfc822"


def test_what_holds_where_ret_is_absent_does_not_where_it_is_there() -> None:
    for ret, full in ((None, True), (Ret.HEADERS, False)):
        message = stored(parameters=MailParameters(ret=ret))
        assert asyncio.run(dsn.read_original(message, Octets(CONTENT), without_ret=Ret.FULL)).full is full


def test_an_international_report_to_an_ascii_sender_is_in_seven_bits() -> None:
    message = stored(parameters=MailParameters(smtputf8=True))
    anna = recipient("änna@example.org", orcpt="utf-8;\\x{E4}nna@example.org")
    new = make(replace(FAILED, recipient=anna), message=message, original=Original("Subject: grün\r\n".encode(), False))
    assert new.content.isascii() and new.message.envelope.parameters == MailParameters()
    report = read(new)
    assert report.get_param("report-type") == "global-delivery-status"
    assert b"\r\nFinal-Recipient: utf-8; =C3=A4nna@example.org\r\n" in new.content


def test_author_and_help_are_those_that_are_named() -> None:
    writer = Writer(HOST, 432000.0, address("bounces@example.org"), address("help@example.org"))
    new = dsn.write("D1", stored(), [FAILED], None, NOW, writer)
    assert read(new)["From"] == "Mail Delivery System <bounces@example.org>"
    assert b"write to <help@example.org>" in new.content and b"@example.org>" in new.content.split(b"Message-ID:")[1]


def test_a_double_bounce_is_told_to_a_reader_and_says_what_it_is() -> None:
    lost = stored(sender=NULL_SENDER, owed=False)
    new = dsn.write("D1", lost, [FAILED], ORIGINAL, NOW, WRITER, address("postmaster@example.com"))
    assert read(new)["Subject"] == "Bounce could not be delivered" and read(new)["To"] == "postmaster@example.com"
    text = " ".join(next(read(new).iter_parts()).get_content().split())
    assert (
        "Nobody else can be told of it" in text and "gatepost explain Q1" in text and "Your message could" not in text
    )
    assert new.message.envelope.sender is NULL_SENDER and not new.message.owed
    assert new.message.record is not None and new.message.record["dsn"]["kind"] == "double"


def test_without_the_original_the_dsn_still_leaves() -> None:
    assert len(list(read(make(original=None)).iter_parts())) == 2


def test_an_original_cannot_end_its_part() -> None:
    plain = make()
    boundary = read(plain).get_boundary()
    assert boundary
    evil = HEADERS + f"\r\n--{boundary}--\r\n--{boundary}\r\nContent-Type: text/html\r\n\r\nhi\r\n".encode()
    new = make(original=Original(evil, True))
    parts = list(read(new).iter_parts())
    assert [p.get_content_type() for p in parts] == ["text/plain", "message/delivery-status", "message/rfc822"]
    assert b"Content-Type: text/html" in new.content


def test_eight_bit_header_fields_are_encoded_and_the_dsn_stays_seven_bit() -> None:
    new = make(original=Original("Subject: grün\r\n".encode("latin-1"), False))
    part = originals(new)
    assert part["Content-Transfer-Encoding"] == "quoted-printable"
    assert part.get_payload(decode=True) == "Subject: grün\r\n".encode("latin-1")
    assert new.content.isascii() and new.message.envelope.parameters.body is Body.SEVEN_BIT


def test_an_eight_bit_message_in_full_makes_an_eight_bit_dsn() -> None:
    new = make(original=Original(HEADERS + "\r\nGrün\r\n".encode(), True))
    assert originals(new)["Content-Transfer-Encoding"] == "8bit"
    assert new.message.envelope.parameters.body is Body.EIGHT_BIT


SIGNED = b"multipart/signed; boundary=b\r\n\r\n--b\r\n\r\nh\xc3\xa9\r\n--b\r\n\r\nsignature\r\n--b--\r\n"
NAMED = b'multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain; name="\xc3\xa9"\r\n\r\nhi\r\n--b--\r\n'


@pytest.mark.parametrize("kind", [SIGNED, NAMED, b"text\r\n\r\nh\xc3\xa9\r\n"])
@pytest.mark.parametrize("smtputf8", [False, True])
def test_a_message_in_full_keeps_no_dsn_from_a_host_without_8bitmime(kind: bytes, smtputf8: bool) -> None:
    subject = "é".encode() if smtputf8 else b"x"
    content = b"Subject: " + subject + b"\r\nMIME-Version: 1.0\r\nContent-Type: " + kind
    message = stored(parameters=MailParameters(ret=Ret.FULL, smtputf8=smtputf8))
    message = replace(message, size=len(content))
    new = make(message=message, original=asyncio.run(dsn.read_original(message, Octets(content))))
    # As message/global it may be encoded, as message/rfc822 it may not.
    expected = "message/global" if smtputf8 else "text/rfc822-headers"
    assert list(read(new).iter_parts())[2].get_content_type() == expected
    assert to_seven_bit(new.content).isascii()


def test_international_recipients_are_reported_in_the_global_types() -> None:
    message = stored(sender="bén@example.net", parameters=MailParameters(smtputf8=True))
    anna = recipient("änna@example.org", orcpt="utf-8;\\x{E4}nna@example.org")
    new = make(replace(FAILED, recipient=anna), message=message, original=Original("Subject: grün\r\n".encode(), False))
    report = read(new)
    assert report.get_param("report-type") == "global-delivery-status"
    assert [p.get_content_type() for p in report.iter_parts()] == [
        "text/plain", "message/global-delivery-status", "message/global-headers",
    ]  # fmt: skip
    assert b"\r\nFinal-Recipient: utf-8; \xc3\xa4nna@example.org\r\n" in new.content
    assert b"\r\nOriginal-Recipient: utf-8; \xc3\xa4nna@example.org\r\n" in new.content
    assert b"\r\nTo: <b\xc3\xa9n@example.net>\r\n" in new.content
    assert new.message.envelope.parameters == MailParameters(body=Body.EIGHT_BIT, smtputf8=True)
    assert [g["Status"] for g in groups(new)[1:]] == ["5.1.1"]


def test_an_international_message_in_full_is_message_global() -> None:
    message = stored(parameters=MailParameters(smtputf8=True))
    new = make(message=message, original=Original("Subject: grün\r\n\r\nBody\r\n".encode(), True))
    assert originals(new).get_content_type() == "message/global"
    assert not new.message.envelope.parameters.smtputf8


def test_a_sender_without_smtputf8_gets_the_ascii_forms() -> None:
    new = make(replace(FAILED, recipient=recipient("änna@example.org"), reply="550 5.1.1 gibt's nicht, schön"))
    anna = groups(new)[1]
    assert anna["Final-Recipient"] == "utf-8; \\x{E4}nna@example.org"
    assert anna["Diagnostic-Code"] == "smtp; 550 5.1.1 gibt's nicht, sch?n"
    assert new.content.isascii()
    assert "änna@example.org" in next(read(new).iter_parts()).get_content()


def test_a_sender_whose_domain_alone_is_international_is_written_to_in_a_labels() -> None:
    new = make(message=stored(sender="ben@bücher.example"))
    assert read(new)["To"] == "ben@xn--bcher-kva.example"
    assert not new.message.envelope.parameters.smtputf8


@pytest.mark.parametrize("orcpt", ["", "rfc822", "rfc822;", ";x", "bad type;x", "a\r\nb;x"])
def test_a_malformed_orcpt_is_left_out(orcpt: str) -> None:
    assert "Original-Recipient" not in groups(make(replace(FAILED, recipient=recipient("a@b.example", orcpt=orcpt))))[1]


def test_line_ends_in_replies_hosts_and_parameters_inject_nothing() -> None:
    evil = "x\r\nInjected: yes\r\n\r\n--boundary"
    anna = recipient("anna@example.org", orcpt="rfc822;a+0D+0AInjected: yes")
    message = stored(sender=Address("b\r\nInjected: yes", "example.net"), parameters=MailParameters(envid=evil))
    new = make(Report(anna, Action.FAILED, f"550 {evil}", evil, True), message=message)
    assert b"\nInjected" not in new.content
    assert "Injected" not in read(new)
    assert all("Injected" not in group for group in groups(new))


def test_two_message_ids_are_not_referred_to() -> None:
    twice = Original(b"Message-ID: <1@a.example>\r\nMessage-ID: <2@a.example>\r\n", False)
    assert "References" not in read(make(original=twice))


def test_the_null_sender_gets_no_dsn() -> None:
    with pytest.raises(TypeError):
        make(message=stored(sender=NULL_SENDER))


def test_a_long_reply_is_folded_and_reads_back_whole() -> None:
    reply = "550 5.7.1 " + " ".join(["because"] * 40)
    new = make(replace(FAILED, reply=reply))
    assert max(len(line) for line in new.content.split(b"\r\n")) <= 80
    assert groups(new)[1]["Diagnostic-Code"] == f"smtp; {reply}"


@pytest.mark.parametrize("requiretls", [True, False])
def test_what_is_told_of_a_message_is_protected_as_it_was(requiretls: bool) -> None:
    new = make(message=stored(parameters=MailParameters(requiretls=requiretls)))
    assert new.message.envelope.parameters.requiretls is requiretls
