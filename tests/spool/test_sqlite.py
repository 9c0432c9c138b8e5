"""The spool over its shards: durability, trouble with the disk, workers that come and go, the operator beside it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.spool import free
from gateway.spool import sqlite as module
from gateway.spool.spool import RecipientStatus, Settlement, SpoolError, SpoolFull, State, Step
from gateway.spool.sqlite import SqliteSpool, open_all
from tests.spool.rig import (
    HEAD,
    LARGE,
    NOW,
    SMALL,
    after,
    content_files,
    database,
    defer,
    deliver,
    message,
    new_dsn,
    new_id,
    noticed,
    octets,
    options,
    put,
    query,
    take,
)
from tests.support.process import binary, wait_until
from tests.support.servers import require_root


class Child:
    """A spool in another process, see child.py."""

    def __init__(self, directory: Path, role: str = "worker") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.spool.child", str(directory), role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self.pid = self._process.pid
        assert self._read() == "ready"

    def _read(self) -> Any:
        assert self._process.stdout is not None
        while True:
            line = self._process.stdout.readline()
            assert line, "the child ended"
            with contextlib.suppress(ValueError):  # the other lines are its log
                return json.loads(line)

    def tell(self, command: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._read()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(30)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    started = Child(tmp_path)
    yield started
    started.kill()


# Durability


@pytest.mark.parametrize("kind", ["small", "large"])
def test_a_commit_is_durable_when_it_returns(tmp_path, child, kind):
    id = new_id()
    assert child.tell(f"commit {kind} {id}") == id
    child.kill()

    async def check() -> None:
        spool = await SqliteSpool.open(options(tmp_path))
        (claimed,) = (await take(spool)).values()
        assert claimed.message.id == id
        assert await octets(claimed) == HEAD + (SMALL if kind == "small" else LARGE)
        await spool.close()

    asyncio.run(check())


def test_each_commit_is_synced_before_it_returns(tmp_path, child):
    trace = tmp_path / "trace"
    with traced(child.pid, trace, "trace=fdatasync,fsync"):
        counts = []
        for kind in ("small", "large"):
            before = trace.read_text().count("sync(")
            child.tell(f"commit {kind} {new_id()}")
            counts.append(trace.read_text().count("sync(") - before)
    assert counts[0] >= 1
    assert counts[1] >= 3, "file, directory and row"


def test_a_message_is_seen_by_others_before_the_commit_returns(tmp_path):
    async def check() -> None:
        spool = await SqliteSpool.open(options(tmp_path))
        for content in (SMALL, LARGE):
            id = await put(spool, content)
            assert query(options(tmp_path), "SELECT state FROM message WHERE id = ?", id) == [("queued",)]
            assert query(options(tmp_path), "SELECT count(*) FROM record WHERE id = ?", id) == [(1,)]
        await spool.close()

    asyncio.run(check())


def test_many_commits_at_once_take_few_transactions(tmp_path):
    groups: list[int] = []

    class Counting:
        def observe(self, size: float) -> None:
            groups.append(int(size))

    async def check(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gateway.spool.writer.metrics.SPOOL_GROUP", Counting())
        spool = await SqliteSpool.open(options(tmp_path))
        ids = await asyncio.gather(*(put(spool) for _ in range(200)))
        assert set(await take(spool)) == set(ids)
        await spool.close()

    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(check(monkeypatch))
    assert sum(groups) >= 200 and len(groups) < 50


def test_a_dsn_is_in_the_transaction_that_removes_its_message(tmp_path):
    seen: list[tuple[int, int]] = []

    async def check() -> None:
        def look(step: Step) -> None:
            if step in (Step.SETTLE_BEGUN, Step.SETTLE_DONE):
                ids = [id for (id,) in query(options(tmp_path), "SELECT id FROM message")]
                seen.append((ids.count(id), ids.count(dsn.message.id)))

        spool = await SqliteSpool.open(options(tmp_path), on_step=look)
        id, dsn = await put(spool), new_dsn()
        stored = (await take(spool))[id].message
        await spool.settle(Settlement(id, after(stored, RecipientStatus.FAILED), dsns=(dsn,)))
        await spool.close()

    asyncio.run(check())
    assert seen == [(1, 0), (0, 1)]


# Callers that go away


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_a_message_whose_commit_is_cut_off_is_either_whole_or_not_there(tmp_path, content):
    async def check() -> None:
        spool = await SqliteSpool.open(options(tmp_path))
        release = threading.Event()
        blocked = spool._shards[0].writer.submit(lambda db: release.wait(20) and None)
        draft = spool.draft(new_id())
        await draft.write(content)
        commit = asyncio.get_running_loop().create_task(spool.commit(draft, message(draft.id)))
        while not draft.settled:
            await asyncio.sleep(0)
        commit.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await commit
        await draft.abandon()  # what the front door does then
        release.set()
        await blocked
        assert [m.id for m in await spool.list()] == [draft.id]
        (claimed,) = (await take(spool)).values()
        assert await octets(claimed) == HEAD + content
        await deliver(spool, claimed.message)
        assert await spool.list() == [] and not content_files(options(tmp_path))
        await spool.close()

    asyncio.run(check())


def test_a_large_message_cut_off_before_its_row_leaves_nothing(tmp_path):
    async def check() -> None:
        spool = await SqliteSpool.open(options(tmp_path))
        draft = spool.draft(new_id())
        await draft.write(LARGE)
        assert draft.file is not None
        with draft.file._lock:
            commit = asyncio.get_running_loop().create_task(spool.commit(draft, message(draft.id)))
            for _ in range(20):
                await asyncio.sleep(0)
            commit.cancel()
            gone = asyncio.get_running_loop().create_task(draft.abandon())
            for _ in range(20):
                await asyncio.sleep(0)
        await gone
        with contextlib.suppress(asyncio.CancelledError):
            await commit
        assert await spool.list() == [] and not content_files(options(tmp_path))
        await spool.close()

    asyncio.run(check())


def test_two_messages_of_one_id_do_not_harm_each_other(tmp_path):
    async def check() -> None:
        spool = await SqliteSpool.open(options(tmp_path))
        for content in (SMALL, LARGE):
            id = await put(spool, content)
            for second in (SMALL, LARGE):
                with pytest.raises(SpoolError):
                    await put(spool, second, message(id))
            assert await octets((await take(spool))[id]) == HEAD + content
        await spool.close()

    asyncio.run(check())


# Memory


def test_what_memory_does_not_hold_comes_from_the_database(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FRESH_OCTETS", 5 * len(HEAD + SMALL))

    async def check() -> None:
        spool = await SqliteSpool.open(options(tmp_path))
        ids = {await put(spool) for _ in range(20)}
        assert len(spool._fresh) == 5
        claimed = await take(spool)
        claimed |= await take(spool)
        assert set(claimed) == ids
        for one in claimed.values():
            assert await octets(one) == HEAD + SMALL
            await deliver(spool, one.message)
        assert spool._fresh_octets == 0 and not spool._claimed
        assert await spool.list() == []
        await spool.close()

    asyncio.run(check())


# Room


def test_less_room_than_is_to_stay_free_is_spool_full_and_asked_for_once_a_second(tmp_path, monkeypatch):
    class Usage:
        free = 10_000_000

    asked: list[str] = []
    monkeypatch.setattr(free.shutil, "disk_usage", lambda path: asked.append(path) or Usage)

    async def check() -> None:
        spool = await SqliteSpool.open(options(tmp_path, min_free=9_000_000))
        spool.check_room(1_000_000)
        with pytest.raises(SpoolFull):
            spool.check_room(1_000_001)
        draft = spool.draft(new_id())
        with pytest.raises(SpoolFull):
            for _ in range(8):
                await draft.write(LARGE)
            await spool.commit(draft, message(draft.id))
        await draft.abandon()
        assert len(asked) <= 2
        assert not content_files(options(tmp_path))
        await spool.close()

    asyncio.run(check())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    require_root("mounting a small disk")
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run([binary("mount"), "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run([binary("umount"), "--lazy", str(path)], check=True)


@pytest.mark.slow
def test_on_a_full_disk_nothing_is_half_stored_and_nothing_acknowledged_is_lost(small_disk):
    async def check() -> None:
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"x" * 65536)
        spool = await SqliteSpool.open(options(small_disk))
        acknowledged = []
        refused = 0
        for _ in range(200):
            try:
                acknowledged.append(await put(spool, SMALL))
            except SpoolFull:
                refused += 1
        assert acknowledged and refused
        with pytest.raises(SpoolFull):
            await put(spool, LARGE)
        assert not content_files(options(small_disk))
        assert [m.id for m in await spool.list(limit=2000)] == acknowledged
        # What the refused ones left of the log is room, too.
        with pytest.raises(sqlite3.OperationalError, match="disk is full"):
            for n in range(1000):
                query(options(small_disk), "INSERT INTO record VALUES (?, '')", f"number {n}")
        await spool.close()
        with contextlib.suppress(OSError):
            (small_disk / "more").write_bytes(b"x" * (1 << 20))
        assert shutil.disk_usage(small_disk).free == 0
        # With not one octet free it cannot be opened, and says so; a little room is enough.
        with pytest.raises(SpoolError, match="disk is full"):
            await SqliteSpool.open(options(small_disk))
        ballast.unlink()
        spool = await SqliteSpool.open(options(small_disk))
        claimed = await take(spool)
        assert set(claimed) == set(acknowledged)
        for one in claimed.values():
            assert await octets(one) == HEAD + SMALL
        await spool.close()

    asyncio.run(check())


@pytest.mark.slow
def test_a_disk_that_has_room_again_takes_mail_again(small_disk):
    async def check() -> None:
        spool = await SqliteSpool.open(options(small_disk))
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 65536))
        with pytest.raises(SpoolFull):
            for _ in range(100):
                await put(spool)
        stored = await spool.list()
        ballast.unlink()
        id = await put(spool)
        assert [m.id for m in await spool.list()] == [*(m.id for m in stored), id]
        for one in (await take(spool)).values():
            await deliver(spool, one.message)
        assert await spool.list() == []
        await spool.close()

    asyncio.run(check())


@pytest.mark.slow
def test_a_disk_that_turns_read_only_refuses_mail_and_keeps_what_it_has(small_disk):
    async def check() -> None:
        spool = await SqliteSpool.open(options(small_disk))
        id = await put(spool, SMALL)
        # The kernel does not turn a disk read-only by command while files on it are open for writing.
        await spool.close()
        subprocess.run([binary("mount"), "-o", "remount,ro", str(small_disk)], check=True)
        with pytest.raises(SpoolError):
            await SqliteSpool.open(options(small_disk))
        subprocess.run([binary("mount"), "-o", "remount,rw", str(small_disk)], check=True)
        spool = await SqliteSpool.open(options(small_disk))
        assert set(await take(spool)) == {id}
        await spool.close()

    asyncio.run(check())


# A disk that fails


@contextlib.contextmanager
def traced(pid: int, output: Path, *expressions: str) -> Iterator[None]:
    """Attach strace to all threads of a process, for the time of the block."""
    argv = [binary("strace"), "-f", "-p", str(pid), "-o", str(output)]
    for expression in expressions:
        argv += ["-e", expression]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE)
    try:
        threads = set(os.listdir(f"/proc/{pid}/task"))
        wait_until(lambda: all(_tracer(pid, tid) for tid in threads), "strace is attached")
        yield
    finally:
        process.terminate()
        process.wait(30)
        if process.stderr is not None:
            process.stderr.close()


def _tracer(pid: int, tid: str) -> int:
    status = Path(f"/proc/{pid}/task/{tid}/status").read_text()
    return int(status.partition("TracerPid:")[2].split()[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "call"), [("small", "fdatasync"), ("large", "fdatasync"), ("large", "fsync")], ids=lambda x: x
)
def test_a_sync_that_fails_is_a_spool_error_and_leaves_no_message(tmp_path, child, kind, call):
    first, failed, second = new_id(), new_id(), new_id()
    child.tell(f"commit {kind} {first}")
    with traced(child.pid, tmp_path / "trace", f"trace={call}", f"inject={call}:error=EIO"):
        answer = child.tell(f"commit {kind} {failed}")
        assert answer["error"] == "SpoolError", answer
        assert child.tell("list") == [first]
    assert child.tell(f"commit {kind} {second}") == second
    assert child.tell("list") == [first, second]
    child.kill()

    async def check() -> None:
        spool = await SqliteSpool.open(options(tmp_path))
        assert set(await take(spool)) == {first, second}
        if kind == "large":
            assert content_files(options(tmp_path)) == {first, second}
        await spool.close()

    asyncio.run(check())


@pytest.mark.slow
def test_a_write_that_finds_no_room_is_spool_full(tmp_path, child):
    id = new_id()
    with traced(child.pid, tmp_path / "trace", "trace=pwrite64", "inject=pwrite64:error=ENOSPC"):
        answer = child.tell(f"commit small {id}")
        assert answer["error"] == "SpoolFull", answer
    assert child.tell("list") == []
    assert child.tell(f"commit small {id}") == id


# Workers that come and go


def test_two_gateways_on_one_spool_are_refused(tmp_path, child):
    async def check() -> None:
        with pytest.raises(SpoolError, match="in use by another Gatepost"):
            await SqliteSpool.open(options(tmp_path))

    asyncio.run(check())
    assert child.tell("list") == []


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 6])
def test_another_number_of_workers_takes_over_all_shards(tmp_path, workers):
    async def check() -> None:
        ids = set()
        four = [await SqliteSpool.open(options(tmp_path), worker=n, workers=4) for n in range(4)]
        for n, spool in enumerate(four):
            ids |= {await put(spool, SMALL), await put(spool, LARGE)}
            assert len(content_files(options(tmp_path), n)) == 1
        for spool in four:
            await spool.close()
        now = [await SqliteSpool.open(options(tmp_path), worker=n, workers=workers) for n in range(workers)]
        seen: list[str] = []
        for spool in now:
            for claimed in (await take(spool)).values():
                seen.append(claimed.message.id)
                assert await octets(claimed) in (HEAD + SMALL, HEAD + LARGE)
                await deliver(spool, claimed.message)
        assert sorted(seen) == sorted(ids)
        for n, spool in enumerate(now):
            new = await put(spool)
            assert query(options(tmp_path), "SELECT id FROM message", shard=n) == [(new,)]
            assert set(await take(spool)) == {new}
            await spool.close()

    asyncio.run(check())


def test_an_adopted_shard_keeps_its_put_off_mail_and_is_asked_for_it(tmp_path):
    async def check() -> None:
        second = await SqliteSpool.open(options(tmp_path), worker=1, workers=2)
        id = await put(second)
        await defer(second, (await take(second))[id].message, NOW + 60)
        await second.close()
        only = await SqliteSpool.open(options(tmp_path))
        assert await take(only) == {}
        assert await only.next_due(NOW) == NOW + 60
        claimed = (await take(only, NOW + 60))[id]
        await defer(only, claimed.message, NOW + 90)
        assert await only.next_due(NOW) == NOW + 90
        assert query(options(tmp_path), "SELECT due FROM message", shard=1) == [(NOW + 90,)]
        await only.close()

    asyncio.run(check())


def test_one_shard_that_cannot_be_opened_lets_go_of_the_others(tmp_path):
    async def check() -> None:
        for n in range(2):
            await (await SqliteSpool.open(options(tmp_path), worker=n, workers=2)).close()
        query(options(tmp_path), "PRAGMA user_version = 99", shard=1)
        with pytest.raises(SpoolError, match="another version"):
            await SqliteSpool.open(options(tmp_path))
        query(options(tmp_path), "PRAGMA user_version = 1", shard=1)
        await (await SqliteSpool.open(options(tmp_path))).close()

    asyncio.run(check())


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_spool_path_that_is_no_directory_is_a_spool_error(tmp_path, path):
    (tmp_path / "file").write_text("x")

    async def check() -> None:
        from gateway.spool.spool import SpoolOptions

        for opening in (SqliteSpool.open(SpoolOptions(str(tmp_path / path))), open_all(SpoolOptions(str(tmp_path)))):
            with pytest.raises(SpoolError):
                await opening

    asyncio.run(check())


# The operator


def test_an_operator_beside_the_worker_sees_and_changes_its_mail(tmp_path, child):
    ids = [new_id() for _ in range(3)]
    for id, kind in zip(ids, ("small", "large", "small"), strict=True):
        child.tell(f"commit {kind} {id}")

    async def check() -> None:
        view = await open_all(options(tmp_path))
        assert [m.id for m in await view.list()] == ids
        assert await view.hold([ids[0]], "by hand") == 1
        shown = await view.show(ids[1])
        assert shown is not None and await octets(shown) == HEAD + LARGE
        assert await view.drop([ids[1]]) == 1
        assert (await view.counts())[State.HOLD] == 1
        (explained,) = await view.explain(ids[0])
        assert explained.stored is not None and explained.stored.reason == "by hand"
        await view.close()

    asyncio.run(check())
    assert child.tell("list") == [ids[0], ids[2]]
    assert not content_files(options(tmp_path))


def test_a_worker_notices_what_an_operator_in_another_process_did(tmp_path):
    async def check() -> None:
        spool = await SqliteSpool.open(options(tmp_path))
        id = await put(spool)
        await defer(spool, (await take(spool))[id].message, NOW + 500)
        operator = Child(tmp_path, "operator")
        try:
            assert await asyncio.to_thread(operator.tell, "hasten") == 1
            await noticed(spool)
            assert set(await take(spool)) == {id}
        finally:
            operator.kill()
        await spool.close()

    asyncio.run(check())


def test_an_operator_killed_in_the_middle_harms_nobody(tmp_path, child):
    id = new_id()
    child.tell(f"commit small {id}")
    operator = Child(tmp_path, "operator")
    operator.tell("list")
    operator.kill()
    other = new_id()
    assert child.tell(f"commit small {other}") == other
    assert child.tell("list") == [id, other]


def test_a_view_of_a_spool_that_is_only_being_made_is_empty(tmp_path):
    async def check() -> None:
        (tmp_path / "spool" / "shard-00" / "content").mkdir(parents=True)
        for _ in range(2):
            view = await open_all(options(tmp_path))
            assert await view.list() == [] and sum((await view.counts()).values()) == 0
            await view.close()
            database(options(tmp_path)).touch()

    asyncio.run(check())


def test_a_view_of_a_shard_that_is_garbage_is_a_spool_error_and_changes_nothing(tmp_path):
    async def check() -> None:
        await (await SqliteSpool.open(options(tmp_path))).close()
        database(options(tmp_path)).write_bytes(b"garbage" * 1000)
        with pytest.raises(SpoolError):
            await open_all(options(tmp_path))
        assert database(options(tmp_path)).read_bytes() == b"garbage" * 1000

    asyncio.run(check())


def test_an_expiry_that_finds_nothing_leaves_what_waits_in_memory(tmp_path):
    async def check() -> None:
        spool = await SqliteSpool.open(options(tmp_path))
        id = await put(spool)
        assert await spool.expire(State.QUARANTINE, NOW + 1, 10) == []
        assert not any(shard.stale for shard in spool._shards) and len(spool._fresh) == 1
        assert set(await take(spool)) == {id}
        await spool.close()

    asyncio.run(check())
