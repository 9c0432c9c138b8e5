"""Running a command: started without a shell, bounded in time and output, and never left behind.

It is given a session and process group of its own, so that what it started ends with it when its time is over, and an
open file as its standard input: one that is complete, so that it can never take half a message for a whole one,
whatever becomes of us.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import pwd
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.ops import log
from gateway.transport.options import RunAs
from gateway.transport.sysexits import Ended

_log = log.get()

KEPT: Final = 4096
"""Octets of output that are kept."""
MOST: Final = 1 << 20
"""Octets of output after which nobody reads on: the next write of the command fails."""
GRACE: Final = 2.0
"""Seconds between SIGTERM and SIGKILL."""
_REAP: Final = 5.0


async def run(
    argv: Sequence[bytes], *, stdin: int, environment: Mapping[str, str], run_as: RunAs | None, timeout: float
) -> Ended:
    """Run a command to its end, or end it after `timeout` seconds. Raises OSError when it cannot be started.

    With `run_as`, HOME, USER and LOGNAME are the user's, unless `environment` says otherwise. Cancelled, it kills the
    command and waits for its end.
    """
    loop = asyncio.get_running_loop()
    # Starting takes a fork and an exec, which may wait for a disk.
    starting = loop.run_in_executor(None, _start, argv, stdin, environment, run_as)
    try:
        process = await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            await _Running(await starting).kill()
        raise
    running = _Running(process)
    ended = await running.wait(timeout)
    if ended.late:
        _log.warning("pipe.killed", command=os.fsdecode(argv[0]), seconds=timeout)
    return ended


def _start(
    argv: Sequence[bytes], stdin: int, environment: Mapping[str, str], run_as: RunAs | None
) -> subprocess.Popen[bytes]:
    user = _look_up(run_as) if run_as else None
    own = {"HOME": user.home, "USER": user.name, "LOGNAME": user.name} if user else {}
    if user is not None and user.uid == os.geteuid() != 0:
        # It is us already, and who is not root may not say so again.
        user = None
    try:
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            cwd="/",
            env=own | dict(environment),
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=user.groups if user else None,
            umask=0o077,
            start_new_session=True,
        )
    except (ValueError, subprocess.SubprocessError) as error:
        raise OSError(str(error)) from error


@dataclass(frozen=True, slots=True)
class _User:
    name: str
    uid: int
    gid: int
    groups: list[int]
    home: str


def _look_up(run_as: RunAs) -> _User:
    try:
        entry = pwd.getpwnam(run_as.user)
        gid = grp.getgrnam(run_as.group).gr_gid if run_as.group else entry.pw_gid
    except KeyError as error:
        raise OSError(str(error.args[0])) from error
    return _User(run_as.user, entry.pw_uid, gid, os.getgrouplist(run_as.user, gid), entry.pw_dir)


class _Running:
    """A process that was started: what it says, and when it has ended."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._process = process
        self._out = process.stdout
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._kept = bytearray()
        self._read = 0
        self._reading = False
        self._pidfd = -1

    async def wait(self, timeout: float) -> Ended:
        late = False
        try:
            self._watch()
            late = not await self._over(timeout)
            if late:
                self._signal(signal.SIGTERM)
                await self._over(GRACE)
                await self.kill()
        finally:
            if not self._ended.done():
                await self.kill()
            self._close()
        status = self._process.poll()
        return Ended(-signal.SIGKILL if status is None else status, bytes(self._kept), late)

    async def kill(self) -> None:
        """End it and all of its group at once, and see that it has gone."""
        self._signal(signal.SIGKILL)
        if self._pidfd < 0:
            self._watch()
        # One that hangs in the kernel is reaped when it has ended after all.
        await asyncio.shield(self._over(_REAP))
        self._close()
        self._process.poll()

    def _watch(self) -> None:
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._has_ended)
        os.set_blocking(self._out.fileno(), False)
        self._loop.add_reader(self._out.fileno(), self._take)
        self._reading = True

    async def _over(self, seconds: float) -> bool:
        done, _ = await asyncio.wait([self._ended], timeout=seconds)
        return bool(done)

    def _signal(self, number: signal.Signals) -> None:
        # It has not been reaped, so the number is still its own; its group may have gone already.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _has_ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        if not self._ended.done():
            self._ended.set_result(None)

    def _take(self) -> None:
        try:
            data = os.read(self._out.fileno(), 1 << 16)
        except BlockingIOError:
            return
        self._kept += data[: KEPT - len(self._kept)]
        self._read += len(data)
        if not data or self._read >= MOST:
            self._stop_reading()

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._out.fileno())
            self._out.close()

    def _close(self) -> None:
        # What it said last may still stand in the pipe. What it left running may hold the pipe open for ever.
        before = -1
        while self._reading and self._read > before:
            before = self._read
            self._take()
        self._stop_reading()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
