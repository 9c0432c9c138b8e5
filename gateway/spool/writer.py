"""Group commit: one thread owns a shard's database and makes all waiting steps durable in one transaction.

*Promises*: a step's future resolves only after the COMMIT that holds it has been synced (WAL, synchronous=FULL). Steps
take effect in the order in which they were submitted. Reads come after the steps that they were waiting with, in no
transaction, so they neither take the write lock nor cost a sync.

*Fails by*: a group that fails is rolled back and its steps are tried one by one, so that one bad step does not
fail its neighbours; the bad one's future gets `SpoolFull` or `SpoolError`. Where not even a transaction can be
begun, the whole group fails.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

from gateway.ops import log, metrics
from gateway.spool.spool import SpoolError, SpoolFull

_log = log.get()
_T = TypeVar("_T")
_GROUP: Final = 256
_IDLE: Final = 0.2
_SOON: Final = 0.1
_PATIENCE: Final = 0.005
_BUSY_SECONDS: Final = 10.0
CHECKPOINT_OCTETS: Final = 16 << 20
_NOTES: Final = 10_000
"""So many steps may wait before notes, which nobody waits for, are thrown away: memory is bounded, mail comes first."""

_SETTINGS: Final = (
    "synchronous=FULL",
    "journal_size_limit=67108864",
    "cache_size=-8000",
    # Some distributions overwrite what is deleted; in a queue that writes half as much again.
    "secure_delete=FAST",
)
_FULL: Final = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE}

_commit_seconds = metrics.SPOOL_COMMIT_SECONDS.labels("commit")


def connect(path: str, *, create: bool = True) -> sqlite3.Connection:
    """Open a shard's database with the settings that durability rests on. Raises sqlite3.Error."""
    if create:
        database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    else:
        uri = f"file:{path.replace('%', '%25').replace('?', '%3f').replace('#', '%23')}?mode=rw"
        database = sqlite3.connect(uri, _BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True)
    # A damaged text must spoil its own row only, and not the statement that reads it with others.
    database.text_factory = _text
    try:
        if create and database.execute("PRAGMA page_count").fetchone() == (0,):
            # Only now: on a database that holds something this is a write, and would wait for its owner.
            database.execute("PRAGMA auto_vacuum=INCREMENTAL")
        (page,) = database.execute("PRAGMA page_size").fetchone()
        for setting in (*_SETTINGS, f"wal_autocheckpoint={CHECKPOINT_OCTETS // page}"):
            database.execute(f"PRAGMA {setting}").fetchall()
        (mode,) = database.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise sqlite3.OperationalError("the file system cannot hold a database in WAL mode")
    except BaseException:
        database.close()
        raise
    return database


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")


class Database(Protocol):
    """What a step sees: a connection to SQLite, or one to PostgreSQL. Values stand for ``?`` in the text."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Any:
        """Gives a cursor: `fetchone`, `fetchall`, `rowcount`, and the rows one after the other."""

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Any:
        """The same statement with many values."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""

    def close(self) -> None:
        """Undo what was not committed, and end."""


_D = TypeVar("_D", bound=Database)


@dataclass(slots=True)
class Job:
    """A step that waits. `reads` says that it changes nothing."""

    step: Callable[[Any], Any]
    future: asyncio.Future[Any] | None = None
    after: Callable[[], None] | None = None
    landed: Callable[[SpoolError | None], None] | None = None
    reads: bool = False
    result: Any = None
    error: SpoolError | None = None


