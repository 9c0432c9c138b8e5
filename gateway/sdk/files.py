"""Files that a plugin reads and that change while it runs: lists, maps, databases.

*Promises*: a file that cannot be read any more, or that holds nonsense now, does not take away what was read before:
the old content stays in force and the trouble is logged once per change.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from gateway.sdk.log import get_logger
from gateway.sdk.services import Clock

CHECK_SECONDS: Final = 5.0
"""How often a file is looked at, at most."""
MAX_OCTETS: Final = 256 << 20

_T = TypeVar("_T")
_log = get_logger()


@dataclass(frozen=True, slots=True)
class FileContent(Generic[_T]):
    """A file's content, parsed, and the mark by which a change is seen."""

    value: _T
    mark: tuple[int, ...]


def read_file(path: str, parse: Callable[[bytes], _T], *, limit: int = MAX_OCTETS) -> FileContent[_T]:
    """Read and parse a file, here and now. Raises OSError, or ValueError for what is wrong with it."""
    mark = _mark(path)
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"larger than {limit} octets")
    return FileContent(parse(data), mark)


def _mark(path: str) -> tuple[int, ...]:
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size, found.st_ino


class WatchedFile(Generic[_T]):
    """A file, parsed by `parse` (octets in; raises ValueError saying which line is wrong) and read again when changed.

    Call `start` before the first `current`, or give what was `read` already. Reading and parsing happen in a thread.
    """

    def __init__(
        self,
        path: str,
        parse: Callable[[bytes], _T],
        clock: Clock,
        *,
        limit: int = MAX_OCTETS,
        read: FileContent[_T] | None = None,
    ) -> None:
        self.path = path
        self._parse = parse
        self._clock = clock
        self._limit = limit
        self._value: _T | None = read.value if read else None
        self._mark: tuple[int, ...] = read.mark if read else ()
        self._ready = read is not None
        self._checked = float("-inf")
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Read it for the first time. Raises ValueError, saying what is wrong with which file."""
        try:
            self._mark, self._value = await asyncio.to_thread(self._read)
        except OSError as error:
            raise ValueError(f"cannot read {self.path}: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        self._ready = True
        self._checked = self._clock.monotonic()

    async def current(self) -> _T:
        """The content, read again if the file changed since; looks at it every `CHECK_SECONDS` at most."""
        if not self._ready:
            raise RuntimeError(f"{self.path} was not started")
        if self._clock.monotonic() - self._checked >= CHECK_SECONDS and not self._lock.locked():
            async with self._lock:
                self._checked = self._clock.monotonic()
                await self._look()
        return self._value  # type: ignore[return-value]  # it was parsed, whatever that gives

    async def _look(self) -> None:
        mark = self._mark
        try:
            mark = await asyncio.to_thread(_mark, self.path)
            if mark == self._mark:
                return
            self._mark, self._value = await asyncio.to_thread(self._read)
        except (OSError, ValueError) as error:
            # A file that cannot be read is tried again; one that is wrong, when it changes.
            self._mark = self._mark if isinstance(error, OSError) else mark
            _log.error("file.unusable", path=self.path, reason=str(error))
            return
        _log.info("file.read", path=self.path)

    def _read(self) -> tuple[tuple[int, ...], _T]:
        content = read_file(self.path, self._parse, limit=self._limit)
        return content.mark, content.value
