"""What metrics show of the queue: messages by state, the age of the oldest, destinations by state, the work of those
that have names.

*Promises*: bounded. Mail hosts found by MX, of which there may be any number, are shown together as ``mx``; of the
others at most `SHOWN`, the rest as ``other``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

from gateway.ops import log, metrics
from gateway.queue.lane import Lane
from gateway.sdk.services import Clock
from gateway.spool.spool import Spool, SpoolError, State
from gateway.transport.transport import Destination

_log = log.get()
_OTHER: Final = "other"
_SECONDS: Final = 10.0
_COUNTED: Final = 50_000
"""Messages that are counted without thinking twice; more are counted less often."""
SHOWN: Final = 100


class Reach(StrEnum):
    """What a destination is to us now."""

    OPEN = "open"
    DEAD = "dead"
    """Left alone."""
    PROBED = "probed"
    """Its next attempt decides whether it goes on being left alone."""


def reach(lane: Lane, now: float) -> Reach:
    """The state of a lane's destination."""
    if not lane.pace.dead:
        return Reach.OPEN
    return Reach.PROBED if lane.pace.limit(now) else Reach.DEAD


class Gauges:
    """Sets the gauges now and then; remembers which destinations have one."""

    def __init__(self, spool: Spool, lanes: Mapping[Destination, Lane], clock: Clock) -> None:
        self._spool = spool
        self._lanes = lanes
        self._clock = clock
        self._names: set[str] = set()
        self._oldest: dict[State, float] = {}

    async def run(self) -> None:
        """Again and again, until it is cancelled."""
        while True:
            counted = await self.count()
            self.show(self._lanes.values(), self._clock.monotonic())
            await asyncio.sleep(_SECONDS * (1 + counted // _COUNTED))

    async def count(self) -> int:
        """Set the gauges of messages; gives how many there are, 0 when the spool does not say."""
        counts: dict[State, int] = {}
        try:
            counts, self._oldest = await self._spool.counts(), await self._spool.oldest()
        except SpoolError as error:
            _log.warning("queue.count_failed", error=str(error))
        for state, count in counts.items():
            metrics.QUEUE_MESSAGES.labels(state.value).set(count)
        now = self._clock.now()
        for state in State:
            # As far as is known, where the spool does not say: mail grows old while it cannot be reached.
            age = now - self._oldest.get(state, now)
            metrics.QUEUE_OLDEST.labels(state.value).set(max(0.0, age))
        return sum(counts.values())

    def show(self, lanes: Iterable[Lane], now: float) -> None:
        """Set the gauges of destinations to what holds now."""
        states = dict.fromkeys(Reach, 0)
        sums = {name: [0, 0, 0] for name in self._names}
        for lane in lanes:
            state = reach(lane, now)
            states[state] += 1
            counted = sums.setdefault(self._name(lane), [0, 0, 0])
            for place, value in enumerate((lane.pace.running, len(lane.waiting), int(state is not Reach.OPEN))):
                counted[place] += value
        for state, count in states.items():
            metrics.DESTINATIONS.labels(state.value).set(count)
        for name, (running, waiting, dead) in sums.items():
            metrics.DESTINATION_ATTEMPTS.labels(name).set(running)
            metrics.DESTINATION_WAITING.labels(name).set(waiting)
            metrics.DESTINATION_DEAD.labels(name).set(dead)

    def _name(self, lane: Lane) -> str:
        name = "mx" if lane.destination.mx else lane.label
        if name not in self._names and len(self._names) >= SHOWN:
            name = _OTHER
        self._names.add(name)
        return name
