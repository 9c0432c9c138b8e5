"""The writer's thread: groups, their failures, and what waits for whom."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from gateway.spool import writer as module
from gateway.spool.spool import SpoolError, SpoolFull
from gateway.spool.writer import Writer, connect


@contextlib.asynccontextmanager
async def open_writer(
    path: Path, idle: Callable[[sqlite3.Connection], None] | None = None
) -> AsyncIterator[tuple[Writer, list[str]]]:
    """A writer on a new database with a table `t`, and the statements that it has run."""
    database = connect(str(path))
    database.execute("CREATE TABLE t (x INTEGER UNIQUE)")
    ran: list[str] = []
    database.set_trace_callback(ran.append)
    writer = Writer(partial(connect, str(path), create=False), database, name="test", idle=idle)
    try:
        yield writer, ran
    finally:
        writer.end()
        await asyncio.to_thread(writer.close)


def rows(path: Path) -> list[int]:
    """What another connection sees."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [x for (x,) in connection.execute("SELECT x FROM t ORDER BY x")]


def insert(x: int) -> Callable[[sqlite3.Connection], int]:
    def step(db: sqlite3.Connection) -> int:
        db.execute("INSERT INTO t VALUES (?)", (x,))
        return x

    return step


def blocked(release: threading.Event) -> Callable[[sqlite3.Connection], None]:
    def step(db: sqlite3.Connection) -> None:
        assert release.wait(20)

    return step


def test_the_settings_that_durability_rests_on_are_in_force(tmp_path):
    with contextlib.closing(connect(str(tmp_path / "db"))) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_path_with_odd_characters_is_opened_as_it_is(tmp_path):
    path = tmp_path / "a?b#c%41 d.db"
    connect(str(path)).close()
    connect(str(path), create=False).close()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_view_never_makes_a_database(tmp_path):
    with pytest.raises(sqlite3.OperationalError):
        connect(str(tmp_path / "db"), create=False)
    assert not list(tmp_path.iterdir())


def test_steps_that_wait_at_the_same_time_share_one_transaction(tmp_path):
    async def check() -> None:
        release = threading.Event()
        async with open_writer(tmp_path / "db") as (writer, ran):
            first = writer.submit(blocked(release))
            waiting = [writer.submit(insert(x)) for x in range(100)]
            release.set()
            await first
            assert await asyncio.gather(*waiting) == list(range(100))
            assert 1 <= ran.count("COMMIT") <= 2

    asyncio.run(check())


def test_a_step_is_seen_by_others_before_its_future_resolves(tmp_path):
    async def check() -> None:
        async with open_writer(tmp_path / "db") as (writer, _):
            for x in range(20):
                await writer.submit(insert(x))
                assert rows(tmp_path / "db") == list(range(x + 1))

    asyncio.run(check())


def test_after_and_landed_come_once_the_step_is_durable(tmp_path):
    async def check() -> None:
        seen: list[object] = []
        async with open_writer(tmp_path / "db") as (writer, _):
            await writer.submit(
                insert(1), after=lambda: seen.append(rows(tmp_path / "db")), landed=lambda error: seen.append(error)
            )
        assert seen == [[1], None]

    asyncio.run(check())


def test_one_bad_step_does_not_fail_its_neighbours(tmp_path):
    async def check() -> None:
        release, after, landed = threading.Event(), [], []
        async with open_writer(tmp_path / "db") as (writer, _):
            first = writer.submit(blocked(release))
            waiting = [
                writer.submit(insert(x), after=partial(after.append, x), landed=landed.append) for x in (1, 2, 1, 3)
            ]
            release.set()
            await first
            good, second, bad, last = await asyncio.gather(*waiting, return_exceptions=True)
            assert (good, second, last) == (1, 2, 3)
            assert type(bad) is SpoolError and "UNIQUE" in str(bad)
            assert after == [1, 2, 3] and landed == [None, None, bad, None]
            assert rows(tmp_path / "db") == [1, 2, 3]

    asyncio.run(check())


