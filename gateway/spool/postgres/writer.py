"""Group commit on PostgreSQL: as `gateway.spool.writer` says, over a connection that may be lost and comes back.

*Promises*: a step's future resolves only after the server has said that the COMMIT which holds it is done. Where the
connection is lost before it has said so, nobody knows whether it is: the group fails with `OutcomeUnknown` and is not
run again.

*Fails by*: while there is no connection, every step fails at once, and a new connection is tried after a pause that
grows to some seconds.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

import psycopg

from gateway.ops import log, metrics
from gateway.spool.postgres.database import Database, Lost, gone
from gateway.spool.spool import SpoolError, SpoolFull
from gateway.spool.writer import GroupCommit, Job

_log = log.get()
_PAUSE: Final = 0.2
_PAUSE_MAX: Final = 5.0
_DISK_FULL: Final = "53100"
_IN_THE_WAY: Final = ("40P01", "40001", "55P03")
"""A deadlock, a serialization failure, a lock that was not had in time."""
_TRIES: Final = 20
_TRY_SECONDS: Final = 0.1


class OutcomeUnknown(SpoolError):
    """The connection was lost while a transaction was being committed. `session` is the server's process of it."""

    def __init__(self, text: str, session: int) -> None:
        super().__init__(text)
        self.session = session


class PostgresWriter(GroupCommit[Database]):
    """The thread of one connection, which `open` makes. With `lazy` it is made when it is needed first.

    `back` is called in the thread when there is a connection again.
    """

    errors = psycopg.Error

    def __init__(
        self,
        open: Callable[[], Database],
        database: Database,
        *,
        name: str,
        idle: Callable[[Database], bool | None] | None = None,
        back: Callable[[], None] | None = None,
    ) -> None:
        self._name = name
        self._back = back
        self._pause_now = 0.0
        self._retry_at = 0.0
        self._lost = False
        self._why = ""
        self._tended = idle
        super().__init__(open, database, name=name, idle=None if idle is None else self._tend)

    def silent(self, patience: float) -> str:
        """Why the database counts as down: there is no connection, or a statement has waited for so many seconds."""
        if self._lost:
            return self._why
        asked = self._database.asked
        if asked is not None and time.monotonic() - asked > patience:
            return "it does not answer"
        return ""

    def _tend(self, _: Database) -> bool | None:
        """Between groups: connect again if it is time, and what `idle` says."""
        if self._tended is None or self._unconnected() is not None:
            return None
        try:
            return self._tended(self._database)
        except (psycopg.Error, SpoolError) as error:
            self._roll_back(error)
            metrics.SPOOL_ERRORS.labels("idle").inc()
            _log.warning("spool.idle_failed", error=str(error))
            return None

    def _work(self, group: list[Job]) -> None:
        problem = self._unconnected()
        if problem is not None:
            for job in group:
                job.error = SpoolError(f"the database does not answer: {problem}")
            metrics.SPOOL_ERRORS.labels("connection").inc(len(group))
            self._report(group)
            return
        super()._work(group)
        if self._database.lost:
            self._drop("the connection was lost")

    def _unconnected(self) -> str | None:
        """Connect again if there is no connection and it is time; gives why there is still none."""
        if not self._database.lost:
            return None
        now = time.monotonic()
        if now < self._retry_at:
            return self._why
        try:
            self._database = self._open()
        except (psycopg.Error, SpoolError) as error:
            self._pause_now = min(_PAUSE_MAX, max(_PAUSE, self._pause_now * 2))
            self._retry_at = time.monotonic() + self._pause_now
            if not self._lost:
                _log.error("spool.database_lost", connection=self._name, error=_line(error))
            self._lost, self._why = True, _line(error)
            metrics.SPOOL_CONNECTIONS_FAILED.inc()
            return self._why
        if self._lost:
            _log.info("spool.database_back", connection=self._name)
        self._pause_now, self._lost, self._why = 0.0, False, ""
        if self._back is not None:
            self._back()
        return None

    def _drop(self, why: str) -> None:
        """Give the connection up."""
        self._database.close()
        if not self._lost:
            self._lost, self._why = True, why
            metrics.SPOOL_CONNECTIONS_FAILED.inc()
            _log.error("spool.database_lost", connection=self._name, error=why)

    def _transaction(self, group: list[Job]) -> tuple[bool, Exception | None]:
        for last in (*[False] * (_TRIES - 1), True):
            begun, error = self._try(group)
            in_the_way = isinstance(error, psycopg.Error) and error.sqlstate in _IN_THE_WAY
            if not in_the_way or len(group) > 1 or last:
                break
            # Others had locked what we want. Not all that meet try again at the same moment.
            time.sleep(random.uniform(0.0, _TRY_SECONDS))  # noqa: TID251 - a thread of its own
        return begun, error

    def _try(self, group: list[Job]) -> tuple[bool, Exception | None]:
        db = self._database
        if db.lost:
            return False, Lost(self._why or "the connection was lost")
        try:
            db.execute("BEGIN")
            for job in group:
                job.result = job.step(db)
        except Exception as error:  # noqa: BLE001  (handed to whoever waits for the step)
            return self._roll_back(error), error
        try:
            said = db.execute("COMMIT").statusmessage
        except psycopg.Error as error:
            if self._roll_back(error):
                return True, error
            return False, OutcomeUnknown(f"the database went away during a commit: {_line(error)}", db.pid)
        if said != "COMMIT":
            # A transaction that had failed: the server says ROLLBACK, and no error.
            return True, SpoolError("the transaction had failed")
        return True, None

    def _roll_back(self, error: Exception) -> bool:
        """Leave no transaction open; False when the connection had to be given up."""
        db = self._database
        if not gone(error, db):
            try:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                return True
            except psycopg.Error as problem:
                error = problem
        self._drop(_line(error))
        return False

    def _translate(self, error: Exception) -> SpoolError:
        if isinstance(error, SpoolError):
            return error
        if isinstance(error, psycopg.Error) and error.sqlstate == _DISK_FULL:
            return SpoolFull(_line(error))
        return SpoolError(f"{type(error).__name__}: {_line(error)}")


def _line(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:500]
