"""Milters in trouble, as a running Gatepost meets it: killed, hanging, slow, talking nonsense, at every stage.

What the client gets is the entry's `on_error`, whatever the trouble and the stage; once a milter has begun to change a
message it is a deferral. Its breaker opens and closes again.
"""

from __future__ import annotations

import json
import shutil
import signal
import smtplib
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.interop.settings import delivered, maildir
from tests.support.clients import MESSAGE, queue_id, reference, transact
from tests.support.gatepost import IMPATIENT, GatepostProcess
from tests.support.milter_servers import MilterServer, pymilter
from tests.support.process import free_port, new_directory, wait_until
from tests.support.scripted_milter import (
    CONTINUE,
    PROGRESS,
    Die,
    Forever,
    Hang,
    Script,
    ScriptedMilter,
    ThenDie,
    added,
    packet,
)

pytestmark = pytest.mark.slow

PAUSE = 1.0
STAGES = {"C": "connect", "H": "helo", "M": "mail", "R": "rcpt", "T": "data", "L": "message", "B": "message"}
STAGES |= {"N": "message", "E": "message"}
ON_ERROR = ("defer", "reject", "proceed")
CODES = {"defer": 451, "reject": 554, "proceed": 250}
TROUBLES: dict[str, tuple[Script, str]] = {
    "it dies": (Die, "error"),
    "it hangs": (Hang, "timeout"),
    "it talks nonsense": (packet("?"), "error"),
    "it says too much at once": (struct.pack(">I", 1 << 30) + b"x", "error"),
    "it is cut off": (ThenDie(b"\0\0\0\x09h"), "error"),
}


@dataclass(frozen=True)
class Met:
    """What a client met: the code of the first refusal or of the message, and the id to explain it by."""

    code: int
    id: str


def meet(port: int) -> Met:
    """One session with one message."""
    try:
        with smtplib.SMTP("127.0.0.1", port, local_hostname="client.test", timeout=30) as client:
            code, said = client.ehlo()
            if code != 250:
                return Met(code, reference(said.decode()))
            code, text = transact(client, "ann@sender.test", ["ben@example.org"], MESSAGE)
    except smtplib.SMTPConnectError as error:
        assert isinstance(error.smtp_error, bytes)
        return Met(error.smtp_code, reference(error.smtp_error.decode()))
    return Met(code, queue_id((code, text)) if code == 250 else reference(text))


class Rig:
    """A Gatepost with a listener and a pipeline for each `on_error`, all with the same milter."""

    def __init__(self, address: str) -> None:
        self.directory = new_directory("milter-faults")
        self.ports = {on_error: free_port() for on_error in ON_ERROR}
        self.gate = GatepostProcess(
            {
                "domains": maildir(self.directory),
                "listeners": [
                    {"address": f"127.0.0.1:{port}", "role": "edge", "pipeline": name}
                    for name, port in self.ports.items()
                ],
                "deadlines": {"message": "1500ms"},
                "pipelines": {
                    name: [
                        {
                            "milter": {"connect": address, "name": "m", "reuse": False},
                            "timeout": "300ms",
                            "on_error": name,
                        }
                    ]
                    for name in ON_ERROR
                },
            },
            run=(sys.executable, str(IMPATIENT), f"{PAUSE:g}"),
        )

    def stop(self) -> None:
        try:
            self.gate.stop()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)
            shutil.rmtree(self.gate.directory, ignore_errors=True)

    def meet(self, on_error: str) -> Met:
        return meet(self.ports[on_error])

    def faults(self, outcome: str) -> float:
        return self.gate.metric("gatepost_findings_total", plugin="milter", outcome=outcome)

    def noted(self, met: Met) -> list[dict[str, Any]]:
        """The findings of the milter that failed, from the decision record."""

        def written() -> Any:
            status, body = self.gate.http("GET", f"/api/v1/explain/{met.id}")
            return json.loads(body)[0]["record"] if status == 200 else None

        record = wait_until(written, f"the record of {met.id} is written")
        return [note for note in record["findings"] if "fault" in note]


@pytest.fixture(scope="module")
def milter() -> Iterator[ScriptedMilter]:
    with ScriptedMilter() as server:
        yield server


