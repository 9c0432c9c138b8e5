"""What is counted of milters."""

from __future__ import annotations

from typing import Any, Final

from prometheus_client import Counter, Histogram

from gateway.sdk import Edit, MilterAction, Stage

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

REPLIES = Counter("gatepost_milter_replies", "Answers of milters.", ["milter", "stage", "action"])
SECONDS = Histogram(
    "gatepost_milter_seconds", "Time that milters took for a stage.", ["milter", "stage"], buckets=_SECONDS
)
CONNECTIONS = Counter("gatepost_milter_connections", "Connections to milters, by how they were had.", ["milter", "how"])
EDITS = Counter("gatepost_milter_edits", "Changes that milters made.", ["milter", "edit"])


class Meters:
    """The metrics of one milter, bound."""

    def __init__(self, milter: str) -> None:
        self._milter = milter
        self._bound: dict[tuple[str, ...], Any] = {}

    def replied(self, stage: Stage, action: MilterAction, seconds: float) -> None:
        """It has answered at a stage."""
        key = (stage.value, action.value)
        if (both := self._bound.get(key)) is None:
            both = self._bound[key] = (REPLIES.labels(self._milter, *key), SECONDS.labels(self._milter, stage.value))
        both[0].inc()
        if action is not MilterAction.SKIPPED:
            both[1].observe(seconds)

    def connected(self, how: str) -> None:
        """A connection was made (``new``), taken from those that wait (``reused``), or had died there (``stale``)."""
        self._count(CONNECTIONS, how)

    def edited(self, edit: Edit) -> None:
        """It has changed something."""
        self._count(EDITS, type(edit).__name__)

    def _count(self, counter: Counter, what: str) -> None:
        if (bound := self._bound.get((what,))) is None:
            bound = self._bound[(what,)] = counter.labels(self._milter, what)
        bound.inc()
