"""Drafts: a message while it arrives, and content once it is stored.

Up to 256 KiB stay in memory; beyond that the octets go to a file of the shard while they arrive. The file is synced at
commit, before the database row that makes it count.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing, suppress
from typing import Final

from gateway.ops import metrics
from gateway.spool.spool import Draft, SpoolError, SpoolFull, Step

SPILL: Final = 256 << 10
_BLOCK: Final = 256 << 10

_file_seconds = metrics.SPOOL_COMMIT_SECONDS.labels("content")


def translate(error: OSError) -> SpoolError:
    """An OSError as the spool's callers know it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return SpoolFull(os.strerror(error.errno))
    return SpoolError(f"{error.strerror} ({error.filename or 'spool'})")


class DraftFile:
    """The file of a large draft. All methods block and may be called from any thread, in any order.

    A session that is cut off abandons its draft while a write may still be on its way; the lock and `_gone` see to it
    that a file descriptor is never used after it was closed, and that a file never comes back.
    """

    __slots__ = ("_fd", "_gone", "_links", "_lock", "_made", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._made = False
        self._gone = False
        self._links: list[str] = []
        self._lock = threading.Lock()

    def append(self, data: bytearray) -> None:
        """Write at the end. Raises `SpoolError`."""
        with self._lock:
            self._append(data)

    def _append(self, data: bytearray) -> None:
        if self._gone:
            raise SpoolError("the draft was abandoned")
        try:
            if not self._made:
                self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                self._made = True
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise translate(error) from error

    def finish(self, data: bytearray, size: int, names: Sequence[str], on_step: Callable[[Step], None]) -> None:
        """Write the rest, `size` octets in all; make the file and its names durable; close it. Raises `SpoolError`.

        `names` are what it is called from now on, all in its directory.
        """
        started = time.perf_counter()
        with self._lock:
            self._append(data)
            on_step(Step.FILE_WRITTEN)
            try:
                if os.fstat(self._fd).st_size != size:
                    raise SpoolError("a write to the draft had failed")
                os.fsync(self._fd)
                on_step(Step.FILE_SYNCED)
                self._close()
                if self.path != names[0]:
                    os.rename(self.path, names[0])
                    self.path = names[0]
                for link in names[1:]:
                    os.link(self.path, link)
                    self._links.append(link)
                sync_directory(os.path.dirname(self.path))
            except OSError as error:
                raise translate(error) from error
            on_step(Step.DIRECTORY_SYNCED)
        _file_seconds.observe(time.perf_counter() - started)

    def remove(self) -> None:
        """Close and remove it, if it was made here. Raises `SpoolError`."""
        with self._lock:
            self._gone = True
            self._close()
            if not self._made:
                return
            self._made = False
            try:
                for path in (*self._links, self.path):
                    with suppress(FileNotFoundError):
                        os.unlink(path)
            except OSError as error:
                raise translate(error) from error

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class FileDraft:
    """Implements `gateway.spool.spool.Draft` over a shard's content directory.

    `check_room` is asked before each block that goes to the file, so that what is kept free stays free.
    """

    __slots__ = (
        "_buffer",
        "_check_room",
        "_executor",
        "_flushing",
        "_head",
        "_on_step",
        "_path",
        "eight_bit",
        "file",
        "id",
        "memory",
        "settled",
        "size",
    )
    # These have no value before there is a file.
    _buffer: bytearray
    _flushing: asyncio.Lock
    _head: bytes

    def __init__(
        self,
        id: str,
        path: str,
        executor: Executor,
        on_step: Callable[[Step], None],
        check_room: Callable[[int], None],
    ) -> None:
        self.id = id
        self.size = 0
        self.eight_bit = False
        self.settled = False
        self.memory = bytearray()
        self.file: DraftFile | None = None
        self._path = path
        self._executor = executor
        self._on_step = on_step
        self._check_room = check_room

    @property
    def head(self) -> bytes:
        return bytes(self.memory) if self.file is None else self._head

    async def write(self, data: bytes) -> None:
        if not data:
            return
        if not self.eight_bit and not data.isascii():
            self.eight_bit = True
        self.size += len(data)
        if self.file is None:
            self.memory += data
            if len(self.memory) > SPILL:
                self._head = bytes(self.memory[:SPILL])
                self._buffer, self.memory = self.memory, bytearray()
                self._flushing = asyncio.Lock()
                self.file = DraftFile(self._path)
                await self._flush(self.file)
            return
        self._buffer += data
        if len(self._buffer) >= _BLOCK:
            await self._flush(self.file)

    async def _flush(self, file: DraftFile) -> None:
        """When this returns, all that was written so far is in the file, whoever put it there."""
        async with self._flushing:
            self._check_room(len(self._buffer))
            data, self._buffer = self._buffer, bytearray()
            await asyncio.get_running_loop().run_in_executor(self._executor, file.append, data)

    async def sync(self, names: Sequence[str]) -> None:
        """Make the file durable, under these names. Nothing to do for a draft in memory."""
        if self.file is not None:
            async with self._flushing:
                self._check_room(len(self._buffer))
                data, self._buffer = self._buffer, bytearray()
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._executor, self.file.finish, data, self.size, names, self._on_step)

    async def flush(self) -> None:
        """Have all that was written so far in the file, if there is one. Nothing is synced."""
        if self.file is not None:
            await self._flush(self.file)

    @property
    def path(self) -> str:
        """Where the file is, if there is one."""
        return self._path

    async def blocks(self) -> AsyncIterator[bytes]:
        if self.file is None:
            yield bytes(self.memory)
            return
        await self._flush(self.file)
        try:
            async with aclosing(read_file(self._path, 0, self._executor)) as blocks:
                async for block in blocks:
                    yield block
        except OSError as error:
            raise translate(error) from error

    async def abandon(self) -> None:
        if self.settled:
            return
        self.settled = True
        if self.file is not None:
            self._buffer = bytearray()
            await asyncio.get_running_loop().run_in_executor(self._executor, self.file.remove)


