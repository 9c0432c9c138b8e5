"""DNS in trouble, as a running Gatepost meets it: killed, hanging, slow, refusing, answering garbage.

For each question that a plugin asks (`tests/support/asking.py`) the documented result is what the client gets, whatever
the trouble; where the owner gave the entry less time than the trouble takes, what the client gets is the entry's
`on_error`, and its breaker opens and closes again. Nothing is refused for good and nothing is let through by a verdict
because of trouble, unless the owner said so.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

import plugins
from tests.contract.dnsserver import Fault
from tests.interop.settings import maildir
from tests.support.asking import ASKING, Asking, Outcome
from tests.support.clients import ProxiedClient, queue_id, reference, transact
from tests.support.gatepost import IMPATIENT, GatepostProcess
from tests.support.process import free_port, new_directory, wait_until
from tests.support.scripted_dns import ScriptedDns

pytestmark = pytest.mark.slow

DNS_TIMEOUT = 1.0
SLOW, TOO_SLOW = 0.2, 5.0
PAUSE = 1.0
"""Seconds that the breakers of these tests stay open at first."""
FAULTS_TO_OPEN = 5


Trouble = Callable[[ScriptedDns, str], None]


def suffering(fault: Fault) -> Trouble:
    return lambda server, name: server.misbehave(name, fault)


def late(seconds: float) -> Trouble:
    return lambda server, name: server.keep_back(name, seconds)


HANGING: dict[str, Trouble] = {
    "it hangs": suffering(Fault.SILENT),
    "its answers are cut off": suffering(Fault.CUT),
    "its answers have another id": suffering(Fault.ONLY_WRONG_ID),
    "its answers are to another question": suffering(Fault.ONLY_WRONG_QUESTION),
    "it is too slow": late(TOO_SLOW),
}
"""What nobody knows to be trouble before the time is over."""
FAILING: dict[str, Trouble] = {
    "it says SERVFAIL": suffering(Fault.SERVFAIL),
    "it says REFUSED": suffering(Fault.REFUSED),
    "it talks garbage over TCP": suffering(Fault.TRUNCATED_TCP_GARBAGE),
    "it closes TCP": suffering(Fault.TRUNCATED_TCP_CLOSED),
}
BEARABLE: dict[str, Trouble] = {
    "it is well": lambda server, name: None,
    "it is slow": late(SLOW),
    "its answers need TCP": suffering(Fault.TRUNCATED),
    "forged answers come first": suffering(Fault.WRONG_ID),
    "answers to another question come first": suffering(Fault.WRONG_QUESTION),
    "garbage comes first": suffering(Fault.GARBAGE),
    "it loses a question": suffering(Fault.LOST_ONCE),
}

_number = itertools.count(1)


@dataclass(frozen=True)
class Met:
    """What a client met: reply code and enhanced status, the decision record, and how often the name was asked for."""

    reply: str
    record: dict[str, Any]
    questions: int


@dataclass(frozen=True)
class Rig:
    """A nameserver, and a Gatepost with a listener and a pipeline for each entry of a pipeline."""

    server: ScriptedDns
    gate: GatepostProcess
    ports: dict[str, int]
    directory: Path

    def stop(self) -> None:
        try:
            self.gate.stop()
        except BaseException:
            self.gate.kill()
            raise
        finally:
            self.server.stop()
            shutil.rmtree(self.directory, ignore_errors=True)
            shutil.rmtree(self.gate.directory, ignore_errors=True)

    def meet(self, row: Asking, pipeline: str, trouble: Trouble | None = None) -> Met:
        """One transaction, while answers to what the row asks are in trouble."""
        row = row.number(next(_number))
        for line in row.records:
            self.server.change(line)
        if trouble:
            trouble(self.server, row.asked)
        with ProxiedClient(self.ports[pipeline], row.client) as client:
            client.ehlo(row.helo)
            code, text = transact(client, row.sender, ["ben@example.org"], row.content)
        id = queue_id((code, text)) if code == 250 else reference(text)
        return Met(f"{code} {text.split()[0]}", self.record(id), self.server.count(row.asked))

    def record(self, id: str) -> dict[str, Any]:
        """The decision record; that of a refusal is written a moment after the reply."""

        def written() -> dict[str, Any] | None:
            status, body = self.gate.http("GET", f"/api/v1/explain/{id}")
            return json.loads(body)[0]["record"] if status == 200 else None

        return wait_until(written, f"the record of {id} is written")

    def findings(self, plugin: str, outcome: str) -> float:
        return self.gate.metric("gatepost_findings_total", plugin=plugin, outcome=outcome)

    def breaker(self, plugin: str) -> float:
        return self.gate.metric("gatepost_breaker_open", plugin=plugin)


def rig(pipelines: Mapping[str, Sequence[Mapping[str, Any]]], timeout: float) -> Rig:
    """`pipelines`: their entries by name. `timeout` is that of DNS questions."""
    directory = new_directory("faults")
    server = ScriptedDns()
    ports = {name: free_port() for name in pipelines}
    listeners = [
        {
            "address": f"127.0.0.1:{port}",
            "role": "edge",
            "proxy_protocol": {"trusted": ["127.0.0.1/32"]},
            "pipeline": name,
        }
        for name, port in ports.items()
    ]
    options = {
        "domains": maildir(directory),
        "listeners": listeners,
        "dns": {"nameservers": [server.address], "timeout": f"{timeout:g}s"},
        "pipelines": {name: list(entries) for name, entries in pipelines.items()},
    }
    try:
        gate = GatepostProcess(options, run=(sys.executable, str(IMPATIENT), f"{PAUSE:g}"))
    except BaseException:
        server.stop()
        raise
    return Rig(server, gate, ports, directory)


def value(row: Asking, record: dict[str, Any]) -> dict[str, Any]:
    """The row's note among the record's findings."""
    (note,) = [f for f in record["findings"] if (f["plugin"], f["finding"]) == (row.plugin, row.finding)]
    assert note["stage"] == row.stage
    return note


def check(row: Asking, met: Met, outcome: Outcome, when: str) -> None:
    """The reply is the one expected, and the finding says what is expected of it."""
    assert met.reply == outcome.reply, f"{row.id}, when {when}: {met}"
    found = value(row, met.record)["value"]
    said = {path: at(found, path) for path in outcome.finding}
    assert said == outcome.finding, f"{row.id}, when {when}: {met}"


def at(found: Any, path: str) -> Any:
    """The part of a finding that `path` names."""
    for step in path.split("."):
        found = found[int(step)] if step.isdigit() else found[step]
    return found


# Documented results


@pytest.fixture(scope="module")
def documented() -> Iterator[Rig]:
    """An entry for each row, with the plugin's own time."""
    made = rig({row.id: [*row.before, {row.plugin: dict(row.options)}] for row in ASKING}, DNS_TIMEOUT)
    yield made
    made.stop()


