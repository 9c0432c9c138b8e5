"""All cases of the public RFC 7208 test suite through SMTP: client by XCLIENT, HELO, MAIL FROM, and a real nameserver.

Each case is a message to a running Gatepost, whose nameserver serves the case's zone, names that time out included.
Its result is read where an operator reads it: in the decision record, and in the Authentication-Results field of the
message in the mail store. Nothing may differ but what stands in docs/spf-suite.md.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from gateway.sdk import Address
from tests.contract.dnsserver import Fault
from tests.interop.settings import delivered, maildir
from tests.support.gatepost import GatepostProcess
from tests.support.process import free_port, new_directory
from tests.support.scripted_dns import ScriptedDns
from tests.support.spf_suite import DEFAULT, Case, Zone, cases, listed

pytestmark = pytest.mark.slow

_TYPES = ("A", "AAAA", "MX", "TXT", "PTR", "CNAME")


@dataclass(frozen=True)
class Seen:
    """What became of a case: the refusal of a command, or the finding in the record and the field in the message."""

    refused: str = ""
    finding: dict[str, Any] | None = None
    field: str = ""


class Client:
    """A trusted proxy that hands on one client after the other; MAIL, RCPT and DATA go out in one write."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._file = self._socket.makefile("rb")
        self._reply()
        self._ask("EHLO proxy.test")

    def _reply(self) -> str:
        while True:
            line = self._file.readline().decode().rstrip()
            if line[3:4] != "-":
                return line

    def _ask(self, *lines: str) -> list[str]:
        self._socket.sendall("".join(f"{line}\r\n" for line in lines).encode())
        return [self._reply() for _ in lines]

    def send(self, case: Case) -> str:
        """The queue id of the case's message, or what was said and the refusal that it got."""
        address = f"IPV6:{case.client}" if ":" in case.client else case.client
        assert self._ask(f"XCLIENT ADDR={address}")[0].startswith("220 "), case
        (reply,) = self._ask(f"EHLO {case.helo}")
        if not reply.startswith("250 "):
            return f"EHLO: {reply}"
        replies = self._ask(f"MAIL FROM:<{path(case.sender)}>", "RCPT TO:<ben@example.org>", "DATA")
        for command, reply, expected in zip(("MAIL", "RCPT", "DATA"), replies, ("250 ", "250 ", "354 "), strict=True):
            if not reply.startswith(expected):
                return f"{command}: {reply}"
        (reply,) = self._ask(f"Subject: {case.id}\r\n\r\n{case.scenario}\r\n.")
        queued = re.fullmatch(r"250 2\.0\.0 queued as (\w+)", reply)
        return queued[1] if queued else f"message: {reply}"

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def path(sender: str) -> str:
    """The sender as it stands between angle brackets, quoted where SMTP needs it."""
    local, _, domain = sender.rpartition("@")
    return str(Address(local, domain)) if local else sender


def silent(zone: Zone) -> list[tuple[str, str]]:
    return [(name, rdtype) for name in sorted(zone.silent) for rdtype in _TYPES if zone.times_out(name, rdtype)]


def run(gate: GatepostProcess, server: ScriptedDns) -> Iterator[tuple[Case, str]]:
    """Send every case; the zone is changed from scenario to scenario.

    Those with names that time out come last: the resolver remembers a failure for a second, and other scenarios have
    records under the same names.
    """
    ordered = sorted(cases(), key=lambda case: bool(case.zone.silent))
    for _, scenario in groupby(ordered, key=lambda case: case.scenario):
        of_scenario = list(scenario)
        zone = of_scenario[0].zone
        server.serve(zone.rrsets())
        for name, rdtype in silent(zone):
            server.misbehave(name, Fault.SILENT, rdtype)
        client = Client(gate.port)
        for case in of_scenario:
            yield case, client.send(case)
        client.close()
        for name, rdtype in silent(zone):
            server.misbehave(name, None, rdtype)


