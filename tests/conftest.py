"""Fixtures for all tests: real servers on loopback, Gatepost itself, and a check that nothing is left running."""

from __future__ import annotations

import collections
import contextlib
import gc
import importlib
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import hypothesis
import pytest
import structlog

from tests.spool.places import place as place
from tests.spool.places import places as places
from tests.spool.places import schemas as schemas
from tests.support import summary, warm
from tests.support.gatepost import IMPATIENT, ROOT, GatepostProcess
from tests.support.process import alive, new_directory
from tests.support.servers import Certificate, Dovecot, make_certificate

hypothesis.settings.register_profile(
    "gatepost",
    deadline=None,
    max_examples=200,
    derandomize=True,
    database=None,
    # How quickly examples are made is nothing to judge on a busy machine.
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
# For `make fuzz`: other examples each time, and more of them where a test does not say how many.
hypothesis.settings.register_profile(
    "random", hypothesis.settings.get_profile("gatepost"), max_examples=1000, derandomize=False, print_blob=True
)
hypothesis.settings.load_profile("gatepost")

_MARK = f"GATEPOST_TEST_RUN={uuid.uuid4().hex}"
"""In the environment of everything that a test starts, directly or not."""


def _left_running() -> dict[int, str]:
    found: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        try:
            if pid != os.getpid() and _MARK.encode() in (entry / "environ").read_bytes().split(b"\0") and alive(pid):
                found[pid] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """In a process of several (pytest-xdist): import the test modules, beginning at a place of its own.

    Each has to import them all. In the same order they would all compile the same module at the same time, since none
    finds what another has compiled.
    """
    config = session.config
    if not hasattr(config, "workerinput"):
        return
    found = [path for folder in config.args if (config.rootpath / folder).is_dir() for path in _modules(config, folder)]
    number, count = int(config.workerinput["workerid"].removeprefix("gw")), config.workerinput["workercount"]
    begin = len(found) * number // count
    for path in found[begin:] + found[:begin]:
        # Collection imports again what can not be imported, and says what is wrong.
        with contextlib.suppress(Exception):
            importlib.import_module(".".join(path.relative_to(config.rootpath).with_suffix("").parts))


def _modules(config: pytest.Config, folder: str) -> list[Path]:
    return sorted((config.rootpath / folder).rglob("test_*.py"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a process of several (pytest-xdist): files marked `first` come first, then those with the most tests.

    xdist hands files out in this order (``--no-loadscope-reorder``); by itself it goes by the number of tests alone,
    and a file whose few tests take minutes would begin when all others have ended.
    """
    if hasattr(config, "workerinput"):
        count = collections.Counter(item.path for item in items)
        items.sort(key=lambda item: (item.get_closest_marker("first") is None, -count[item.path]))


def pytest_collection_finish() -> None:
    """All that there is by now stays to the end: garbage is not looked for in it again and again."""
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a process of several (pytest-xdist): hand on what is to be told at the end."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["told"] = summary.TEXTS, summary.COUNTS


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take it from a process that has ended."""
    texts, counts = getattr(node, "workeroutput", {}).get("told", ((), ()))
    summary.TEXTS.extend(texts)
    summary.COUNTS.extend((part, row) for part, row in counts)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for text in summary.TEXTS:
        terminalreporter.write_line("")
        terminalreporter.write_line(text)
    if not summary.COUNTS:
        return
    from tests.crash.report import of_counts

    if report := of_counts(summary.COUNTS):
        report.write(ROOT / "var")
        terminalreporter.write_line("\nThe scenes of the proof of durability that were played: var/durability.md")


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    """Set up first, so torn down last: every process that a test started must be gone by then."""
    name, _, value = _MARK.partition("=")
    os.environ[name] = value
    yield
    warm.close()
    left = _left_running()
    for pid in left:
        os.kill(pid, 9)
    if left:
        pytest.fail("tests left processes running: " + "; ".join(f"{pid} {what}" for pid, what in left.items()))


@pytest.fixture(autouse=True)
def blocked_signals_as_found() -> Iterator[None]:
    """Commands called in this process block some, and every server that a later test starts would inherit that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.fixture(autouse=True)
def logging_is_as_it_was() -> Iterator[None]:
    """Commands that run within a test configure logging for good, and loggers remember it."""
    yield
    if structlog.is_configured():
        structlog.reset_defaults()
        for name, module in list(sys.modules.items()):
            logger = getattr(module, "_log", None) if name.startswith(("gateway.", "plugins.", "policies.")) else None
            if logger is not None:
                vars(logger).pop("bind", None)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that daemons which dropped root can walk to."""
    path = new_directory("test")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def certificate() -> Iterator[Certificate]:
    path = new_directory("tls")
    yield make_certificate(path)
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def dovecot() -> Iterator[Dovecot]:
    """One mail store for all tests; each takes mailboxes of its own from `Dovecot.mailbox`."""
    server = Dovecot()
    yield server
    server.stop()


@pytest.fixture
def gatepost(request: pytest.FixtureRequest) -> Iterator[Callable[..., GatepostProcess]]:
    """Start Gatepost with these options; at the end it must stop cleanly. On failure its log is shown.

    With `breaker_pause`, breakers that open stay open for so many seconds at first, instead of half a minute.
    """
    started: list[GatepostProcess] = []

    def start(*, breaker_pause: float | None = None, **options: Any) -> GatepostProcess:
        if breaker_pause is None:
            process = GatepostProcess(options)
        else:
            process = GatepostProcess(options, run=(sys.executable, str(IMPATIENT), f"{breaker_pause:g}"))
        started.append(process)
        return process

    yield start
    problems: list[str] = []
    for process in started:
        print(f"--- log of {process.config}:\n{process.log[-6000:]}", file=sys.stderr)
        try:
            process.stop()
        except (AssertionError, pytest.fail.Exception) as error:
            problems.append(str(error))
            process.kill()
        shutil.rmtree(process.directory, ignore_errors=True)
    assert not problems, "\n".join(problems)


class Stoppable(Protocol):
    def stop(self) -> None: ...


S = TypeVar("S", bound=Stoppable)


@pytest.fixture
def running() -> Iterator[Callable[[S], S]]:
    """``sink = running(SmtpSink())``: the server is stopped when the test ends, the last one first."""
    with contextlib.ExitStack() as stack:

        def keep(server: S) -> S:
            stack.callback(server.stop)
            return server

        yield keep
