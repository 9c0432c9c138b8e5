"""Processes that tests start: ready when their protocol answers, ended by their own pid, never left behind."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support.warm import Started

T = TypeVar("T")

DEADLINE = 60.0
"""Seconds to wait for a server; it takes a tenth of one on an idle machine, and much longer on a busy one."""

_handed_out: set[int] = set()
_FIRST_PORT, _LAST_PORT = 20000, 32000


def _ports() -> tuple[int, int]:
    """The range that is this process's own, since tests may run in several at once."""
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    width = (_LAST_PORT - _FIRST_PORT) // count
    return _FIRST_PORT + number * width, _FIRST_PORT + (number + 1) * width


def free_port(address: str = "127.0.0.1") -> int:
    """A port nobody listens on, below the ephemeral range so that no outgoing connection can take it meanwhile."""
    first, last = _ports()
    for _ in range(1000):
        port = random.randrange(first, last)
        if port in _handed_out:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                continue
        _handed_out.add(port)
        return port
    raise RuntimeError(f"no free port on {address}")


def new_directory(name: str) -> Path:
    """A directory that daemons which dropped root can walk to (pytest's own are mode 0700)."""
    path = Path(tempfile.mkdtemp(prefix=f"gatepost-{name}-"))
    path.chmod(0o755)
    return path


def binary(name: str) -> str:
    """The path of a program; a missing one fails the test, since a skipped test proves nothing."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        pytest.fail(f"{name} is not installed: run `make test`, which installs the servers that tests talk to")
    return path


def wait_until(probe: Callable[[], T | None], what: str, deadline: float = DEADLINE) -> T:
    """The first true value of `probe`; a failed connection counts as "not yet".

    It is asked every 20 ms at first, and less often the longer that has taken, down to every 100 ms.
    """
    begin = time.monotonic()
    while True:
        problem: object = None
        try:
            if value := probe():
                return value
        except (OSError, EOFError) as error:
            problem = error
        waited = time.monotonic() - begin
        if waited > deadline:
            pytest.fail(f"waited {deadline:.0f} s in vain until {what}" + (f": {problem}" if problem else ""))
        time.sleep(min(max(0.02, waited / 20), 0.1))  # noqa: TID251 - no event loop here


def banner(port: int, expect: bytes = b"220", address: str = "127.0.0.1") -> bool:
    """Whether a server on `port` greets as SMTP, LMTP and IMAP servers do."""
    with socket.create_connection((address, port), timeout=5) as sock:
        return sock.recv(512).startswith(expect)


def listens(port: int, address: str = "127.0.0.1") -> bool:
    """Whether a connection is taken."""
    with socket.create_connection((address, port), timeout=5):
        return True


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """Direct child processes of `pid`."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:
            continue
    return found


def descendants(pid: int) -> list[int]:
    """All processes below `pid`."""
    found: list[int] = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


class Process:
    """A program in the foreground, with its output in a file."""

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
        warm: bool = False,
    ) -> None:
        """`warm` is for ``gatepost`` and starts it by a fork (`tests.support.warm`)."""
        self.log_path = log
        self.name = Path(argv[0]).name
        environ = {**os.environ, **(env or {})}
        null, merged = subprocess.DEVNULL, subprocess.STDOUT
        self._popen: subprocess.Popen[bytes] | Started
        with log.open("ab") as output:
            if warm:
                self._popen = Started(argv, stdin=null, stdout=output, stderr=merged, cwd=cwd, env=environ)
            else:
                self._popen = subprocess.Popen(
                    argv, stdin=null, stdout=output, stderr=merged, cwd=cwd, env=environ, preexec_fn=prepare
                )
        self.pid = self._popen.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def status(self) -> int | None:
        """Exit status, None while it runs."""
        return self._popen.poll()

    def wait_ready(self, probe: Callable[[], object], deadline: float = DEADLINE) -> None:
        """Wait until `probe` is true; fails at once, with the log, when the process ends instead."""

        def ready_or_dead() -> bool:
            if self.status is not None:
                pytest.fail(f"{self.name} ended with status {self.status} while starting:\n{self.log[-4000:]}")
            return bool(probe())

        try:
            wait_until(ready_or_dead, f"{self.name} is ready", deadline)
        except BaseException:
            print(self.log[-4000:])
            self.kill()
            raise

    def signal(self, number: int) -> None:
        self._popen.send_signal(number)

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """Inside the block it and everything below it stand still; the kernel takes connections for it."""
        # From the top down, so that nobody makes children meanwhile.
        self.signal(signal.SIGSTOP)
        below = descendants(self.pid)
        try:
            for pid in below:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in [*below, self.pid]:
                if alive(pid):
                    os.kill(pid, signal.SIGCONT)

    def wait(self, timeout: float = DEADLINE) -> int:
        """Exit status; fails when it does not end in time."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"{self.name} did not end within {timeout:.0f} s:\n{self.log[-4000:]}")

    def stop(self, timeout: float = 10.0) -> int:
        """SIGTERM, then SIGKILL when that is not obeyed in time. Gives the exit status."""
        self._popen.terminate()
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL for it and everything below it."""
        below = descendants(self.pid)
        self._popen.kill()
        status = self._popen.wait(DEADLINE)
        for pid in below:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        return status
