"""A breaker for each stage of an entry: a dead filter costs one look-up now and then, not every message its timeout.

A filter that greets every client and then fails at the end of each message is dead at that stage.

Closed, it counts consecutive faults; at the fifth it opens. Open, nobody is let through until the pause is over;
then one probe is. The probe's success closes the breaker, its fault opens it again for twice as long.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import Final

from gateway.ops import log
from gateway.ops.metrics import BREAKER_OPEN
from gateway.sdk.services import Clock
from gateway.sdk.stage import Stage

FAULTS: Final = 5
FIRST_PAUSE: Final = 30.0
LONGEST_PAUSE: Final = 300.0

_log = log.get()
_open_now: Counter[tuple[str, str]] = Counter()
"""Open breakers of this process by entry and stage: after a reload there may be an old and a new one of one name."""


def _count(key: tuple[str, str], change: int) -> None:
    _open_now[key] += change
    BREAKER_OPEN.labels(*key).set(1 if _open_now[key] > 0 else 0)


class State(StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """An entry's breaker at one stage.

    `ask` gives a permit, which goes back with the result. A result under an old permit says nothing about now (it
    began before the breaker moved) and is not counted.
    """

    __slots__ = ("_clock", "_faults", "_name", "_pause", "_permit", "_stage", "_until", "state")

    def __init__(self, name: str, stage: Stage, clock: Clock) -> None:
        self.state = State.CLOSED
        self._name = name
        self._stage = stage.value
        self._clock = clock
        self._faults = 0
        self._pause = FIRST_PAUSE
        self._permit = 1
        self._until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether it is not simply letting everybody through."""
        return self.state is not State.CLOSED

    def ask(self) -> int:
        """A permit, or 0 when nothing may begin now."""
        if self.state is State.CLOSED:
            return self._permit
        if self.state is State.OPEN and self._clock.monotonic() >= self._until:
            self.state = State.HALF_OPEN
            self._permit += 1
            return self._permit
        return 0

    def passed(self, permit: int) -> None:
        """The look-up under this permit gave a finding."""
        if permit != self._permit:
            return
        self._faults = 0
        if self.state is State.HALF_OPEN:
            self.state = State.CLOSED
            self._pause = FIRST_PAUSE
            _count((self._name, self._stage), -1)
            _log.info("breaker.closed", plugin=self._name, stage=self._stage)

    def failed(self, permit: int) -> None:
        """The look-up under this permit ended in a fault of its plugin."""
        if permit != self._permit:
            return
        self._faults += 1
        if self.state is State.HALF_OPEN:
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
            self._open()
        elif self._faults >= FAULTS:
            self._open()

    def withdrawn(self, permit: int) -> None:
        """The look-up under this permit was called off; if it was the probe, the next one may be."""
        if permit == self._permit and self.state is State.HALF_OPEN:
            self.state = State.OPEN

    def retire(self) -> None:
        """Its pipeline is closed: nobody asks it any more, and it counts no longer as open."""
        if self.is_open:
            self.state = State.CLOSED
            self._permit += 1
            _count((self._name, self._stage), -1)

    def _open(self) -> None:
        if not self.is_open:
            _count((self._name, self._stage), 1)
        self.state = State.OPEN
        self._permit += 1
        self._until = self._clock.monotonic() + self._pause
        _log.warning("breaker.opened", plugin=self._name, stage=self._stage, seconds=self._pause, faults=self._faults)