def fields(directory: Path) -> dict[str, str]:
    """The Authentication-Results of the stored messages by queue id, unfolded."""
    found = {}
    for file in delivered(directory):
        head = re.sub(r"\r?\n[ \t]+", " ", file.read_bytes().partition(b"\n\n")[0].decode())
        id = re.search(r"^Received: .*\bid (\w+)", head, re.MULTILINE)
        field = re.search(r"^Authentication-Results: (.*)$", head, re.MULTILINE)
        assert id, head
        found[id[1]] = field[1].strip() if field else ""
    return found


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[str, Seen]]:
    """One Gatepost, one nameserver, one message for each case."""
    directory = new_directory("suite")
    server = ScriptedDns()
    gate = GatepostProcess(
        {
            "domains": maildir(directory),
            "listeners": [
                {"address": f"127.0.0.1:{free_port()}", "role": "edge", "xclient": {"trusted": ["127.0.0.1/32"]}}
            ],
            "dns": {"nameservers": [server.address], "timeout": "400ms"},
            "pipeline": [{"spf": {}}],
        }
    )
    try:
        said = dict(run(gate, server))
        gate.wait_empty()
        stored = fields(directory)
        out = {}
        for case, word in said.items():
            if ":" in word:
                out[case.id] = Seen(refused=word)
                continue
            status, record = gate.http("GET", f"/api/v1/explain/{word}")
            assert status == 200, record
            (finding,) = spf_findings(json.loads(record))
            out[case.id] = Seen("", finding, stored[word])
        yield out
    finally:
        try:
            gate.stop()
        except BaseException:
            gate.kill()
            raise
        finally:
            server.stop()
            shutil.rmtree(directory, ignore_errors=True)
            shutil.rmtree(gate.directory, ignore_errors=True)


def spf_findings(explained: Any) -> Iterator[dict[str, Any]]:
    if isinstance(explained, dict):
        if explained.get("finding") == "Spf":
            yield explained["value"]
        explained = list(explained.values())
    if isinstance(explained, list):
        for value in explained:
            yield from spf_findings(value)


def test_every_case_is_refused_or_judged(seen):
    assert set(seen) == {case.id for case in cases()}


def test_the_commands_that_are_refused_are_those_that_are_listed(seen):
    refused = {}
    for id, what in seen.items():
        if what.refused:
            command, _, reply = what.refused.partition(": ")
            refused[id] = (command, " ".join(reply.split()[:2]))
    assert refused == listed("Through SMTP")


def test_results_and_explanations_in_the_record_are_the_suites(seen):
    differing = {}
    for case in cases():
        finding = seen[case.id].finding
        if finding is not None:
            words = "" if case.explanation == DEFAULT else case.explanation
            if finding["result"] not in case.results or words not in (None, finding["explanation"]):
                differing[case.id] = finding
    assert differing == {}


def test_the_field_in_the_message_says_the_same_as_the_record(seen):
    for case in cases():
        finding, field = seen[case.id].finding, seen[case.id].field
        if finding is None:
            continue
        assert field.startswith("mx.example.org; "), case.id
        results = re.findall(r'spf=(\w+) smtp\.(mailfrom|helo)=("(?:[^"\\]|\\.)*"|[^\s;]+)', field)
        said = {identity: (result, domain.strip('"')) for result, identity, domain in results}
        expected = {
            "mailfrom": (finding["result"], finding["domain"]),
            "helo": (finding["helo"], finding["helo_domain"]),
        }
        assert said == {identity: value for identity, value in expected.items() if value[1]}, case.id


def test_where_the_suite_leaves_a_choice_ours_is_listed(seen):
    findings = {case.id: seen[case.id].finding for case in cases() if len(case.results) > 1}
    page = listed("Where the suite allows several results")
    assert {id: finding["result"] for id, finding in findings.items() if finding} == {
        id: smtp for id, (_, smtp) in page.items()
    }
