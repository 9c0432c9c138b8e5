"""What the scanners that tests start have in common."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.support.process import Process


class Scanner:
    """One scanner's process on a port of its own; `home` goes with it. `start` of each sets `_process`."""

    port: int
    home: Path
    _process: Process

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        self._process.kill()

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """Inside the block connections are taken, and nobody answers."""
        with self._process.hung():
            yield

    @property
    def log(self) -> str:
        return self._process.log

    def stop(self) -> None:
        self._process.stop()
        shutil.rmtree(self.home, ignore_errors=True)
