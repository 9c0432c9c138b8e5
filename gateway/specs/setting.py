"""The pipelines that cases are played in: a policy alone, entries that stand in the spec, or a configuration's.

A policy alone is given its findings by a stand-in for all the plugins that would give them, which has each at the
stages at which the real ones have it.

*Fails by*: problems noted in the sheet, and `gateway.config.ConfigError` for a configuration that is wrong itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

from gateway.app.wiring import catalog_of, implied
from gateway.config import Config, ConfigError, Problem, load
from gateway.config.problems import Path, did_you_mean
from gateway.mail.envelope import Recipient
from gateway.mail.session import Session
from gateway.pipeline.catalog import Catalog, describe
from gateway.pipeline.folder import FolderError, read_file
from gateway.pipeline.loader import Pipeline, StageDeadlines
from gateway.pipeline.loader import load as load_pipeline
from gateway.pipeline.lookup import Absent
from gateway.pipeline.plan import Entry, PipelineError
from gateway.pipeline.recall import RecallError, recall
from gateway.sdk.findings import Finding
from gateway.sdk.plugin import Plugin, finds
from gateway.sdk.policy import Clause, Policy
from gateway.sdk.stage import Stage, Transaction
from gateway.sdk.testing import Bench
from gateway.specs.play import Scene
from gateway.specs.sheet import Case, Reference, Sheet

_STAND_IN: Final = "given findings"
_KEPT: Final = 32
"""Pipelines of one policy with different options that are kept at a time."""
_SUFFIX: Final = ".spec.yaml"


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: file, line, and its name or key."""

    file: str
    line: int
    name: str


@dataclass(frozen=True, slots=True)
class Ready:
    """A pipeline to play in. `measured` are its entries whose policies' own code is what is tested."""

    pipeline: Pipeline
    measured: tuple[Entry, ...]
    places: Mapping[str, tuple[Place, ...]]
    """Where the clauses of an entry's policy stand, in their order."""
    files: Mapping[str, str]
    """The single files that entries' policies stand in."""


