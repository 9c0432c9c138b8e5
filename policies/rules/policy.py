"""The policy `rules`: the operator's own rules, each a question in CEL and what to do when the answer is yes.

Every rule belongs to one stage, the first at which everything it names is known, or a later one that it chooses. Which
that is depends on the pipeline, so a rule is checked when the pipeline is made. At its stage all findings that rules
name are waited for; the rules are asked in order, and each turns only what it names into the library's values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, SkipValidation

from gateway.sdk import (
    PROCEED,
    Action,
    Edit,
    Finding,
    Given,
    OptionError,
    OptionsModel,
    Policy,
    PolicyOptions,
    Stage,
    Verdict,
)
from gateway.sdk.lint import Remark, Setting, Way
from policies.rules import actions, lint
from policies.rules.check import did_you_mean
from policies.rules.inputs import INPUTS, all_findings, finding_type, variable_of
from policies.rules.program import Contexts, Program, Unanswered, check_syntax, compile
from policies.rules.syntax import LENGTH, ExpressionError
from policies.rules.types import Type

_ORDER: Final = tuple(Stage)
_RULES: Final = 200


class Rule(OptionsModel):
    """One rule."""

    when: str = Field(min_length=1, max_length=LENGTH, description="A question in CEL.")
    then: Annotated[actions.Then, SkipValidation, BeforeValidator(actions.read)] = Field(
        description="What to do when the answer is yes: one action, or several, of which one may decide."
    )
    at: Stage | None = Field(None, description="The stage; by default the first at which all that it names is known.")
    name: str = Field("", max_length=80, pattern=r"^[ -~]*$", description="Stands in the record as the reason.")


class RulesOptions(PolicyOptions):
    """Options of `rules`."""

    sole = "rules"

    rules: tuple[Rule, ...] = Field(
        max_length=_RULES,
        description="The rules, in the order of asking; a list alone means this.",
    )


class RuleFailed(Exception):
    """A rule has no answer: the mail is deferred, as for every fault of a policy."""


@dataclass(frozen=True, slots=True)
class _Ready:
    """A rule that can be asked, and its place in the options."""

    name: str
    program: Program
    then: actions.Then
    number: int
    when: str


@dataclass(frozen=True, slots=True)
class _Desk:
    """What a stage has: its rules, the values that they name, and from what the variables are read."""

    rules: tuple[_Ready, ...]
    contexts: Contexts
    kinds: tuple[type, ...]
    variables: Mapping[str, type]


class Rules(Policy):
    """Asks the operator's own rules, written in CEL, in their order."""

    name = "rules"
    Options = RulesOptions
    checks = lint.CHECKS
    options: RulesOptions

    def __init__(self, options: RulesOptions) -> None:
        super().__init__(options)
        self._desks: dict[Stage, _Desk] = {}
        problems = OptionError()
        for number, rule in enumerate(options.rules):
            try:
                check_syntax(rule.when)
            except ExpressionError as error:
                problems.add(("rules", number, "when"), error.message, error.offset)
        problems.raise_if_any()

    def wire(self, given: Given) -> None:
        problems = OptionError()
        findings = _Findings(given)
        placed: dict[Stage, list[_Ready]] = {}
        for number, rule in enumerate(self.options.rules):
            path = ("rules", number, "when")
            try:
                program = compile(rule.when, findings.types)
                stage = findings.stage(program, rule)
            except ExpressionError as error:
                problems.add(path, error.message, error.offset)
            except _NoStage as error:
                place = ("rules", number, "at") if rule.at and error.offset is None else path
                problems.add(place, str(error), error.offset)
            else:
                ready = _Ready(rule.name or f"rule {number + 1}", program, rule.then, number, rule.when.strip())
                placed.setdefault(stage, []).append(ready)
        problems.raise_if_any()
        for stage, rules in placed.items():
            desk = self._desks[stage] = _desk(rules, findings)
            # Findings may all be missing here: each rule says for itself what it cannot do without.
            inputs = {kind: issubclass(kind, Finding) for kind in desk.kinds}
            self.ask(stage, partial(self._judge, desk), inputs)

    def ways(self) -> Iterable[Way]:
        return lint.ways(self._placed())

    def changes(self) -> bool:
        return lint.change(self._placed())

    def lint(self, setting: Setting) -> Iterable[Remark]:
        return lint.remarks(self._placed())

    def _placed(self) -> dict[Stage, tuple[_Ready, ...]]:
        return {stage: desk.rules for stage, desk in self._desks.items()}

    def clauses(self) -> tuple[tuple[str | int, ...], ...]:
        return tuple(("rules", number) for number in range(len(self.options.rules)))

    def _judge(self, desk: _Desk, *inputs: Any) -> Verdict:
        given = dict(zip(desk.kinds, inputs, strict=True))
        sources = {name: _source(name, given[kind]) for name, kind in desk.variables.items()}
        values: Any = None
        edits: tuple[Edit, ...] = ()
        matched: list[str] = []
        for rule in desk.rules:
            if rule.program.needs_missing(sources):
                continue
            if values is None:
                values = desk.contexts.make(sources, given)
            try:
                if not rule.program.holds(values, sources):
                    continue
                edits += rule.then.edits(given)
            except (Unanswered, ValueError) as error:
                raise RuleFailed(f"{rule.name}: {error}") from error
            matched.append(rule.name)
            self.matched(("rules", rule.number))
            if decision := rule.then.decision:
                return actions.verdict(decision, ", ".join(matched), edits)
        return Verdict(Action.PROCEED, reason=", ".join(matched), edits=edits) if matched else PROCEED


