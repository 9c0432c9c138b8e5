"""What would have become of a transaction without the entry that decided: said where it is known, and not guessed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.pipeline.difference import CUT, Kind, compare
from gateway.pipeline.past import Past
from gateway.pipeline.replay import Replay, Unknown
from gateway.sdk.stage import Stage


@dataclass(frozen=True, slots=True)
class Without:
    """What would have become of it without `entry`.

    `outcome` is as `gateway.sdk.ending.Outcome`, `by` who would have decided then, empty for nobody, and `refused` the
    recipients that would have been refused all the same. `beyond` is the stage behind which it would have gone on,
    where nothing is recorded of what comes after. `unknown` says why nothing of this can be said.
    """

    entry: str
    outcome: str = ""
    by: str = ""
    reply: str = ""
    refused: Collection[str] = ()
    beyond: str = ""
    unknown: str = ""

    def to_json(self) -> dict[str, Any]:
        if self.unknown:
            return {"plugin": self.entry, "unknown": self.unknown}
        return {
            "plugin": self.entry,
            "outcome": self.outcome,
            "by": self.by,
            "reply": self.reply,
            "refused": list(self.refused),
            "beyond": self.beyond or None,
        }


def without(replays: Mapping[str, Replay], past: Past, entry: str) -> Without:
    """Judge it again, with everybody but `entry`. `replays` are of the pipelines in force, by name."""
    name = past.told.pipeline
    if "," in name or past.told.copies:
        return Without(entry, unknown="it was queued in several copies")
    replay = replays.get(name)
    if replay is None:
        return Without(entry, unknown=f"there is no pipeline {name} now")
    if past.cut:
        return Without(entry, unknown=CUT)
    # Only where the pipelines in force say what was said then, what they say without one of them means anything.
    today = compare(replay, past)
    if today.kind is Kind.UNKNOWN:
        return Without(entry, unknown=today.why)
    if today.kind is not Kind.SAME:
        return Without(entry, unknown=f"the configuration in force judges it otherwise: {today.now} ({today.why})")
    fate = replay.judge(past, past.reached, without=entry)
    if isinstance(fate, Unknown):
        return Without(entry, unknown=f"{fate.entry}: {fate.why}")
    refused = fate.word in ("rejected", "deferred")
    beyond = "" if refused or past.reached is Stage.MESSAGE else past.reached.value
    return Without(entry, fate.word, fate.entry, fate.reply, fate.refused, beyond)