def sync_directory(path: str) -> None:
    """fsync a directory, so that names made or removed in it survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


async def read_file(path: str, offset: int, executor: Executor) -> AsyncGenerator[bytes, None]:
    """The file's octets from `offset` on, in blocks, read off the event loop. Raises OSError."""
    loop = asyncio.get_running_loop()
    fd = await loop.run_in_executor(executor, os.open, path, os.O_RDONLY | os.O_CLOEXEC)
    pending = None
    try:
        while True:
            pending = loop.run_in_executor(executor, os.pread, fd, _BLOCK, offset)
            block = await asyncio.shield(pending)
            if not block:
                return
            offset += len(block)
            yield block
    finally:
        # A reader that is cut off must not close what a thread still reads from.
        if pending is None or pending.done():
            os.close(fd)
        else:
            pending.add_done_callback(lambda _: os.close(fd))


class MemoryContent:
    """Content that was committed a moment ago and is still in memory."""

    __slots__ = ("data", "eight_bit")

    def __init__(self, data: bytes, eight_bit: bool) -> None:
        self.data = data
        self.eight_bit = eight_bit

    @property
    def size(self) -> int:
        return len(self.data)

    async def blocks(self) -> AsyncIterator[bytes]:
        yield self.data


Load = Callable[[], Awaitable[tuple[bytes, bytes | None] | None]]


class StoredContent:
    """Content in the spool: a head from the database, then a body from the database or from a file.

    `load` gives head and body, body None for one in the file, and None for neither. Content that is not all there
    is told to `broken`, and ends in a `SpoolError` before its last octet, so that half a message is never delivered.
    """

    __slots__ = ("_broken", "_executor", "_load", "_path", "_skip", "eight_bit", "size")

    def __init__(
        self,
        load: Load,
        broken: Callable[[str], Awaitable[None]],
        path: str,
        skip: int,
        size: int,
        eight_bit: bool,
        executor: Executor,
    ) -> None:
        self._load = load
        self._broken = broken
        self._path = path
        self._skip = skip
        self.size = size
        self.eight_bit = eight_bit
        self._executor = executor

    async def blocks(self) -> AsyncIterator[bytes]:
        left = self.size
        async with aclosing(self._parts()) as parts:
            async for block in parts:
                left -= len(block)
                if left < 0:
                    break
                yield block
        if left:
            reason = f"content is {'shorter' if left > 0 else 'longer'} than the {self.size} octets that were stored"
            await self._broken(reason)
            raise SpoolError(reason)

    async def _parts(self) -> AsyncGenerator[bytes, None]:
        found = await self._load()
        if found is None:
            return
        head, body = found
        if body is not None:
            yield head + body if head else body
            return
        if head:
            yield head
        try:
            async with aclosing(read_file(self._path, self._skip, self._executor)) as blocks:
                async for block in blocks:
                    yield block
        except FileNotFoundError:
            return
        except OSError as error:
            raise translate(error) from error


def own_draft(draft: Draft) -> FileDraft:
    """A draft that one of our spools has given. Raises TypeError for another's."""
    if not isinstance(draft, FileDraft):
        raise TypeError("the draft is of another spool")
    return draft
