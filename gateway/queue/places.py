"""The places of what comes from the disk: how many are taken, and who may have the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gateway.queue.lane import CLOSED, Lane
from gateway.queue.options import SchedulerOptions
from gateway.spool.spool import Claimed, Room


class Places:
    """Counts messages that are worked on: `all`, and of those from the disk the `unfiled` and the `filed` ones.

    Of the filed ones those are `suspect` whose lane was not proven when they came: it may hang.
    """

    __slots__ = ("_suspects", "_suspended", "all", "filed", "options", "room", "unfiled")

    def __init__(self, options: SchedulerOptions, suspended: Callable[[str], bool] = lambda _: False) -> None:
        self.options = options
        self._suspended = suspended
        self.all = 0
        self.unfiled = 0
        self.filed = 0
        self.room = Room(0, 0, 0, 0)
        """What was given last."""
        self._suspects: set[str] = set()

    def take(self, claimed: Claimed, places: int = 1) -> None:
        """A message begins; with -1 it is over. What came in a moment ago takes none of the places."""
        self.all += places
        if claimed.lane:
            self.filed += places
            if places < 0:
                self._suspects.discard(claimed.message.id)
            elif claimed.lane not in self.room.proven:
                self._suspects.add(claimed.message.id)
        elif claimed.lane is not None:
            self.unfiled += places

    def free(self) -> tuple[int, int, int]:
        """Free places in all, for mail that was never tried, and for the rest."""
        active = self.options.active
        most = active - active // 4
        free = active - self.unfiled - self.filed
        return free, min(free, most - self.unfiled), min(free, most - self.filed)

    def spare(self) -> int:
        """How much one lane may take of what is free: so that many can, and one alone is not kept short."""
        return (self.options.active - self.unfiled - self.filed) // 4

    def make_room(self, lanes: Iterable[Lane], hungry: Sequence[str], now: float, most: int, *, again: bool) -> Room:
        """What may come from the disk now, `most` at once. Lanes that are not known may have what a new one may."""
        free, unfiled, filed = self.free()
        spare = self.spare()
        known: dict[str, tuple[int, ...]] = {}
        proven = set()
        for lane in lanes:
            if lane.pace.proven:
                proven.add(lane.label)
            if lane.workers or lane.waiting or lane.pace.dead or self._suspended(lane.label):
                own = CLOSED if self._suspended(lane.label) else lane.room(now, spare)
                # Destinations that differ in their TLS only share a lane on the disk: one must not close the other.
                known[lane.label] = tuple(map(max, known.get(lane.label, own), own))
        suspect = max(1, self.options.active * 3 // 8) - len(self._suspects)
        start = self.options.pace.start
        self.room = Room(
            min(free, most), unfiled, filed, start, suspect, known, frozenset(proven), tuple(hungry), again
        )
        return self.room
