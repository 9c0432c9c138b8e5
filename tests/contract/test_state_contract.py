"""What every `State` must do: the fake that authors test with, the one in memory and the one in a file."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.sdk import State
from gateway.sdk.testing import FakeState, ManualClock
from gateway.services.state import MemoryState, SqliteState

Check = Callable[[State, ManualClock], Awaitable[None]]


@pytest.fixture(params=["fake", "memory", "sqlite"])
def on_state(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Check], None]:
    """Runs a coroutine function with a `State` of each kind and the clock it goes by."""

    def run(check: Check) -> None:
        async def with_state() -> None:
            clock = ManualClock()
            if request.param == "fake":
                await check(FakeState(clock), clock)
                return
            state = MemoryState(clock) if request.param == "memory" else SqliteState(tmp_path / "state", clock)
            await state.start()
            try:
                await check(state, clock)
            finally:
                await state.close()

        asyncio.run(with_state())

    return run


def test_what_was_put_is_there_until_its_time_is_over(on_state):
    async def check(state: State, clock: ManualClock) -> None:
        assert await state.get("k") is None
        await state.put("k", b"\x00value\xff", 60)
        clock.advance(59.9)
        assert await state.get("k") == b"\x00value\xff"
        clock.advance(0.1)
        assert await state.get("k") is None

    on_state(check)


def test_put_replaces_value_and_time(on_state):
    async def check(state: State, clock: ManualClock) -> None:
        await state.put("k", b"one", 10)
        clock.advance(5)
        await state.put("k", b"two", 10)
        clock.advance(9)
        assert await state.get("k") == b"two"

    on_state(check)


def test_an_empty_value_is_a_value(on_state):
    async def check(state: State, clock: ManualClock) -> None:
        await state.put("k", b"", 10)
        assert await state.get("k") == b""
        assert await state.put_new("k", b"x", 10) == b""

    on_state(check)


def test_put_new_stores_once_and_gives_what_was_there(on_state):
    async def check(state: State, clock: ManualClock) -> None:
        assert await state.put_new("k", b"first", 10) is None
        assert await state.put_new("k", b"second", 10) == b"first"
        clock.advance(10)
        assert await state.put_new("k", b"third", 10) is None
        assert await state.get("k") == b"third"

    on_state(check)


def test_put_new_by_many_at_once_has_one_winner(on_state):
    async def check(state: State, clock: ManualClock) -> None:
        answers = await asyncio.gather(*(state.put_new("k", b"%d" % i, 10) for i in range(100)))
        assert answers.count(None) == 1
        winner = await state.get("k")
        assert [a for a in answers if a is not None] == [winner] * 99

    on_state(check)


def test_deleted_is_forgotten_and_deleting_nothing_is_fine(on_state):
    async def check(state: State, clock: ManualClock) -> None:
        await state.put("k", b"x", 10)
        await state.delete("k")
        await state.delete("k")
        assert await state.get("k") is None

    on_state(check)


def test_a_bucket_starts_full_and_refills_steadily(on_state):
    async def check(state: State, clock: ManualClock) -> None:
        async def take(cost: float = 1.0):
            return await state.take("b", capacity=3, per_second=0.5, cost=cost)

        assert [(await take()).remaining for _ in range(3)] == [2, 1, 0]
        refused = await take()
        assert (refused.allowed, refused.remaining, refused.wait) == (False, 0, 2)
        clock.advance(1.5)
        assert (await take()).wait == pytest.approx(0.5)
        clock.advance(0.5)
        taken = await take()
        assert (taken.allowed, taken.wait) == (True, 0)
        clock.advance(1000)
        assert (await take()).remaining == 2, "a bucket holds no more than its capacity"

    on_state(check)


def test_a_cost_is_taken_whole_or_not_at_all(on_state):
    async def check(state: State, clock: ManualClock) -> None:
        assert (await state.take("b", capacity=5, per_second=1, cost=4)).remaining == 1
        refused = await state.take("b", capacity=5, per_second=1, cost=2)
        assert (refused.allowed, refused.remaining, refused.wait) == (False, 1, 1)
        assert (await state.take("b", capacity=5, per_second=1, cost=1)).allowed

    on_state(check)


def test_a_cost_of_nothing_only_looks(on_state):
    async def check(state: State, clock: ManualClock) -> None:
        async def look():
            return await state.take("b", capacity=3, per_second=0.5, cost=0)

        looked = await look()
        assert (looked.allowed, looked.remaining, looked.wait) == (True, 3, 0)
        await state.take("b", capacity=3, per_second=0.5, cost=3)
        assert [(await look()).remaining for _ in range(3)] == [0, 0, 0]
        clock.advance(1)
        assert (await look()).remaining == 0.5
        assert not (await state.take("b", capacity=3, per_second=0.5)).allowed
        clock.advance(1)
        assert (await state.take("b", capacity=3, per_second=0.5)).allowed
        assert (await look()).allowed, "also of an empty bucket"

    on_state(check)


def test_asking_while_empty_does_not_put_the_next_token_off(on_state):
    async def check(state: State, clock: ManualClock) -> None:
        await state.take("b", capacity=1, per_second=0.1)
        for _ in range(9):
            clock.advance(1)
            assert not (await state.take("b", capacity=1, per_second=0.1)).allowed
        clock.advance(1)
        assert (await state.take("b", capacity=1, per_second=0.1)).allowed

    on_state(check)


def test_a_bucket_gives_many_at_once_no_more_than_it_holds(on_state):
    async def check(state: State, clock: ManualClock) -> None:
        taken = await asyncio.gather(*(state.take("b", capacity=7, per_second=1) for _ in range(50)))
        assert sum(t.allowed for t in taken) == 7

    on_state(check)


def test_buckets_and_values_of_the_same_key_are_apart(on_state):
    async def check(state: State, clock: ManualClock) -> None:
        await state.put("k", b"x", 10)
        await state.take("k", capacity=1, per_second=1)
        await state.delete("k")
        assert not (await state.take("k", capacity=1, per_second=1)).allowed

    on_state(check)


@pytest.mark.parametrize("key", ["", "x" * 513, "\udcff"])
def test_a_key_that_is_no_key_is_the_callers_bug(on_state, key):
    async def check(state: State, clock: ManualClock) -> None:
        for call in (
            state.get(key),
            state.put(key, b"", 1),
            state.put_new(key, b"", 1),
            state.delete(key),
            state.take(key, capacity=1, per_second=1),
        ):
            with pytest.raises(ValueError, match=r"key|surrogates"):
                await call

    on_state(check)


def test_the_longest_key_and_the_largest_value_are_taken_and_no_larger(on_state):
    async def check(state: State, clock: ManualClock) -> None:
        key = "\u00fc" * 512
        await state.put(key, b"x" * 65536, 1)
        assert await state.get(key) == b"x" * 65536
        with pytest.raises(ValueError, match="octets"):
            await state.put(key, b"x" * 65537, 1)

    on_state(check)


def test_a_time_or_a_rate_of_nothing_is_the_callers_bug(on_state):
    async def check(state: State, clock: ManualClock) -> None:
        with pytest.raises(ValueError, match="time to live"):
            await state.put("k", b"", 0)
        with pytest.raises(ValueError, match="bucket"):
            await state.take("b", capacity=0, per_second=1)
        with pytest.raises(ValueError, match="bucket"):
            await state.take("b", capacity=1, per_second=0)

    on_state(check)


def test_a_tally_counts_its_members_until_its_time_is_over(on_state):
    async def check(state: State, clock: ManualClock) -> None:
        assert await state.tally("day") == {}
        assert await state.count("day", "a", 60) == 1
        clock.advance(30)
        assert await state.count("day", "b", 60, by=5) == 5
        assert await state.count("day", "a", 60) == 2
        assert await state.count("other", "a", 60) == 1
        assert list((await state.tally("day")).items()) == [("b", 5), ("a", 2)]
        assert await state.tally("day", limit=1) == {"b": 5}
        clock.advance(30)
        assert await state.tally("day") == {}, "its time runs from the first count"
        assert await state.count("day", "a", 60) == 1

    on_state(check)


def test_members_that_cannot_be_counted_are_refused(on_state):
    async def check(state: State, clock: ManualClock) -> None:
        for member in ("", "x" * 2049, "\ud800"):
            with pytest.raises(ValueError, match=r"."):
                await state.count("day", member, 60)
        with pytest.raises(ValueError, match="time to live"):
            await state.count("day", "a", 0)

    on_state(check)
