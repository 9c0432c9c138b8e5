"""Policies: pure functions from findings, session and envelope to a verdict.

A policy defines hooks named after the stages: `on_connect`, `on_helo`, `on_mail`, `on_rcpt`, `on_data`,
`on_message`. A hook takes what it needs by annotated type: `Session`, `Transaction`, `Recipient` (at rcpt), `Message`
(at message) and any findings; a finding annotated ``F | None`` may be missing (its plugin failed and its owner said
`proceed`), and a hook whose required finding is missing is not asked. No I/O and no clock here: the same inputs must
give the same verdict, or replay is worth nothing.

Misspelt hooks and wrong annotations fail when the class is made.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gateway.mail.envelope import Recipient
from gateway.sdk.deprecation import adopt_old_hooks
from gateway.sdk.findings import Finding
from gateway.sdk.lint import Check, Remark, Setting, Way
from gateway.sdk.options import OptionsModel
from gateway.sdk.stage import KNOWN_FROM, ORDER, Stage
from gateway.sdk.verdict import Verdict

Clause = tuple[str | int, ...]
"""The place of a part of a policy's options: ``("rules", 3)``."""

HOOKS: dict[str, Stage] = {f"on_{stage}": stage for stage in Stage}


class PolicyOptions(OptionsModel):
    """Base of a policy's options."""


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook of a policy: what it takes, in order; `optional[i]` says that input i may be None."""

    name: str
    stage: Stage
    inputs: tuple[type, ...]
    optional: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Given:
    """What a pipeline has for a policy at its place in the list: the stages at which it can be given each finding.

    `givers` names installed plugins that would give a finding, if they were listed.
    """

    stages: Mapping[type[Finding], tuple[Stage, ...]]
    givers: Callable[[type[Finding]], Sequence[str]]


class Policy:
    """Base of all policies. `version` goes into the decision record; raise it when the logic changes. `checks` are what
    its `lint` looks for."""

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    Options: ClassVar[type[OptionsModel]] = PolicyOptions
    checks: ClassVar[tuple[Check, ...]] = ()
    hooks: dict[Stage, Hook] = {}
    _told: Callable[[Clause], None] | None = None

    options: Any

    def __init__(self, options: OptionsModel) -> None:
        self.options = options

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        adopt_old_hooks(cls)
        hooks: dict[Stage, Hook] = {}
        for name in dir(cls):
            if not name.startswith("on_"):
                continue
            if name not in HOOKS:
                raise TypeError(f"{cls.__qualname__}.{name} is no hook; hooks are {', '.join(HOOKS)}")
            hooks[HOOKS[name]] = _read_hook(cls, name)
        cls.hooks = hooks

    def narrow(self, stages: Collection[Stage]) -> None:
        """To be called in `__init__`: with these options only the hooks of these stages are of use."""
        self.hooks = {stage: hook for stage, hook in type(self).hooks.items() if stage in stages}

    def wire(self, given: Given) -> None:
        """Called once, when the pipeline is made. For policies whose hooks depend on what the pipeline gives (`ask`).

        Raises `OptionError` for options that make no sense in this pipeline.
        """

    def clauses(self) -> tuple[Clause, ...]:
        """The parts of its options that can match each by itself, as rules do. `gatepost test` says which never did."""
        return ()

    def matched(self, clause: Clause) -> None:
        """To be called whenever a clause matches. Nothing comes of it but that `gatepost test` counts it."""
        if self._told is not None:
            self._told(clause)

    def watch(self, told: Callable[[Clause], None]) -> None:
        """Have every clause told that matches from now on. For `gatepost test`, not for policies."""
        self._told = told

    def ask(self, stage: Stage, hook: Callable[..., Verdict], inputs: Mapping[type, bool]) -> None:
        """To be called in `__init__` or `wire`: have `hook` asked at this stage, whatever the class says.

        It is given `inputs` by position; those with True may be None. Raises TypeError for what is not known there.
        """
        name = f"on_{stage}"
        for kind in inputs:
            check_input(kind, stage, f"{type(self).__qualname__}.{name}")
        self.hooks = {**self.hooks, stage: Hook(name, stage, tuple(inputs), tuple(inputs.values()))}
        setattr(self, name, hook)

    # For `gatepost lint`; called after `wire`.

    def ways(self) -> Iterable[Way]:
        """How its options let it decide, as far as others depend on it: where it may accept, and always decides."""
        return ()

    def changes(self) -> bool:
        """Whether it may change what signatures cover: the body, the recipients' usual header fields."""
        return False

    def lint(self, setting: Setting) -> Iterable[Remark]:
        """Remarks on its options, of the kinds in `checks`."""
        return ()


def _read_hook(cls: type[Policy], name: str) -> Hook:
    method = getattr(cls, name)
    where = f"{cls.__module__}.{cls.__qualname__}.{name}"
    stage = HOOKS[name]
    if inspect.iscoroutinefunction(method):
        raise TypeError(f"{where} must not be async: policies are pure")
    hints = typing.get_type_hints(method)
    if hints.pop("return", None) is not Verdict:
        raise TypeError(f"{where} must be annotated to return Verdict")
    inputs: list[type] = []
    optional: list[bool] = []
    for parameter in plain_parameters(method, where):
        kind, may_miss = unwrap(hints.get(parameter))
        if not isinstance(kind, type):
            raise TypeError(f"{where}: parameter {parameter} has no annotated type")
        check_input(kind, stage, where)
        inputs.append(kind)
        optional.append(may_miss)
    return Hook(name, stage, tuple(inputs), tuple(optional))


def check_input(kind: type, stage: Stage, where: str) -> None:
    """Raise TypeError for what cannot be asked for at this stage."""
    if kind in KNOWN_FROM:
        late = ORDER.index(KNOWN_FROM[kind]) > ORDER.index(stage)
        if late or (kind is Recipient and stage is not Stage.RCPT):
            raise TypeError(f"{where}: {kind.__name__} is not known at stage {stage}")
    elif not issubclass(kind, Finding):
        raise TypeError(f"{where}: {kind.__name__} is neither an input nor a Finding")


def plain_parameters(method: Any, where: str) -> list[str]:
    """Names of what a method takes besides itself; raises TypeError unless all can be given by position."""
    parameters = list(inspect.signature(method).parameters.values())[1:]
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise TypeError(f"{where}: parameter {parameter.name} cannot be given by position")
    return [parameter.name for parameter in parameters]


def unwrap(hint: Any) -> tuple[Any, bool]:
    """What an annotation asks for, and whether it may be missing: ``F | None`` gives (F, True)."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        args = [a for a in typing.get_args(hint) if a is not type(None)]
        if len(args) == 1 and len(args) < len(typing.get_args(hint)):
            return args[0], True
    return hint, False
