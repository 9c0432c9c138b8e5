"""Group commit: one thread owns a shard's database and makes all waiting steps durable in one transaction.

*Promises*: a step's future resolves only after the COMMIT that holds it has been synced (WAL, synchronous=FULL). Steps
take effect in the order in which they were submitted.

*Fails by*: a group that fails is rolled back and its steps are tried one by one, so that one bad step does not
fail its neighbours; the bad one's future gets `SpoolFull` or `SpoolError`.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from gateway.ops import log, metrics
from gateway.spool.spool import SpoolError, SpoolFull

_log = log.get()
_T = TypeVar("_T")
_GROUP: Final = 256
_IDLE: Final = 1.0
_BUSY_SECONDS: Final = 10.0

_commit_seconds = metrics.SPOOL_COMMIT_SECONDS.labels("commit")


def connect(path: str) -> sqlite3.Connection:
    """Open a shard's database with the settings that durability rests on."""
    database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("PRAGMA wal_autocheckpoint=4000")
    database.execute("PRAGMA journal_size_limit=67108864")
    database.execute("PRAGMA cache_size=-8000")
    return database


@dataclass(slots=True)
class _Job:
    step: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any] | None
    after: Callable[[], None] | None
    result: Any = None
    error: BaseException | None = None


class Writer:
    """The thread. `idle` is called in it about once a second when there is nothing to do, and between groups."""

    def __init__(
        self, database: sqlite3.Connection, *, name: str, idle: Callable[[sqlite3.Connection], None] | None = None
    ) -> None:
        self._database = database
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(
        self, step: Callable[[sqlite3.Connection], _T], after: Callable[[], None] | None = None
    ) -> asyncio.Future[_T]:
        """Have `step` run in the next group; `after` runs in the thread once the group is durable."""
        future: asyncio.Future[_T] = self._loop.create_future()
        self._jobs.put(_Job(step, future, after))
        return future

    def post(self, step: Callable[[sqlite3.Connection], Any]) -> None:
        """Like `submit`, for a step that nobody waits for; its failure is logged."""
        self._jobs.put(_Job(step, None, None))

    def close(self) -> None:
        """Finish all submitted steps and end the thread. Blocks; call it off the event loop."""
        self._jobs.put(None)
        self._thread.join()
        self._database.close()

    def _run(self) -> None:
        next_idle = 0.0
        while True:
            group, last = self._next_group()
            if group:
                self._make_durable(group)
                self._report(group)
            if last:
                return
            if self._idle and time.monotonic() >= next_idle:
                next_idle = time.monotonic() + _IDLE
                try:
                    self._idle(self._database)
                except sqlite3.Error as error:
                    metrics.SPOOL_ERRORS.labels("idle").inc()
                    _log.warning("spool.idle_failed", error=str(error))

    def _next_group(self) -> tuple[list[_Job], bool]:
        """All steps that wait now, at least one; empty after a second without any. True at the end."""
        try:
            job = self._jobs.get(timeout=_IDLE)
        except queue.Empty:
            return [], False
        group: list[_Job] = []
        while job is not None:
            group.append(job)
            if len(group) >= _GROUP:
                return group, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _make_durable(self, group: list[_Job]) -> None:
        started = time.perf_counter()
        error = self._transaction(group)
        if error is None:
            _commit_seconds.observe(time.perf_counter() - started)
            metrics.SPOOL_GROUP.observe(len(group))
        elif len(group) > 1:
            for job in group:
                self._make_durable([job])
        else:
            group[0].error = _translate(error)
            metrics.SPOOL_ERRORS.labels("commit").inc()
            _log.error("spool.step_failed", error=repr(error))

    def _transaction(self, group: list[_Job]) -> Exception | None:
        database = self._database
        try:
            database.execute("BEGIN IMMEDIATE")
            for job in group:
                job.result = job.step(database)
            database.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  (handed to whoever waits for the step)
            if database.in_transaction:
                try:
                    database.execute("ROLLBACK")
                except sqlite3.Error as again:
                    _log.error("spool.rollback_failed", error=repr(again))
            return error
        return None

    def _report(self, group: list[_Job]) -> None:
        for job in group:
            if job.after and job.error is None:
                job.after()
        waited = [job for job in group if job.future is not None]
        if waited:
            try:
                self._loop.call_soon_threadsafe(_resolve, waited)
            except RuntimeError:
                _log.warning("spool.nobody_waits", steps=len(waited))


def _resolve(group: list[_Job]) -> None:
    for job in group:
        future = job.future
        if future is None or future.done():
            continue
        if job.error is not None:
            future.set_exception(job.error)
        else:
            future.set_result(job.result)


def _translate(error: Exception) -> SpoolError:
    """The error as the spool's callers know it."""
    if isinstance(error, SpoolError):
        return error
    code = getattr(error, "sqlite_errorcode", 0) or 0
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return SpoolFull(str(error))
    return SpoolError(f"{type(error).__name__}: {error}")
