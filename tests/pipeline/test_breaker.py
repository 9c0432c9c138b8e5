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
    breaker = Breaker(name, Stage.CONNECT, clock)
    for _ in range(5):
        breaker.failed(breaker.ask())
    assert breaker.state is State.OPEN
    return breaker


def test_five_faults_in_a_row_open_it() -> None:
    breaker = Breaker("p", Stage.CONNECT, ManualClock())
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
    breaker = Breaker("p", Stage.CONNECT, clock)
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


def test_a_breaker_that_a_reload_replaced_hides_nothing_and_leaves_nothing_behind() -> None:
    clock = ManualClock()
    old, new = opened(clock, "reloaded"), opened(clock, "reloaded")

    def gauge() -> float | None:
        return REGISTRY.get_sample_value("gatepost_breaker_open", {"plugin": "reloaded", "stage": "connect"})

    old.retire()
    old.retire()
    assert gauge() == 1
    clock.advance(31)
    new.passed(new.ask())
    assert gauge() == 0


def test_a_pipeline_that_is_closed_takes_its_breakers_along() -> None:
    async def go() -> None:
        work = Counter(OSError("gone"))
        thing = plugin("leaving", finder(Stage.CONNECT, A, [Session], work), policy=proceeding("x", Stage.CONNECT, A))
        flow = Flow(["leaving"], thing)
        for _ in range(6):
            await flow.connect()
        labels = {"plugin": "leaving", "stage": "connect"}
        assert REGISTRY.get_sample_value("gatepost_breaker_open", labels) == 1
        await flow.close()
        assert REGISTRY.get_sample_value("gatepost_breaker_open", labels) == 0

    run(go())


def test_the_metric_says_whether_it_is_open() -> None:
    clock = ManualClock()
    breaker = opened(clock, "metric")

    def shown() -> Any:
        return REGISTRY.get_sample_value("gatepost_breaker_open", {"plugin": "metric", "stage": "connect"})

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
        states = {index: breaker.state for (index, _), breaker in flow.pipeline._house._breakers.items()}
        # The second one was not even asked.
        assert states == {0: State.OPEN}
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
        assert next(iter(flow.pipeline._house._breakers.values())).state is State.CLOSED
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
        assert flow.pipeline._house._breakers[1, Stage.MAIL].state is state
        await flow.close()

    run(scenario())


@pytest.mark.parametrize(("seconds", "state"), [(100.0, State.OPEN), (1.5, State.CLOSED)], ids=["hangs", "late"])
def test_a_lookup_that_hangs_longer_than_its_stage_opens_its_breaker(seconds: float, state: State) -> None:
    things = [
        plugin("hung", finder(Stage.MAIL, A, [Transaction], Counter(A(), seconds))),
        proceeding("asker", Stage.MAIL, A),
    ]

    async def scenario() -> None:
        flow = Flow([{"hung": {}, "timeout": "5m"}, "asker"], *things, deadlines=StageDeadlines(mail=1))
        for _ in range(5):
            assert (await flow.mail()).verdict.reason == "hung: deadline: not done within 1s"
            # The client goes on, or gives up: the transaction ends.
            await asyncio.sleep(1)
        await flow.mail()
        assert flow.pipeline._house._breakers[0, Stage.MAIL].state is state
        await flow.close()

    run(scenario())


def test_who_is_well_at_one_stage_can_be_dead_at_another() -> None:
    dead, well = Counter(OSError("dead")), Counter(B())
    thing = plugin("p", finder(Stage.MAIL, B, [Transaction], well), finder(Stage.DATA, A, [Transaction], dead))
    askers = [proceeding("one", Stage.MAIL, B), proceeding("two", Stage.DATA, A)]

    async def scenario() -> None:
        flow = Flow([{"p": {}, "on_error": "proceed"}, "one", "two"], thing, *askers)
        for _ in range(8):
            await flow.mail()
            await flow.data()
        await flow.close()

    run(scenario())
    assert (dead.calls, well.calls) == (5, 8)


def test_a_finding_for_which_nothing_was_done_says_nothing_of_the_filters_health() -> None:
    @dataclass(frozen=True, slots=True)
    class Idle(Finding):
        def idle(self) -> bool:
            return True

    results = [OSError("dead"), Idle()] * 8
    calls = 0

    async def work(txn: Transaction) -> Any:
        nonlocal calls
        calls += 1
        if isinstance(result := results[calls - 1], Exception):
            raise result
        return result

    thing = plugin("p", finder(Stage.MAIL, Idle, [Transaction], work))

    async def scenario() -> None:
        flow = Flow([{"p": {}, "on_error": "proceed"}, "one"], thing, proceeding("one", Stage.MAIL, Idle))
        for _ in range(16):
            await flow.mail()
        await flow.close()

    run(scenario())
    # Five faults in a row, whatever was idle between them.
    assert calls == 9
