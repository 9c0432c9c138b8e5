"""A plan in which one finder fails as told, and nobody else has anything to say: for trials of failure policies.

The finder is replaced in the plan, where the pipeline calls it, and nowhere else: its entry's `timeout` and `on_error`,
the stages' deadlines, breakers, who depends on it and where it is asked for are the pipeline's own. All others give
nothing and are not asked, so that what comes of it comes of the failure alone, and no trial needs the network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from gateway.pipeline.plan import NOTHING, Entry, Node, OnError, Plan, Question, StagePlan, Step
from gateway.sdk.findings import Finding
from gateway.sdk.options import parse_duration
from gateway.sdk.running import edit_begun
from gateway.sdk.stage import Stage
from gateway.sdk.verdict import PROCEED, Verdict

LONGEST: Final = 3600.0


class Way(StrEnum):
    """How something fails."""

    ERROR = "error"
    """It raises."""
    TIMEOUT = "timeout"
    """It never answers."""
    GARBAGE = "garbage"
    """It answers something that is no finding of its kind."""
    SLOW = "slow"
    """It answers late."""


@dataclass(frozen=True, slots=True)
class Sabotage:
    """How a finder is to fail. `seconds` are for SLOW; `edited`: after it has begun to change the message."""

    way: Way
    seconds: float = 0.0
    edited: bool = False

    def __str__(self) -> str:
        text = f"slow:{self.seconds:g}s" if self.way is Way.SLOW else self.way.value
        return f"{text} after an edit" if self.edited else text


def parse_sabotage(text: str) -> Sabotage:
    """Raises ValueError for what is none of ``timeout``, ``error``, ``garbage`` and ``slow:2s``."""
    way, colon, seconds = text.partition(":")
    if way == Way.SLOW and colon:
        duration = parse_duration(seconds)
        if not 0 < duration <= LONGEST:
            raise ValueError(f"{text[:100]}: must be more than 0 and at most 1h")
        return Sabotage(Way.SLOW, duration)
    if colon or way == Way.SLOW or way not in list(Way):
        raise ValueError(f"{text[:100]!r} is none of timeout, error, garbage and slow:DURATION (slow:2s)")
    return Sabotage(Way(way))


class Broken(Exception):
    """What a finder raises that is made to."""


class Saboteur:
    """Stands in a finder's place and fails, until it is `healed`."""

    def __init__(self, finding: type[Finding], sabotage: Sabotage) -> None:
        self.healed = False
        self._finding = finding
        self._sabotage = sabotage

    async def __call__(self) -> Any:
        if self.healed:
            return stand_in(self._finding)
        if self._sabotage.edited:
            edit_begun()
        match self._sabotage.way:
            case Way.ERROR:
                raise Broken("made to fail by gatepost chaos")
            case Way.TIMEOUT:
                await asyncio.Event().wait()
            case Way.GARBAGE:
                return object()
            case Way.SLOW:
                await asyncio.sleep(self._sabotage.seconds)
        return stand_in(self._finding)


def stand_in(finding: type[Finding]) -> Finding:
    """Something of this kind that says nothing: each of its fields is None, and nobody should decide by it."""
    kind: Any = type(
        finding.__name__,
        (finding,),
        {
            "__slots__": (),
            "__getattr__": lambda self, name: None,
            "to_json": lambda self: {},
            "authentication": lambda self: (),
            "idle": lambda self: False,
        },
    )
    made: Finding = object.__new__(kind)
    return made


def nodes(plan: Plan) -> tuple[Node, ...]:
    """All finders of a plan that are ever run, in its order."""
    found: dict[int, Node] = {}

    def see(source: int | Node) -> None:
        if isinstance(source, Node) and source.index not in found:
            found[source.index] = source
            for below in source.sources:
                see(below)

    for stage in plan.stages.values():
        for node in (*stage.begin, *(act for step in stage.steps for act in step.acts)):
            see(node)
        for step in stage.steps:
            for source, _ in step.question.sources if step.question else ():
                see(source)
    return tuple(node for _, node in sorted(found.items()))


