"""The dkim plugin on the bench: RFC examples, what others signed, and what keeps a signature from holding."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time

import dkim
import pytest
from pydantic import ValidationError

from gateway.sdk import PROCEED, AuthResult, Dkim, DkimSignature, Message, authentication_results
from gateway.sdk.testing import Bench, FakeDns, ManualClock, make_message
from plugins.dkim.keys import MAX_BITS, RECORD_OCTETS
from plugins.dkim.verify import DkimOptions, DkimPlugin, DkimPolicy
from tests.support.dkimkeys import canonical_body, ed25519, rsa, signed

NOW = 1_700_000_000
NAME = "sel._domainkey.sender.example"
MAIL = (
    b"From: Ann <ann@sender.example>\r\nTo: Ben <ben@example.org>\r\nSubject: A  test\r\n\tof folding\r\n"
    b"Date: Sun, 01 Nov 2026 10:00:00 +0000\r\n\r\nHello  there \r\n\tand here.\r\n\r\n\r\n"
)

# RFC 8463 appendix A.3, with the keys of A.2.
RFC8463 = b"""\
DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :
 subject : date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus
 Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==
DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=test; t=1528637909; h=from : to : subject :
 date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3
 DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz
 dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=
From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game.  Are you hungry yet?

Joe.
"""
RFC8463_KEYS = {
    "brisbane._domainkey.football.example.com": ["v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="],
    "test._domainkey.football.example.com": [
        "v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J1"
        "6JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/"
        "K4w3QIDAQAB"
    ],
}


def found(content: bytes | Message, dns: FakeDns | None = None, **options) -> Dkim:
    bench = Bench(dns=dns or FakeDns(txt={NAME: [rsa().record]}), clock=ManualClock(NOW))
    message = make_message(content) if isinstance(content, bytes) else content
    finding = bench.find(DkimPlugin, options, message=message)
    assert isinstance(finding, Dkim)
    return finding


def one(content: bytes | Message, dns: FakeDns | None = None, **options) -> DkimSignature:
    (signature,) = found(content, dns, **options).signatures
    return signature


def keyed(*records: str) -> FakeDns:
    return FakeDns(txt={NAME: list(records)})


def test_both_signatures_of_rfc_8463s_example_pass():
    finding = found(RFC8463, FakeDns(txt=RFC8463_KEYS))
    assert [(s.result, s.algorithm, s.key_bits) for s in finding.signatures] == [
        ("pass", "ed25519-sha256", 256),
        ("pass", "rsa-sha256", 1024),
    ]
    assert finding.passed == ("football.example.com",)
    assert authentication_results("mx.example.org", [finding]).split(";\n\t")[1] == (
        "dkim=pass header.d=football.example.com header.i=@football.example.com header.s=brisbane"
        ' header.a=ed25519-sha256 header.b="/gCrinpc"'
    )


def test_rfc_8463s_example_fails_when_the_game_was_won():
    finding = found(RFC8463.replace(b"lost", b"won"), FakeDns(txt=RFC8463_KEYS))
    assert [(s.result, s.problem) for s in finding.signatures] == [("fail", "body was changed")] * 2


@pytest.mark.parametrize(
    "form", ["relaxed/relaxed", "relaxed/simple", "simple/relaxed", "simple/simple", "relaxed", ""]
)
@pytest.mark.parametrize("key", [rsa, ed25519])
def test_what_openssl_signed_passes_in_every_canonical_form(form, key):
    signature = one(signed(MAIL, key(), c=form), keyed(key().record))
    assert (signature.result, signature.problem) == ("pass", "")


@pytest.mark.parametrize("header", [b"relaxed", b"simple"])
@pytest.mark.parametrize("body", [b"relaxed", b"simple"])
def test_what_dkimpy_signed_passes(header, body):
    signature = dkim.sign(MAIL, b"sel", b"sender.example", rsa().pem, canonicalize=(header, body))
    bench = Bench(dns=keyed(rsa().record), clock=ManualClock(time.time()))  # noqa: TID251 - dkimpy takes the real time
    finding = bench.find(DkimPlugin, message=make_message(signature + MAIL))
    assert isinstance(finding, Dkim)
    assert finding.passed == ("sender.example",)


@pytest.mark.parametrize("body", [b"", b"\r\n", b"\r\n\r\n \t\r\n", b"no end", b" \r\n x", b"x\r\n\r\n\r\n"])
@pytest.mark.parametrize("form", ["relaxed/relaxed", "relaxed/simple"])
def test_odd_ends_of_the_body_are_canonical_as_the_rfc_says(body, form):
    content = MAIL.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + body
    assert one(signed(content, ed25519(), c=form), keyed(ed25519().record)).result == "pass"


def test_a_message_without_a_body_may_be_signed():
    content = signed(MAIL.partition(b"\r\n\r\n")[0] + b"\r\n\r\n", rsa())
    assert one(content.removesuffix(b"\r\n")).result == "pass"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b"Hello", b"Hallo", "body was changed"),
        (b"and here.", b"and here.\r\nBuy now!", "body was changed"),
        (b"Subject: A", b"Subject: B", "signed fields were changed"),
        (b"From: Ann", b"From: Eve", "signed fields were changed"),
        (b"s=sel", b"s=sel; z=x", "signed fields were changed"),
    ],
)
def test_what_was_changed_fails(old, new, problem):
    signature = one(signed(MAIL, rsa()).replace(old, new))
    assert (signature.result, signature.problem) == ("fail", problem)


def test_what_relaxed_forgives_and_what_is_not_signed_may_change():
    content = signed(MAIL, rsa())
    content = content.replace(b"A  test\r\n\tof", b"A test of").replace(b"Hello  there ", b"Hello\t there")
    content = b"Received: from x by y;\r\n\tSun, 01 Nov 2026 10:00:00 +0000\r\nX-Spam: no\r\n" + content
    assert one(content).result == "pass"


def test_a_field_that_is_named_more_often_than_it_is_there_cannot_be_added():
    content = signed(MAIL, rsa(), h="from:to:subject:subject:date")
    assert one(content).result == "pass"
    assert one(b"Subject: other\r\n" + content).result == "fail"


def test_the_bottom_one_of_several_fields_is_signed_first():
    twice = MAIL.replace(b"To:", b"X-A: upper\r\nX-A: lower\r\nTo:")
    content = signed(twice, rsa(), h="from:x-a")
    assert one(content.replace(b"upper", b"UPPER")).result == "pass"
    assert one(content.replace(b"lower", b"LOWER")).result == "fail"


def test_a_signature_may_sign_other_signatures_and_never_itself():
    inner = signed(MAIL, rsa())
    outer = signed(inner, ed25519(), s="outer", h="from:dkim-signature:dkim-signature")
    dns = FakeDns(txt={NAME: [rsa().record], "outer._domainkey.sender.example": [ed25519().record]})
    assert [s.result for s in found(outer, dns).signatures] == ["pass", "pass"]


@pytest.mark.parametrize("extra", [b"From: eve@evil.example\r\n", b"FROM : eve@evil.example\r\n", b"from:\r\n"])
def test_two_from_fields_fail_even_when_both_are_signed(extra):
    signature = one(signed(extra + MAIL, rsa(), h="from:from:to:subject:date"))
    assert (signature.result, signature.problem) == ("fail", "several From fields")
    assert one(extra + signed(MAIL, rsa())).result == "fail"


def test_no_from_field_fails():
    assert one(signed(MAIL.replace(b"From:", b"X-From:"), rsa())).problem == "no From field"


def test_a_header_section_that_does_not_end_where_readers_may_think_fails():
    head = MAIL.partition(b"\r\n\r\n")[0]
    broken = signed(MAIL, rsa()).replace(head, head + b"\r\nthis is no field\r\nFrom: eve@evil.example")
    signature = one(broken)
    assert (signature.result, signature.problem) == ("fail", "header section does not end in an empty line")


@pytest.mark.parametrize(
    ("tags", "result", "problem"),
    [
        ({"v": "2"}, "permerror", "v= is not 1"),
        *(({tag: ""}, "permerror", f"{tag}= is missing") for tag in ("v", "a", "d", "s", "bh")),
        ({"a": "rsa-md5"}, "permerror", "a= is unknown"),
        ({"c": "strict/simple"}, "permerror", "c= is unknown"),
        ({"h": "to:subject"}, "permerror", "From is not signed"),
        ({"h": "from:to:"}, "permerror", "h= is no list of field names"),
        ({"h": "from:" + ":".join(["x"] * 1000)}, "permerror", "h= is no list of field names"),
        ({"i": "ann@other.example"}, "permerror", "i= is not within d="),
        ({"i": "ann@badsender.example"}, "permerror", "i= is not within d="),
        ({"i": "sender.example"}, "permerror", "i= is not within d="),
        ({"i": "ann@news.sender.example"}, "pass", ""),
        ({"i": "@SENDER.example"}, "pass", ""),
        ({"d": "sender..example"}, "permerror", "d= is no domain name"),
        ({"d": "sender.example/x"}, "permerror", "d= is no domain name"),
        ({"d": "a." * 130 + "example"}, "permerror", "d= is no domain name"),
        ({"s": "a b"}, "permerror", "s= is no domain name"),
        ({"d": "Sender.EXAMPLE"}, "pass", ""),
        ({"q": "dns/txt"}, "pass", ""),
        ({"q": "dns/new:dns/txt"}, "pass", ""),
        ({"q": "finger"}, "permerror", "q= knows no dns/txt"),
        ({"bh": "AAAA"}, "permerror", "bh= is not SHA-256"),
        ({"bh": "A"}, "permerror", "bh= is not base64"),
        ({"b": "!!!!"}, "permerror", "b= is not base64"),
        ({"b": "AAAA"}, "fail", "signed fields were changed"),
        ({"t": "soon"}, "permerror", "t= is no time"),
        ({"t": str(NOW + 200)}, "pass", ""),
        ({"t": str(NOW + 400)}, "fail", "signature was made in the future"),
        ({"x": str(NOW - 200)}, "pass", ""),
        ({"x": str(NOW - 400)}, "fail", "signature has expired"),
        ({"t": str(NOW - 10), "x": str(NOW - 20)}, "permerror", "x= is before t="),
        ({"l": "5"}, "policy", "l= leaves the body open"),
        ({"l": "9999"}, "fail", "body is shorter than l="),
        ({"l": "-1"}, "permerror", "l= is no number"),
        ({"n": "a note; x_9=unknown"}, "pass", ""),
        ({"V": "x"}, "pass", ""),
        ({"9": "x"}, "permerror", "malformed: a tag without a name or without ="),
        ({"z": "x" * 40_000}, "permerror", "malformed: longer than 32768 octets"),
    ],
)
def test_the_rules_of_the_signature_field(tags, result, problem):
    signature = one(signed(MAIL, rsa(), **tags))
    assert (signature.result, signature.problem) == (result, problem)


def test_a_tag_that_stands_twice_is_a_permerror():
    content = signed(MAIL, rsa()).replace(b"v=1;", b"v=1; d=other.example;", 1)
    assert one(content).problem == "malformed: a tag stands twice"


def test_l_leaves_the_body_open_and_does_not_count_even_when_it_covers_all_of_it():
    content = signed(MAIL, rsa(), l="5")
    assert one(content + b"added\r\n").result == "policy"
    assert one(signed(MAIL, rsa(), l=str(len("Hello there\r\n and here.\r\n")))).result == "policy"
    assert one(content.replace(b"Hello", b"HELLO")).result == "fail"


def test_rsa_sha1_is_not_looked_at():
    dns = keyed(rsa().record)
    signature = one(signed(MAIL, rsa(), digest="sha1", a="rsa-sha1"), dns)
    assert (signature.result, signature.problem) == ("policy", "rsa-sha1 does not count any more")
    assert dns.asked == []


@pytest.mark.parametrize("bits", [512, 768, 1023])
def test_an_rsa_key_under_1024_bits_does_not_count(bits):
    signature = one(signed(MAIL, rsa(bits)), keyed(rsa(bits).record))
    assert (signature.result, signature.problem, signature.key_bits) == ("policy", f"key has {bits} bits", bits)


def test_min_bits_may_be_raised():
    assert one(signed(MAIL, rsa()), min_bits=2048).result == "policy"
    assert one(signed(MAIL, rsa(2048)), keyed(rsa(2048).record), min_bits=2048).result == "pass"


PUBLIC = rsa().public


@pytest.mark.parametrize(
    ("records", "result", "problem"),
    [
        ([f"p={PUBLIC}"], "pass", ""),
        ([f"v=DKIM1; p={PUBLIC[:40]} {PUBLIC[40:]};"], "pass", ""),
        ([f"v=DKIM1; h=sha1:sha256; s=email; n=x; g=*; p={PUBLIC}"], "pass", ""),
        ([f"v=DKIM1; s=other : *; p={PUBLIC}"], "pass", ""),
        ([f"v=DKIM2; p={PUBLIC}"], "permerror", "record is no DKIM1 key"),
        ([f"p={PUBLIC}; v=DKIM1"], "permerror", "record is no DKIM1 key"),
        ([f"v=DKIM1; k=ed25519; p={PUBLIC}"], "permerror", "an Ed25519 key has 32 octets"),
        ([f"v=DKIM1; k=dsa; p={PUBLIC}"], "permerror", "key is of an unknown type"),
        ([f"v=DKIM1; h=sha1; p={PUBLIC}"], "permerror", "key does not allow sha256"),
        ([f"v=DKIM1; s=tlsrpt; p={PUBLIC}"], "permerror", "key is not for mail"),
        (["v=DKIM1; p="], "permerror", "key is revoked"),
        (["v=DKIM1; k=rsa"], "permerror", "record has no key"),
        (["v=DKIM1; p=@@@"], "permerror", "key is not base64"),
        (
            ["v=DKIM1; p=" + base64.b64encode(b"\x30\x05\x05\x01\x00\x02\x00").decode()],
            "permerror",
            "key is not an RSA public key",
        ),
        (["v=spf1 -all"], "permerror", "record is no DKIM1 key"),
        (["a text"], "permerror", "key record is malformed: a tag without a name or without ="),
        ([f"v=DKIM1; p={PUBLIC}; n=" + "x" * RECORD_OCTETS], "permerror", "key record is longer than 4096 octets"),
        ([ed25519().record], "permerror", "key is of another type than a= says"),
        ([rsa(1024, 1).record], "fail", "signed fields were changed"),
        (["v=spf1 -all", rsa(1024, 1).record, rsa().record], "pass", ""),
        ([rsa(1024, 1).record, "v=DKIM1; p="], "fail", "signed fields were changed"),
    ],
)
def test_the_rules_of_the_key_record(records, result, problem):
    signature = one(signed(MAIL, rsa()), keyed(*records))
    assert (signature.result, signature.problem) == (result, problem)


def test_only_so_many_of_several_key_records_are_tried():
    wrong = ["v=DKIM1; p="] * 3 + [rsa(1024, 1).record]
    assert one(signed(MAIL, rsa()), keyed(*wrong, rsa().record)).result == "fail"


def der(tag: int, octets: bytes) -> bytes:
    size = len(octets).to_bytes(3, "big")
    return bytes([tag, 0x83]) + size + octets


@pytest.mark.parametrize(
    ("modulus", "exponent", "problem"),
    [
        ((1 << MAX_BITS + 8) + 1, 65537, f"key has more than {MAX_BITS} bits"),
        ((1 << 1024) + 2, 65537, "key is not a sound RSA public key"),
        ((1 << 1024) + 1, 1, "key is not a sound RSA public key"),
        ((1 << 1024) + 1, (1 << 900) + 1, "key is not a sound RSA public key"),
        (15, 3, "key is not a sound RSA public key"),
        (0, 3, "key is not a sound RSA public key"),
    ],
)
def test_keys_that_would_make_us_compute_or_prove_nothing_are_refused(modulus, exponent, problem):
    numbers = [der(2, b"\0" + n.to_bytes((n.bit_length() + 7) // 8 or 1, "big")) for n in (modulus, exponent)]
    record = "p=" + base64.b64encode(der(0x30, b"".join(numbers))).decode()
    signature = one(signed(MAIL, rsa()), keyed(record))
    assert (signature.result, signature.problem) == ("permerror", problem)


def test_an_rsa_signature_of_another_length_or_beyond_the_modulus_is_none():
    content = signed(MAIL, rsa())
    value = base64.b64decode(content.partition(b"\tb=")[2].partition(b"\r\n")[0])
    from plugins.dkim.keys import parse_key

    modulus = parse_key(rsa().record.encode()).modulus
    beyond = int.from_bytes(value, "big") + modulus
    for other in (b"\0" + value, beyond.to_bytes(129, "big"), value + b"\0", value[1:]):
        changed = content.replace(base64.b64encode(value), base64.b64encode(other))
        assert one(changed).result == "fail"


def test_a_key_in_test_mode_is_marked():
    dns = keyed(f"v=DKIM1; t=y; p={PUBLIC}")
    good, bad = one(signed(MAIL, rsa()), dns), one(signed(MAIL, rsa(), b="AAAA"), dns)
    assert (good.result, good.testing) == ("pass", True)
    assert (bad.result, bad.testing) == ("fail", True)


def test_an_exact_key_allows_no_identity_below_its_domain():
    dns = keyed(f"v=DKIM1; t=s:y; p={PUBLIC}")
    assert one(signed(MAIL, rsa(), i="ann@sender.example"), dns).result == "pass"
    below = one(signed(MAIL, rsa(), i="ann@news.sender.example"), dns)
    assert (below.result, below.problem) == ("permerror", "key allows i= in d= itself only")


def test_a_key_that_is_not_there_is_a_permerror_and_dns_trouble_a_temperror():
    content = signed(MAIL, rsa())
    assert one(content, FakeDns()).result == "permerror"
    assert one(content, FakeDns(a={NAME: ["192.0.2.1"]})).result == "permerror"
    signature = one(content, FakeDns(fails=[NAME]))
    assert (signature.result, signature.problem) == ("temperror", "DNS: SERVFAIL")


class Stuck(FakeDns):
    async def lookup(self, name, rdtype):
        if name == NAME:
            await asyncio.Event().wait()
        return await super().lookup(name, rdtype)


def test_a_key_that_takes_too_long_is_a_temperror_and_others_still_count():
    content = signed(signed(MAIL, rsa()), ed25519(), s="other")
    dns = Stuck(txt={"other._domainkey.sender.example": [ed25519().record]})
    finding = found(content, dns, timeout="30ms")
    assert [(s.result, s.problem) for s in finding.signatures] == [
        ("pass", ""),
        ("temperror", "key was not had in time"),
    ]


def test_each_key_is_asked_for_once_and_nothing_else_is():
    dns = keyed(rsa().record)
    found(signed(signed(MAIL, rsa()), rsa()), dns)
    assert dns.asked == [(NAME, "TXT")]
    dns = FakeDns()
    assert found(MAIL, dns) == Dkim()
    assert dns.asked == []


def test_at_most_so_many_signatures_are_looked_at_and_the_rest_are_counted():
    content = MAIL
    for number in range(4):
        content = b"DKIM-Signature: v=1; d=x%d.example; s=sel\r\n" % number + content
    dns = keyed(rsa().record)
    finding = found(signed(content, rsa()), dns, signatures=2)
    assert ([s.domain for s in finding.signatures], finding.unchecked) == (["sender.example", "x3.example"], 3)
    assert found(content, signatures=4).unchecked == 0


def test_a_message_over_max_size_is_neutral():
    dns = keyed(rsa().record)
    signature = one(signed(MAIL, rsa()), dns, max_size=len(MAIL))
    assert (signature.result, signature.problem) == ("neutral", "message is too large to be checked")
    assert dns.asked == []


def test_signatures_that_begin_alike_are_told_apart():
    value = "AAAABBBBCCCC" + "A" * 156
    content = signed(signed(MAIL, rsa(), b=value), rsa(), b=value.replace("CCCC", "DDDD"))
    shorts = [s.short for s in found(content).signatures]
    assert len(set(shorts)) == 2
    assert one(signed(MAIL, rsa(), b=value)).short == "AAAABBBB"


def test_names_with_u_labels_are_asked_for_and_reported_as_a_labels():
    content = signed(MAIL, rsa(), d="bücher.example", i="ann@bücher.example")
    dns = FakeDns(txt={"sel._domainkey.xn--bcher-kva.example": [rsa().record]})
    signature = one(content, dns)
    assert (signature.result, signature.domain) == ("pass", "xn--bcher-kva.example")
    assert signature.identity == "ann@xn--bcher-kva.example"


class Blocks:
    """Content that comes in blocks of a few octets."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._block = data, size

    @property
    def size(self) -> int:
        return len(self._data)

    @property
    def eight_bit(self) -> bool:
        return False

    async def blocks(self):
        for at in range(0, len(self._data), self._block):
            yield self._data[at : at + self._block]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("form", ["relaxed/relaxed", "simple/simple"])
