"""What rules say of themselves to `gatepost lint`: which do nothing, and on what ground they accept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

from gateway.sdk import Action, Stage
from gateway.sdk.lint import Check, Remark, Severity, Trust, Way, break_signatures
from policies.rules.actions import Effect, Then
from policies.rules.inputs import INPUTS
from policies.rules.program import Program, Unanswered, context

NEVER_TRUE: Final = Check("rules/never-true", Severity.WARNING, "a rule never matches")
NEVER_ASKED: Final = Check("rules/never-asked", Severity.WARNING, "a rule is never asked, since one before it decides")
CHECKS: Final = (NEVER_TRUE, NEVER_ASKED)

_PROOF: Final = frozenset({"client", "peer", "name", "trusted", "listener"})
"""Fields of a session that the client cannot choose."""


class Ready(Protocol):
    """A rule, its place among the rules, and the stage at which it is asked."""

    @property
    def name(self) -> str: ...
    @property
    def program(self) -> Program: ...
    @property
    def then(self) -> Then: ...
    @property
    def number(self) -> int: ...
    @property
    def when(self) -> str: ...


Placed = Mapping[Stage, Sequence[Ready]]


def remarks(placed: Placed) -> Iterator[Remark]:
    """Rules that do nothing."""
    for rules in placed.values():
        decided: Ready | None = None
        asked: dict[str, Ready] = {}
        for rule in rules:
            path = ("rules", rule.number, "when")
            before = decided or asked.get(rule.when)
            if before is not None:
                yield Remark(
                    NEVER_ASKED,
                    path,
                    f"{rule.name} is never asked: {before.name}, before it at this stage, "
                    + ("always decides" if before is decided else "asks the same and decides"),
                    f"a message that fits {rule.name} is treated as {before.name} says",
                    f"put it before {before.name}, or take one of them away",
                )
                continue
            answer = constant(rule.program)
            if answer is False:
                yield Remark(
                    NEVER_TRUE,
                    path,
                    f"{rule.name} asks for what is never so",
                    "a message comes, whatever it is, and the rule does nothing",
                    "ask for something that depends on the message, or take the rule away",
                )
            elif rule.then.decision is not None:
                asked.setdefault(rule.when, rule)
                decided = rule if answer else None


def ways(placed: Placed) -> Iterator[Way]:
    """Rules that accept, and those that decide for everybody."""
    for stage, rules in placed.items():
        for rule in rules:
            decision = rule.then.decision
            if decision is None or constant(rule.program) is False:
                continue
            always = bool(constant(rule.program))
            action = decision.action or Action.PROCEED
            if action is Action.ACCEPT or always:
                path = ("rules", rule.number, "when")
                yield Way(stage, action, trust(rule.program), always, path, what=rule.name)
            if always:
                break


def change(placed: Placed) -> bool:
    """Whether a rule changes what signatures mostly cover."""
    effects = (effect for rules in placed.values() for rule in rules for effect in rule.then.effects)
    return any(effect.name == "tag_subject" or _breaks(effect) for effect in effects)


def _breaks(effect: Effect) -> bool:
    """Of an effect whose edits are the same for every message."""
    return effect.edits is not None and effect.needs is None and break_signatures(effect.edits(None))


def constant(program: Program) -> bool | None:
    """The answer of an expression that names nothing of the message; None for all others."""
    if program.checked.uses:
        return None
    try:
        return program.holds(context({}, {}), {})
    except Unanswered:
        return None


def trust(program: Program) -> Trust:
    """What an expression rests on: something found out or proved, what the client claims, or only whom it is for."""
    uses = program.checked.uses
    found = any(name not in INPUTS for name in uses)
    if found or _PROOF & uses.get("session", set()):
        return Trust.EVIDENCE
    return Trust.RECIPIENT if set(uses) <= {"recipient", "recipients"} else Trust.CLAIM
