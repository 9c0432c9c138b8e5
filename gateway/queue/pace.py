"""How fast mail may leave for one destination: how many attempts at once, how often, and whether it is tried at all.

Concurrency grows by one for each round of attempts that the destination took well, and is halved for a round in which
it failed (additive increase and multiplicative decrease, as TCP does it with octets). What
was under way when it was halved tells nothing new, so a whole round counts once. After `dead_after` rounds in a row
that did not even reach it, the destination is dead: it is left alone, then probed by one attempt, at growing intervals.
A probe that gets through opens it with a concurrency of one, so that a backlog does not leave all at once.

Deciding only: no clock, no I/O, no randomness of its own. Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from gateway.queue.options import PaceOptions
from gateway.transport.transport import Fault, Outcome, Result

_HELD_SECONDS: Final = 10.0
_CLOSING: Final = 421
"""RFC 5321 section 3.8: the server is about to close, or has enough of us."""
_DOUBLINGS: Final = 16


class Signal(Enum):
    """What an attempt says about the destination, whatever it says about the message."""

    GOOD = auto()
    """It answered, and went on talking."""
    BUSY = auto()
    """It answered 421, or fell silent half-way."""
    LOST = auto()
    """It could not be reached, or sent us away at the greeting."""
    NOTHING = auto()
    """The trouble was ours."""


class Change(Enum):
    """What an attempt changed."""

    NONE = auto()
    DIED = auto()
    """It is left alone from now on, or goes on being left alone after a probe."""
    REVIVED = auto()


def read(outcomes: Sequence[Outcome]) -> Signal:
    """The signal in the outcomes of one attempt."""
    first = outcomes[0]
    if first.fault is Fault.OURS:
        return Signal.NOTHING
    if first.fault is Fault.CONNECT:
        return Signal.LOST
    for outcome in outcomes:
        # Mailboxes and commands are no hosts: one that is full, locked or puts off says nothing of the others there.
        puts_off = outcome.fault is Fault.PEER and outcome.result is Result.DEFERRED
        silent = puts_off and bool(outcome.host) and not outcome.replied
        if outcome.reply.code == _CLOSING or silent:
            return Signal.BUSY
    return Signal.GOOD


class Pace:
    """One destination's. `begin` when an attempt starts; `end` with what that gave when it is over."""

    __slots__ = ("_good", "_next", "_round", "dead_until", "lost", "options", "proven", "running", "window")

    def __init__(self, options: PaceOptions) -> None:
        self.options = options
        self.window = max(1, min(options.start, options.most))
        """Attempts at once."""
        self.running = 0
        self.lost = 0
        """Rounds in a row that were lost."""
        self.proven = False
        """The last attempt that says anything about it got through."""
        self.dead_until = 0.0
        self._round = 0
        self._good = 0
        self._next = float("-inf")

    def renew(self, options: PaceOptions) -> None:
        """Go on with other options."""
        self.options = options
        self.window = max(1, min(self.window, options.most))

    @property
    def dead(self) -> bool:
        """Whether it was lost so often that it is only probed."""
        return self.lost >= self.options.dead_after

    def limit(self, now: float) -> int:
        """How many attempts may run at once: none for a dead destination, one when it is to be probed."""
        if self.dead:
            return 1 if now >= self.dead_until else 0
        return self.window

    def wait(self, now: float) -> float:
        """Seconds until the next attempt may begin, by the rate alone; 0 for at once."""
        return max(0.0, self._next - now)

    def depth(self) -> int:
        """How many messages are worth having in memory: two rounds, and no more than leave in ten seconds."""
        two = 2 * self.window
        return two if not self.options.gap else max(1, min(two, int(_HELD_SECONDS / self.options.gap)))

    def begin(self, now: float) -> int:
        """An attempt starts. Gives what `end` wants back: the round that it belongs to."""
        self.running += 1
        if self.options.gap:
            self._next = max(self._next, now) + self.options.gap
        return self._round

    def end(self, round: int, signal: Signal, now: float) -> Change:
        """An attempt of this round has ended."""
        self.running -= 1
        if signal is Signal.NOTHING:
            return Change.NONE
        self.proven = signal is Signal.GOOD
        if signal is Signal.LOST:
            return self._lost(round, now)
        change = Change.REVIVED if self.dead else Change.NONE
        self.lost = 0
        self.dead_until = 0.0
        if signal is Signal.BUSY:
            self._shrink(round)
        elif change is Change.NONE:
            self._grow()
        return change

    def reopen(self) -> bool:
        """Have a dead destination probed at once; whether it was dead."""
        self.dead_until = 0.0
        return self.dead

    def _grow(self) -> None:
        self._good += 1
        if self._good >= self.window and self.window < self.options.most:
            self.window += 1
            self._good = 0

    def _shrink(self, round: int) -> bool:
        """Halve it, once for all attempts of a round; whether this was the first of them."""
        if round != self._round:
            return False
        self._round += 1
        self._good = 0
        self.window = max(1, self.window // 2)
        return True

    def _lost(self, round: int, now: float) -> Change:
        if not self._shrink(round):
            return Change.NONE
        self.lost += 1
        excess = self.lost - self.options.dead_after
        if excess < 0:
            return Change.NONE
        self.window = 1
        self.dead_until = now + min(self.options.dead_for * 2.0 ** min(excess, _DOUBLINGS), self.options.dead_max)
        return Change.DIED
