"""The dkim-sign plugin on the bench; dkimpy is the judge of what it signs."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import dkim
import pytest
from dkim.crypto import parse_pem_private_key
from dkim.dknewkey import GenEd25519Keys
from pydantic import ValidationError

from gateway.sdk import PROCEED, AddHeader, ChangeHeader, Dkim
from gateway.sdk.testing import Bench, FakeDns, ManualClock, make_message, make_session
from plugins.dkim.sign import DkimSigned, DkimSignOptions, DkimSignPlugin, DkimSignPolicy, author_domain
from plugins.dkim.verify import DkimPlugin
from tests.support.dkimkeys import KeyPair, ed25519, rsa

NOW = 1_700_000_000
OURS = make_session("10.0.0.1", trusted=True)
MAIL = (
    b"Received: from x by y; Sun, 01 Nov 2026 10:00:00 +0000\r\nFrom: =?utf-8?q?Ann=2C_us?= <ann@example.org>\r\n"
    b"To: Ben <ben@elsewhere.example>\r\nSubject: A  test\r\n\tof folding\r\nX-Own: yes\r\n\r\n"
    b" Hello \t there \r\n\r\n\r\n"
)
KEYS = {"r": rsa(2048), "e": ed25519(), "s": rsa()}


@pytest.fixture
def options(tmp_path: Path):
    """Options with an RSA and an Ed25519 key for example.org."""
    keys = [{"selector": name, "key_file": KEYS[name].write(tmp_path / name)} for name in ("r", "e")]
    return {"domains": {"example.org": keys}}


def sign(options, content: bytes = MAIL, session=OURS) -> DkimSigned:
    finding = Bench(clock=ManualClock(NOW)).find(
        DkimSignPlugin, options, session=session, message=make_message(content)
    )
    assert isinstance(finding, DkimSigned)
    return finding


def edited(options, content: bytes = MAIL, session=OURS) -> bytes:
    """The message as it is after the plugin's edits."""
    verdict = Bench().judge(DkimSignPolicy, options, findings=[sign(options, content, session)])
    assert not verdict.decisive
    head = b"".join(field.raw for field in make_message(content).edited(verdict.edits).fields)
    return head + content[content.index(b"\r\n\r\n") + 2 :]


def lookup(domain: str, keys: dict[str, KeyPair] = KEYS):
    def txt(name: bytes, timeout: int = 5) -> bytes:
        selector, _, rest = name.decode().partition("._domainkey.")
        assert rest == domain + "."
        return keys[selector].record.encode()

    return txt


def verified(content: bytes, domain: str = "example.org") -> list[bool]:
    """What dkimpy says of each signature."""
    message = dkim.DKIM(content)
    return [message.verify(i, lookup(domain)) for i in range(content.count(b"DKIM-Signature:"))]


@pytest.mark.parametrize("form", ["relaxed/relaxed", "relaxed/simple", "simple/relaxed", "simple/simple"])
def test_both_signatures_verify_with_dkimpy_and_with_our_own_plugin(options, form):
    content = edited(options | {"canonicalization": form})
    assert verified(content) == [True, True]
    dns = FakeDns(txt={f"{name}._domainkey.example.org": [key.record] for name, key in KEYS.items()})
    finding = Bench(dns=dns, clock=ManualClock(NOW)).find(DkimPlugin, message=make_message(content))
    assert isinstance(finding, Dkim)
    assert [(s.result, s.algorithm) for s in finding.signatures] == [
        ("pass", "ed25519-sha256"),
        ("pass", "rsa-sha256"),
    ]


@pytest.mark.parametrize("body", [b"", b"\r\n\r\n", b"no end of line", b"x\r\n" * 50_000])
def test_bodies_of_all_sorts_verify(options, body):
    content = MAIL[: MAIL.index(b"\r\n\r\n") + 4] + body
    assert all(verified(edited(options, content)))


def test_what_strangers_send_is_never_signed(options):
    stranger = make_session("192.0.2.1")
    assert sign(options, session=stranger) == DkimSigned()
    assert edited(options, session=stranger) == MAIL


