"""The real clock: the one place that reads the machine's time for decisions."""

from __future__ import annotations

import time


class SystemClock:
    """`gateway.sdk.Clock` by the operating system."""

    def now(self) -> float:
        """Seconds since 1970, UTC."""
        return time.time()  # noqa: TID251 - this is the clock that everybody else is given

    def monotonic(self) -> float:
        """Seconds from a point of no meaning; never goes back."""
        return time.monotonic()
