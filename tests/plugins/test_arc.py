"""The plugins arc and arc-seal on the bench; dkimpy and a signer of the tests' own are the other opinion."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import dkim
import pytest
from pydantic import ValidationError

from gateway.sdk import (
    PROCEED,
    AddHeader,
    Arc,
    AuthResult,
    Dkim,
    DkimSignature,
    Dmarc,
    ReverseName,
    Spf,
    SpfResult,
    authentication_results,
)
from gateway.sdk.testing import Bench, FakeDns, ManualClock, make_message, make_session
from plugins.dkim.arc import ArcOptions, ArcPlugin, ArcPolicy
from plugins.dkim.results import reported
from plugins.dkim.seal import ArcSealed, ArcSealOptions, ArcSealPlugin, ArcSealPolicy
from tests.support.dkimkeys import KeyPair, arc_set, ed25519, relaxed_header, rsa, split

NOW = 1_700_000_000
MAIL = (
    b"From: Ann <ann@sender.example>\r\nTo: Ben <ben@example.org>\r\nSubject: A  test\r\n\tof folding\r\n"
    b"BIMI-Selector: v=BIMI1; s=brand\r\nDate: Sun, 01 Nov 2026 10:00:00 +0000\r\n\r\nHello  there \r\n\r\n\r\n"
)
AAR = "i={i}; {d}; spf=pass smtp.mailfrom=ann@sender.example; dkim=pass header.d=sender.example; dmarc=pass"


def hop(
    content: bytes, number: int, domain: str, *, cv: str | None = None, aar: str = AAR, ams=None, seal=None
) -> bytes:
    """The message with one more ARC set on top, made by OpenSSL."""
    return arc_set(content, number, domain, rsa(), results=aar, cv=cv, ams=ams, seal=seal)


def chained(*domains: str, content: bytes = MAIL) -> bytes:
    for number, domain in enumerate(domains, 1):
        content = hop(content, number, domain)
    return content


def names(*domains: str) -> dict[str, list[str]]:
    return {f"sel._domainkey.{domain}": [rsa().record] for domain in domains}


ALL = ("one.example", "two.example", "three.example", *(f"d{i}.example" for i in range(1, 60)))


def found(content: bytes, dns: FakeDns | None = None, **options) -> Arc:
    bench = Bench(dns=dns or FakeDns(txt=names(*ALL)), clock=ManualClock(NOW))
    finding = bench.find(ArcPlugin, options, message=make_message(content))
    assert isinstance(finding, Arc)
    return finding


def said(content: bytes, **options) -> tuple[str, str]:
    finding = found(content, **options)
    return finding.result.value, finding.problem


def test_a_message_without_arc_fields_has_no_chain_and_costs_nothing():
    dns = FakeDns()
    assert found(MAIL, dns) == Arc(AuthResult.NONE)
    assert dns.asked == []


def test_a_chain_that_holds_passes_and_names_its_sealers_oldest_first():
    finding = found(chained("one.example", "two.example", "three.example"))
    assert finding == Arc(AuthResult.PASS, ("one.example", "two.example", "three.example"))
    assert authentication_results("mx.test", [finding]) == "mx.test;\n\tarc=pass header.oldest-pass=0"


def test_the_keys_are_asked_for_at_once_and_each_one_once():
    dns = FakeDns(txt=names(*ALL))
    found(chained("one.example", "two.example", "one.example"), dns)
    assert sorted(dns.asked) == [("sel._domainkey.one.example", "TXT"), ("sel._domainkey.two.example", "TXT")]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b"Hello", b"Hallo", "message signature 2: body was changed"),
        (b"Subject: A", b"Subject: B", "message signature 2: signed fields were changed"),
        (b"i=1; one.example; spf=pass", b"i=1; one.example; spf=fail", "seal 2: signed fields were changed"),
        (b"i=2; two.example; spf=pass", b"i=2; two.example; spf=fail", "seal 2: signed fields were changed"),
    ],
)
def test_a_change_breaks_the_chain(old, new, problem):
    assert said(chained("one.example", "two.example").replace(old, new)) == ("fail", problem)


def test_a_forged_older_set_breaks_the_chain_under_a_good_newer_one():
    forged = hop(MAIL, 1, "one.example").replace(b"b=", b"b=AAAA", 1)
    finding = found(hop(forged, 2, "two.example"))
    assert finding.problem == "seal 1: signed fields were changed"


def test_an_old_message_signature_may_be_broken_by_the_next_hop_and_oldest_pass_says_so():
    changed = hop(MAIL, 1, "one.example").replace(b"Hello", b"[list] Hello")
    finding = found(hop(hop(changed, 2, "two.example"), 3, "three.example"))
    assert (finding.result, finding.oldest_pass) == ("pass", 2)
    assert "header.oldest-pass=2" in authentication_results("mx.test", [finding])


def test_sets_are_put_in_order_by_instance_wherever_their_fields_stand():
    content = chained("one.example", "two.example")
    fields, body = split(content)
    arc = [field for field in fields if field.startswith(b"ARC-")]
    rest = [field for field in fields if not field.startswith(b"ARC-")]
    mixed = b"".join([*rest[:2], *sorted(arc), *rest[2:]]) + b"\r\n" + body
    assert said(mixed) == ("pass", "")


def without(content: bytes, start: bytes) -> bytes:
    fields, body = split(content)
    return b"".join(field for field in fields if not field.startswith(start)) + b"\r\n" + body


GOOD = chained("one.example", "two.example")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (without(GOOD, b"ARC-Seal: i=1"), "sets are missing or incomplete"),
        (without(GOOD, b"ARC-Seal"), "sets are missing or incomplete"),
        (without(GOOD, b"ARC-Authentication-Results: i=2"), "sets are missing or incomplete"),
        (without(GOOD, b"ARC-Message-Signature"), "sets are missing or incomplete"),
        (hop(MAIL, 2, "two.example"), "sets are missing or incomplete"),
        (
            b"ARC-Authentication-Results: i=2; x; none\r\n" + GOOD,
            "instance 2 has two arc-authentication-results fields",
        ),
        (b"ARC-Authentication-Results: x; none\r\n" + GOOD, "arc-authentication-results has no instance from 1 to 50"),
        (b"ARC-Seal: i=0; a=b\r\n" + GOOD, "arc-seal has no instance from 1 to 50"),
        (b"ARC-Seal: i=51; a=b\r\n" + GOOD, "arc-seal has no instance from 1 to 50"),
        (b"ARC-Seal: nonsense\r\n" + GOOD, "arc-seal is malformed: a tag without a name or without ="),
        (b"ARC-Seal: i=3; " + b"x" * 70_000 + b"\r\n" + GOOD, "arc-seal is longer than 65536 octets"),
        (b"ARC-Seal: i=3\r\n" * 51 + GOOD, "more than 50 sets"),
        (hop(MAIL, 1, "one.example", cv="pass"), "instance 1: cv= is not what it must be"),
        (hop(hop(MAIL, 1, "one.example"), 2, "two.example", cv="none"), "instance 2: cv= is not what it must be"),
        (
            hop(hop(MAIL, 1, "one.example"), 2, "two.example", cv="fail"),
            "the newest seal says that the chain failed before",
        ),
        (hop(MAIL, 1, "one.example", seal={"h": "from"}), "instance 1: a seal has no h="),
        (hop(MAIL, 1, "one.example", seal={"d": "a b"}), "instance 1: d= is no domain name"),
        (hop(MAIL, 1, "one.example", seal={"s": ""}), "instance 1: s= is missing"),
        (hop(MAIL, 1, "one.example", ams={"h": "from:arc-seal"}), "instance 1: h= names ARC-Seal"),
        (hop(MAIL, 1, "one.example", ams={"h": "to"}), "instance 1: From is not signed"),
        (hop(MAIL, 1, "one.example", ams={"l": "3"}), "message signature 1: l= leaves the body open"),
        (hop(MAIL, 1, "one.example", ams={"x": str(NOW - 1000)}), "instance 1: signature has expired"),
    ],
)
def test_what_is_no_chain_fails(content, problem):
    assert said(content) == ("fail", problem)


def test_message_signatures_are_read_in_either_canonical_form():
    for form in ("relaxed/relaxed", "simple/simple", "relaxed/simple", ""):
        assert said(hop(MAIL, 1, "one.example", ams={"c": form})) == ("pass", "")


def test_dns_trouble_is_a_temperror_and_a_missing_key_a_failure():
    key = "sel._domainkey.one.example"
    assert found(GOOD, FakeDns(txt=names("two.example"), fails=[key])).result is AuthResult.TEMPERROR
    assert found(GOOD, FakeDns(txt=names("two.example"))).problem == "seal 1: no key in the DNS"


def test_a_chain_that_needs_more_keys_than_lookups_is_neutral_and_asks_for_none():
    content = chained(*(f"d{i}.example" for i in range(1, 10)))
    dns = FakeDns(txt=names(*ALL))
    finding = found(content, dns)
    assert (finding.result, finding.problem) == ("neutral", "chain needs 9 keys")
    assert dns.asked == []
    assert found(content, lookups=9).result is AuthResult.PASS


def test_keys_of_older_message_signatures_are_asked_for_only_as_far_as_the_limit_goes():
    content = MAIL
    for number in (1, 2, 3):
        content = hop(content, number, f"d{number}.example", ams={"d": f"d{number + 10}.example"})
    dns = FakeDns(txt=names(*ALL))
    assert found(content, dns, lookups=5).oldest_pass == 2
    assert len(dns.asked) == 5
    assert found(content, lookups=6).oldest_pass == 0


def test_fifty_sets_are_the_most():
    content = MAIL
    for number in range(1, 51):
        content = hop(content, number, "one.example")
    assert said(content) == ("pass", "")
    assert said(hop(content, 51, "one.example"))[0] == "fail"


def test_a_message_over_max_size_is_neutral():
    assert found(GOOD, max_size=10).result is AuthResult.NEUTRAL


def test_short_keys_do_not_count():
    dns = FakeDns(txt={"sel._domainkey.one.example": [rsa(768).record]})
    assert found(hop(MAIL, 1, "one.example"), dns).result is AuthResult.FAIL
    assert said(GOOD, min_bits=2048) == ("fail", "message signature 2: key has 1024 bits")


RESULTS = (("spf", "pass", "sender.example"), ("dkim", "pass", "sender.example"), ("dmarc", "pass", ""))


@pytest.mark.parametrize(
    ("trusted", "believed"),
    [
        ((), None),
        (("one.example",), None),
        (("two.example",), None),
        (("three.example",), 3),
        (("three.example", "one.example"), 3),
        (("two.example", "Three.Example"), 2),
        (("one.example", "two.example", "three.example"), 1),
    ],
)
def test_the_oldest_sealer_is_believed_up_to_whom_all_are_trusted(trusted, believed):
    content = MAIL
    for number, domain in enumerate(("one.example", "two.example", "three.example"), 1):
        content = hop(content, number, domain, aar=f"i={number}; {domain}; spf=pass smtp.helo=from-{number}")
    finding = found(content, trusted=trusted)
    assert finding.result is AuthResult.PASS
    assert finding.trusted is (believed is not None)
    assert finding.results == ((("spf", "pass", f"from-{believed}"),) if believed else ())


def test_nobody_is_believed_when_the_chain_is_broken():
    finding = found(GOOD.replace(b"Hello", b"Hallo"), trusted=["one.example", "two.example"])
    assert (finding.trusted, finding.results) == (False, ())


@pytest.mark.parametrize(
    ("value", "results"),
    [
        (AAR.format(i=1, d="mx.one.example"), RESULTS),
        ("i=1; mx.one.example; none", ()),
        ("i=1; mx 1; dkim=pass (2048-bit key) header.i=@Sender.Example", (("dkim", "pass", "sender.example"),)),
        ("i=1; mx; dkim = pass header.d = sender.example", (("dkim", "pass", "sender.example"),)),
        ('i=1; mx; dkim=fail reason="x; dkim=pass header.d=bank.example"', (("dkim", "fail", ""),)),
        ("i=1; mx; dkim=fail (; dkim=pass header.d=bank.example)", (("dkim", "fail", ""),)),
        (r"i=1; mx; dkim=fail (\); dkim=pass header.d=bank.example)", (("dkim", "fail", ""),)),
        ("i=1; mx; dkim=fail (a (b) ; dkim=pass header.d=bank.example)", (("dkim", "fail", ""),)),
        ('i=1; mx; "dkim=pass" header.d=bank.example', ()),
        ('i=1; mx; dkim=fail reason="unterminated ; dkim=pass', (("dkim", "fail", ""),)),
        ('i=1; mx; spf=pass smtp.mailfrom="a;b@sender.example"', (("spf", "pass", "sender.example"),)),
        ("i=1; mx; dkim/1=pass header.d=sender.example", (("dkim", "pass", "sender.example"),)),
        ("i=1; mx; x" * 200, ()),
    ],
)
def test_reported_results_are_read_and_comments_and_quotes_never_become_one(value, results):
    assert reported(value) == results


def test_results_are_read_in_time_that_grows_with_their_length():
    import time

    began = time.process_time()
    for piece in ('"\\', '"', "(", "\\", '"\\"', ";", " ", "a="):
        reported("i=1; mx; " + piece * 30_000)
    assert time.process_time() - began < 5


def test_the_policy_decides_nothing_unless_it_is_asked_to():
    broken = Arc(AuthResult.FAIL, problem="seal 1")
    assert Bench().judge(ArcPolicy, findings=[broken]) == PROCEED
    verdict = Bench().judge(ArcPolicy, {"reject_fail": True}, findings=[broken])
    assert str(verdict.reply) == "550 5.7.29 the ARC chain of this message does not hold"
    for result in (AuthResult.NONE, AuthResult.PASS, AuthResult.TEMPERROR):
        assert Bench().judge(ArcPolicy, {"reject_fail": True}, findings=[Arc(result)]) == PROCEED


# --- sealing

FINDINGS = (
    Spf(SpfResult.PASS, "sender.example", SpfResult.NONE, "client.example"),
    Dkim((DkimSignature(AuthResult.PASS, "sender.example", "sel", short="AAAA"),)),
    Dmarc(AuthResult.PASS, "sender.example"),
    ReverseName(AuthResult.PASS, "192.0.2.1", "client.example"),
)


@pytest.fixture
def options(tmp_path: Path):
    return {"domain": "One.Example", "selector": "sel", "key_file": rsa().write(tmp_path / "key")}


def seal(options, content: bytes, *findings, session=None) -> ArcSealed:
    bench = Bench(clock=ManualClock(NOW))
    finding = bench.find(
        ArcSealPlugin, options, message=make_message(content), findings=findings, session=session or make_session()
    )
    assert isinstance(finding, ArcSealed)
    return finding


def sealed(options, content: bytes, *findings) -> bytes:
    verdict = Bench().judge(ArcSealPolicy, options, findings=[seal(options, content, *findings)])
    head = b"".join(field.raw for field in make_message(content).edited(verdict.edits).fields)
    return head + content[content.index(b"\r\n\r\n") + 2 :]


def dkimpy(content: bytes) -> bytes | None:
    return dkim.arc_verify(content, dnsfunc=lambda name, timeout=5: rsa().record.encode())[0]


def test_a_first_seal_verifies_with_dkimpy_and_with_our_own_plugin(options):
    content = sealed(options, MAIL, *FINDINGS)
    assert dkimpy(content) == b"pass"
    finding = found(content, trusted=["one.example"])
    assert (finding.result, finding.trusted) == ("pass", True)
    assert ("dmarc", "pass", "sender.example") in finding.results
    assert content.startswith(b"ARC-Seal: i=1; a=rsa-sha256; cv=none; d=one.example; s=sel;")


def test_the_set_reports_what_we_found_in_the_words_of_authentication_results(options):
    made = seal(options, MAIL, *FINDINGS)
    spf, signature, dmarc, name = FINDINGS
    assert made.results == "i=1; " + authentication_results("mx.example.org", [spf, signature, dmarc, name])
    assert seal(options, MAIL).results == "i=1; mx.example.org; none"


def test_seals_go_on_with_a_chain_that_holds(options):
    content = hop(MAIL, 1, "two.example")
    for _ in range(4):
        content = sealed(options, content, found(content), *FINDINGS)
        assert dkimpy(content) == b"pass"
    finding = found(content)
    assert (finding.result, finding.sealers) == ("pass", ("two.example", *["one.example"] * 4))


def test_a_broken_chain_is_sealed_as_failed_and_then_left_alone(options):
    content = hop(MAIL, 1, "two.example").replace(b"Hello", b"Hallo")
    broken = found(content)
    assert broken.result is AuthResult.FAIL
    made = seal(options, content, broken)
    assert (made.instance, made.cv) == (2, "fail")
    content = sealed(options, content, broken)
    # dkimpy says of a chain that ended in cv=fail neither pass nor fail.
    assert dkimpy(content) is None
    again = found(content)
    assert again.problem == "the newest seal says that the chain failed before"
    assert seal(options, content, again).problem == "the chain failed before"


def test_a_seal_over_a_broken_chain_covers_its_own_set_only(options):
    content = hop(MAIL, 1, "two.example").replace(b"Hello", b"Hallo")
    content = sealed(options, content, found(content))
    fields = split(content)[0]
    own = [field for field in fields[:3]]
    bare = re.sub(rb"b=[^;]*\Z", b"b=", own[0])
    data = b"".join(map(relaxed_header, [own[2], own[1], bare]))[:-2]
    from plugins.dkim.keys import parse_key, sha256

    value = base64.b64decode(b"".join(own[0].rpartition(b"b=")[2].split()))
    assert parse_key(rsa().record.encode()).verifies(sha256(data), value)


@pytest.mark.parametrize("arc", [None, Arc(AuthResult.TEMPERROR), Arc(AuthResult.NEUTRAL)])
def test_a_chain_of_which_nobody_knows_is_left_as_it_is(options, arc):
    made = seal(options, GOOD, *([arc] if arc else []))
    assert (made.seal, made.problem) == ("", "the chain was not validated: list the plugin arc before this one")
    assert Bench().judge(ArcSealPolicy, options, findings=[made]) == PROCEED


def test_there_is_no_fifty_first_set(options):
    content = MAIL
    for number in range(1, 51):
        content = hop(content, number, "one.example")
    assert seal(options, content, found(content)).problem == "the chain has 50 sets"


def test_what_trusted_clients_send_is_sealed_only_when_asked_for(options):
    ours = make_session("10.0.0.1", trusted=True)
    assert seal(options, MAIL, session=ours) == ArcSealed()
    assert seal(options | {"seal_trusted": True}, MAIL, session=ours).instance == 1


def test_what_gatepost_adds_on_top_afterwards_does_not_break_the_seal(options):
    content = sealed(options, MAIL, *FINDINGS)
    top = b"Authentication-Results: mx.example.org; spf=pass\r\nReceived: from a by mx.example.org; now\r\n"
    assert dkimpy(top + content) == b"pass"
    assert found(top + content).result is AuthResult.PASS


def test_bimi_fields_pass_untouched(options):
    content = sealed(options, MAIL.replace(b"From:", b"BIMI-Indicator: PHN2Zz4=\r\nFrom:"), *FINDINGS)
    assert b"\r\nBIMI-Selector: v=BIMI1; s=brand\r\n" in content
    assert b"\r\nBIMI-Indicator: PHN2Zz4=\r\n" in content


def test_a_message_is_sealed_as_earlier_entries_left_it(options):
    message = make_message(MAIL).edited([AddHeader("To", "Carl <carl@example.org>")])
    finding = Bench(clock=ManualClock(NOW)).find(ArcSealPlugin, options, message=message)
    assert isinstance(finding, ArcSealed)
    verdict = Bench().judge(ArcSealPolicy, options, findings=[finding])
    head = b"".join(field.raw for field in message.edited(verdict.edits).fields)
    assert dkimpy(head + MAIL[MAIL.index(b"\r\n\r\n") + 2 :]) == b"pass"


def test_what_cannot_be_sealed_goes_on_unsealed_and_the_record_says_why(options):
    assert seal(options | {"max_size": 10}, MAIL).problem == "message is too large to be sealed"
    assert seal(options, MAIL.replace(b"To:", b"no field\r\nTo:")).problem.startswith("header section does not end")


def test_a_key_that_cannot_be_used_stops_the_start(options, tmp_path):
    for pair, mode, problem in (
        (rsa(), 0o644, "everybody can read"),
        (ed25519(), 0o600, "is an Ed25519 key, which ARC verifiers do not know: use RSA"),
        (KeyPair(b"", "", ""), 0o600, "holds no usable private key"),
    ):
        with pytest.raises(ValueError, match=problem):
            seal(options | {"key_file": pair.write(tmp_path / "bad", mode)}, MAIL)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (ArcOptions, {"trusted": ["a b"]}),
        (ArcOptions, {"lookups": 0}),
        (ArcSealOptions, {}),
        (ArcSealOptions, {"domain": "x.test", "selector": "s", "key_file": "k", "headers": ["to"]}),
        (ArcSealOptions, {"domain": "x.test", "selector": "s", "key_file": "k", "headers": ["from", "arc-seal"]}),
        (
            ArcSealOptions,
            {"domain": "x.test", "selector": "s", "key_file": "k", "headers": ["from", "Authentication-Results"]},
        ),
    ],
)
def test_wrong_options_are_refused(model, options):
    with pytest.raises(ValidationError):
        model.model_validate(options)