class GroupCommit(ABC, Generic[_D]):
    """The thread. `open` gives the connection; `idle` is called in the thread about five times a second, between
    groups.

    Where `idle` says that it has more to do, it is called again a tenth of a second later. What is particular to a
    kind of database is in `_transaction`, `_translate`, and `errors`, which its library raises.
    """

    errors: ClassVar[type[Exception]]

    def __init__(
        self,
        open: Callable[[], _D],
        database: _D,
        *,
        name: str,
        idle: Callable[[_D], bool | None] | None = None,
    ) -> None:
        self._open = open
        self._database = database
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._patient: list[Job] = []
        self._hurry: asyncio.TimerHandle | None = None
        self._idle = idle
        self._pause = _IDLE
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(
        self,
        step: Callable[[_D], _T],
        *,
        after: Callable[[], None] | None = None,
        landed: Callable[[SpoolError | None], None] | None = None,
        patient: bool = False,
    ) -> asyncio.Future[_T]:
        """Have `step` run in the next group; a `patient` one waits up to 5 ms for a group that is made anyway.

        Once the group is durable, `after` runs in the thread. Then `landed` runs on the event loop, with the error
        if it failed, whether or not somebody still waits for the future. A step that fails may be run again, so it
        must change nothing but the database.
        """
        job = Job(step, self._loop.create_future(), after, landed)
        if patient and not self._closed:
            self._patient.append(job)
            if self._hurry is None:
                self._hurry = self._loop.call_later(_PATIENCE, self._put_patient)
            return job.future  # type: ignore[return-value]  # it has one
        return self._put(job)

    def read(self, step: Callable[[_D], _T]) -> asyncio.Future[_T]:
        """Like `submit`, for a step that changes nothing."""
        return self._put(Job(step, self._loop.create_future(), reads=True))

    def post(self, step: Callable[[_D], Any]) -> None:
        """Like `submit`, for a step that nobody waits for and that mail can do without; its failure is logged."""
        if self._closed or self._jobs.qsize() >= _NOTES:
            metrics.SPOOL_ERRORS.labels("note").inc()
            return
        self._jobs.put(Job(step))

    def _put(self, job: Job) -> asyncio.Future[Any]:
        future = job.future
        if future is None:
            raise RuntimeError("nobody would hear of it")
        if self._closed:
            job.error = SpoolError("the spool is closed")
            self._loop.call_soon(_resolve, [job])
        else:
            self._put_patient()
            self._jobs.put(job)
        return future

    def _put_patient(self) -> None:
        """Let the patient steps go, ahead of what comes now: steps take effect in the order of their submission."""
        if self._hurry is not None:
            self._hurry.cancel()
            self._hurry = None
            for job in self._patient:
                self._jobs.put(job)
            self._patient.clear()

    def end(self) -> None:
        """Take no more steps."""
        self._put_patient()
        self._closed = True
        self._jobs.put(None)

    def close(self) -> None:
        """Finish all submitted steps and end the thread. Blocks; call it off the event loop, after `end`."""
        self._thread.join()
        self._database.close()

    def _run(self) -> None:
        next_idle = 0.0
        last = False
        while not last:
            group, last = self._next_group()
            if group:
                self._work(group)
            if self._idle and time.monotonic() >= next_idle:
                self._pause = _IDLE
                try:
                    if self._idle(self._database):
                        self._pause = _SOON
                except self.errors as error:
                    metrics.SPOOL_ERRORS.labels("idle").inc()
                    _log.warning("spool.idle_failed", error=str(error))
                next_idle = time.monotonic() + self._pause

    def _next_group(self) -> tuple[list[Job], bool]:
        """All steps that wait now, at least one; empty when it is time for `idle`. True at the end."""
        try:
            job = self._jobs.get(timeout=self._pause)
        except queue.Empty:
            return [], False
        group: list[Job] = []
        while job is not None:
            group.append(job)
            if len(group) >= _GROUP:
                return group, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _work(self, group: list[Job]) -> None:
        writes = [job for job in group if not job.reads]
        if writes:
            self._make_durable(writes)
            self._report(writes)
        reads = [job for job in group if job.reads]
        if reads:
            for job in reads:
                try:
                    job.result = job.step(self._database)
                except Exception as error:  # noqa: BLE001  (handed to whoever waits for it)
                    job.error = self._translate(error)
            self._report(reads)

    def _make_durable(self, group: list[Job]) -> None:
        """Run a group; when it fails, its steps one by one. Every job ends with a result or an error."""
        started = time.perf_counter()
        begun, error = self._transaction(group)
        if error is None:
            _commit_seconds.observe(time.perf_counter() - started)
            metrics.SPOOL_GROUP.observe(len(group))
        elif begun and len(group) > 1:
            for job in group:
                self._make_durable([job])
        else:
            for job in group:
                job.error = self._translate(error)
            metrics.SPOOL_ERRORS.labels("commit").inc(len(group))
            _log.error("spool.step_failed", steps=len(group), error=repr(error))

    @abstractmethod
    def _transaction(self, group: list[Job]) -> tuple[bool, Exception | None]:
        """Run a group; gives what went wrong, and whether its steps may then be tried one by one."""

    @abstractmethod
    def _translate(self, error: Exception) -> SpoolError:
        """The error as the spool's callers know it."""

    def _report(self, group: list[Job]) -> None:
        for job in group:
            if job.after and job.error is None:
                job.after()
        waited = [job for job in group if job.future is not None]
        if waited:
            try:
                self._loop.call_soon_threadsafe(_resolve, waited)
            except RuntimeError:
                _log.warning("spool.nobody_waits", steps=len(waited))


def _resolve(group: list[Job]) -> None:
    for job in group:
        if job.landed is not None:
            job.landed(job.error)
        future = job.future
        if future is None or future.done():
            continue
        if job.error is not None:
            future.set_exception(job.error)
        else:
            future.set_result(job.result)


class Writer(GroupCommit[sqlite3.Connection]):
    """Group commit on SQLite."""

    errors = sqlite3.Error

    def _transaction(self, group: list[Job]) -> tuple[bool, Exception | None]:
        """Whether a transaction could be begun, and what went wrong."""
        begun = False
        try:
            self._database.execute("BEGIN IMMEDIATE")
            begun = True
            for job in group:
                job.result = job.step(self._database)
            self._database.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  (handed to whoever waits for the step)
            self._roll_back()
            return begun, error
        return True, None

    def _roll_back(self) -> None:
        """Leave no transaction open. Where that cannot be done, the connection is given up for a new one."""
        try:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            return
        except sqlite3.Error as error:
            _log.error("spool.rollback_failed", error=repr(error))
        try:
            # Closing undoes the transaction too, and lets go of its lock, which the new connection may need.
            self._database.close()
            self._database = self._open()
        except sqlite3.Error as error:
            _log.error("spool.rollback_failed", error=repr(error))

    def _translate(self, error: Exception) -> SpoolError:
        if isinstance(error, SpoolError):
            return error
        if getattr(error, "sqlite_errorcode", 0) in _FULL:
            return SpoolFull(str(error))
        return SpoolError(f"{type(error).__name__}: {error}")
