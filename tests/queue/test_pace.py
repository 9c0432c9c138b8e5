"""Concurrency, death, probes and rate of one destination: every rule by itself, and all of them against any history."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.mail.reply import Reply
from gateway.queue.options import PaceOptions
from gateway.queue.pace import Change, Pace, Signal, read
from gateway.transport.sysexits import Ended, judge
from gateway.transport.transport import Fault, Outcome, Result
from tests.queue.rig import DEFERRED, DELIVERED, FAILED, UNREACHED


def attempt(pace: Pace, signal: Signal, now: float = 0.0) -> Change:
    return pace.end(pace.begin(now), signal, now)


@pytest.mark.parametrize(
    ("outcomes", "signal"),
    [
        ([DELIVERED], Signal.GOOD),
        ([FAILED], Signal.GOOD),
        ([DEFERRED], Signal.GOOD),
        ([UNREACHED], Signal.LOST),
        ([Outcome(Result.DEFERRED, Reply(421, "3.2", "closing"), replied=True, fault=Fault.PEER)], Signal.BUSY),
        ([DELIVERED, Outcome(Result.DEFERRED, Reply(421, "3.2", "x"), replied=True, fault=Fault.PEER)], Signal.BUSY),
        ([Outcome(Result.DEFERRED, Reply(451, "4.2", "no answer in time"), "a.test", fault=Fault.PEER)], Signal.BUSY),
        ([Outcome(Result.DEFERRED, Reply(452, "2.2", "mailbox full"), fault=Fault.PEER)], Signal.GOOD),
        ([judge(Ended(75, b"4.2.2 mailbox full"), "lda", ())], Signal.GOOD),
        ([Outcome(Result.FAILED, Reply(553, "6.7", "needs SMTPUTF8"), fault=Fault.PEER)], Signal.GOOD),
        ([Outcome(Result.DEFERRED, Reply(421, "3.2", "go away"), replied=True, fault=Fault.CONNECT)], Signal.LOST),
        ([Outcome(Result.DEFERRED, Reply(451, "3.0", "disk"), fault=Fault.OURS)], Signal.NOTHING),
    ],
)
def test_what_an_attempt_says_about_the_destination(outcomes: list[Outcome], signal: Signal) -> None:
    assert read(outcomes) is signal


def test_each_round_that_goes_well_adds_one_attempt_up_to_the_bound() -> None:
    pace = Pace(PaceOptions(start=2, most=4))
    seen = []
    for _ in range(10):
        seen.append(pace.limit(0.0))
        attempt(pace, Signal.GOOD)
    assert seen == [2, 2, 3, 3, 3, 4, 4, 4, 4, 4]


def test_a_round_that_fails_halves_it_once_however_many_attempts_it_had() -> None:
    pace = Pace(PaceOptions(start=16, most=20))
    rounds = [pace.begin(0.0) for _ in range(16)]
    for each in rounds:
        pace.end(each, Signal.BUSY, 0.0)
    assert pace.limit(0.0) == 8 and not pace.dead
    rounds = [pace.begin(0.0) for _ in range(8)]
    for each in rounds:
        pace.end(each, Signal.LOST, 0.0)
    assert pace.limit(0.0) == 4 and pace.lost == 1


def test_it_never_falls_below_one_while_the_destination_answers() -> None:
    pace = Pace(PaceOptions(start=3))
    for _ in range(50):
        attempt(pace, Signal.BUSY)
    assert pace.limit(0.0) == 1


def test_after_some_lost_rounds_it_is_dead_and_probed_at_growing_intervals() -> None:
    pace = Pace(PaceOptions(dead_after=3, dead_for=60.0, dead_max=200.0))
    assert [attempt(pace, Signal.LOST, 10.0) for _ in range(3)] == [Change.NONE, Change.NONE, Change.DIED]
    now = 10.0
    for pause in (60.0, 120.0, 200.0, 200.0):
        assert pace.limit(now + pause - 0.001) == 0
        now += pause
        assert pace.limit(now) == 1
        assert attempt(pace, Signal.LOST, now) is Change.DIED
    now += 200.0
    assert attempt(pace, Signal.GOOD, now) is Change.REVIVED
    assert (pace.limit(now), pace.dead) == (1, False)
    assert attempt(pace, Signal.GOOD, now) is Change.NONE
    assert pace.limit(now) == 2


def test_what_was_under_way_when_it_died_does_not_prolong_it() -> None:
    pace = Pace(PaceOptions(start=4, dead_after=1, dead_for=60.0))
    first, *others = [pace.begin(0.0) for _ in range(4)]
    pace.end(first, Signal.LOST, 5.0)
    for each in others:
        pace.end(each, Signal.LOST, 30.0)
    assert pace.dead_until == 65.0


def test_trouble_of_our_own_says_nothing_about_it() -> None:
    pace = Pace(PaceOptions(start=2, dead_after=1))
    for _ in range(5):
        assert attempt(pace, Signal.NOTHING) is Change.NONE
    assert pace.limit(0.0) == 2


def test_an_operator_has_it_probed_at_once() -> None:
    pace = Pace(PaceOptions(dead_after=1))
    assert not pace.reopen()
    attempt(pace, Signal.LOST, 0.0)
    assert pace.limit(1.0) == 0
    assert pace.reopen() and pace.limit(1.0) == 1


@given(gap=st.floats(0.01, 100.0), times=st.lists(st.floats(0.0, 50.0), max_size=50))
def test_a_rate_is_never_exceeded(gap: float, times: list[float]) -> None:
    pace = Pace(PaceOptions(gap=gap))
    now, begun = 0.0, []
    for pause in times:
        now += pause
        if not pace.wait(now):
            pace.begin(now)
            begun.append(now)
    assert all(later - earlier >= gap * (1 - 1e-9) for earlier, later in pairwise(begun))


@given(gap=st.floats(0.001, 86400.0), window=st.integers(1, 1000))
def test_no_more_is_kept_in_memory_than_leaves_soon(gap: float, window: int) -> None:
    pace = Pace(PaceOptions(window, window, gap=gap))
    assert 1 <= pace.depth() <= min(2 * window, max(1, 10.0 / gap))


class AnyHistory(RuleBasedStateMachine):
    """Attempts begin when they may, and end as they like, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.options = PaceOptions(start=5, most=8, dead_after=3, dead_for=60.0, dead_max=600.0)
        self.pace = Pace(self.options)
        self.now = 0.0
        self.rounds: list[int] = []
        self.good_since_death = 0

    @precondition(lambda self: len(self.rounds) < self.pace.limit(self.now))
    @rule()
    def begin(self) -> None:
        self.rounds.append(self.pace.begin(self.now))

    @precondition(lambda self: self.rounds)
    @rule(number=st.integers(0, 7), signal=st.sampled_from(Signal))
    def end(self, number: int, signal: Signal) -> None:
        was_dead, window = self.pace.dead, self.pace.window
        change = self.pace.end(self.rounds.pop(number % len(self.rounds)), signal, self.now)
        assert self.pace.window <= window + 1
        assert (change is Change.REVIVED) == (was_dead and signal in (Signal.GOOD, Signal.BUSY))
        if change is Change.REVIVED:
            assert self.pace.window == 1
        if change is Change.DIED:
            assert self.options.dead_for <= self.pace.dead_until - self.now <= self.options.dead_max

    @rule(seconds=st.floats(0.0, 700.0))
    def pass_by(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def never_above_its_limits_and_never_closed_for_ever(self) -> None:
        assert 0 <= self.pace.limit(self.now) <= self.options.most
        assert self.pace.running == len(self.rounds) <= self.options.most
        assert self.pace.limit(max(self.now, self.pace.dead_until)) >= 1
        assert self.pace.dead_until <= self.now + self.options.dead_max
        assert math.isfinite(self.pace.dead_until)


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
