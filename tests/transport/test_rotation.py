"""Several servers of one destination: whose turn it is."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from gateway.sdk.testing import ManualClock
from gateway.transport.rotation import REST, Rotation, by_weight
from gateway.transport.transport import Server

A, B, C = Server("a.test", 25, priority=1), Server("b.test", 25, priority=2), Server("c.test", 25, priority=3)
HOPS = st.lists(
    st.builds(Server, st.sampled_from("abcdefgh"), st.just(25), st.just(""), st.integers(1, 3), st.integers(1, 9)),
    min_size=1,
    max_size=8,
    unique_by=lambda hop: hop.host,
)


def rotation(*hops: Server, clock: ManualClock | None = None, seed: int = 1) -> Rotation:
    return Rotation(hops, random.Random(seed), (clock or ManualClock()).monotonic)


def test_the_lowest_priority_goes_first():
    assert rotation(C, A, B).order() == ((A,), (B,), (C,))


def test_a_server_that_failed_is_asked_last_for_a_while():
    clock = ManualClock()
    it = rotation(A, B, C, clock=clock)
    assert it.failed(A) and not it.failed(A), "it is news once"
    assert it.order() == ((B,), (C,), (A,))
    clock.advance(REST - 1)
    assert it.order() == ((B,), (C,), (A,))


def test_after_its_rest_one_attempt_finds_out_whether_it_is_back():
    clock = ManualClock()
    it = rotation(A, B, clock=clock)
    it.failed(A)
    clock.advance(REST)
    assert it.order() == ((A,), (B,))
    assert it.order() == ((B,), (A,)), "the others need not wait for it"
    assert it.worked(A) and not it.worked(A)
    assert it.order() == ((A,), (B,))


def test_when_all_have_failed_they_are_asked_in_their_order():
    it = rotation(A, B)
    it.failed(B)
    it.failed(A)
    assert it.order() == ((A,), (B,))


def test_weights_are_shares():
    rng = random.Random(7)
    heavy, light = Server("heavy.test", 25, weight=3), Server("light.test", 25, weight=1)
    first = [by_weight([heavy, light], rng)[0] for _ in range(4000)]
    assert 0.72 < first.count(heavy) / len(first) < 0.78


def test_the_same_chance_gives_the_same_order():
    hops = [Server(name, 25) for name in "abcdef"]
    assert by_weight(hops, random.Random(3)) == by_weight(hops, random.Random(3))


@given(HOPS, st.sets(st.integers(0, 7)), st.integers())
def test_every_server_is_asked_once_in_priority_order_those_that_rest_last(
    hops: list[Server], down: set[int], seed: int
):
    it = rotation(*hops, seed=seed)
    resting = [hop for number, hop in enumerate(hops) if number in down]
    for hop in resting:
        it.failed(hop)
    groups = it.order()
    flat = [hop for group in groups for hop in group]
    assert sorted(flat, key=str) == sorted(hops, key=str)
    assert [hop in resting for hop in flat] == sorted(hop in resting for hop in flat)
    for part in ([h for h in flat if h not in resting], [h for h in flat if h in resting]):
        assert [h.priority for h in part] == sorted(h.priority for h in part)
    assert all(len({hop.priority for hop in group}) == 1 for group in groups)
