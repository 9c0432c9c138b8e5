"""Running a pipeline for one session: look-ups begun early, policies asked in order.

*Promises*: the first decisive verdict in list order wins, whatever finishes first. A stage waits no longer than its
deadline. What a shadow entry says is recorded and nothing else. A fault is decided by `on_error` of the entry at
fault, a broken policy defers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from gateway.mail.edit import Edit
from gateway.mail.envelope import Recipient
from gateway.mail.session import Session
from gateway.ops import log
from gateway.ops.metrics import STAGE_SECONDS, VERDICTS, counting, observing
from gateway.pipeline.asking import ask, on_error
from gateway.pipeline.decision import PROCEEDED, Decision, Deliberation, Said
from gateway.pipeline.house import House, Slots
from gateway.pipeline.lookup import Fault, FaultKind, Lookup, Memo, Moment
from gateway.pipeline.plan import Node, Plan, Scope, StagePlan, Step
from gateway.pipeline.record import Trace
from gateway.sdk.ending import Ending
from gateway.sdk.findings import Finding
from gateway.sdk.stage import Message, Stage, Transaction
from gateway.sdk.verdict import PROCEED, Action

_FAREWELL: Final = 1.0
"""Seconds that called-off look-ups get to end before their transaction goes on without them."""

_log = log.get()


class Meters:
    """Bound metrics of stages and verdicts."""

    __slots__ = ("_stages", "_verdicts")

    def __init__(self) -> None:
        self._stages: dict[Stage, Callable[[float], None]] = {}
        self._verdicts: dict[tuple[Stage, str, Action, bool], Callable[[int], None]] = {}

    def stage(self, stage: Stage, seconds: float) -> None:
        if (histogram := self._stages.get(stage)) is None:
            histogram = self._stages[stage] = observing(STAGE_SECONDS.labels(stage.value))
        histogram(seconds)

    def verdict(self, stage: Stage, said: Said) -> None:
        key = (stage, said.of.name, said.verdict.action, said.shadow)
        if (counter := self._verdicts.get(key)) is None:
            shadow = "true" if said.shadow else "false"
            counter = counting(VERDICTS.labels(stage.value, said.of.name, said.verdict.action.value, shadow))
            self._verdicts[key] = counter
        counter(1)


class PipelineSession:
    """One session's way through a pipeline. Made by `Pipeline.open`; methods are called in SMTP order.

    `connect` again (after XCLIENT) forgets everything, `helo` again forgets what came from HELO on.
    """

    __slots__ = ("_begun", "_edits", "_helo", "_house", "_meters", "_plan", "_session", "_slots", "_whole")

    def __init__(self, plan: Plan, house: House, meters: Meters) -> None:
        self._plan = plan
        self._house = house
        self._meters = meters
        self._slots = Slots(house.worker_slots)
        self._whole = Memo(Trace())
        self._helo = Memo(Trace())
        self._begun = 0
        self._session: Session | None = None
        self._edits: dict[Stage, tuple[Edit, ...]] = {}

    @property
    def traces(self) -> tuple[Trace, ...]:
        """What the session itself found and decided: at connect, and from HELO on. For `record.build`."""
        return self._whole.trace, self._helo.trace

    @property
    def found(self) -> tuple[Finding, ...]:
        """What was found of the session so far."""
        return *self._whole.found, *self._helo.found

    @property
    def learns(self) -> bool:
        """Whether a plugin wants to be told of endings: `tell` does it."""
        return self._house.learns

    def tell(self, ending: Ending) -> None:
        """Tell the plugins that learn from endings."""
        self._house.tell(ending)

    async def connect(self, session: Session) -> Decision:
        """The client is known."""
        self._whole.call_off()
        self._helo.call_off()
        self._whole, self._helo = Memo(Trace()), Memo(Trace())
        self._session = session
        self._edits.clear()
        return await self._judge(Stage.CONNECT, session, self._whole.trace)

    async def helo(self, session: Session) -> Decision:
        """HELO or EHLO was said."""
        self._helo.call_off()
        self._helo = Memo(Trace())
        self._edits = {stage: edits for stage, edits in self._edits.items() if stage is Stage.CONNECT}
        return await self._judge(Stage.HELO, session, self._helo.trace)

    async def auth(self, session: Session) -> Decision:
        """The client proved who it is."""
        return await self._judge(Stage.AUTH, session, self._helo.trace)

    def begin(self, txn: Transaction) -> PipelineTransaction:
        """A transaction begins; its `mail` comes next.

        A fault is not remembered from one transaction to the next, so that one failure does not poison a long
        session: those look-ups begin anew.
        """
        if self._begun:
            self._look_again(txn.session)
        self._begun += 1
        return PipelineTransaction(self, self._plan, self._house, self._meters)

    async def close(self) -> None:
        """The session is over: call off what still runs, and let those who hold something for it know."""
        await _farewell([*self._helo.call_off(), *self._whole.call_off()])
        if self._session is not None:
            self._house.hang_up(self._session)

    async def _judge(self, stage: Stage, session: Session, trace: Trace) -> Decision:
        plan = self._plan.stages[stage]
        if plan.empty:
            return PROCEEDED
        decision = await _judge(plan, self._moment(session), trace, self._meters)
        if decision.edits:
            self._edits[stage] = decision.edits
        return decision

    @property
    def edits(self) -> tuple[Edit, ...]:
        """Edits that connect, helo and auth asked for, for every message of the session."""
        return tuple(edit for edits in self._edits.values() for edit in edits)

    def _moment(self, session: Session) -> Moment:
        return Moment(self._house, self._slots, (self._whole, self._helo), session)

    def _look_again(self, session: Session) -> None:
        failed: list[Node] = []
        for memo in (self._whole, self._helo):
            for lookup in [found for found in memo.lookups.values() if found.fault]:
                del memo.lookups[lookup.node.index]
                memo.trace.forget(lookup.note)
                failed.append(lookup.node)
        moment = self._moment(session)
        for node in failed:
            moment.lookup(node)


class PipelineTransaction:
    """One transaction's way through a pipeline. Made by `PipelineSession.begin`; `trace` holds what it found itself."""

    __slots__ = ("_edits", "_house", "_memo", "_meters", "_pipeline_session", "_plan", "trace")

    def __init__(self, session: PipelineSession, plan: Plan, house: House, meters: Meters) -> None:
        self.trace = Trace()
        self._pipeline_session = session
        self._plan = plan
        self._house = house
        self._meters = meters
        self._memo = Memo(self.trace)
        self._edits: dict[Edit, None] = dict.fromkeys(session.edits)

    @property
    def traces(self) -> tuple[Trace, ...]:
        """The session's traces and this one, for `record.build`."""
        return *self._pipeline_session.traces, self.trace

    @property
    def found(self) -> tuple[Finding, ...]:
        """What was found of session, transaction and message so far; of recipients, see `Decision.found`."""
        return *self._pipeline_session.found, *self._memo.found

    @property
    def applied(self) -> tuple[Finding, ...]:
        """As `found`, without what shadow entries found: they leave no mark on a message."""
        session = self._pipeline_session
        return *session._whole.applied, *session._helo.applied, *self._memo.applied

    async def mail(self, txn: Transaction) -> Decision:
        """MAIL was given."""
        return self._keep(await self._judge(Stage.MAIL, txn))

    async def rcpt(self, txn: Transaction, recipient: Recipient) -> Decision:
        """One RCPT was given; `txn.recipients` are those accepted before it."""
        plan = self._plan.stages[Stage.RCPT]
        if plan.empty:
            return PROCEEDED
        memo = Memo(self.trace)
        try:
            decision = await _judge(plan, self._moment(txn, memo, recipient=recipient), self.trace, self._meters)
            self._keep(decision)
            return replace(decision, found=tuple(memo.found)) if self._house.learns else decision
        finally:
            memo.call_off()

    async def data(self, txn: Transaction) -> Decision:
        """DATA was given (or the first BDAT); nothing of the content is known."""
        return self._keep(await self._judge(Stage.DATA, txn))

    async def message(self, txn: Transaction, message: Message) -> Decision:
        """The whole content is there; what this decides is the final reply.

        Edits that earlier stages asked for come first.
        """
        before = tuple(self._edits)
        plan = self._plan.stages[Stage.MESSAGE]
        if plan.empty:
            return Decision(PROCEED, edits=before) if before else PROCEEDED
        return await _judge(plan, self._moment(txn, None, message=message), self.trace, self._meters, before)

    def _keep(self, decision: Decision) -> Decision:
        """Keep the edits of a stage before `message`, unless it refused. Equal ones count once."""
        if decision.edits and decision.verdict.reply is None:
            self._edits.update(dict.fromkeys(decision.edits))
        return decision

    async def close(self) -> None:
        """The transaction is over: call off what still runs, and wait a moment for it to end.

        To be called before the content is given up, which look-ups may still be reading.
        """
        await _farewell(self._memo.call_off())

    async def _judge(self, stage: Stage, txn: Transaction) -> Decision:
        plan = self._plan.stages[stage]
        if plan.empty:
            return PROCEEDED
        return await _judge(plan, self._moment(txn, None), self.trace, self._meters)

    def _moment(
        self, txn: Transaction, memo: Memo | None, *, recipient: Recipient | None = None, message: Message | None = None
    ) -> Moment:
        session = self._pipeline_session
        memos: tuple[Memo, ...] = (session._whole, session._helo, self._memo)
        if memo:
            memos += (memo,)
        return Moment(self._house, session._slots, memos, txn.session, txn, recipient, message)


