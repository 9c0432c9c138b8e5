"""How much of records is kept, how the rest goes, and what is never let go."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from gateway.ops import metrics
from gateway.spool import retention, writer
from gateway.spool.retention import kept
from gateway.spool.shard import Shard
from gateway.spool.spool import SpoolError
from gateway.spool.sqlite import SqliteSpool, open_all
from tests.spool.rig import NOW, attempt, database, deliver, message, new_id, options, put, query, take

RECORD = "x" * 1000


@pytest.fixture(autouse=True)
def upkeep_when_the_test_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_IDLE", 3600.0)


def on_shard(directory: Path, check: Callable[[SqliteSpool, Shard], Awaitable[None]], **values: Any) -> None:
    async def run() -> None:
        spool = await SqliteSpool.open(options(directory, **values))
        try:
            for _ in range(2):
                await spool._shards[0].writer.read(lambda db: None)
            await check(spool, spool._shards[0])
        finally:
            await spool.close()

    asyncio.run(run())


async def upkeep(shard: Shard) -> int:
    """Have the shard's upkeep run until it has no more to do; says how often it ran."""
    times = 1
    while await shard.writer.read(shard.upkeep):
        times += 1
    return times


async def ids(spool: SqliteSpool) -> list[str]:
    return [str(record["id"]) for record in await spool.records(limit=100_000)]


def note(spool: SqliteSpool, text: str = RECORD) -> str:
    id = new_id()
    spool.note({"id": id, "text": text})
    return id


def test_the_oldest_go_when_there_is_too_much(tmp_path: Path) -> None:
    async def check(spool: SqliteSpool, shard: Shard) -> None:
        made = [note(spool) for _ in range(200)]
        with structlog.testing.capture_logs() as logs:
            assert await upkeep(shard) == 1
            assert await ids(spool) == made
            made += [note(spool) for _ in range(300)]
            await upkeep(shard)
        left = await ids(spool)
        assert left == made[-len(left) :] and 300 < len(left) < 400
        ((octets,),) = query(options(tmp_path), "SELECT sum(length(body)) FROM record")
        assert 0.8 * 400_000 < octets <= 0.95 * 400_000
        (event,) = [log for log in logs if log["event"] == "records.dropped"]
        assert (event["reason"], event["records"], event["left"]) == ("size", 500 - len(left), octets)

    on_shard(tmp_path, check, keep_octets=400_000, keep_records=1e10)


def test_it_goes_in_small_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_STEP_ROWS", 20)

    async def check(spool: SqliteSpool, shard: Shard) -> None:
        for _ in range(200):
            note(spool)
        counts = [len(await ids(spool))]
        while await shard.writer.read(shard.upkeep):
            counts.append(len(await ids(spool)))
        assert {before - after for before, after in itertools.pairwise(counts)} == {20}
        assert len(counts) > 3

    on_shard(tmp_path, check, keep_octets=100_000, keep_records=1e10)


def test_what_belongs_to_a_message_that_is_still_here_stays(tmp_path: Path) -> None:
    async def check(spool: SqliteSpool, shard: Shard) -> None:
        here = [new_id() for _ in range(30)]
        for id in here:
            await put(spool, new=message(id, record={"id": id, "text": RECORD}))
        gone = [note(spool) for _ in range(30)]
        claimed = await take(spool)
        with structlog.testing.capture_logs() as logs:
            await upkeep(shard)
            assert await ids(spool) == here
            assert [log["event"] for log in logs] == ["records.dropped", "records.too_large"]
            await upkeep(shard)
            assert len(logs) == 2, "it is not tried again at once"
        assert gone[0] not in await ids(spool)
        for id in here:
            await deliver(spool, claimed[id].message)
        shard.retention._next_size = 0.0
        await upkeep(shard)
        left = await ids(spool)
        assert left == here[-len(left) :] and len(left) < 10
        assert {id for (id,) in query(options(tmp_path), "SELECT DISTINCT id FROM attempt")} == set(left)

    on_shard(tmp_path, check, keep_octets=10_000, keep_records=1e10)


def test_how_much_there_is_is_always_known(tmp_path: Path) -> None:
    def counted() -> tuple[int, int]:
        ((records, octets),) = query(
            options(tmp_path),
            "SELECT (SELECT count(*) FROM record), (SELECT total(length(CAST(body AS BLOB))) FROM record)"
            " + (SELECT total(length(CAST(body AS BLOB))) FROM attempt)",
        )
        return records, int(octets)

    async def check(spool: SqliteSpool, shard: Shard) -> None:
        id = await put(spool)
        spool.note({"id": id, "text": "änders"})
        other = note(spool)
        spool.note({"id": other, "text": "shorter"})
        assert await shard.writer.read(kept) == counted()
        await deliver(spool, (await take(spool))[id].message)
        assert await shard.writer.read(kept) == counted()
        await spool.drop([await put(spool)], by="root")
        assert await shard.writer.read(kept) == counted() and counted()[0] == 3
        with pytest.raises(SpoolError):
            await shard.writer.submit(lambda db: [db.execute("DELETE FROM record"), db.execute("nonsense")])
        assert await shard.writer.read(kept) == counted()
        await shard.writer.submit(lambda db: db.execute("DELETE FROM record"))
        assert await shard.writer.read(kept) == counted() and counted()[0] == 0

    on_shard(tmp_path, check)


