"""Whatever stands in From or in a DMARC record: an answer, in linear time, and never an exception."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.sdk import AuthResult, Dkim, Dmarc, DmarcPolicy, Spf, SpfResult
from gateway.sdk.testing import Bench, FakeDns, make_message
from plugins.dmarc.author import FIELD_CHARACTERS, author_domains, is_domain
from plugins.dmarc.discovery import DmarcRecords, walk_names
from plugins.dmarc.options import Rules
from plugins.dmarc.record import RECORD_OCTETS, URIS, parse_record
from plugins.dmarc.tally import Row

PIECES = [
    "a@example.com",
    "<",
    ">",
    '"',
    "(",
    ")",
    "@",
    ",",
    ";",
    ":",
    "\\",
    "[",
    "]",
    ".",
    " ",
    "\t",
    "x",
    "\u00fc",
    "=?",
]
HOSTILE_FROM = st.one_of(st.text(max_size=200), st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
TAGS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "p=reject",
                "p=",
                "sp=none",
                "np=x",
                "t=y",
                "psd=n",
                "adkim=s",
                "pct=50",
                "pct=-1",
                "rua=mailto:a@b.c",
                "=",
            ]
        ),
        st.text(max_size=30),
    ),
    max_size=20,
).map(lambda tags: ("v=DMARC1; " + ";".join(tags)).encode("utf-8", "replace"))
SPF = Spf(SpfResult.PASS, "example.com", SpfResult.NONE, "client.example")


@given(st.lists(HOSTILE_FROM, max_size=4))
@example(["a@example.com"])
@example(['"' * 100])
def test_any_from_gives_domains_or_a_problem(fields):
    authors = author_domains(fields)
    assert authors.domains or authors.problem
    assert all(is_domain(domain) and domain == domain.lower() for domain in authors.domains)


@given(
    st.one_of(TAGS, st.binary(max_size=300), st.binary(max_size=300).map(lambda b: b"v=DMARC1;" + b)),
    st.sampled_from(Rules),
)
def test_any_record_is_read_or_is_none(octets, rules):
    record = parse_record(octets, rules)
    if record is not None:
        assert len(record.rua) <= URIS
        assert 0 <= record.pct <= 100
        assert all(isinstance(policy, DmarcPolicy) for policy in (record.p, record.sp, record.np))
        assert all("\r" not in d.address and "\n" not in d.address for d in record.rua)
        again = parse_record(record.text.encode("ascii", "replace"), rules)
        assert again is not None
        assert (again.p, again.sp, again.np) == (record.p, record.sp, record.np), "the finding's text says the same"


@given(
    HOSTILE_FROM,
    TAGS,
    st.sampled_from(["rfc9989", "rfc7489"]),
    st.sampled_from([b"Message-ID: <1@x>", b"From: b@two.test"]),
)
def test_any_message_and_record_give_a_finding(sender, record, rules, more):
    content = b"From: " + sender.encode("utf-8", "replace").replace(b"\r", b"").replace(b"\n", b"\r\n ")
    message = make_message(content + b"\r\n" + more + b"\r\n\r\nHello.\r\n")
    dns = FakeDns(txt={"_dmarc.example.com": [record], "_dmarc.com": [record]})
    found = Bench(dns=dns).find(
        "dmarc", {"rules": rules}, finding=Dmarc, message=message, findings=[SPF, Dkim(()), DmarcRecords({})]
    )
    assert isinstance(found, Dmarc)
    verdict = Bench().judge("dmarc", findings=[found])
    assert not verdict.decisive or found.result in (AuthResult.FAIL, AuthResult.PERMERROR)
    for result in found.authentication():
        assert "\n" not in result.render()


@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=120).map(".".join))
def test_any_walk_is_short(domain):
    names = walk_names(domain)
    assert 1 <= len(names) <= 8
    assert names[0] == domain
    assert all(domain.endswith(name) for name in names)


@given(st.builds(Row, *[st.text(max_size=300)] * 2, st.booleans(), st.booleans(), *[st.text(max_size=300)] * 6))
def test_any_row_survives_the_state(row):
    member = row.to_member()
    assert member.isascii()
    assert Row.from_member(member) == row


SLOW_FROM = [
    "(" * FIELD_CHARACTERS,
    "()" * (FIELD_CHARACTERS // 2),
    '"' + "\\" * (FIELD_CHARACTERS - 2),
    "[" * FIELD_CHARACTERS,
    " " * (FIELD_CHARACTERS - 4) + "a@b.",
    "a@" + " ." * (FIELD_CHARACTERS // 2 - 2),
    "a@b.c" + " " * (FIELD_CHARACTERS - 6) + "x",
    "," * FIELD_CHARACTERS,
    "a@b.example," * (FIELD_CHARACTERS // 12),
    "<@" + "a," * (FIELD_CHARACTERS // 2 - 4) + ":b@c>",
    "a@" + "\u00fc" * (FIELD_CHARACTERS - 2),
]


@pytest.mark.parametrize("value", SLOW_FROM)
def test_a_from_field_that_is_meant_to_be_slow_is_not(value):
    started = time.process_time()
    for _ in range(5):
        author_domains([value])
    assert time.process_time() - started < 2.0, "some milliseconds each are usual"


@pytest.mark.parametrize("filler", [b";", b"=", b"p=reject;", b" ", b"rua=mailto:a@b.c,", b"a=" + b"%" * 50, b","])
def test_a_record_that_is_meant_to_be_slow_is_not(filler):
    text = (b"v=DMARC1;rua=" + filler * RECORD_OCTETS)[:RECORD_OCTETS]
    started = time.process_time()
    for _ in range(20):
        assert parse_record(text) is not None
    assert time.process_time() - started < 2.0
