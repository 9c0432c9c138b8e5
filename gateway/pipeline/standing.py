"""Which recorded transactions need not be judged again as a whole, since who could judge them otherwise says the same.

A policy is a function of what it is told. So an entry that is as it was says what it said, and its recorded verdict
stands in; asked again is only who is not as it was. Where nobody among those says anything else, the transaction
ends as it did. Where somebody does, or it is not certain, the whole of it is judged.

*Promises*: what stands here is what judging the whole of it would give, or, where some of it cannot be judged again,
what was said then. It stands for records of one configuration only, and not where a look-up failed: what that means
is said by one entry for others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Set
from typing import Any, Final

from gateway.mail.envelope import Recipient
from gateway.pipeline.past import Past, recorded
from gateway.pipeline.plan import INPUTS, Entry, Node, Plan, StagePlan, Step
from gateway.pipeline.told import Told, VerdictNote
from gateway.sdk.stage import ORDER, Stage, Transaction
from gateway.sdk.verdict import Action, Verdict, When

Turn = Callable[[StagePlan, Step, Transaction | None, Recipient | None], Verdict | None]
"""What an entry says now at its turn; None for nothing that counts."""

Silence = tuple[str, str, str]
"""A stage, the name of an entry, and the recipient as recorded; empty where it is not about one."""

_OURS: Final = ("gateway", "plugins", "policies")
"""Packages whose policies change their version with what they say. Authors change theirs while they try them."""
_TRANSACTION: Final = INPUTS[Transaction]
_DOOR: Final = (Stage.CONNECT, Stage.HELO, Stage.MAIL)


class Standing:
    """Compares a pipeline with the one of then, of the configuration whose digest is `config`.

    `names` says under which names records know the entries, `unchanged` which of them are as they were.
    """

    def __init__(
        self, now: Plan, then: Plan, config: str, names: Mapping[str, str], unchanged: Collection[str]
    ) -> None:
        self._config = config
        self._names = names
        self._comparable = _in_order(now, then, names)
        same = [e for e in now.entries if e.name in unchanged and _ours(e) and _enforced_as_then(e, names[e.name])]
        wired = {name: list(_wiring(then, name, {e.name: e.name for e in then.entries})) for name in names.values()}
        self._same = {
            names[entry.name]: entry
            for entry in same
            if list(_wiring(now, entry.name, names)) == wired[names[entry.name]]
        }
        kept = {entry.name for entry in self._same.values()}
        self._asked = {
            stage: [step for step in plan.steps if step.entry.name not in kept] for stage, plan in now.stages.items()
        }
        # What a policy says of the transaction may be another thing when other recipients are taken.
        self._repeated = {
            (stage.value, names[step.entry.name]): step.entry.name
            for stage, plan in now.stages.items()
            for step in plan.steps
            if step.entry.name in kept and step.question and not _of_transaction(step)
        }
        self._plans = now.stages
        self._others = {names.get(e.name) for e in now.entries} - set(self._same)
        self._gone = {entry.name for entry in then.entries} - set(names.values())
        self._opens = any(self._asked[stage] for stage in _DOOR)
        self._versions = {name: entry.policy.version if entry.policy else "" for name, entry in self._same.items()}
        self._known = self._others | self._gone
        self._stages = [
            (number, stage, any(_of_transaction(step) or step.entry.rollout for step in steps))
            for number, stage in enumerate(ORDER)
            if (steps := self._asked.get(stage))
        ]

    def is_sure(self, past: Past, *, own_door: bool) -> bool:
        """Whether it is known of everybody in the record who that is now. `own_door` says that this pipeline judged the
        session too."""
        told = past.told
        if not self._comparable or told.config != self._config or (self._opens and not own_door):
            return False
        for found in told.findings:
            if found.fault:
                return False
        versions = self._versions
        for note in told.verdicts:
            if versions.get(note.plugin) != note.version and not self._is_sound(note, own_door):
                return False
        return True

    def holds(self, past: Past, turn: Turn) -> bool:
        """Whether it ends as it did, if it is sure."""
        told = past.told
        for stage, txn, to in self._turns(past):
            for step in self._asked[stage]:
                if not _alike(turn(self._plans[stage], step, txn, to), self._said(told, step.entry, stage, to)):
                    return False
        return True

    def silent(self, past: Past, *, own_door: bool) -> Set[Silence]:
        """Who says nothing that counts, as then, whoever else says what, if it is sure."""
        silent: set[Silence] = set()
        loud: set[Silence] = set()
        for note in past.told.verdicts:
            name = self._repeated.get((note.stage, note.plugin))
            if name is not None and (own_door or note.stage not in _DOOR):
                (silent if note.silent else loud).add((note.stage, name, note.recipient))
        return silent - loud

    def _is_sound(self, note: VerdictNote, own_door: bool) -> bool:
        """Whether a verdict by no known version is of one that is asked again, or that is gone and said nothing."""
        name = note.plugin
        if name in self._versions:
            return False
        if name in self._gone and not note.silent:
            return False
        return name in self._known or (bool(name) and not own_door)

    def _said(self, told: Told, entry: Entry, stage: Stage, to: Recipient | None) -> VerdictNote | None:
        name, whom = self._names.get(entry.name), recorded(to.address) if to else ""
        for note in told.verdicts:
            if note.plugin == name and note.stage == stage.value and note.recipient == whom and not note.silent:
                return note
        return None

    def _turns(self, past: Past) -> Iterator[tuple[Stage, Transaction | None, Recipient | None]]:
        """The stages at which somebody is to be asked, as far as the record tells: at RCPT, once for each recipient.

        The transaction is told where somebody wants to know of it.
        """
        last = ORDER.index(past.reached)
        for number, stage, needed in self._stages:
            if number > last:
                return
            if stage in (Stage.CONNECT, Stage.HELO, Stage.AUTH):
                yield stage, None, None
            elif stage is Stage.RCPT:
                taken: list[Recipient] = []
                for recipient, reply in past.recipients:
                    yield stage, past.transaction(tuple(taken)) if needed else None, recipient
                    if needed and reply.startswith("2") and recipient not in taken:
                        taken.append(recipient)
            elif not needed:
                yield stage, None, None
            else:
                told = () if stage is Stage.MAIL else past.recipients
                everybody = dict.fromkeys(recipient for recipient, reply in told if reply.startswith("2"))
                yield stage, past.transaction(tuple(everybody)), None


def _alike(now: Verdict | None, then: VerdictNote | None) -> bool:
    if now is None or (now.action is Action.PROCEED and now.when is When.ALWAYS and not now.recipients):
        return then is None
    if then is None or now.recipients or then.recipients:
        return False
    said = "" if now.reply is None else str(now.reply)
    return now.action.value == then.action and said == then.reply and now.when.value == (then.when or When.ALWAYS.value)


def _of_transaction(step: Step) -> bool:
    """Whether it is asked about the transaction, with the recipients that it has by then."""
    return step.question is not None and any(source == _TRANSACTION for source, _ in step.question.sources)


def _in_order(now: Plan, then: Plan, names: Mapping[str, str]) -> bool:
    """Whether those that are in both are asked in the same order."""
    places = {entry.name: place for place, entry in enumerate(then.entries)}
    order = [places.get(names[entry.name], -1) for entry in now.entries if entry.name in names]
    return order == sorted(order) and -1 not in order


def _ours(entry: Entry) -> bool:
    return entry.policy is None or type(entry.policy).__module__.partition(".")[0] in _OURS


def _enforced_as_then(entry: Entry, name: str) -> bool:
    """Whether a rollout is where it was: it goes by the entry's name, which was this one."""
    return entry.rollout is None or entry.name == name


def _wiring(plan: Plan, name: str, names: Mapping[str, str]) -> Iterator[Any]:
    """What an entry is asked at which stage, about findings of whom."""
    for stage, at in plan.stages.items():
        for step in at.steps:
            if step.entry.name == name:
                sources = step.question.sources if step.question else ()
                yield (
                    stage,
                    [_served(node, names) for node in step.acts],
                    step.question is not None,
                    [(_served(source, names), optional) for source, optional in sources],
                )


def _served(source: int | Node, names: Mapping[str, str]) -> Any:
    if not isinstance(source, Node):
        return source
    return source.finder.finding, names.get(source.entry.name), source.scope
