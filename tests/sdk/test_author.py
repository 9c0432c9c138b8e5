"""Whether a domain stands behind a message that bears its name."""

from __future__ import annotations

import pytest

from gateway.sdk import Arc, AuthResult, Dkim, DkimSignature, Dmarc, Proof, Spf, SpfResult, prove_author
from gateway.sdk.author import read_authors
from gateway.sdk.testing import make_message


def spf(result: str, domain: str = "partner.test") -> Spf:
    return Spf(SpfResult(result), domain, SpfResult.NONE, "h.test")


def dkim(result: str, domain: str = "partner.test") -> Dkim:
    return Dkim((DkimSignature(AuthResult(result), domain),))


def dmarc(result: str, domain: str = "partner.test") -> Dmarc:
    return Dmarc(AuthResult(result), domain)


def arc(*, trusted: bool = True, result: AuthResult = AuthResult.PASS, said=("dmarc", "pass", "partner.test")) -> Arc:
    return Arc(result, ("list.test",), trusted, (said,))


@pytest.mark.parametrize(
    ("findings", "proof"),
    [
        ({}, Proof.UNKNOWN),
        ({"dmarc": dmarc("pass")}, Proof.PROVED),
        ({"dmarc": dmarc("fail"), "spf": spf("pass")}, Proof.UNPROVED),
        ({"dmarc": dmarc("temperror"), "spf": spf("fail")}, Proof.UNKNOWN),
        ({"dmarc": dmarc("none"), "spf": spf("pass")}, Proof.PROVED),
        ({"dmarc": dmarc("none"), "spf": spf("fail"), "dkim": Dkim()}, Proof.UNPROVED),
        ({"dmarc": dmarc("permerror", ""), "dkim": dkim("pass")}, Proof.PROVED),
        ({"dmarc": dmarc("pass", "other.test"), "spf": spf("pass", "other.test")}, Proof.UNPROVED),
        ({"dmarc": dmarc("fail", "other.test"), "dkim": dkim("pass")}, Proof.PROVED),
        ({"spf": spf("pass")}, Proof.PROVED),
        ({"spf": spf("softfail")}, Proof.UNPROVED),
        ({"spf": spf("temperror")}, Proof.UNKNOWN),
        ({"spf": spf("fail"), "dkim": dkim("temperror")}, Proof.UNKNOWN),
        ({"spf": spf("temperror", "other.test")}, Proof.UNPROVED),
        ({"dkim": dkim("fail")}, Proof.UNPROVED),
        ({"dkim": dkim("pass", "sub.partner.test")}, Proof.UNPROVED),
        ({"dmarc": dmarc("fail"), "arc": arc()}, Proof.PROVED),
        ({"dmarc": dmarc("fail"), "arc": arc(trusted=False)}, Proof.UNPROVED),
        ({"dmarc": dmarc("fail"), "arc": arc(result=AuthResult.FAIL)}, Proof.UNPROVED),
        ({"dmarc": dmarc("fail"), "arc": arc(said=("dmarc", "pass", "other.test"))}, Proof.UNPROVED),
        ({"dmarc": dmarc("fail"), "arc": arc(said=("spf", "pass", "partner.test"))}, Proof.UNPROVED),
    ],
)
def test_dmarc_decides_and_without_a_record_spf_or_dkim(findings, proof):
    assert prove_author("partner.test", **findings) is proof


def test_within_a_name_that_was_given_identifiers_need_not_be_the_same():
    names = {"partner.test", "other.test"}
    assert prove_author("a.partner.test", names, dkim=dkim("pass")) is Proof.PROVED
    assert prove_author("a.partner.test", names, spf=spf("pass", "b.partner.test")) is Proof.PROVED
    assert prove_author("partner.test", names, spf=spf("pass", "other.test")) is Proof.UNPROVED
    assert prove_author("a.partner.test", spf=spf("pass")) is Proof.UNPROVED


def test_of_several_authors_each_whose_policy_is_not_met_is_unproved():
    found = Dmarc(AuthResult.FAIL, "other.test", others=("a.partner.test",))
    assert prove_author("a.partner.test", ("partner.test",), dmarc=found, dkim=dkim("pass")) is Proof.UNPROVED
    assert prove_author("b.partner.test", ("partner.test",), dmarc=found, dkim=dkim("pass")) is Proof.PROVED


def test_a_message_without_an_author_is_nobodys():
    assert prove_author("", dmarc=dmarc("pass", "")) is Proof.UNPROVED
    assert read_authors(make_message(b"Subject: x\r\n\r\n")) == ()


def test_the_authors_of_all_from_fields_are_read():
    message = make_message(b"From: A <a@x.test>\r\nFROM: b@y.test\r\nSender: c@z.test\r\n\r\n")
    assert [author.domain for author in read_authors(message)] == ["x.test", "y.test"]