async def _farewell(tasks: Sequence[asyncio.Task[Any]]) -> None:
    if tasks:
        _, stuck = await asyncio.wait(tasks, timeout=_FAREWELL)
        for task in stuck:
            _log.warning("plugin.stuck", plugin=task.get_name(), reason="it does not let itself be cancelled")


async def _judge(
    plan: StagePlan, moment: Moment, trace: Trace, meters: Meters, edits: tuple[Edit, ...] = ()
) -> Decision:
    """Begin the stage's look-ups, then give every entry its turn until one is decisive.

    `edits` are those that were asked for before.
    """
    house = moment.house
    began = house.clock.monotonic()
    ends = asyncio.get_running_loop().time() + plan.deadline
    for node in plan.begin:
        moment.lookup(node)
    deliberation = Deliberation(moment.given[1], edits)
    original = moment
    seen: tuple[Edit, ...] = ()
    for step in plan.steps:
        if seen is not deliberation.edits:
            seen = deliberation.edits
            moment = original.after(seen)
        said = await _turn(plan, step, moment, ends)
        if said is None:
            continue
        _write(plan.stage, said, moment, trace)
        meters.verdict(plan.stage, said)
        if deliberation.take(said):
            break
    meters.stage(plan.stage, house.clock.monotonic() - began)
    return deliberation.decide()


