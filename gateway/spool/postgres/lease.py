"""Who has a message in hand: workers with a number, a row, and a session; and what becomes of a dead one's mail.

A worker's claims count while its row in `worker` is there. It is there while the worker is heard of: it says so every
few seconds, by the database's clock. Beside that its session holds an advisory lock, which the server lets go of when
the session ends. A worker is dead

- when its session has ended and it has not come back within a few seconds, or
- when it has not been heard of for its lease, whatever its session does (it hangs, or the network does), or
- at once, for whoever holds the lock on the directory that it worked in: that lock dies with the process.

Then any other worker removes its row and frees its messages, in one transaction. Who judges must have been connected
for as long itself: after an outage of the database everybody has been silent, and nobody is dead.

*Promises*: a worker that was taken for dead and lives after all can no longer settle anything under its old number.

All of this runs in the writer's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import psycopg
from psycopg import Notify

from gateway.ops import log, metrics
from gateway.spool.postgres import tables
from gateway.spool.postgres.bell import Ring, ring
from gateway.spool.postgres.database import Database, connect
from gateway.spool.postgres.mail import end_sessions
from gateway.spool.postgres.options import PostgresOptions

_log = log.get()
GRACE_SECONDS: Final = 5.0
"""For a worker whose session has ended: it may have lost its connection only."""
_BEATS: Final = 10.0
"""So often within its lease a worker says that it lives: its last word may be so much older than its session's end."""
_SWEEP: Final = (
    "UPDATE message SET claimed = 0 WHERE claimed <> 0 AND NOT EXISTS (SELECT 1 FROM worker WHERE n = message.claimed)"
)
"""Frees what a worker claimed after it was taken for dead and before it knew."""
_SILENT: Final = """
w.seen < clock_timestamp() - make_interval(secs => CASE WHEN EXISTS (
    SELECT 1 FROM pg_locks l WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.objid = w.n::oid
        AND l.classid = 'worker'::regclass::oid
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    ) THEN CASE WHEN ? THEN w.lease ELSE 1e9 END ELSE least(w.lease, ?) END)
"""
_DEAD: Final = f"SELECT w.n FROM worker w WHERE w.n <> ? AND {_SILENT} FOR UPDATE OF w SKIP LOCKED"
_LIVING: Final = f"SELECT w.n FROM worker w WHERE NOT ({_SILENT})"
_UP: Final = "SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::float8, max(lease) FROM worker"
_LOCK: Final = "SELECT pg_try_advisory_lock('worker'::regclass::oid::integer, ?)"
_KEEP: Final = "SELECT pg_try_advisory_lock('record'::regclass::oid::integer, 0)"