def _source(name: str, value: Any) -> Any:
    found = INPUTS.get(name)
    return value if found is None else found.source(value)


def _desk(rules: Sequence[_Ready], findings: _Findings) -> _Desk:
    uses: dict[str, set[str]] = {}
    kinds: dict[type, None] = {}
    for rule in rules:
        for name, fields in rule.program.checked.uses.items():
            uses.setdefault(name, set()).update(fields)
            kinds[findings.kind(name)] = None
        kinds.update(dict.fromkeys(rule.then.needs))
    return _Desk(tuple(rules), Contexts(uses), tuple(kinds), {name: findings.kind(name) for name in uses})


class _NoStage(Exception):
    """The rule cannot be asked anywhere, or not where it says; the variable at character `offset` is why."""

    def __init__(self, message: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.offset = offset


class _Findings:
    """The findings by the names of their variables, and when they are known in this pipeline."""

    def __init__(self, given: Given) -> None:
        self._given = given
        kinds: dict[str, set[type[Finding]]] = {}
        for kind in all_findings():
            kinds.setdefault(variable_of(kind), set()).add(kind)
        self._kinds: dict[str, type[Finding]] = {}
        self._several: dict[str, list[str]] = {}
        for name, found in kinds.items():
            # Of several of one name, the one that this pipeline gives is meant.
            here = sorted(found & given.stages.keys(), key=_full_name)
            if len(here) > 1:
                self._several[name] = [_full_name(kind) for kind in here]
            self._kinds[name] = (here or sorted(found, key=_full_name))[0]
        findings = {name: finding_type(kind) for name, kind in self._kinds.items() if name not in INPUTS}
        self.types: dict[str, Type] = {**findings, **{name: found.type for name, found in INPUTS.items()}}

    def kind(self, name: str) -> type:
        """What a hook must take for this variable."""
        return INPUTS[name].kind if name in INPUTS else self._kinds[name]

    def stage(self, program: Program, rule: Rule) -> Stage:
        """Where the rule is asked. Raises `_NoStage`."""
        default, possible = set(_ORDER), set(_ORDER)
        asked: list[str] = []
        for effect in rule.then.effects:
            if effect.stages:
                default &= set(effect.stages)
                possible &= set(effect.stages)
                asked.append(f"{effect.name} at {', '.join(effect.stages)}")
        for name, fields in program.checked.uses.items():
            known, earliest = self._stages(name, fields, program)
            default &= known
            possible &= earliest
            if known != set(_ORDER):
                asked.append(f"{name} at {', '.join(s for s in _ORDER if s in known)}")
        if rule.at is not None and rule.at not in possible:
            raise _NoStage(f"not everything is known at {rule.at}: {'; '.join(asked)}")
        if not default and rule.at is None:
            raise _NoStage(f"there is no stage at which all of it is known: {'; '.join(asked)}")
        return rule.at or min(default, key=_ORDER.index)

    def _stages(self, name: str, fields: set[str], program: Program) -> tuple[set[Stage], set[Stage]]:
        if name not in INPUTS:
            return self._of_finding(name, program)
        pairs = [INPUTS[name].stages(part) for part in fields or ("",)]
        if INPUTS[name] is INPUTS["recipient"]:
            return {Stage.RCPT}, {Stage.RCPT}
        known, earliest = (max(column, key=_ORDER.index) for column in zip(*pairs, strict=True))
        return set(_ORDER[_ORDER.index(known) :]), set(_ORDER[_ORDER.index(earliest) :])

    def _of_finding(self, name: str, program: Program) -> tuple[set[Stage], set[Stage]]:
        kind, at = self._kinds[name], program.checked.places[name]
        if name in self._several:
            raise _NoStage(f"{name} may be {' or '.join(self._several[name])}: their names are alike", at)
        stages = set(self._given.stages.get(kind, ()))
        if stages:
            return stages, stages
        if (name,) in program.checked.tested:
            # It asks whether it is there: here it never is.
            return set(_ORDER), set(_ORDER)
        givers = self._given.givers(kind)
        hint = f"; {' or '.join(givers)} would, if listed" if givers else ""
        near = did_you_mean(name, [variable_of(k) for k in self._given.stages])
        raise _NoStage(f"no plugin of this pipeline gives {name}{hint or near}", at)


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
