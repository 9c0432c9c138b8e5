"""One look-up: a finder run once, in its bounds, ending in a finding or in a fault.

*Promises*: every look-up that began is settled, by its finder, by its entry's timeout or by whoever calls it off, even
when the plugin does not let itself be cancelled. Raising, timing out and answering garbage are one kind of end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from gateway.ops import log
from gateway.pipeline.plan import Entry, Node, OnError, Scope
from gateway.pipeline.record import Trace
from gateway.sdk.findings import Finding
from gateway.sdk.running import RUNNING
from gateway.sdk.services import StateError

if TYPE_CHECKING:
    from gateway.mail.edit import Edit
    from gateway.mail.envelope import Recipient
    from gateway.mail.session import Session
    from gateway.pipeline.house import House, Slots
    from gateway.sdk.stage import Message, Transaction

_DETAIL: Final = 300

_log = log.get()


class FaultKind(StrEnum):
    """How a look-up failed."""

    ERROR = "error"
    TIMEOUT = "timeout"
    GARBAGE = "garbage"
    """It answered something that is not the finding it had promised."""
    BREAKER = "breaker"
    """Not begun: it failed too often just now."""
    DEADLINE = "deadline"
    """The stage was over before it was done."""
    DEPENDENCY = "dependency"
    """Not begun: something it needs failed."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A failed look-up. `entry` is the one at fault, whose `on_error` decides."""

    entry: Entry
    kind: FaultKind
    detail: str
    halfway: bool = False
    """It had begun to change the message: only a deferral is safe."""

    def __str__(self) -> str:
        return f"{self.entry.name}: {self.kind}: {self.detail}" if self.detail else f"{self.entry.name}: {self.kind}"


class Absent(StrEnum):
    """What may stand in place of a finding where findings are given instead of looked up."""

    MISSING = "missing"
    """There was nothing to find."""
    FAILED = "failed"
    """It could not be found out: the entry's `on_error` decides."""


class Memo:
    """The look-ups of one scope by node number, and the trace they are written to."""

    __slots__ = ("lookups", "trace")

    def __init__(self, trace: Trace) -> None:
        self.lookups: dict[int, Lookup] = {}
        self.trace = trace

    @property
    def found(self) -> list[Finding]:
        """What was found so far, in the order of the pipeline's plan."""
        return [found.value for found in self._settled() if found.value is not None]

    @property
    def applied(self) -> list[Finding]:
        """As `found`, without what entries found that are in shadow, or are not enforced for all."""
        found = self._settled()
        entries = ((one.value, one.node.entry) for one in found)
        return [value for value, entry in entries if value is not None and not (entry.shadow or entry.rollout)]

    def _settled(self) -> Sequence[Lookup]:
        return [found for _, found in sorted(self.lookups.items())] if self.lookups else ()

    def call_off(self) -> list[asyncio.Task[Any]]:
        """Call off what is not settled and forget all; gives the tasks, which may need a moment to end."""
        tasks = [found.call_off() for found in self.lookups.values() if not found.settled]
        self.lookups.clear()
        return tasks


