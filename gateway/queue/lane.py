"""A lane: what waits in memory for one destination, its pace, and how much more of its mail may come from the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.mail.envelope import Priority
from gateway.mail.reply import Reply
from gateway.ops import metrics
from gateway.queue.lifecycle import Attempted
from gateway.queue.options import OwnOptions
from gateway.queue.pace import Pace
from gateway.queue.waiting import Waiting
from gateway.spool.spool import AttemptRecord, Claimed, Slot
from gateway.transport.transport import Delivery, Destination, Kind, Result

UNREACHABLE: Final = Reply(451, "4.1", "destination could not be reached lately and is left alone for a while")
SUSPENDED: Final = Reply(451, "3.2", "destination is suspended by the postmaster")
CROWDED: Final = Reply(451, "4.5", "destination is slow, and too much waits for it")
OUR_TROUBLE: Final = Reply(451, "3.0", "local error in delivery")
BAD_DOMAIN: Final = Reply(550, "1.2", "not a mail domain")
UNREADABLE: Final = Reply(451, "3.0", "local error: content cannot be read")

NEW_MOST: Final = 1000
"""Messages that came in a moment ago and wait for one destination in memory; what is more waits on the disk."""
_IDLE_SECONDS: Final = 600.0
CLOSED: Final = (0,) * len(Priority)
"""No room for mail from the disk."""
_PROBE: Final = (1,) * len(Priority)


@dataclass(slots=True)
class Work:
    """A claimed message: `pending` groups of recipients are still to have outcomes. `lanes` are those of its slots."""

    claimed: Claimed
    pending: int
    attempted: list[Attempted] = field(default_factory=list)
    records: list[AttemptRecord] = field(default_factory=list)
    lanes: dict[int, Lane] = field(default_factory=dict)

    @property
    def fresh(self) -> bool:
        """Whether it came in a moment ago, and takes no place of what comes from the disk."""
        return self.claimed.lane is None

    def lane(self, slots: Sequence[Slot]) -> Lane | None:
        """The one lane of all slots that are open; None when there are several, or one is not known."""
        found = {self.lanes.get(number) for number, slot in enumerate(slots) if slot.status.open}
        return found.pop() if len(found) == 1 else None


@dataclass(slots=True)
class Job:
    """The recipients of a message that go to one destination; `slots` are their numbers."""

    work: Work
    slots: Sequence[int]
    delivery: Delivery


class Lane:
    """One destination's queue in memory. `workers` tasks are serving it."""

    __slots__ = (
        "counts",
        "destination",
        "final",
        "label",
        "more",
        "pace",
        "retry",
        "seconds",
        "settling",
        "timed",
        "touched",
        "waiting",
        "workers",
    )

    def __init__(self, destination: Destination, options: OwnOptions, now: float) -> None:
        self.destination = destination
        self.label = str(destination)
        self.final = destination.kind is not Kind.SMTP
        self.pace = Pace(options.pace)
        self.retry = options.retry
        self.waiting: Waiting[Job] = Waiting()
        self.workers = 0
        self.settling = 0
        """Messages whose outcome is being written down while the next ones are tried."""
        self.more = False
        """There may be more of it on the disk than there was room for."""
        self.timed = False
        """Somebody will look after it when its rate allows the next attempt."""
        self.touched = now
        self.counts = {result: metrics.ATTEMPTS.labels(result.value, destination.kind.value) for result in Result}
        self.seconds = metrics.ATTEMPT_SECONDS.labels(destination.kind.value)

    def renew(self, options: OwnOptions) -> None:
        """Go on with other options. What is dead is probed at once: the way there may have changed."""
        self.pace.renew(options.pace)
        self.retry = options.retry
        self.pace.reopen()

    def depth(self, spare: int) -> int:
        """How much mail of one kind may wait here in memory where `spare` more would be no harm."""
        depth = self.pace.depth()
        return depth if self.pace.options.gap else max(depth, spare)

    def room(self, now: float, spare: int) -> tuple[int, ...]:
        """How much more of each priority may come from the disk."""
        limit = self.pace.limit(now)
        if not limit:
            return CLOSED
        if self.pace.dead:
            return CLOSED if self.waiting or self.workers else _PROBE
        depth = self.depth(spare)
        return tuple([max(0, depth - self.waiting.old_of(priority)) for priority in Priority])

    def crowded(self, fresh: bool, spare: int) -> bool:
        """Whether one more message had better wait on the disk."""
        if fresh:
            return self.waiting.new >= self.depth(NEW_MOST)
        return self.waiting.old >= self.depth(spare)

    def overfull(self, spare: int) -> bool:
        """Whether more came from the disk than there was room for."""
        return self.waiting.old >= len(Priority) * self.depth(spare)

    def low(self) -> bool:
        """Whether it is time to have more from the disk."""
        return self.waiting.old <= self.pace.depth() // 2

    def idle(self, now: float) -> bool:
        """Whether there is nothing to remember of it."""
        return not self.waiting and not self.workers and now > max(self.touched, self.pace.dead_until) + _IDLE_SECONDS