@pytest.fixture(scope="module")
def rig(milter: ScriptedMilter) -> Iterator[Rig]:
    made = Rig(milter.address)
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def well(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test the milter is well again."""
    yield
    if "milter" in request.fixturenames:
        request.getfixturevalue("milter").script.clear()


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("letter", STAGES)
def test_trouble_at_any_stage_is_on_error_and_the_next_stage_begins_anew(milter, rig, letter, trouble):
    script, outcome = TROUBLES[trouble]
    for on_error in ON_ERROR:
        before = rig.faults(outcome)
        milter.script[letter] = [script, CONTINUE]
        met = rig.meet(on_error)
        expected = CODES[on_error]
        assert met.code == (421 if letter == "C" and on_error == "defer" else expected), on_error
        (note,) = rig.noted(met)
        assert (note["stage"], note["fault"]) == (STAGES[letter], outcome)
        assert rig.faults(outcome) == before + 1
        milter.script.clear()
        milter.told.clear()
        assert rig.meet(on_error).code == 250
        milter.wait_letters("CHMRTLLLLLNBEQ")


def test_a_failure_in_one_message_does_not_spoil_the_session(milter, rig):
    milter.script["R"] = [Die, CONTINUE]
    with smtplib.SMTP("127.0.0.1", rig.ports["defer"], local_hostname="client.test", timeout=30) as client:
        client.ehlo()
        assert transact(client, "ann@sender.test", ["ben@example.org"])[0] == 451
        milter.told.clear()
        assert transact(client, "ann@sender.test", ["ben@example.org"])[0] == 250
    milter.wait_letters("CHMRTLLLLLNBEQ")


@pytest.mark.parametrize("end", [ThenDie(added("X", "y")), added("X", "y"), added("X", "y") + packet("?")])
@pytest.mark.parametrize("on_error", ON_ERROR)
def test_death_while_it_changes_a_message_is_a_deferral_whatever_on_error_says(milter, rig, on_error, end):
    milter.script["E"] = [end, CONTINUE]
    assert rig.meet(on_error).code == 451
    milter.script.clear()
    assert rig.meet(on_error).code == 250


def test_progress_gives_it_more_time_but_not_for_ever(milter, rig):
    milter.script["E"] = Forever(PROGRESS, 0.05)
    met = rig.meet("defer")
    assert met.code == 451
    (note,) = rig.noted(met)
    assert (note["stage"], note["fault"]) == ("message", "deadline")


def test_a_breaker_opens_and_nobody_asks_it_any_more_and_closes_when_it_is_well(milter, rig):
    for on_error in ON_ERROR:
        opened, closed = (rig.gate.log.count(f"breaker.{word}") for word in ("opened", "closed"))
        # With `proceed` each session fails at all six stages: it is told anew at each.
        stages = 6 if on_error == "proceed" else 1
        milter.script["C"] = Die
        for _ in range(5):
            assert rig.meet(on_error).code == (421 if on_error == "defer" else CODES[on_error])
        assert rig.gate.metric("gatepost_breaker_open", plugin="milter") == stages
        assert rig.gate.log.count("breaker.opened") == opened + stages
        asked = milter.connections
        met = rig.meet(on_error)
        assert met.code == (421 if on_error == "defer" else CODES[on_error])
        assert {note["fault"] for note in rig.noted(met)} == {"breaker"}
        assert milter.connections == asked
        milter.script.clear()
        wait_until(
            lambda on_error=on_error, closed=closed + stages: (
                rig.meet(on_error).code == 250 and rig.gate.log.count("breaker.closed") == closed
            ),
            "the breaker closes",
        )


def test_a_milter_that_fails_only_at_the_end_of_each_message_is_left_alone_there(milter, rig):
    milter.script["E"] = Die
    for _ in range(5):
        assert rig.meet("proceed").code == 250
    assert rig.gate.metric("gatepost_breaker_open", plugin="milter", stage="message") == 1
    assert rig.gate.metric("gatepost_breaker_open", plugin="milter", stage="connect") == 0
    met = rig.meet("proceed")
    assert met.code == 250
    assert [note["stage"] for note in rig.noted(met) if note.get("fault") == "breaker"] == ["message"]


# The real thing


def test_a_real_milter_that_is_killed_or_hangs_is_on_error_until_it_is_back():
    record = new_directory("record") / "record"
    server: MilterServer = pymilter("Editing", record)
    rig = Rig(server.address)
    try:
        assert [rig.meet(on_error).code for on_error in ON_ERROR] == [250] * 3
        server.signal(signal.SIGSTOP)
        try:
            met = [rig.meet(on_error) for on_error in ON_ERROR]
            assert [one.code for one in met[:2]] == [421, 554]
            assert met[2].code == 250
            assert {note["fault"] for note in rig.noted(met[2])} <= {"timeout", "breaker"}
        finally:
            server.signal(signal.SIGCONT)
        for on_error in ON_ERROR:
            wait_until(lambda on_error=on_error: rig.meet(on_error).code == 250, "it is asked again")
        server.kill()
        assert [rig.meet(on_error).code for on_error in ON_ERROR] == [421, 554, 250]
        server.start()
        for on_error in ON_ERROR:
            wait_until(lambda on_error=on_error: rig.meet(on_error).code == 250, "it is asked again")
        text = max(delivered(rig.directory), key=lambda path: path.stat().st_mtime_ns).read_text()
        assert "replaced\n" in text.replace("\r", "")
    finally:
        rig.stop()
        server.stop()
        shutil.rmtree(record.parent)
