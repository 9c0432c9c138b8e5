"""A running Gatepost with a milter class in trouble: at each callback, in each way, for each `on_error`.

What the client gets is the entry's `on_error`, the record names the failure, and the breaker opens and closes again.
Once the milter has begun to change the message, it is deferred whatever its owner said.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import smtplib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop.settings import maildir
from tests.support.clients import MESSAGE, queue_id, reference
from tests.support.gatepost import IMPATIENT, GatepostProcess, refused_start
from tests.support.process import new_directory, wait_until

pytestmark = pytest.mark.slow

MILTERS = Path(__file__).parents[1] / "support" / "milters.py"
PAUSE = 1.0
"""Seconds that the breakers of these tests stay open at first."""
FAULTS_TO_OPEN = 5
ON_ERROR = {"defer": "451 4.3.0", "proceed": "250 2.0.0", "reject": "554 5.3.0"}
CLOSED = "421 4.3.0"
"""What stands for a deferral in place of the greeting."""
STAGES = {
    "connect": "connect",
    "hello": "helo",
    "envfrom": "mail",
    "envrcpt": "rcpt",
    "data": "data",
    "header": "message",
    "eoh": "message",
    "body": "message",
    "eom": "message",
}
FAULTS = {"raise": "error", "garbage": "error", "exit": "error", "hang": "timeout"}


@dataclass(frozen=True)
class Rig:
    """A Gatepost with a milter in it, and the file that says what the milter suffers."""

    gate: GatepostProcess
    trouble: Path

    def suffer(self, callback: str = "", word: str = "") -> None:
        self.trouble.write_text(f"{callback} {word}")

    def send(self) -> tuple[str, str]:
        """One message: the first refusal or the last reply, and an id that `explain` takes."""
        try:
            client = smtplib.SMTP("127.0.0.1", self.gate.port, local_hostname="client.test", timeout=30)
        except smtplib.SMTPConnectError as error:
            text = error.smtp_error if isinstance(error.smtp_error, str) else error.smtp_error.decode()
            return f"{error.smtp_code} {text.split()[0]}", reference(text)
        with client:
            replies = [client.ehlo(), client.docmd("MAIL", "FROM:<ann@sender.test>")]
            replies += [client.docmd("RCPT", "TO:<ben@example.org>")] if replies[-1][0] == 250 else []
            if all(code == 250 for code, _ in replies):
                try:
                    replies.append(client.data(MESSAGE))
                except smtplib.SMTPDataError as error:
                    assert isinstance(error.smtp_error, bytes)
                    replies.append((error.smtp_code, error.smtp_error))
            code, said = next((reply for reply in replies if reply[0] != 250), replies[-1])
            text = said.decode()
            return f"{code} {text.split()[0]}", queue_id((code, text)) if code == 250 else reference(text)

    def record(self, id: str) -> dict[str, Any]:
        """The decision record; that of a refusal is written a moment after the reply."""

        def written() -> dict[str, Any] | None:
            status, body = self.gate.http("GET", f"/api/v1/explain/{id}")
            return json.loads(body)[0]["record"] if status == 200 else None

        return wait_until(written, f"the record of {id} is written")

    def breaker(self) -> float:
        return self.gate.metric("gatepost_breaker_open", plugin="milter-host")

    def well_again(self) -> None:
        """The trouble is over, and so is what came of it."""
        self.suffer()
        wait_until(lambda: self.send()[0] == "250 2.0.0" and not self.breaker(), "all is well")


def answer(on_error: str, callback: str) -> str:
    """What the client gets when a callback fails."""
    return CLOSED if (on_error, callback) == ("defer", "connect") else ON_ERROR[on_error]


@pytest.fixture(scope="module")
def rigs() -> Iterator[dict[str, Rig]]:
    """A Gatepost for each `on_error`, since breakers are told apart by their entry's name only."""
    directory = new_directory("trouble")
    made: dict[str, Rig] = {}
    with pytest.MonkeyPatch.context() as patch:
        for on_error in ON_ERROR:
            trouble = directory / on_error
            trouble.write_text("")
            patch.setenv("MILTER_TROUBLE", str(trouble))
            options = {
                "domains": maildir(directory),
                "pipeline": [
                    {
                        "milter-host": {"class": "Troubled", "file": str(MILTERS), "threads": 4},
                        "timeout": "300ms",
                        "on_error": on_error,
                    }
                ],
            }
            gate = GatepostProcess(options, run=(sys.executable, str(IMPATIENT), f"{PAUSE:g}"))
            made[on_error] = Rig(gate, trouble)
    try:
        yield made
    finally:
        for rig in made.values():
            rig.suffer()
            rig.gate.kill()
            shutil.rmtree(rig.gate.directory, ignore_errors=True)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.parametrize("word", FAULTS)
