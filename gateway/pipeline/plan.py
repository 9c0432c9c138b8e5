"""The plan of a pipeline: which finder serves whom, and what is done at each stage. Worked out once, when loaded.

A finding is taken from the asker's own entry where that gives it, else from the nearest entry before it in the list,
else from the first one after it. What an action finds exists only once its turn in the list has come.

*Fails by*: `PipelineError`, which holds every problem with its place in the list.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from typing import Any, Final

from gateway.mail.envelope import Recipient
from gateway.mail.session import Session
from gateway.pipeline.rollout import Rollout
from gateway.sdk.findings import Finding
from gateway.sdk.options import OptionError, OptionProblem
from gateway.sdk.plugin import Finder, Plugin
from gateway.sdk.policy import Given, Policy
from gateway.sdk.stage import ORDER, Message, Stage, Transaction
from gateway.sdk.verdict import Verdict

Path = tuple[str | int, ...]


class PipelineError(Exception):
    """A pipeline cannot be made. `path` is the key inside the entries list; `problems` has all there are.

    `offset` is the character of the text at `path`, from 0, where one is meant.
    """

    def __init__(
        self, message: str, path: Path, problems: Sequence[PipelineError] = (), *, offset: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.offset = offset
        self.problems = tuple(problems) or (self,)


class OnError(StrEnum):
    """What a plugin entry's owner wants when it fails."""

    PROCEED = "proceed"
    DEFER = "defer"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class StageDeadlines:
    """Seconds that a stage may wait for all its findings together."""

    connect: float = 10.0
    helo: float = 10.0
    auth: float = 10.0
    mail: float = 20.0
    rcpt: float = 20.0
    data: float = 20.0
    message: float = 60.0

    def of(self, stage: Stage) -> float:
        seconds: float = getattr(self, stage.value)
        return seconds