def test_it_does_not_matter_where_blocks_end(block, form):
    content = signed(MAIL, rsa(), c=form)
    assert one(Message(make_message(content).fields, Blocks(content, block))).result == "pass"


def test_a_large_message_is_hashed_in_a_thread_and_passes():
    content = signed(MAIL + b"A line of a large message, and \t white  space. \r\n" * 40_000, rsa())
    assert one(content).result == "pass"
    assert one(content.replace(b"and \t white", b"and\t black", 1)).result == "fail"


@pytest.mark.parametrize(
    "body",
    [
        b" " * (4 << 20),
        b" \t" * (2 << 20) + b"x\r\n",
        b"\r\n" * (2 << 20) + b"x",
        b"\r\n" * (2 << 20),
        b" \r\n" * (1 << 20),
        (b" " * 1000 + b"x") * 4000,
    ],
    ids=["spaces", "spaces-and-tabs", "empty-lines-inside", "empty-lines-at-the-end", "blank-lines", "long-runs"],
)
def test_white_space_does_not_make_the_body_slow(body):
    content = MAIL.replace(b"Hello", body + b"Hello") + body
    tag = b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=sender.example; s=sel; h=from; bh=%s; b=AAAA\r\n"
    content = tag % base64.b64encode(bytes(32)) + content
    began = time.process_time()
    assert one(content).result == "fail"
    # 8 MiB take a tenth of a second; with a regular expression that looks again and again it would be days.
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "field",
    [
        b"Subject: a" + b"\r\n \t" * 200_000 + b"b\r\n",
        b"Subject: " + b" " * 1_000_000 + b"x\r\n",
        b"X-A: 1\r\n" * 100_000,
    ],
    ids=["folds", "spaces", "fields"],
)
def test_white_space_does_not_make_the_header_section_slow(field):
    content = field + MAIL
    names = b"from:subject" + b":x-a" * 900
    tag = b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=sender.example; s=sel; h=%s; bh=%s; b=%s\r\n"
    body = hashlib.sha256(canonical_body(MAIL.partition(b"\r\n\r\n")[2], "relaxed"))
    content = tag % (names, base64.b64encode(body.digest()), b"A" * 172) + content
    began = time.process_time()
    assert one(content).problem == "signed fields were changed"
    assert time.process_time() - began < 5


