"""Loading a pipeline: from the entries of the configuration to plugins, policies and their plan.

An entry is a name, or a mapping of a name to its options with these keys beside it: `shadow`, `enforce`, and for
plugins `timeout`, `on_error` and `policy`. Ours and everybody else's are found alike, by entry point.

*Fails by*: `PipelineError`, which holds every problem with its place in the list.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import ValidationError

from gateway.mail.edit import AddHeader
from gateway.ops import log
from gateway.pipeline.breaker import Breaker
from gateway.pipeline.catalog import Catalog, Listed, describe
from gateway.pipeline.house import House
from gateway.pipeline.lookup import Absent
from gateway.pipeline.plan import (
    Entry,
    Node,
    OnError,
    Path,
    PipelineError,
    Plan,
    Row,
    StageDeadlines,
    make,
    option_problems,
)
from gateway.pipeline.replay import Inquiry, Replay
from gateway.pipeline.rollout import parse_rollout
from gateway.pipeline.runner import Meters, PipelineSession
from gateway.pipeline.sabotage import Saboteur, Trial, nodes, trial
from gateway.sdk.deprecation import NOTICES, Notice, Notices
from gateway.sdk.findings import Finding
from gateway.sdk.options import OptionError, OptionsModel, parse_duration
from gateway.sdk.plugin import Plugin
from gateway.sdk.policy import Policy
from gateway.sdk.services import Services
from gateway.sdk.stage import Message

__all__ = ["Catalog", "Listed", "Pipeline", "PipelineError", "Row", "StageDeadlines", "load"]

NO_POLICY: Final = "none"

_PLUGIN_KEYS: Final = ("shadow", "enforce", "timeout", "on_error", "policy")
_POLICY_KEYS: Final = ("shadow", "enforce")
_LONGEST_TIMEOUT: Final = 600.0

_log = log.get()


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A loaded pipeline. Serves many sessions at once; a reload makes a new one beside it."""

    name: str
    entries: tuple[Entry, ...]
    _plan: Plan
    _house: House
    _meters: Meters
    notices: tuple[Notice, ...] = ()
    """Options in its entries that are going, with their places in the list."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to ask at any stage."""
        return self._plan.empty

    @property
    def plan(self) -> Plan:
        """Who is asked what and when, for those who judge the pipeline itself."""
        return self._plan

    def replay(
        self,
        unchanged: Collection[str] = (),
        counterparts: Mapping[str, str] | None = None,
        then: tuple[Plan, str] | None = None,
    ) -> Replay:
        """For judging recorded transactions again; see `gateway.pipeline.replay`."""
        return Replay(self._plan, unchanged, counterparts, then)

    def inquiry(self) -> Inquiry:
        """For asking its last entry about recorded transactions."""
        return Inquiry(self._plan, self.entries[-1])

    def table(self) -> tuple[Row, ...]:
        """Who is asked what, stage by stage; ``gatepost pipeline`` prints it."""
        return self._plan.table()

    async def start(self) -> None:
        """Start the plugins, in order. Raises `PipelineError` when one refuses; those before it are closed."""
        started: list[Entry] = []
        for entry in self.entries:
            if entry.plugin is None:
                continue
            try:
                await entry.plugin.start()
            except Exception as error:
                await self._close(started)
                raise PipelineError(f"{entry.name} does not start: {describe(error)}", entry.path) from error
            started.append(entry)

    async def close(self) -> None:
        """End what still runs and close the plugins, last first. Sessions must be closed before."""
        await self._house.close()
        await self._close([entry for entry in self.entries if entry.plugin])

    async def _close(self, entries: Sequence[Entry]) -> None:
        for entry in reversed(entries):
            try:
                if entry.plugin:
                    await entry.plugin.close()
            except Exception as error:  # noqa: BLE001 - one plugin's trouble must not keep the others open
                _log.error("plugin.close_failed", plugin=entry.name, exc_info=error)

    async def sign_own(self, message: Message) -> tuple[AddHeader, ...]:
        """What its plugins that sign put on mail that Gatepost itself writes. Entries in shadow are not asked.

        Does not raise: an entry that fails, or takes longer than its `timeout`, signs nothing.
        """
        made: list[AddHeader] = []
        for entry in self.entries:
            if entry.plugin is None or not entry.plugin.signs or entry.shadow:
                continue
            try:
                async with asyncio.timeout(entry.timeout):
                    made += await entry.plugin.sign_own(message)
            except Exception as error:  # noqa: BLE001 - a bounce without a signature is better than none
                _log.error("plugin.sign_own_failed", plugin=entry.name, error=describe(error))
        return tuple(made)

    @property
    def findings(self) -> dict[str, type[Finding]]:
        """The kinds of findings that its plugins give, by name."""
        finders = (finder for entry in self.entries if entry.plugin for finder in entry.plugin.finders)
        return {finder.finding.__name__: finder.finding for finder in finders}

    @property
    def finders(self) -> tuple[Node, ...]:
        """All that is ever looked up or done."""
        return nodes(self._plan)

    def sabotaged(self, victim: Node, saboteur: Saboteur) -> tuple[Pipeline, Trial]:
        """A pipeline for a trial, in which the victim fails: `gateway.pipeline.sabotage`. Nobody has to start it."""
        made = trial(self._plan, victim, saboteur)
        return Pipeline(self.name, (), made.plan, House((), self._house.clock, None), Meters()), made

    def breaker(self, node: Node) -> Breaker:
        """The breaker of the node's entry at its stage."""
        return self._house.breaker(node)

    def fix(self, findings: Mapping[type[Finding], Finding | Absent]) -> None:
        """Take these as found, or not found, from now on: their plugins are not asked. For simulations and specs."""
        self._house.fixed = dict(findings)

    async def told(self) -> None:
        """Wait until the plugins have heard of all that has ended, as they do in the background."""
        await self._house.told()

    def open(self) -> PipelineSession:
        """Begin a session."""
        return PipelineSession(self._plan, self._house, self._meters)


