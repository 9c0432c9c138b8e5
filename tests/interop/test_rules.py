"""The operator's rules in a running Gatepost, over what its plugins found with real name servers and lists."""

from __future__ import annotations

import json
import os
import signal
import smtplib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.interop.test_lists import LISTED, record, send, settings
from tests.support.clients import ProxiedClient, connect, queue_id, reference, transact
from tests.support.gatepost import PROGRAM, GatepostProcess, refused_start
from tests.support.process import wait_until
from tests.support.rbldnsd import TEST_ENTRY, Rbldnsd
from tests.support.servers import Unbound

pytestmark = pytest.mark.slow

ZONE = [
    'good.test. 60 IN TXT "v=spf1 ip4:192.0.2.8 -all"',
    '_dmarc.good.test. 60 IN TXT "v=DMARC1; p=none"',
    "2.0.0.127.bl.test. 60 IN A 127.0.0.2",
    "7.2.0.192.bl.test. 60 IN A 127.0.0.2",
]
FOUND: tuple[Any, ...] = (
    {"dnsbl": {"zones": {"bl.test": 2.5}, "reject_at": 9}},
    {"spf": {}, "policy": "none"},
    "dkim",
    {"dmarc": {}, "policy": "none"},
)
MAIL = b"From: Ann <ann@good.test>\r\nSubject: %s\r\nDate: Sun, 01 Nov 2026 10:00:00 +0000\r\n\r\nHello.\r\n"


def deliver(gate: Any, client: str, subject: bytes = b"hello") -> tuple[int, str]:
    with ProxiedClient(gate.port, client) as smtp:
        smtp.ehlo("mail.good.test")
        return transact(smtp, "ann@good.test", ["anna@example.org"], MAIL % subject)


def verdicts(gate: Any, reply: tuple[int, str], entry: str = "rules") -> list[dict[str, Any]]:
    (explained,) = record(gate, reply)
    return [v for v in explained["record"]["verdicts"] if v["plugin"] == entry]


def files(directory: Path) -> list[str]:
    return [path.read_text() for path in sorted((directory / "mail/new").glob("*"))]


def test_rules_over_real_findings_refuse_mark_and_set_aside(gatepost, running, directory):
    dns = running(Unbound(ZONE))
    rules = [
        {
            "name": "forged-own-domain",
            "when": 'dmarc.result == "fail" && session.helo.endsWith(".good.test") && dnsbl.score > 2',
            "then": {"reject": "5.7.1 not accepted"},
        },
        {
            "name": "odd",
            "when": 'spf.result == "fail" && message.subject.contains("ödd")',
            "then": [{"quarantine": "looks odd"}],
        },
        {
            "name": "mark",
            "when": 'spf.result == "fail"',
            "then": {"tag_subject": "[unproved]", "add_header": {"X-Rule": "mark"}},
        },
        {
            "name": "not-here",
            "when": 'recipient.local == "eve" && spf.result == "fail"',
            "then": {"defer": "4.7.1 later"},
        },
    ]
    gate = gatepost(**settings(directory, dns.address, *FOUND, {"rules": rules}))
    stages = {row["stage"]: row["needs"] for row in gate.cli("pipeline")["default"] if row["entry"] == "rules"}
    assert set(stages) == {"rcpt", "message"}

    refused = deliver(gate, LISTED)
    assert refused[0] == 550 and refused[1].startswith("5.7.1 not accepted (ref ")
    (said,) = [v for v in verdicts(gate, refused) if v["action"] != "proceed"]
    assert (said["stage"], said["action"], said["reason"]) == ("message", "reject", "forged-own-domain")

    marked = deliver(gate, "192.0.2.9")
    said = verdicts(gate, marked)[-1]
    assert (said["action"], said["reason"]) == ("proceed", "mark")
    gate.wait_empty()
    (content,) = files(directory)
    assert "Subject: [unproved] hello\n" in content.replace("\r\n", "\n") and "X-Rule: mark" in content

    odd = deliver(gate, "192.0.2.9", b"=?utf-8?q?=C3=B6dd?= one")
    said = verdicts(gate, odd)[-1]
    assert (said["action"], said["reason"]) == ("quarantine", "odd: looks odd")
    (listed,) = gate.cli("quarantine", "list", "--reason", "ODD")
    assert (listed["id"], listed["reason"]) == (queue_id(odd), "odd: looks odd")

    assert deliver(gate, "192.0.2.8")[0] == 250
    assert send(gate, "192.0.2.9", sender="ann@good.test", recipient="eve@example.org")[1].startswith("4.7.1 later")
    assert gate.metric("gatepost_verdicts_total", plugin="rules", action="reject", stage="message") == 1


def test_a_rule_goes_without_what_a_dead_name_server_kept_from_it_unless_it_asks_for_it(gatepost, running, directory):
    dns = running(Unbound(ZONE))
    rules = [
        {"name": "needs", "when": 'spf.result != "pass"', "then": {"reject": "5.7.1 no"}, "at": "message"},
        {"name": "asks", "when": "spf == null", "then": {"set_header": {"X-Spf": "missing"}}, "at": "message"},
    ]
    spf = {"spf": {}, "policy": "none", "on_error": "proceed", "timeout": "1s"}
    gate = gatepost(**settings(directory, dns.address, spf, {"rules": rules}))
    assert deliver(gate, "192.0.2.9")[0] == 550
    # Records are cached for a minute: another domain is asked for.
    os.kill(dns._process.pid, signal.SIGSTOP)
    try:
        with ProxiedClient(gate.port, "192.0.2.9") as smtp:
            smtp.ehlo("mail.else.test")
            assert transact(smtp, "ann@else.test", ["anna@example.org"])[0] == 250
    finally:
        os.kill(dns._process.pid, signal.SIGCONT)
    gate.wait_empty()
    assert "X-Spf: missing" in files(directory)[-1]


