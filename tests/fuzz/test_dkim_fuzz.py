"""DKIM and ARC against arbitrary octets: nothing raises, nothing passes that was not signed so."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import itertools

from hypothesis import assume, example, given
from hypothesis import strategies as st

from gateway.sdk import Arc, AuthResult, Dkim
from gateway.sdk.testing import Bench, FakeDns, ManualClock, make_message
from plugins.dkim.arc import ArcPlugin
from plugins.dkim.canonical import BodyHash, collapse, relaxed_field
from plugins.dkim.keys import KeyRecordError, parse_key
from plugins.dkim.private import check_domain
from plugins.dkim.results import MAX_RESULTS, reported
from plugins.dkim.sign import author_domain
from plugins.dkim.taglist import TagError, parse_tags
from plugins.dkim.verify import DkimPlugin
from tests.plugins.test_arc import chained, names
from tests.support.dkimkeys import canonical_body, ed25519, relaxed_header, rsa, signed

NOW = 1_700_000_000
MAIL = (
    b"From: Ann <ann@sender.example>\r\nTo: Ben <ben@example.org>\r\nSubject: A  test\r\n\tof folding\r\n"
    b"Date: Sun, 01 Nov 2026 10:00:00 +0000\r\n\r\nHello  there \r\n\tand here.\r\n\r\n\r\n"
)
SIGNED_NAMES = "from:from:to:to:subject:subject:date:date"
WHITE = st.text(alphabet=" \t\r\n", max_size=4).map(lambda t: t.replace("\r", "").replace("\n", "\r\n"))


@functools.cache
def plugin(kind):
    """A plugin that serves all examples: its threads are made once."""
    dns = FakeDns(
        txt={
            "sel._domainkey.sender.example": [rsa().record, ed25519().record],
            **names("one.example", "two.example"),
        }
    )
    services = Bench(dns=dns, clock=ManualClock(NOW)).services
    made = kind(kind.Options(), services)
    asyncio.run(made.start())
    return made


def verify(content: bytes) -> Dkim:
    return asyncio.run(plugin(DkimPlugin).verify(make_message(content)))


def validate(content: bytes) -> Arc:
    return asyncio.run(plugin(ArcPlugin).validate(make_message(content)))


GOOD = {key.kind: signed(MAIL, key, h=SIGNED_NAMES) for key in (rsa(), ed25519())}
CHAIN = chained("one.example", "two.example", content=MAIL)


def meaning(content: bytes) -> tuple[list[bytes], bytes, bytes]:
    """What a signature covers: the relaxed fields with their order per name, the relaxed body; and b=, decoded."""
    head, _, body = content.partition(b"\r\n\r\n")
    fields = [f.raw for f in make_message(head + b"\r\n\r\n").fields]
    own = next((f for f in fields if f.lower().startswith(b"dkim-signature")), b"")
    bare, _, value = own.rpartition(b"b=")
    try:
        value = base64.b64decode(b"".join(value.split()), validate=True)
    except ValueError:
        value = b"?" + value
    kept = [relaxed_header(f) for f in fields if f is not own]
    return [relaxed_header(bare) if bare else b"", *sorted(kept)], canonical_body(body, "relaxed"), value


@given(
    kind=st.sampled_from(["rsa", "ed25519"]),
    at=st.integers(0, 10_000),
    length=st.integers(0, 3),
    octets=st.binary(max_size=3),
)
@example("rsa", 0, 0, b"\r\n")
def test_no_mutation_of_what_is_signed_verifies(kind, at, length, octets):
    good = GOOD[kind]
    at %= len(good)
    changed = make_message(good[:at] + octets + good[at + length :]).content.data
    assume(meaning(changed) != meaning(good))
    # Fields that are not signed may come and go; anything else may not.
    before, after = meaning(good), meaning(changed)
    ours = (b"from:", b"to:", b"subject:", b"date:", b"dkim-signature:")
    covered = lambda m: ([f for f in m[0] if f.startswith(ours)], m[1], m[2])  # noqa: E731
    assume(covered(before) != covered(after))
    assert verify(changed).passed == ()


@given(at=st.integers(0, 10_000), octets=st.binary(min_size=1, max_size=2))
def test_no_mutation_of_a_sealed_chain_passes_unless_it_is_white_space(at, octets):
    at %= len(CHAIN)
    changed = make_message(CHAIN[:at] + octets + CHAIN[at + len(octets) :]).content.data

    def covered(content: bytes) -> tuple[list[bytes], bytes]:
        head, _, body = content.partition(b"\r\n\r\n")
        fields = [relaxed_header(f.raw) for f in make_message(head + b"\r\n\r\n").fields]
        # White space within base64 means nothing, and its last character has bits that mean nothing.
        return sorted(b"".join(f.split()) for f in fields), canonical_body(body, "relaxed")

    before, after = covered(CHAIN), covered(changed)
    assume(before != after)
    result = validate(changed).result
    if result is AuthResult.PASS:
        different = set(before[0]) ^ set(after[0])
        assert before[1] == after[1]
        assert all(f.startswith((b"arc-seal:", b"arc-message-signature:")) for f in different)
        decoded = {base64.b64decode(f.rpartition(b"b=")[2] + b"==") for f in different}
        assert len(decoded) == len(different) / 2


TAGS = st.sampled_from(["v", "a", "b", "bh", "c", "d", "h", "i", "l", "q", "s", "t", "x", "z", "cv", "V", ""])
VALUES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "1",
            "rsa-sha256",
            "ed25519-sha256",
            "relaxed/relaxed",
            "from:to",
            "sender.example",
            "sel",
            "dns/txt",
            "=",
            "AAAA",
        ]
    ),
    st.integers(-(10**20), 10**20).map(str),
)


@given(pairs=st.lists(st.tuples(TAGS, WHITE, VALUES), max_size=14), other=st.binary(max_size=60))
@example([], b"DKIM-Signature:\r\n")
@example([("v", "", "1"), ("d", "", "\ud800")], b"")
def test_garbage_in_a_signature_field_never_raises_and_never_passes(pairs, other):
    text = ";".join(f"{white}{name}{white}={white}{value}" for name, white, value in pairs)
    field = b"DKIM-Signature: " + text.encode("utf-8", "surrogateescape" if text.isascii() else "replace") + b"\r\n"
    finding = verify(field + other + MAIL)
    assert finding.passed == ()
    finding.to_json()
    assert "\n" not in str([result.render() for result in finding.authentication()]).replace("\\n", "\n")
    assert validate(field.replace(b"DKIM-Signature", b"ARC-Seal") + other + MAIL).result is not AuthResult.PASS


@given(octets=st.binary(max_size=300))
@example(b"i=1; a=b;" * 100)
def test_arbitrary_octets_in_any_field_never_raise_and_never_pass(octets):
    line = octets.replace(b"\r", b"").replace(b"\n", b"\r\n ")
    for name in (b"DKIM-Signature", b"ARC-Seal", b"ARC-Message-Signature", b"ARC-Authentication-Results"):
        content = name + b": " + line + b"\r\n" + MAIL
        assert verify(content).passed == ()
        assert validate(content).result in (AuthResult.NONE, AuthResult.FAIL)


@given(
    octets=st.one_of(
        st.binary(max_size=200), st.from_regex(rb"(\s?[a-z]{1,2}\s?=\s?[a-z0-9:]*\s?;?){0,9}", fullmatch=True)
    )
)
def test_tag_lists_are_read_or_refused_and_spans_point_at_the_values(octets):
    try:
        tags = parse_tags(octets)
    except TagError:
        return
    for name, (start, end) in tags.spans.items():
        assert octets[start:end].strip(b" \t\r\n").decode() == tags.values[name]
        assert octets[:start].rstrip().endswith(b"=")


@given(key=st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda b: b"k=rsa; p=" + base64.b64encode(b))))
@example(base64.b64decode("cD1NQVlDQVFJQ0FRTT0="))
def test_key_records_are_read_or_refused(key):
    try:
        parse_key(key)
    except KeyRecordError as error:
        assert str(error)


BODY = st.lists(st.sampled_from([b" ", b"\t", b"\r\n", b"x", b"word", b"\r\n\r\n", b"  \t", b"\xff"]), max_size=40).map(
    b"".join
)


@given(
    body=BODY,
    cuts=st.lists(st.integers(0, 200), max_size=6),
    relaxed=st.booleans(),
    length=st.none() | st.integers(0, 60),
)
def test_the_body_hash_is_that_of_the_canonical_body_wherever_blocks_end(body, cuts, relaxed, length):
    made = BodyHash(relaxed=relaxed, lengths=(None, length))
    edges = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})
    for start, end in itertools.pairwise(edges):
        made.update(body[start:end])
    canonical = canonical_body(body, "relaxed" if relaxed else "simple")
    assert made.digests() == {cut: hashlib.sha256(canonical[:cut]).digest() for cut in (None, length)}
    assert made.size == len(canonical)


@given(value=st.lists(st.sampled_from([b" ", b"\t", b"\r\n ", b"a", b":", b"word"]), max_size=30).map(b"".join))
def test_relaxed_fields_are_those_of_the_rfc(value):
    field = b"Subject \t: " + value + b"\r\n"
    assert relaxed_field(field) == relaxed_header(field)
    assert b"  " not in collapse(value)


@given(value=st.text(alphabet=st.sampled_from('i=1;dkm spf/pass"\\()@.\t\nä'), max_size=120))
def test_reported_results_never_raise(value):
    found = reported(value)
    assert len(found) <= MAX_RESULTS
    assert all(method and result for method, result, _ in found)


@given(value=st.text(max_size=80))
def test_the_author_domain_never_raises(value):
    line = value.replace("\r", "").replace("\n", "\n ")
    domain = author_domain(make_message(b"From: " + line.encode("utf-8", "replace") + b"\r\n\r\n"))
    assert domain == "" or domain == check_domain(domain)
