"""What there is: plugins and policies by name, found by entry point, ours like everybody's, and in single files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Final, TypeVar

from gateway.pipeline.folder import FolderError, FolderProblem, Offer
from gateway.pipeline.plan import PipelineError
from gateway.sdk.findings import Finding
from gateway.sdk.plugin import Finder, Plugin
from gateway.sdk.policy import Policy

PLUGINS: Final = "gatepost.plugins"
POLICIES: Final = "gatepost.policies"

_T = TypeVar("_T", Plugin, Policy)


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of ``gatepost plugin list``. `module` is a path for what stands in a single file.

    `problem` says why it cannot be loaded, and is empty when it can.
    """

    name: str
    kind: str
    module: str
    summary: str
    problem: str = ""


class Catalog:
    """Plugins and policies by name. Each is imported when it is first asked for."""

    def __init__(
        self,
        plugins: Mapping[str, EntryPoint | type[Plugin]],
        policies: Mapping[str, EntryPoint | type[Policy]],
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Raises `PipelineError` when a plugin and a policy share a name. `files` says in which file which stands."""
        self._plugins = dict(plugins)
        self._policies = dict(policies)
        self._files = dict(files or {})
        if shared := sorted(self._plugins.keys() & self._policies.keys()):
            raise PipelineError(f"{shared[0]} is the name of a plugin and of a policy", ())

    @classmethod
    def installed(cls) -> Catalog:
        """Everything that installed distributions offer. Raises `PipelineError` when two share a name."""
        return cls(_by_name(entry_points(group=PLUGINS)), _by_name(entry_points(group=POLICIES)))

    def having(self, *things: type[Plugin] | type[Policy]) -> Catalog:
        """This catalog with these classes, which stand in for what has their names."""
        names = {thing.name for thing in things}
        plugins = {name: point for name, point in self._plugins.items() if name not in names}
        policies = {name: point for name, point in self._policies.items() if name not in names}
        return Catalog(
            plugins | {thing.name: thing for thing in things if issubclass(thing, Plugin)},
            policies | {thing.name: thing for thing in things if issubclass(thing, Policy)},
            self._files,
        )

    def with_files(self, offers: Iterable[Offer]) -> Catalog:
        """All of this, and what single files offer. Raises `FolderError` when a file's name is taken."""
        plugins, policies, files = dict(self._plugins), dict(self._policies), dict(self._files)
        problems = []
        for offer in offers:
            if taken := self._plugins.get(offer.name) or self._policies.get(offer.name):
                message = f"{offer.name} is installed already, from {_module(taken)}; give this one another name"
                problems.append(FolderProblem(offer.file, offer.line, message))
            elif issubclass(offer.thing, Plugin):
                plugins[offer.name] = offer.thing
            else:
                policies[offer.name] = offer.thing
            files[offer.name] = offer.file
        if problems:
            raise FolderError(problems)
        return Catalog(plugins, policies, files)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted([*self._plugins, *self._policies]))

    def plugin(self, name: str) -> type[Plugin] | None:
        """The plugin of this name, None when there is none. Raises whatever importing it raises."""
        return _loaded(self._plugins, name, Plugin)

    def policy(self, name: str) -> type[Policy] | None:
        """The policy of this name, None when there is none. Raises whatever importing it raises."""
        return _loaded(self._policies, name, Policy)

    def file(self, name: str) -> str:
        """The single file that this one stands in; empty for what is installed."""
        return self._files.get(name, "")

    def findings(self) -> tuple[tuple[type[Finding], Finder], ...]:
        """Every kind of finding that some plugin gives, with the finder; a kind may come several times."""
        made = (self.plugin(listed.name) for listed in self.plugins() if not listed.problem)
        return tuple((finder.finding, finder) for plugin in made if plugin for finder in plugin.finders)

    def plugins(self) -> tuple[Listed, ...]:
        """All plugins, also those that cannot be loaded."""
        return tuple(self._listed(name, "plugin", self._plugins, Plugin) for name in sorted(self._plugins))

    def policies(self) -> tuple[Listed, ...]:
        """All policies, also those that cannot be loaded."""
        return tuple(self._listed(name, "policy", self._policies, Policy) for name in sorted(self._policies))

    def _listed(self, name: str, kind: str, points: dict[str, EntryPoint | type[_T]], base: type[_T]) -> Listed:
        module = self._files.get(name) or _module(points[name])
        try:
            found = _loaded(points, name, base)
        except Exception as error:  # noqa: BLE001 - the list shows whatever is wrong with somebody's module
            return Listed(name, kind, module, "", describe(error))
        return Listed(name, kind, module, ((found.__doc__ if found else None) or "").strip().partition("\n")[0])

    def giving(self, finding: type[Finding]) -> tuple[str, ...]:
        """Names of the plugins that give this finding."""
        found = []
        for listed in self.plugins():
            plugin = None if listed.problem else self.plugin(listed.name)
            if plugin and any(finder.finding is finding for finder in plugin.finders):
                found.append(listed.name)
        return tuple(found)


def _by_name(points: Iterable[EntryPoint]) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in points:
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise PipelineError(f"{point.name} is offered twice: by {other.value} and by {point.value}", ())
    return found


def _loaded(points: dict[str, EntryPoint | type[_T]], name: str, base: type[_T]) -> type[_T] | None:
    point = points.get(name)
    if isinstance(point, EntryPoint):
        thing = point.load()
        if not (isinstance(thing, type) and issubclass(thing, base)):
            raise TypeError(f"{point.value} is no {base.__name__}")
        point = points[name] = thing
    return point


def _module(point: EntryPoint | type) -> str:
    return point.module if isinstance(point, EntryPoint) else point.__module__


def describe(error: Exception) -> str:
    """An exception as a problem's text names it."""
    return f"{type(error).__name__}: {error}"
