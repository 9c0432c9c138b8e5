"""The database goes away under an open spool: stopped, killed, hung. Nothing stored is lost, and it goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from gateway.kit.contracts.stock import HEAD, LARGE, NOW, SMALL, deliver, octets, put, take
from gateway.ops import metrics
from gateway.spool.postgres.spool import PostgresSpool
from gateway.spool.spool import SpoolError, SpoolOptions
from tests.spool.postgres.rig import Schemas, opened, until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def schemas() -> Iterator[Schemas]:
    with Schemas.served() as schemas:
        yield schemas


def with_spool(
    schemas: Schemas, directory: Path, work: Callable[[PostgresSpool, SpoolOptions], Awaitable[None]]
) -> None:
    async def run() -> None:
        options = schemas.new(directory, timeout=1.0)
        spool = await opened(options)
        try:
            await work(spool, options)
        finally:
            await spool.close()

    asyncio.run(run())


async def refused(spool: PostgresSpool) -> float:
    """Everything is refused; gives how long the longest took to be."""
    longest = 0.0
    for doing in (put(spool), put(spool, LARGE), spool.list()):
        began = time.monotonic()
        with pytest.raises(SpoolError):
            await doing
        longest = max(longest, time.monotonic() - began)
    with pytest.raises(SpoolError, match="the database does not answer"):
        spool.check_room(0)
    return longest


async def back(spool: PostgresSpool) -> None:
    """It takes mail again, by itself."""
    await until(lambda: not spool.lines.writer.silent(60))
    spool.check_room(0)


@pytest.mark.parametrize("way", ["halt", "kill"])
def test_while_the_server_is_down_all_is_refused_and_then_all_that_was_stored_is_there(
    schemas: Schemas, tmp_path: Path, way: str
) -> None:
    async def work(spool: PostgresSpool, options: SpoolOptions) -> None:
        small, large = await put(spool), await put(spool, LARGE)
        claimed = await take(spool)
        waiting = await put(spool)
        before = metrics.SPOOL_CONNECTIONS_FAILED._value.get()
        await asyncio.to_thread(getattr(schemas.server, way))
        try:
            await refused(spool)
            with pytest.raises(SpoolError):
                await deliver(spool, claimed[small].message)
            assert metrics.SPOOL_CONNECTIONS_FAILED._value.get() > before
        finally:
            await asyncio.to_thread(schemas.server.start)
        await back(spool)
        assert {m.id for m in await spool.list()} == {small, large, waiting}
        # What is in hand still is, and what waited in memory is read again.
        await deliver(spool, claimed[small].message)
        assert set(await take(spool)) == {waiting}
        assert await octets(claimed[large]) == HEAD + LARGE
        new = await put(spool)
        assert {m.id for m in await spool.list()} == {large, waiting, new}

    with_spool(schemas, tmp_path, work)


def test_a_server_that_hangs_is_a_refusal_within_bounds_and_no_end(schemas: Schemas, tmp_path: Path) -> None:
    async def work(spool: PostgresSpool, options: SpoolOptions) -> None:
        kept = await put(spool)
        with schemas.server.hung():
            first = asyncio.gather(*(put(spool, SMALL) for _ in range(3)), return_exceptions=True)
            # Before its time is over it is known that there is no answer.
            with pytest.raises(SpoolError, match="it does not answer"):
                async with asyncio.timeout(20):
                    while True:
                        spool.check_room(0)
                        await asyncio.sleep(0.05)
            assert all(isinstance(one, SpoolError) for one in await first)
            await refused(spool)
        await back(spool)
        assert set(await take(spool, NOW)) == {kept}
        new = await put(spool)
        assert {m.id for m in await spool.list()} == {kept, new}

    with_spool(schemas, tmp_path, work)


def test_a_session_that_an_administrator_ends_costs_one_refusal_at_most(schemas: Schemas, tmp_path: Path) -> None:
    async def work(spool: PostgresSpool, options: SpoolOptions) -> None:
        kept = await put(spool)
        number = spool._number()
        schemas.query(options, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name <> ''")
        await until(lambda: spool.lines.writer._lost or spool._stale)
        await back(spool)
        await until(lambda: spool._stale)
        assert spool._number() == number, "its lease is not over"
        assert set(await take(spool)) == {kept}

    with_spool(schemas, tmp_path, work)
