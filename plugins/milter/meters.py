"""What is counted of milters."""

from __future__ import annotations

from typing import Any

from prometheus_client import Counter

from gateway.sdk import Edit, MilterAction, Stage

REPLIES = Counter("gatepost_milter_replies", "Answers of milters.", ["milter", "stage", "action"])
CONNECTIONS = Counter("gatepost_milter_connections", "Connections to milters, by how they were had.", ["milter", "how"])
EDITS = Counter("gatepost_milter_edits", "Changes that milters made.", ["milter", "edit"])


class Meters:
    """The metrics of one milter, bound."""

    def __init__(self, milter: str) -> None:
        self._milter = milter
        self._bound: dict[tuple[str, ...], Any] = {}

    def replied(self, stage: Stage, action: MilterAction) -> None:
        """It has answered at a stage. The time that took is counted for every plugin (``gatepost_plugin_seconds``)."""
        key = (stage.value, action.value)
        if (bound := self._bound.get(key)) is None:
            bound = self._bound[key] = REPLIES.labels(self._milter, *key)
        bound.inc()

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