class Setting:
    """Makes what a sheet's cases need. `installed` is what there is without the sheet."""

    def __init__(self, sheet: Sheet, installed: Catalog) -> None:
        self._sheet = sheet
        self._known = installed
        self._config: Config | None = None
        self._ready: dict[str, Ready] = {}
        self.policy: type[Policy] | None = None
        if isinstance(sheet.pipeline, Reference):
            self._config = load(sheet.pipeline.file)
            self._known = catalog_of(self._config)
        elif sheet.policy:
            self.policy = self._find(sheet.policy)

    @property
    def file(self) -> str:
        """The single file that the policy stands in; empty for one that is installed."""
        return self._known.file(self._sheet.policy)

    def ready(self, case: Case) -> Ready | None:
        """The pipeline for a case, not started; None when it cannot be made, and the sheet has the problems."""
        key = json.dumps(case.options.plain(), sort_keys=True) if self.policy else ""
        if key not in self._ready:
            if len(self._ready) >= _KEPT:
                self._ready.clear()
            made = self._alone(self.policy, case) if self.policy else self._whole()
            if made is None:
                return None
            self._ready[key] = made
        return self._ready[key]

    def refusal(self, case: Case) -> list[str] | None:
        """What is wrong with a case's options, nothing where they are good. None when the sheet has other problems.

        Here a finding that is missing is one that no plugin gives, and a policy may say that it needs one who does.
        """
        assert self.policy is not None
        wanted = self._wanted(self.policy)
        kinds = {kind.__name__: kind for kind, _ in wanted}
        given = case.given.findings
        if None in [self._finding(case, ("given", "findings", name), kinds, value) for name, value in given.items()]:
            return None
        there = [(kind, finder) for kind, finder in wanted if given.get(kind.__name__) != Absent.MISSING]
        try:
            self._load(self.policy, case, there)
        except PipelineError as error:
            return [problem.message for problem in error.problems]
        return []

    def scene(self, case: Case, ready: Ready) -> Scene | None:
        """The case as it is played; None when something in it is wrong, which the sheet then has."""
        given = case.given
        session = given.session.make(self._trusted(given.session.client))
        transaction = Transaction(f"{session.id}1", session, given.sender, given.parameters.make())
        findings = self._findings(case, ready)
        try:
            message = given.message.make(self._sheet.directory)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._sheet.refuse(case.layer.place(("given", "message", "file")), f"{given.message.file}: {reason}")
            return None
        return None if findings is None else Scene(transaction, given.recipients, message, findings)

    def unasked(self, case: Case, ready: Ready) -> list[str]:
        """Hooks that were not asked because a finding that they must have is not given."""
        given = {name for name, value in case.given.findings.items() if isinstance(value, dict)}
        out = []
        for entry in ready.measured if self.policy else ready.pipeline.entries:
            for hook in entry.policy.hooks.values() if entry.policy else ():
                lacking = [
                    kind.__name__
                    for kind, optional in zip(hook.inputs, hook.optional, strict=True)
                    if issubclass(kind, Finding) and not optional and kind.__name__ not in given
                ]
                if lacking and entry.name not in self._sheet.run:
                    out.append(f"{entry.name} was not asked at {hook.stage}: {', '.join(lacking)} is not given")
        return out

    def _trusted(self, client: str) -> bool:
        """Whether the client may send anywhere, which only a configuration says."""
        if self._config is None:
            return False
        return any(ip_address(client) in network for network in self._config.relay_from)

    # A policy alone.

    def _find(self, name: str) -> type[Policy] | None:
        sheet = self._sheet
        beside = sheet.file.removesuffix(_SUFFIX) + ".py"
        if name not in self._known.names and sheet.file.endswith(_SUFFIX) and os.path.exists(beside):
            try:
                self._known = self._known.with_files(read_file(beside))
            except FolderError as error:
                raise ConfigError([Problem(p.file, p.line, "", p.message, p.column) for p in error.problems]) from error
        try:
            policy, plugin = self._known.policy(name), self._known.plugin(name)
        except Exception as error:  # noqa: BLE001 - importing somebody's module may raise anything; it is reported
            sheet.refuse(("policy",), f"{name} cannot be loaded: {describe(error)}")
            return None
        if policy is None and plugin is not None:
            policy = plugin.policy
            if policy is not None and policy.Options is not plugin.Options:
                # The default policy of a plugin is made with the plugin's options.
                policy = type(policy.__name__, (policy,), {"Options": plugin.Options, "__module__": policy.__module__})
        if policy is None:
            what = "a plugin without a policy" if plugin else f"no policy{did_you_mean(name, self._known.names)}"
            sheet.refuse(("policy",), f"{name} is {what}")
        return policy

    def _alone(self, policy: type[Policy], case: Case) -> Ready | None:
        sheet = self._sheet

        def place(path: Path) -> Path:
            return case.layer.place(("options", *path[2:]))

        try:
            pipeline = self._load(policy, case, self._wanted(policy))
        except PipelineError as error:
            for problem in error.problems:
                sheet.refuse(place(problem.path), problem.message, problem.offset)
            return None
        entry = pipeline.entries[1]
        clauses = entry.policy.clauses() if entry.policy else ()
        places = tuple(self._of_sheet(place((1, entry.name, *_bare(entry, clause)))) for clause in clauses)
        return Ready(pipeline, (entry,), {entry.name: places}, {entry.name: self.file})

    def _wanted(self, policy: type[Policy]) -> list[tuple[type[Finding], Any]]:
        """All kinds of findings that there are, with who finds them."""
        return [*self._known.findings(), *_taken(policy)]

    def _load(self, policy: type[Policy], case: Case, wanted: Iterable[tuple[type[Finding], Any]]) -> Pipeline:
        """The policy behind a stand-in that gives what is wanted. Raises `PipelineError`."""
        known = Catalog({_STAND_IN: _stand_in(wanted)}, {self._sheet.policy: policy})
        entries = [{_STAND_IN: None, "on_error": "proceed"}, {self._sheet.policy: case.options.plain()}]
        return load_pipeline("spec", entries, Bench().services, known=known)

    def _of_sheet(self, path: Path) -> Place:
        return Place(self._sheet.file, self._sheet.line(path), _title(self._sheet.value(path)))

    # A whole pipeline.

    def _whole(self) -> Ready | None:
        sheet = self._sheet
        if isinstance(sheet.pipeline, Reference):
            assert self._config is not None
            return self._configured(self._config, sheet.pipeline.name)
        try:
            pipeline = load_pipeline("spec", sheet.pipeline or [], Bench().services, known=self._known)
        except PipelineError as error:
            for problem in error.problems:
                sheet.refuse(("pipeline", *problem.path), problem.message, problem.offset)
            return None
        places = {
            entry.name: tuple(self._of_sheet(("pipeline", *path)) for path in _clause_paths(entry))
            for entry in pipeline.entries
        }
        return self._measured(pipeline, places)

    def _configured(self, config: Config, name: str) -> Ready | None:
        given = config.all_pipelines.get(name)
        if given is None:
            near = did_you_mean(name, config.all_pipelines)
            self._sheet.refuse(("pipeline", "name"), f"there is no pipeline {name!r} in {config.file}{near}")
            return None
        entries = implied(config, given)
        before = len(entries) - len(given)
        deadlines = StageDeadlines(**config.deadlines.model_dump())
        services = Bench(hostname=config.hostname).services
        try:
            pipeline = load_pipeline(name, entries, services, known=self._known, deadlines=deadlines)
        except PipelineError as error:
            raise ConfigError(config.pipeline_problems(name, error, before=before)) from error
        places = {}
        for entry in pipeline.entries:
            found = []
            for path in _clause_paths(entry):
                at = config.pipeline_path(name, path, before=before)
                found.append(Place(config.file, config.document.line(at), _title(config.document.value(at))))
            places[entry.name] = tuple(found)
        return self._measured(pipeline, places)

    def _measured(self, pipeline: Pipeline, places: Mapping[str, tuple[Place, ...]]) -> Ready | None:
        names = [entry.name for entry in pipeline.entries]
        for i, name in enumerate(self._sheet.run):
            if name not in names:
                self._sheet.refuse(("run", i), f"there is no entry {name}{did_you_mean(name, names)}")
                return None
        files = {entry.name: self._known.file(entry.policy_name) for entry in pipeline.entries}
        own = tuple(entry for entry in pipeline.entries if places[entry.name] or files[entry.name])
        return Ready(pipeline, own, places, files)

    # Findings.

    def _findings(self, case: Case, ready: Ready) -> dict[type[Finding], Finding | Absent] | None:
        """What is found: what is given, and nothing for all other kinds, unless their plugins are run."""
        pipeline = ready.pipeline
        kinds = pipeline.findings
        run = {
            finder.finding
            for entry in pipeline.entries
            if entry.plugin and entry.name in self._sheet.run
            for finder in entry.plugin.finders
        }
        out: dict[type[Finding], Finding | Absent] = {
            kind: Absent.MISSING for kind in _all_kinds(pipeline) if kind not in run
        }
        good = True
        for name, value in case.given.findings.items():
            at: Path = ("given", "findings", name)
            found = self._finding(case, at, kinds, value)
            if found is None:
                good = False
            else:
                out[kinds[name]] = found
        return out if good else None

    def _finding(self, case: Case, at: Path, kinds: Mapping[str, type[Finding]], value: Any) -> Finding | Absent | None:
        name, refuse, place = str(at[-1]), self._sheet.refuse, case.layer.place
        kind = kinds.get(name)
        if kind is None:
            whose = "this pipeline" if self._sheet.pipeline is not None else "what is installed"
            refuse(place(at), f"{name} is no finding of {whose}{did_you_mean(name, kinds)}")
            return None
        if value == Absent.FAILED and self._sheet.pipeline is None:
            refuse(place(at), "on_error says what a failure means, in a pipeline; for a policy alone say missing")
            return None
        if isinstance(value, str) and value in list(Absent):
            return Absent(value)
        if not isinstance(value, dict):
            refuse(place(at), "must be the finding's fields, or missing, or failed")
            return None
        try:
            return recall(kind, value)
        except RecallError as error:
            refuse(place((*at, *error.path)), str(error))
            return None


