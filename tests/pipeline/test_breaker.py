"""The breaker: closed, open, half-open."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client import REGISTRY

from gateway.mail.session import Session
from gateway.pipeline.breaker import Breaker, State
from gateway.pipeline.plan import StageDeadlines
from gateway.sdk import Finding, Stage, Transaction
from gateway.sdk.testing import ManualClock
from tests.pipeline.quick import run
from tests.pipeline.setting import A, B, Counter, Flow, finder, plugin, proceeding, rejecting


def opened(clock: ManualClock, name: str = "dead") -> Breaker:
    breaker = Breaker(name, clock)
    for _ in range(5):
        breaker.failed(breaker.ask())
    assert breaker.state is State.OPEN
    return breaker


def test_five_faults_in_a_row_open_it() -> None:
    breaker = Breaker("p", ManualClock())
    for _ in range(4):
        breaker.failed(breaker.ask())
    breaker.passed(breaker.ask())
    for _ in range(4):
        breaker.failed(breaker.ask())
    assert breaker.state is State.CLOSED
    breaker.failed(breaker.ask())
    assert breaker.state is State.OPEN
    assert not breaker.ask()


def test_after_30_seconds_one_probe_is_let_through() -> None:
    clock = ManualClock()
    breaker = opened(clock)
    clock.advance(29.9)
    assert not breaker.ask()
    clock.advance(0.2)
    assert breaker.ask()
    assert breaker.state is State.HALF_OPEN
    assert not breaker.ask()


def test_a_probe_that_passes_closes_it() -> None:
    clock = ManualClock()
    breaker = opened(clock)
    clock.advance(30)
    breaker.passed(breaker.ask())
    assert breaker.state is State.CLOSED
    assert breaker.ask()


def test_each_failed_probe_doubles_the_pause_up_to_five_minutes() -> None:
    clock = ManualClock()
    breaker = opened(clock)
    pauses = []
    for _ in range(6):
        waited = 0
        while not (permit := breaker.ask()):
            clock.advance(10)
            waited += 10
        pauses.append(waited)
        breaker.failed(permit)
    assert pauses == [30, 60, 120, 240, 300, 300]


def test_a_closed_breaker_starts_again_with_the_short_pause() -> None:
    clock = ManualClock()
    breaker = opened(clock)
    clock.advance(30)
    breaker.failed(breaker.ask())
    clock.advance(60)
    breaker.passed(breaker.ask())
    for _ in range(5):
        breaker.failed(breaker.ask())
    clock.advance(30)
    assert breaker.ask()


def test_a_probe_that_is_called_off_leaves_the_way_to_the_next() -> None:
    clock = ManualClock()
    breaker = opened(clock)
    clock.advance(30)
    breaker.withdrawn(breaker.ask())
    assert breaker.ask()


def test_a_result_from_before_it_opened_is_no_probe() -> None:
    clock = ManualClock()
    breaker = Breaker("p", clock)
    old = breaker.ask()
    for _ in range(5):
        breaker.failed(breaker.ask())
    breaker.passed(old)
    assert breaker.state is State.OPEN
    clock.advance(30)
    breaker.ask()
    breaker.failed(old)
    breaker.withdrawn(old)
    assert breaker.state is State.HALF_OPEN


def test_the_metric_says_whether_it_is_open() -> None:
    clock = ManualClock()
    breaker = opened(clock, "metric")

    def shown() -> Any:
        return REGISTRY.get_sample_value("gatepost_breaker_open", {"plugin": "metric"})

    assert shown() == 1
    clock.advance(30)
    breaker.passed(breaker.ask())
    assert shown() == 0


def test_a_dead_filter_is_not_asked_while_its_breaker_is_open() -> None:
    work = Counter(OSError("dead"))
    clock = ManualClock()
    thing = plugin("p", finder(Stage.CONNECT, A, [Session], work), policy=rejecting("p", Stage.CONNECT, A))

    async def scenario() -> None:
        flow = Flow(["p"], thing, clock=clock)
        reasons = []
        for _ in range(8):
            reasons.append((await flow.connect()).verdict.reason)
        assert reasons == ["p: error: OSError: dead"] * 5 + ["p: breaker: it failed too often just now"] * 3
        assert flow.session.traces[0].findings[0]["fault"] == "breaker"
        assert work.calls == 5
        clock.advance(30)
        work.result = A()
        assert (await flow.connect()).entry == "p"
        assert (await flow.connect()).policy == "p"
        assert work.calls == 7
        await flow.close()

    run(scenario())


def test_a_fault_of_what_it_needs_does_not_count_against_a_plugin() -> None:
    base = Counter(OSError("dead"))
    things = [
        plugin("base", finder(Stage.CONNECT, A, [Session], base)),
        plugin("next", finder(Stage.CONNECT, A, [A]), policy=rejecting("next", Stage.CONNECT, A)),
    ]

    async def scenario() -> None:
        flow = Flow(["base", "next"], *things)
        for _ in range(7):
            await flow.connect()
        base_breaker, next_breaker = flow.pipeline._house.breakers
        assert (base_breaker.state, next_breaker.state) == (State.OPEN, State.CLOSED)
        await flow.close()

    run(scenario())


def test_a_client_that_leaves_does_not_count_against_a_plugin() -> None:
    work = Counter(A(), seconds=5)
    thing = plugin("p", finder(Stage.CONNECT, A, [Session], work))

    async def scenario() -> None:
        flow = Flow(["p"], thing)
        for _ in range(7):
            await flow.connect()
            await asyncio.sleep(1)
        assert work.calls == 7
        assert flow.pipeline._house.breakers[0].state is State.CLOSED
        await flow.close()

    run(scenario())


@pytest.mark.parametrize(("before", "state"), [(0.0, State.OPEN), (0.9, State.CLOSED)])
def test_an_action_cut_by_the_deadline_is_to_blame_only_if_the_time_was_its_own(before: float, state: State) -> None:
    things = [
        plugin(
            "first",
            finder(Stage.MAIL, A, [Transaction], Counter(A(), before)),
            policy=proceeding("first", Stage.MAIL, A),
        ),
        plugin("act", finder(Stage.MAIL, B, [Transaction], Counter(B(), seconds=100), does=True)),
    ]

    async def scenario() -> None:
        flow = Flow(["first", {"act": {}, "timeout": "5m"}], *things, deadlines=StageDeadlines(mail=1))
        for _ in range(5):
            assert (await flow.mail()).verdict.reason == "act: deadline: not done within 1s"
        assert flow.pipeline._house.breakers[1].state is state
        await flow.close()

    run(scenario())


def test_a_finding_for_which_nothing_was_done_says_nothing_of_the_filters_health() -> None:
    """An entry that is dead at one stage and has nothing to do at another is dead."""

    @dataclass(frozen=True, slots=True)
    class Idle(Finding):
        def idle(self) -> bool:
            return True

    dead, nothing = Counter(OSError("dead")), Counter(Idle())
    thing = plugin("p", finder(Stage.MAIL, A, [Transaction], dead), finder(Stage.RCPT, Idle, [Transaction], nothing))
    askers = [proceeding("one", Stage.MAIL, A), proceeding("two", Stage.RCPT, Idle)]

    async def scenario() -> None:
        flow = Flow([{"p": {}, "on_error": "proceed"}, "one", "two"], thing, *askers)
        for _ in range(8):
            await flow.mail()
            await flow.rcpt()
        await flow.close()

    run(scenario())
    assert (dead.calls, nothing.calls) == (5, 4)