def test_a_rule_without_an_answer_defers_and_the_record_names_it(directory):
    rules = [{"name": "halves", "when": "100 / (message.size - message.size) > 1", "then": "discard"}]
    domains = {"example.org": {"next_hop": f"maildir:{directory}/mail", "recipients": "any"}}
    gate = GatepostProcess({"domains": domains, "pipeline": [{"rules": rules}]})
    try:
        with connect(gate.port) as smtp:
            code, text = transact(smtp, "ann@good.test", ["anna@example.org"])
        assert (code, text.partition(" (")[0]) == (451, "4.3.0 try again later")
        (explained,) = gate.cli("explain", reference(text))
    finally:
        # A rule's fault is logged with its traceback, as every policy's bug is: no clean end for the fixture.
        gate.kill()
    (said,) = explained["record"]["verdicts"]
    assert said["reason"] == (
        "policy rules failed: RuleFailed: halves: ZeroDivisionError: division by zero in CEL expression"
    )


def test_a_reload_takes_new_rules_and_keeps_the_old_ones_when_they_are_wrong(gatepost, directory):
    options = {"domains": {"example.org": {"next_hop": f"maildir:{directory}/mail", "recipients": "any"}}}
    gate = gatepost(**options, pipeline=[{"rules": [{"when": "message.size > 0", "then": "accept"}]}])

    def reload(when: str) -> None:
        rules = [{"when": when, "then": {"reject": "5.7.1 new"}}]
        gate.config.write_text(json.dumps({**gate.options, "pipeline": [{"rules": rules}]}))
        gate.process.signal(signal.SIGHUP)

    def answer() -> int:
        with connect(gate.port) as smtp:
            return transact(smtp, "ann@good.test", ["anna@example.org"])[0]

    assert answer() == 250
    reload("message.sise > 0")
    wait_until(lambda: "reload.refused" in gate.log, "the wrong rules are refused")
    assert "message has no field sise; did you mean size?" in gate.log
    assert answer() == 250
    reload("message.size > 0")
    wait_until(lambda: answer() == 550, "the new rules are in force")


WRONG = """\
listeners: [{address: "127.0.0.1:2525"}]
pipeline:
  - dnsbl: {zones: {bl.test: 1}}
  - spf
  - rules:
      - when: spf.result == "fial"
        then: {reject: "5.7.1 no"}
      - when: 'dnsbl.scor > 2'
        then: {reject: "4.7.1 no"}
      - name: long
        when: >-
          session.helo.endsWith(".example")
            && geo.country == "DE"
        then: discard
      - when: |
          // Names that are no names
          session.helo.matches("^[^.]+$")
            && (dnsbl.score + 1 > 2)
        then: accept
      - when: "spf.domain == \\"x\\" &&"
        then: accept
"""


def test_gatepost_check_names_file_line_and_column_of_every_wrong_rule(directory):
    file = directory / "gatepost.yaml"

    def check(text: str) -> tuple[int, list[str]]:
        file.write_text(text)
        result = subprocess.run([str(PROGRAM), "check", "-c", str(file)], capture_output=True, text=True, timeout=60)
        return result.returncode, (result.stdout + result.stderr).replace(f"{directory}/", "").splitlines()

    # What can be read without knowing the pipeline comes first.
    assert check(WRONG) == (
        2,
        [
            "gatepost.yaml:9: pipeline[2].rules[1].then: reject: the status 4.7.1 does not fit the code 550",
        ],
    )
    assert check(WRONG.replace("4.7.1", "5.7.1")) == (
        2,
        ["gatepost.yaml:20:38: pipeline[2].rules[4].when: the end is not expected here"],
    )
    assert check(WRONG.replace("4.7.1", "5.7.1").replace(' &&"', '"')) == (
        2,
        [
            "gatepost.yaml:6:29: pipeline[2].rules[0].when: is never 'fial'; did you mean fail?",
            "gatepost.yaml:8:22: pipeline[2].rules[1].when: Dnsbl has no field scor; did you mean score?",
            "gatepost.yaml:13:16: pipeline[2].rules[2].when: no plugin of this pipeline gives geo; "
            "geoip would, if listed",
            "gatepost.yaml:18:29: pipeline[2].rules[3].when: whole numbers and others do not mix; "
            "write 1.0, or double(...)",
        ],
    )


def test_gatepost_does_not_start_with_a_wrong_rule():
    status, said = refused_start({"pipeline": [{"rules": [{"when": "1", "then": "accept"}]}]})
    assert status == 2
    assert "the rule must be true or false, and this is an int" in said


def test_a_list_that_answers_is_enough_for_a_rule_that_hangs_up(gatepost, running, directory):
    lists = running(Rbldnsd({"bl.test": [TEST_ENTRY, LISTED]}))
    rules = [
        {"when": 'dnsbl.hits.exists(h, h.zone == "bl.test" && "127.0.0.2" in h.codes)', "then": {"disconnect": "no"}}
    ]
    entry = {"dnsbl": {"zones": {"bl.test": 1}, "reject_at": 9}}
    gate = gatepost(**settings(directory, lists.address, entry, {"rules": rules}))
    with pytest.raises(smtplib.SMTPConnectError, match=r"421.*4\.7\.0 no \(ref "):
        ProxiedClient(gate.port, LISTED)
    assert send(gate, "192.0.2.8")[0] == 250
