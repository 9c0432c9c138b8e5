"""Drafts: a message while it arrives, and content once it is stored.

Up to 256 KiB stay in memory; beyond that the octets go to a file of the shard while they arrive. The file is synced at
commit, before the database row that makes it count.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from typing import Final

from gateway.ops import metrics
from gateway.spool.spool import SpoolError, SpoolFull, Step

SPILL: Final = 256 << 10
_BLOCK: Final = 256 << 10

_file_seconds = metrics.SPOOL_COMMIT_SECONDS.labels("content")


def translate(error: OSError) -> SpoolError:
    """An OSError as the spool's callers know it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return SpoolFull(os.strerror(error.errno))
    return SpoolError(f"{error.strerror} ({error.filename or 'spool'})")


class FileDraft:
    """Implements `gateway.spool.spool.Draft` over a shard's content directory."""

    __slots__ = (
        "_buffer",
        "_executor",
        "_fd",
        "_head",
        "_on_step",
        "_path",
        "eight_bit",
        "id",
        "memory",
        "settled",
        "size",
    )

    def __init__(self, id: str, path: str, executor: Executor, on_step: Callable[[Step], None]) -> None:
        self.id = id
        self.size = 0
        self.eight_bit = False
        self.settled = False
        self._head = b""
        self.memory: bytearray | None = bytearray()
        self._buffer = bytearray()
        self._path = path
        self._fd = -1
        self._executor = executor
        self._on_step = on_step

    @property
    def in_file(self) -> bool:
        return self.memory is None

    @property
    def head(self) -> bytes:
        return self._head if self.memory is None else bytes(self.memory)

    async def write(self, data: bytes) -> None:
        if not data:
            return
        if not self.eight_bit and not data.isascii():
            self.eight_bit = True
        self.size += len(data)
        if self.memory is not None:
            self.memory += data
            if len(self.memory) > SPILL:
                self._head = bytes(self.memory[:SPILL])
                self._buffer, self.memory = self.memory, None
                await self._flush()
            return
        self._buffer += data
        if len(self._buffer) >= _BLOCK:
            await self._flush()

    async def _flush(self) -> None:
        data, self._buffer = self._buffer, bytearray()
        await asyncio.get_running_loop().run_in_executor(self._executor, self._append, data)

    def _append(self, data: bytearray) -> None:
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise translate(error) from error

    async def sync(self) -> None:
        """Make the file and its name durable. Nothing to do for a draft in memory."""
        if self.memory is None:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._sync)

    def _sync(self) -> None:
        started = time.perf_counter()
        self._append(self._buffer)
        self._buffer = bytearray()
        self._on_step(Step.FILE_WRITTEN)
        try:
            os.fsync(self._fd)
            self._on_step(Step.FILE_SYNCED)
            os.close(self._fd)
            self._fd = -1
            sync_directory(os.path.dirname(self._path))
        except OSError as error:
            raise translate(error) from error
        self._on_step(Step.DIRECTORY_SYNCED)
        _file_seconds.observe(time.perf_counter() - started)

    async def blocks(self) -> AsyncIterator[bytes]:
        if self.memory is not None:
            yield bytes(self.memory)
            return
        await self._flush()
        async for block in read_file(self._path, 0, self._executor):
            yield block

    async def abandon(self) -> None:
        if self.settled:
            return
        self.settled = True
        self._buffer = bytearray()
        if self.memory is None:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._remove)

    def _remove(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise translate(error) from error


def sync_directory(path: str) -> None:
    """fsync a directory, so that names made or removed in it survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


async def read_file(path: str, offset: int, executor: Executor) -> AsyncIterator[bytes]:
    """The file's octets from `offset` on, in blocks, read off the event loop. Raises `SpoolError`."""
    loop = asyncio.get_running_loop()
    try:
        fd = await loop.run_in_executor(executor, os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while block := await loop.run_in_executor(executor, os.pread, fd, _BLOCK, offset):
                offset += len(block)
                yield block
        finally:
            os.close(fd)
    except OSError as error:
        raise translate(error) from error


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


class StoredContent:
    """Content in the spool: a head from the database, then a body from the database or from a file."""

    __slots__ = ("_executor", "_load", "_path", "_skip", "eight_bit", "size")

    def __init__(
        self,
        load: Callable[[], Awaitable[tuple[bytes, bytes | None]]],
        path: str,
        skip: int,
        size: int,
        eight_bit: bool,
        executor: Executor,
    ) -> None:
        self._load = load
        self._path = path
        self._skip = skip
        self.size = size
        self.eight_bit = eight_bit
        self._executor = executor

    async def blocks(self) -> AsyncIterator[bytes]:
        head, body = await self._load()
        if body is not None:
            yield head + body
            return
        yield head
        async for block in read_file(self._path, self._skip, self._executor):
            yield block