@dataclass(frozen=True, slots=True)
class Asked:
    """Where a finder's failure shows: at which stage, and whose turn it is."""

    stage: Stage
    deadline: float
    by: Entry


@dataclass(frozen=True, slots=True)
class Trial:
    """A plan in which `node` fails. `asked` are the places where that shows, the first one first."""

    plan: Plan
    node: Node
    asked: tuple[Asked, ...]

    @property
    def applied(self) -> tuple[Asked, ...]:
        """Those at which an answer counts: shadow entries only say what they would do."""
        return tuple(asked for asked in self.asked if not asked.by.shadow)

    def declared(self, *, halfway: bool) -> OnError:
        """What has to come of a failure. After an edit has begun, only a deferral is safe."""
        if self.node.entry.shadow or not self.applied:
            return OnError.PROCEED
        return OnError.DEFER if halfway else self.node.entry.on_error


class _Change:
    """Makes the plan of a trial: only what depends on the victim is left, and answers nothing."""

    def __init__(self, victim: Node, method: Any) -> None:
        self._victim = victim
        self._method = method
        self._entries: dict[int, Entry] = {}
        self._nodes: dict[int, Node | None] = {}

    def entry(self, entry: Entry) -> Entry:
        """Enforced for all, where it is for a share: a trial is of that share."""
        return self._entries.setdefault(entry.index, replace(entry, rollout=None))

    def node(self, node: Node) -> Node | None:
        """The node as it stands in the trial; None when it has nothing to do with the victim."""
        if node.index not in self._nodes:
            self._nodes[node.index] = self._changed(node)
        return self._nodes[node.index]

    def _changed(self, node: Node) -> Node | None:
        if node.index == self._victim.index:
            finder = replace(node.finder, inputs=(), optional=())
            return replace(
                node, entry=self.entry(node.entry), finder=finder, method=self._method, sources=(), shortcut=None
            )
        sources = tuple(self.source(source) for source in node.sources)
        if not any(isinstance(source, Node) for source in sources):
            return None
        kind = node.finder.finding

        async def nothing(*_: object) -> Finding:
            return stand_in(kind)

        return replace(node, entry=self.entry(node.entry), method=nothing, sources=sources, shortcut=None)

    def source(self, source: int | Node) -> int | Node:
        if not isinstance(source, Node):
            return source
        changed = self.node(source)
        return NOTHING if changed is None else changed

    def stage(self, plan: StagePlan) -> StagePlan:
        begin = tuple(self._kept(plan.begin))
        steps = tuple(step for old in plan.steps if (step := self._step(old)))
        return StagePlan(plan.stage, begin, steps, plan.deadline, not begin and not steps)

    def _kept(self, old: tuple[Node, ...]) -> Iterator[Node]:
        return (node for one in old if (node := self.node(one)))

    def _step(self, step: Step) -> Step | None:
        acts = tuple(self._kept(step.acts))
        question = step.question and self._question(step.question)
        return Step(self.entry(step.entry), acts, question) if acts or question else None

    def _question(self, question: Question) -> Question | None:
        sources = tuple((self.source(source), optional) for source, optional in question.sources)
        if not any(isinstance(source, Node) for source, _ in sources):
            return None
        return Question(self.entry(question.entry), _proceeds, sources)


def _proceeds(*_: object) -> Verdict:
    return PROCEED


def trial(plan: Plan, victim: Node, saboteur: Saboteur) -> Trial:
    """The plan, with the victim failing."""
    change = _Change(victim, saboteur)
    stages = {name: change.stage(stage) for name, stage in plan.stages.items()}
    node = change.node(victim)
    assert node is not None
    asked = [
        Asked(stage.stage, stage.deadline, step.entry)
        for stage in stages.values()
        for step in stage.steps
        if step.question or victim.index in [act.index for act in step.acts]
    ]
    return Trial(Plan(tuple(map(change.entry, plan.entries)), stages), node, tuple(asked))