async def _turn(plan: StagePlan, step: Step, moment: Moment, ends: float) -> Said | None:
    """One entry's turn: its actions in order, then its policy. None when there is nothing to say."""
    loop = asyncio.get_running_loop()
    session, txn = moment.given[0], moment.given[1]
    entry = step.entry.applied(session, txn)
    passed_over: Said | None = None
    for node in step.acts:
        lookup = moment.begin(node)
        if not lookup.settled and not await lookup.wait(ends - loop.time()):
            lookup.cut(plan.deadline)
        if lookup.fault:
            passed_over = on_error(lookup.fault, entry, session, txn)
            if passed_over.verdict.decisive:
                return passed_over
    question = step.question
    if question is None:
        return passed_over
    arguments: list[Any] = []
    for source, optional in question.sources:
        if not isinstance(source, Node):
            arguments.append(moment.given[source])
            continue
        found = moment.lookup(source)
        if found is not None and not found.settled:
            await found.wait(ends - loop.time())
        if found is not None and (fault := _fault(found, plan)):
            said = on_error(fault, entry, session, txn)
            if said.verdict.decisive or not optional:
                return said
        value = found.value if found is not None else None
        if value is None and not optional:
            return passed_over
        arguments.append(value)
    return ask(plan.stage, entry, question.method, arguments)


def _fault(found: Lookup, plan: StagePlan) -> Fault | None:
    """The look-up's fault; for one that is not done by now, that of the entry it waits for."""
    if found.settled:
        return found.fault
    awaited = found.awaited()
    awaited.overdue(plan.deadline)
    return Fault(awaited.node.entry, FaultKind.DEADLINE, f"not done within {plan.deadline:g}s")


def _write(stage: Stage, said: Said, moment: Moment, trace: Trace) -> None:
    note: dict[str, Any] = {
        "stage": stage.value,
        "plugin": said.of.name,
        "policy": said.policy,
        "version": said.version,
        **said.verdict.to_json(),
        "shadow": said.shadow,
    }
    if len(moment.memos) > Scope.RECIPIENT and (recipient := moment.given[2]):
        note["recipient"] = str(recipient.address)
    trace.verdict(note)
