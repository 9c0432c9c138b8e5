"""Trace fields: Received, loops, and results that others forged in our name."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail.address import Address
from gateway.mail.edit import AddHeader
from gateway.mail.envelope import Recipient
from gateway.mail.message import HeaderField, split_header
from gateway.mail.session import ClientCertificate, Session, Tls
from gateway.smtp import trace

CLIENT = ipaddress.ip_address("192.0.2.7")
SESSION = Session("0123456789ABC", CLIENT, 4000, CLIENT, "edge", 0.0, helo="client.test", esmtp=True)
TLS = Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384")
OURS = "mx.example.org"


@pytest.mark.parametrize(
    ("esmtp", "tls", "smtputf8", "keyword"),
    [
        (False, None, False, "SMTP"),
        (False, TLS, False, "SMTP"),
        (True, None, False, "ESMTP"),
        (True, TLS, False, "ESMTPS"),
        (True, None, True, "UTF8SMTP"),
        (True, TLS, True, "UTF8SMTPS"),
    ],
)
def test_the_with_keyword_says_how_the_message_came(esmtp, tls, smtputf8, keyword):
    session = replace(SESSION, esmtp=esmtp, tls=tls)
    assert trace.protocol(session, smtputf8=smtputf8) == keyword
    field = trace.received(session, OURS, "ID", (), 0.0, smtputf8=smtputf8)
    assert f" with {keyword} id ID".encode() in field


def received(session: Session = SESSION, *recipients: Address) -> str:
    raw = trace.received(session, OURS, "ID", tuple(Recipient(r) for r in recipients), 0.0, smtputf8=False)
    fields, end = split_header(raw + b"\r\n")
    assert end == len(raw)
    assert len(fields) == 1
    assert max(len(line) for line in raw.split(b"\r\n")) <= 998
    return fields[0].value


def test_received_names_client_server_and_time():
    value = received(SESSION, Address("ben", "example.org"))
    assert value == (
        "from client.test ([192.0.2.7])\tby mx.example.org (Gatepost) with ESMTP id ID"
        "\tfor <ben@example.org>;\tThu, 01 Jan 1970 00:00:00 +0000"
    )


def test_received_says_whose_certificate_the_client_showed_and_nothing_can_end_the_comment():
    for client, comment in (
        (ClientCertificate(True, "AB", "", "mx.partner.example", (), "Partners CA"), "mx.partner.example"),
        (ClientCertificate(True, "AB", "", 'a"(b)\\\r\nX: y', (), "Partners CA"), "a??b????X: y"),
        (ClientCertificate(True, "AB", "", "Grüße", (), "Partners CA"), "Gr??e"),
    ):
        value = received(replace(SESSION, tls=replace(TLS, client=client)))
        assert f'TLS_AES_256_GCM_SHA384)\t(Client CN "{comment}", Issuer "Partners CA" (verified OK))\tby ' in value
    unknown = ClientCertificate(False, "AB", "cert has expired")
    value = received(replace(SESSION, tls=replace(TLS, client=unknown)))
    assert "TLS_AES_256_GCM_SHA384)\t(Client certificate not verified)\tby " in value


def test_received_names_no_recipient_when_there_are_several():
    assert "example.org>" not in received(SESSION, Address("ben", "example.org"), Address("anna", "example.org"))


@pytest.mark.parametrize("helo", ["a(b", "a)b", "x;y\\", "ü.test", "a" * 255, ""])
@pytest.mark.parametrize("name", ["", "c.test", "evil) by us (", "n" * 255])
def test_what_the_client_says_of_itself_cannot_break_out_of_its_place(helo, name):
    value = received(replace(SESSION, helo=helo, name=name, client=ipaddress.ip_address("2001:db8::1")))
    assert value.count("(") == 2 and value.count(")") == 2
    assert "[IPv6:2001:db8::1])" in value


def test_hops_are_counted_in_the_header_only_by_field_name():
    head = b"Received: a\r\n b\r\nRECEIVED : c\r\nX-Received: d\r\nSubject: x\r\n Received: folded\r\n"
    assert trace.hops(head) == 2


def test_own_hops_are_those_with_our_mark():
    ours = trace.received(SESSION, OURS, "ID", (), 0.0, smtputf8=False)
    other = trace.received(SESSION, "mx.elsewhere.test", "ID", (), 0.0, smtputf8=False)
    fields, _ = split_header(ours + other + ours)
    assert trace.own_hops(fields, OURS) == 2


FORGED = [
    "mx.example.org; spf=pass",
    "MX.Example.ORG; spf=pass",
    "mx.example.org. ; spf=pass",
    "mx.example.org",
    "mx.example.org 1; spf=pass",
    '"mx.example.org"; spf=pass',
    '"mx\\.example.org" 1; spf=pass',
    '" mx.example.org "; spf=pass',
    "(comment) mx.example.org; spf=pass",
    "(a (nested) comment; with \\) quotes) mx.example.org (another); spf=pass",
    "(" * 40 + ")" * 40 + " mx.example.org; spf=pass",
    "\r\n\tmx.example.org;\r\n\tspf=pass",
    "\r\n (folded\r\n comment)\r\n mx.example.org; spf=pass",
    "mx.example.org(comment); spf=pass",
]
FOREIGN = [
    "mx.elsewhere.test; spf=pass",
    "notmx.example.org; spf=pass",
    "mx.example.org.elsewhere.test; spf=pass",
    "(mx.example.org) mx.elsewhere.test; spf=pass",
    '"mx.elsewhere.test"; mx.example.org',
    "(mx.example.org;",
    "",
]


@pytest.mark.parametrize("name", ["Authentication-Results", "authentication-RESULTS", "Authentication-Results "])
@pytest.mark.parametrize("value", FORGED)
def test_results_in_our_name_are_removed(name, value):
    section = f"A: 1\r\n{name}: {value}\r\nB: 2\r\n".encode()
    assert trace.rewrite(section, OURS, ()) == (b"A: 1\r\nB: 2\r\n", len(section))


@pytest.mark.parametrize("value", FOREIGN)
def test_results_of_others_are_kept_as_they_are(value):
    section = f"A: 1\r\nAuthentication-Results: {value}\r\nB: 2\r\n".encode()
    assert trace.rewrite(section, OURS, ()) == (section, len(section))


@pytest.mark.parametrize("value", FORGED)
def test_results_in_our_name_behind_a_line_that_is_no_field_are_of_the_body(value):
    section = f"A: 1\r\nno field\r\nAuthentication-Results: {value}\r\nB: 2\r\n".encode()
    assert trace.rewrite(section, OURS, ()) == (b"A: 1\r\n\r\n", 6)


def test_a_forged_field_may_be_the_last_octets_of_the_message():
    for section in (b"no field\r\nAuthentication-Results: mx.example.org", b"Authentication-Results: mx.example.org"):
        assert b"mx.example.org" not in trace.rewrite(section, OURS, ())[0]


def test_many_hops_or_a_few_of_ours_are_a_loop():
    ours = trace.received(SESSION, OURS, "ID", (), 0.0, smtputf8=False)
    other = b"Received: by elsewhere.test\r\n"
    assert not trace.loops(other * 50, OURS, 50)
    assert trace.loops(other * 51, OURS, 50)
    assert not trace.loops(ours * trace.OWN_HOPS + other, OURS, 50)
    assert trace.loops(ours * trace.OWN_HOPS + ours, OURS, 50)


def test_several_forged_fields_are_all_removed_and_the_order_of_the_others_is_kept():
    forged, foreign = (
        b"Authentication-Results: mx.example.org; spf=pass\r\n",
        b"Authentication-Results: a; spf=pass\r\n",
    )
    section = forged + b"A: 1\r\n" + foreign + forged + forged + b"B: 2\r\n" + forged
    assert trace.rewrite(section, OURS, ())[0] == b"A: 1\r\n" + foreign + b"B: 2\r\n"


def test_without_edits_and_suspects_the_header_is_left_alone():
    assert trace.rewrite(b"A: 1\r\nB: 2\r\n", OURS, ()) == (b"", 0)


def test_edits_are_made_to_what_is_left():
    section = b"A: 1\r\nAuthentication-Results: mx.example.org; x\r\nno field\r\nB: 2\r\n"
    head, skip = trace.rewrite(section, OURS, (AddHeader("X", "1"),))
    assert head + section[skip:] == b"X: 1\r\nA: 1\r\n\r\nno field\r\nB: 2\r\n"


@pytest.mark.parametrize("lead", [b" ", b"\t"])
def test_white_space_at_the_top_cannot_go_on_with_a_field_of_ours(lead):
    section = lead + b"x\r\nAuthentication-Results: mx.example.org; x\r\n"
    assert trace.rewrite(section, OURS, ()) == (b"\r\n", 0)
    assert trace.rewrite(section, OURS, (AddHeader("X", "1"),)) == (b"X: 1\r\n\r\n", 0)


def test_other_fields_with_a_similar_name_are_kept():
    field = HeaderField("X-Authentication-Results", b"X-Authentication-Results: mx.example.org; spf=pass\r\n")
    assert not trace.is_own_results(field, OURS)


@pytest.mark.parametrize(
    ("head", "end"),
    [(b"\r\nbody", 0), (b"A: 1\r\n\r\nbody", 6), (b"A: 1\r\n", -1), (b"", -1)],
)
def test_the_header_ends_at_the_empty_line(head, end):
    assert trace.header_end(head) == end


_ODD = ["A: 1", "B:", " fold", "\tfold", "no field", "From x", ": 1", "\xe4: 1", "A" * 997 + ": 1", "A" * 998 + ":"]
_LINES = st.sampled_from([line.encode() for line in _ODD])


@given(st.lists(_LINES, max_size=6), st.sampled_from([b"", b"\r\n"]))
def test_an_empty_line_stands_before_all_that_nobody_took_for_fields(lines, end):
    section = b"\r\n".join(lines) + (end if lines else b"")
    fields, at = split_header(section)
    head, skip = trace.rewrite(section, OURS, ())
    if at == len(section):
        assert (head, skip) == (b"", 0)
    else:
        assert head == b"".join(field.raw for field in fields) + b"\r\n" and skip == at
    edited, skip = trace.rewrite(section, OURS, (AddHeader("X", "1"),))
    again, after = split_header(edited + section[skip:])
    assert [field.name for field in again] == ["X", *(field.name for field in fields)]
    assert (edited + section[skip:])[after:] in (section[at:], b"\r\n" + section[at:])