def judge(*signatures: DkimSignature, **options):
    return Bench().judge(DkimPolicy, options, findings=[Dkim(signatures)])


FAILED = DkimSignature(AuthResult.FAIL, "sender.example", problem="body was changed")
PASSED = DkimSignature(AuthResult.PASS, "other.example")
UNKNOWN = DkimSignature(AuthResult.TEMPERROR, "sender.example", problem="DNS: SERVFAIL")


def test_by_default_nothing_is_decided():
    for signatures in ((), (FAILED,), (UNKNOWN,), (PASSED,)):
        assert judge(*signatures) == PROCEED


def test_a_failed_signature_refuses_only_when_asked_for_and_none_passes():
    verdict = judge(FAILED, reject_fail=True)
    assert str(verdict.reply) == "550 5.7.20 no DKIM signature of this message holds"
    assert verdict.reason == "sender.example: body was changed"
    assert judge(FAILED, PASSED, reject_fail=True) == PROCEED
    assert judge(reject_fail=True) == PROCEED
    testing = DkimSignature(AuthResult.FAIL, "sender.example", testing=True)
    assert judge(testing, reject_fail=True) == PROCEED


def test_a_missing_signature_refuses_only_when_asked_for():
    assert str(judge(reject_none=True).reply).startswith("550 5.7.20 ")


def test_dns_trouble_never_refuses_for_good():
    assert judge(UNKNOWN, reject_fail=True, reject_none=True) == PROCEED
    assert judge(FAILED, UNKNOWN, reject_fail=True) == PROCEED
    assert str(judge(FAILED, UNKNOWN, reject_fail=True, defer_temperror=True).reply).startswith("451 4.7.20 ")
    assert judge(PASSED, UNKNOWN, defer_temperror=True) == PROCEED


@pytest.mark.parametrize(
    "options", [{"signatures": 0}, {"min_bits": 512}, {"max_size": 0}, {"timeout": 5}, {"skip": 1}]
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        DkimOptions.model_validate(options)
