"""One shard: its lock, its upkeep, its claims when the disk fails."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.mail.session import base32
from gateway.spool import retention, writer
from gateway.spool import shard as module
from gateway.spool.shard import Shard
from gateway.spool.spool import HANDOVER_STEPS, SpoolError, Step
from gateway.spool.sqlite import SqliteSpool
from tests.spool.rig import LARGE, NOW, SMALL, content_files, deliver, message, new_id, options, put, query, take


@pytest.fixture(autouse=True)
def upkeep_when_the_test_says_so(monkeypatch):
    monkeypatch.setattr(writer, "_IDLE", 3600.0)


def on_shard(directory: Path, check: Callable[[SqliteSpool, Shard], object], **values: object) -> None:
    async def run() -> None:
        spool = await SqliteSpool.open(options(directory, **values))
        try:
            await check(spool, spool._shards[0])  # type: ignore[misc]
        finally:
            await spool.close()

    asyncio.run(run())


def id_of_age(seconds: float) -> str:
    return base32(int((time.time_ns() / 1e9 - seconds) * 1000), 9) + "00001"


async def upkeep(shard: Shard) -> None:
    """Have the shard's upkeep run now, sweeping included."""
    for _ in range(2):
        await shard.writer.read(lambda db: None)  # the thread's own, which comes after its first group, is over then
    shard.retention.sweep_now()
    while await shard.writer.read(shard.upkeep):
        pass


def test_records_are_kept_for_their_time_and_longer_while_their_message_is_here(tmp_path):
    async def check(spool: SqliteSpool, shard: Shard) -> None:
        old_gone, old_here, young = id_of_age(200), id_of_age(201), id_of_age(50)
        for id in (old_gone, old_here, young):
            await put(spool, new=message(id))
        claimed = await take(spool)
        for id in (old_gone, young):
            await deliver(spool, claimed[id].message)
        rejected = id_of_age(202)
        spool.note({"id": rejected})
        await upkeep(shard)
        assert {e.record["id"] for e in await spool.explain("")} == {old_here, young}
        assert query(options(tmp_path), "SELECT id FROM attempt") == [(young,)]
        await deliver(spool, claimed[old_here].message)
        await upkeep(shard)
        assert {e.record["id"] for e in await spool.explain("")} == {young}

    on_shard(tmp_path, check, keep_records=100.0)


def test_more_old_records_than_one_step_takes_go_in_several(tmp_path, monkeypatch):
    monkeypatch.setattr(retention, "_STEP_ROWS", 3)

    async def check(spool: SqliteSpool, shard: Shard) -> None:
        for n in range(10):
            spool.note({"id": id_of_age(500 + n)})
        for _ in range(2):
            await shard.writer.read(lambda db: None)
        shard.retention.sweep_now()
        left = []
        while await shard.writer.read(shard.upkeep):
            left.append(len(await spool.explain("")))
        assert left == [7, 4, 1] and await spool.explain("") == []

    on_shard(tmp_path, check, keep_records=100.0)


def test_room_that_a_flood_took_is_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SLACK_OCTETS", 50 * 4096)
    monkeypatch.setattr(module, "_SHRINK_OCTETS", 100 * 4096)
    pages = "PRAGMA page_count"

    async def check(spool: SqliteSpool, shard: Shard) -> None:
        await asyncio.gather(*(put(spool, b"x" * 100_000) for _ in range(30)))
        ((before,),) = query(options(tmp_path), pages)
        for claimed in (await take(spool)).values():
            await deliver(spool, claimed.message)
        for _ in range(20):
            await shard.writer.read(shard.upkeep)
        ((after,),) = query(options(tmp_path), pages)
        assert before > 700 and after < 150

    on_shard(tmp_path, check)


def test_a_second_owner_is_refused(tmp_path):
    async def check(spool: SqliteSpool, shard: Shard) -> None:
        with pytest.raises(SpoolError, match="in use by another Gatepost"):
            await SqliteSpool.open(options(tmp_path))
        await put(spool)
        assert len(await take(spool)) == 1

    on_shard(tmp_path, check)


def test_a_claim_that_fails_is_tried_again_soon_and_not_at_once(tmp_path):
    async def check(spool: SqliteSpool, shard: Shard) -> None:
        id = await put(spool, LARGE)
        query(options(tmp_path), "ALTER TABLE message RENAME TO away")
        with pytest.raises(SpoolError):
            await spool.claim(NOW, 10)
        due = await spool.next_due(NOW)
        assert due is not None and NOW < due <= NOW + 5
        query(options(tmp_path), "ALTER TABLE away RENAME TO message")
        assert set(await take(spool, due)) == {id}

    on_shard(tmp_path, check)


def test_new_mail_is_handed_out_though_the_database_cannot_be_asked(tmp_path):
    async def check(spool: SqliteSpool, shard: Shard) -> None:
        fresh = await put(spool)
        query(options(tmp_path), "ALTER TABLE message RENAME TO away")
        shard.next_due = 0.0
        assert set(await take(spool)) == {fresh}
        query(options(tmp_path), "ALTER TABLE away RENAME TO message")

    on_shard(tmp_path, check)


def test_a_content_file_goes_with_its_message_and_not_before(tmp_path):
    steps: list[tuple[Step, bool]] = []

    async def check() -> None:
        def on_step(step: Step) -> None:
            steps.append((step, bool(content_files(options(tmp_path)))))

        spool = await SqliteSpool.open(options(tmp_path), on_step=on_step)
        id = await put(spool, LARGE)
        await deliver(spool, (await take(spool))[id].message)
        await spool.close()

    asyncio.run(check())
    assert [step for step, there in steps if there] == [
        Step.FILE_WRITTEN, Step.FILE_SYNCED, Step.DIRECTORY_SYNCED, Step.COMMIT_BEGUN, Step.COMMIT_DONE,
        Step.CLAIM_DONE, Step.SETTLE_BEGUN, Step.SETTLE_DONE,
    ]  # fmt: skip
    assert [step for step, there in steps if not there] == [Step.RECOVERY_BEGUN, Step.RECOVERY_DONE, Step.FILE_REMOVED]
    assert {step for step, _ in steps} == set(Step) - set(HANDOVER_STEPS)


def test_a_content_file_that_cannot_be_removed_does_not_undo_the_settlement(tmp_path):
    async def check(spool: SqliteSpool, shard: Shard) -> None:
        id = await put(spool, LARGE)
        claimed = (await take(spool))[id]
        os.unlink(shard.path_of(id))
        os.mkdir(shard.path_of(id))
        await deliver(spool, claimed.message)
        assert await spool.list() == []
        os.rmdir(shard.path_of(id))

    on_shard(tmp_path, check)


def test_an_external_change_is_noticed_and_our_own_is_not(tmp_path):
    async def check(spool: SqliteSpool, shard: Shard) -> None:
        id = new_id()
        await put(spool, SMALL, message(id))
        await take(spool)
        await upkeep(shard)
        await asyncio.sleep(0)
        assert not shard.stale
        query(options(tmp_path), "UPDATE message SET reason = 'x'")
        await upkeep(shard)
        await asyncio.sleep(0)
        assert shard.stale and shard.next_due == 0

    on_shard(tmp_path, check)


def test_a_look_by_an_operator_is_no_change(tmp_path):
    async def check(spool: SqliteSpool, shard: Shard) -> None:
        from gateway.spool.sqlite import open_all

        await put(spool)
        view = await open_all(options(tmp_path))
        assert len(await view.list()) == 1
        await view.close()
        await upkeep(shard)
        await asyncio.sleep(0)
        assert not shard.stale

    on_shard(tmp_path, check)
