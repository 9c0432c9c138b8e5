"""When to try again, when to warn, when to give up. Pure: the time and the random number are passed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_DOUBLINGS: Final = 32


@dataclass(frozen=True, slots=True)
class RetryOptions:
    """See `retry:` in gatepost.example.yaml. All but `jitter` in seconds.

    The pause doubles from `first` up to `max`. A message older than `give_up` is not tried again (RFC 5321 section
    4.5.4.1 asks for 4 to 5 days); older than `warn_after`, its sender is warned once (0: never). `jitter` is the part
    of a pause, 0 to 1, by which it may be longer or shorter, so that what failed together does not come back
    together.
    """

    first: float = 300.0
    max: float = 3600.0
    give_up: float = 432000.0
    warn_after: float = 14400.0
    jitter: float = 0.1


def pause(attempts: int, options: RetryOptions, random: float) -> float:
    """Seconds to wait after the `attempts`-th attempt (from 1); `random` is in 0..1."""
    doublings = min(max(attempts, 1) - 1, _DOUBLINGS)
    base = min(options.first * 2.0**doublings, max(options.max, options.first))
    return base * (1.0 + options.jitter * (2.0 * random - 1.0))


def next_due(
    now: float, attempts: int, received: float, options: RetryOptions, random: float, at_least: float = 0.0
) -> float:
    """When to try again after the `attempts`-th attempt, in epoch seconds; not before `at_least` seconds from now.

    The last attempt comes when the message's time is over and not a whole pause later, so that the sender hears of it.
    """
    due = now + max(pause(attempts, options, random), at_least)
    end = received + options.give_up
    return min(due, end) if end > now else due


def is_over(now: float, received: float, options: RetryOptions) -> bool:
    """Whether a message that is deferred now has had its time."""
    return now >= received + options.give_up


def warning_due(now: float, received: float, options: RetryOptions) -> bool:
    """Whether a message that is deferred now has waited long enough for its sender to be warned."""
    return options.warn_after > 0 and now >= received + options.warn_after
