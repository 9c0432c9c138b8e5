"""Quarantine as a place: from a policy's verdict to a mailbox, to nowhere, or to the end of its time."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import connect, queue_id, transact
from tests.support.process import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.first]

RULES = [
    {"name": "odd", "when": 'message.subject.contains("odd")', "then": {"quarantine": "odd subject"}},
    {
        "name": "elsewhere",
        "when": 'message.subject.contains("away")',
        "then": [{"reroute": "smtp:127.0.0.1:1"}, "quarantine"],
    },
]


def start(gatepost: Any, directory: Path, **more: Any) -> Any:
    domain = {"next_hop": f"maildir:{directory}/mail/{{local}}", "recipients": "any"}
    return gatepost(domains={"example.org": domain}, pipeline=[{"rules": RULES}], **more)


def send(gate: Any, subject: str, recipient: str = "anna@example.org") -> str:
    content = f"From: ben@sender.test\r\nSubject: {subject}\r\n\r\nHello {subject}.\r\n".encode()
    with connect(gate.port) as smtp:
        return queue_id(transact(smtp, "ben@sender.test", [recipient], content))


def mail(directory: Path, local: str = "anna") -> list[str]:
    return [path.read_text() for path in sorted((directory / "mail" / local / "new").glob("*"))]


def listed(gate: Any, *choice: str) -> list[str]:
    return [message["id"] for message in gate.cli("quarantine", "list", *choice)]


def attempts(gate: Any, id: str) -> list[tuple[str, str]]:
    (explained,) = gate.cli("explain", id)
    return [(a["outcome"], a["recipient"]) for a in explained["attempts"]]


def test_messages_are_set_aside_listed_shown_released_and_dropped_while_the_gateway_runs(gatepost, directory):
    gate = start(gatepost, directory)
    first, second, third, plain = send(gate, "odd one"), send(gate, "odd two"), send(gate, "away"), send(gate, "fine")
    assert listed(gate) == [first, second, third]
    assert listed(gate, "--reason", "SUBJECT") == [first, second]
    assert "odd: odd subject" in gate.run("quarantine", "list")
    assert "Subject: odd one" in gate.run("quarantine", "show", first)
    assert gate.run("quarantine", "show", first, "--content").endswith("Hello odd one.\n")
    gate.run("quarantine", "show", plain, status=1)

    gate.run("quarantine", "release", first)
    wait_until(lambda: len(mail(directory)) == 2, "the released message is delivered beside the plain one")
    assert "Hello odd one." in "".join(mail(directory))
    assert attempts(gate, first) == [("released", "anna@example.org"), ("delivered", "anna@example.org")]

    # It had a next hop of its own, where nobody listens; who gets it instead is routed as all mail is.
    gate.run("quarantine", "release", third, "--to", "postmaster@example.org")
    wait_until(lambda: mail(directory, "postmaster"), "the other recipient has it")
    assert attempts(gate, third)[0] == ("released", "postmaster@example.org")

    gate.run("quarantine", "drop", "--recipient", "anna@")
    assert listed(gate) == [] and gate.queue() == []
    assert attempts(gate, second) == [("dropped", "anna@example.org")]
    assert len(mail(directory)) == 2


def test_the_same_on_a_gateway_that_is_stopped(gatepost, directory):
    gate = start(gatepost, directory)
    freed, gone = send(gate, "odd one"), send(gate, "odd two")
    gate.stop()
    assert listed(gate) == [freed, gone]
    gate.run("quarantine", "release", freed)
    gate.run("quarantine", "drop", gone)
    assert listed(gate) == []
    gate.start()
    wait_until(lambda: mail(directory), "what was released is delivered at the next start")
    assert [outcome for outcome, _ in attempts(gate, freed)] == ["released", "delivered"]
    assert attempts(gate, gone) == [("dropped", "anna@example.org")]
    assert len(mail(directory)) == 1


def test_the_same_over_the_api(gatepost, directory):
    gate = start(gatepost, directory)
    first, second = send(gate, "odd one"), send(gate, "odd two", "cem@example.org")

    def api(method: str, path: str, body: Any = None) -> tuple[int, Any]:
        status, text = gate.http(method, f"/api/v1/quarantine{path}", body)
        return status, json.loads(text)

    status, page = api("GET", "?recipient=cem")
    assert (status, [m["id"] for m in page["messages"]], page["next"]) == (200, [second], None)
    assert "Subject: odd two" in api("GET", f"/{second}")[1]["header"]
    assert "Hello odd two." in gate.http("GET", f"/api/v1/quarantine/{second}/content")[1]
    assert api("POST", f"/{second}/release", {"to": ["postmaster@example.org"], "by": "eve"}) == (
        200,
        {"released": second},
    )
    wait_until(lambda: mail(directory, "postmaster"), "it is delivered to the other recipient")
    assert "eve by the API at 127.0.0.1" in gate.run("explain", second)
    assert api("DELETE", f"/{first}") == (200, {"dropped": first})
    assert api("DELETE", f"/{first}")[0] == 404
    assert api("GET", "")[1]["messages"] == []
    assert "quarantine.released" in gate.log and "quarantine.dropped" in gate.log


def test_what_is_there_for_long_is_dropped_by_a_running_gateway_and_after_a_restart(gatepost, directory):
    gate = start(gatepost, directory, quarantine={"keep": "2s"})
    old = send(gate, "odd one")
    wait_until(lambda: not listed(gate), "its time is over")
    assert attempts(gate, old) == [("expired", "anna@example.org")]
    assert gate.metric("gatepost_quarantine_expired_total") == 1
    (event,) = [json.loads(line) for line in gate.log.splitlines() if "quarantine.expired" in line]
    assert (event["id"], event["sender"], event["reason"]) == (old, "ben@sender.test", "odd: odd subject")
    assert mail(directory) == []

    gate.config.write_text(json.dumps({**gate.options, "quarantine": {"keep": 0}}))
    gate.process.signal(signal.SIGHUP)
    wait_until(lambda: "reload.done" in gate.log, "0 keeps mail for ever")
    kept = send(gate, "odd two")
    gate.stop()
    gate.config.write_text(json.dumps(gate.options))
    gate.start()
    wait_until(lambda: attempts(gate, kept) == [("expired", "anna@example.org")], "it is old by now, and goes")
    assert gate.queue() == []