@pytest.mark.parametrize("callback", STAGES)
def test_trouble_at_a_callback_defers_by_default_and_the_record_says_where_and_what(rigs, callback, word):
    rig = rigs["defer"]
    rig.well_again()
    rig.suffer(callback, word)
    reply, id = rig.send()
    rig.suffer()
    assert reply == answer("defer", callback)
    record = rig.record(id)
    faults = [f for f in record["findings"] if f.get("fault")]
    assert [(f["plugin"], f["stage"], f["fault"]) for f in faults] == [("milter-host", STAGES[callback], FAULTS[word])]
    (verdict,) = [v for v in record["verdicts"] if v["action"] != "proceed"]
    assert (verdict["plugin"], verdict["policy"], verdict["action"]) == ("milter-host", "on_error", "defer")
    assert rig.send()[0] == "250 2.0.0", "one failure costs the next message nothing"


@pytest.mark.parametrize("callback", STAGES)
def test_a_slow_callback_is_only_slow(rigs, callback):
    rig = rigs["defer"]
    rig.well_again()
    rig.suffer(callback, "slow" if callback != "header" else "")
    assert rig.send()[0] == "250 2.0.0"


@pytest.mark.parametrize("on_error", ON_ERROR)
@pytest.mark.parametrize("callback", ["connect", "envfrom", "envrcpt", "eom"])
def test_the_clients_answer_is_what_the_owner_said(rigs, callback, on_error):
    rig = rigs[on_error]
    for word in ("raise", "hang"):
        rig.well_again()
        rig.suffer(callback, word)
        assert rig.send()[0] == answer(on_error, callback), word
    rig.well_again()


@pytest.mark.parametrize("on_error", ON_ERROR)
def test_once_changes_have_begun_failure_defers_whatever_the_owner_said(rigs, on_error):
    rig = rigs[on_error]
    for word in ("change", "flood"):
        rig.well_again()
        rig.suffer("eom", word)
        assert rig.send()[0] == ON_ERROR["defer"], word
    rig.well_again()


@pytest.mark.parametrize("word", ["raise", "hang"])
@pytest.mark.parametrize("on_error", ON_ERROR)
def test_the_breaker_opens_after_five_faults_and_closes_when_the_milter_is_well(rigs, on_error, word):
    rig = rigs[on_error]
    rig.well_again()
    opened, closed = (rig.gate.log.count(f"breaker.{event}") for event in ("opened", "closed"))
    rig.suffer("connect", word)
    sent = 0
    while not rig.breaker():
        assert rig.send()[0] == answer(on_error, "connect")
        sent += 1
    assert sent == FAULTS_TO_OPEN
    # Where one goes on all the same, it fails at each stage, and each has a breaker.
    stages = rig.breaker()
    assert stages > 1 if on_error == "proceed" else stages == 1
    assert rig.gate.log.count("breaker.opened") == opened + stages
    reply, id = rig.send()
    assert reply == answer(on_error, "connect"), "while it is open"
    assert {f["fault"] for f in rig.record(id)["findings"] if f.get("fault")} == {"breaker"}
    rig.suffer()
    wait_until(lambda: rig.send()[0] == "250 2.0.0" and not rig.breaker(), "the breaker closes")
    assert rig.gate.log.count("breaker.closed") >= closed + stages


def test_threads_that_hang_are_counted_and_come_back(rigs):
    rig = rigs["defer"]
    rig.well_again()

    def stuck() -> float:
        return rig.gate.metric("gatepost_milter_host_stuck_threads", milter="Troubled")

    rig.suffer("hello", "hang")
    for _ in range(4):
        assert rig.send()[0] == ON_ERROR["defer"]
    assert stuck() == 4
    reply, id = rig.send()
    assert reply == CLOSED
    assert "all 4 threads are stuck" in json.dumps(rig.record(id))
    rig.well_again()
    wait_until(lambda: stuck() == 0, "they are back")


def test_a_thread_that_hangs_keeps_nobody_from_ending(rigs):
    # The last test of this one.
    rig = rigs["reject"]
    rig.well_again()
    rig.suffer("hello", "hang")
    assert rig.send()[0] == ON_ERROR["reject"]
    rig.gate.process.signal(signal.SIGTERM)
    assert rig.gate.process.wait(20) == 0


@pytest.mark.parametrize(
    ("text", "options", "problem"),
    [
        ("import no_such_module_at_all", {"class": "Mine"}, "importing .* failed: ModuleNotFoundError"),
        ("class Mine: pass", {"class": "Mine"}, "no subclass of Milter.Base"),
        ("", {"class": "Mine"}, "has no Mine"),
        ("", {"class": "no_such_module_at_all:Mine", "file": ""}, "there is no module no_such_module_at_all"),
    ],
)
def test_gatepost_does_not_start_with_a_class_that_cannot_be_had_and_says_why(tmp_path, text, options, problem):
    path = tmp_path / "mine.py"
    path.write_text(text)
    given = {"file": str(path), **options}
    status, said = refused_start({"pipeline": [{"milter-host": given}]})
    assert status == 2
    assert re.search(problem, said), said
    assert "Traceback" not in said