def load(
    name: str,
    entries: Sequence[Any],
    services: Services,
    *,
    known: Catalog,
    deadlines: StageDeadlines = StageDeadlines(),  # noqa: B008 - frozen
    worker_slots: asyncio.Semaphore | None = None,
) -> Pipeline:
    """Make the pipeline `name` from its entries in the configuration. Raises `PipelineError`.

    `worker_slots` bounds look-ups over several pipelines together; without it the pipeline has its own.
    """
    reader = _Reader(services, known)
    made = tuple(entry for i, raw in enumerate(entries) if (entry := reader.entry(i, raw)))
    if reader.problems:
        first = reader.problems[0]
        raise PipelineError(first.message, first.path, reader.problems)
    plan = make(made, deadlines, known.giving)
    return Pipeline(name, made, plan, House(made, services.clock, worker_slots), Meters(), tuple(reader.notices))


class _Reader:
    """Reads entries one by one and collects what is wrong with them."""

    def __init__(self, services: Services, known: Catalog) -> None:
        self.problems: list[PipelineError] = []
        self.notices: list[Notice] = []
        self._services = services
        self._known = known
        self._names: dict[str, int] = {}

    def entry(self, index: int, raw: Any) -> Entry | None:
        """The entry, or None when something is wrong with it."""
        before = len(self.problems)
        split = self._split(index, raw)
        if split is None:
            return None
        name, options, keys = split
        path: Path = (index,) if isinstance(raw, str) else (index, name)
        plugin, policy = self._find(name, path)
        entry: Entry | None = None
        if plugin:
            entry = self._plugin_entry(index, name, plugin, options, keys, path)
        elif policy:
            for key in keys.keys() - set(_POLICY_KEYS):
                self._refuse(f"{name} is a policy, and {key} is for plugins", (index, key))
            if made := self._policy(name, policy, options, path):
                sole = _sole(policy.Options, options)
                entry = Entry(
                    index, self._unique(name), None, made, name, path=path, policy_path=path, policy_sole=sole
                )
        if entry:
            entry = self._rolled_out(entry, keys)
        return entry if len(self.problems) == before else None

    def _rolled_out(self, entry: Entry, keys: dict[str, Any]) -> Entry:
        """The entry as `shadow` and `enforce` have it."""
        shadow = keys.get("shadow", False)
        if not isinstance(shadow, bool):
            self._refuse("expected true or false", (entry.index, "shadow"))
        elif shadow and "enforce" in keys:
            self._refuse("an entry is in shadow, or enforced for a share of the traffic", (entry.index, "enforce"))
        elif shadow:
            return replace(entry, shadow=True)
        if "enforce" in keys:
            try:
                return replace(entry, rollout=parse_rollout(keys["enforce"]))
            except ValueError as error:
                self._refuse(str(error), (entry.index, "enforce"))
        return entry

    def _refuse(self, message: str, path: Path) -> None:
        self.problems.append(PipelineError(message, path))

    def _split(self, index: int, raw: Any) -> tuple[str, Any, dict[str, Any]] | None:
        """An entry's name, its options and the keys beside it."""
        if isinstance(raw, str):
            return raw, None, {}
        if not isinstance(raw, Mapping):
            self._refuse("expected the name of a plugin or policy, or a mapping with one", (index,))
            return None
        names = [key for key in raw if key not in _PLUGIN_KEYS]
        if not names:
            self._refuse("names no plugin or policy", (index,))
            return None
        if len(names) > 1:
            # The first one that is installed is meant as the name; what is wrong is the other.
            meant = next((n for n in names if n in self._known.names), names[0])
            other = next(n for n in names if n != meant)
            keys = ", ".join(_PLUGIN_KEYS)
            self._refuse(
                f"an entry has one plugin or policy, and this has {meant} already; beside it: {keys}", (index, other)
            )
            return None
        return str(names[0]), raw[names[0]], {key: raw[key] for key in raw if key != names[0]}

    def _find(self, name: str, path: Path) -> tuple[type[Plugin] | None, type[Policy] | None]:
        try:
            plugin, policy = self._known.plugin(name), self._known.policy(name)
        except Exception as error:  # noqa: BLE001 - importing somebody's module may raise anything; it is reported
            self._refuse(f"{name} cannot be loaded: {describe(error)}", path)
            return None, None
        if not plugin and not policy:
            self._refuse(f"no plugin or policy is called {name}{_did_you_mean(name, self._known.names)}", path)
        return plugin, policy

    def _plugin_entry(
        self, index: int, name: str, plugin: type[Plugin], raw: Any, keys: dict[str, Any], path: Path
    ) -> Entry | None:
        timeout = self._timeout(keys, index, plugin.timeout)
        on_error = self._on_error(keys, index)
        options = self._options(plugin.Options, raw, path)
        if options is None:
            return None
        try:
            made = plugin(options, self._services)  # type: ignore[arg-type]  # an instance of plugin.Options
        except OptionError as error:
            self.problems += option_problems(error, path, _sole(plugin.Options, raw))
            return None
        except Exception as error:  # noqa: BLE001 - what a plugin's constructor raises is reported with its place
            self._refuse(f"{name} cannot be made: {describe(error)}", path)
            return None
        policy_path: Path = (index, "policy") if "policy" in keys else path
        if "policy" in keys:
            policy_name, policy, policy_path, sole = self._named_policy(keys["policy"], policy_path)
        else:
            default = plugin.policy
            sole = _sole(plugin.Options, raw)
            policy_name = getattr(default, "name", name) if default else ""
            policy = self._made(policy_name, default, options, path, sole) if default else None
        unique = self._unique(name)
        return Entry(index, unique, made, policy, policy_name, False, timeout, on_error, path, policy_path, sole)

    def _named_policy(self, wanted: Any, path: Path) -> tuple[str, Policy | None, Path, str]:
        """What `policy` beside a plugin says: a policy's name (with options), or none. Also where its options stand."""
        raw = None
        if isinstance(wanted, Mapping) and len(wanted) == 1:
            wanted, raw = next(iter(wanted.items()))
            path = (*path, wanted)
        if wanted == NO_POLICY:
            return "", None, path, ""
        if not isinstance(wanted, str):
            self._refuse(f"expected the name of a policy, a mapping of it to its options, or {NO_POLICY}", path)
            return "", None, path, ""
        plugin_instead, policy = self._find(wanted, path)
        if plugin_instead:
            self._refuse(f"{wanted} is a plugin, not a policy", path)
        made = self._policy(wanted, policy, raw, path) if policy else None
        return wanted, made, path, _sole(policy.Options, raw) if policy else ""

    def _policy(self, name: str, policy: type[Policy], raw: Any, path: Path) -> Policy | None:
        options = self._options(policy.Options, raw, path)
        return None if options is None else self._made(name, policy, options, path, _sole(policy.Options, raw))

    def _made(self, name: str, policy: type[Policy], options: OptionsModel, path: Path, sole: str) -> Policy | None:
        """The policy with its options, which stand at `path`, maybe as the bare list `sole`."""
        try:
            return policy(options)
        except OptionError as error:
            self.problems += option_problems(error, path, sole)
            return None
        except Exception as error:  # noqa: BLE001 - what a policy's constructor raises is reported with its place
            self._refuse(f"{name} cannot be made: {describe(error)}", path)
            return None

    def _unique(self, name: str) -> str:
        """The entry's name in records and metrics: ``milter``, and for the second one ``milter#2``."""
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"

    def _timeout(self, keys: dict[str, Any], index: int, default: float) -> float:
        if "timeout" not in keys:
            return default
        try:
            seconds = parse_duration(keys["timeout"])
        except ValueError as error:
            self._refuse(str(error), (index, "timeout"))
            return default
        if not 0 < seconds <= _LONGEST_TIMEOUT:
            self._refuse("must be more than 0 and at most 10m", (index, "timeout"))
        return seconds

    def _on_error(self, keys: dict[str, Any], index: int) -> OnError:
        wanted = keys.get("on_error", OnError.DEFER)
        if wanted not in list(OnError):
            self._refuse(f"expected {', '.join(OnError)}", (index, "on_error"))
            return OnError.DEFER
        return OnError(wanted)

    def _options(self, model: type[OptionsModel], raw: Any, path: Path) -> OptionsModel | None:
        sole = _sole(model, raw)
        if raw is not None and not isinstance(raw, Mapping) and not sole:
            self._refuse(f"expected options: a mapping, {'a list, ' if model.sole else ''}or nothing", path)
            return None
        given = {sole: raw} if sole else {} if raw is None else raw
        notices = Notices()
        try:
            options = model.model_validate(given, context={NOTICES: notices})
        except ValidationError as error:
            for problem in error.errors(include_url=False, include_context=False, include_input=False):
                self._refuse(_wording(problem, model), path + _existing(problem, raw))
        except Exception as error:  # noqa: BLE001 - a validator of somebody's options may raise anything
            self._refuse(describe(error), path)
        else:
            for notice in notices.within(given):
                inside = notice.path[1:] if sole and notice.path[:1] == (sole,) else notice.path
                self.notices.append(replace(notice, path=(*path, *inside)))
            return options
        return None


def _sole(model: type[OptionsModel], raw: Any) -> str:
    """The option that a bare list in place of the options stands for; empty where there is none."""
    return model.sole if isinstance(raw, list) else ""


def _wording(problem: Mapping[str, Any], model: type[OptionsModel]) -> str:
    location = problem["loc"]
    if problem["type"] == "extra_forbidden":
        known = tuple(model.model_fields) if len(location) == 1 else ()
        return f"unknown option{_did_you_mean(str(location[-1]), known)}"
    if problem["type"] == "missing":
        return f"{location[-1]} must be given"
    message: str = problem["msg"]
    return message.removeprefix("Value error, ")


def _existing(problem: Mapping[str, Any], raw: Any) -> Path:
    """The part of a validation error's location that stands in `raw`: keys and places, without pydantic's own words.

    A missing option is named all the same.
    """
    path: Path = ()
    value = raw
    for part in problem["loc"]:
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Sequence) and not isinstance(value, str) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            continue
        path += (part,)
    return (*path, problem["loc"][-1]) if problem["type"] == "missing" else path


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are {', '.join(known)}" if known else ""
