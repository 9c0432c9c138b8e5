"""What a tree of processes costs: processor seconds and memory.

Processor time comes from a control group of its own (cpuacct of cgroup v1, or cgroup v2), which counts processes that
have ended too. Where neither can be made, it is sampled from /proc; then what a process used between the last sample
and its end is missing, which flatters programs that start many short ones, and the report says so.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.process import descendants

_V1 = Path("/sys/fs/cgroup/cpuacct")
_V2 = Path("/sys/fs/cgroup")
_TICK = os.sysconf("SC_CLK_TCK")


class Meter:
    """Put processes in with `enter` or `shell`; read `seconds` and `peak_pss`."""

    def __init__(self, name: str) -> None:
        self._group: Path | None = None
        self._roots: set[int] = set()
        self._sampled: dict[tuple[int, str], float] = {}
        self._lock = threading.Lock()
        self.peak_pss = 0
        base = _V1 if (_V1 / "cpuacct.usage").exists() else _V2 if (_V2 / "cgroup.controllers").exists() else None
        if base is not None:
            group = base / f"gatepost-bench-{name}-{os.getpid()}"
            with contextlib.suppress(OSError):
                group.mkdir()
                self._group = group
        self._stop = threading.Event()
        self._resting = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    @property
    def kind(self) -> str:
        """How processor time is measured."""
        return f"control group ({self._group.parent.name})" if self._group else "sampled from /proc"

    @property
    def shell(self) -> str:
        """A shell command that puts the shell, and what it starts, into the control group."""
        return f"echo $$ > {self._group}/cgroup.procs" if self._group else ":"

    def enter(self) -> None:
        """Put the calling process in; for use between fork and exec."""
        if self._group:
            (self._group / "cgroup.procs").write_text(str(os.getpid()))

    def watch(self, pid: int) -> None:
        """Name a root of the tree; needed where there is no control group."""
        self._roots.add(pid)

    def seconds(self) -> float:
        """Processor seconds, user and system, so far."""
        if self._group is None:
            with self._lock:
                self._sample_cpu()
                return sum(self._sampled.values())
        if (usage := self._group / "cpuacct.usage").exists():
            return int(usage.read_text()) / 1e9
        stat = dict(line.split() for line in (self._group / "cpu.stat").read_text().splitlines())
        return int(stat["usage_usec"]) / 1e6

    def _pids(self) -> set[int]:
        if self._group:
            return set(map(int, (self._group / "cgroup.procs").read_text().split()))
        return self._roots | {pid for root in self._roots for pid in descendants(root)}

    def _sample_cpu(self) -> None:
        for pid in self._pids():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                # Keyed by start time as well: process ids come back.
                self._sampled[pid, fields[19]] = (int(fields[11]) + int(fields[12])) / _TICK

    def pss(self) -> int:
        """Memory now, in octets."""
        total = 0
        with contextlib.suppress(OSError):
            for pid in self._pids():
                with contextlib.suppress(OSError):
                    total += _pss(pid)
        return total

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Take no samples for a while.

        Where single milliseconds count they cost too much: the kernel adds up a process's pages under the lock that
        the process itself needs to have more of them, and the longer the more it has.
        """
        self._resting.set()
        try:
            yield
        finally:
            self._resting.clear()

    def _sample(self) -> None:
        while not self._stop.wait(0.5):
            if self._resting.is_set():
                continue
            self.peak_pss = max(self.peak_pss, self.pss())
            if self._group is None:
                with self._lock:
                    self._sample_cpu()

    def close(self) -> None:
        """Stop sampling and remove the control group; its processes must have ended."""
        self._stop.set()
        self._thread.join()
        end = time.monotonic() + 10
        while self._group and time.monotonic() < end:
            try:
                self._group.rmdir()
                return
            except OSError:
                time.sleep(0.1)  # noqa: TID251 - no event loop here


def _pss(pid: int) -> int:
    """Proportional set size in octets: shared pages are counted by share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
