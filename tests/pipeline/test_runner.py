"""Running a pipeline: order, memory, faults, shadow, deadlines."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest
import structlog

from gateway.mail.address import Address
from gateway.mail.session import Session
from gateway.pipeline.decision import PROCEEDED
from gateway.pipeline.loader import StageDeadlines
from gateway.sdk import (
    PROCEED,
    Action,
    AddHeader,
    Answer,
    DnsStatus,
    Ending,
    Message,
    Outcome,
    Plugin,
    Policy,
    Recipient,
    Stage,
    StateError,
    Transaction,
    Verdict,
    accept,
    annotate,
    defer,
    finds,
    quarantine,
    reject,
)
from gateway.services.clock import SystemClock
from tests.pipeline.quick import run
from tests.pipeline.setting import (
    SESSION,
    A,
    B,
    C,
    Counter,
    D,
    E,
    Flow,
    finder,
    hook,
    make,
    plugin,
    policy,
    proceeding,
    rejecting,
)

CONNECT, HELO, MAIL, RCPT, DATA, MESSAGE = (s for s in Stage if s is not Stage.AUTH)
FINDINGS = (A, B, C, D, E)


def test_list_order_wins_whatever_finishes_first() -> None:
    dice = random.Random(5321)

    def slow(kind: type) -> Any:
        async def work(*given: Any) -> Any:
            for _ in range(dice.randrange(8)):
                await asyncio.sleep(0)
            return kind()

        return work

    things = [
        plugin(
            f"p{i}",
            finder(CONNECT, kind, [Session], slow(kind)),
            policy=policy(f"p{i}", hook(MAIL, [kind], lambda f, i=i: reject("7.1", f"p{i}") if i >= 2 else PROCEED)),
        )
        for i, kind in enumerate(FINDINGS)
    ]

    async def once(flow: Flow) -> tuple[str, str]:
        flow.session = flow.pipeline.open()
        flow.txn = None
        await flow.connect()
        await flow.helo()
        decision = await flow.mail()
        assert flow.txn
        await flow.txn.close()
        await flow.session.close()
        return decision.entry, str(decision.verdict.reply)

    async def scenario() -> set[tuple[str, str]]:
        flow = Flow([f"p{i}" for i in range(5)], *things)
        return {await once(flow) for _ in range(1000)}

    assert run(scenario()) == {("p2", "550 5.7.1 p2")}


class SlowDns:
    """Every answer takes 50 ms."""

    def __init__(self) -> None:
        self.asked = 0

    async def lookup(self, name: str, rdtype: str) -> Answer:
        self.asked += 1
        await asyncio.sleep(0.05)
        return Answer(DnsStatus.NXDOMAIN)


def test_five_lookups_of_50_ms_take_less_than_100_ms_together() -> None:
    def asking(kind: type, stage: Stage, *inputs: type) -> Any:
        async def find(self: Plugin, *given: Any) -> Any:
            await self.services.dns.lookup("example.org", "A")
            return kind()

        given = finder(stage, kind, inputs)
        space: dict[str, Any] = {"find": find}
        names = ", ".join(f"given{i}" for i in range(len(inputs)))
        exec(f"async def asks(self, {names}):\n    return await find(self, {names})", space)
        space["asks"].__annotations__ = {**given.__annotations__}
        return finds(stage)(space["asks"])

    things = [
        plugin(f"p{i}", asking(kind, MAIL, Session, Transaction), policy=proceeding(f"p{i}", RCPT, kind))
        for i, kind in enumerate(FINDINGS)
    ]
    dns = SlowDns()

    async def scenario() -> float:
        flow = Flow([f"p{i}" for i in range(5)], *things, clock=SystemClock(), dns=dns)
        began = time.perf_counter()
        decisions = await flow.whole()
        took = time.perf_counter() - began
        assert all(d is PROCEEDED for d in decisions)
        await flow.close()
        return took

    # The best of three: a busy machine may be late, but it is never early.
    took = min(asyncio.run(scenario()) for _ in range(3))
    assert dns.asked == 15
    assert 0.045 < took < 0.1


def test_an_empty_pipeline_proceeds_everywhere() -> None:
    async def scenario() -> None:
        flow = Flow([])
        assert flow.pipeline.empty
        assert all(d is PROCEEDED for d in await flow.whole())
        await flow.close()

    run(scenario())


@pytest.mark.parametrize(
    ("stage", "inputs", "calls"),
    [
        (CONNECT, [Session], 1),
        (HELO, [Session], 2),
        (MAIL, [Session], 2),
        (MAIL, [Transaction], 4),
        (RCPT, [Transaction], 4),
        (RCPT, [Recipient], 8),
        (RCPT, [Session], 2),
        (DATA, [Transaction], 4),
        (MESSAGE, [Message], 4),
    ],
)
def test_a_finding_is_looked_up_once_in_the_scope_of_its_inputs(stage: Stage, inputs: list[type], calls: int) -> None:
    """Two HELOs, two transactions after each, two recipients in each, and several policies that all ask."""
    work = Counter(A())
    later = [s for s in (RCPT, MESSAGE) if list(Stage).index(s) >= list(Stage).index(stage)]
    if Recipient in inputs:
        later = [RCPT]
    asking = [policy(f"q{i}", *(hook(s, [A], lambda a: PROCEED) for s in later)) for i in range(3)]

    async def scenario() -> None:
        flow = Flow(["p", "q0", "q1", "q2"], plugin("p", finder(stage, A, inputs, work)), *asking)
        await flow.connect()
        for _ in range(2):
            await flow.helo()
            for _ in range(2):
                await flow.mail()
                await flow.rcpt()
                await flow.rcpt()
                await flow.data()
                await flow.message()
            assert flow.txn
            await flow.txn.close()
            flow.txn = None
        await flow.close()

    run(scenario())
    assert work.calls == calls


def test_connecting_again_forgets_what_was_found_of_the_first_client() -> None:
    work = Counter(A())

    async def scenario() -> None:
        flow = Flow(["p"], plugin("p", finder(CONNECT, A, [Session], work), policy=proceeding("p", CONNECT, A)))
        await flow.connect()
        await flow.connect()
        assert [len(trace.findings) for trace in flow.session.traces] == [1, 0]
        await flow.close()

    run(scenario())
    assert work.calls == 2


def test_finders_get_the_findings_they_need_each_looked_up_once() -> None:
    base = Counter(A(7))
    seen: list[Any] = []

    async def add(a: A) -> B:
        return B(a.value + 1)

    async def sum_up(a: A, b: B) -> C:
        return C(a.value + b.value)

    last = policy("last", hook(MESSAGE, [C], lambda c: seen.append(c) or PROCEED))
    things = [
        plugin("sum", finder(CONNECT, C, [A, B], sum_up)),
        plugin("add", finder(CONNECT, B, [A], add)),
        plugin("base", finder(CONNECT, A, [Session], base)),
        last,
    ]

    async def scenario() -> None:
        flow = Flow(["sum", "add", "base", "last"], *things)
        await flow.whole()
        await flow.close()

    run(scenario())
    assert seen == [C(15)]
    assert base.calls == 1


def test_a_finder_that_needs_a_later_finding_begins_when_that_is_known() -> None:
    seen: list[Any] = []

    async def of_mail(txn: Transaction) -> A:
        return A(len(str(txn.sender)))

    async def early(session: Session, a: A) -> B:
        return B(a.value)

    things = [
        plugin("early", finder(CONNECT, B, [Session, A], early)),
        plugin("mail", finder(MAIL, A, [Transaction], of_mail)),
        policy("last", hook(RCPT, [B], lambda b: seen.append(b) or PROCEED)),
    ]

    async def scenario() -> None:
        flow = Flow(["early", "mail", "last"], *things)
        await flow.whole()
        await flow.close()

    run(scenario())
    assert seen == [B(len("anna@example.net"))]


def test_an_action_does_not_run_after_a_decisive_verdict() -> None:
    work = Counter(A())
    things = [rejecting("no", RCPT), plugin("p", finder(RCPT, A, [Recipient], work, does=True))]

    async def scenario() -> None:
        flow = Flow(["no", "p"], *things)
        assert (await flow.whole())[3].entry == "no"
        await flow.close()

    run(scenario())
    assert work.calls == 0


def test_actions_run_in_list_order_and_one_at_a_time() -> None:
    log: list[str] = []

    def act(name: str) -> Any:
        async def work(*given: Any) -> A:
            log.append(f"{name} begins")
            await asyncio.sleep(0.01)
            log.append(f"{name} ends")
            return A()

        return work

    things = [plugin(n, finder(MESSAGE, A, [Message], act(n), does=True)) for n in ("one", "two")]

    async def scenario() -> None:
        flow = Flow(["two", "one"], *things)
        await flow.whole()
        await flow.close()

    run(scenario())
    assert log == ["two begins", "two ends", "one begins", "one ends"]


def test_a_hook_whose_action_was_skipped_is_not_asked() -> None:
    """An accept at connect skips the action behind it; a later stage that wants its finding has nothing to ask."""
    work = Counter(A())
    things = [
        policy("yes", hook(CONNECT, [], lambda: accept("known"))),
        plugin("p", finder(CONNECT, A, [Session], work, does=True), policy=rejecting("p", MAIL, A)),
    ]

    async def scenario() -> None:
        flow = Flow(["yes", "p"], *things)
        decisions = await flow.whole()
        assert decisions[0].verdict.action is Action.ACCEPT
        assert decisions[2] is PROCEEDED
        await flow.close()

    run(scenario())
    assert work.calls == 0


def test_a_look_up_that_needs_an_action_waits_for_its_turn() -> None:
    seen: list[Any] = []

    async def double(a: A) -> B:
        return B(2 * a.value)

    things = [
        plugin("acts", finder(MESSAGE, A, [Message], Counter(A(4)), does=True)),
        plugin("double", finder(CONNECT, B, [A], double)),
        policy("last", hook(MESSAGE, [B], lambda b: seen.append(b) or PROCEED)),
    ]

    async def scenario() -> None:
        flow = Flow(["double", "acts", "last"], *things)
        await flow.whole()
        await flow.close()

    run(scenario())
    assert seen == [B(8)]


def test_a_shadow_entry_is_recorded_and_not_applied() -> None:
    work = Counter(A())
    header = AddHeader("X-Shadow", "1")
    things = [
        plugin(
            "p",
            finder(MESSAGE, A, [Message], work, does=True),
            policy=policy("p", hook(MESSAGE, [A], lambda a: quarantine("looks bad", header))),
        ),
        policy("q", hook(MESSAGE, [], lambda: annotate(AddHeader("X-Real", "1")))),
    ]

    async def scenario() -> None:
        flow = Flow([{"p": None, "shadow": True}, "q"], *things)
        decision = (await flow.whole())[5]
        assert decision.verdict is PROCEED
        assert decision.edits == (AddHeader("X-Real", "1"),)
        assert flow.txn
        notes = [(v["plugin"], v["action"], v["shadow"]) for v in flow.txn.trace.verdicts]
        assert notes == [("p", "quarantine", True), ("q", "proceed", False)]
        await flow.close()

    run(scenario())
    assert work.calls == 1


def test_a_failing_shadow_entry_makes_nobody_defer() -> None:
    things = [plugin("p", finder(MAIL, A, [Session], Counter(OSError("gone")))), rejecting("q", MAIL, A)]
    optional = policy("r", hook(MAIL, [A | None], lambda a: reject("7.1", "seen") if a else PROCEED))

    async def scenario() -> None:
        flow = Flow([{"p": None, "shadow": True}, "q", "r"], *things, optional)
        assert (await flow.whole())[2] is PROCEEDED
        await flow.close()

    run(scenario())


def test_edits_of_all_applied_verdicts_come_in_list_order_up_to_the_decisive_one() -> None:
    def adding(name: str, decisive: bool) -> type[Policy]:
        edit = AddHeader("X-From", name)
        return policy(name, hook(MESSAGE, [], lambda: accept("", edit) if decisive else annotate(edit)))

    things = [adding("one", False), adding("two", False), adding("three", True), adding("four", False)]

    async def scenario() -> None:
        flow = Flow(["two", "one", "three", "four"], *things)
        decision = (await flow.whole())[5]
        assert (decision.entry, decision.verdict.action) == ("three", Action.ACCEPT)
        assert [e.value for e in decision.edits if isinstance(e, AddHeader)] == ["two", "one", "three"]
        await flow.close()

    run(scenario())


FAULTS = {
    "raises": Counter(OSError("no route")),
    "hangs": Counter(A(), seconds=3600),
    "answers garbage": Counter("not a finding"),
    "answers nothing": Counter(None),
}
KINDS = {"raises": "error", "hangs": "timeout", "answers garbage": "garbage", "answers nothing": "garbage"}


@pytest.mark.parametrize("does", [False, True], ids=["look-up", "action"])
@pytest.mark.parametrize(
    ("on_error", "reply"),
    [("proceed", None), ("defer", "451 4.3.0 try again later"), ("reject", "554 5.3.0 cannot be taken")],
)
@pytest.mark.parametrize("fault", FAULTS)
def test_raise_timeout_and_garbage_take_the_road_of_on_error(
    fault: str, on_error: str, reply: str | None, does: bool
) -> None:
    thing = plugin("p", finder(MAIL, A, [Transaction], FAULTS[fault], does=does), policy=rejecting("p", MAIL, A))

    async def scenario() -> None:
        flow = Flow([{"p": {}, "timeout": "5s", "on_error": on_error}], thing)
        decision = (await flow.whole())[2]
        assert flow.txn
        (note,) = flow.txn.trace.findings
        assert (note["fault"], note["plugin"], note["stage"]) == (KINDS[fault], "p", "mail")
        (verdict,) = flow.txn.trace.verdicts
        assert verdict["policy"] == "on_error"
        assert verdict["reason"].startswith(f"p: {KINDS[fault]}")
        if reply is None:
            assert decision is PROCEEDED
        else:
            assert (str(decision.verdict.reply), decision.entry, decision.policy) == (reply, "p", "on_error")
        await flow.close()

    run(scenario())


@pytest.mark.parametrize(
    ("error", "shown"), [(StateError("locked"), False), (ConnectionError("gone"), False), (ValueError("bug"), True)]
)
def test_only_what_may_be_a_bug_is_logged_with_where_it_was_raised(error: Exception, shown: bool) -> None:
    thing = plugin("p", finder(MAIL, A, [Transaction], Counter(error)), policy=rejecting("p", MAIL, A))

    async def scenario() -> None:
        flow = Flow(["p"], thing)
        decision = (await flow.whole())[2]
        assert decision.verdict.reason == f"p: error: {type(error).__name__}: {error}"
        await flow.close()

    with structlog.testing.capture_logs() as logs:
        run(scenario())
    (fault,) = [log for log in logs if log["event"] == "plugin.fault"]
    assert (fault["exc_info"] is error) == shown


def test_a_missing_finding_is_none_where_the_policy_says_it_may_be() -> None:
    seen: list[Any] = []
    last = policy("last", hook(MAIL, [A | None, B | None], lambda a, b: seen.append((a, b)) or PROCEED))
    thing = plugin("p", finder(MAIL, A, [Transaction], Counter(OSError())))

    async def scenario() -> None:
        flow = Flow([{"p": {}, "on_error": "proceed"}, "last"], thing, last)
        assert (await flow.whole())[2] is PROCEEDED
        await flow.close()

    run(scenario())
    assert seen == [(None, None)]


def test_a_fault_is_decided_by_the_owner_of_the_entry_at_fault_not_of_the_one_that_needed_it() -> None:
    things = [
        plugin("base", finder(MAIL, A, [Transaction], Counter(OSError("gone")))),
        plugin("next", finder(MAIL, B, [A]), policy=rejecting("next", MAIL, B)),
    ]

    async def scenario(on_error: str) -> Any:
        flow = Flow([{"base": {}, "on_error": on_error}, {"next": {}, "on_error": "reject"}], *things)
        decision = (await flow.whole())[2]
        assert flow.txn
        assert [n["fault"] for n in flow.txn.trace.findings] == ["error", "dependency"]
        await flow.close()
        return decision

    assert run(scenario("proceed")) is PROCEEDED
    decision = run(scenario("defer"))
    assert (decision.verdict.action, decision.entry) == (Action.DEFER, "base")


def test_a_failed_finding_that_no_policy_needs_decides_nothing() -> None:
    thing = plugin("p", finder(MAIL, A, [Transaction], Counter(OSError())), policy=rejecting("p", MAIL, A))

    async def scenario() -> None:
        flow = Flow([{"p": {}, "policy": "none"}], thing)
        assert (await flow.whole())[2] is PROCEEDED
        await flow.close()

    run(scenario())


def test_one_fault_does_not_poison_the_session() -> None:
    """The look-up failed in the first transaction; the second one looks again."""

    class Recovering(Counter):
        async def __call__(self, *given: Any) -> Any:
            await super().__call__()
            if self.calls == 1:
                raise OSError("busy")
            return A()

    work = Recovering(A())
    thing = plugin("p", finder(CONNECT, A, [Session], work), policy=proceeding("p", MAIL, A))

    async def scenario() -> None:
        flow = Flow(["p"], thing)
        assert (await flow.whole())[2].verdict.action is Action.DEFER
        assert await flow.mail() is PROCEEDED
        assert await flow.mail() is PROCEEDED
        assert flow.txn
        assert [n.get("value") for t in flow.txn.traces for n in t.findings] == [{"value": 1}]
        await flow.close()

    run(scenario())
    assert work.calls == 2


def _raises() -> Verdict:
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("stage", "judge"),
    [
        (MAIL, _raises),
        (MAIL, lambda: None),
        (MAIL, lambda: "reject"),
        (MESSAGE, lambda: annotate(AddHeader("X-Bad", "a\r\nBcc: everybody"))),
        (MESSAGE, lambda: Verdict(Action.PROCEED, edits=("not an edit",))),  # type: ignore[arg-type]
        (MESSAGE, lambda: Verdict(Action.REJECT)),
        (MESSAGE, lambda: reject("7.1", "no", code=450)),
    ],
)
def test_a_broken_policy_defers(stage: Stage, judge: Any) -> None:
    async def scenario() -> None:
        flow = Flow(["broken"], policy("broken", hook(stage, [], judge)))
        decision = (await flow.whole())[2 if stage is MAIL else 5]
        assert str(decision.verdict.reply) == "451 4.3.0 try again later"
        assert decision.edits == ()
        assert "broken failed" in decision.verdict.reason
        await flow.close()

    run(scenario())


def test_a_stage_ends_at_its_deadline_on_the_road_of_the_entry_waited_for() -> None:
    things = [
        plugin("quick", finder(MAIL, A, [Transaction]), policy=proceeding("quick", MAIL, A)),
        plugin("slow", finder(MAIL, B, [Transaction], Counter(B(), seconds=100)), policy=proceeding("slow", MAIL, B)),
        plugin("slower", finder(MAIL, C, [Transaction], Counter(C(), 200)), policy=rejecting("slower", MAIL, C)),
    ]

    async def scenario(on_error: str) -> tuple[Any, float]:
        slow = {"slow": {}, "timeout": "5m", "on_error": on_error}
        slower = {"slower": {}, "timeout": "5m"}
        flow = Flow(["quick", slow, slower], *things, deadlines=StageDeadlines(mail=2.0))
        await flow.connect()
        began = asyncio.get_running_loop().time()
        decision = await flow.mail()
        took = asyncio.get_running_loop().time() - began
        await flow.close()
        return decision, took

    decision, took = run(scenario("defer"))
    assert (decision.verdict.action, decision.entry, took) == (Action.DEFER, "slow", 2.0)
    assert decision.verdict.reason == "slow: deadline: not done within 2s"
    decision, took = run(scenario("proceed"))
    assert (decision.verdict.action, decision.entry, took) == (Action.DEFER, "slower", 2.0)


def test_a_look_up_that_missed_one_stage_may_serve_the_next() -> None:
    work = Counter(A(), seconds=5)
    asking = policy(
        "p", *(hook(s, [A | None], lambda a: reject("7.1", "known") if a else PROCEED) for s in (MAIL, RCPT))
    )

    async def scenario() -> None:
        entry = {"p": {}, "timeout": "1m", "on_error": "proceed"}
        flow = Flow(
            [entry], plugin("p", finder(MAIL, A, [Session], work), policy=asking), deadlines=StageDeadlines(mail=2)
        )
        assert await flow.mail() is PROCEEDED
        assert (await flow.rcpt()).entry == "p"
        await flow.close()

    run(scenario())
    assert work.calls == 1


def test_the_deadline_blames_what_an_action_was_waiting_for() -> None:
    things = [
        plugin("base", finder(MAIL, A, [Transaction], Counter(A(), seconds=100))),
        plugin("act", finder(MAIL, B, [A], does=True)),
    ]

    async def scenario() -> None:
        entries = [{"base": {}, "timeout": "5m", "on_error": "proceed"}, {"act": {}, "on_error": "reject"}]
        flow = Flow(entries, *things, deadlines=StageDeadlines(mail=1))
        assert await flow.mail() is PROCEEDED
        assert flow.txn
        assert flow.txn.trace.verdicts[0]["reason"] == "base: deadline: not done within 1s"
        await flow.close()

    run(scenario())


def test_a_plugin_that_does_not_let_itself_be_cancelled_holds_up_nobody() -> None:
    async def stubborn(*given: Any) -> A:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if asyncio.get_running_loop().time() > 100:
                    raise

    thing = plugin("p", finder(MAIL, A, [Transaction], stubborn, does=True))

    async def scenario() -> None:
        flow = Flow([{"p": {}, "timeout": "2s"}], thing)
        decision = await flow.mail()
        assert asyncio.get_running_loop().time() == 2.0
        assert decision.verdict.reason == "p: timeout: no answer within 2s"
        assert flow.txn
        await flow.txn.close()
        assert asyncio.get_running_loop().time() <= 3.0
        await asyncio.sleep(200)
        await flow.close()

    run(scenario())


def test_a_plugin_that_is_cancelled_from_within_is_a_fault_and_not_the_end_of_the_session() -> None:
    async def work(*given: Any) -> A:
        raise asyncio.CancelledError

    thing = plugin("p", finder(MAIL, A, [Transaction], work), policy=proceeding("p", MAIL, A))

    async def scenario() -> None:
        flow = Flow(["p"], thing)
        decision = await flow.mail()
        assert decision.verdict.reason == "p: error: it was cancelled from within"
        await flow.close()

    run(scenario())


def test_closing_calls_off_what_still_runs() -> None:
    ended: list[str] = []

    def work(name: str) -> Any:
        async def long(*given: Any) -> A:
            try:
                await asyncio.sleep(3600)
            finally:
                ended.append(name)
            return A()

        return long

    things = [
        plugin("session", finder(CONNECT, A, [Session], work("session"))),
        plugin("txn", finder(MAIL, B, [Transaction], work("txn"))),
        plugin("rcpt", finder(RCPT, C, [Recipient], work("rcpt"))),
    ]

    async def scenario() -> None:
        flow = Flow([{name: {}, "timeout": "10m"} for name in ("session", "txn", "rcpt")], *things)
        await flow.whole()
        await asyncio.sleep(0)
        assert flow.txn
        await flow.txn.close()
        assert ended == ["txn"]  # the recipient's was called off before it got to run
        await flow.session.close()
        assert ended == ["txn", "session"]
        assert asyncio.get_running_loop().time() == 0
        await flow.pipeline.close()

    run(scenario())


def test_a_cancelled_stage_leaves_a_look_up_to_others_who_wait_for_it() -> None:
    work = Counter(A(), seconds=1)
    things = [
        plugin("p", finder(CONNECT, A, [Session], work), policy=rejecting("p", CONNECT, A)),
        rejecting("q", MAIL, A),
    ]

    async def scenario() -> None:
        flow = Flow(["p", "q"], *things)
        loop = asyncio.get_running_loop()
        first = loop.create_task(flow.connect())
        await asyncio.sleep(0.5)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert (await flow.mail()).entry == "q"
        await flow.close()

    run(scenario())
    assert work.calls == 1


def test_at_most_32_look_ups_of_a_session_run_at_once() -> None:
    running = peak = 0

    async def work(*given: Any) -> A:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(1)
        running -= 1
        return A()

    thing = plugin("p", *(finder(CONNECT, A, [Session], work) for _ in range(40)), policy=proceeding("p", CONNECT, A))

    async def scenario() -> None:
        flow = Flow(["p"], thing)
        assert await flow.connect() is PROCEEDED
        await asyncio.sleep(3)
        await flow.close()

    run(scenario())
    assert (peak, running) == (32, 0)


def test_the_worker_bounds_look_ups_over_sessions_and_pipelines_and_queueing_is_no_timeout() -> None:
    running = peak = 0

    async def work(*given: Any) -> A:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(4)
        running -= 1
        return A()

    thing = plugin("p", finder(CONNECT, A, [Session], work), policy=proceeding("p", CONNECT, A))

    async def scenario() -> None:
        slots = asyncio.Semaphore(3)
        deadlines = StageDeadlines(connect=60)
        entry = {"p": {}, "timeout": "5s"}
        pipelines = [make([entry], thing, worker_slots=slots, deadlines=deadlines) for _ in range(2)]
        sessions = [pipelines[i % 2].open() for i in range(12)]
        decisions = await asyncio.gather(*(session.connect(SESSION) for session in sessions))
        assert all(d is PROCEEDED for d in decisions)
        assert asyncio.get_running_loop().time() == 16
        for session in sessions:
            await session.close()

    run(scenario())
    assert (peak, running) == (3, 0)


def test_verdicts_are_recorded_with_recipient_policy_and_version() -> None:
    class Guard(Policy):
        name = "guard"
        version = "7"

        def on_rcpt(self, recipient: Recipient) -> Verdict:
            return defer("7.1", "later", reason="because") if recipient.address.local == "eve" else PROCEED

    async def scenario() -> None:
        flow = Flow(["guard"], Guard)
        await flow.mail()
        await flow.rcpt()
        await flow.rcpt(Recipient(Address("eve", "example.org")))
        assert flow.txn
        assert flow.txn.trace.verdicts == [
            {
                "stage": "rcpt",
                "plugin": "guard",
                "policy": "guard",
                "version": "7",
                "action": "proceed",
                "shadow": False,
                "recipient": "ben@example.org",
            },
            {
                "stage": "rcpt",
                "plugin": "guard",
                "policy": "guard",
                "version": "7",
                "action": "defer",
                "reply": "451 4.7.1 later",
                "reason": "because",
                "shadow": False,
                "recipient": "eve@example.org",
            },
        ]
        await flow.close()

    run(scenario())


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"on_error": "proceed"}, "550 5.7.1 without A"),
        ({"on_error": "defer"}, "451 4.3.0 try again later"),
        ({"on_error": "defer", "shadow": True}, "550 5.7.1 without A"),
        ({"on_error": "defer", "enforce": "0%"}, "550 5.7.1 without A"),
        ({"on_error": "defer", "enforce": "100%"}, "451 4.3.0 try again later"),
    ],
)
def test_a_look_up_goes_on_without_an_optional_finding_whose_plugin_failed(keys, expected) -> None:
    broken = plugin("broken", finder(CONNECT, A, [Session], Counter(RuntimeError("no"))))

    async def with_or_without(a: A | None) -> B:
        return B(7 if a is None else a.value)

    needs = finder(CONNECT, B, [A | None], with_or_without)
    asks = plugin("asks", needs, policy=policy("asks", hook(CONNECT, [B], lambda b: reject("7.1", "without A"))))

    async def scenario() -> list[str]:
        out = []
        for entries in (["asks"], [{"broken": None, **keys}, "asks"]):
            flow = Flow(entries, broken, asks)
            out.append(str((await flow.connect()).verdict.reply))
            await flow.close()
        return out

    assert run(scenario()) == ["550 5.7.1 without A", expected]


def test_an_action_sees_the_message_with_the_edits_before_it_and_a_look_up_the_original() -> None:
    async def size(message: Message) -> A:
        return A(message.content.size)

    async def size_later(message: Message) -> B:
        octets = await message.octets(1000)
        assert len(octets) == message.content.size
        return B(message.content.size)

    looks = plugin("looks", finder(MESSAGE, A, [Message], size))
    marks = policy("marks", hook(MESSAGE, [], lambda: annotate(AddHeader("X", "y"))))
    acts_ = plugin("acts", finder(MESSAGE, B, [Message], size_later, does=True))

    async def scenario() -> list[int]:
        flow = Flow(["looks", "marks", "acts"], looks, marks, acts_)
        await flow.whole()
        assert flow.txn
        found = [f.value for f in flow.txn.found]
        await flow.close()
        return found

    assert run(scenario()) == [14, 14 + len("X: y\r\n")]


def test_somebody_who_is_told_too_much_is_left_out() -> None:
    from gateway.pipeline.house import TELLING

    class Slow(Plugin):
        name = "slow"
        begun = 0

        async def ended(self, ending: Any) -> None:
            Slow.begun += 1
            await asyncio.sleep(3600)

    async def scenario() -> int:
        flow = Flow(["slow"], Slow)
        for _ in range(TELLING + 10):
            flow.session.tell(Ending(Outcome.ACCEPTED, MESSAGE, SESSION))
        await asyncio.sleep(0)
        begun = Slow.begun
        await flow.close()
        return begun

    assert run(scenario()) == TELLING
