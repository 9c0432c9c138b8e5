"""Trials of failure policies: finders of a configuration's pipelines are made to fail, one at a time.

The front door, the pipelines' plans, timeouts, deadlines, breakers and replies are the configuration's own; time jumps,
so a trial of a timeout takes none. No plugin is started, nobody is asked anything, and nothing is kept: it can run
beside a gateway that works, and cannot reach into one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from gateway.app.rehearsal import Records, Step, rehearse
from gateway.app.wiring import Parts, make_parts
from gateway.config import Config
from gateway.pipeline import breaker
from gateway.pipeline.asking import ON_ERROR
from gateway.pipeline.loader import Pipeline
from gateway.pipeline.plan import Node, OnError
from gateway.pipeline.sabotage import Sabotage, Saboteur, Way
from gateway.sdk.stage import Stage
from gateway.services.quick import LoopClock, run
from gateway.services.state import SqliteState
from gateway.smtp.intake import Desk

EVERY: Final = (Sabotage(Way.ERROR), Sabotage(Way.TIMEOUT), Sabotage(Way.GARBAGE), Sabotage(Way.SLOW, 2.0))
"""What is tried where the operator names nothing."""

_SLACK: Final = 0.01
_SESSIONS: Final = 2 * breaker.FAULTS


class NothingToFail(Exception):
    """There is no such entry, or it asks nobody anything."""


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one trial. `stage` is where the failure showed, empty when nobody asks.

    `declared` is what `on_error` says, and `expected` what has to come of it here; `came` is what did, with `reply`.
    `seconds` is the longest stage, which may take `bound`. `breaker` says what that did, and `wrong` what did not hold,
    empty when all did.
    """

    pipeline: str
    entry: str
    finding: str
    begins: str
    fault: str
    declared: str
    expected: str
    stage: str
    came: str
    reply: str
    seconds: float
    bound: float
    breaker: str
    wrong: str

    def to_json(self) -> dict[str, Any]:
        return {**{name: getattr(self, name) for name in self.__slots__}, "holds": not self.wrong}


def chaos(config: Config, wanted: Mapping[str, Sequence[Sabotage]], pipeline: str = "") -> list[Row]:
    """Try what is wanted, by entry; everything where nothing is. In one pipeline, or in all that have the entry.

    Raises `gateway.config.ConfigError` and `NothingToFail`.
    """
    return run(_chaos(config, wanted, pipeline))


async def _chaos(config: Config, wanted: Mapping[str, Sequence[Sabotage]], pipeline: str) -> list[Row]:
    clock = LoopClock()
    parts = make_parts(config, SqliteState(Path(config.state.path), clock), clock)
    pipelines = [made for name, made in parts.pipelines.items() if pipeline in ("", name)]
    there = dict.fromkeys(node.entry.name for made in pipelines for node in made.finders)
    for name in wanted:
        if name not in there:
            raise NothingToFail(f"no entry {name} asks anybody anything; there are {', '.join(there) or 'none'}")
    rows: list[Row] = []
    for made in pipelines:
        for node in made.finders:
            for sabotage in wanted.get(node.entry.name, () if wanted else EVERY):
                rows.append(await _Attempt(parts, made, node, sabotage).row())
                # What is handed the message may have begun to change it.
                if node.finder.acts and node.stage is Stage.MESSAGE and sabotage.way is not Way.SLOW:
                    rows.append(await _Attempt(parts, made, node, replace(sabotage, edited=True)).row())
    return rows


@dataclass(frozen=True, slots=True)
class _Played:
    """A session; where `on_error` of the sabotaged entry spoke, and whether the record shows a failure of it."""

    steps: tuple[Step, ...]
    spoke: tuple[str, ...]
    failed: bool

    @property
    def last(self) -> Step:
        return self.steps[-1]

    @property
    def came(self) -> OnError:
        reply = self.last.reply
        return OnError.PROCEED if reply.positive else OnError.DEFER if reply.temporary else OnError.REJECT

    @property
    def longest(self) -> Step:
        return max(self.steps, key=lambda step: step.seconds)


