"""What every `State` must do.

class TestOurState(StateContract):
    @pytest.fixture
    def open_state(self, tmp_path):
        @contextlib.asynccontextmanager
        async def opened(clock):
            state = OurState(tmp_path, clock)
            await state.start()
            yield state
            await state.close()

        return opened
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from gateway.kit.contracts.running import given_by
from gateway.sdk.fakes import ManualClock
from gateway.sdk.services import State, Taken

__all__ = [
    "OpenState",
    "StateContract",
]

OpenState = Callable[[ManualClock], AbstractAsyncContextManager[State]]
"""Opens an empty store that goes by this clock, and closes it."""


@contextlib.asynccontextmanager
async def _opened(open_state: OpenState) -> AsyncIterator[dict[str, Any]]:
    clock = ManualClock()
    async with open_state(clock) as state:
        yield {"state": state, "clock": clock}


with_state = given_by("open_state", ("state", "clock"), _opened)


class StateContract:
    """Derive from it a class whose fixture `open_state` is an `OpenState`. Each test has a store of its own."""

    @with_state
    async def test_what_was_put_is_there_until_its_time_is_over(self, state: State, clock: ManualClock) -> None:
        assert await state.get("k") is None
        await state.put("k", b"\x00value\xff", 60)
        clock.advance(59.9)
        assert await state.get("k") == b"\x00value\xff"
        clock.advance(0.1)
        assert await state.get("k") is None

    @with_state
    async def test_put_replaces_value_and_time(self, state: State, clock: ManualClock) -> None:
        await state.put("k", b"one", 10)
        clock.advance(5)
        await state.put("k", b"two", 10)
        clock.advance(9)
        assert await state.get("k") == b"two"

    @with_state
    async def test_an_empty_value_is_a_value(self, state: State, clock: ManualClock) -> None:
        await state.put("k", b"", 10)
        assert await state.get("k") == b""
        assert await state.put_new("k", b"x", 10) == b""

    @with_state
    async def test_put_new_stores_once_and_gives_what_was_there(self, state: State, clock: ManualClock) -> None:
        assert await state.put_new("k", b"first", 10) is None
        assert await state.put_new("k", b"second", 10) == b"first"
        clock.advance(10)
        assert await state.put_new("k", b"third", 10) is None
        assert await state.get("k") == b"third"

    @with_state
    async def test_put_new_by_many_at_once_has_one_winner(self, state: State, clock: ManualClock) -> None:
        answers = await asyncio.gather(*(state.put_new("k", b"%d" % i, 10) for i in range(100)))
        assert answers.count(None) == 1
        winner = await state.get("k")
        assert [a for a in answers if a is not None] == [winner] * 99

    @with_state
    async def test_deleted_is_forgotten_and_deleting_nothing_is_fine(self, state: State, clock: ManualClock) -> None:
        await state.put("k", b"x", 10)
        await state.delete("k")
        await state.delete("k")
        assert await state.get("k") is None

    @with_state
    async def test_a_bucket_starts_full_and_refills_steadily(self, state: State, clock: ManualClock) -> None:
        async def take(cost: float = 1.0) -> Taken:
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

    @with_state
    async def test_a_cost_is_taken_whole_or_not_at_all(self, state: State, clock: ManualClock) -> None:
        assert (await state.take("b", capacity=5, per_second=1, cost=4)).remaining == 1
        refused = await state.take("b", capacity=5, per_second=1, cost=2)
        assert (refused.allowed, refused.remaining, refused.wait) == (False, 1, 1)
        assert (await state.take("b", capacity=5, per_second=1, cost=1)).allowed

    @with_state
    async def test_a_cost_of_nothing_only_looks(self, state: State, clock: ManualClock) -> None:
        async def look() -> Taken:
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

    @with_state
    async def test_asking_while_empty_does_not_put_the_next_token_off(self, state: State, clock: ManualClock) -> None:
        await state.take("b", capacity=1, per_second=0.1)
        for _ in range(9):
            clock.advance(1)
            assert not (await state.take("b", capacity=1, per_second=0.1)).allowed
        clock.advance(1)
        assert (await state.take("b", capacity=1, per_second=0.1)).allowed

    @with_state
    async def test_a_bucket_gives_many_at_once_no_more_than_it_holds(self, state: State, clock: ManualClock) -> None:
        taken = await asyncio.gather(*(state.take("b", capacity=7, per_second=1) for _ in range(50)))
        assert sum(t.allowed for t in taken) == 7

    @with_state
    async def test_buckets_and_values_of_the_same_key_are_apart(self, state: State, clock: ManualClock) -> None:
        await state.put("k", b"x", 10)
        await state.take("k", capacity=1, per_second=1)
        await state.delete("k")
        assert not (await state.take("k", capacity=1, per_second=1)).allowed

    @pytest.mark.parametrize("key", ["", "x" * 513, "\udcff"])
    @with_state
    async def test_a_key_that_is_no_key_is_the_callers_bug(self, state: State, clock: ManualClock, key: str) -> None:
        for call in (
            state.get(key),
            state.put(key, b"", 1),
            state.put_new(key, b"", 1),
            state.delete(key),
            state.take(key, capacity=1, per_second=1),
        ):
            with pytest.raises(ValueError, match=r"key|surrogates"):
                await call

    @with_state
    async def test_the_longest_key_and_the_largest_value_are_taken_and_no_larger(
        self, state: State, clock: ManualClock
    ) -> None:
        key = "\u00fc" * 512
        await state.put(key, b"x" * 65536, 1)
        assert await state.get(key) == b"x" * 65536
        with pytest.raises(ValueError, match="octets"):
            await state.put(key, b"x" * 65537, 1)

    @with_state
    async def test_a_time_or_a_rate_of_nothing_is_the_callers_bug(self, state: State, clock: ManualClock) -> None:
        with pytest.raises(ValueError, match="time to live"):
            await state.put("k", b"", 0)
        with pytest.raises(ValueError, match="bucket"):
            await state.take("b", capacity=0, per_second=1)
        with pytest.raises(ValueError, match="bucket"):
            await state.take("b", capacity=1, per_second=0)

    @with_state
    async def test_a_tally_counts_its_members_until_its_time_is_over(self, state: State, clock: ManualClock) -> None:
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

    @with_state
    async def test_members_that_cannot_be_counted_are_refused(self, state: State, clock: ManualClock) -> None:
        for member in ("", "x" * 2049, "\ud800"):
            with pytest.raises(ValueError, match=r"."):
                await state.count("day", member, 60)
        with pytest.raises(ValueError, match="time to live"):
            await state.count("day", "a", 0)
