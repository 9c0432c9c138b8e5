"""The state file: several processes, restarts, trouble with the disk, and its bounds."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gateway.sdk import StateError
from gateway.sdk.testing import ManualClock
from gateway.services import state as module
from gateway.services.clock import SystemClock
from gateway.services.state import SqliteState, refill


class SetBack(ManualClock):
    """A clock that can be set back."""

    def set_back(self, seconds: float) -> None:
        self._now -= seconds


async def opened(directory: Path, clock: ManualClock | None = None) -> SqliteState:
    state = SqliteState(directory, clock or ManualClock())
    await state.start()
    return state


WORKER = """
import asyncio, sys
from pathlib import Path
from gateway.sdk.testing import ManualClock
from gateway.services.state import SqliteState

async def work():
    state = SqliteState(Path(sys.argv[1]), ManualClock())
    await state.start()
    taken = [await state.take("shared", capacity=100, per_second=1e-9) for _ in range(40)]
    new = [await state.put_new(f"key{i}", b"x", 60) for i in range(50)]
    await state.close()
    print(sum(t.allowed for t in taken), new.count(None))

asyncio.run(work())
"""


def test_processes_that_start_together_share_buckets_and_keys_exactly(tmp_path):
    command = [sys.executable, "-c", WORKER, str(tmp_path / "new")]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    counts = [[int(n) for n in worker.communicate(timeout=60)[0].split()] for worker in workers]
    assert sum(taken for taken, _ in counts) == 100
    assert sum(new for _, new in counts) == 50


def test_a_restart_keeps_what_was_stored(tmp_path):
    async def check() -> None:
        state = await opened(tmp_path)
        await state.put("k", b"v", 60)
        await state.take("b", capacity=1, per_second=1e-9)
        await state.close()
        state = await opened(tmp_path)
        assert await state.get("k") == b"v"
        assert not (await state.take("b", capacity=1, per_second=1e-9)).allowed
        await state.close()

    asyncio.run(check())


def test_calls_that_wait_share_one_transaction(tmp_path):
    async def check() -> None:
        state = await opened(tmp_path)
        seen: list[int] = []
        serve = state._serve
        state._serve = lambda db, calls: (seen.append(len(calls)), serve(db, calls))[1]  # type: ignore[method-assign]
        await asyncio.gather(*(state.put(f"k{i}", b"v", 60) for i in range(500)))
        assert sum(seen) == 500
        assert len(seen) < 100
        await state.close()

    asyncio.run(check())


def test_the_event_loop_does_not_wait_for_a_file_that_somebody_else_has_locked(tmp_path):
    async def check() -> None:
        state = await opened(tmp_path)
        other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.gather(state.put("k", b"v", 60))
        await asyncio.sleep(0.01)
        assert not waiting.done(), "it waits, and this goes on"
        other.execute("COMMIT")
        await waiting
        other.close()
        await state.close()

    asyncio.run(check())


def test_a_lock_that_is_never_released_is_a_state_error(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BUSY_MS", 100)

    async def check() -> None:
        state = await opened(tmp_path)
        other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateError, match="locked"):
            await state.put("k", b"v", 60)
        assert await state.get("k") is None, "reading goes on"
        other.execute("ROLLBACK")
        await state.put("k", b"v", 60)
        assert await state.get("k") == b"v"
        other.close()
        await state.close()

    asyncio.run(check())


def test_a_directory_that_cannot_be_made_says_which_file(tmp_path):
    (tmp_path / "file").write_text("")

    async def check() -> None:
        state = SqliteState(tmp_path / "file", ManualClock())
        with pytest.raises(StateError, match=r"file/state\.db"):
            await state.start()
        with pytest.raises(StateError, match="closed"):
            await state.get("k")
        await state.close()

    asyncio.run(check())


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "state.db").write_bytes(b"this is no database, but somebody's file" * 100)

    async def check() -> None:
        with pytest.raises(StateError, match="not a database"):
            await SqliteState(tmp_path, ManualClock()).start()

    asyncio.run(check())
    assert (tmp_path / "state.db").read_bytes().startswith(b"this is no database")


def test_what_is_over_is_swept_in_bounded_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SWEEP_ROWS", 10)

    async def check() -> None:
        clock = ManualClock()
        state = await opened(tmp_path, clock)
        for i in range(25):
            await state.put(f"k{i}", b"v", 1)
            await state.take(f"b{i}", capacity=1, per_second=1)
        other = sqlite3.connect(tmp_path / "state.db")

        def rows(table: str) -> int:
            return int(other.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

        clock.advance(61)
        left = []
        for i in range(4):
            await state.put(f"live{i}", b"v", 3600)
            left.append((rows("entry"), rows("bucket")))
        assert left == [(16, 15), (7, 5), (3, 0), (4, 0)]
        other.close()
        await state.close()

    asyncio.run(check())


def test_a_full_file_is_a_state_error_until_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_OCTETS", 60 * 4096)

    async def check() -> None:
        clock = ManualClock()
        state = await opened(tmp_path, clock)
        with pytest.raises(StateError, match="full"):
            for i in range(100):
                await state.put(f"k{i}", b"x" * 8192, 60)
        clock.advance(61)
        await state.put("large", b"x" * 40960, 60)
        assert await state.get("large")
        await state.close()

    asyncio.run(check())


def test_more_calls_than_may_wait_are_refused_and_the_others_served(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WAITING", 5)

    async def check() -> None:
        state = await opened(tmp_path)
        gate = threading.Event()
        held = asyncio.gather(state._call(lambda db, now: gate.wait(10)))
        await asyncio.sleep(0)
        while not state._calls.empty():
            await asyncio.sleep(0)
        waiting = asyncio.gather(*(state.put(f"k{i}", b"v", 60) for i in range(7)), return_exceptions=True)
        await asyncio.sleep(0)
        gate.set()
        await held
        results = await waiting
        assert results[:5] == [None] * 5
        assert [str(r) for r in results[5:]] == ["the state store is overloaded"] * 2
        await state.close()

    asyncio.run(check())


def test_a_step_with_a_bug_in_it_fails_its_call_and_the_store_goes_on(tmp_path):
    async def check() -> None:
        state = await opened(tmp_path)
        with pytest.raises(StateError, match="division"):
            await state._call(lambda db, now: 1 / 0)
        await state.put("k", b"v", 60)
        assert await state.get("k") == b"v"
        await state.close()

    asyncio.run(check())


def test_after_close_every_call_is_a_state_error(tmp_path):
    async def check() -> None:
        state = await opened(tmp_path)
        await state.close()
        await state.close()
        with pytest.raises(StateError, match="closed"):
            await state.put("k", b"v", 60)

    asyncio.run(check())


def test_a_clock_that_went_back_refills_nothing():
    assert refill(1.0, updated=100.0, now=50.0, capacity=10.0, per_second=1.0) == 1.0


def test_after_a_clock_went_back_a_bucket_fills_also_where_one_only_looks(tmp_path):
    async def check() -> None:
        ahead = await opened(tmp_path, ManualClock(1_000_100_000.0))
        await ahead.take("b", capacity=10, per_second=1, cost=10)
        await ahead.close()
        clock = ManualClock(1_000_000_000.0)
        state = await opened(tmp_path, clock)
        left = []
        for _ in range(3):
            left.append((await state.take("b", capacity=10, per_second=1, cost=0)).remaining)
            clock.advance(4)
        await state.close()
        assert left == [0.0, 4.0, 8.0]

    asyncio.run(check())


def test_after_a_clock_went_back_what_is_over_is_still_removed(tmp_path):
    async def check() -> None:
        clock = SetBack(1_000_100_000.0)
        state = await opened(tmp_path, clock)
        clock.set_back(100_000)
        for i in range(5):
            await state.put(f"k{i}", b"v", 1)
        clock.advance(120)
        await state.put("last", b"v", 60)
        await state.put("last", b"v", 60)
        await state.close()
        with sqlite3.connect(tmp_path / "state.db") as db:
            assert db.execute("SELECT count(*) FROM entry").fetchone() == (1,)

    asyncio.run(check())


def test_the_system_clock_is_the_systems():
    clock = SystemClock()
    assert abs(clock.now() - time.time_ns() / 1e9) < 1
    first, second = clock.monotonic(), clock.monotonic()
    assert second >= first
