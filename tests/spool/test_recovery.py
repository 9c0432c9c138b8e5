"""What a start finds on disk, and what it makes of it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path

import pytest

from gateway.spool.recovery import make_root
from gateway.spool.spool import Room, SpoolError, State, Step
from gateway.spool.sqlite import SqliteSpool, open_all
from tests.spool.rig import (
    HEAD,
    LARGE,
    NOW,
    SMALL,
    content_files,
    database,
    defer,
    deliver,
    hasten,
    message,
    new_id,
    octets,
    options,
    put,
    query,
    take,
)


async def filled(directory: Path, *contents: bytes) -> list[str]:
    """A spool with these messages, closed again."""
    spool = await SqliteSpool.open(options(directory))
    ids = [await put(spool, content) for content in contents]
    await spool.close()
    return ids


def test_drafts_of_the_last_run_are_removed_and_content_stays(tmp_path):
    async def check() -> None:
        small, large = await filled(tmp_path, SMALL, LARGE)
        spool = await SqliteSpool.open(options(tmp_path))
        draft = spool.draft(new_id())
        await draft.write(LARGE)
        await spool.close()
        assert content_files(options(tmp_path)) == {large, draft.id}
        spool = await SqliteSpool.open(options(tmp_path))
        assert content_files(options(tmp_path)) == {large}
        assert set(await take(spool)) == {small, large}
        await spool.close()

    asyncio.run(check())


@pytest.mark.parametrize("damage", ["missing", "short", "long", "head missing"])
def test_a_message_whose_file_is_not_what_was_stored_is_corrupt_and_kept(tmp_path, damage):
    async def check() -> None:
        good, bad = await filled(tmp_path, LARGE, LARGE)
        file = database(options(tmp_path)).parent / "content" / bad
        match damage:
            case "missing":
                file.unlink()
            case "short":
                os.truncate(file, len(LARGE) - 1)
            case "long":
                os.truncate(file, len(LARGE) + 1)
            case "head missing":
                query(
                    options(tmp_path), "DELETE FROM content WHERE n = (SELECT content FROM message WHERE id = ?)", bad
                )
        for _ in range(3):
            spool = await SqliteSpool.open(options(tmp_path))
            assert set(await take(spool)) == {good}
            (corrupt,) = await spool.list(state=State.CORRUPT)
            assert corrupt.id == bad and "content" in corrupt.reason
            assert (await spool.counts())[State.CORRUPT] == 1
            assert await spool.release([bad]) == await hasten(spool, [bad]) == 0
            await spool.close()
            assert file.exists() is (damage != "missing"), "what is left of it is kept"
        spool = await SqliteSpool.open(options(tmp_path))
        assert await spool.drop([bad]) == 1
        assert content_files(options(tmp_path)) == {good}
        await spool.close()

    asyncio.run(check())


def test_a_small_message_whose_content_is_gone_is_corrupt_and_kept(tmp_path):
    async def check() -> None:
        good, bad = await filled(tmp_path, SMALL, SMALL)
        query(options(tmp_path), "DELETE FROM content WHERE n = (SELECT content FROM message WHERE id = ?)", bad)
        spool = await SqliteSpool.open(options(tmp_path))
        assert set(await take(spool)) == {good}
        assert [m.id for m in await spool.list(state=State.CORRUPT)] == [bad]
        await spool.close()

    asyncio.run(check())


def test_content_that_vanishes_while_we_run_is_found_when_it_is_read(tmp_path):
    async def check() -> None:
        (id,) = await filled(tmp_path, LARGE)
        spool = await SqliteSpool.open(options(tmp_path))
        (claimed,) = (await take(spool)).values()
        (database(options(tmp_path)).parent / "content" / id).unlink()
        with pytest.raises(SpoolError):
            await octets(claimed)
        # The scheduler takes this for trouble of ours, and puts the message off; even expiry must not remove it.
        await defer(spool, claimed.message, NOW + 1)
        assert await take(spool, NOW + 2) == {}
        await deliver(spool, claimed.message)
        (corrupt,) = await spool.list()
        assert (corrupt.id, corrupt.state) == (id, State.CORRUPT)
        await spool.close()

    asyncio.run(check())


@pytest.mark.parametrize(
    "damage",
    [
        "slots = '[]'",
        "slots = 'no json'",
        "slots = '{\"a\": 1}'",
        "slots = CAST(x'5b22ff225d' AS TEXT)",
        "envelope = '[]'",
        "envelope = CAST(x'ff' AS TEXT)",
        "received = 'yesterday'",
        "size = 'many'",
    ],
)
def test_a_row_that_cannot_be_read_is_corrupt_and_does_not_hold_up_the_others(tmp_path, damage):
    async def check() -> None:
        first, bad, last = await filled(tmp_path, SMALL, SMALL, SMALL)
        query(options(tmp_path), f"UPDATE message SET {damage} WHERE id = ?", bad)
        for _ in range(2):
            spool = await SqliteSpool.open(options(tmp_path))
            taken = await take(spool)
            assert set(taken) == {first, last}
            assert {m.id: m.state for m in await spool.list()}[bad] is State.CORRUPT
            assert (await spool.counts())[State.CORRUPT] == 1
            with pytest.raises(SpoolError, match=bad):
                await spool.show(bad)
            for claimed in taken.values():
                await defer(spool, claimed.message, NOW + 60)
            assert await hasten(spool) == 2
            (explained,) = await spool.explain(bad)
            assert explained.stored is not None and explained.stored.state is State.CORRUPT
            await spool.close()
        assert query(options(tmp_path), "SELECT count(*) FROM message WHERE id = ?", bad) == [(1,)]

    asyncio.run(check())


@pytest.mark.parametrize("damage", ["head = 7", "body = 7", "body = 1.5", "body = CAST(body AS TEXT)"])
def test_content_that_is_no_octets_makes_its_message_corrupt_and_does_not_hold_up_the_others(tmp_path, damage):
    async def check() -> None:
        first, bad, last = await filled(tmp_path, SMALL, SMALL, SMALL)
        query(
            options(tmp_path), f"UPDATE content SET {damage} WHERE n = (SELECT content FROM message WHERE id = ?)", bad
        )
        spool = await SqliteSpool.open(options(tmp_path))
        view = await open_all(options(tmp_path))
        seen = await view.show(bad)
        assert seen is not None
        with pytest.raises(SpoolError, match="content is shorter"):
            await octets(seen)
        await view.close()
        assert set(await take(spool)) == {first, last}
        assert {m.id: m.state for m in await spool.list()}[bad] is State.CORRUPT
        await spool.close()

    asyncio.run(check())


@pytest.mark.parametrize("lane", ["", "smtp:a.test:25"])
@pytest.mark.parametrize(
    "damage",
    [
        "lane = CAST(x'fe' AS TEXT)",
        "priority = 7",
        "priority = 'x'",
        "due = 'soon'",
        "due = x'ff'",
        "deadline = 'late'",
        "id = CAST(x'fe' AS TEXT)",
    ],
)
def test_a_row_that_cannot_be_found_does_not_hold_up_the_others_and_is_due_where_it_can_be(tmp_path, damage, lane):
    async def check() -> None:
        first, bad, last = await filled(tmp_path, SMALL, SMALL, SMALL)
        query(options(tmp_path), "UPDATE message SET lane = ?", lane)
        query(options(tmp_path), f"UPDATE message SET {damage} WHERE id = ?", bad)
        spool = await SqliteSpool.open(options(tmp_path))
        room = Room(9, 9, 9, 9, lanes={"smtp:a.test:25": (9, 9, 9)})
        taken: set[str] = set()
        for _ in range(3):
            taken |= {one.message.id for one in await spool.claim(NOW, 9, room)}
        if damage.startswith("id"):
            assert taken == {first, last}
            assert [m.state for m in await spool.list()].count(State.CORRUPT) == 1
        else:
            # A time that is none sorts behind all others, and is seen when there is none.
            assert taken >= {first, last}
            assert taken == {first, bad, last} or damage.startswith("deadline")
        await spool.close()

    asyncio.run(check())


def test_a_record_that_cannot_be_read_does_not_hide_the_message(tmp_path):
    async def check() -> None:
        (id,) = await filled(tmp_path, SMALL)
        query(options(tmp_path), "UPDATE record SET body = '{'")
        spool = await SqliteSpool.open(options(tmp_path))
        (explained,) = await spool.explain(id)
        assert explained.record == {"id": id} and explained.stored is not None
        await spool.close()

    asyncio.run(check())


def aside(directory: Path) -> list[Path]:
    return sorted((directory / "spool").glob("shard-00.corrupt-*"))


def test_a_database_that_is_garbage_is_set_aside_and_mail_goes_on(tmp_path):
    async def check() -> None:
        for times in (1, 2):
            (id,) = await filled(tmp_path, LARGE)
            path = database(options(tmp_path))
            path.write_bytes(os.urandom(20_000))
            spool = await SqliteSpool.open(options(tmp_path))
            assert await spool.list() == []
            assert set(await take(spool)) == set()
            await deliver(spool, (await take_new(spool)))
            await spool.close()
            assert len(aside(tmp_path)) == times
            kept = [d for d in aside(tmp_path) if (d / "content" / id).exists()]
            assert len(kept) == 1 and (kept[0] / "content" / id).read_bytes() == LARGE

    async def take_new(spool: SqliteSpool):
        id = await put(spool)
        return (await take(spool))[id].message

    asyncio.run(check())


def test_a_damaged_page_is_set_aside_without_harm_to_the_new_database(tmp_path):
    async def check() -> None:
        await filled(tmp_path, *[SMALL] * 50)
        path = database(options(tmp_path))
        octets_ = bytearray(path.read_bytes())
        # All but the first page, which says that it is a database: it opens, and fails when it is read.
        octets_[4096:] = b"\xa5" * (len(octets_) - 4096)
        path.write_bytes(octets_)
        spool = await SqliteSpool.open(options(tmp_path))
        ids = {await put(spool) for _ in range(3)}
        # Killed, not closed: what counts is what the log on disk holds.
        copy = tmp_path / "copy"
        assert (path.parent / "spool.db-wal").exists(), "the log of the new database was removed with the old one"
        os.makedirs(copy / "spool")
        os.system(f"cp -a {path.parent} {copy / 'spool'}/")
        await spool.close()
        spool = await SqliteSpool.open(options(copy))
        assert set(await take(spool)) == ids
        await spool.close()
        assert len(aside(tmp_path)) == 1

    asyncio.run(check())


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_a_database_that_was_lost_does_not_take_its_content_with_it(tmp_path, how):
    async def check() -> None:
        (id,) = await filled(tmp_path, LARGE)
        path = database(options(tmp_path))
        path.unlink()
        if how == "empty":
            path.touch()
        spool = await SqliteSpool.open(options(tmp_path))
        assert await spool.list() == []
        await spool.close()
        (kept,) = aside(tmp_path)
        assert (kept / "content" / id).read_bytes() == LARGE

    asyncio.run(check())


def test_a_spool_of_another_version_is_left_alone(tmp_path):
    async def check() -> None:
        await filled(tmp_path, SMALL)
        query(options(tmp_path), "PRAGMA user_version = 99")
        with pytest.raises(SpoolError, match="another version"):
            await SqliteSpool.open(options(tmp_path))
        query(options(tmp_path), "PRAGMA user_version = 1")
        spool = await SqliteSpool.open(options(tmp_path))
        assert len(await spool.list()) == 1
        await spool.close()

    asyncio.run(check())


@pytest.mark.parametrize("step", [Step.RECOVERY_BEGUN, Step.RECOVERY_DONE])
def test_recovery_that_is_stopped_can_be_begun_again(tmp_path, step):
    class Stopped(BaseException):
        """Stands for the end of the process."""

    def stop(reached: Step) -> None:
        if reached is step:
            raise Stopped

    async def check() -> None:
        small, large, lost = await filled(tmp_path, SMALL, LARGE, LARGE)
        content = database(options(tmp_path)).parent / "content"
        (content / lost).unlink()
        (content / "orphan").write_bytes(b"x")
        query(options(tmp_path), "UPDATE message SET claimed = 1")
        for _ in range(2):
            with pytest.raises(Stopped):
                await SqliteSpool.open(options(tmp_path), on_step=stop)
        spool = await SqliteSpool.open(options(tmp_path))
        assert {id: await octets(c) for id, c in (await take(spool)).items()} == {
            small: HEAD + SMALL,
            large: HEAD + LARGE,
        }
        assert [m.id for m in await spool.list(state=State.CORRUPT)] == [lost]
        assert content_files(options(tmp_path)) == {large}
        await spool.close()

    asyncio.run(check())


def test_a_file_that_gets_its_name_once_others_may_write_again_is_no_orphan(tmp_path):
    async def check() -> None:
        await filled(tmp_path, SMALL)
        content = database(options(tmp_path)).parent / "content"
        again = content / new_id()
        again.write_bytes(b"of an import that came to nothing")

        def enter(reached: Step) -> None:
            if reached is Step.RECOVERY_DONE:
                again.write_bytes(b"of the next try, whose row is stored now")

        spool = await SqliteSpool.open(options(tmp_path), on_step=enter)
        await spool.close()
        assert again.read_bytes() == b"of the next try, whose row is stored now"

    asyncio.run(check())


def test_what_is_no_file_in_the_content_directory_is_left_alone(tmp_path):
    async def check() -> None:
        await filled(tmp_path, LARGE)
        content = database(options(tmp_path)).parent / "content"
        (content / "lost+found").mkdir()
        (content / "link").symlink_to("/etc/hostname")
        spool = await SqliteSpool.open(options(tmp_path))
        await spool.close()
        assert {"lost+found", "link"} <= content_files(options(tmp_path))

    asyncio.run(check())


def test_the_spool_directory_and_its_parents_are_made_for_the_owner_only(tmp_path):
    root = tmp_path / "a" / "b"
    make_root(root)
    make_root(root)
    assert root.stat().st_mode & 0o777 == 0o700


def test_a_message_of_an_old_claim_is_handed_out_after_a_restart(tmp_path):
    async def check() -> None:
        (id,) = await filled(tmp_path, SMALL)
        query(options(tmp_path), "UPDATE message SET claimed = 1")
        spool = await SqliteSpool.open(options(tmp_path))
        assert set(await take(spool)) == {id}
        await spool.close()

    asyncio.run(check())


def test_the_database_is_inspectable_while_it_is_in_use(tmp_path):
    async def check() -> None:
        spool = await SqliteSpool.open(options(tmp_path))
        new = message()
        await put(spool, SMALL, new)
        connection = sqlite3.connect(f"file:{database(options(tmp_path))}?mode=ro", uri=True)
        found = connection.execute(
            "SELECT m.id, m.state, c.body FROM message m JOIN content c ON c.n = m.content"
        ).fetchall()
        connection.close()
        assert found == [(new.id, "queued", HEAD + SMALL)]
        await spool.close()

    asyncio.run(check())


def test_a_shard_from_before_there_were_lanes_gets_them_and_loses_nothing(tmp_path: Path) -> None:
    (id,) = asyncio.run(filled(tmp_path, SMALL))
    for statement in (
        "DROP TRIGGER message_amended",
        "DROP INDEX message_lane",
        "DROP INDEX message_deadline",
        "DROP INDEX message_aside",
        "DROP INDEX message_oldest",
        "ALTER TABLE message DROP COLUMN lane",
        "ALTER TABLE message DROP COLUMN priority",
        "ALTER TABLE message DROP COLUMN deadline",
        "CREATE INDEX message_due ON message (due) WHERE state = 'queued' AND claimed = 0",
    ):
        query(options(tmp_path), statement)

    async def again() -> None:
        # An operator's look comes first, and changes nothing about the tables.
        view = await open_all(options(tmp_path))
        assert [message.id for message in await view.list()] == [id]
        assert await hasten(view) == 1 and (await view.counts())[State.QUEUED] == 1
        await view.close()
        spool = await SqliteSpool.open(options(tmp_path))
        try:
            taken = await take(spool)
            assert list(taken) == [id]
            await defer(spool, taken[id].message, NOW + 60)
        finally:
            await spool.close()

    asyncio.run(again())
    assert query(options(tmp_path), "SELECT lane, priority, deadline FROM message") == [("", 1, 1e18)]


def test_what_is_amended_is_no_longer_filed_under_its_old_destination(tmp_path: Path) -> None:
    asyncio.run(filled(tmp_path, SMALL, SMALL, SMALL))
    opts = options(tmp_path)
    query(opts, "UPDATE message SET lane = 'smtp:dead.test:25'")
    ids = [id for (id,) in query(opts, "SELECT id FROM message ORDER BY id")]
    query(opts, "UPDATE message SET reason = 'returned: by hand' WHERE id = ?", ids[0])
    query(opts, "UPDATE message SET envelope = '{}' WHERE id = ?", ids[1])
    query(opts, "UPDATE message SET due = 0, reason = reason, envelope = envelope WHERE id = ?", ids[2])
    assert query(opts, "SELECT lane FROM message ORDER BY id") == [("",), ("",), ("smtp:dead.test:25",)]
