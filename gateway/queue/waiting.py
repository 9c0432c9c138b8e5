"""What waits for one destination, and who is next.

Mail of higher priority goes first, mostly: of seven turns four are of high priority, two of normal, one of low, and who
has nothing leaves the turn to the next. So none waits for ever. Within a priority, mail that has just come in and mail
from the disk take turns, so that neither holds up the other.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, TypeVar

from gateway.mail.envelope import TURNS, Priority

T = TypeVar("T")

RANKED: Final = tuple(Priority)


class _Pair(Generic[T]):
    """New and old of one priority; whoever was served last comes second."""

    __slots__ = ("new", "old", "old_next")

    def __init__(self) -> None:
        self.new: deque[T] = deque()
        self.old: deque[T] = deque()
        self.old_next = False

    def take(self) -> T:
        first = self.old if self.old and (self.old_next or not self.new) else self.new
        self.old_next = first is self.new
        return first.popleft()


class Waiting(Generic[T]):
    """`put` at the end, `take` what is next; `len` counts all."""

    __slots__ = ("_pairs", "_turn", "new", "old")

    def __init__(self) -> None:
        # Made when there is something of a priority: there are many destinations, and most mail is normal.
        self._pairs: dict[Priority, _Pair[T]] = {}
        self._turn = 0
        self.new = 0
        self.old = 0

    def __len__(self) -> int:
        return self.new + self.old

    def put(self, item: T, priority: Priority, *, old: bool) -> None:
        """Behind all others of its priority. `old` is mail from the disk."""
        pair = self._pairs.get(priority)
        if pair is None:
            pair = self._pairs[priority] = _Pair()
        if old:
            pair.old.append(item)
            self.old += 1
        else:
            pair.new.append(item)
            self.new += 1

    def old_of(self, priority: Priority) -> int:
        """How much from the disk waits with this priority."""
        pair = self._pairs.get(priority)
        return len(pair.old) if pair else 0

    def take(self) -> T:
        """The next one. Raises IndexError when nothing waits."""
        turn = TURNS[self._turn]
        self._turn = (self._turn + 1) % len(TURNS)
        for priority in (turn, *RANKED):
            pair = self._pairs.get(priority)
            if pair and (pair.new or pair.old):
                old = len(pair.old)
                item = pair.take()
                if len(pair.old) < old:
                    self.old -= 1
                else:
                    self.new -= 1
                return item
        raise IndexError("nothing waits")