class _Attempt:
    """One trial of one finder."""

    def __init__(self, parts: Parts, pipeline: Pipeline, node: Node, sabotage: Sabotage) -> None:
        self._sabotage = sabotage
        self._saboteur = Saboteur(node.finder.finding, sabotage)
        self._pipeline, self._trial = pipeline.sabotaged(node, self._saboteur)
        self._records = Records()
        desk = parts.desk(self._records, LoopClock(), lambda: None)
        self._desk: Desk = replace(desk, pipelines={self._pipeline.name: self._pipeline})
        self._wrong: list[str] = []

    async def row(self) -> Row:
        """Fail once and look; then fail again and again, and look at the breaker."""
        trial, entry = self._trial, self._trial.node.entry
        fails = self._sabotage.way is not Way.SLOW or self._sabotage.seconds >= self._patience
        expected = trial.declared(halfway=self._sabotage.edited) if fails else OnError.PROCEED
        first = await self._play()
        self._judge(first, expected, fails)
        did = await self._exhaust() if fails and trial.asked else ""
        stage = first.spoke[0] if first.spoke else trial.asked[0].stage.value if trial.asked else ""
        at = next((step for step in first.steps if step.stage == stage), first.last)
        return Row(
            self._pipeline.name,
            entry.name,
            trial.node.finder.finding.__name__,
            trial.node.stage.value,
            str(self._sabotage),
            entry.on_error.value + (" (shadow)" if entry.shadow else ""),
            expected.value,
            stage,
            first.came.value,
            str(at.reply),
            round(first.longest.seconds, 3),
            self._bound(first.longest.stage),
            did,
            "; ".join(self._wrong),
        )

    @property
    def _patience(self) -> float:
        """Who answers within so many seconds has not failed."""
        return min(self._bound(stage) for stage in [asked.stage for asked in self._trial.asked] or Stage)

    def _bound(self, stage: Stage) -> float:
        """How long a stage may take."""
        return min(self._trial.plan.stages[stage].deadline, self._trial.node.entry.timeout)

    async def _play(self) -> _Played:
        self._records.kept.clear()
        steps = await rehearse(self._desk, self._pipeline.name)
        name = self._trial.node.entry.name
        found, said = (
            [note for record in self._records.kept for note in record[key] if note.get("plugin") == name]
            for key in ("findings", "verdicts")
        )
        spoke = dict.fromkeys(note["stage"] for note in said if note["policy"] == ON_ERROR)
        # What nobody waited for any longer is pending; its stage was over.
        return _Played(steps, tuple(spoke), any("fault" in note or "pending" in note for note in found))

    def _judge(self, played: _Played, expected: OnError, fails: bool) -> None:
        """Note what did not hold when it failed for the first time."""
        last = played.last
        if played.came is not expected:
            self._wrong.append(f"expected {expected}, and {last.stage} was answered {last.reply}")
        if fails and self._trial.asked and not played.failed:
            self._wrong.append("the failure is not in the record")
        if not last.reply.positive and last.stage not in [asked.stage for asked in self._trial.applied]:
            self._wrong.append(f"refused at {last.stage}, where nobody asks for it")
        for step in played.steps:
            if step.seconds > self._bound(step.stage) + _SLACK:
                self._wrong.append(f"{step.stage} took {step.seconds:g} s, and may take {self._bound(step.stage):g} s")

    async def _exhaust(self) -> str:
        """Fail until the breaker opens, fail once more, work again, and see it close. What it did."""
        guard = self._pipeline.breaker(self._trial.node)
        failures = 1
        while not guard.is_open and failures < _SESSIONS:
            await self._play()
            failures += 1
        if not guard.is_open:
            return "stays closed"
        # It does not begin any more, so it cannot fail half-way.
        played, expected = await self._play(), self._trial.declared(halfway=False)
        if played.came is not expected:
            self._wrong.append(f"expected {expected} while the breaker is open, and it was {played.came}")
        if played.longest.seconds > _SLACK:
            self._wrong.append(f"{played.longest.stage} took {played.longest.seconds:g} s while the breaker was open")
        self._saboteur.healed = True
        await asyncio.sleep(breaker.LONGEST_PAUSE)
        played = await self._play()
        if guard.is_open or played.came is not OnError.PROCEED:
            self._wrong.append(f"{played.came} when it worked again, the breaker {guard.state}")
        return f"opens after {failures}, closes again"
