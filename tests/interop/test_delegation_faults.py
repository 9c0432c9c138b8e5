"""A policy server that hangs, drips, closes, babbles, is slow or is not there, at every stage where it is asked."""

from __future__ import annotations

import json
import shutil
import smtplib
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.interop.settings import maildir
from tests.support.clients import queue_id, reference, transact
from tests.support.gatepost import IMPATIENT, GatepostProcess
from tests.support.policy_server import PolicyServer, Trouble
from tests.support.process import free_port, new_directory, wait_until

pytestmark = pytest.mark.slow

PAUSE = 1.0
"""Seconds that breakers stay open at first. Within them a busy machine must find one open."""
FIVE = {
    Trouble.HANGS: "timeout",
    Trouble.GARBAGE: "error",
    Trouble.DRIPS: "timeout",
    Trouble.ENDLESS: "error",
    # It is asked once more a second later, and by then the entry's time is over.
    Trouble.CLOSES: "timeout",
}
"""So many faults open a breaker; and what kind of fault each trouble is."""
AT_ONCE = [Trouble.CUTS, Trouble.BINARY, Trouble.NO_ACTION, Trouble.UNKNOWN, Trouble.TWICE]
REPLIES = {"defer": (451, "4.3.0"), "proceed": (250, "2.0.0"), "reject": (554, "5.3.0")}
CASES = [
    *((stage, "defer") for stage in ("connect", "helo", "mail", "rcpt", "data", "message")),
    *((stage, on_error) for stage in ("connect", "rcpt", "message") for on_error in ("proceed", "reject")),
]


@dataclass(frozen=True)
class Met:
    """What a client met: code and enhanced status, the decision record, and how often the server was asked."""

    reply: tuple[int, str]
    record: dict[str, Any]
    asked: int

    @property
    def fault(self) -> str:
        """The kind of fault that the record has for the server's finding, empty for none."""
        (note,) = [note for note in self.record["findings"] if note["finding"] == "DelegatedAction"]
        assert ("fault" in note) != ("value" in note)
        return str(note.get("fault", ""))

    @property
    def verdict(self) -> dict[str, Any]:
        (verdict,) = [verdict for verdict in self.record["verdicts"] if verdict["plugin"] == "delegation"]
        return dict(verdict)


@dataclass(frozen=True)
class Rig:
    """A scripted policy server, and a Gatepost with a listener for each pipeline."""

    server: PolicyServer
    gate: GatepostProcess
    ports: dict[str, int]

    def meet(self, pipeline: str, recipient: str = "ben@example.org") -> Met:
        """One message."""
        self.server.take()
        code, text = self._transact(self.ports[pipeline], recipient)
        id = queue_id((code, text)) if code == 250 else reference(text)
        return Met((code, text.split()[0]), self._record(id), len(self.server.take()))

    def _transact(self, port: int, recipient: str) -> tuple[int, str]:
        try:
            with smtplib.SMTP("127.0.0.1", port, local_hostname="client.test", timeout=30) as client:
                code, said = client.ehlo()
                return transact(client, "ann@sender.test", [recipient]) if code == 250 else (code, said.decode())
        except smtplib.SMTPConnectError as error:
            assert isinstance(error.smtp_error, bytes)
            return error.smtp_code, error.smtp_error.decode()

    def _record(self, id: str) -> dict[str, Any]:
        """The decision record; that of a refusal is written a moment after the reply."""

        def written() -> dict[str, Any] | None:
            status, body = self.gate.http("GET", f"/api/v1/explain/{id}")
            return json.loads(body)[0]["record"] if status == 200 else None

        return wait_until(written, f"the record of {id} is written")

    def findings(self, outcome: str) -> float:
        return self.gate.metric("gatepost_findings_total", plugin="delegation", outcome=outcome)

    def requests(self, action: str) -> float:
        return self.gate.metric("gatepost_delegation_requests_total", action=action)

    @property
    def breaker(self) -> float:
        return self.gate.metric("gatepost_breaker_open", plugin="delegation")

    def heal(self, pipeline: str) -> None:
        """The server is well again; wait until the pipeline has noticed."""
        self.server.always("DUNNO")
        wait_until(lambda: self.meet(pipeline).fault == "", f"{pipeline} asks again")
        assert self.breaker == 0


def name(stage: str, on_error: str) -> str:
    return f"{stage}-{on_error}"


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    server = PolicyServer()
    directory = new_directory("delegation")

    def entry(at: str, on_error: str, timeout: str = "500ms", **options: Any) -> dict[str, Any]:
        return {
            "delegation": {"connect": server.address, "at": [at], **options},
            "timeout": timeout,
            "on_error": on_error,
        }

    refused = {"access": {"lists": [{"match": "recipient", "entries": ["refused@example.org 554 5.7.1 no"]}]}}
    pipelines = {name(stage, on_error): [entry(stage, on_error)] for stage, on_error in CASES}
    pipelines["patient"] = [entry("rcpt", "defer", "20s")]
    down = "DEFER_IF_PERMIT 4.3.5 policy server is down"
    pipelines["stand-in"] = [entry("rcpt", "proceed", default_action=down), refused]
    ports = {pipeline: free_port() for pipeline in pipelines}
    gate = GatepostProcess(
        {
            "domains": maildir(directory),
            "listeners": [
                {"address": f"127.0.0.1:{port}", "role": "edge", "pipeline": pipeline}
                for pipeline, port in ports.items()
            ],
            "pipelines": pipelines,
        },
        run=(sys.executable, str(IMPATIENT), f"{PAUSE:g}"),
    )
    yield Rig(server, gate, ports)
    gate.stop()
    server.stop()
    shutil.rmtree(directory, ignore_errors=True)
    shutil.rmtree(gate.directory, ignore_errors=True)