def test_the_tags_say_who_signed_what_and_when(options):
    ed, r = sign(options | {"expiry": "7d"}).signatures[::-1]
    tags = dict(re.findall(r"([a-z]+)=([^;]*)", re.sub(r"\s", "", r)))
    assert tags | {"b": "", "bh": ""} == {
        "v": "1",
        "a": "rsa-sha256",
        "c": "relaxed/relaxed",
        "d": "example.org",
        "s": "r",
        "t": str(NOW),
        "x": str(NOW + 7 * 86400),
        "h": "from:from:to:subject",
        "bh": "",
        "b": "",
    }
    assert "a=ed25519-sha256" in ed
    assert all(len(line) < 80 for line in r.split("\n"))


def test_from_is_signed_once_more_so_that_nobody_can_add_another(options):
    content = edited(options)
    added = dkim.DKIM(b"From: eve@evil.example\r\n" + content)
    assert added.verify(0, lookup("example.org")) is False


def test_fields_to_sign_can_be_chosen(options):
    finding = sign(options | {"headers": ["From", "X-Own", "X-Not-There"], "oversign": ["From", "x-not-there"]})
    assert "h=from:from:x-own:x-not-there;" in finding.signatures[0]


def test_a_message_is_signed_as_earlier_entries_left_it(options):
    message = make_message(MAIL).edited(
        [ChangeHeader("Subject", 1, "[ext] A test"), AddHeader("To", "Carl <c@x.test>")]
    )
    finding = Bench(clock=ManualClock(NOW)).find(DkimSignPlugin, options, session=OURS, message=message)
    assert isinstance(finding, DkimSigned)
    head = b"".join(f.raw for f in message.edited([AddHeader("DKIM-Signature", finding.signatures[0])]).fields)
    assert verified(head + MAIL[MAIL.index(b"\r\n\r\n") + 2 :]) == [True]


def test_subdomains_are_signed_for_only_where_the_domain_takes_them(options):
    content = MAIL.replace(b"ann@example.org", b"ann@news.Example.ORG")
    assert sign(options, content).problem == "no key for this domain"
    options["domains"]["example.org"] = {"keys": options["domains"]["example.org"], "subdomains": True}
    signed = edited(options, content)
    assert verified(signed) == [True, True]
    assert b"i=@news.example.org" in signed


def test_a_key_may_sign_with_another_domain(options):
    options["domains"]["example.org"][0]["domain"] = "Mail.Example.NET"
    first, second = sign(options).signatures
    assert "d=mail.example.net;" in first
    assert "d=example.org;" in second


@pytest.mark.parametrize(
    ("value", "domain"),
    [
        ("ann@example.org", "example.org"),
        ('"Ann, us" <ann@Example.ORG>', "example.org"),
        ("=?utf-8?b?QW5uLCB1cw==?= <ann@example.org>", "example.org"),
        ("Ann <ann@bücher.example>", "xn--bcher-kva.example"),
        ("ann@example.org, eve@evil.example", ""),
        ("Ann <ann@example.org> <eve@evil.example>", ""),
        ("ann", ""),
        ("", ""),
        ("<>", ""),
        ("ann@[192.0.2.1]", ""),
        ("undisclosed:;", ""),
        ("x" * 5000 + "@example.org", ""),
    ],
)
def test_the_author_domain_is_that_of_the_one_address_in_from(value, domain):
    assert author_domain(make_message(f"From: {value}\r\n\r\n".encode())) == domain
    assert author_domain(make_message(f"From: {value}\r\nFrom: {value}\r\n\r\n".encode())) == ""


@pytest.mark.parametrize("value", ["(" * 4000, "a:" * 1900, "(" * 900 + "x" + ")" * 900 + " <ann@example.org>"])
def test_a_from_field_of_any_depth_is_read(options, value):
    finding = sign(options, MAIL.replace(b"=?utf-8?q?Ann=2C_us?= <ann@example.org>", value.encode()))
    assert finding.domain == ("example.org" if "@" in value else "")


def test_what_cannot_be_signed_goes_on_unsigned_and_the_record_says_why(options):
    cases = {
        "no key for this domain": MAIL.replace(b"ann@example.org", b"ann@example.net"),
        "From is not one address": MAIL.replace(b"From:", b"X-From:"),
        "header section does not end in an empty line": MAIL.replace(b"X-Own: yes", b"no field"),
    }
    for problem, content in cases.items():
        assert sign(options, content).problem == problem
    assert sign(options | {"max_size": 10}).problem == "message is too large to be signed"
    assert Bench().judge(DkimSignPolicy, options, findings=[DkimSigned(problem="x")]) == PROCEED


