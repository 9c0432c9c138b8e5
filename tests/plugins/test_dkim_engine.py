"""Where dkimpy and the standards part ways, and that our plugins go with the standards.

Each test shows both: what docs/decisions/0005-dkim.md says of dkimpy stays true as long as these pass, and one that
fails after an upgrade says that dkimpy has learned something.
"""

from __future__ import annotations

import base64
import time

import dkim
import pytest
from dkim.canonicalization import Relaxed

from gateway.sdk import Arc, AuthResult, Dkim
from gateway.sdk.testing import Bench, FakeDns, ManualClock, make_message
from plugins.dkim.arc import ArcPlugin
from plugins.dkim.canonical import collapse
from plugins.dkim.verify import DkimPlugin
from tests.plugins.test_arc import hop
from tests.support.dkimkeys import ed25519, rsa, signed, split

MAIL = b"From: Ann <ann@sender.example>\r\nTo: b@example.org\r\nSubject: A test\r\nDate: now\r\n\r\nHello.\r\n"
NAME = "sel._domainkey.sender.example"


def dkimpy(content: bytes, record: str, index: int = 0) -> bool:
    return dkim.DKIM(content).verify(index, dnsfunc=lambda name, timeout=5: record.encode())


def ours(content: bytes, record: str) -> list[str]:
    bench = Bench(dns=FakeDns(txt={NAME: [record]}), clock=ManualClock(1_700_000_000))
    finding = bench.find(DkimPlugin, message=make_message(content))
    assert isinstance(finding, Dkim)
    return [s.result.value for s in finding.signatures]


def test_a_signature_that_does_not_cover_from():
    content = signed(MAIL, rsa(), h="to:subject")
    assert dkimpy(content, rsa().record)
    assert ours(content, rsa().record) == ["permerror"]


def test_two_from_fields_that_are_both_signed():
    content = signed(b"From: eve@evil.example\r\n" + MAIL, rsa(), h="from:from")
    assert dkimpy(content, rsa().record)
    assert ours(content, rsa().record) == ["fail"]


def test_l_that_leaves_the_body_open():
    content = signed(MAIL, rsa(), l="3") + b"Buy now!\r\n"
    assert dkimpy(content, rsa().record)
    assert ours(content, rsa().record) == ["policy"]


def test_rsa_with_sha1():
    content = signed(MAIL, rsa(), digest="sha1", a="rsa-sha1")
    assert dkimpy(content, rsa().record)
    assert ours(content, rsa().record) == ["policy"]


def test_a_key_of_another_type_than_the_signature_says():
    content = signed(MAIL, rsa(), a="ed25519-sha256")
    assert dkimpy(content, rsa().record)
    assert ours(content, rsa().record) == ["permerror"]


@pytest.mark.parametrize("rule", ["h=sha1", "t=s"])
def test_rules_in_the_key_record(rule):
    content = signed(MAIL, rsa(), i="ann@news.sender.example")
    record = f"v=DKIM1; {rule}; p={rsa().public}"
    assert dkimpy(content, record)
    assert ours(content, record) == ["permerror"]


def test_a_signature_with_octets_in_front():
    content = signed(MAIL, rsa())
    value = content.partition(b"\tb=")[2].partition(b"\r\n")[0]
    longer = base64.b64encode(b"\0\0\0" + base64.b64decode(value))
    content = content.replace(value, longer)
    assert dkimpy(content, rsa().record)
    assert ours(content, rsa().record) == ["fail"]


def test_a_signature_over_another_one():
    inner = signed(MAIL, rsa())
    content = signed(inner, rsa(), h="from:dkim-signature:dkim-signature")
    assert not dkimpy(content, rsa().record)
    assert ours(content, rsa().record) == ["pass", "pass"]


def test_white_space_before_the_colon():
    content = signed(MAIL.replace(b"Subject:", b"Subject :"), rsa())
    with pytest.raises(dkim.MessageFormatError):
        dkimpy(content, rsa().record)
    assert ours(content, rsa().record) == ["pass"]


@pytest.mark.parametrize("octets", [b"\x30\x10\x30\x0e\x06\x09123456789\x05\x01\x00", b"\x30\x82\xff"])
def test_keys_that_are_garbage(octets):
    record = "k=rsa; p=" + base64.b64encode(octets).decode()
    if octets[-1] == 0:
        with pytest.raises(AssertionError):
            dkimpy(signed(MAIL, rsa()), record)
    assert ours(signed(MAIL, rsa()), record) == ["permerror"]


def test_time_for_a_run_of_spaces():
    def seconds(form, size: int) -> float:
        body = b" " * size + b"x\r\n"
        best = 1e9
        for _ in range(3):
            began = time.process_time()
            form(body)
            best = min(best, time.process_time() - began)
        return best

    theirs = seconds(Relaxed.canonicalize_body, 16_000) / max(seconds(Relaxed.canonicalize_body, 2000), 1e-9)
    assert theirs > 24, "eight times the spaces, and far more than eight times the time: it grows with the square"
    assert seconds(collapse, 16_000_000) < 2


def record(*domains: str) -> FakeDns:
    return FakeDns(txt={f"sel._domainkey.{domain}": [rsa().record] for domain in domains})


def chain(content: bytes) -> str:
    bench = Bench(dns=record("one.example", "two.example"), clock=ManualClock(1_700_000_000))
    finding = bench.find(ArcPlugin, message=make_message(content))
    assert isinstance(finding, Arc)
    return finding.result.value


def arc_verify(content: bytes) -> bytes | None:
    return dkim.ARC(content).verify(dnsfunc=lambda name, timeout=5: rsa().record.encode())[0]


def test_an_arc_chain_whose_fields_were_put_in_another_order():
    content = hop(hop(MAIL, 1, "one.example"), 2, "two.example")
    assert (arc_verify(content), chain(content)) == (b"pass", "pass")
    fields, body = split(content)
    arc = [field for field in fields if field.startswith(b"ARC-")]
    turned = b"".join([*arc[::-1], *(field for field in fields if field not in arc)]) + b"\r\n" + body
    assert arc_verify(turned) == b"fail"
    assert chain(turned) == AuthResult.PASS


def test_an_arc_message_signature_whose_instance_is_written_otherwise():
    content = hop(MAIL, 1, "one.example", ams={"i": "", "t": "1600000000; i = 1"})
    with pytest.raises(IndexError):
        arc_verify(content)
    assert chain(content) == AuthResult.PASS


def test_an_arc_message_signature_without_c_is_simple():
    content = hop(MAIL, 1, "one.example", ams={"c": ""})
    assert arc_verify(content) == b"fail"
    assert chain(content) == AuthResult.PASS


def test_dkimpy_and_ours_agree_on_what_is_plain():
    for key in (rsa(), ed25519()):
        content = signed(MAIL, key)
        assert (dkimpy(content, key.record), ours(content, key.record)) == (True, ["pass"])
