"""Addresses and parameters as MTAs hand them on, and the meaning of a policy request."""

from __future__ import annotations

import ipaddress

import pytest

from gateway.guest.envelope import mail_parameters, parse_recipient, parse_sender, recipient_parameters
from gateway.guest.request import UNKNOWN_CLIENT, RequestError, State, read_request
from gateway.mail.address import NULL_SENDER, Address, AddressError
from gateway.mail.envelope import Body, MailParameters, Notify, Recipient, Ret
from gateway.mail.session import Tls
from gateway.sdk.stage import Stage
from tests.guest.setting import attributes, request


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("<ann@sender.test>", Address("ann", "sender.test")),
        ("ann@sender.test", Address("ann", "sender.test")),
        ('"a b"@sender.test', Address("a b", "sender.test")),
        ("a b@sender.test", Address("a b", "sender.test")),
        ("a@b@sender.test", Address("a@b", "sender.test")),
        ("<@relay.test:ann@sender.test>", Address("ann", "sender.test")),
        ("root", Address("root", "mx.test")),
        ("gr\u00fc\u00df@b\u00fccher.test", Address("gr\u00fc\u00df", "b\u00fccher.test")),
        ("ann@[192.0.2.1]", Address("ann", "[192.0.2.1]")),
    ],
)
def test_addresses_are_understood_as_mtas_write_them(text: str, address: Address) -> None:
    assert parse_sender(text, "mx.test") == address
    assert parse_recipient(text, "mx.test") == address


def test_nothing_is_the_null_sender_and_no_recipient() -> None:
    assert parse_sender("", "mx.test") is parse_sender("<>", "mx.test") is NULL_SENDER
    with pytest.raises(AddressError):
        parse_recipient("<>", "mx.test")


@pytest.mark.parametrize(
    "text", ["a@", "@b.test", "a\x1b@b.test", "a@-b-", "a@b..c", "x" * 65 + "@b.test", "a\udcff@b.test"]
)
def test_what_is_no_address_by_any_reading_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_sender(text, "mx.test")


def test_parameters_are_read_and_nonsense_among_them_is_left_out() -> None:
    given = ["SIZE=1000", "body=8bitmime", "SMTPUTF8", "RET=HDRS", "ENVID=x+2By", "FUTURE=1", "AUTH=<>"]
    assert mail_parameters(given) == MailParameters(1000, Body.EIGHT_BIT, True, Ret.HEADERS, "x+2By")
    assert mail_parameters(["SIZE=-1", "BODY=7BIT", "RET=MUCH", "ENVID=\x01"]) == MailParameters()
    ben = Address("ben", "example.test")
    assert recipient_parameters(ben, ["NOTIFY=FAILURE,DELAY", "ORCPT=rfc822;Ben"]) == Recipient(
        ben, frozenset({Notify.FAILURE, Notify.DELAY}), "rfc822;Ben"
    )
    assert recipient_parameters(ben, ["NOTIFY=SOMETIMES"]) == Recipient(ben)


def test_a_request_says_who_the_client_is_and_how_it_came() -> None:
    read = request(
        client_name="host.test",
        encryption_protocol="TLSv1.3",
        encryption_cipher="TLS_AES",
        sasl_username="ann",
        queue_id="ABC",
    )
    assert (read.state, read.caller[:2]) == (State.RCPT, (ipaddress.ip_address("192.0.2.9"), 40001))
    session = read.session("inet:1", 5.0, lambda client: False)
    assert (session.tls, session.esmtp, session.name, session.trusted) == (
        Tls("TLSv1.3", "TLS_AES"),
        True,
        "host.test",
        True,
    )
    assert (read.parameters.size, read.queue_id) == (1000, "ABC")
    assert not request().session("inet:1", 5.0, lambda client: False).trusted
    assert request().session("inet:1", 5.0, lambda client: True).trusted


def test_unknown_clients_and_odd_numbers_are_survived() -> None:
    assert request(client_address="unknown", client_port="", size="x").client == UNKNOWN_CLIENT
    assert request(client_port="99999").port == 0
    assert request(client_address="2001:db8::1").client == ipaddress.ip_address("2001:db8::1")
    assert request(client_address="::ffff:192.0.2.1").client == ipaddress.ip_address("192.0.2.1")


@pytest.mark.parametrize(
    ("state", "stage"),
    [
        ("CONNECT", Stage.CONNECT),
        ("XCLIENT", Stage.CONNECT),
        ("EHLO", Stage.HELO),
        ("HELO", Stage.HELO),
        ("VRFY", Stage.HELO),
        ("ETRN", Stage.HELO),
        ("MAIL", Stage.MAIL),
        ("RCPT", Stage.RCPT),
        ("DATA", Stage.DATA),
        ("BDAT", Stage.DATA),
        ("END-OF-MESSAGE", Stage.MESSAGE),
    ],
)
def test_every_state_of_postfix_has_a_stage(state: str, stage: Stage) -> None:
    assert request(protocol_state=state).state.value is stage


@pytest.mark.parametrize(
    "wrong",
    [{"protocol_state": "RSET"}, {"protocol_state": ""}, {"client_address": "nowhere"}, {"instance": "x" * 600}],
)
def test_a_request_that_makes_no_sense_is_none(wrong: dict[str, str]) -> None:
    with pytest.raises(RequestError):
        read_request(attributes(**wrong))
