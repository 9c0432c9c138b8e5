"""What is installed: plugins and policies by name, found by entry point, ours like everybody else's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Final, TypeVar

from gateway.pipeline.plan import PipelineError
from gateway.sdk.findings import Finding
from gateway.sdk.plugin import Plugin
from gateway.sdk.policy import Policy

PLUGINS: Final = "gatepost.plugins"
POLICIES: Final = "gatepost.policies"

_T = TypeVar("_T", Plugin, Policy)


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of ``gatepost plugin list``. `problem` says why it cannot be loaded, and is empty when it can."""

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
    ) -> None:
        """Raises `PipelineError` when a plugin and a policy share a name."""
        self._plugins = dict(plugins)
        self._policies = dict(policies)
        if shared := sorted(self._plugins.keys() & self._policies.keys()):
            raise PipelineError(f"{shared[0]} is the name of a plugin and of a policy", ())

    @classmethod
    def installed(cls) -> Catalog:
        """Everything that installed distributions offer. Raises `PipelineError` when two share a name."""
        return cls(_by_name(entry_points(group=PLUGINS)), _by_name(entry_points(group=POLICIES)))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted([*self._plugins, *self._policies]))

    def plugin(self, name: str) -> type[Plugin] | None:
        """The plugin of this name, None when there is none. Raises whatever importing it raises."""
        return _loaded(self._plugins, name, Plugin)

    def policy(self, name: str) -> type[Policy] | None:
        """The policy of this name, None when there is none. Raises whatever importing it raises."""
        return _loaded(self._policies, name, Policy)

    def plugins(self) -> tuple[Listed, ...]:
        """All plugins, also those that cannot be loaded."""
        return tuple(_listed(name, "plugin", self._plugins, Plugin) for name in sorted(self._plugins))

    def policies(self) -> tuple[Listed, ...]:
        """All policies, also those that cannot be loaded."""
        return tuple(_listed(name, "policy", self._policies, Policy) for name in sorted(self._policies))

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


def _listed(name: str, kind: str, points: dict[str, EntryPoint | type[_T]], base: type[_T]) -> Listed:
    point = points[name]
    module = point.module if isinstance(point, EntryPoint) else point.__module__
    try:
        found = _loaded(points, name, base)
    except Exception as error:  # noqa: BLE001 - the list shows whatever is wrong with somebody's module
        return Listed(name, kind, module, "", describe(error))
    return Listed(name, kind, module, ((found.__doc__ if found else None) or "").strip().partition("\n")[0])


def describe(error: Exception) -> str:
    """An exception as a problem's text names it."""
    return f"{type(error).__name__}: {error}"
