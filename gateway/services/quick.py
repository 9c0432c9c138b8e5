"""Time that jumps: a loop on which sleeping and waiting take no real time, and a clock that reads it.

For trials and tests of what only waits. Where a thread or a socket is waited for as well, time would run ahead of it.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

_EPOCH = 1_700_000_000.0
_T = TypeVar("_T")


class _Jumping(selectors.DefaultSelector):
    """Instead of waiting for a timer, jumps to it."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("nothing is left that could ever happen: it would hang")
            self.passed += timeout
        return ready


class QuickLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer when there is nothing else to do."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Seconds since it was made."""
        return self._jumping.passed


class LoopClock:
    """`gateway.sdk.Clock` on the running loop's time."""

    def now(self) -> float:
        """Seconds since 1970, from a moment in 2023 on."""
        return _EPOCH + self.monotonic()

    def monotonic(self) -> float:
        """The running loop's time."""
        return asyncio.get_running_loop().time()


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """`asyncio.run` in quick time."""
    with asyncio.Runner(loop_factory=QuickLoop) as runner:
        return runner.run(coroutine)
