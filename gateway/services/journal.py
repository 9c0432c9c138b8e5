"""What one worker learned while the shared state was down, until the shared state has it.

*Promises*: bounded in entries and octets; what does not fit is not noted, and said so. Of one key there is its last
value only. Times are of a clock that never goes back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from gateway.services.redis_state import Kept

ENTRIES: Final = 50_000
OCTETS: Final = 32 << 20
_OVERHEAD: Final = 200
"""Octets that an entry costs beside its texts, or so."""


@dataclass(frozen=True, slots=True)
class Learned:
    """A value, how it was stored, and when. `ttl` is its whole time in seconds, `at` when it began."""

    kept: Kept
    value: bytes
    ttl: float
    at: float


@dataclass(slots=True)
class Counted:
    """What was added to a tally, by member."""

    ttl: float
    at: float
    members: dict[str, int] = field(default_factory=dict)


class Journal:
    """Not yet in the shared state, by key."""

    def __init__(self) -> None:
        self._values: dict[str, Learned] = {}
        self._tallies: dict[str, Counted] = {}
        self._octets = 0
        self._members = 0

    def __len__(self) -> int:
        """How many values and counts."""
        return len(self._values) + self._members

    def __contains__(self, key: str) -> bool:
        return key in self._values or key in self._tallies

    def first(self) -> str:
        """Some key; there must be one."""
        return next(iter(self._values or self._tallies))

    def value(self, key: str) -> Learned | None:
        """What was learned of a value, if anything."""
        return self._values.get(key)

    def learn(self, key: str, learned: Learned) -> bool:
        """Note it, in place of what was noted of this key; False when there is no room, and then nothing is."""
        self.forget(key)
        if not self._fits(size := _size(key, learned.value)):
            return False
        self._values[key] = learned
        self._octets += size
        return True

    def forget(self, key: str) -> Learned | None:
        """Take a value out."""
        learned = self._values.pop(key, None)
        if learned is not None:
            self._octets -= _size(key, learned.value)
        return learned

    def count(self, key: str, member: str, by: int, ttl: float, at: float) -> bool:
        """Add to a tally; False when there is no room."""
        tally = self._tallies.get(key)
        if tally is not None and tally.at + tally.ttl <= at:
            self.forget_tally(key)
            tally = None
        if tally is None or member not in tally.members:
            if not self._fits(size := _size(key, member)):
                return False
            self._octets += size
            self._members += 1
            tally = self._tallies.setdefault(key, Counted(ttl, at))
        tally.members[member] = tally.members.get(member, 0) + by
        return True

    def tally(self, key: str) -> Counted | None:
        """What was added to a tally, if anything."""
        return self._tallies.get(key)

    def uncount(self, key: str, member: str, by: int) -> None:
        """Take out what was added to a tally; with nothing left of it, the member goes."""
        tally = self._tallies[key]
        tally.members[member] -= by
        if not tally.members[member]:
            del tally.members[member]
            self._members -= 1
            self._octets -= _size(key, member)
        if not tally.members:
            del self._tallies[key]

    def forget_tally(self, key: str) -> None:
        """Take a tally out."""
        tally = self._tallies.pop(key, None)
        if tally is not None:
            self._members -= len(tally.members)
            self._octets -= sum(_size(key, member) for member in tally.members)

    def _fits(self, size: int) -> bool:
        return len(self) < ENTRIES and self._octets + size <= OCTETS


def _size(key: str, text: bytes | str) -> int:
    return _OVERHEAD + 4 * len(key) + (len(text) if isinstance(text, bytes) else 4 * len(text))