@pytest.mark.parametrize(
    ("data", "mode", "problem"),
    [
        (rsa().pem, 0o604, "is a private key that everybody can read or write: chmod o= "),
        (rsa().pem, 0o602, "is a private key that everybody can read or write: chmod o= "),
        (rsa(512).pem, 0o600, "holds no usable private key: it has 512 bits, and 1024 are the least that counts"),
        (b"", 0o600, "holds no usable private key: neither PEM nor an Ed25519 key in base64"),
        (b"x" * 100_000, 0o600, "holds no usable private key: larger than 65536 octets"),
        (b"c2VjcmV0", 0o600, "holds no usable private key: neither PEM nor an Ed25519 key in base64"),
        (rsa().pem[:200], 0o600, "holds no usable private key: not in PEM without a passphrase"),
        (rsa().pem.replace(b"PRIVATE", b"ENCRYPTED PRIVATE"), 0o600, "not in PEM without a passphrase"),
        (b"-----BEGIN X-----\nAAAA\n-----END X-----\n", 0o600, "holds no usable private key: neither RSA nor Ed25519"),
    ],
)
def test_a_key_that_cannot_be_used_stops_the_start_and_is_not_shown(tmp_path, data, mode, problem):
    path = KeyPair(data, "rsa", "").write(tmp_path / "key", mode)
    with pytest.raises(ValueError, match=re.escape(problem)) as caught:
        sign({"domains": {"example.org": {"selector": "s", "key_file": path}}})
    assert path in str(caught.value)
    for line in data.splitlines():
        assert len(line) < 20 or line.decode() not in str(caught.value)


def test_a_key_whose_numbers_do_not_belong_together_stops_the_start(tmp_path):
    prime = parse_pem_private_key(rsa().pem)["prime1"].to_bytes(64, "big")
    body = b"".join(rsa().pem.splitlines()[1:-1])
    broken = base64.b64encode(base64.b64decode(body).replace(prime, prime[:-1] + bytes([prime[-1] ^ 2])))
    head, tail = rsa().pem.splitlines()[0], rsa().pem.splitlines()[-1]
    path = KeyPair(b"\n".join([head, broken, tail, b""]), "rsa", "").write(tmp_path / "key")
    with pytest.raises(ValueError, match=r"neither RSA nor Ed25519|do not belong together"):
        sign({"domains": {"example.org": {"selector": "s", "key_file": path}}})


def test_a_key_file_that_is_not_there_stops_the_start():
    with pytest.raises(ValueError, match="cannot read the private key /nowhere/key: No such file or directory"):
        sign({"domains": {"example.org": {"selector": "s", "key_file": "/nowhere/key"}}})


def test_keys_as_opendkim_genkey_and_dknewkey_write_them_are_read(tmp_path):
    assert b"BEGIN RSA PRIVATE KEY" in rsa().traditional
    traditional = KeyPair(rsa().traditional, "rsa", "").write(tmp_path / "pkcs1")
    path = tmp_path / "dknewkey"
    key = GenEd25519Keys(str(path), verbose=False)
    public = base64.b64encode(key.verify_key.encode()).decode()
    keys = {"a": rsa(), "b": KeyPair(b"", "ed25519", public)}
    entries = [{"selector": "a", "key_file": traditional}, {"selector": "b", "key_file": str(path)}]
    content = edited({"domains": {"example.org": entries}})
    message = dkim.DKIM(content)
    assert [message.verify(i, lookup("example.org", keys)) for i in (0, 1)] == [True, True]


KEY = {"selector": "s", "key_file": "k"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"domains": {}},
        {"domains": {"example.org": []}},
        {"domains": {"bad domain": KEY}},
        {"domains": {"bücher.example": KEY}},
        {"domains": {"example.org": {"selector": "a b", "key_file": "k"}}},
        {"domains": {"example.org": {"selector": "s"}}},
        {"domains": {"example.org": KEY}, "headers": ["to"]},
        {"domains": {"example.org": KEY}, "headers": ["from", "received"]},
        {"domains": {"example.org": KEY}, "headers": ["from", "dkim-signature"]},
        {"domains": {"example.org": KEY}, "headers": ["from", "bad name"]},
        {"domains": {"example.org": KEY}, "oversign": ["x-other"]},
        {"domains": {"example.org": KEY}, "canonicalization": "relaxed"},
        {"domains": {"example.org": KEY}, "expiry": "0s"},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        DkimSignOptions.model_validate(options)