class Moment:
    """What is known when a stage is reached: the inputs in the order of `plan.INPUTS`, and the memos by scope."""

    __slots__ = ("given", "house", "memos", "slots")

    def __init__(
        self,
        house: House,
        slots: Slots,
        memos: tuple[Memo, ...],
        session: Session,
        txn: Transaction | None = None,
        recipient: Recipient | None = None,
        message: Message | None = None,
    ) -> None:
        self.house = house
        self.slots = slots
        self.memos = memos
        self.given = (session, txn, recipient, message, None)

    def after(self, edits: Sequence[Edit]) -> Moment:
        """The same moment with the message as these edits leave it, for those whose turn comes after them."""
        session, txn, recipient, message, _ = self.given
        edited = message.edited(edits) if message is not None else None
        return Moment(self.house, self.slots, self.memos, session, txn, recipient, edited)

    def lookup(self, node: Node) -> Lookup | None:
        """The node's look-up, begun if it was not. None for an action whose turn has not come: it never jumps it."""
        found = self.memos[node.scope].lookups.get(node.index)
        if found is None and not node.finder.acts:
            found = self.begin(node)
        return found

    def begin(self, node: Node) -> Lookup:
        """Begin the node's look-up, and before it those it needs."""
        given = self.house.fixed.get(node.finder.finding)
        for source in node.sources if given is None else ():
            if isinstance(source, Node):
                self.lookup(source)
        memo = self.memos[node.scope]
        lookup = memo.lookups[node.index] = Lookup(node, self, given)
        memo.trace.finding(lookup.note)
        return lookup


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Lookup:
    """One run of a finder. Settled with neither value nor fault, there is nothing to know: it was not its turn."""

    __slots__ = (
        "_began",
        "_halfway",
        "_holds_slot",
        "_moment",
        "_overdue",
        "_permit",
        "_task",
        "_timer",
        "_waiters",
        "fault",
        "node",
        "note",
        "settled",
        "value",
    )

    def __init__(self, node: Node, moment: Moment, given: Finding | Absent | None = None) -> None:
        """With `given` there is nothing to look up."""
        self.node = node
        self.value = None if isinstance(given, Absent) else given
        self.fault: Fault | None = None
        self.settled = given is not None
        self.note: dict[str, Any] = {
            "stage": node.stage.value,
            "plugin": node.entry.name,
            "finding": node.finder.finding.__name__,
        }
        if node.scope is Scope.RECIPIENT:
            self.note["recipient"] = str(moment.given[2].address) if moment.given[2] else ""
        self._moment = moment
        self._began: float | None = None
        self._halfway = self._overdue = False
        self._permit = 0
        self._holds_slot = False
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[None]] = []
        if given is not None:
            self.note.update(given=True, ms=0.0)
            self._settle_given(given)
        elif node.shortcut is None or not self._cut_short(node.shortcut):
            self._task = moment.house.tasks.start(self._run(), name=node.label)

    def _settle_given(self, given: Finding | Absent) -> None:
        match given:
            case Absent.MISSING:
                self.note["missing"] = True
            case Absent.FAILED:
                self.fault = Fault(self.node.entry, FaultKind.ERROR, "it is given as failed")
                self.note.update(fault=self.fault.kind.value, detail=self.fault.detail)
            case Finding():
                self.note["value"] = given.to_json()

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is settled, at most so long; says whether it is. Does not end it."""
        if not self.settled and (seconds is None or seconds > 0):
            loop = asyncio.get_running_loop()
            # One for each who waits: who is cancelled cancels nobody else's wait.
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiters.append(waiter)
            timer = None if seconds is None else loop.call_later(seconds, _wake, waiter)
            try:
                await waiter
            finally:
                if timer is not None:
                    timer.cancel()
        return self.settled

    def awaited(self) -> Lookup:
        """The look-up that this one really waits for: itself once it runs, else one it needs."""
        if self._began is None:
            for source in self.node.sources:
                found = self._moment.lookup(source) if isinstance(source, Node) else None
                if found is not None and not found.settled:
                    return found.awaited()
        return self

    def overdue(self, deadline: float) -> None:
        """A stage of `deadline` seconds went on without it, and it may still be done.

        When it is called off instead, that counts against its entry if the stage's time was its own: else a service
        that hangs would never open its breaker where the entry's timeout is longer than the stage.
        """
        ran = self._ran()
        self._overdue = ran is not None and ran * 2 >= deadline

    def cut(self, deadline: float) -> Fault:
        """End it because its stage of `deadline` seconds is over."""
        awaited = self.awaited()
        ran = self._ran()
        detail = f"not done within {deadline:g}s"
        fault = Fault(awaited.node.entry, FaultKind.DEADLINE, detail, awaited._halfway)
        # It is to blame only if the stage's time was its own and not spent by others before it.
        self._settle(fault=fault, blame=ran is not None and ran * 2 >= deadline)
        self._report(fault, None)
        self._task.cancel()
        return fault

    # What its finder may say of itself: `gateway.sdk.running`.

    def progress(self) -> None:
        """It gets on: its timeout begins anew."""
        if self._timer is not None and not self.settled:
            self._timer.cancel()
            self._start_timer()

    def edit_begun(self) -> None:
        """From now on it can only succeed, or defer."""
        self._halfway = True

    def call_off(self) -> asyncio.Task[Any]:
        """End it because nobody wants it any more."""
        self._settle(quiet=True, blame=self._overdue)
        self._task.cancel()
        return self._task

    def _cut_short(self, shortcut: Callable[..., Finding | None]) -> bool:
        """Try the finder's shortcut; says whether that was all. It runs in the task of whoever began this."""
        arguments = self._arguments()
        if isinstance(arguments, Lookup):
            return False
        if arguments is None or not self._permitted():
            return True
        self._began = self._moment.house.clock.monotonic()
        before = RUNNING.set(self)
        try:
            value = shortcut(*arguments)
            if value is None:
                self._moment.house.breaker(self.node).withdrawn(self._permit)
                self._permit, self._began = 0, None
                return False
            self._take(value)
        except asyncio.CancelledError:
            self._fail(FaultKind.ERROR, "it was cancelled from within")
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises is a fault of its entry, and logged
            self._raised(error)
        finally:
            RUNNING.reset(before)
        return True

    async def _run(self) -> None:
        try:
            await self._find()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.settled or (task and task.cancelling()):
                self._settle(quiet=True)
                raise
            self._fail(FaultKind.ERROR, "it was cancelled from within")
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises is a fault of its entry, and logged
            self._raised(error)

    async def _find(self) -> None:
        while isinstance(arguments := self._arguments(), Lookup):
            await arguments.wait()
        if arguments is None or not self._permitted():
            return
        await self._moment.slots.take()
        self._holds_slot = True
        self._began = self._moment.house.clock.monotonic()
        self._start_timer()
        RUNNING.set(self)
        self._take(await self.node.method(*arguments))

    def _take(self, value: object) -> None:
        """What the finder has given."""
        if self.settled:
            return
        if not isinstance(value, self.node.finder.finding):
            expected = self.node.finder.finding.__name__
            self._fail(FaultKind.GARBAGE, f"it answered {type(value).__name__} instead of {expected}")
            return
        self.note["value"] = value.to_json()
        self._settle(value=value)

    def _raised(self, error: Exception) -> None:
        """What the finder has raised. Trouble of somebody outside is no bug: where it was raised tells nothing."""
        outside = isinstance(error, (StateError, OSError))
        self._fail(FaultKind.ERROR, f"{type(error).__name__}: {error}", None if outside else error)

    def _permitted(self) -> bool:
        """Whether the breaker lets it begin; if not, it is settled."""
        self._permit = self._moment.house.breaker(self.node).ask()
        if not self._permit:
            self._settle(fault=Fault(self.node.entry, FaultKind.BREAKER, "it failed too often just now"))
        return bool(self._permit)

    def _arguments(self) -> list[Any] | Lookup | None:
        """What the finder takes, or the look-up to wait for first.

        None when it is not to be had, and then this look-up is settled too.
        """
        arguments: list[Any] = []
        for source, optional in zip(self.node.sources, self.node.finder.optional, strict=True):
            if not isinstance(source, Node):
                arguments.append(self._moment.given[source])
                continue
            needed = self._moment.lookup(source)
            if needed is not None and not needed.settled:
                return needed
            value = needed.value if needed is not None else None
            if value is None and not (optional and self._forgiven(needed)):
                self._settle(fault=needed.fault if needed else None)
                return None
            arguments.append(value)
        return arguments

    def _forgiven(self, needed: Lookup | None) -> bool:
        """Whether one can go on without it: there was nothing to find, or its owner wants to proceed when it fails.

        So does one in shadow, whatever it says: else its failure would keep others from looking.
        """
        if needed is None or needed.fault is None:
            return True
        session, txn, *_ = self._moment.given
        owner = needed.fault.entry.applied(session, txn)
        return owner.shadow or owner.on_error is OnError.PROCEED

    def _start_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.node.entry.timeout, self._expire)

    def _expire(self) -> None:
        self._fail(FaultKind.TIMEOUT, f"no answer within {self.node.entry.timeout:g}s")
        self._task.cancel()

    def _fail(self, kind: FaultKind, detail: str, error: Exception | None = None) -> None:
        if not self.settled:
            fault = Fault(self.node.entry, kind, detail[:_DETAIL], self._halfway)
            self._settle(fault=fault, blame=True)
            self._report(fault, error)

    def _ran(self) -> float | None:
        return None if self._began is None else max(0.0, self._moment.house.clock.monotonic() - self._began)

    def _settle(
        self, *, value: Finding | None = None, fault: Fault | None = None, blame: bool = False, quiet: bool = False
    ) -> None:
        """The end, whichever comes first. `blame` counts it against the entry; `quiet` leaves the note open."""
        if self.settled:
            return
        self.settled = True
        self.value, self.fault = value, fault
        if self._timer:
            self._timer.cancel()
        if self._holds_slot:
            self._moment.slots.give()
        if self._permit:
            self._tell_breaker(blame)
        if not quiet:
            self._write()
        for waiter in self._waiters:
            _wake(waiter)

    def _tell_breaker(self, blame: bool) -> None:
        breaker = self._moment.house.breaker(self.node)
        if self.value is not None and not self.value.idle():
            breaker.passed(self._permit)
        elif blame:
            breaker.failed(self._permit)
        else:
            breaker.withdrawn(self._permit)

    def _write(self) -> None:
        """Complete the note in the trace, and count."""
        ran = self._ran()
        self.note["ms"] = round((ran or 0.0) * 1000, 2)
        outcome = "ok"
        if self.fault:
            own = self.fault.entry is self.node.entry
            self.note["fault"] = outcome = (self.fault.kind if own else FaultKind.DEPENDENCY).value
            self.note["detail"] = self.fault.detail if own else str(self.fault)
        elif self.value is None:
            self.note["missing"] = True
            outcome = "missing"
        self._moment.house.count(self.node, outcome, ran)

    def _report(self, fault: Fault, error: Exception | None) -> None:
        """One warning per fault; a plugin that goes on failing is silenced by its breaker."""
        session, txn, *_ = self._moment.given
        _log.warning(
            "plugin.fault",
            plugin=fault.entry.name,
            stage=self.node.stage.value,
            fault=fault.kind.value,
            reason=fault.detail,
            session=session.id,
            id=txn.id if txn else session.id,
            exc_info=error,
        )
