"""XCLIENT attributes."""

from __future__ import annotations

import ipaddress

import pytest

from gateway.mail.session import Session
from gateway.smtp.command import CommandError
from gateway.smtp.xclient import apply, parse

PROXY = ipaddress.ip_address("127.0.0.1")
SESSION = Session("0000000000000", PROXY, 4000, PROXY, "edge", 0.0, helo="proxy.test", esmtp=True, trusted=True)


def test_attributes_are_decoded():
    assert parse("NAME=a+2Bb addr=192.0.2.9  PORT=25") == {"NAME": "a+b", "ADDR": "192.0.2.9", "PORT": "25"}
    assert parse("NAME=[UNAVAILABLE] HELO=[tempunavail]") == {"NAME": "", "HELO": ""}


@pytest.mark.parametrize("argument", ["", "NAME", "WHAT=x", "NAME=a NAME=b", "NAME=+0Ax", "NAME=" + "a" * 256])
def test_malformed_attributes_are_refused(argument):
    with pytest.raises(CommandError) as caught:
        parse(argument)
    assert caught.value.reply.code == 501


def test_the_session_is_the_described_clients_and_nothing_else_is_kept():
    session = apply(SESSION, parse("ADDR=IPv6:2001:db8::9 NAME=c.test PORT=99 HELO=h.test PROTO=ESMTP"), PROXY)
    assert session.client == ipaddress.ip_address("2001:db8::9")
    assert (session.client_port, session.name, session.helo, session.esmtp) == (99, "c.test", "h.test", True)
    assert session.peer == PROXY
    assert session.id != SESSION.id
    assert not session.trusted
    bare = apply(SESSION, parse("NAME=c.test"), PROXY)
    assert (bare.helo, bare.esmtp, bare.trusted) == ("", False, False)


def test_a_mapped_address_is_the_ipv4_address():
    assert apply(SESSION, parse("ADDR=IPV6:::ffff:192.0.2.9"), PROXY).client == ipaddress.ip_address("192.0.2.9")


def test_a_client_of_no_known_address_is_not_the_one_before():
    before = apply(SESSION, parse("ADDR=192.0.2.9 PORT=99 NAME=c.test"), PROXY)
    session = apply(before, parse("ADDR=[UNAVAILABLE]"), PROXY)
    assert (session.client, session.client_port, session.name) == (PROXY, 0, "")


@pytest.mark.parametrize(
    "argument", ["ADDR=nonsense", "ADDR=fe80::1%e+20(x)", "PORT=70000", "PORT=-1", "PORT=²", "HELO=a+20b"]
)
def test_values_that_make_no_sense_are_refused(argument):
    with pytest.raises(CommandError):
        apply(SESSION, parse(argument), PROXY)
