"""Next hops that are told whom a message came from: what they hear, and which connections are used for whom."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.envelope import Origin
from gateway.smtp import proxy
from gateway.smtp.xclient import parse
from gateway.transport.introduction import greeting_name, proxy_header, xclient, xforward, xtext
from gateway.transport.options import HopOptions, Proxy
from gateway.transport.transport import Fault, Outcome
from tests.transport.peer import Link, Peer, Script, delivery, peer, run, statuses, transport

ALL = "NAME ADDR PORT PROTO HELO LOGIN REVERSE_NAME DESTADDR DESTPORT"
FORWARD = "NAME ADDR PORT PROTO HELO IDENT SOURCE"
ANN = Origin(ipaddress.ip_address("192.0.2.7"), 4711, "client.test", "mail.client.test")
BEN = Origin(ipaddress.ip_address("2001:db8::7"), 25, "", "[192.0.2.1]", esmtp=False)


def test_xclient_says_what_is_known_and_only_what_is_offered():
    assert xclient(ANN, ALL) == (
        b"XCLIENT ADDR=192.0.2.7 PORT=4711 NAME=client.test HELO=mail.client.test PROTO=ESMTP\r\n"
    )
    assert xclient(BEN, "addr name proto") == b"XCLIENT ADDR=IPV6:2001:db8::7 NAME=[UNAVAILABLE] PROTO=SMTP\r\n"
    assert xclient(ANN, "LOGIN") == b""


def test_xforward_comes_in_two_lines_with_the_queue_id():
    assert xforward(ANN, "Q1", FORWARD) == [
        b"XFORWARD NAME=client.test ADDR=192.0.2.7 PORT=4711\r\n",
        b"XFORWARD PROTO=ESMTP HELO=mail.client.test IDENT=Q1 SOURCE=REMOTE\r\n",
    ]
    assert xforward(ANN, "Q1", "IDENT") == [b"XFORWARD IDENT=Q1\r\n"]


def test_xtext_has_no_other_octets():
    assert xtext("a+b=c d\u00e9\r\n") == "a+2Bb+3Dc+20d+C3+A9+0D+0A"


@settings(max_examples=50)
@given(st.text(max_size=300), st.text(max_size=300), st.ip_addresses(), st.integers(0, 65535))
def test_whatever_a_client_is_called_each_command_is_one_short_line_and_is_read_back(name, helo, client, port):
    origin = Origin(client, port, name, helo)
    line = xclient(origin, ALL)
    assert line.endswith(b"\r\n") and line.isascii() and line[:-2].decode().isprintable() and len(line) <= 512
    read = parse(line[8:-2].decode())
    assert ipaddress.ip_address(read["ADDR"].removeprefix("IPV6:")) == client
    assert read["NAME"] in (name, "")
    for command in xforward(origin, "Q1", FORWARD):
        assert command.count(b"\r") == command.count(b"\n") == 1 and len(command) <= 1024
    assert " " not in greeting_name(origin, "gate.test") and greeting_name(origin, "gate.test").isprintable()


@pytest.mark.parametrize("name", ["mail.client.test", "client.test.", "my_pc", "a-.b", "[192.0.2.1]", "[IPv6:::1]"])
def test_after_xclient_a_client_greets_in_its_own_name(name):
    assert greeting_name(Origin(ANN.client, helo=name), "gate.test") == name


@pytest.mark.parametrize("name", ["a" * 60 + "!", "a." * 100 + "!", "-a", "a..b", "a" * 64, "a b", ""])
def test_what_is_no_name_is_not_repeated_and_seen_at_once(name):
    """Not after the ages that a pattern takes which can be tried in many ways."""
    assert greeting_name(Origin(ANN.client, helo=name), "gate.test") == "gate.test"


@pytest.mark.parametrize("version", [Proxy.V1, Proxy.V2])
@settings(max_examples=30)
@given(client=st.ip_addresses(), port=st.integers(0, 65535), address=st.ip_addresses())
def test_a_proxy_header_is_read_back_as_it_was_meant(version, client, port, address):
    header = proxy_header(version, (str(client), port), (str(address), 25))
    read = proxy.read(header)
    assert read is not None and read[1] == len(header)
    assert (read[0].client, read[0].port) == (getattr(client, "ipv4_mapped", None) or client, port)


def attempt(*scripts: Script, origins: tuple[Origin | None, ...], hop: HopOptions) -> tuple[list[Outcome], Peer]:
    async def main() -> tuple[list[Outcome], Peer]:
        async with peer(*scripts) as it:
            t = transport(it.port, hop=hop)
            outcomes = []
            for origin in origins:
                outcomes += await t.deliver(delivery(origin=origin))
            await t.close()
        return outcomes, it

    return run(main())


def trusting(*verbs: str, offer: str = f"XCLIENT {ALL}", xclient: str = "220 peer.test ESMTP") -> Script:
    """Answers these verbs, one after the other; EHLO, XCLIENT and what they begin is known, ``take`` is a message."""

    async def script(link: Link) -> None:
        await link.say("220 peer.test ESMTP")
        for verb in verbs:
            if verb == "take":
                await link.take()
            elif verb == "EHLO":
                await link.hello("PIPELINING", offer)
            else:
                await link.hear(verb)
                await link.say(xclient if verb == "XCLIENT" else "250 ok")
        await link.end()

    return script


XCLIENT = HopOptions(xclient=True)


def test_a_kept_connection_is_told_of_each_new_client_and_greeted_in_his_name():
    script = trusting("EHLO", "XCLIENT", "EHLO", "take", "take", "XCLIENT", "EHLO", "take")
    outcomes, it = attempt(script, origins=(ANN, ANN, BEN), hop=XCLIENT)
    assert statuses(outcomes) == ["delivered 2.0.0"] * 3 and it.connections == 1
    assert [line for line in it.heard if line.startswith("EHLO")] == [
        "EHLO gate.test",
        "EHLO mail.client.test",
        "EHLO [192.0.2.1]",
    ]


def test_mail_of_our_own_never_goes_in_the_name_of_a_client():
    first = trusting("EHLO", "XCLIENT", "EHLO", "take")
    outcomes, it = attempt(first, trusting("EHLO", "take"), origins=(ANN, None), hop=XCLIENT)
    assert statuses(outcomes) == ["delivered 2.0.0"] * 2 and it.connections == 2


def test_where_xclient_is_not_offered_it_is_not_said():
    outcomes, it = attempt(trusting("EHLO", "take", offer="SIZE"), origins=(ANN,), hop=XCLIENT)
    assert statuses(outcomes) == ["delivered 2.0.0"] and it.count("XCLIENT") == 0


def test_where_it_is_not_wanted_it_is_not_said():
    script = trusting("EHLO", "take", offer=f"XCLIENT {ALL}")
    outcomes, it = attempt(script, origins=(ANN,), hop=HopOptions())
    assert statuses(outcomes) == ["delivered 2.0.0"] and it.count("X") == 0


@pytest.mark.parametrize("reply", ["550 5.7.0 insufficient authorization", "421 4.3.2 bye", "354 what?"])
def test_a_client_who_cannot_be_named_is_not_passed_off_as_ourselves(reply: str):
    outcomes, it = attempt(trusting("EHLO", "XCLIENT", xclient=reply), origins=(ANN,), hop=XCLIENT)
    (outcome,) = outcomes
    assert statuses(outcomes) == ["deferred 4.7.0"] and outcome.fault is Fault.CONNECT
    assert it.count("MAIL") == 0


def test_xforward_goes_with_the_envelope_and_may_be_refused():
    async def script(link: Link) -> None:
        await link.greet("PIPELINING", f"XFORWARD {FORWARD}")
        await link.hear("XFORWARD", "XFORWARD", "MAIL", "RCPT", "DATA")
        await link.say("250 ok", "501 5.5.4 no", "250 ok", "250 ok", "354 go on")
        await link.content()
        await link.say("250 2.0.0 taken")
        await link.take()
        await link.end()

    outcomes, it = attempt(script, origins=(ANN, None), hop=HopOptions(xforward=True))
    assert statuses(outcomes) == ["delivered 2.0.0"] * 2 and it.count("XFORWARD") == 2


@pytest.mark.parametrize("version", [Proxy.V1, Proxy.V2])
def test_a_connection_with_a_proxy_header_is_kept_for_the_same_client_only(version: Proxy):
    told: list[proxy.ProxyHeader] = []

    async def script(link: Link) -> None:
        data = b""
        while (read := proxy.read(data)) is None:
            data += await link.reader.readexactly(1)
        told.append(read[0])
        await link.greet()
        while True:
            await link.take()

    outcomes, it = attempt(script, origins=(ANN, ANN, BEN, None), hop=HopOptions(proxy=version))
    assert statuses(outcomes) == ["delivered 2.0.0"] * 4 and it.connections == 3
    assert [header.client for header in told] == [ANN.client, BEN.client, ipaddress.ip_address("127.0.0.1")]
