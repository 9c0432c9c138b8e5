"""One at a time per key."""

from __future__ import annotations

import asyncio

from gateway.sdk.turns import Turns
from gateway.services.tasks import Tasks


def test_who_wants_the_same_key_waits_and_who_wants_another_does_not():
    async def check() -> None:
        turns, order = Turns(), []

        async def work(key: str, name: str) -> None:
            async with turns.of(key):
                order.append(f"{name} in")
                await asyncio.sleep(0)
                order.append(f"{name} out")

        await asyncio.gather(work("a", "1"), work("a", "2"), work("b", "3"))
        assert order.index("2 in") > order.index("1 out")
        assert order.index("3 in") < order.index("1 out")
        assert len(turns) == 0

    asyncio.run(check())


def test_a_turn_that_is_cancelled_goes_to_the_next_and_nothing_is_left_behind():
    async def check() -> None:
        turns, tasks, done = Turns(), Tasks(), []

        async def work(name: str, gate: asyncio.Event) -> None:
            async with turns.of("a"):
                await gate.wait()
                done.append(name)

        never, now = asyncio.Event(), asyncio.Event()
        now.set()
        first = tasks.start(work("first", never), name="first")
        waiting = tasks.start(work("waiting", now), name="waiting")
        second = tasks.start(work("second", now), name="second")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(turns) == 1
        waiting.cancel()
        first.cancel()
        await second
        assert done == ["second"]
        assert len(turns) == 0

    asyncio.run(check())
