"""Judging recorded transactions again: the policies of a pipeline, asked about what was found then. No I/O.

What a policy needs and no record holds (the message itself, or a finding that nobody looked up) cannot be judged again.
Where an entry is the same now as it was then, its recorded verdict stands in; where it is not, that is said.

*Promises*: what is not known is never guessed: a transaction is either judged by what was found, or `Unknown`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from gateway.mail.edit import ReplaceBody
from gateway.mail.envelope import Recipient
from gateway.pipeline.asking import ON_ERROR, answer, ask, on_error
from gateway.pipeline.decision import PROCEEDED, Decision, Deliberation, Said
from gateway.pipeline.lookup import Fault, FaultKind
from gateway.pipeline.past import NotTold, Past, recorded
from gateway.pipeline.plan import INPUTS, NOTHING, Entry, Node, Plan, Question, Scope, StagePlan, Step
from gateway.pipeline.recall import RecallError, recall_verdict
from gateway.pipeline.standing import Silence, Standing
from gateway.pipeline.told import VerdictNote
from gateway.sdk.findings import Finding
from gateway.sdk.stage import ORDER, Message, Stage, Transaction
from gateway.sdk.verdict import Action, Verdict

_MESSAGE: Final = INPUTS[Message]
_ORDER: Final = {stage: number for number, stage in enumerate(ORDER)}
_REASON: Final = 200
_KEPT: Final = 10_000
"""Answers that are kept to be given again."""
_REFUSALS: Final = frozenset({Action.REJECT, Action.DEFER, Action.DISCONNECT})


@dataclass(frozen=True, slots=True)
class Fate:
    """What a transaction comes to. `word` is as `gateway.sdk.ending.Outcome`; `entry` is whose verdict that was.

    `refused` are recipients that were not taken. `seen` is the last stage that was judged.
    """

    word: str
    entry: str
    reply: str
    refused: tuple[str, ...]
    seen: Stage


@dataclass(frozen=True, slots=True)
class Unknown:
    """Why a transaction cannot be judged again, and whose turn it was."""

    entry: str
    why: str


class Replay:
    """Judges records by one pipeline. `unchanged` are names of entries that are as they were when it was recorded.

    `counterparts` says under which names records know the entries; those that it leaves out are new. None says that
    all names are the same. `then` is the pipeline of then and the digest of its configuration, where that is known.
    """

    def __init__(
        self,
        plan: Plan,
        unchanged: Collection[str] = (),
        counterparts: Mapping[str, str] | None = None,
        then: tuple[Plan, str] | None = None,
    ) -> None:
        self._plan = plan
        self._unchanged = frozenset(unchanged)
        self._names = {e.name: e.name for e in plan.entries} if counterparts is None else counterparts
        self._taken = frozenset(self._names.values())
        steps = [step for stage in plan.stages.values() for step in stage.steps]
        self._constant = {step.question for step in steps if step.question and _of_findings(step.question)}
        self._answers: dict[tuple[int, ...], tuple[list[Any], Said]] = {}
        self._standing = Standing(plan, *then, self._names, self._unchanged) if then else None

    @property
    def other_doorkeeper(self) -> str:
        """The first entry that judges sessions and senders and is not as it was; empty when there is none."""
        steps = (step for stage in (Stage.CONNECT, Stage.HELO, Stage.MAIL) for step in self._plan.stages[stage].steps)
        entries = (step.entry for step in steps if not step.entry.shadow)
        return next((entry.name for entry in entries if entry.name not in self._unchanged), "")

    def judge(self, past: Past, reached: Stage, *, without: str = "") -> Fate | Unknown:
        """What the pipeline says of it now; `reached` is the last stage of which the record tells.

        The entry `without` is not asked.
        """
        return _Course(self, past, reached, without).judge()

    def again(self, past: Past, *, own_door: bool = True) -> Fate | Unknown | None:
        """As `judge`, but None where it is known without judging all of it that it ends as it did.

        `own_door` says that this pipeline judged the session too. See `gateway.pipeline.standing`.
        """
        course = _Course(self, past, past.reached, "")
        standing = self._standing
        if standing is not None and standing.is_sure(past, own_door=own_door):
            try:
                if standing.holds(past, course.verdict):
                    return None
            except _Stop:
                # It may end elsewhere, before that is asked.
                pass
            course.silent = standing.silent(past, own_door=own_door)
        return course.judge()


@dataclass(frozen=True, slots=True)
class Answers:
    """What one entry says of a transaction: its verdicts, each with the recipient whom it is about, if about one.

    `unknown` says why one recipient, or all of it, cannot be judged; empty when everything was.
    """

    said: tuple[tuple[Verdict, str], ...]
    unknown: str = ""


class Inquiry:
    """Asks one entry of a pipeline about records, as if nobody else had anything to say."""

    def __init__(self, plan: Plan, entry: Entry) -> None:
        self._entry = entry
        self._steps = [
            (stages, step.question)
            for stages in plan.stages.values()
            for step in stages.steps
            if step.entry is entry and step.question
        ]

    def ask(self, past: Past) -> Answers:
        """What the entry says of it, at all of its stages."""
        said: list[tuple[Verdict, str]] = []
        unknown = ""
        for plan, question in self._steps:
            if _ORDER[plan.stage] > _ORDER[past.reached]:
                unknown = unknown or f"it ended at {past.reached}, before it could be asked at {plan.stage}"
                continue
            for given in _given(past, plan.stage):
                whom = recorded(given[2].address) if given[2] else ""
                try:
                    verdict = self._verdict(past, plan.stage, question, given)
                except NotTold as error:
                    unknown = unknown or str(error)
                else:
                    said += [(verdict, whom)] if verdict else []
        return Answers(tuple(said), unknown)

    def _verdict(self, past: Past, stage: Stage, question: Question, given: _Given) -> Verdict | None:
        """The answer to one question; None when it is not asked. Raises `NotTold`."""
        arguments = _arguments(partial(_found_by_any, past), self._entry, question, given)
        if arguments is None:
            return None
        if isinstance(arguments, Said):
            raise NotTold(f"{arguments.of.name} failed")
        try:
            return answer(stage, self._entry, question.method, arguments).verdict
        except NotTold:
            raise
        except Exception as error:
            raise NotTold(f"it has no answer: {str(error)[:_REASON]}") from error


_Find = Callable[[Node, Recipient | None], Finding | Fault | None]
_Given = tuple[Any, ...]
"""Session, transaction, recipient and so on, in the order of `gateway.pipeline.plan.INPUTS`."""


def _found_by_any(past: Past, node: Node, recipient: Recipient | None) -> Finding | Fault | None:
    """What the entry of this name found then, or else any other."""
    whom = recorded(recipient.address) if recipient and node.scope is Scope.RECIPIENT else ""
    return past.finding(node, whom, node.entry.name, ())


def _given(past: Past, stage: Stage) -> Iterator[_Given]:
    """What a policy is asked about at this stage: once, or once for each recipient."""
    session = past.session
    if _ORDER[stage] < _ORDER[Stage.MAIL]:
        yield session, None, None, None, None
    elif stage is Stage.RCPT:
        taken: list[Recipient] = []
        for recipient, reply in past.recipients:
            yield session, past.transaction(tuple(taken)), recipient, None, None
            if reply.startswith("2"):
                taken.append(recipient)
    else:
        after = _ORDER[stage] > _ORDER[Stage.RCPT]
        everybody = tuple(recipient for recipient, reply in past.recipients if reply.startswith("2"))
        yield session, past.transaction(everybody if after else ()), None, None, None


def _arguments(find: _Find, entry: Entry, question: Question, given: _Given) -> list[Any] | Said | None:
    """What a policy's hook is given; what its owner says where something failed; None when it is not asked.

    Raises `NotTold`.
    """
    arguments: list[Any] = []
    for source, optional in question.sources:
        if not isinstance(source, Node):
            if source == _MESSAGE:
                raise NotTold("the message itself is not recorded")
            arguments.append(None if source == NOTHING else given[source])
            continue
        found = find(source, given[2])
        if isinstance(found, Fault):
            said = on_error(found, entry, given[0], given[1])
            if said.verdict.decisive or not optional:
                return said
            found = None
        if found is None and not optional:
            return None
        arguments.append(found)
    return arguments


class _Stop(Exception):
    def __init__(self, entry: Entry, why: str) -> None:
        self.unknown = Unknown(entry.name, why)


class _Course:
    """One transaction's way through the stages. `silent` are turns in which nothing is said."""

    silent: Set[Silence] = frozenset()

    def __init__(self, replay: Replay, past: Past, reached: Stage, without: str) -> None:
        self._plan = replay._plan
        self._unchanged = replay._unchanged
        self._names = replay._names
        self._taken = replay._taken
        self._past = past
        self._reached = reached
        self._without = without
        self._constant = replay._constant
        self._answers = replay._answers
        self._known: dict[tuple[int, str], Finding | Fault | None] = {}
        self._late = past.late()
        self._at = Stage.CONNECT
        self._whom = ""
        self._refused: list[str] = []
        self._set_aside = "", ""
        self._seen = Stage.CONNECT

    def judge(self) -> Fate | Unknown:
        self._whom = ""
        try:
            return self._run()
        except _Stop as stop:
            return stop.unknown

    def _run(self) -> Fate:
        for stage in (Stage.CONNECT, Stage.HELO, Stage.MAIL):
            if self._over(stage):
                return self._fate("accepted")
            txn = self._past.transaction(()) if stage is Stage.MAIL else None
            if fate := self._refusal(self._stage(stage, txn)):
                return fate
        if self._over(Stage.RCPT):
            return self._fate("accepted")
        taken, last = self._recipients()
        if not taken:
            return last or self._fate("rejected")
        txn = self._past.transaction(tuple(taken))
        for stage in (Stage.DATA, Stage.MESSAGE):
            if self._over(stage):
                break
            if fate := self._refusal(self._stage(stage, txn)):
                return fate
        word, entry = self._set_aside
        return self._fate(word or "accepted", entry)

    def verdict(
        self, plan: StagePlan, step: Step, txn: Transaction | None, recipient: Recipient | None
    ) -> Verdict | None:
        """What one entry says at its turn, where that counts. Raises `_Stop`."""
        self._whom = recorded(recipient.address) if recipient else ""
        said = self._turn(plan, step, (self._past.session, txn, recipient, None, None))
        return None if said is None or said.shadow else said.verdict

    def _over(self, stage: Stage) -> bool:
        return _ORDER[stage] > _ORDER[self._reached]

    def _recipients(self) -> tuple[list[Recipient], Fate | None]:
        """Recipients that are taken, and what became of the last one that is not."""
        taken: list[Recipient] = []
        last: Fate | None = None
        for recipient, reply in self._past.recipients:
            address = recorded(recipient.address)
            if not reply.startswith("2") and not self._past.verdict_on(address):
                # Relay control or a limit: nothing that a pipeline says changes that.
                self._refused.append(address)
                last = self._fate("deferred" if reply.startswith("4") else "rejected", "", reply)
                continue
            txn = self._past.transaction(tuple(taken))
            self._whom = address
            decision = self._stage(Stage.RCPT, txn, recipient)
            self._whom = ""
            if decision.verdict.action in _REFUSALS:
                self._refused.append(address)
            if fate := self._refusal(decision):
                last = fate
            elif recipient not in taken:
                taken.append(recipient)
        return taken, last

    def _refusal(self, decision: Decision) -> Fate | None:
        """How it ends if this refuses; quarantine and discard are carried out at the end."""
        action = decision.verdict.action
        if action in _REFUSALS and (reply := decision.verdict.reply) is not None:
            word = "deferred" if reply.temporary else "rejected"
            return self._fate(word, decision.entry, str(reply))
        if action is Action.DISCARD and self._set_aside[0] != "discarded":
            self._set_aside = "discarded", decision.entry
        elif action is Action.QUARANTINE and not self._set_aside[0]:
            self._set_aside = "quarantined", decision.entry
        return None

    def _fate(self, word: str, entry: str = "", reply: str = "") -> Fate:
        return Fate(word, entry, reply, tuple(self._refused), self._seen)

    def _stage(self, stage: Stage, txn: Transaction | None, recipient: Recipient | None = None) -> Decision:
        self._seen = stage
        plan = self._plan.stages[stage]
        if not plan.steps:
            return PROCEEDED
        deliberation = Deliberation(txn)
        given = (self._past.session, txn, recipient, None, None)
        at, whom = stage.value, self._whom
        for step in plan.steps:
            name = step.entry.name
            if name == self._without or (at, name, whom) in self.silent:
                continue
            said = self._turn(plan, step, given)
            if said is not None and deliberation.take(said):
                break
        return deliberation.decide()

    def _turn(self, plan: StagePlan, step: Step, given: tuple[Any, ...]) -> Said | None:
        """One entry's turn, as `gateway.pipeline.runner` gives it."""
        entry = step.entry
        if entry.shadow or not entry.enforced(given[0], given[1]):
            # Whatever it says changes nothing.
            return None
        try:
            return self._judge(plan, step, entry, given)
        except NotTold as error:
            if entry.name in self._unchanged:
                return self._recorded(plan, entry, str(error))
            raise _Stop(entry, str(error)) from None

    def _judge(self, plan: StagePlan, step: Step, entry: Entry, given: tuple[Any, ...]) -> Said | None:
        self._at = plan.stage
        passed_over: Said | None = None
        for node in step.acts:
            found = self._found(node, None)
            if isinstance(found, Fault):
                passed_over = on_error(found, entry, given[0], given[1])
                if passed_over.verdict.decisive:
                    return passed_over
        question = step.question
        if question is None:
            return passed_over
        arguments = _arguments(self._found, entry, question, given)
        if isinstance(arguments, Said):
            return arguments
        if arguments is None:
            return passed_over
        if not self._past.redacted:
            return self._ask(plan.stage, entry, question, arguments)
        try:
            return answer(plan.stage, entry, question.method, arguments)
        except NotTold:
            raise
        except Exception as error:
            # It may have failed at what was redacted, which is no text.
            raise NotTold(f"its policy failed at a redacted record: {type(error).__name__}") from error

    def _ask(self, stage: Stage, entry: Entry, question: Question, arguments: list[Any]) -> Said:
        """What the policy says; what it says of findings alone it says again when they are the same, as it is pure."""
        if question not in self._constant:
            return ask(stage, entry, question.method, arguments)
        key = id(question), *map(id, arguments)
        if (known := self._answers.get(key)) is None:
            known = arguments, ask(stage, entry, question.method, arguments)
            if len(self._answers) >= _KEPT:
                self._answers.clear()
            # The arguments are kept, so that no others can have their place in memory.
            self._answers[key] = known
        return known[1]

    def _found(self, node: Node, _: Recipient | None) -> Finding | Fault | None:
        """What the entry found then, or, if it is new, what was found by one that is there no more."""
        if self._late and (owner := self._overdue(node)):
            return Fault(owner, FaultKind.DEADLINE, "not done in time")
        whom = self._whom if node.scope is Scope.RECIPIENT else ""
        key = node.index, whom
        # Asked for by one policy after the other, and for each recipient.
        if key in self._known:
            return self._known[key]
        name = self._names.get(node.entry.name, "")
        found = self._known[key] = self._past.finding(node, whom, name, self._taken)
        return found

    def _overdue(self, node: Node) -> Entry | None:
        """Who was not done when this was asked for at this stage, though it may have been done later."""
        if (self._at.value, self._names.get(node.entry.name), self._whom) in self._late:
            return node.entry
        owners = (self._overdue(source) for source in node.sources if isinstance(source, Node))
        return next((owner for owner in owners if owner), None)

    def _recorded(self, plan: StagePlan, entry: Entry, why: str) -> Said | None:
        """What the same entry said then."""
        name, stage, whom = self._names.get(entry.name), plan.stage.value, self._whom
        notes = [n for n in self._past.told.verdicts if n.plugin == name and n.stage == stage and n.recipient == whom]
        if not notes:
            raise _Stop(entry, f"{why}, and it had no turn then")
        # What its fault meant for others stands under its name, too.
        note = next((note for note in notes if note.policy != ON_ERROR), notes[0])
        return Said(_verdict(note, entry, why), entry, note.policy, note.version, entry.shadow)


def _of_findings(question: Question) -> bool:
    """Whether it is about nothing but findings."""
    return all(isinstance(source, Node) or source == NOTHING for source, _ in question.sources)


def _verdict(note: VerdictNote, entry: Entry, why: str) -> Verdict:
    """The verdict as it was given then, where all of it is in the record."""
    try:
        new_body = any(edit["edit"] == ReplaceBody.__name__ for edit in note.edits or ())
        if note.recipients or new_body:
            raise RecallError("for some recipients only, or with a new body")
        return recall_verdict(note.to_json())
    except (RecallError, KeyError, TypeError) as error:
        raise _Stop(entry, f"{why}, and its verdict cannot be read back") from error
