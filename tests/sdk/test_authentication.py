"""Findings as they stand in an Authentication-Results field."""

from __future__ import annotations

import pytest

from gateway.sdk import (
    AuthResult,
    Dkim,
    DkimSignature,
    Dmarc,
    DmarcPolicy,
    Dnsbl,
    ReverseName,
    Spf,
    SpfResult,
    authentication_results,
)
from gateway.sdk.authentication import quote


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("example.org", "example.org"),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("a; dkim=pass", '"a; dkim=pass"'),
        ("a\r\nb", '"a??b"'),
        ("2001:db8::1", '"2001:db8::1"'),
        ("ab/cd==", '"ab/cd=="'),
    ],
)
def test_values_of_results_cannot_break_out(text, quoted):
    assert quote(text) == quoted


def test_what_is_no_token_is_quoted_for_strict_readers_drop_a_whole_field_otherwise():
    dkim = Dkim((DkimSignature(AuthResult.PASS, "a.test", identity="x/y@a.test", short="ab/c+d=="),))
    value = authentication_results("mx.test", [ReverseName(AuthResult.PASS, "2001:db8::1", "mail.a.test"), dkim])
    assert value == (
        'mx.test;\n\tiprev=pass policy.iprev="2001:db8::1";'
        '\n\tdkim=pass header.d=a.test header.i=x/y@a.test header.b="ab/c+d=="'
    )


def test_our_results_name_what_was_checked():
    spf = Spf(SpfResult.PASS, "sender.test", SpfResult.NONE, "client.test")
    dkim = Dkim((DkimSignature(AuthResult.FAIL, "a.test", "s1", algorithm="rsa-sha256", problem="body has changed"),))
    dmarc = Dmarc(AuthResult.FAIL, "a.test", policy=DmarcPolicy.REJECT)
    iprev = ReverseName(AuthResult.PASS, "192.0.2.1", "mail.sender.test")
    assert authentication_results("mx.example.org", [Dnsbl(3.0), iprev, spf, dkim, dmarc]) == (
        "mx.example.org;\n\tiprev=pass policy.iprev=192.0.2.1;\n\tspf=pass smtp.mailfrom=sender.test;"
        "\n\tspf=none smtp.helo=client.test;"
        '\n\tdkim=fail reason="body has changed" header.d=a.test header.s=s1 header.a=rsa-sha256;'
        "\n\tdmarc=fail header.from=a.test policy.dmarc=reject"
    )


@pytest.mark.parametrize(
    ("identity", "written"),
    [
        ("@a.test", "@a.test"),
        ("x/y.z@a.test", "x/y.z@a.test"),
        ("x..y@a.test", '"x..y@a.test"'),
        ("@a_b.test", '"@a_b.test"'),
    ],
)
def test_an_identity_stands_there_as_it_is_where_it_is_an_address(identity, written):
    dkim = Dkim((DkimSignature(AuthResult.PASS, "a.test", identity=identity),))
    assert authentication_results("mx", [dkim]) == f"mx;\n\tdkim=pass header.d=a.test header.i={written}"


@pytest.mark.parametrize("letter", ["l", '"', "\U0001f600", "\\"])
def test_no_line_is_longer_than_a_line_may_be_whatever_a_signature_says(letter):
    domain = ".".join(["d" * 60] * 4)
    dkim = DkimSignature(
        AuthResult.FAIL, domain, letter * 255, f"{letter * 255}@{domain}", short="x", problem="p" * 300
    )
    value = authentication_results(
        "mx.test", [Dkim((dkim,)), Spf(SpfResult.NONE, domain, SpfResult.NONE, letter * 255)]
    )
    assert max(len(line.encode()) for line in value.split("\n")) < 998
    assert all(line[0] == "\t" for line in value.split("\n")[1:])


def test_findings_that_authenticate_nothing_make_no_field():
    assert authentication_results("mx.example.org", [Dnsbl(0.0)]) == ""


def test_a_message_without_signatures_is_said_to_have_none():
    assert authentication_results("mx", [Dkim()]) == "mx;\n\tdkim=none"
