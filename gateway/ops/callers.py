"""Connections to the admin server: whoever asks nothing is let go.

uvicorn waits for a request for as long as the client likes, and counts the connection among those that it serves at
once. Clients that are gone without a word, or ask nothing, would add up until even the probes are answered 503.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle


class Caller(H11Protocol):
    """A connection that is closed when it has not begun a request for `patience` seconds, and twice that at most."""

    patience: ClassVar[float] = 10.0

    _looking: asyncio.TimerHandle | None = None
    _last: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._looking = self.loop.call_later(self.patience, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._looking is not None:
            self._looking.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        """Close it if it has waited for a request since the last look; one that is being answered takes its time."""
        waits = self.cycle is None or self.cycle.response_complete
        if waits and self.cycle is self._last:
            self.transport.abort()
            return
        # One that is still being answered has not waited yet.
        self._last = self.cycle if waits else None
        self._looking = self.loop.call_later(self.patience, self._look)