@pytest.mark.parametrize(("stage", "on_error"), CASES)
def test_trouble_is_on_error_and_five_faults_open_the_breaker_which_closes_again(rig, stage, on_error):
    pipeline = name(stage, on_error)
    wanted = (421, "4.3.0") if (stage, on_error) == ("connect", "defer") else REPLIES[on_error]
    opened, closed = rig.gate.log.count("breaker.opened"), rig.gate.log.count("breaker.closed")
    well = rig.meet(pipeline)
    assert (well.reply, well.fault, well.asked) == (REPLIES["proceed"], "", 1)

    for faults, (trouble, kind) in enumerate(FIVE.items(), 1):
        before, failed = rig.findings(kind), rig.requests("failed")
        rig.server.always(trouble)
        met = rig.meet(pipeline)
        assert (met.reply, met.fault) == (wanted, kind), trouble
        assert met.asked >= 1, trouble
        assert (met.verdict["policy"], met.verdict["action"]) == verdict(on_error), trouble
        assert rig.findings(kind) == before + 1
        assert rig.requests("failed") == failed + 1
        assert rig.breaker == (faults == len(FIVE))

    met = rig.meet(pipeline)
    assert (met.reply, met.fault, met.asked) == (wanted, "breaker", 0)
    assert rig.gate.log.count("breaker.opened") == opened + 1

    rig.heal(pipeline)
    assert rig.gate.log.count("breaker.closed") == closed + 1
    assert rig.meet(pipeline).reply == REPLIES["proceed"]


def verdict(on_error: str) -> tuple[str, str]:
    """Who speaks for a server that has failed: with `proceed` the policy, which has a default action to look for."""
    return ("delegation", "proceed") if on_error == "proceed" else ("on_error", on_error)


@pytest.mark.parametrize("trouble", AT_ONCE)
def test_an_answer_that_is_none_is_a_fault_at_once(rig, trouble):
    rig.server.always(trouble)
    met = rig.meet("patient")
    assert (met.reply, met.fault, met.asked) == (REPLIES["defer"], "error", 1)
    rig.heal("patient")


def test_a_server_that_closes_without_an_answer_is_asked_once_more(rig):
    again = rig.gate.metric("gatepost_delegation_reconnects_total")
    rig.server.always(Trouble.CLOSES)
    met = rig.meet("patient")
    assert (met.reply, met.fault, met.asked) == (REPLIES["defer"], "error", 2)
    assert "closed without a reply" in met.verdict["reason"]
    assert rig.gate.metric("gatepost_delegation_reconnects_total") == again + 1
    answers = iter([Trouble.CLOSES, "DUNNO"])
    rig.server.answer = lambda request: next(answers)
    met = rig.meet("patient")
    assert (met.reply, met.fault, met.asked) == (REPLIES["proceed"], "", 2)
    rig.heal("patient")


def test_a_slow_server_is_waited_for(rig):
    late = threading.Event()

    def answer(request: object) -> str:
        late.wait(0.1)
        return "REJECT 5.7.1 slowly"

    rig.server.answer = answer
    assert rig.meet(name("rcpt", "defer")).reply == (554, "5.7.1")
    rig.heal(name("rcpt", "defer"))


def test_a_server_that_is_gone_is_a_fault_at_once_and_its_return_is_noticed(rig):
    assert rig.meet("patient").fault == ""
    rig.server.stop()
    met = rig.meet("patient")
    assert (met.reply, met.fault) == (REPLIES["defer"], "error")
    rig.server.start()
    assert rig.meet("patient").fault == ""
    assert rig.breaker == 0


def test_a_server_that_restarts_between_two_messages_is_not_noticed(rig):
    assert rig.meet("patient").fault == ""
    rig.server.stop()
    rig.server.start()
    met = rig.meet("patient")
    assert (met.reply, met.fault) == (REPLIES["proceed"], "")


def test_the_default_action_stands_in_for_a_server_that_fails(rig):
    assert rig.meet("stand-in").reply == REPLIES["proceed"]
    rig.server.always(Trouble.GARBAGE)
    met = rig.meet("stand-in")
    assert (met.reply, met.fault) == ((450, "4.3.5"), "error")
    assert (met.verdict["policy"], met.verdict["action"], met.verdict["when"]) == ("delegation", "defer", "if-permit")
    # What it defers only unless somebody refuses is refused by somebody.
    assert rig.meet("stand-in", "refused@example.org").reply == (554, "5.7.1")
    for _ in range(3):
        assert rig.meet("stand-in").reply == (450, "4.3.5")
    met = rig.meet("stand-in")
    assert (met.reply, met.fault, met.asked) == ((450, "4.3.5"), "breaker", 0)
    rig.heal("stand-in")
    assert rig.meet("stand-in").reply == REPLIES["proceed"]
