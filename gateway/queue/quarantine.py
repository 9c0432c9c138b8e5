"""Keeping the quarantine from growing for ever: messages that were in it for long are dropped.

*Promises*: what is dropped was in quarantine at that instant, however the postmaster works on it meanwhile. While the
spool does not answer, nothing is dropped and it is tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from gateway.ops import log, metrics
from gateway.sdk.services import Clock
from gateway.spool.spool import Spool, SpoolError, State

_log = log.get()
_BATCH: Final = 500
_OFTEN: Final = 1.0
_SELDOM: Final = 600.0
_WHO: Final = "quarantine.keep"


class Keeper:
    """One per worker, for its part of the spool. `keep` gives the seconds that messages are kept, 0 for ever."""

    def __init__(self, spool: Spool, clock: Clock, keep: Callable[[], float]) -> None:
        self._spool = spool
        self._clock = clock
        self._keep = keep

    async def run(self) -> None:
        """Look again and again, in a tenth of the time that messages are kept."""
        while True:
            try:
                more = await self.sweep()
            except SpoolError as error:
                _log.error("quarantine.not_swept", error=str(error))
                more = False
            pause = min(max(self._keep() / 10, _OFTEN), _SELDOM) if self._keep() else _SELDOM
            await asyncio.sleep(0.0 if more else pause)

    async def sweep(self) -> bool:
        """Drop what is too old; True when there may be more at once. Raises `SpoolError`."""
        keep = self._keep()
        if not keep:
            return False
        now = self._clock.now()
        gone = await self._spool.expire(State.QUARANTINE, now - keep, _BATCH, by=_WHO)
        for message in gone:
            metrics.QUARANTINE_EXPIRED.inc()
            _log.info(
                "quarantine.expired",
                id=message.id,
                sender=str(message.envelope.sender),
                reason=message.reason,
                age=round(now - message.received),
            )
        return len(gone) >= _BATCH