def test_a_step_of_several_statements_is_stored_whole_or_not_at_all(tmp_path):
    def step(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO t VALUES (7)")
        raise ValueError("half way")

    async def check() -> None:
        async with open_writer(tmp_path / "db") as (writer, _):
            with pytest.raises(SpoolError, match="half way"):
                await writer.submit(step)
            await writer.submit(insert(8))
            assert rows(tmp_path / "db") == [8]

    asyncio.run(check())


def test_a_full_database_is_spool_full(tmp_path):
    async def check() -> None:
        async with open_writer(tmp_path / "db") as (writer, _):
            await writer.submit(lambda db: db.execute("PRAGMA max_page_count=8").fetchall())
            with pytest.raises(SpoolFull):
                await writer.submit(
                    lambda db: db.execute("CREATE TABLE big AS SELECT zeroblob(100000) AS b").fetchall()
                )
            await writer.submit(insert(1))
            assert rows(tmp_path / "db") == [1]

    asyncio.run(check())


def test_when_the_database_is_locked_the_whole_group_fails_after_one_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BUSY_SECONDS", 0.2)

    async def check() -> None:
        async with open_writer(tmp_path / "db") as (writer, ran):
            release = threading.Event()
            first = writer.submit(blocked(release))
            waiting = [writer.submit(insert(x)) for x in range(50)]
            release.set()
            await first
            await asyncio.gather(*waiting)
            with contextlib.closing(sqlite3.connect(tmp_path / "db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                ran.clear()
                waiting = [writer.submit(insert(x)) for x in range(100, 150)]
                failed = await asyncio.gather(*waiting, return_exceptions=True)
                assert all(isinstance(error, SpoolError) for error in failed)
                assert sum(statement.startswith("BEGIN") for statement in ran) <= 2
                other.execute("ROLLBACK")
            assert await writer.submit(insert(200)) == 200

    asyncio.run(check())


def test_reads_take_no_lock_and_see_what_was_submitted_before_them(tmp_path):
    async def check() -> None:
        async with open_writer(tmp_path / "db") as (writer, ran):
            writer.submit(insert(5))
            read = writer.read(lambda db: db.execute("SELECT count(*) FROM t").fetchone())
            assert await read == (1,)
            with contextlib.closing(sqlite3.connect(tmp_path / "db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                ran.clear()
                assert await writer.read(lambda db: db.execute("SELECT x FROM t").fetchone()) == (5,)
                assert not any(statement.startswith("BEGIN") for statement in ran)
            with pytest.raises(SpoolError, match="no such table"):
                await writer.read(lambda db: db.execute("SELECT x FROM nowhere"))

    asyncio.run(check())


def test_a_connection_that_cannot_roll_back_is_replaced(tmp_path):
    class Stuck(sqlite3.Connection):
        """A connection whose ROLLBACK fails once something went wrong in it."""

        def execute(self, sql: str, *values: object) -> sqlite3.Cursor:  # type: ignore[override]
            if sql == "ROLLBACK":
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(sql, *values)  # type: ignore[arg-type]

    async def check() -> None:
        path = tmp_path / "db"
        with contextlib.closing(connect(str(path))) as database:
            database.execute("CREATE TABLE t (x INTEGER UNIQUE)")
        stuck = sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Stuck)
        writer = Writer(partial(connect, str(path), create=False), stuck, name="test")
        await writer.submit(insert(1))
        with pytest.raises(SpoolError):
            await writer.submit(insert(1))
        assert await writer.submit(insert(2)) == 2
        assert rows(path) == [1, 2]
        writer.end()
        await asyncio.to_thread(writer.close)

    asyncio.run(check())


def test_closing_finishes_what_was_submitted_and_refuses_the_rest(tmp_path):
    async def check() -> None:
        async with open_writer(tmp_path / "db") as (writer, _):
            waiting = [writer.submit(insert(x)) for x in range(10)]
            writer.post(insert(10))
        assert await asyncio.gather(*waiting) == list(range(10))
        assert rows(tmp_path / "db") == list(range(11))
        writer.post(insert(11))
        with pytest.raises(SpoolError, match="closed"):
            await writer.submit(insert(12))
        assert rows(tmp_path / "db") == list(range(11))

    asyncio.run(check())


def test_notes_are_thrown_away_when_too_many_steps_wait_and_mail_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_NOTES", 5)

    async def check() -> None:
        release = threading.Event()
        async with open_writer(tmp_path / "db") as (writer, _):
            first = writer.submit(blocked(release))
            while not writer._jobs.empty():
                await asyncio.sleep(0)
            for x in range(50):
                writer.post(insert(x))
            mail = writer.submit(insert(100))
            release.set()
            await first
            await mail
            assert rows(tmp_path / "db") == [0, 1, 2, 3, 4, 100]

    asyncio.run(check())


def test_a_future_nobody_waits_for_any_more_does_not_disturb_the_others(tmp_path):
    async def check() -> None:
        release, landed = threading.Event(), []
        async with open_writer(tmp_path / "db") as (writer, _):
            first = writer.submit(blocked(release))
            cancelled, other = writer.submit(insert(1), landed=landed.append), writer.submit(insert(2))
            cancelled.cancel()
            release.set()
            await first
            assert await other == 2
            assert landed == [None], "whoever has to know hears of it all the same"
            assert rows(tmp_path / "db") == [1, 2]

    asyncio.run(check())


def test_upkeep_that_fails_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_IDLE", 0.01)
    calls: list[int] = []

    def idle(database: sqlite3.Connection) -> None:
        calls.append(1)
        raise sqlite3.OperationalError("not now")

    async def check() -> None:
        async with open_writer(tmp_path / "db", idle) as (writer, _):
            async with asyncio.timeout(20):
                while len(calls) < 3:
                    await asyncio.sleep(0)
            assert await writer.submit(insert(1)) == 1

    asyncio.run(check())


def test_a_patient_step_rides_along_with_the_next_one_and_takes_effect_before_it(tmp_path):
    async def check() -> None:
        async with open_writer(tmp_path / "db") as (writer, ran):
            first = writer.submit(insert(1), patient=True)
            second = writer.submit(lambda db: db.execute("SELECT count(*) FROM t").fetchone())
            assert await second == (1,)
            assert await first == 1
            assert ran.count("COMMIT") <= 2

    asyncio.run(check())


def test_a_patient_step_is_made_durable_soon_even_when_nothing_else_comes(tmp_path):
    async def check() -> None:
        async with open_writer(tmp_path / "db") as (writer, _):
            assert await asyncio.wait_for(writer.submit(insert(1), patient=True), 10) == 1
            assert rows(tmp_path / "db") == [1]

    asyncio.run(check())


def test_ending_finishes_a_patient_step(tmp_path):
    async def check() -> None:
        async with open_writer(tmp_path / "db") as (writer, _):
            waiting = writer.submit(insert(1), patient=True)
            writer.end()
            assert await asyncio.wait_for(waiting, 10) == 1

    asyncio.run(check())
