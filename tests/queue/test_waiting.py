"""Who is next within a destination."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail.envelope import TURNS, Priority
from gateway.queue.lane import Lane
from gateway.queue.options import OwnOptions, PaceOptions, SchedulerOptions
from gateway.queue.pace import Signal
from gateway.queue.places import Places
from gateway.queue.waiting import Waiting
from gateway.transport.transport import Destination, Kind, Security

KINDS = st.tuples(st.sampled_from(Priority), st.booleans())


@given(st.lists(KINDS, max_size=200))
def test_everything_comes_out_once_and_in_order_within_its_kind(kinds: list[tuple[Priority, bool]]) -> None:
    waiting: Waiting[tuple[int, Priority, bool]] = Waiting()
    for number, (priority, old) in enumerate(kinds):
        waiting.put((number, priority, old), priority, old=old)
    assert len(waiting) == len(kinds) and waiting.old == sum(old for _, old in kinds)
    out = [waiting.take() for _ in kinds]
    assert sorted(number for number, _, _ in out) == list(range(len(kinds)))
    for kind in {(priority, old) for _, priority, old in out}:
        numbers = [number for number, *of in out if tuple(of) == kind]
        assert numbers == sorted(numbers)
    assert not waiting and (waiting.new, waiting.old) == (0, 0)
    with pytest.raises(IndexError):
        waiting.take()


@given(st.sampled_from(Priority), st.booleans(), st.integers(0, 30))
def test_none_waits_for_ever_behind_a_stream_of_others(priority: Priority, old: bool, begun: int) -> None:
    waiting: Waiting[str] = Waiting()

    def pour() -> None:
        for other in Priority:
            for age in (True, False):
                if (other, age) != (priority, old):
                    waiting.put("other", other, old=age)

    pour()
    for _ in range(begun):
        pour()
        waiting.take()
    ahead = waiting._pairs.get(priority)
    waiting.put("mine", priority, old=old)
    before = len(ahead.old if old else ahead.new) - 1 if ahead else 0
    assert before == 0
    turns = 0
    while True:
        pour()
        turns += 1
        if waiting.take() == "mine":
            break
    # A whole round of priorities, for each of new and old.
    assert turns <= 2 * len(TURNS)


def test_high_goes_first_most_of_the_time() -> None:
    waiting: Waiting[Priority] = Waiting()
    for _ in range(100):
        for priority in Priority:
            waiting.put(priority, priority, old=False)
    first = [waiting.take() for _ in range(70)]
    assert [first.count(priority) for priority in Priority] == [40, 20, 10]
    assert first[0] is Priority.HIGH


def test_a_dead_destination_does_not_close_one_that_differs_in_its_tls_only() -> None:
    places = Places(SchedulerOptions())
    options = OwnOptions(PaceOptions(dead_after=1))
    dead, alive = (
        Lane(Destination(Kind.SMTP, "a.test", 25, security=security), options, 0.0)
        for security in (Security.VERIFY, Security.NONE)
    )
    dead.pace.end(dead.pace.begin(0.0), Signal.LOST, 0.0)
    alive.workers = 1
    for lanes in ([dead, alive], [alive, dead]):
        assert places.make_room(lanes, (), 1.0, 200, again=True).of(alive.label, 1) > 0
    assert places.make_room([dead], (), 1.0, 200, again=True).of(dead.label, 1) == 0
