"""Plugins: they find something out, or do something, and say so as a finding.

A plugin's methods marked `finds` are look-ups: begun as soon as their inputs are known, concurrently, at most once
per session, transaction, recipient or message. Methods marked `acts` change state or hand the message to somebody:
they run in list order, and only when nothing before them was decisive. Both take what they need by annotated
type (`Session`, `Transaction`, `Recipient`, `Message`, or another plugin's finding) and return a finding. An input
annotated ``F | None`` may be missing: no plugin of the pipeline gives it, or the one that does failed.

Wrong signatures fail when the class is made, not when mail comes.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from gateway.mail.edit import AddHeader
from gateway.mail.session import Session
from gateway.sdk.deprecation import adopt_old_hooks
from gateway.sdk.ending import Ending
from gateway.sdk.findings import Finding
from gateway.sdk.lint import Check, Remark, Setting
from gateway.sdk.options import OptionsModel
from gateway.sdk.policy import Policy, PolicyOptions, check_input, plain_parameters, unwrap
from gateway.sdk.services import Services
from gateway.sdk.stage import ORDER, Message, Stage

_F = TypeVar("_F", bound=Callable[..., Awaitable[Finding]])
_MARK = "__gatepost_finder__"


class PluginOptions(OptionsModel):
    """Base of a plugin's options."""


def finds(stage: Stage) -> Callable[[_F], _F]:
    """Mark a look-up that can begin at `stage`: free of side effects, so it may run early and alongside others."""
    return _marker(stage, acts=False)


def acts(stage: Stage) -> Callable[[_F], _F]:
    """Mark an action at `stage`: it changes state, so it runs in list order and only when its turn comes."""
    return _marker(stage, acts=True)


def _marker(stage: Stage, *, acts: bool) -> Callable[[_F], _F]:
    def mark(method: _F) -> _F:
        setattr(method, _MARK, (stage, acts))
        return method

    return mark


@dataclass(frozen=True, slots=True)
class Finder:
    """One marked method: which finding it gives, from which inputs, at which stage. `method` is its name.

    `optional[i]` says that input i may be None.
    """

    method: str
    stage: Stage
    acts: bool
    finding: type[Finding]
    inputs: tuple[type, ...]
    optional: tuple[bool, ...]

    def without(self, unwanted: Collection[type[Finding]]) -> Finder:
        """The same with None for those of its optional inputs that are among `unwanted`."""
        inputs = (
            type(None) if may_miss and kind in unwanted else kind
            for kind, may_miss in zip(self.inputs, self.optional, strict=True)
        )
        return replace(self, inputs=tuple(inputs))


class Plugin:
    """Base of all plugins.

    Class attributes: `name` as in the configuration; `Options`; `policy`, the default policy, built with the same
    options (its `Options` must be this class's); `timeout`, the entry's default
    in seconds; `signs`, that it signs the message as entries before it left it; `checks`, what its `lint` looks for.
    Instances live as long as the pipeline they were loaded for and serve many sessions at once.
    """

    name: ClassVar[str]
    Options: ClassVar[type[PluginOptions]] = PluginOptions
    policy: ClassVar[type[Policy] | None] = None
    timeout: ClassVar[float] = 10.0
    signs: ClassVar[bool] = False
    checks: ClassVar[tuple[Check, ...]] = ()
    finders: tuple[Finder, ...] = ()

    options: Any
    services: Services

    def __init__(self, options: PluginOptions, services: Services) -> None:
        self.options = options
        self.services = services

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        adopt_old_hooks(cls)
        found = [_read_finder(cls, name) for name in dir(cls) if hasattr(getattr(cls, name, None), _MARK)]
        cls.finders = tuple(sorted(found, key=lambda f: (ORDER.index(f.stage), f.method)))
        if cls.policy and cls.policy.Options is not PolicyOptions and not issubclass(cls.Options, cls.policy.Options):
            where = f"{cls.__module__}.{cls.__qualname__}"
            raise TypeError(f"{where}: its policy takes other options than {cls.Options.__name__}")

    def narrow(self, stages: Collection[Stage], *, without: Collection[type[Finding]] = ()) -> None:
        """To be called in `__init__`: with these options only the finders of these stages are of use.

        The others are never run, and their findings are not there. Inputs of the kinds in `without`, where they are
        optional, are given as None: this instance then does not depend on who finds them.
        """
        self.finders = tuple(f.without(without) for f in type(self).finders if f.stage in stages)

    def shortcut(self, finder: Finder) -> Callable[..., Finding | None] | None:
        """A plain function that is tried first with the finder's inputs, asked for once when the pipeline is made.

        It spares a task, and so much of what a look-up costs where there is nothing to wait for. When it gives None
        the finder itself is run. It cannot be interrupted: neither `timeout` nor the stage's deadline ends it. By
        default there is none.
        """
        return None

    async def start(self) -> None:
        """Called once before the first session; raise to refuse to start."""

    async def close(self) -> None:
        """Called once after the last session of this pipeline ended."""

    async def ended(self, ending: Ending) -> None:
        """Called after the client has the reply that refused or ended something. For plugins that learn from it.

        Whatever it does changes nothing about that reply; the entry's `timeout` holds, and what it raises is logged.
        """

    async def hung_up(self, session: Session) -> None:
        """Called once when a session is over, in the background. For plugins that hold something for each session.

        The entry's `timeout` holds, and what it raises is logged. `connect` can come several times before (XCLIENT).
        """

    async def sign_own(self, message: Message) -> Sequence[AddHeader]:
        """Sign mail that Gatepost itself writes, such as DSNs and reports: fields to put on top of it, none for none.

        Asked of plugins that `signs`, and never of an entry that is in shadow. The entry's `timeout` holds; when it
        raises, the message leaves unsigned and the trouble is logged.
        """
        return ()

    def lint(self, setting: Setting) -> Iterable[Remark]:
        """Remarks on its options for `gatepost lint`, of the kinds in `checks`. It was not started."""
        return ()

    def patience(self) -> float:
        """Seconds that its own options give whoever it asks, 0 when none does.

        An entry's `timeout` that is no longer comes first, and then `on_error` decides instead of the plugin.
        """
        return 0.0

    def looks_up_to(self) -> int | None:
        """Octets of a message beyond which it lets it pass without having looked; None when it looks at all."""
        return None

    @classmethod
    def learns(cls) -> bool:
        """Whether this plugin wants to be told of endings: it has an `ended` of its own."""
        return cls.ended is not Plugin.ended

    @classmethod
    def holds(cls) -> bool:
        """Whether this plugin wants to be told of sessions that are over: it has a `hung_up` of its own."""
        return cls.hung_up is not Plugin.hung_up


def _read_finder(cls: type[Plugin], name: str) -> Finder:
    method = getattr(cls, name)
    where = f"{cls.__module__}.{cls.__qualname__}.{name}"
    if not inspect.iscoroutinefunction(method):
        raise TypeError(f"{where} must be an async method")
    stage, does = getattr(method, _MARK)
    hints = typing.get_type_hints(method)
    result = hints.pop("return", None)
    if not (isinstance(result, type) and issubclass(result, Finding)):
        raise TypeError(f"{where} must be annotated to return a Finding")
    inputs: list[type] = []
    optional: list[bool] = []
    for parameter in plain_parameters(method, where):
        kind, may_miss = unwrap(hints.get(parameter))
        if not isinstance(kind, type):
            raise TypeError(f"{where}: parameter {parameter} has no annotated type")
        check_input(kind, stage, where)
        inputs.append(kind)
        optional.append(may_miss)
    return Finder(name, stage, does, result, tuple(inputs), tuple(optional))
