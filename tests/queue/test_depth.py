"""A queue of 50,000 messages: what is in memory, and who gets a turn. `make bench-depth` does it with a million."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections import Counter
from pathlib import Path

from gateway.queue.options import PaceOptions, SchedulerOptions
from gateway.queue.retry import RetryOptions
from gateway.spool.spool import SpoolOptions
from gateway.spool.sqlite import SqliteSpool
from tests.queue.rig import DELIVERED, START, UNREACHED, World
from tests.support.backlog import fill

MESSAGES = 50_000
OTHERS = 50


def domain(number: int) -> str:
    """Nearly all of it for two destinations, one of them dead; a few messages for each of fifty others."""
    if number % 100 == 0:
        return f"d{number // 100 % OTHERS:02}.example"
    return "dead.example" if number % 2 else "slow.example"


def test_a_deep_queue_is_not_in_memory_and_nobody_in_it_starves(tmp_path: Path) -> None:
    root = tmp_path / "spool"
    fill(
        root,
        MESSAGES,
        received=START - 3600,
        domain=domain,
        lane=lambda name: f"smtp:{name}:25",
        due=lambda number: START - 1800 + number % 1700,
        size=100,
    )

    async def main() -> None:
        spool = await SqliteSpool.open(SpoolOptions(str(root), min_free=0))
        world = World(spool, options=SchedulerOptions(active=400, pace=PaceOptions(dead_after=2)), retry=RetryOptions())
        world.on("dead.example", UNREACHED)
        slow = world.on("slow.example", DELIVERED)
        slow.gate = asyncio.Event()
        most = 0
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        try:
            world.start()

            def everybody_else_is_done() -> bool:
                nonlocal most
                most = max(most, world.scheduler.active)
                scripts = [world.script(f"d{number:02}.example") for number in range(OTHERS)]
                return sum(len(script.deliveries) for script in scripts) == MESSAGES // 100

            await world.until(everybody_else_is_done)
            new = await world.send("anna@example.org", "anna@slow.example")
            await world.until(lambda: [d.id for d in world.script("example.org").deliveries] == [new])
            grown = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
            slow.gate.set()
            await world.stop()
        # The bound, and the new message.
        assert most <= 401
        # 50,000 messages would be 50 MB and more.
        assert grown < 12 << 20
        tried = Counter(d.recipients[0].address.domain for d in world.script("dead.example").deliveries)
        assert tried["dead.example"] <= 10

    asyncio.run(main())
