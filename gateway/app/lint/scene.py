"""What lint looks at: the configuration, its pipelines as they were made, and who uses them.

Remarks name places as paths of the configuration file; `Judged` turns those of an entry's options into such paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.config import Config
from gateway.config.cross import DEFAULT_PIPELINE
from gateway.config.routes import Domain
from gateway.pipeline.plan import Entry, Node, Plan, Step
from gateway.sdk.findings import Finding
from gateway.sdk.lint import Path
from gateway.sdk.stage import ORDER, Stage
from gateway.transport.transport import Destination, Kind


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One pipeline. `implied` is how many entries stand in front of those of the file."""

    name: str
    plan: Plan
    raw: tuple[Any, ...]
    implied: int

    @property
    def path(self) -> Path:
        """Where the pipeline stands."""
        return ("pipeline",) if self.name == DEFAULT_PIPELINE else ("pipelines", self.name)

    def path_of(self, entry: Entry, *more: str | int) -> Path:
        """Where the entry stands, by its name or by `more`; for an implied one, the pipeline."""
        index = entry.index - self.implied
        if index < 0:
            return self.path
        return (*self.path, index, *(more or entry.path[1:]))

    def path_in(self, entry: Entry, path: Path, *, of_policy: bool) -> Path:
        """Where an option of the entry stands, or of its policy."""
        start = entry.policy_path if of_policy else entry.path
        if path[:1] == (entry.policy_sole,) and of_policy:
            path = path[1:]
        return self.path_of(entry, *start[1:], *path)

    def says(self, entry: Entry, key: str) -> bool:
        """Whether `key` stands beside the entry's options."""
        index = entry.index - self.implied
        return index >= 0 and isinstance(self.raw[index], Mapping) and key in self.raw[index]

    @property
    def enforced(self) -> tuple[Entry, ...]:
        """Entries that count for all of the traffic."""
        return tuple(entry for entry in self.plan.entries if counts(entry))

    def steps(self, stage: Stage, *, after: Entry | None = None) -> tuple[Step, ...]:
        """The turns of enforced entries at a stage, those after an entry only."""
        steps = self.plan.stages[stage].steps
        return tuple(s for s in steps if counts(s.entry) and (after is None or s.entry.index > after.index))

    def judges(self, stage: Stage) -> bool:
        """Whether an entry that counts has a say at this stage."""
        return any(step.question for step in self.steps(stage))

    def gives(self) -> dict[type[Finding], tuple[str, ...]]:
        """Names of the entries that give each kind of finding."""
        found: dict[type[Finding], tuple[str, ...]] = {}
        for entry in self.plan.entries:
            for kind in kinds(entry):
                found[kind] = (*found.get(kind, ()), entry.name)
        return found


def counts(entry: Entry) -> bool:
    """Whether what the entry says is applied to all of the traffic."""
    return not entry.shadow and (entry.rollout is None or entry.rollout.share >= 1)


def kinds(entry: Entry) -> tuple[type[Finding], ...]:
    """The kinds of findings that an entry gives, each once."""
    return tuple(dict.fromkeys(finder.finding for finder in entry.plugin.finders)) if entry.plugin else ()


def asked(plan: Plan) -> Iterator[tuple[Stage, Step]]:
    """All turns of all entries, stage by stage."""
    for stage in ORDER:
        for step in plan.stages[stage].steps:
            yield stage, step


def leads_to(source: int | Node) -> Iterator[Node]:
    """The node and all that it waits for."""
    if isinstance(source, Node):
        yield source
        for before in source.sources:
            yield from leads_to(before)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """All that lint looks at. `now` in epoch seconds."""

    config: Config
    pipelines: Mapping[str, Judged]
    now: float
    destinations: Mapping[str, Destination] = field(default_factory=dict)

    @property
    def outside(self) -> tuple[tuple[int, Any], ...]:
        """Listeners that somebody else than this machine can reach, with their places."""
        return tuple((i, one) for i, one in enumerate(self.config.listeners) if not one.address.ip.is_loopback)

    def users(self, name: str) -> tuple[list[Any], list[str]]:
        """Listeners and domains that name this pipeline."""
        listeners = [one for one in self.config.listeners if one.pipeline == name]
        return listeners, [key for key, domain in self.config.domains.items() if domain.pipeline == name]

    def judging(self, domain: Domain) -> tuple[Judged, ...]:
        """The pipelines that judge the domain's recipients."""
        names = [domain.pipeline] if domain.pipeline else [one.pipeline for one in self.config.listeners]
        return tuple(self.pipelines[name] for name in dict.fromkeys(names))


def scene(config: Config, plans: Mapping[str, Plan], now: float) -> Scene:
    """Put together what lint looks at."""
    judged = {
        name: Judged(name, plan, config.all_pipelines[name], len(plan.entries) - len(config.all_pipelines[name]))
        for name, plan in plans.items()
    }
    named = {name: entry.destination(name) for name, entry in config.transports.items()}
    found = {key: _resolved(domain.destination, named) for key, domain in config.domains.items()}
    return Scene(config, judged, now, found)


def _resolved(place: Destination, named: Mapping[str, Destination]) -> Destination:
    return named[place.name] if place.kind is Kind.NAMED else place