class Lease:
    """A worker's number, and how it is kept. `place` names the directory that it works in and has locked.

    `heard` is told what others say (`Ring`), and CHANGED when the number is another one than before.
    """

    def __init__(self, options: PostgresOptions, place: str, name: str, heard: Callable[[str], None]) -> None:
        self.number = 0
        """0 before the first connection."""
        self.keeper = False
        """Whether it is this worker that counts and lets go of old records, for all."""
        self._options = options
        self._place = place
        self._name = name
        self._heard = heard
        self._since = 0.0
        self._next_beat = 0.0
        self._next_sweep = 0.0

    def open(self) -> Database:
        """A connection of this worker, which it holds its lease with. Raises psycopg.Error and `SpoolError`."""
        db = connect(self._options, self._name)
        try:
            tables.make(db, self._options.schema)
            # What is asked here is answered from an index, whatever the statistics of an ever changing table say.
            db.run("SET enable_seqscan = off; SET enable_bitmapscan = off")
            # A session of ours that the server still believes in may be in the middle of a commit.
            if not end_sessions(db, self._name):
                raise psycopg.OperationalError("an earlier session of this worker has not ended yet")
            self._enter(db)
            db.listen(self._options.schema, self._notified(db.pid))
        except BaseException:
            db.close()
            raise
        self._since = time.monotonic()
        return db

    def _notified(self, own: int) -> Callable[[Notify], None]:
        def notified(notice: Notify) -> None:
            if notice.pid != own:
                self._heard(notice.payload)

        return notified

    def _enter(self, db: Database) -> None:
        """Be a worker: the one that we were, or a new one."""
        seen = "UPDATE worker SET seen = clock_timestamp() WHERE n = ?"
        if not self.number or not db.execute(seen, (self.number,)).rowcount:
            again = bool(self.number)
            new = "INSERT INTO worker (place, lease) VALUES (?, ?) RETURNING n"
            (self.number,) = db.execute(new, (self._place, self._options.lease)).fetchone() or (0,)
            if again:
                _log.warning("spool.lease_ended", worker=self.number)
                self._heard(Ring.CHANGED)
        db.execute(_LOCK, (self.number,))
        db.execute("SELECT set_config('gatepost.worker', ?, false)", (str(self.number),))
        (self.keeper,) = db.execute(_KEEP).fetchone() or (False,)
        self._next_beat = time.monotonic() + self._options.lease / _BEATS

    def succeed(self, db: Database) -> int:
        """Free what those had in hand who worked in our directory before us; gives how many messages."""
        dead = db.execute("SELECT n FROM worker WHERE place = ? AND n <> ? FOR UPDATE", (self._place, self.number))
        return _free(db, [n for (n,) in dead.fetchall()])

    def keep(self, db: Database) -> bool:
        """Say that we live, if it is time, and see who does not; says whether it was time. Hears the bell anyway."""
        now = time.monotonic()
        if now < self._next_beat:
            db.execute("SELECT 1")
            return False
        if self._ended(db):
            self._enter(db)
        self._next_beat = now + self._options.lease / _BEATS
        here = now - self._since
        if here >= GRACE_SECONDS:
            self._bury(db, hung=here >= self._options.lease)
        if now >= self._next_sweep:
            self._next_sweep = now + self._options.lease
            db.execute(_SWEEP)
            # Whatever was not heard, for whatever reason, is seen now.
            self._heard(Ring.DUE)
        if not self.keeper:
            (self.keeper,) = db.execute(_KEEP).fetchone() or (False,)
        return True

    def _ended(self, db: Database) -> bool:
        seen = "UPDATE worker SET seen = clock_timestamp() WHERE n = ?"
        return db.execute(seen, (self.number,)).rowcount == 0

    def _bury(self, db: Database, *, hung: bool) -> None:
        grace = GRACE_SECONDS + self._options.lease / _BEATS
        db.execute("BEGIN")
        dead = [n for (n,) in db.execute(_DEAD, (self.number, hung, grace)).fetchall()]
        freed = _free(db, dead)
        if dead:
            ring(db, Ring.DUE)
        db.execute("COMMIT")
        if dead:
            metrics.SPOOL_TAKEN_OVER.inc(freed)
            _log.warning("spool.taken_over", workers=dead, messages=freed)
            # Our own rings are not for us, and this one is.
            self._heard(Ring.DUE)

    def end(self, db: Database) -> None:
        """Have nothing in hand any more, and be no worker."""
        db.execute("BEGIN")
        _free(db, [self.number])
        # For what we had in hand, and for what we have put off, of which nobody else knows when it is due.
        ring(db, Ring.DUE)
        db.execute("COMMIT")
        # By the time when the connection is closed for us, the server may not know of it yet.
        db.execute("SELECT pg_advisory_unlock_all()")


def _free(db: Database, workers: list[int]) -> int:
    """Free what these workers have in hand, and forget them; gives how many messages."""
    if not workers:
        return 0
    freed = db.execute("UPDATE message SET claimed = 0 WHERE claimed = ANY (?)", (workers,)).rowcount
    db.execute(
        "WITH left_over AS (DELETE FROM kept_by WHERE worker = ANY (?) RETURNING records, octets)"
        " INSERT INTO kept_by AS k SELECT 0, sum(records), sum(octets) FROM left_over HAVING count(*) > 0"
        " ON CONFLICT (worker)"
        " DO UPDATE SET records = k.records + excluded.records, octets = k.octets + excluded.octets",
        (workers,),
    )
    db.execute("DELETE FROM worker WHERE n = ANY (?)", (workers,))
    return freed


def living(db: Database) -> frozenset[int]:
    """The workers that are not dead, as somebody sees it who is none and has just come."""
    return frozenset(n for (n,) in db.execute(_LIVING, _patience(db)))


def bury(db: Database) -> int:
    """Free what dead workers have in hand, in a transaction of the caller's; gives how many messages."""
    dead = [n for (n,) in db.execute(_DEAD, (0, *_patience(db))).fetchall()]
    freed = _free(db, dead) + db.execute(_SWEEP).rowcount
    if freed:
        ring(db, Ring.DUE)
    return freed


def _patience(db: Database) -> tuple[bool, float]:
    """Whether who hangs counts as dead, and the grace for who has no session: none is given up after an outage."""
    up, lease = db.execute(_UP).fetchone() or (0.0, None)
    grace = GRACE_SECONDS + (lease or 0.0) / _BEATS
    return up >= (lease or 0.0), grace if up >= grace else 1e9
