"""Destinations that nothing is delivered to for a while, and how a worker knows: `Watch` looks every second.

On PostgreSQL the list is a table (`gateway.spool.postgres.suspensions`), on SQLite a file beside the shards. One file
serves all shards, those that are still to come too, and can be read on a disk that cannot be written. It is
replaced as a whole, and synced, so that a restart finds it, and a crash finds the old one or the new one.

*Promises*: while the file cannot be read, what it said last goes on to hold. A file that is no such list suspends
nothing and is left where it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from gateway.ops import log
from gateway.ops.operations import LABEL_MAX, Suspension
from gateway.spool.draft import sync_directory
from gateway.spool.spool import SpoolError

NAME: Final = "suspended.json"
COUNT_MAX: Final = 10_000
_OCTETS_MAX: Final = 8 << 20
ENDED_MAX: Final = 100
_LOOK_SECONDS: Final = 1.0
_LATE_SECONDS: Final = 2.0

_log = log.get()


class SuspensionsUnreadable(SpoolError):
    """The file is not what was written."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What is suspended, and the last endings as who ended what and when."""

    suspended: dict[str, Suspension] = field(default_factory=dict)
    ended: list[Suspension] = field(default_factory=list)


class Source(Protocol):
    """Where the list is."""

    async def look(self) -> Listed | None:
        """The list; None when it is as it was at the last look. Raises `SpoolError`."""


def read(root: Path) -> dict[str, Suspension]:
    """The suspensions by destination. Raises `SpoolError`."""
    return _read(root).suspended


def _read(root: Path) -> Listed:
    try:
        with open(root / NAME, "rb") as file:
            octets = file.read(_OCTETS_MAX + 1)
    except FileNotFoundError:
        return Listed()
    except OSError as error:
        raise SpoolError(f"{root / NAME}: {error.strerror}") from error
    try:
        if len(octets) > _OCTETS_MAX:
            raise ValueError("too long")
        data = json.loads(octets)
        found, ended = ([_suspension(entry) for entry in data[key]] for key in ("suspended", "ended"))
        return Listed({one.destination: one for one in found[:COUNT_MAX]}, ended[-ENDED_MAX:])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SuspensionsUnreadable(f"{root / NAME} cannot be read: {error}") from error


def _suspension(entry: dict[str, Any]) -> Suspension:
    texts = [entry["destination"], entry["by"], entry.get("reason", "")]
    since = entry["since"]
    if not all(isinstance(text, str) and len(text) <= LABEL_MAX for text in texts) or not texts[0]:
        raise ValueError("a text that is none")
    if not isinstance(since, int | float) or not math.isfinite(since):
        raise ValueError("a time that is none")
    return Suspension(texts[0], texts[1], float(since), texts[2])


def suspend(root: Path, suspension: Suspension) -> bool:
    """Write it down, durably; False when the destination is suspended already. Raises `SpoolError`."""
    with _changing(root) as listed:
        if suspension.destination in listed.suspended:
            return False
        if len(listed.suspended) >= COUNT_MAX:
            raise SpoolError(f"{COUNT_MAX} destinations are suspended already")
        listed.suspended[suspension.destination] = suspension
        _write(root, listed)
        return True


def resume(root: Path, destination: str, by: str) -> Suspension | None:
    """Take it back, durably; None when there was no such suspension. `by` says who. Raises `SpoolError`."""
    with _changing(root) as listed:
        found = listed.suspended.pop(destination, None)
        if found is not None:
            listed.ended.append(Suspension(destination, by, time.time_ns() / 1e9))
            _write(root, listed)
        return found


@contextlib.contextmanager
def _changing(root: Path) -> Iterator[Listed]:
    """What the file says, to be changed by one at a time."""
    try:
        lock = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield _read(root)
        finally:
            os.close(lock)
    except OSError as error:
        raise SpoolError(f"{root / NAME}: {error.strerror}") from error


def _write(root: Path, listed: Listed) -> None:
    draft = root / f"{NAME}.new"
    data = {
        "suspended": [one.to_json() for one in listed.suspended.values()],
        "ended": [one.to_json() for one in listed.ended[-ENDED_MAX:]],
    }
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(json.dumps(data, indent=1).encode())
        file.flush()
        os.fsync(fd)
    os.replace(draft, root / NAME)
    sync_directory(str(root))


class ListFile:
    """The file as a `Source`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: tuple[int, ...] | None = None

    async def look(self) -> Listed | None:
        return await asyncio.to_thread(self._look)

    def _look(self) -> Listed | None:
        stamp = self._stamp()
        if stamp == self._seen:
            return None
        listed = _read(self._root)
        self._seen = stamp
        return listed

    def _stamp(self) -> tuple[int, ...]:
        try:
            found = os.stat(self._root / NAME)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise SpoolError(f"{self._root / NAME}: {error.strerror}") from error
        return found.st_ino, found.st_mtime_ns, found.st_size


class Watch:
    """What is suspended, as a worker knows it: asked at every attempt, looked up about once a second.

    `resumed` is called with destinations that may be delivered to again, once nothing is put off any more because of
    their suspension, and again a little later, for what was being put off at that moment.
    """

    def __init__(self, source: Source, resumed: Callable[[frozenset[str]], Awaitable[None]]) -> None:
        self._source = source
        self._resumed = resumed
        self._known: dict[str, Suspension] = {}
        self._failing = ""

    def suspended(self, destination: str) -> bool:
        """Whether nothing is to be delivered there now."""
        return bool(self._known) and destination in self._known

    async def run(self) -> None:
        """Look again and again."""
        while True:
            if gone := await self.look():
                await self._resumed(gone)
                await asyncio.sleep(_LATE_SECONDS)
                await self._resumed(gone)
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> frozenset[str]:
        """Look once; gives what is suspended no more."""
        try:
            listed = await self._source.look()
        except SpoolError as error:
            # Said once, and not at every look.
            if str(error) != self._failing:
                self._failing = str(error)
                _log.error("queue.suspensions_unreadable", error=str(error))
            return frozenset()
        self._failing = ""
        if listed is None:
            return frozenset()
        before, self._known = self._known, listed.suspended
        for one in self._known.values():
            if one.destination not in before:
                _log.warning("destination.suspended", destination=one.destination, by=one.by, reason=one.reason)
        gone = frozenset(before) - frozenset(self._known)
        by = {one.destination: one.by for one in listed.ended}
        for destination in gone:
            _log.warning("destination.resumed", destination=destination, by=by.get(destination, ""))
        return gone
