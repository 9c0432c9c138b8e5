"""Drafts: memory, file, and the ways in which they end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.spool.draft import SPILL, DraftFile, FileDraft, StoredContent, translate
from gateway.spool.spool import SpoolError, SpoolFull, Step


def no_step(step: Step) -> None:
    pass


def room(size: int) -> None:
    pass


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def draft(path: Path, executor: ThreadPoolExecutor) -> FileDraft:
    return FileDraft("id", str(path / "id"), executor, no_step, room)


async def whole(of: FileDraft | StoredContent) -> bytes:
    return b"".join([block async for block in of.blocks()])


def test_up_to_256_kib_stay_in_memory_and_one_octet_more_goes_to_a_file(tmp_path, executor):
    async def check() -> None:
        made = draft(tmp_path, executor)
        await made.write(b"a" * SPILL)
        assert made.file is None and not list(tmp_path.iterdir())
        await made.write(b"b")
        assert made.file is not None
        await made.sync([str(tmp_path / "id")])
        assert (tmp_path / "id").read_bytes() == b"a" * SPILL + b"b"
        assert made.head == b"a" * SPILL and made.size == SPILL + 1

    asyncio.run(check())


def test_a_content_file_is_for_its_owner_only(tmp_path, executor):
    async def check() -> None:
        made = draft(tmp_path, executor)
        await made.write(b"a" * (SPILL + 1))
        assert (tmp_path / "id").stat().st_mode & 0o777 == 0o600
        await made.abandon()

    asyncio.run(check())


def test_eight_bit_is_noticed_in_any_block(tmp_path, executor):
    async def check() -> None:
        for blocks in ([b"a", b"\x80"], [b"a" * (SPILL + 1), b"b", b"\xff", b"c"]):
            made = draft(tmp_path, executor)
            for block in blocks:
                assert not made.eight_bit
                await made.write(block)
                if not block.isascii():
                    break
            assert made.eight_bit
            await made.abandon()

    asyncio.run(check())


def test_durable_steps_come_in_their_order(tmp_path, executor):
    async def check() -> None:
        steps: list[Step] = []
        made = FileDraft("id", str(tmp_path / "id"), executor, steps.append, room)
        await made.write(b"a" * (SPILL + 1))
        await made.sync([str(tmp_path / "id")])
        assert steps == [Step.FILE_WRITTEN, Step.FILE_SYNCED, Step.DIRECTORY_SYNCED]

    asyncio.run(check())


def test_filters_that_read_at_the_same_time_all_see_the_whole_message(tmp_path, executor):
    async def check() -> None:
        made = draft(tmp_path, executor)
        content = os.urandom(SPILL + 1) + os.urandom(200_000)
        await made.write(content[: SPILL + 1])
        await made.write(content[SPILL + 1 :])
        assert made.file is not None
        # The first reader's write is held up, so that the others begin while it is on its way.
        with made.file._lock:
            readers = [asyncio.get_running_loop().create_task(whole(made)) for _ in range(6)]
            for _ in range(20):
                await asyncio.sleep(0)
        assert all([read == content for read in await asyncio.gather(*readers)])
        await made.abandon()

    asyncio.run(check())


def test_a_draft_abandoned_while_a_write_is_on_its_way_is_gone_for_good(tmp_path, executor):
    async def check() -> None:
        made = draft(tmp_path, executor)
        await made.write(b"a" * (SPILL + 1))
        assert made.file is not None
        with made.file._lock:
            cut_off = asyncio.get_running_loop().create_task(made.write(b"b" * SPILL))
            for _ in range(20):
                await asyncio.sleep(0)
            cut_off.cancel()
            gone = asyncio.get_running_loop().create_task(made.abandon())
            for _ in range(20):
                await asyncio.sleep(0)
        await gone
        with contextlib.suppress(asyncio.CancelledError):
            await cut_off
        executor.shutdown(wait=True)
        assert not list(tmp_path.iterdir())

    asyncio.run(check())


def test_a_write_that_comes_after_the_end_makes_no_file(tmp_path):
    file = DraftFile(str(tmp_path / "id"))
    file.remove()
    with pytest.raises(SpoolError, match="abandoned"):
        file.append(bytearray(b"late"))
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_there_before_is_neither_written_nor_removed(tmp_path, executor):
    async def check() -> None:
        (tmp_path / "id").write_bytes(b"somebody's mail")
        made = draft(tmp_path, executor)
        with pytest.raises(SpoolError):
            await made.write(b"a" * (SPILL + 1))
        await made.abandon()
        assert (tmp_path / "id").read_bytes() == b"somebody's mail"

    asyncio.run(check())


def test_a_draft_whose_write_failed_can_not_be_made_durable(tmp_path, executor):
    async def check() -> None:
        made = draft(tmp_path, executor)
        await made.write(b"a" * (SPILL + 1))
        assert made.file is not None
        fd, made.file._fd = made.file._fd, os.open(tmp_path / "id", os.O_RDONLY)
        with pytest.raises(SpoolError):
            await made.write(b"b" * SPILL)
        os.close(made.file._fd)
        made.file._fd = fd
        await made.write(b"c")
        with pytest.raises(SpoolError, match="had failed"):
            await made.sync([str(tmp_path / "id")])
        await made.abandon()
        assert not list(tmp_path.iterdir())

    asyncio.run(check())


def test_room_is_asked_for_before_each_block(tmp_path, executor):
    left = 3 * SPILL

    def check_room(size: int) -> None:
        nonlocal left
        left -= size
        if left < 0:
            raise SpoolFull("no room")

    async def check() -> None:
        made = FileDraft("id", str(tmp_path / "id"), executor, no_step, check_room)
        with pytest.raises(SpoolFull):
            for _ in range(20):
                await made.write(b"a" * SPILL)
        assert (tmp_path / "id").stat().st_size <= 3 * SPILL
        await made.abandon()

    asyncio.run(check())


def test_threads_and_file_descriptors_do_not_outlive_a_draft(tmp_path, executor):
    # Other tests of this process may have left some that hang.
    threads = threading.active_count()

    async def check() -> None:
        gc.collect()  # what earlier tests left to be closed
        before = len(os.listdir("/proc/self/fd"))
        for ending in (FileDraft.sync, FileDraft.abandon):
            made = draft(tmp_path, executor)
            await made.write(b"a" * (2 * SPILL))
            blocks = made.blocks()
            assert await anext(blocks)
            await blocks.aclose()  # type: ignore[attr-defined]
            if ending is FileDraft.sync:
                await made.sync([str(tmp_path / "id")])
            else:
                await made.abandon()
            (tmp_path / "id").unlink(missing_ok=True)
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(check())
    assert threading.active_count() <= threads + 4 + 1


def stored(path: Path, size: int, executor: ThreadPoolExecutor, head: bytes = b"") -> tuple[StoredContent, list[str]]:
    reasons: list[str] = []

    async def load() -> tuple[bytes, bytes | None]:
        return head, None

    async def broken(reason: str) -> None:
        reasons.append(reason)

    return StoredContent(load, broken, str(path), 0, size, False, executor), reasons


@pytest.mark.parametrize("size", [0, 5, 99_999, 100_001])
def test_content_of_another_size_than_was_stored_ends_in_an_error(tmp_path, executor, size):
    async def check() -> None:
        (tmp_path / "f").write_bytes(b"x" * 100_000)
        content, reasons = stored(tmp_path / "f", size, executor)
        with pytest.raises(SpoolError):
            await whole(content)
        assert len(reasons) == 1 and str(size) in reasons[0]

    asyncio.run(check())


def test_a_content_file_that_is_missing_is_told_of_and_one_that_cannot_be_read_is_not(tmp_path, executor):
    async def check() -> None:
        content, reasons = stored(tmp_path / "missing", 9, executor, b"head")
        with pytest.raises(SpoolError):
            await whole(content)
        assert reasons
        content, reasons = stored(tmp_path, 9, executor)
        with pytest.raises(SpoolError):
            await whole(content)
        assert not reasons, "trouble that may pass is no reason to give a message up"

    asyncio.run(check())


def test_disk_trouble_is_told_apart_by_whether_there_is_room():
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert isinstance(translate(OSError(number, os.strerror(number))), SpoolFull)
    assert type(translate(OSError(errno.EIO, "Input/output error", "/x"))) is SpoolError
