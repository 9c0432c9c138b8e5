"""Real milters behind Gatepost and behind Postfix: the same messages come out with the same changes.

What may differ: the trace fields of the two hosts (a field that a milter puts above an MTA's own Received field stands
below Gatepost's, which is put on top last), the queue id where a milter writes it down, and the time of a signature.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import dkim
import pytest

from tests.support.clamav import MARKER, Clamd
from tests.support.dkimkeys import rsa, signed
from tests.support.milter_servers import (
    clamav_milter,
    dkimpy_milter,
    opendmarc,
    pymilter,
    pyspf_milter,
    spamass_milter,
)
from tests.support.opendkim import OpenDkim
from tests.support.process import new_directory
from tests.support.rspamd import GTUBE, Rspamd
from tests.support.servers import Unbound
from tests.support.spamassassin import Spamd
from tests.support.two_hosts import HOSTNAME, Client, TwoHosts, same

pytestmark = pytest.mark.slow

NAMESERVER = "127.77.0.61"
KEY = rsa(2048)
DKIM = "sel._domainkey.sender.test"
MAIL = (
    b"From: Ann <ann@sender.test>\r\nTo: Ben <ben@example.org>\r\nSubject: A test\r\n"
    b"Date: Sun, 01 Nov 2026 10:00:00 +0000\r\nX-Many: 1\r\nX-Gone: g\r\nX-Twice: a\r\nX-Many:2\r\nX-Twice:\tb\r\n"
    b"X-Many: 3\r\n more\r\nX-Gone-Too: g\r\n\r\nHello.\r\n"
)
FORGER = Client("203.0.113.9", "forger.test", "forger.test")
PYMILTERS = ("editing", "deleting", "spaced", "sparing", "replying")


def txt(name: str, record: str) -> str:
    """A TXT record in zone file form, in strings of at most 200 characters."""
    return f"{name}. 60 IN TXT " + " ".join(f'"{record[at : at + 200]}"' for at in range(0, len(record), 200))


@pytest.fixture(scope="module")
def nameserver() -> Iterator[str]:
    # On port 53, since milters read it from resolv.conf, where no port can be said.
    records = [
        txt("sender.test", "v=spf1 ip4:192.0.2.1 -all"),
        txt("mail.sender.test", "v=spf1 a -all"),
        "mail.sender.test. 60 IN A 192.0.2.1",
        txt("_dmarc.sender.test", "v=DMARC1; p=reject"),
        txt(DKIM, KEY.record),
    ]
    server = Unbound(records, interface=NAMESERVER, port=53)
    yield NAMESERVER
    server.stop()


@pytest.fixture(scope="module")
def hosts(nameserver: str) -> Iterator[TwoHosts]:
    started: list[Any] = []
    home = new_directory("milters")

    def run(make: Callable[[], Any]) -> Any:
        started.append(make())
        return started[-1]

    try:
        clamd, spamd = run(Clamd), run(Spamd)
        verifier = run(lambda: OpenDkim.verifier({DKIM: KEY.record}, HOSTNAME))
        dmarc = run(lambda: opendmarc(nameserver, HOSTNAME))
        rspamd, clamav = run(Rspamd), run(lambda: clamav_milter(clamd))
        chains = {name: [run(lambda name=name: pymilter(name.capitalize(), home / name))] for name in PYMILTERS}
        chains |= {
            "sign": [run(lambda: OpenDkim.signer("sender.test", "sel", KEY, "simple/simple"))],
            "verify": [verifier],
            "dmarc": [dmarc],
            "rspamd": [rspamd],
            "clamav": [clamav],
            "spamass": [run(lambda: spamass_milter(spamd))],
            "dkimpy": [run(lambda: dkimpy_milter(nameserver, HOSTNAME))],
            "pyspf": [run(lambda: pyspf_milter(nameserver))],
            "chain": [verifier, dmarc, clamav, rspamd],
        }
        both = TwoHosts(chains)
        yield both
        both.stop()
    finally:
        for server in reversed(started):
            server.stop()
        shutil.rmtree(home, ignore_errors=True)


# Every change that there is, through libmilter


def test_every_kind_of_change_comes_out_the_same(hosts):
    recipients = ["ben@example.org", "gone@example.org"]
    found = same(hosts.arrivals("editing", MAIL, recipients=recipients))
    assert found.sender == "<changed@sender.example>"
    assert sorted(found.recipients) == ["<added@example.org>", "<ben@example.org>"]
    assert found.named("subject") == ["Subject: changed"]
    assert found.fields[0] == "X-First: first\n"
    assert found.body.startswith("replaced\nin two\n")


def test_numbers_of_fields_move_as_behind_postfix(hosts):
    found = same(hosts.arrivals("deleting", MAIL))
    assert found.named("x-many") == ["X-Many: first of the rest", "X-Many: second now"]


@pytest.mark.parametrize("name", ["spaced", "sparing"])
def test_leading_space_and_silence_are_agreed_on(hosts, name):
    found = same(hosts.arrivals(name, MAIL))
    assert found.named(f"x-{name}")


@pytest.mark.parametrize("word", ["plain", "status", "percent", "later", "contrary", "temporary", "refused"])
def test_a_milters_reply_reaches_the_client_as_behind_postfix(hosts, word):
    behind_postfix, behind_us = hosts.replies("replying", MAIL, recipients=[f"{word}@example.org"])
    assert behind_us[0] == behind_postfix[0]
    if word in ("plain", "status", "percent", "later"):
        assert behind_us[1].partition(" (ref")[0] == behind_postfix[1]


# The milters that people run


def test_opendkims_signature_holds_behind_both(hosts):
    sender = Client("127.0.0.1", "localhost", "client.test")
    found = same(hosts.arrivals("sign", MAIL, client=sender))
    assert len(found.named("dkim-signature")) == 1
    for sink in hosts.sinks:
        text = max(sink.messages(), key=lambda text: "DKIM-Signature" in text)
        content = text[text.index("DKIM-Signature") :].encode().replace(b"\n", b"\r\n")
        assert dkim.verify(content.removesuffix(b"\r\n"), dnsfunc=lambda name, timeout=5: KEY.record.encode())


GOOD = signed(MAIL, KEY, d="sender.test")
BAD = GOOD.replace(b"Hello.", b"Hallo.")


@pytest.mark.parametrize("chain", ["verify", "dkimpy"])
@pytest.mark.parametrize(("content", "result"), [(GOOD, "pass"), (BAD, "fail")])
def test_verifiers_say_the_same_of_signatures(hosts, chain, content, result):
    found = same(hosts.arrivals(chain, content))
    (said,) = found.named("authentication-results")
    assert f"dkim={result}" in said


def test_opendmarc_passes_and_refuses_the_same(hosts):
    found = same(hosts.arrivals("dmarc", MAIL))
    assert any("dmarc=pass" in said for said in found.named("authentication-results"))
    behind_postfix, behind_us = hosts.replies("dmarc", MAIL, client=FORGER)
    assert behind_postfix[0] == behind_us[0] == 550
    assert behind_us[1].startswith(behind_postfix[1].partition("(")[0].strip())


def test_rspamd_marks_and_refuses_the_same(hosts):
    found = same(hosts.arrivals("rspamd", MAIL.replace(b"A test", b"six-points")))
    assert any("Yes" in said for said in found.named("x-spam-status"))
    behind_postfix, behind_us = hosts.replies("rspamd", MAIL + GTUBE + b"\r\n")
    assert behind_postfix[0] == behind_us[0] >= 500


def test_clamav_marks_and_refuses_the_same(hosts):
    found = same(hosts.arrivals("clamav", MAIL))
    assert found.named("x-virus-status") == ["X-Virus-Status: Clean"]
    behind_postfix, behind_us = hosts.replies("clamav", MAIL + MARKER + b"\r\n")
    assert behind_postfix[0] == behind_us[0] == 550
    assert "Virus found: Test.Marker" in behind_postfix[1]
    assert "Virus found: Test.Marker" in behind_us[1]


def test_spamassassin_marks_and_refuses_the_same(hosts):
    found = same(hosts.arrivals("spamass", MAIL.replace(b"A test", b"six-points")))
    assert any("Yes" in said for said in found.named("x-spam-status"))
    assert "***SPAM***" in found.named("subject")[0]
    behind_postfix, behind_us = hosts.replies("spamass", MAIL + GTUBE + b"\r\n")
    assert behind_postfix[0] == behind_us[0] == 550


def test_pyspf_milter_passes_and_refuses_the_same(hosts):
    same(hosts.arrivals("pyspf", MAIL))
    behind_postfix, behind_us = hosts.replies("pyspf", MAIL, client=FORGER)
    assert behind_postfix[0] == behind_us[0] == 550


def test_in_a_chain_each_sees_what_those_before_it_changed(hosts):
    content = signed(MAIL.replace(b"A test", b"six-points"), KEY, d="sender.test")
    found = same(hosts.arrivals("chain", content))
    said = " ".join(found.named("authentication-results"))
    assert "dkim=pass" in said
    assert "dmarc=pass" in said
    assert found.named("x-virus-status") == ["X-Virus-Status: Clean"]
    assert any("Yes" in status for status in found.named("x-spam-status"))
    forged = hosts.replies("chain", MAIL, client=FORGER)
    assert [code for code, _ in forged] == [550, 550]


def test_sessions_after_each_other_use_one_connection(hosts):
    before = hosts.gate.metric("gatepost_milter_connections_total", how="reused")
    for _ in range(3):
        hosts.replies("spamass", MAIL)
    assert hosts.gate.metric("gatepost_milter_connections_total", how="reused") >= before + 2
