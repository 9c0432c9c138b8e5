"""DMARC: the tree walk's own examples, alignment, which policy applies, and what is done by it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway.sdk import (
    Action,
    Arc,
    AuthResult,
    Dkim,
    DkimSignature,
    Dmarc,
    DmarcPolicy,
    Finding,
    Spf,
    SpfResult,
    authentication_results,
)
from gateway.sdk.testing import Bench, FakeDns, make_message, make_session, make_transaction
from plugins.dmarc.author import author_domains
from plugins.dmarc.discovery import DmarcRecords, walk_names
from plugins.dmarc.options import DmarcOptions
from plugins.dmarc.record import parse_record

NONE, QUARANTINE, REJECT = DmarcPolicy.NONE, DmarcPolicy.QUARANTINE, DmarcPolicy.REJECT
NO_DKIM = Dkim(())


def mail(sender: str = "ann@example.com", more: str = "", *, fields: list[str] | None = None) -> bytes:
    froms = fields if fields is not None else [sender]
    head = "".join(f"From: {value}\r\n" for value in froms)
    return f"{head}Message-ID: <1@example.com>\r\n{more}\r\nHello.\r\n".encode()


def spf(domain: str = "", result: SpfResult = SpfResult.PASS) -> Spf:
    if not domain:
        return Spf(SpfResult.NONE, "elsewhere.test", SpfResult.NONE, "client.example")
    return Spf(result, domain, SpfResult.NONE, "client.example")


def dkim(*domains: str, result: AuthResult = AuthResult.PASS) -> Dkim:
    return Dkim(tuple(DkimSignature(result, domain, "s1") for domain in domains))


def find(
    records: dict[str, str | list[str]],
    content: bytes = b"",
    findings: list[Finding] | None = None,
    options: object = None,
    *,
    fails: list[str] | None = None,
    a: list[str] | None = None,
    dns: FakeDns | None = None,
) -> Dmarc:
    """The finding, with records by domain (without _dmarc)."""
    txt = {f"_dmarc.{name}": [text] if isinstance(text, str) else text for name, text in records.items()}
    dns = dns or FakeDns(txt=txt, a={name: ["192.0.2.9"] for name in a or ()}, fails=fails or ())
    found = Bench(dns=dns).find(
        "dmarc",
        options,  # type: ignore[arg-type]
        finding=Dmarc,
        message=make_message(content or mail()),
        findings=[DmarcRecords({}), *([spf(), NO_DKIM] if findings is None else findings)],
    )
    assert isinstance(found, Dmarc)
    return found


# --- what is looked up before anything is proved ---


@pytest.mark.parametrize("rules", ["rfc9989", "rfc7489"])
@pytest.mark.parametrize("author", ["ann@example.com", "ann@mail.example.com", "nonsense"])
def test_records_that_were_looked_up_before_are_not_asked_for_again_and_say_the_same(rules, author):
    def bench() -> tuple[FakeDns, Bench]:
        dns = FakeDns(txt={"_dmarc.example.com": ["v=DMARC1; p=reject; sp=none"]})
        return dns, Bench(dns=dns)

    message, signed = make_message(mail(author)), Dkim((DkimSignature(AuthResult.PASS, "example.com"),))
    _, one = bench()
    nothing = DmarcRecords({})
    alone = one.find("dmarc", {"rules": rules}, finding=Dmarc, message=message, findings=[spf(), signed, nothing])
    dns, two = bench()
    transaction = make_transaction(sender="bounce@example.com")
    early = two.find("dmarc", {"rules": rules}, finding=DmarcRecords, transaction=transaction, message=message)
    asked = len(dns.asked)
    assert (asked > 0) is (author != "nonsense")
    found = two.find("dmarc", {"rules": rules}, finding=Dmarc, message=message, findings=[spf(), signed, early])
    assert found == alone
    assert len(dns.asked) == asked


def test_records_stand_in_the_decision_record_by_their_domains_only():
    dns = FakeDns(txt={"_dmarc.example.com": ["v=DMARC1; p=reject"]})
    early = Bench(dns=dns).find("dmarc", finding=DmarcRecords, message=make_message(mail("a@x.example.com")))
    assert early.to_json() == {"domains": ["example.com"]}


# --- the tree walk (RFC 9989 section 4.10) ---


def test_a_walk_over_a_long_name_asks_the_eight_names_of_the_standards_example():
    dns = FakeDns()
    find({}, mail("x@a.b.c.d.e.f.g.h.i.j.mail.example.com"), dns=dns)
    assert sorted(name for name, _ in dns.asked) == sorted(
        f"_dmarc.{name}"
        for name in (
            "a.b.c.d.e.f.g.h.i.j.mail.example.com",
            "g.h.i.j.mail.example.com",
            "h.i.j.mail.example.com",
            "i.j.mail.example.com",
            "j.mail.example.com",
            "mail.example.com",
            "example.com",
            "com",
        )
    )


def test_a_zone_cut_deep_inside_a_long_name_is_not_found_as_the_standard_warns():
    names = walk_names("mail.a.b.c.d.e.f.g.example.com")
    assert names == [
        "mail.a.b.c.d.e.f.g.example.com",
        "c.d.e.f.g.example.com",
        "d.e.f.g.example.com",
        "e.f.g.example.com",
        "f.g.example.com",
        "g.example.com",
        "example.com",
        "com",
    ]


@pytest.mark.parametrize("labels", range(1, 30))
def test_no_walk_has_more_than_eight_names_and_each_ends_at_the_top(labels):
    names = walk_names(".".join(f"l{i}" for i in range(labels)))
    assert len(names) == min(labels, 8)
    assert names[-1] == f"l{labels - 1}"


ORGANIZATIONS = [
    ("a.mail.example.com", {"mail.example.com": "", "example.com": ""}, "example.com"),
    ("a.mail.example.com", {"mail.example.com": "psd=n", "example.com": ""}, "mail.example.com"),
    ("a.mail.example.com", {"com": "psd=y"}, "example.com"),
    ("mail.example.com", {"example.com": "psd=y"}, "mail.example.com"),
    ("a.mail.example.com", {}, "a.mail.example.com"),
    ("example.com", {"example.com": ""}, "example.com"),
    ("example.com", {"example.com": "psd=y"}, "example.com"),
    ("example.com", {"example.com": "psd=y", "com": ""}, "example.com"),
    ("a.example.com", {"a.example.com": "", "example.com": "psd=n", "com": "psd=y"}, "example.com"),
    ("a.example.com", {"example.com": "", "com": ""}, "com"),
    ("com", {}, "com"),
    ("a.b.c.d.e.f.g.h.example.co.uk", {"co.uk": "psd=y"}, "example.co.uk"),
    ("a.b.c.d.e.f.g.h.example.com", {"d.e.f.g.h.example.com": "psd=y"}, "c.d.e.f.g.h.example.com"),
]


@pytest.mark.parametrize(("domain", "records", "expected"), ORGANIZATIONS)
def test_the_organisational_domain_comes_from_the_walk(domain, records, expected):
    found = find({name: f"v=DMARC1; p=none; {tags}" for name, tags in records.items()}, mail(f"x@{domain}"))
    assert found.organizational == expected


def test_two_records_at_one_name_are_none_and_the_walk_goes_on():
    found = find(
        {"sub.example.com": ["v=DMARC1; p=none", "v=DMARC1; p=none"], "example.com": "v=DMARC1; p=reject"},
        mail("x@sub.example.com"),
    )
    assert (found.record_domain, found.policy) == ("example.com", REJECT)
    alone = find({"example.com": ["v=DMARC1; p=none", "v=DMARC1; p=reject"]})
    assert (alone.result, alone.problem) == (AuthResult.NONE, "several records")


def test_other_text_beside_the_record_does_no_harm():
    assert find({"example.com": ["hello", "v=DMARC1; p=reject", "v=spf1 -all"]}).policy is REJECT


# --- which policy applies ---

POLICIES = [
    # author, records, names that exist, policy, where the record is
    ("example.com", {"example.com": "p=reject; sp=none"}, [], REJECT, "example.com"),
    ("sub.example.com", {"example.com": "p=reject"}, [], REJECT, "example.com"),
    ("sub.example.com", {"example.com": "p=reject; sp=quarantine"}, [], QUARANTINE, "example.com"),
    ("sub.example.com", {"example.com": "p=none; np=reject"}, [], REJECT, "example.com"),
    ("sub.example.com", {"example.com": "p=none; np=reject"}, ["sub.example.com"], NONE, "example.com"),
    ("sub.example.com", {"example.com": "p=none; np=reject"}, ["x.sub.example.com"], NONE, "example.com"),
    ("sub.example.com", {"example.com": "p=none; sp=quarantine; np=reject"}, ["sub.example.com"], QUARANTINE, None),
    ("sub.example.com", {"example.com": "p=reject; sp=quarantine; np=none"}, [], NONE, "example.com"),
    ("example.com", {"example.com": "p=quarantine; np=reject"}, [], QUARANTINE, "example.com"),
    ("sub.example.com", {"sub.example.com": "p=quarantine; sp=reject; np=reject"}, [], QUARANTINE, "sub.example.com"),
    ("a.sub.example.com", {"sub.example.com": "p=none", "example.com": "p=reject"}, [], REJECT, "example.com"),
    ("a.sub.example.com", {"sub.example.com": "p=none; psd=n", "example.com": "p=reject"}, [], NONE, "sub.example.com"),
    ("example.com", {"com": "psd=y; p=none; np=reject"}, ["example.com"], NONE, "com"),
    ("example.com", {"com": "psd=y; p=none; np=reject"}, [], REJECT, "com"),
    ("example.com", {"com": "psd=y; p=reject", "example.com": "p=none"}, [], NONE, "example.com"),
    ("a.example.com", {"com": "psd=y; p=reject; sp=reject", "example.com": "p=none"}, [], NONE, "example.com"),
    ("example.com", {"example.com": "p=reject; t=y"}, [], QUARANTINE, "example.com"),
    ("example.com", {"example.com": "p=quarantine; t=y"}, [], NONE, "example.com"),
    ("example.com", {"example.com": "p=none; t=y"}, [], NONE, "example.com"),
    ("example.com", {"example.com": "p=reject; pct=0"}, [], REJECT, "example.com"),
    ("example.com", {"example.com": ""}, [], NONE, "example.com"),
]


@pytest.mark.parametrize(("author", "records", "exist", "policy", "where"), POLICIES)
def test_the_policy_that_applies(author, records, exist, policy, where):
    found = find({name: f"v=DMARC1; {tags}" for name, tags in records.items()}, mail(f"x@{author}"), a=exist)
    assert (found.result, found.policy) == (AuthResult.FAIL, policy)
    assert where is None or found.record_domain == where


# --- records ---

RECORDS = [
    # text, p, sp, np, usable
    (b"v=DMARC1; p=reject", REJECT, REJECT, REJECT, True),
    (b"v=DMARC1;p=reject;", REJECT, REJECT, REJECT, True),
    (b"V = DMARC1 ; P = Reject ; SP=None", REJECT, NONE, NONE, True),
    (b"v=DMARC1; p=reject; sp=none; np=quarantine", REJECT, NONE, QUARANTINE, True),
    (b"v=DMARC1; p=none; p=reject", NONE, NONE, NONE, True),
    (b"v=DMARC1; unknown=yes; p=reject; x", REJECT, REJECT, REJECT, True),
    (b"v=DMARC1; rf=afrf; ri=86400; pct=7; p=reject", REJECT, REJECT, REJECT, True),
    (b"v=DMARC1; adkim=s; p=reject", REJECT, REJECT, REJECT, True),
    (b"v=DMARC1", NONE, NONE, NONE, True),
    (b"v=DMARC1; sp=reject", NONE, REJECT, REJECT, True),
    (b"v=DMARC1; p=rejected", NONE, NONE, NONE, False),
    (b"v=DMARC1; p=rejected; rua=mailto:d@example.com", NONE, NONE, NONE, True),
    (b"v=DMARC1; p=rejected; rua=mailto:d", NONE, NONE, NONE, False),
    (b"v=DMARC1; p=reject; sp=maybe", NONE, NONE, NONE, False),
    (b"v=DMARC1; p=reject; sp=maybe; rua=mailto:d@example.com", NONE, NONE, NONE, True),
    (b"v=DMARC1; p=reject; np=maybe", NONE, NONE, NONE, False),
    (b"v=DMARC1; p=reject; np=", NONE, NONE, NONE, False),
    (b"v=DMARC1; p=reject; adkim=x; aspf=; psd=z; t=q; fo=9", REJECT, REJECT, REJECT, True),
    (b"v=DMARC1; p=re\x01ject", NONE, NONE, NONE, True),
    (b"v=DMARC1; p=reject; rua=\xff", REJECT, REJECT, REJECT, True),
]


@pytest.mark.parametrize(("text", "p", "sp", "np", "usable"), RECORDS)
def test_a_record_is_read(text, p, sp, np, usable):
    record = parse_record(text)
    assert record is not None
    assert (record.p, record.sp, record.np, record.usable) == (p, sp, np, usable)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"v=DMARC2; p=reject",
        b"v=dmarc1; p=reject",
        b"v=DMARC1 p=reject",
        b"v=DMARC10; p=reject",
        b"p=reject; v=DMARC1",
        b" v=DMARC1; p=reject",
        b"v=spf1 -all",
        b"v=DMARC1; p=reject; x=" + b"y" * 4000,
    ],
)
def test_what_is_no_record(text):
    assert parse_record(text) is None


def test_tags_of_the_record():
    record = parse_record(b"v=DMARC1; p=none; adkim=S; aspf=s; psd=Y; t=y; fo=1:d:s")
    assert record is not None
    assert (record.strict_dkim, record.strict_spf, record.psd, record.testing, record.fo) == (
        True,
        True,
        "y",
        True,
        "1:d:s",
    )
    wrong = parse_record(b"v=DMARC1; p=none; adkim=x; psd=?; t=2; fo=7")
    assert wrong is not None
    assert (wrong.strict_dkim, wrong.psd, wrong.testing, wrong.fo) == (False, "u", False, "0")
    assert set(wrong.problems) == {"adkim is wrong", "psd is wrong", "t is wrong"}


RUA = [
    ("mailto:d@example.com", [("d@example.com", 0)]),
    ("mailto:d@Example.COM!10m", [("d@example.com", 10 << 20)]),
    ("mailto:d@example.com!1k, mailto:e@example.com!2", [("d@example.com", 1024), ("e@example.com", 2)]),
    ("https://example.com/x,mailto:d@example.com", [("d@example.com", 0)]),
    ("MAILTO:a%2Bb@example.com?subject=x", [("a+b@example.com", 0)]),
    ("mailto:d@example.com,mailto:D@example.com", [("d@example.com", 0)]),
    ("mailto:d@example.com!much", []),
    ("mailto:d@", []),
    ("mailto:@example.com", []),
    ("mailto:d@example.com%0d%0aBcc:x@y.com", []),
    ("mailto:d@[192.0.2.1]", []),
    ("mailto:d@localhost", []),
    ("d@example.com", []),
    (",,,", []),
]


@pytest.mark.parametrize(("value", "expected"), RUA)
def test_reporting_addresses(value, expected):
    record = parse_record(f"v=DMARC1; p=none; rua={value}".encode())
    assert record is not None
    assert [(d.address, d.limit) for d in record.rua] == expected


# --- the author domain ---

AUTHORS = [
    ("ann@example.com", ["example.com"]),
    ("Ann <ann@example.com>", ["example.com"]),
    ("ANN@EXAMPLE.COM", ["example.com"]),
    ("ann@example.com.", ["example.com"]),
    ('"Ann, the @other <x@y>" <ann@example.com>', ["example.com"]),
    ("Ann (a comment (nested) with @ and <x@y>) <ann@example.com>", ["example.com"]),
    ("ann@example.com (Ann)", ["example.com"]),
    ('"quoted@local"@example.com', ["example.com"]),
    ('"with \\" and @"@example.com', ["example.com"]),
    ("=?utf-8?q?Ann=40bank?= <ann@example.com>", ["example.com"]),
    ("bank@bank.example <ann@example.com>", ["example.com"]),
    ("ann @ example . com", ["example.com"]),
    ("<@route.example,@two.example:ann@example.com>", ["example.com"]),
    ("Group: ann@example.com, ben@example.com;", ["example.com"]),
    ("ann@example.com, Ben <ben@example.com>", ["example.com"]),
    (",, ann@example.com ,", ["example.com"]),
    ("ann@b\u00fccher.example", ["xn--bcher-kva.example"]),
    ("Bj\u00f6rn <bj\u00f6rn@xn--bcher-kva.example>", ["xn--bcher-kva.example"]),
    ("ann@one.example, ben@two.example", ["one.example", "two.example"]),
    ("ann@_x.example", ["_x.example"]),
    ("Undisclosed:;", None),
    ("", None),
    ("Ann", None),
    ("<>", None),
    ("ann@", None),
    ("@example.com", None),
    ("ann@@example.com", None),
    ("ann@one.example@two.example", None),
    ("Ann <ann@example.com", None),
    ("Ann ann@example.com>", None),
    ("<ann@example.com> <ben@example.com>", None),
    ("<ann@example.com> ben@two.example", None),
    ("<<ann@example.com>>", None),
    ('"Ann <ann@example.com>', None),
    ("Ann (comment <ann@example.com>", None),
    ("(" * 30 + ")" * 30 + "ann@example.com", None),
    ("ann@[192.0.2.1]", None),
    ("ann@[IPv6:::1]", None),
    ("ann@exam ple.com", None),
    ("ann@example..com", None),
    ("ann@-example.com", None),
    ('ann@"example.com"', None),
    ("ann@exa\\mple.com", None),
    ("ann@" + "a" * 64 + ".com", None),
    ("ann@" + "abcdefg." * 40 + "com", None),
    ("ann@example.com: x@y.example;", None),
    ("ann@ex\ufffdample.com", None),
    ("ann@=?utf-8?q?bank?=.example", None),
    ("a@b.example," * 200, None),
    ("x" * 20_000 + "@example.com", None),
]


@pytest.mark.parametrize(("value", "expected"), AUTHORS)
def test_the_author_domain(value, expected):
    authors = author_domains([value])
    if expected is None:
        assert authors.problem
    else:
        assert (list(authors.domains), authors.problem) == (expected, "")


def test_no_from_field_and_two_of_them():
    assert author_domains([]).problem == "no From field"
    assert author_domains(["a@one.example", "b@one.example"]).domains == ("one.example",)
    assert author_domains(["a@one.example", "b@two.example"]).domains == ("one.example", "two.example")


def test_of_several_author_domains_the_worst_result_counts():
    records = {"good.example": "v=DMARC1; p=reject", "bank.example": "v=DMARC1; p=quarantine"}
    proved = [spf("good.example"), NO_DKIM]
    for fields in (["a@good.example, b@bank.example"], ["a@good.example", "b@bank.example"], ["b@bank.example"]):
        found = find(records, mail(fields=fields), proved)
        assert (found.result, found.domain, found.policy) == (AuthResult.FAIL, "bank.example", QUARANTINE)
    both = find(records, mail("a@good.example, b@none.example"), proved)
    assert (both.result, both.domain) == (AuthResult.NONE, "none.example")


def test_more_than_four_author_domains_are_not_judged():
    found = find({}, mail(", ".join(f"a@d{i}.example" for i in range(5))))
    assert (found.result, found.domain, found.problem) == (AuthResult.PERMERROR, "", "From names 5 domains")


# --- alignment ---

ALIGNMENT = [
    # author, record of example.com, SPF domain, DKIM domains, result
    ("example.com", "", "example.com", [], AuthResult.PASS),
    ("example.com", "", "", ["example.com"], AuthResult.PASS),
    ("news.example.com", "", "foo.example.com", [], AuthResult.PASS),
    ("news.example.com", "", "", ["foo.example.com"], AuthResult.PASS),
    ("news.example.com", "", "news.example.com", [], AuthResult.PASS),
    ("news.example.com", "", "foo.example.net", ["foo.example.net"], AuthResult.FAIL),
    ("example.com", "", "bounce.example.com", [], AuthResult.PASS),
    ("example.com", "aspf=s", "bounce.example.com", [], AuthResult.FAIL),
    ("example.com", "aspf=s", "example.com", [], AuthResult.PASS),
    ("example.com", "adkim=s", "bounce.example.com", [], AuthResult.PASS),
    ("example.com", "adkim=s", "", ["sub.example.com"], AuthResult.FAIL),
    ("example.com", "adkim=s", "", ["sub.example.com", "example.com"], AuthResult.PASS),
    ("example.com", "", "", ["com"], AuthResult.FAIL),
    ("example.com", "", "notexample.com", ["example.com.evil.test"], AuthResult.FAIL),
    ("example.com", "", "", [], AuthResult.FAIL),
    ("example.com", "psd=y", "sub.example.com", [], AuthResult.FAIL),
    ("sub.example.com", "psd=y", "sub.example.com", [], AuthResult.PASS),
    ("sub.example.com", "psd=y", "a.sub.example.com", [], AuthResult.PASS),
    ("sub.example.com", "psd=y", "other.example.com", [], AuthResult.FAIL),
]


@pytest.mark.parametrize(("author", "tags", "mail_from", "signers", "result"), ALIGNMENT)
def test_alignment(author, tags, mail_from, signers, result):
    found = find({"example.com": f"v=DMARC1; p=reject; {tags}"}, mail(f"x@{author}"), [spf(mail_from), dkim(*signers)])
    assert found.result is result
    assert bool(found.aligned) is (result is AuthResult.PASS)


def test_only_what_passed_counts():
    record = {"example.com": "v=DMARC1; p=reject"}
    for result in (SpfResult.FAIL, SpfResult.SOFTFAIL, SpfResult.NEUTRAL, SpfResult.NONE, SpfResult.PERMERROR):
        assert find(record, findings=[spf("example.com", result), NO_DKIM]).result is AuthResult.FAIL
    for word in (AuthResult.FAIL, AuthResult.POLICY, AuthResult.NEUTRAL, AuthResult.PERMERROR):
        assert find(record, findings=[spf(), dkim("example.com", result=word)]).result is AuthResult.FAIL


def test_what_is_aligned_is_named():
    found = find(
        {"example.com": "v=DMARC1; p=reject"},
        findings=[spf("b.example.com"), dkim("x.test", "example.com", "example.com")],
    )
    assert (found.spf, found.dkim) == (True, True)
    assert set(found.aligned) == {"example.com", "b.example.com"}


def test_questions_are_few_and_asked_at_once():
    dns = FakeDns(txt={"_dmarc.example.com": ["v=DMARC1; p=none"]})
    signers = dkim(*(f"s{i}.example.com" for i in range(40)), *(f"x{i}.other" for i in range(40)))
    find({}, mail("a@sub.example.com"), [spf("bounce.example.com"), signers], dns=dns)
    names = [name for name, _ in dns.asked]
    assert len(names) == len(set(names)) <= 8 * 7
    assert not any(".other" in name for name in names), "what cannot align is not asked for"


# --- trouble ---


@pytest.mark.parametrize("broken", ["_dmarc.sub.example.com", "_dmarc.example.com", "_dmarc.com"])
def test_dns_trouble_is_a_temperror_and_never_a_refusal(broken):
    found = find({"example.com": "v=DMARC1; p=reject"}, mail("x@sub.example.com"), fails=[broken])
    assert (found.result, found.policy) == (AuthResult.TEMPERROR, None)
    assert broken in found.problem
    verdict = Bench().judge("dmarc", findings=[found])
    assert verdict.action is Action.PROCEED
    again = Bench().judge("dmarc", {"temperror": "defer"}, findings=[found])
    assert (again.action, str(again.reply)[:9]) == (Action.DEFER, "451 4.7.0")


def test_trouble_above_what_decides_does_no_harm():
    records = {"example.com": "v=DMARC1; p=reject; psd=n"}
    assert find(records, mail("x@example.com"), fails=["_dmarc.com"]).result is AuthResult.FAIL
    same = find({"example.com": "v=DMARC1; p=reject"}, findings=[spf("example.com"), NO_DKIM], fails=["_dmarc.com"])
    assert same.result is AuthResult.PASS


def test_trouble_with_an_identifier_that_might_align_is_a_temperror():
    record = {"example.com": "v=DMARC1; p=reject"}
    late = find(record, findings=[spf("example.com", SpfResult.TEMPERROR), NO_DKIM])
    key = find(record, findings=[spf(), dkim("sub.example.com", result=AuthResult.TEMPERROR)])
    walk = find(record, findings=[spf("b.example.com"), NO_DKIM], fails=["_dmarc.b.example.com"])
    assert [f.result for f in (late, key, walk)] == [AuthResult.TEMPERROR] * 3
    foreign = find(
        record, findings=[spf("other.test", SpfResult.TEMPERROR), dkim("x.com", result=AuthResult.TEMPERROR)]
    )
    assert foreign.result is AuthResult.FAIL, "what cannot align is no excuse"


def test_whether_the_author_domain_exists_cannot_be_told():
    record = {"example.com": "v=DMARC1; p=none; np=reject"}
    found = find(record, mail("x@sub.example.com"), fails=["sub.example.com"])
    assert (found.result, found.policy) == (AuthResult.TEMPERROR, NONE)


def test_what_nobody_checked_is_no_failure():
    record = {"example.com": "v=DMARC1; p=reject"}
    assert find(record, findings=[]).result is AuthResult.TEMPERROR
    assert find(record, findings=[NO_DKIM]).problem == "SPF was not checked"
    signed = mail(more="DKIM-Signature: v=1; d=example.com\r\n")
    assert find(record, signed, [spf()]).problem == "DKIM signatures were not checked"
    assert find(record, findings=[spf()]).result is AuthResult.FAIL, "no signature, so there was nothing to check"


def test_a_record_that_cannot_be_used_means_no_dmarc():
    found = find({"example.com": "v=DMARC1; p=rejekt"})
    assert (found.result, found.policy, found.problem) == (AuthResult.NONE, None, "p is wrong")
    asked = find({"example.com": "v=DMARC1; p=rejekt; rua=mailto:d@example.com"})
    assert (asked.result, asked.policy) == (AuthResult.FAIL, NONE)


# --- RFC 7489 ---

OLD = {"rules": "rfc7489"}


def test_the_public_suffix_list_decides_by_the_old_rules():
    records = {"example.co.uk": "v=DMARC1; p=quarantine; sp=reject; np=none", "co.uk": "v=DMARC1; p=none; psd=y"}
    dns = FakeDns(txt={f"_dmarc.{name}": [text] for name, text in records.items()})
    found = find({}, mail("x@a.b.example.co.uk"), [spf("c.example.co.uk"), NO_DKIM], OLD, dns=dns)
    assert (found.result, found.policy, found.organizational) == (AuthResult.PASS, REJECT, "example.co.uk")
    assert sorted(name for name, _ in dns.asked) == ["_dmarc.a.b.example.co.uk", "_dmarc.example.co.uk"]
    nobody = find(records, mail("x@other.co.uk"), options=OLD)
    assert nobody.result is AuthResult.NONE, "there is no policy above the organisational domain"


def test_intermediate_records_mean_nothing_by_the_old_rules_and_two_records_end_it():
    between = {"b.example.com": "v=DMARC1; p=reject"}
    assert find(between, mail("x@a.b.example.com"), options=OLD).result is AuthResult.NONE
    two = {"sub.example.com": ["v=DMARC1; p=none", "v=DMARC1; p=none"], "example.com": "v=DMARC1; p=reject"}
    assert find(two, mail("x@sub.example.com"), options=OLD).result is AuthResult.NONE


def test_the_old_rules_want_p_and_know_no_t():
    assert find({"example.com": "v=DMARC1"}, options=OLD).result is AuthResult.NONE
    assert find({"example.com": "v=DMARC1; p=reject; t=y; psd=n; np=x"}, options=OLD).policy is REJECT


def test_pct_spares_the_same_messages_every_time():
    record = {"example.com": "v=DMARC1; p=reject; pct=30"}

    def policies() -> list[DmarcPolicy | None]:
        contents = [mail().replace(b"<1@", f"<{i}@".encode()) for i in range(200)]
        return [find(record, content, options=OLD).policy for content in contents]

    first = policies()
    assert first == policies()
    assert 30 <= first.count(REJECT) <= 90
    assert first.count(QUARANTINE) == 200 - first.count(REJECT)
    spared = {"example.com": "v=DMARC1; p=quarantine; pct=0"}
    found = find(spared, options=OLD)
    assert (found.policy, found.testing) == (NONE, True)
    assert find(spared).policy is QUARANTINE, "the new rules do not know pct"


# --- what is done ---


def failed(policy: DmarcPolicy = REJECT, **more: object) -> Dmarc:
    values = {"organizational": "example.com", "record_domain": "example.com", "published": "v=DMARC1; p=reject"}
    return Dmarc(AuthResult.FAIL, "sub.example.com", policy=policy, **{**values, **more})  # type: ignore[arg-type]


def test_the_published_policy_is_followed():
    refused = Bench().judge("dmarc", findings=[failed()])
    assert (refused.action, str(refused.reply)) == (
        Action.REJECT,
        "550 5.7.26 refused by the DMARC policy of sub.example.com",
    )
    assert "example.com" in refused.reason
    assert Bench().judge("dmarc", findings=[failed(QUARANTINE)]).action is Action.QUARANTINE
    assert not Bench().judge("dmarc", findings=[failed(NONE)]).decisive
    for result in (AuthResult.PASS, AuthResult.NONE, AuthResult.TEMPERROR):
        assert not Bench().judge("dmarc", findings=[Dmarc(result, "example.com", policy=REJECT)]).decisive


def test_the_operator_may_do_less():
    assert Bench().judge("dmarc", {"reject": "quarantine"}, findings=[failed()]).action is Action.QUARANTINE
    milder = Bench().judge("dmarc", {"reject": "none", "quarantine": "none"}, findings=[failed()])
    assert (milder.action, milder.reason) == (
        Action.PROCEED,
        "DMARC fails, local_policy: policy reject is handled as none here",
    )


def test_a_message_without_a_clear_author_is_set_aside_unless_told_otherwise():
    found = find({}, mail(fields=[]))
    assert (found.result, found.domain) == (AuthResult.PERMERROR, "")
    assert Bench().judge("dmarc", findings=[found]).action is Action.QUARANTINE
    assert not Bench().judge("dmarc", {"no_author": "none"}, findings=[found]).decisive
    refused = Bench().judge("dmarc", {"no_author": "reject"}, findings=[found])
    assert str(refused.reply).startswith("550 5.7.1 ")


def test_trusted_clients_are_not_checked():
    ours = make_session(trusted=True)
    dns = FakeDns(txt={"_dmarc.example.com": ["v=DMARC1; p=reject"]})
    found = Bench(dns=dns).find(
        "dmarc", finding=Dmarc, session=ours, message=make_message(mail()), findings=[DmarcRecords({})]
    )
    assert dns.asked == []
    assert not Bench().judge("dmarc", session=ours, findings=[found]).decisive
    assert not Bench().judge("dmarc", session=ours, findings=[failed()]).decisive


EXEMPT = [
    ({"exempt_domains": ["example.com"]}, "192.0.2.1", "local_policy"),
    ({"exempt_domains": ["SUB.example.com."]}, "192.0.2.1", "local_policy"),
    ({"exempt_domains": ["ample.com"]}, "192.0.2.1", None),
    ({"exempt_networks": ["192.0.2.0/24"]}, "192.0.2.1", "trusted_forwarder"),
    ({"exempt_networks": ["192.0.2.0/24", "2001:db8::/32"]}, "2001:db8::5", "trusted_forwarder"),
    ({"exempt_networks": ["198.51.100.0/24"]}, "192.0.2.1", None),
]


@pytest.mark.parametrize(("options", "client", "reason"), EXEMPT)
def test_exempt_mail_is_taken_and_the_record_says_why(options, client, reason):
    verdict = Bench().judge("dmarc", options, session=make_session(client), findings=[failed()])
    assert verdict.action is (Action.PROCEED if reason else Action.REJECT)
    assert (reason or "policy reject") in verdict.reason


@pytest.mark.parametrize("authors", ["a@partner.example, b@bank.example", "b@bank.example, a@partner.example"])
@pytest.mark.parametrize("policy", ["reject", "quarantine"])
def test_what_excuses_one_author_domain_does_not_excuse_another_beside_it(authors, policy):
    records = {"partner.example": "v=DMARC1; p=reject", "bank.example": f"v=DMARC1; p={policy}"}
    found = find(records, mail(authors))
    options = {"exempt_domains": ["partner.example"]}
    assert Bench().judge("dmarc", options, findings=[found]).action is Action.REJECT
    assert Bench().judge("dmarc", findings=[found, chain(("dmarc", "pass", found.domain))]).action is Action.REJECT
    both = {"exempt_domains": ["partner.example", "bank.example"]}
    assert not Bench().judge("dmarc", both, findings=[found]).decisive


def chain(*results: tuple[str, str, str], trusted: bool = True, result: AuthResult = AuthResult.PASS) -> Arc:
    return Arc(result, ("lists.test",), trusted, results)


ARCS = [
    (chain(("dmarc", "pass", "sub.example.com")), True),
    (chain(("dkim", "pass", "sub.example.com")), True),
    (chain(("dkim", "pass", "example.com")), True),
    (chain(("spf", "pass", "bounce.example.com")), True),
    (chain(("dmarc", "pass", "example.com")), False),
    (chain(("dkim", "pass", "lists.test")), False),
    (chain(("dkim", "pass", "notexample.com")), False),
    (chain(("dkim", "fail", "sub.example.com"), ("spf", "softfail", "example.com")), False),
    (chain(("iprev", "pass", "sub.example.com")), False),
    (chain(), False),
    (chain(("dmarc", "pass", "sub.example.com"), trusted=False), False),
    (chain(("dmarc", "pass", "sub.example.com"), result=AuthResult.FAIL), False),
    (None, False),
]


@pytest.mark.parametrize(("arc", "taken"), ARCS)
def test_a_trusted_chain_vouches_only_for_the_author_it_proved(arc, taken):
    findings = [failed(list_id="<list.lists.test>"), *([arc] if arc else [])]
    verdict = Bench().judge("dmarc", findings=findings)
    assert verdict.action is (Action.PROCEED if taken else Action.REJECT)
    if taken:
        assert "mailing_list: ARC sealed by lists.test" in verdict.reason
        assert Bench().judge("dmarc", {"trust_arc": False}, findings=findings).action is Action.REJECT
        direct = Bench().judge("dmarc", findings=[failed(), *findings[1:]])
        assert "trusted_forwarder: ARC" in direct.reason


def test_the_list_id_is_kept_as_evidence():
    listed = find({}, mail(more="List-Id: A list <list.lists.test>\r\n"))
    assert listed.list_id == "A list <list.lists.test>"
    assert len(find({}, mail(more="List-Id: " + "x" * 900 + "\r\n")).list_id) == 255


# --- Authentication-Results ---


def test_the_result_stands_in_authentication_results_with_the_policy_that_applied():
    found = find({"example.com": "v=DMARC1; p=reject; sp=quarantine"}, mail("x@sub.example.com"))
    line = authentication_results("mx.example.org", [found])
    assert line == "mx.example.org;\n\tdmarc=fail header.from=sub.example.com policy.dmarc=quarantine"
    passed = find({"example.com": "v=DMARC1; p=reject"}, findings=[spf("example.com"), NO_DKIM])
    assert authentication_results("mx", [passed]) == "mx;\n\tdmarc=pass header.from=example.com policy.dmarc=reject"
    none = find({}, mail("x@sub.example.com"))
    assert authentication_results("mx", [none]) == "mx;\n\tdmarc=none header.from=sub.example.com"


# --- options ---


@pytest.mark.parametrize(
    "options",
    [
        {"rules": "rfc7208"},
        {"reject": "discard"},
        {"quarantine": "reject"},
        {"exempt_domains": ["not a domain"]},
        {"exempt_domains": ["b\u00fccher.example"]},
        {"exempt_networks": ["192.0.2.1/24"]},
        {"temperror": "reject"},
        {"reports": {}},
        {"reports": {"org_name": "X", "email": "nobody"}},
        {"reports": {"org_name": "X", "email": "a@example.org\r\nBcc: b@example.org"}},
        {"reports": {"org_name": "X", "email": "a@example.org", "interval": "7h"}},
        {"reports": {"org_name": "X", "email": "a@example.org", "interval": "2d"}},
        {"reports": {"org_name": "X", "email": "a@example.org", "max_rows": 0}},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        DmarcOptions.model_validate(options)
