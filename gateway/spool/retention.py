"""What a shard keeps of decision records and attempts: for so long, and so much. The oldest go first.

What goes, goes in steps of a few milliseconds between the groups of the shard's writer, so that nobody's commit waits
for long. How much there is stands in the table `kept`, which triggers keep right, so it never has to be counted.

*Promises*: what belongs to a message that is still here stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.mail.session import ids_from
from gateway.ops import log, metrics
from gateway.spool.writer import Database

_SWEEP_SECONDS: Final = 600.0
_FIRST_SECONDS: Final = 60.0
_STEP_ROWS: Final = 500
_GOAL: Final = 0.95
"""Of the size, this much is left when it was too much: so that there is a run now and then, and not one a second."""
_LAST: Final = "\uffff"
"""Sorts behind every id."""

OCTETS: Final = "length(CAST(body AS BLOB))"
"""The size of a body in the words of SQLite."""

_log = log.get()


class Reason(StrEnum):
    """Why records go."""

    AGE = "age"
    SIZE = "size"


@dataclass(slots=True)
class _Run:
    """Records going, from the oldest on: all before the id `upto`, or until there is room. `after` is how far it is."""

    reason: Reason
    upto: str
    after: str = ""
    gone: int = 0


class Retention:
    """Lets a shard's old records go. `octets` 0 is no bound. All methods are called in the writer's thread.

    `begin` and `size` are how the database begins a transaction, and says how large a body is.
    """

    def __init__(
        self,
        shard: str,
        seconds: float,
        octets: int,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        begin: str = "BEGIN IMMEDIATE",
        size: str = OCTETS,
    ) -> None:
        self._begin_text = begin
        questions = (f"SELECT id, {size} FROM {table} WHERE id > ?1 AND id < ?2" for table in ("record", "attempt"))
        self._oldest = " UNION ALL ".join(questions) + " ORDER BY id LIMIT ?3"
        self._shard = shard
        self._seconds = seconds
        self._octets = octets
        self._monotonic = monotonic
        self._run: _Run | None = None
        self._next_sweep = monotonic() + _FIRST_SECONDS
        self._next_size = 0.0
        self._shown = (0, 0)

    def sweep_now(self) -> None:
        """Have the next step look for records that are too old."""
        self._next_sweep = 0.0

    def step(self, db: Database) -> bool:
        """Look, and let a few records go; says whether to come back soon. Raises the error of its library."""
        records, octets = kept(db)
        self._show(records, octets)
        if self._run is None:
            self._run = self._begin(octets)
        if self._run is None:
            return False
        if self._drop(db, self._run):
            self._end(self._run, octets_left=kept(db)[1])
            self._run = None
        return self._run is not None

    def close(self) -> None:
        """The shard's records are not counted in this process's metrics any more."""
        self._show(0, 0)

    def _begin(self, octets: int) -> _Run | None:
        now = self._monotonic()
        if self._octets and octets > self._octets and now >= self._next_size:
            return _Run(Reason.SIZE, _LAST)
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_SECONDS
            return _Run(Reason.AGE, ids_from(time.time_ns() / 1e9 - self._seconds))
        return None

    def _drop(self, db: Database, run: _Run) -> bool:
        """One step of a run; says whether it is over."""
        rows = db.execute(self._oldest, (run.after, run.upto, _STEP_ROWS)).fetchall()
        if not rows:
            return True
        surplus = kept(db)[1] - self._octets * _GOAL if run.reason is Reason.SIZE else float("inf")
        for last, octets in rows:  # noqa: B007  (the last one is what counts)
            surplus -= octets
            if surplus <= 0:
                break
        db.execute(self._begin_text)
        try:
            for table in ("record", "attempt"):
                gone = db.execute(
                    f"DELETE FROM {table} WHERE id > ? AND id <= ?"
                    f" AND NOT EXISTS (SELECT 1 FROM message WHERE message.id = {table}.id)",
                    (run.after, last),
                ).rowcount
                if table == "record" and gone:
                    run.gone += gone
                    metrics.RECORDS_DROPPED.labels(run.reason.value).inc(gone)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        run.after = last
        enough = run.reason is Reason.SIZE and kept(db)[1] <= self._octets * _GOAL
        return enough or (last == rows[-1][0] and len(rows) < _STEP_ROWS)

    def _end(self, run: _Run, octets_left: int) -> None:
        if run.gone:
            _log.info("records.dropped", shard=self._shard, reason=run.reason.value, records=run.gone, left=octets_left)
        if run.reason is Reason.SIZE and octets_left > self._octets * _GOAL:
            self._next_size = self._monotonic() + _SWEEP_SECONDS
            if octets_left > self._octets:
                _log.warning("records.too_large", shard=self._shard, octets=octets_left, bound=self._octets)

    def _show(self, records: int, octets: int) -> None:
        before, self._shown = self._shown, (records, octets)
        if before != self._shown:
            metrics.RECORDS.inc(records - before[0])
            metrics.RECORDS_OCTETS.inc(octets - before[1])


def kept(db: Database) -> tuple[int, int]:
    """How many records there are, and the octets of them and of all attempts. Raises the error of its library."""
    found = db.execute("SELECT records, octets FROM kept").fetchone()
    return (int(found[0]), int(found[1])) if found else (0, 0)
