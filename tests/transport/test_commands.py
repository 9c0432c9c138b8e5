"""MAIL and RCPT in the words that the next hop offers."""

from __future__ import annotations

from collections.abc import Container

import pytest

from gateway.mail.address import NULL_SENDER, Address, parse_mailbox
from gateway.mail.envelope import Body, MailParameters, Notify, Recipient, Ret
from gateway.transport import commands

ALL = {"SIZE", "8BITMIME", "SMTPUTF8", "DSN"}
NO_PARAMETERS = MailParameters()
BEN = parse_mailbox("ben@example.org")


def mail(sender=BEN, parameters=NO_PARAMETERS, *, size=10, eight_bit=False, offered=ALL):
    return commands.mail(sender, parameters, size=size, eight_bit=eight_bit, offered=offered)


def test_everything_offered_is_used():
    parameters = MailParameters(body=Body.EIGHT_BIT, smtputf8=True, ret=Ret.HEADERS, envid="QQ+2B1")
    assert mail(parameters=parameters) == (
        b"MAIL FROM:<ben@example.org> SIZE=10 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=QQ+2B1\r\n"
    )


def test_nothing_is_said_that_was_not_offered():
    parameters = MailParameters(body=Body.EIGHT_BIT, smtputf8=True, ret=Ret.FULL, envid="x")
    assert mail(parameters=parameters, eight_bit=True, offered=()) == b"MAIL FROM:<ben@example.org>\r\n"


def test_8_bit_content_is_declared_even_when_the_client_did_not():
    assert mail(eight_bit=True, offered={"8BITMIME"}) == b"MAIL FROM:<ben@example.org> BODY=8BITMIME\r\n"


def test_the_null_sender_is_an_empty_path():
    assert mail(NULL_SENDER, offered=()) == b"MAIL FROM:<>\r\n"


def test_dsn_parameters_of_a_recipient_are_passed_as_they_came():
    recipient = Recipient(BEN, frozenset({Notify.SUCCESS, Notify.DELAY}), "rfc822;Ben+2Bx@Example.ORG")
    assert commands.rcpt(recipient, smtputf8=False, offered=ALL) == (
        b"RCPT TO:<ben@example.org> NOTIFY=DELAY,SUCCESS ORCPT=rfc822;Ben+2Bx@Example.ORG\r\n"
    )
    assert commands.rcpt(recipient, smtputf8=False, offered=()) == b"RCPT TO:<ben@example.org>\r\n"


def test_postmaster_needs_no_domain():
    assert (
        commands.rcpt(Recipient(Address("postmaster", "")), smtputf8=False, offered=()) == b"RCPT TO:<postmaster>\r\n"
    )


def test_a_quoted_local_part_is_quoted_again():
    recipient = Recipient(parse_mailbox('"a b"@example.org'))
    assert commands.rcpt(recipient, smtputf8=False, offered=()) == b'RCPT TO:<"a b"@example.org>\r\n'


def test_u_labels_stay_where_smtputf8_is_offered_and_become_a_labels_elsewhere():
    address = parse_mailbox("ben@b\u00fccher.example", utf8=True)
    assert (
        commands.rcpt(Recipient(address), smtputf8=True, offered=ALL)
        == "RCPT TO:<ben@b\u00fccher.example>\r\n".encode()
    )
    assert commands.rcpt(Recipient(address), smtputf8=True, offered=()) == b"RCPT TO:<ben@xn--bcher-kva.example>\r\n"
    assert (
        mail(address, MailParameters(smtputf8=True), size=0, offered=()) == b"MAIL FROM:<ben@xn--bcher-kva.example>\r\n"
    )


def test_a_utf8_local_part_cannot_be_written_without_smtputf8():
    address = parse_mailbox("b\u00e9n@example.org", utf8=True)
    assert commands.rcpt(Recipient(address), smtputf8=True, offered=()) is None
    assert mail(address, MailParameters(smtputf8=True), offered=()) is None
    assert (
        mail(address, MailParameters(smtputf8=True), size=0) == "MAIL FROM:<b\u00e9n@example.org> SMTPUTF8\r\n".encode()
    )


def test_utf8_in_orcpt_goes_in_seven_bits_where_smtputf8_is_not_spoken():
    def said(text: str, *, smtputf8: bool = True, offered: Container[str] = ("DSN",)) -> bytes | None:
        return commands.rcpt(Recipient(BEN, orcpt=f"utf-8;{text}"), smtputf8=smtputf8, offered=offered)

    start = b"RCPT TO:<ben@example.org> ORCPT=utf-8;"
    assert said("b\u00e9n\\x{2B}\U0001f600@x.test") == start + rb"b\x{E9}n\x{2B}\x{1F600}@x.test" + b"\r\n"
    assert said("b\u00e9n@x.test", smtputf8=False, offered=ALL) == start + rb"b\x{E9}n@x.test" + b"\r\n"
    assert said("b\u00e9n@x.test", offered=ALL) == start + "b\u00e9n@x.test\r\n".encode()
    assert said("\u00e9" * 100) == b"RCPT TO:<ben@example.org>\r\n", "longer than it may be"


@pytest.mark.parametrize("evil", ["a\r\nDATA", "a\nQUIT", "a\rQUIT"])
def test_a_line_end_never_reaches_the_wire(evil: str):
    with pytest.raises(ValueError, match="line end"):
        commands.rcpt(Recipient(BEN, orcpt=evil), smtputf8=False, offered=ALL)
    with pytest.raises(ValueError, match="line end"):
        mail(parameters=MailParameters(envid=evil))


def test_requiretls_is_said_where_it_is_offered():
    parameters = MailParameters(requiretls=True)
    assert mail(parameters=parameters, offered={"REQUIRETLS"}) == b"MAIL FROM:<ben@example.org> REQUIRETLS\r\n"
    assert b"REQUIRETLS" not in mail(parameters=parameters, offered=ALL)
