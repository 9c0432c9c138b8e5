"""kill -9 at every durable step, under load, and then the count: nothing that got 250 may be missing."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.spool.spool import Step
from tests.crash.count import Load, Table, Victim, number_of
from tests.support import summary
from tests.support.postfix import SmtpSink
from tests.support.process import binary, wait_until

pytestmark = pytest.mark.slow
_RECOVERY = (Step.RECOVERY_BEGUN, Step.RECOVERY_DONE)
_ENOUGH = 150
"""Messages acknowledged after the last death: the survivors work on."""


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """The results of all tests here, printed after the last."""
    table = Table()
    yield table
    summary.add(str(table))


@pytest.fixture
def victim() -> Iterator[Callable[..., Victim]]:
    """Start a `Victim`; whatever happens, nothing of it is left."""
    started: list[Victim] = []

    def start(*deaths: str, **options: Any) -> Victim:
        started.append(Victim(options, deaths))
        return started[-1]

    yield start
    for one in started:
        print(f"--- log of {one.config}:\n{one.log[-6000:]}", file=sys.stderr)
        one.kill()
        shutil.rmtree(one.directory, ignore_errors=True)


def finish(gatepost: Victim) -> None:
    """Wait until everything is delivered; then it must end cleanly and leave no file behind."""
    wait_until(lambda: asyncio.run(gatepost.waiting()) == 0, "the queue is empty")
    gatepost.stop()
    assert not gatepost.content_files()


def died(gatepost: Victim) -> int:
    """How many workers the supervisor saw die by SIGKILL."""
    return sum(
        "worker.died" in line and bool(re.search(r'"status": ?-9\b', line)) for line in gatepost.log.splitlines()
    )


@pytest.mark.parametrize("step", [step for step in Step if step not in _RECOVERY])
def test_a_worker_killed_at_any_durable_step_loses_nothing(victim, table, step):
    gatepost = victim(f"{step}:1", f"{step}:6", f"{step}:3")
    with Load(gatepost.port).running() as load:
        gatepost.wait_deaths()
        load.reaches(len(load.acknowledged) + _ENOUGH)
    finish(gatepost)
    result = table.add(step.value, gatepost.deaths, load, gatepost.maildir())
    assert died(gatepost) == 3
    assert result.lost == 0


def test_a_worker_killed_while_it_recovers_loses_nothing(victim, table):
    gatepost = victim("commit-done:30", "recovery-begun:1", "recovery-done:1", "settle-begun:20", "recovery-begun:1")
    with Load(gatepost.port).running() as load:
        gatepost.wait_deaths()
        load.reaches(len(load.acknowledged) + _ENOUGH)
    finish(gatepost)
    result = table.add("while it recovers", gatepost.deaths, load, gatepost.maildir())
    assert died(gatepost) == 5
    assert result.lost == 0


@pytest.mark.parametrize("step", [Step.COMMIT_DONE, Step.SETTLE_BEGUN, Step.SETTLE_DONE])
def test_nothing_is_lost_on_the_way_to_an_smtp_next_hop_whose_connections_are_reused(victim, table, running, step):
    sink = running(SmtpSink(dump=True))
    gatepost = victim(
        f"{step}:10",
        f"{step}:25",
        domains={"example.com": {"next_hop": f"smtp:127.0.0.1:{sink.port}", "recipients": "any", "tls": "none"}},
    )
    with Load(gatepost.port).running() as load:
        gatepost.wait_deaths()
        load.reaches(len(load.acknowledged) + _ENOUGH)
    finish(gatepost)
    arrived = [number_of(text) for text in sink.messages()]
    result = table.add(f"{step.value}, to an SMTP next hop", gatepost.deaths, load, arrived, partial=True)
    assert died(gatepost) == 2
    assert result.lost == 0


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_all_of_it_killed_and_started_with_another_number_of_workers_loses_nothing(victim, table, workers):
    gatepost = victim(workers=3)
    with Load(gatepost.port).running() as load:
        load.reaches(_ENOUGH)
        gatepost.kill_tree()
        gatepost.configure(workers=workers)
        gatepost.start()
        load.reaches(len(load.acknowledged) + _ENOUGH)
    finish(gatepost)
    result = table.add(f"all processes; then 3 -> {workers} workers", 1, load, gatepost.maildir())
    assert result.lost == 0


@contextlib.contextmanager
def killing_at(pid: int, call: str, when: int) -> Iterator[None]:
    """Have the process killed in the `when`-th such system call of one of its threads."""
    inject = f"inject={call}:signal=KILL:when={when}"
    argv = [binary("strace"), "-f", "-p", str(pid), "-o", "/dev/null", "-e", f"trace={call}", "-e", inject]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize(
    ("call", "when"), [("fdatasync", 1), ("fdatasync", 20), ("fsync", 2), ("pwrite64", 333), ("unlink", 2)]
)
def test_a_worker_killed_inside_a_system_call_loses_nothing(victim, table, call, when):
    gatepost = victim(workers=1)
    with Load(gatepost.port).running() as load:
        load.reaches(10)
        (pid,) = gatepost.workers
        with killing_at(pid, call, when):
            wait_until(lambda: not Path(f"/proc/{pid}").exists(), f"the worker is killed in {call}", 30.0)
        load.reaches(len(load.acknowledged) + _ENOUGH)
    finish(gatepost)
    result = table.add(f"inside {call}, number {when}", 1, load, gatepost.maildir())
    assert died(gatepost) == 1
    assert result.lost == 0