class Scope(IntEnum):
    """How long a finding holds; each scope sees the ones before it. Content is part of the transaction."""

    SESSION = 0
    HELO = 1
    TRANSACTION = 2
    RECIPIENT = 3


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One entry of the list: a plugin with its policy, or a policy alone. `name` is unique in the pipeline.

    `policy_sole` is the option of the policy that stands there as a bare list. Outside of its `rollout` an entry is in
    shadow.
    """

    index: int
    name: str
    plugin: Plugin | None
    policy: Policy | None
    policy_name: str = ""
    shadow: bool = False
    timeout: float = Plugin.timeout
    on_error: OnError = OnError.DEFER
    path: Path = ()
    policy_path: Path = ()
    policy_sole: str = ""
    rollout: Rollout | None = None

    def applied(self, session: Session, txn: Transaction | None) -> Entry:
        """The entry as it counts here: itself, or in shadow where its rollout has not come."""
        return self if self.enforced(session, txn) else replace(self, shadow=True)

    def enforced(self, session: Session, txn: Transaction | None) -> bool:
        """Whether its rollout has come here, if it has one."""
        return self.rollout is None or self.rollout.covers(self.name, session, txn)


# A source that is a number is a place in the tuple that the runner holds ready at each stage.
NOTHING: Final = 4
INPUTS: Final[dict[type, int]] = {Session: 0, Transaction: 1, Recipient: 2, Message: 3, type(None): NOTHING}
_INPUT_SCOPE: Final = {
    Session: Scope.SESSION,
    Transaction: Scope.TRANSACTION,
    Recipient: Scope.RECIPIENT,
    Message: Scope.TRANSACTION,
    type(None): Scope.SESSION,
}
_STAGE_SCOPE: Final = {
    Stage.CONNECT: Scope.SESSION,
    Stage.HELO: Scope.HELO,
    Stage.AUTH: Scope.HELO,
    Stage.MAIL: Scope.TRANSACTION,
    Stage.RCPT: Scope.RECIPIENT,
    Stage.DATA: Scope.TRANSACTION,
    Stage.MESSAGE: Scope.TRANSACTION,
}


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A finder in its entry, wired. Sources come before their users by `index`.

    `ready` is when it can begin: the stage's number, and the entry whose turn it has to wait for there, -1 for none.
    `shortcut` is tried before `method` (`Plugin.shortcut`).
    """

    index: int
    entry: Entry
    finder: Finder
    method: Callable[..., Awaitable[Finding]]
    sources: tuple[int | Node, ...]
    scope: Scope
    ready: tuple[int, int]
    label: str
    shortcut: Callable[..., Finding | None] | None = None

    @property
    def stage(self) -> Stage:
        return ORDER[self.ready[0]]


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A policy's hook, wired. A missing source is given as None where `optional` says so; else nobody asks."""

    entry: Entry
    method: Callable[..., Verdict]
    sources: tuple[tuple[int | Node, bool], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """An entry's turn at a stage: its actions, then its policy."""

    entry: Entry
    acts: tuple[Node, ...]
    question: Question | None


@dataclass(frozen=True, slots=True, eq=False)
class StagePlan:
    """What is done at a stage: look-ups to begin, then turns in list order."""

    stage: Stage
    begin: tuple[Node, ...]
    steps: tuple[Step, ...]
    deadline: float
    empty: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the stage table. `order` counts entries from 1; `timeout` in seconds, None for a policy."""

    stage: str
    order: int
    entry: str
    kind: str
    name: str
    needs: tuple[str, ...]
    on_error: str | None
    timeout: float | None
    shadow: bool
    enforced: str = "100%"

    def to_json(self) -> dict[str, Any]:
        return {field: getattr(self, field) for field in self.__slots__}


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A pipeline's plan for all stages."""

    entries: tuple[Entry, ...]
    stages: dict[Stage, StagePlan]

    @property
    def empty(self) -> bool:
        return all(plan.empty for plan in self.stages.values())

    def table(self) -> tuple[Row, ...]:
        """Stage by stage in the order of asking; every look-up stands at the stage where it begins."""
        return tuple(row for plan in self.stages.values() for row in _rows(plan))


def _rows(plan: StagePlan) -> Iterator[Row]:
    for node in plan.begin:
        yield _finder_row(plan, node)
    for step in plan.steps:
        for node in step.acts:
            yield _finder_row(plan, node)
        if step.question:
            entry = step.entry
            needs = tuple(_served(source) for source, _ in step.question.sources if isinstance(source, Node))
            place = (plan.stage.value, entry.index + 1, entry.name)
            yield Row(*place, "policy", entry.policy_name, needs, None, None, entry.shadow, _enforced(entry))


def _finder_row(plan: StagePlan, node: Node) -> Row:
    entry = node.entry
    return Row(
        plan.stage.value,
        entry.index + 1,
        entry.name,
        "acts" if node.finder.acts else "finds",
        node.finder.finding.__name__,
        tuple(_served(s) for s in node.sources if isinstance(s, Node)),
        entry.on_error.value,
        entry.timeout,
        entry.shadow,
        _enforced(entry),
    )


def _enforced(entry: Entry) -> str:
    """The share of the traffic in which it counts."""
    return "0%" if entry.shadow else str(entry.rollout or "100%")


def _served(node: Node) -> str:
    return f"{node.finder.finding.__name__} from {node.entry.name}"


def option_problems(error: OptionError, path: Path, sole: str) -> list[PipelineError]:
    """What an author's code found wrong with options, which stand at `path`, maybe as the bare list `sole`."""
    return [
        PipelineError(p.message, path + (p.path[1:] if p.path[:1] == (sole,) else p.path), offset=p.offset)
        for p in error.problems or [OptionProblem((), "these options are refused, and it does not say why")]
    ]


def make(
    entries: Sequence[Entry], deadlines: StageDeadlines, would_give: Callable[[type[Finding]], Sequence[str]]
) -> Plan:
    """Wire the entries. `would_give` names installed plugins that give a finding, for the error's text."""
    return _Wiring(entries, would_give).plan(deadlines)


@dataclass(frozen=True, slots=True, eq=False)
class _Offer:
    entry: Entry
    finder: Finder

    @property
    def turn(self) -> tuple[int, int]:
        """The moment its result is asked for at the latest: the entry's turn at the finder's stage."""
        return ORDER.index(self.finder.stage), self.entry.index


class _Wiring:
    def __init__(self, entries: Sequence[Entry], would_give: Callable[[type[Finding]], Sequence[str]]) -> None:
        self._entries = tuple(entries)
        self._would_give = would_give
        self._offers = [_Offer(e, f) for e in entries if e.plugin for f in e.plugin.finders]
        self._nodes: dict[_Offer, Node] = {}
        self._broken: set[_Offer] = set()
        self._open: list[_Offer] = []
        self._problems: list[PipelineError] = []

    def plan(self, deadlines: StageDeadlines) -> Plan:
        for offer in self._offers:
            self._node(offer)
        for entry in self._entries:
            if entry.policy:
                self._tell(entry, entry.policy)
        questions = {
            (stage, entry.index): question
            for entry in self._entries
            if entry.policy
            for stage in entry.policy.hooks
            if (question := self._question(entry, entry.policy, stage))
        }
        if self._problems:
            first = self._problems[0]
            raise PipelineError(first.message, first.path, self._problems)
        return Plan(self._entries, {stage: self._stage(stage, questions, deadlines) for stage in Stage})

    def _stage(
        self, stage: Stage, questions: dict[tuple[Stage, int], Question], deadlines: StageDeadlines
    ) -> StagePlan:
        nodes = sorted((n for n in self._nodes.values() if n.stage is stage), key=lambda n: n.index)
        steps = []
        for entry in self._entries:
            acts = tuple(n for n in nodes if n.finder.acts and n.entry is entry)
            question = questions.get((stage, entry.index))
            if acts or question:
                steps.append(Step(entry, acts, question))
        begin = tuple(n for n in nodes if n.ready[1] < 0)
        return StagePlan(stage, begin, tuple(steps), deadlines.of(stage), not begin and not steps)

    def _refuse(self, message: str, path: Path) -> None:
        self._problems.append(PipelineError(message, path))

    def _tell(self, entry: Entry, policy: Policy) -> None:
        """Tell a policy what there is for it."""
        if type(policy).wire is Policy.wire:
            return
        kinds = dict.fromkeys(offer.finder.finding for offer in self._offers)
        stages = {
            kind: tuple(stage for stage in ORDER if self._source(kind, (ORDER.index(stage), entry.index)))
            for kind in kinds
        }
        try:
            policy.wire(Given(stages, self._would_give))
        except OptionError as error:
            self._problems += option_problems(error, entry.policy_path, entry.policy_sole)

    def _node(self, offer: _Offer) -> Node | None:
        """The offer's node, wired on first use; None when it cannot be, which is then among the problems."""
        if offer in self._nodes or offer in self._broken:
            return self._nodes.get(offer)
        if offer in self._open:
            ring = [*self._open[self._open.index(offer) :], offer]
            names = " -> ".join(f"{o.finder.finding.__name__} ({o.entry.name})" for o in ring)
            self._refuse(f"findings depend on each other in a circle: {names}", offer.entry.path)
            self._broken.update(ring)
            return None
        self._open.append(offer)
        node = self._wire(offer)
        self._open.pop()
        if node is None or offer in self._broken:
            self._broken.add(offer)
            return None
        self._nodes[offer] = node
        return node

    def _wire(self, offer: _Offer) -> Node | None:
        entry, finder = offer.entry, offer.finder
        scope = _STAGE_SCOPE[finder.stage] if finder.acts else Scope.SESSION
        ready = offer.turn if finder.acts else (ORDER.index(finder.stage), -1)
        sources: list[int | Node] = []
        for kind, optional in zip(finder.inputs, finder.optional, strict=True):
            if kind in INPUTS:
                sources.append(INPUTS[kind])
                scope = max(scope, _INPUT_SCOPE[kind])
                continue
            source = self._source(kind, offer.turn, asker=offer)
            if source is None and optional:
                sources.append(NOTHING)
                continue
            if source is None:
                who = f"{entry.name}.{finder.method}"
                self._missing(kind, who, offer.turn, entry.path, offer)
                return None
            sources.append(source)
            scope = max(scope, source.scope)
            ready = max(ready, source.ready)
        if scope is Scope.SESSION and ready[0] > 0:
            scope = Scope.HELO
        if scope is Scope.RECIPIENT and ORDER[ready[0]] is not Stage.RCPT:
            at = ORDER[ready[0]]
            self._refuse(f"{entry.name}.{finder.method} needs one recipient, and at {at} there may be many", entry.path)
            return None
        plugin = entry.plugin
        method = getattr(plugin, finder.method)
        shortcut = plugin.shortcut(finder) if plugin else None
        label = f"{entry.name}.{finder.method}"
        return Node(len(self._nodes), entry, finder, method, tuple(sources), scope, ready, label, shortcut)

    def _candidates(self, kind: type, turn: tuple[int, int], asker: _Offer | None) -> list[_Offer]:
        """All that give `kind`, the one to take first; in one entry the latest stage that has come is best."""
        stage, at = turn
        nearest = sorted(range(len(self._entries)), key=lambda i: (i > at, abs(at - i)))
        rank = {index: place for place, index in enumerate(nearest)}

        def order(offer: _Offer) -> tuple[int, bool, int]:
            own = ORDER.index(offer.finder.stage)
            return rank[offer.entry.index], own > stage, abs(stage - own)

        return sorted((o for o in self._offers if o.finder.finding is kind and o is not asker), key=order)

    def _source(self, kind: type, turn: tuple[int, int], asker: _Offer | None = None) -> Node | None:
        """The node that serves `kind` to whoever asks at `turn`. A look-up can wait for a later one; others cannot."""
        patient = asker is not None and not asker.finder.acts
        for offer in self._candidates(kind, turn, asker):
            node = self._node(offer)
            if node is None:
                continue
            seen = node.scope is not Scope.RECIPIENT or ORDER[turn[0]] is Stage.RCPT or patient
            if seen and (patient or node.ready <= turn):
                return node
        return None

    def _missing(self, kind: type, who: str, turn: tuple[int, int], path: Path, asker: _Offer | None = None) -> None:
        """Say why nobody serves `kind`, unless the reason is a problem that is already said."""
        offers = self._candidates(kind, turn, asker)
        if any(o in self._broken or o in self._open for o in offers):
            return
        name, stage = kind.__name__, ORDER[turn[0]]
        if not offers:
            givers = self._would_give(kind)
            hint = f"; {' or '.join(givers)} would, if listed" if givers else ""
            self._refuse(f"{who} needs {name}, which no plugin of this pipeline gives{hint}", path)
            return
        node = self._nodes[offers[0]]
        if node.scope is Scope.RECIPIENT and stage is not Stage.RCPT:
            why = "has once per recipient, so it is known at rcpt only"
        elif node.ready[0] > turn[0]:
            why = f"gives at stage {node.stage} only"
        else:
            why = "gives only when its turn has come; list it before"
        self._refuse(f"{who} needs {name} at stage {stage}, which {node.entry.name} {why}", path)

    def _question(self, entry: Entry, policy: Policy, stage: Stage) -> Question | None:
        hook = policy.hooks[stage]
        turn = (ORDER.index(stage), entry.index)
        sources: list[tuple[int | Node, bool]] = []
        whole = True
        for kind, optional in zip(hook.inputs, hook.optional, strict=True):
            if kind in INPUTS:
                sources.append((INPUTS[kind], optional))
            elif node := self._source(kind, turn):
                sources.append((node, optional))
            elif optional:
                sources.append((NOTHING, True))
            else:
                whole = False
                self._missing(kind, f"policy {entry.policy_name}", turn, entry.policy_path)
        return Question(entry, getattr(policy, hook.name), tuple(sources)) if whole else None
