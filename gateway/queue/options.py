"""The queue's options: for all destinations, and for some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.queue.retry import RetryOptions
from gateway.transport.transport import Destination


@dataclass(frozen=True, slots=True)
class PaceOptions:
    """Bounds for one destination, per worker; see `queue:` and `destinations:` in gatepost.example.yaml.

    `start` attempts run at once at first, `most` at most. `dead_after` lost rounds in a row make it dead; then it is
    left alone for `dead_for` seconds, doubling up to `dead_max`. `gap` is the seconds from one attempt to the next.
    """

    start: int = 5
    most: int = 20
    dead_after: int = 5
    dead_for: float = 60.0
    dead_max: float = 900.0
    gap: float = 0.0


@dataclass(frozen=True, slots=True)
class OwnOptions:
    """What is different for some destinations. `retry` None means as for all."""

    pace: PaceOptions
    retry: RetryOptions | None = None


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Bounds of the scheduler, per worker; times in seconds.

    `active` messages from the disk are worked on at once. A quarter of these places is kept for mail that was never
    tried, and a quarter for mail that was, so that neither holds up the other. `poll` is the longest time between two
    looks into the spool. `pace` holds for destinations that are not `named` (see `own`).
    """

    active: int = 1000
    poll: float = 1.0
    pace: PaceOptions = field(default_factory=PaceOptions)
    named: Mapping[str, OwnOptions] = field(default_factory=dict)

    def own(self, destination: Destination) -> OwnOptions:
        """A destination's options: by its written form, by its host, by the nearest ``.domain`` above that."""
        if not self.named:
            return OwnOptions(self.pace)
        found = self.named.get(str(destination)) or self.named.get(destination.host)
        at = destination.host.find(".")
        while found is None and at >= 0:
            found = self.named.get(destination.host[at:])
            at = destination.host.find(".", at + 1)
        return found or OwnOptions(self.pace)