def all_at_once(made: Rig, row: Asking, troubles: Mapping[str, Trouble]) -> Iterator[tuple[str, Met]]:
    with ThreadPoolExecutor(len(troubles)) as threads:
        met = threads.map(lambda trouble: made.meet(row, row.id, trouble), troubles.values())
        yield from zip(troubles, met, strict=True)


@pytest.mark.parametrize("row", ASKING, ids=lambda row: row.id)
def test_what_can_be_borne_changes_nothing(documented, row):
    for when, met in all_at_once(documented, row, BEARABLE):
        check(row, met, row.well, when)
        assert met.questions >= 1


@pytest.mark.parametrize("row", ASKING, ids=lambda row: row.id)
def test_trouble_gives_the_documented_result_and_never_a_refusal_for_good(documented, row):
    before = documented.findings(row.plugin, "ok")
    for when, met in all_at_once(documented, row, HANGING | FAILING):
        check(row, met, row.ill, when)
        assert not met.reply.startswith("5"), when
        assert {verdict["action"] for verdict in met.record["verdicts"]} <= {"proceed", "defer"}, when
        assert met.questions >= 1, f"{when}: it was not asked"
    found = len(HANGING | FAILING) * row.lookups
    assert documented.findings(row.plugin, "ok") == before + found, "trouble of the DNS is a finding"
    assert documented.breaker(row.plugin) == 0