def test_a_shard_of_before_is_counted_when_it_is_opened(tmp_path: Path) -> None:
    async def fill(spool: SqliteSpool, shard: Shard) -> None:
        await put(spool)
        note(spool)

    on_shard(tmp_path, fill)
    with sqlite3.connect(database(options(tmp_path))) as db:
        before = kept(db)
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        db.execute("DROP TABLE kept")

    async def check(spool: SqliteSpool, shard: Shard) -> None:
        assert await shard.writer.read(kept) == before != (0, 0)
        note(spool)
        assert (await shard.writer.read(kept))[0] == before[0] + 1

    on_shard(tmp_path, check)


def test_metrics_say_how_many_there_are_and_how_many_went(tmp_path: Path) -> None:
    def value(metric: Any) -> float:
        return float(metric._value.get())

    async def check(spool: SqliteSpool, shard: Shard) -> None:
        before = value(metrics.RECORDS), value(metrics.RECORDS_OCTETS)
        dropped = value(metrics.RECORDS_DROPPED.labels("size"))
        for _ in range(5):
            note(spool)
        await upkeep(shard)
        records, octets = await shard.writer.read(kept)
        assert (value(metrics.RECORDS) - before[0], value(metrics.RECORDS_OCTETS) - before[1]) == (records, octets)
        for _ in range(20):
            note(spool)
        await upkeep(shard)
        await upkeep(shard)
        records, octets = await shard.writer.read(kept)
        assert (value(metrics.RECORDS) - before[0], value(metrics.RECORDS_OCTETS) - before[1]) == (records, octets)
        assert value(metrics.RECORDS_DROPPED.labels("size")) - dropped == 25 - records > 0

    before = value(metrics.RECORDS)
    on_shard(tmp_path, check, keep_octets=10_000, keep_records=1e10)
    assert value(metrics.RECORDS) == before, "a shard that is closed is not counted any more"


def test_what_all_may_keep_is_shared_out_among_the_shards(tmp_path: Path) -> None:
    async def check() -> None:
        wanted = options(tmp_path, keep_octets=900)
        for worker in range(3):
            spool = await SqliteSpool.open(wanted, worker=worker, workers=3)
            assert [shard.retention._octets for shard in spool._shards] == [300]
            await spool.close()
        spool = await SqliteSpool.open(wanted, worker=0, workers=1)
        assert [shard.retention._octets for shard in spool._shards] == [300] * 3
        await spool.close()

    asyncio.run(check())


def test_redacted_records_and_attempts_hold_no_local_part(tmp_path: Path) -> None:
    # A key with which no hash holds the names by chance.
    (tmp_path / "redact.key").write_text("00" * 32)
    wanted = options(tmp_path, redact=True, key_file=str(tmp_path / "redact.key"))

    async def check() -> None:
        spool = await SqliteSpool.open(wanted)
        id = new_id()
        record = {
            "id": id,
            "sender": "ann@sender.test",
            "recipients": [{"address": "ben@example.test", "reply": "ben"}],
        }
        await put(spool, new=message(id, record=record))
        await deliver(spool, (await take(spool))[id].message)
        held = await put(spool)
        await spool.hold([held], "ben@example.test asked for it")
        await spool.release([held], by="ann on mx")
        view = await open_all(wanted)
        await view.drop([held], by="ann on mx")
        await view.close()
        for table in ("record", "attempt"):
            for (body,) in query(wanted, f"SELECT body FROM {table}"):
                assert "ben" not in body and "ann@" not in body
        (told,) = await spool.explain(id)
        assert told.record["sender"].endswith("@sender.test") and told.record["redacted"] == []
        assert told.attempts[0]["recipient"] == told.record["recipients"][0]["address"]
        assert told.attempts[0]["outcome"] == attempt().outcome
        assert {a["host"] for (e,) in [await spool.explain(held)] for a in e.attempts} == {"ann on mx"}
        await spool.close()

    asyncio.run(check())


def test_an_operator_without_the_key_of_a_redacting_gateway_is_told(tmp_path: Path) -> None:
    wanted = options(tmp_path, redact=True, key_file=str(tmp_path / "redact.key"))

    async def check() -> None:
        await (await SqliteSpool.open(wanted)).close()
        (tmp_path / "redact.key").unlink()
        with pytest.raises(SpoolError, match=r"redact\.key"):
            await open_all(wanted)

    asyncio.run(check())


def test_attempts_are_given_by_the_ids_of_a_page(tmp_path: Path) -> None:
    async def check(spool: SqliteSpool, shard: Shard) -> None:
        ids = [await put(spool) for _ in range(3)]
        for claimed in (await take(spool)).values():
            await deliver(spool, claimed.message)
        found = await spool.attempts(ids[0], ids[1])
        assert {id: [a["outcome"] for a in made] for id, made in found.items()} == {id: ["delivered"] for id in ids[:2]}
        assert NOW == found[ids[0]][0]["time"]

    on_shard(tmp_path, check)
