"""Gatepost with a death wish: ``victim.py CONFIG DIRECTORY FAULT STEP:N ...``.

A worker kills itself with SIGKILL when it reaches a durable step for the N-th time in its life. The deaths come one
after the other, in the order of the arguments, whichever worker is first; each leaves a file in DIRECTORY, so that
the worker that is started again goes on to the next. FAULT is planted first: a name of `planted.FAULTS`, or ``sound``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path

from gateway import app
from gateway.config import load
from gateway.spool.spool import Step
from tests.crash.planted import FAULTS

SOUND = "sound"


class DeathWish:
    """The `on_step` of such a Gatepost."""

    def __init__(self, directory: Path, deaths: list[tuple[Step, int]]) -> None:
        self._directory = directory
        self._deaths = deaths
        self._seen: Counter[Step] = Counter()
        # Some steps are reached by several threads. What one dies for, no other may take for itself meanwhile.
        self._lock = threading.Lock()

    def __call__(self, step: Step) -> None:
        with self._lock:
            self._reach(step)

    def _reach(self, step: Step) -> None:
        self._seen[step] += 1
        number = len(os.listdir(self._directory))
        if number == len(self._deaths):
            return
        wanted, count = self._deaths[number]
        if step is not wanted or self._seen[step] < count:
            return
        try:
            (self._directory / str(number)).touch(exist_ok=False)
        except FileExistsError:
            return  # the other worker was faster
        os.kill(os.getpid(), signal.SIGKILL)


def main(config: str, directory: str, fault: str, *deaths: str) -> int:
    if fault != SOUND:
        FAULTS[fault].plant()
    wish = [(Step(step), int(count)) for step, _, count in (death.partition(":") for death in deaths)]
    return app.run(load(config), DeathWish(Path(directory), wish))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
