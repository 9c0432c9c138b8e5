"""A wall clock of their own for processes that tests start: it jumps under them, and the machine's stays as it is.

A preloaded library (`wallclock.c`) moves what the C library says of CLOCK_REALTIME, and so what Python, SQLite and
everything else in the process believe. Monotonic clocks run on, as they do when an operator sets the clock. libfaketime
was tried for this; its 0.9.10, told to leave monotonic clocks alone, moves `clock_nanosleep` on them all the same,
so that Python's `time.sleep` fails.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

from tests.support.process import binary, new_directory

HOUR = 3600
DAY = 24 * HOUR
_SOURCE = Path(__file__).with_suffix(".c")
_OFFSET = struct.Struct("=q")


class WallClock:
    """The clock. Processes have it that are started with `environ`, and what they start."""

    def __init__(self) -> None:
        self._directory = new_directory("clock")
        library, self._file = self._directory / "wallclock.so", self._directory / "offset"
        self.set(0)
        compiler = [binary(os.environ.get("CC", "gcc")), "-Wall", "-Werror", "-O1", "-shared", "-fPIC"]
        subprocess.run([*compiler, "-o", str(library), str(_SOURCE)], check=True, stdin=subprocess.DEVNULL)
        self.environ = {"LD_PRELOAD": str(library), "WALLCLOCK_FILE": str(self._file)}

    def set(self, offset: int) -> None:
        """Have it so many seconds before the machine's clock, or behind it where that is negative; at once."""
        fd = os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(fd, _OFFSET.pack(offset), 0)
        finally:
            os.close(fd)
        self.offset = offset

    def now(self) -> float:
        """Seconds since 1970, as those processes see it."""
        return time.time() + self.offset  # noqa: TID251 - the clock that is moved is the machine's

    def stop(self) -> None:
        """Remove its files, once nobody is left who has it."""
        shutil.rmtree(self._directory, ignore_errors=True)
