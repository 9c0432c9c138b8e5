"""A lane: what waits for one destination, how many attempts it may have at once, and whether it is reachable.

A destination that cannot be reached several times in a row is left alone for a while: what waits for it is put off
without an attempt. Then a single attempt probes it before the lane opens again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.mail.reply import Reply
from gateway.ops import metrics
from gateway.queue.lifecycle import Attempted
from gateway.spool.spool import AttemptRecord, Claimed
from gateway.transport.transport import Delivery, Destination, Fault, Kind, Outcome, Result

UNREACHABLE: Final = Reply(451, "4.1", "destination could not be reached lately and is left alone for a while")
SUSPENDED: Final = Reply(451, "3.2", "destination is suspended by the postmaster")
CROWDED: Final = Reply(451, "4.5", "destination is slow, and too much waits for it")
OUR_TROUBLE: Final = Reply(451, "3.0", "local error in delivery")
BAD_DOMAIN: Final = Reply(550, "1.2", "not a mail domain")
UNREADABLE: Final = Reply(451, "3.0", "local error: content cannot be read")


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Bounds of the scheduler; times in seconds.

    `active` messages are worked on at once, `destination_concurrency` attempts run at once for one destination. After
    `dead_after` failures to reach a destination in a row it is left alone for `dead_for`, doubling up to `dead_max`.
    `poll` is the longest time between two looks into the spool. When the active set is full, a destination that
    would need more than `patience` for what waits for it gives the rest back.
    """

    active: int = 1000
    destination_concurrency: int = 20
    dead_after: int = 5
    dead_for: float = 60.0
    dead_max: float = 900.0
    poll: float = 1.0
    patience: float = 10.0


@dataclass(slots=True)
class Work:
    """A claimed message: `pending` groups of recipients are still to have outcomes."""

    claimed: Claimed
    pending: int
    attempted: list[Attempted] = field(default_factory=list)
    records: list[AttemptRecord] = field(default_factory=list)


@dataclass(slots=True)
class Job:
    """The recipients of a message that go to one destination; `slots` are their numbers."""

    work: Work
    slots: Sequence[int]
    delivery: Delivery


class Lane:
    """One destination's queue in memory. `workers` tasks are serving it."""

    __slots__ = (
        "_watched_done",
        "_watched_since",
        "counts",
        "dead_until",
        "destination",
        "done",
        "failures",
        "final",
        "jobs",
        "label",
        "options",
        "seconds",
        "touched",
        "workers",
    )

    def __init__(self, destination: Destination, options: SchedulerOptions, now: float) -> None:
        self.destination = destination
        self.label = str(destination)
        self.options = options
        self.final = destination.kind is not Kind.SMTP
        self.jobs: deque[Job] = deque()
        self.workers = 0
        self.failures = 0
        self.dead_until = 0.0
        self.done = 0
        self.touched = now
        self.counts = {result: metrics.ATTEMPTS.labels(result.value, destination.kind.value) for result in Result}
        self.seconds = metrics.ATTEMPT_SECONDS.labels(destination.kind.value)
        self._watched_since = -1.0
        self._watched_done = 0

    def limit(self, monotonic: Callable[[], float]) -> int:
        """How many workers it may have: one while an unreachable destination is probed again."""
        if self.failures >= self.options.dead_after and monotonic() >= self.dead_until:
            return 1
        return self.options.destination_concurrency

    def dead(self, monotonic: Callable[[], float]) -> bool:
        """Whether the destination is to be left alone now."""
        return self.dead_until > 0.0 and self.dead_until > monotonic()

    def learn(self, outcomes: Sequence[Outcome], now: float) -> bool:
        """Take note of an attempt's outcomes; True when the destination is left alone from now on."""
        self.done += 1
        self.touched = now
        fault = outcomes[0].fault
        if fault is Fault.OURS:
            return False
        if fault is not Fault.CONNECT:
            self.failures = 0
            self.dead_until = 0.0
            return False
        self.failures += 1
        excess = self.failures - self.options.dead_after
        # Attempts that were under way when it was declared dead tell nothing new.
        if excess < 0 or now < self.dead_until:
            return False
        self.dead_until = now + min(self.options.dead_for * 2.0 ** min(excess, 16), self.options.dead_max)
        return True

    def crowd(self, now: float, *, full: bool) -> list[Job]:
        """The jobs to give back, the newest first; asked now and then. `full` says that the active set is full.

        A lane gives back after it was watched for `patience` while the active set was full all the time. It keeps as
        many as it got done meanwhile, and twice its concurrency at least.
        """
        if not full or len(self.jobs) <= 2 * self.options.destination_concurrency:
            self._watched_since = -1.0
            return []
        if self._watched_since < 0:
            self._watched_since, self._watched_done = now, self.done
            return []
        if now - self._watched_since < self.options.patience:
            return []
        keep = max(self.done - self._watched_done, 2 * self.options.destination_concurrency)
        self._watched_since = -1.0
        return [self.jobs.pop() for _ in range(len(self.jobs) - keep)]

    def idle(self, now: float) -> bool:
        """Whether there is nothing to remember of it."""
        return not self.jobs and not self.workers and now > max(self.touched, self.dead_until) + 600.0
