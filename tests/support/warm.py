"""Starts of ``gatepost`` by `tests.support.forker`: as with `subprocess`, in a tenth of the time."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.support.forker import MESSAGE_OCTETS, PID, STATUS

_lock = threading.Lock()
_forker: tuple[subprocess.Popen[bytes], socket.socket] | None = None


def _requests() -> socket.socket:
    global _forker
    if _forker is None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_OCTETS)
        with theirs:
            process = subprocess.Popen([sys.executable, "-m", "tests.support.forker"], stdin=theirs.fileno())
        _forker = process, ours
    return _forker[1]


def close() -> None:
    """End the process that forks, if there is one."""
    global _forker
    if _forker is not None:
        process, requests = _forker
        requests.close()
        process.wait(30)
        _forker = None


class Started:
    """A started program, with what `subprocess.Popen` has of it."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        stdin: int,
        stdout: IO[bytes],
        stderr: IO[bytes] | int,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`argv` is that of ``gatepost`` or of a Python script. `stdin` is `subprocess.DEVNULL`."""
        assert stdin == subprocess.DEVNULL
        request = {
            "argv": list(argv[argv[0] == sys.executable :]),
            "cwd": str(cwd or Path.cwd()),
            "environ": dict(os.environ if env is None else env),
        }
        error = stdout if isinstance(stderr, int) else stderr
        self._pipe, theirs = os.pipe()
        self._status: int | None = None
        with Path(os.devnull).open("rb") as nothing, _lock:
            try:
                fds = [nothing.fileno(), stdout.fileno(), error.fileno(), theirs]
                socket.send_fds(_requests(), [json.dumps(request).encode()], fds)
            finally:
                os.close(theirs)
        octets = os.read(self._pipe, PID.size)
        assert octets, "the process that forks has ended"
        (self.pid,) = PID.unpack(octets)

    @property
    def returncode(self) -> int | None:
        return self._status

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """The exit status. Raises `subprocess.TimeoutExpired`."""
        if self._status is None:
            if not select.select([self._pipe], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("gatepost", timeout or 0)
            octets = os.read(self._pipe, STATUS.size)
            os.close(self._pipe)
            self._status = STATUS.unpack(octets)[0] if octets else -signal.SIGKILL
        return self._status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(argv: Sequence[str], *, cwd: Path | None = None, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with its output captured as text, and nothing to read."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        started = Started(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=error, cwd=cwd)
        try:
            status = started.wait(timeout)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait(timeout)
            raise
        texts: list[Any] = []
        for file in (out, error):
            file.seek(0)
            # As with text=True.
            texts.append(file.read().decode().replace("\r\n", "\n").replace("\r", "\n"))
        return subprocess.CompletedProcess(list(argv), status, *texts)