def _all_kinds(pipeline: Pipeline) -> Iterable[type[Finding]]:
    return (finder.finding for entry in pipeline.entries if entry.plugin for finder in entry.plugin.finders)


def _bare(entry: Entry, clause: Clause) -> Clause:
    """The clause's place below the entry's options, which may be one bare list."""
    return clause[1:] if entry.policy_sole and clause[:1] == (entry.policy_sole,) else clause


def _clause_paths(entry: Entry) -> list[Path]:
    clauses = entry.policy.clauses() if entry.policy else ()
    return [(*entry.policy_path, *_bare(entry, clause)) for clause in clauses]


def _title(value: Any) -> str:
    """What a clause is called: by its name, if it has one."""
    name = value.get("name") if isinstance(value, dict) else None
    return name if isinstance(name, str) else ""


def _taken(policy: type[Policy]) -> Iterable[tuple[type[Finding], None]]:
    """Findings that its hooks take, whoever gives them."""
    kinds = (kind for hook in policy.hooks.values() for kind in hook.inputs)
    return ((kind, None) for kind in kinds if issubclass(kind, Finding))


def _stand_in(wanted: Iterable[tuple[type[Finding], Any]]) -> type[Plugin]:
    """A plugin that gives all these kinds, at the stages and for whom their own finders do; others at connect."""
    places: dict[type[Finding], dict[tuple[Stage, bool], None]] = {}
    for kind, finder in wanted:
        found = places.setdefault(kind, {})
        if finder is not None:
            single = Recipient in finder.inputs or (finder.acts and finder.stage is Stage.RCPT)
            found[Stage.RCPT if single else finder.stage, single] = None
    methods: dict[str, Any] = {}
    for kind, found in places.items():
        for stage, single in found or {(Stage.CONNECT, False): None}:
            methods[f"give_{len(methods)}"] = finds(stage)(_finder(kind, stage, single))
    return type("StandIn", (Plugin,), {"name": _STAND_IN, "__module__": __name__, **methods})


def _finder(kind: type[Finding], stage: Stage, single: bool) -> Any:
    """A finder that is never called: all that it gives is given."""

    async def give(self: Plugin, of: Any) -> Finding:
        raise LookupError(f"{kind.__name__} is not given")

    later = Transaction if stage not in (Stage.CONNECT, Stage.HELO, Stage.AUTH) else Session
    give.__annotations__ = {"of": Recipient if single else later, "return": kind}
    return give