def test_a_killed_nameserver_gives_the_documented_results_and_all_is_well_when_it_is_back(documented):
    # SPF asks for the sender's record first, so that a server that is gone stops it there.
    documented.server.stop()
    try:
        for row in ASKING:
            met = documented.meet(row, row.id)
            assert met.reply in (row.ill.reply, "250 2.0.0"), f"{row.id}: {met}"
            assert not met.reply.startswith("5")
            found = value(row, met.record)["value"]
            as_said = all(at(found, path) == wanted for path, wanted in row.ill.finding.items())
            assert as_said or '"temperror"' in json.dumps(found), f"{row.id}: {met}"
    finally:
        documented.server.start()
    for row in ASKING:
        check(row, documented.meet(row, row.id), row.well, "it is back")


# on_error and the breaker

ON_ERROR = {"defer": "451 4.3.0", "proceed": "250 2.0.0", "reject": "554 5.3.0"}
FIRST = {row.plugin: row for row in reversed(ASKING)}
"""The first row of each plugin."""


@pytest.fixture(scope="module")
def hurried() -> Iterator[Rig]:
    """An entry for each plugin and `on_error`, with less time than the DNS takes to say that there is trouble."""
    entries = {
        f"{plugin}-{on_error}": [*row.before, {plugin: dict(row.options), "timeout": "700ms", "on_error": on_error}]
        for plugin, row in FIRST.items()
        for on_error in ON_ERROR
    }
    made = rig(entries, 10.0)
    yield made
    made.stop()


@pytest.mark.parametrize("on_error", ON_ERROR)
@pytest.mark.parametrize("plugin", FIRST)
def test_the_clients_answer_is_on_error_and_the_breaker_opens_after_five_faults_and_closes_again(
    hurried, plugin, on_error
):
    row, pipeline = FIRST[plugin], f"{plugin}-{on_error}"
    timeouts, opened = hurried.findings(plugin, "timeout"), hurried.gate.log.count("breaker.opened")
    assert hurried.meet(row, pipeline).reply == row.well.reply
    assert hurried.breaker(plugin) == 0

    for faults, (when, trouble) in enumerate(HANGING.items(), 1):
        met = hurried.meet(row, pipeline, trouble)
        assert met.reply == ON_ERROR[on_error], when
        note = value(row, met.record)
        assert (note["fault"], "value" in note) == ("timeout", False), when
        (verdict,) = [v for v in met.record["verdicts"] if v["plugin"] == plugin]
        assert (verdict["plugin"], verdict["policy"]) == (plugin, "on_error")
        assert verdict["action"] == on_error
        assert hurried.findings(plugin, "timeout") == timeouts + faults * row.lookups
        assert hurried.breaker(plugin) == (faults == FAULTS_TO_OPEN)

    met = hurried.meet(row, pipeline)
    assert met.reply == ON_ERROR[on_error], "while it is open"
    assert value(row, met.record)["fault"] == "breaker"
    assert met.questions == 0, "nobody is asked while it is open"
    assert hurried.findings(plugin, "breaker") >= 1
    assert hurried.gate.log.count("breaker.opened") == opened + 1

    closed = hurried.gate.log.count("breaker.closed")
    wait_until(lambda: hurried.meet(row, pipeline).reply == row.well.reply, f"the breaker of {pipeline} closes")
    assert hurried.breaker(plugin) == 0
    assert hurried.gate.log.count("breaker.closed") == closed + 1
    check(row, hurried.meet(row, pipeline), row.well, "the breaker is closed again")


def test_every_plugin_that_asks_the_dns_has_a_row():
    # By module or package, since the plugins of a package may share the piece that asks.
    places = {p.name: p.module.split(".")[1] for p in entry_points(group="gatepost.plugins") if "plugins." in p.module}
    asking = set()
    for name in places.values():
        place = Path(plugins.__path__[0]) / name
        sources = [place.with_suffix(".py")] if place.with_suffix(".py").exists() else sorted(place.rglob("*.py"))
        if any("dns.lookup(" in source.read_text() for source in sources):
            asking.add(name)
    assert asking == {places[plugin] for plugin in FIRST}
