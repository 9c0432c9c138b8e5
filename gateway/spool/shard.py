"""One shard: a directory with a database, a directory for large content, and a lock.

A shard belongs to one worker at a time; the lock makes a second gateway on the same spool fail loudly. The
operator's view opens shards without owning them: SQLite keeps its writes apart from the owner's.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Final

from gateway.mail.session import base32
from gateway.ops import log
from gateway.spool import schema
from gateway.spool.draft import StoredContent, sync_directory
from gateway.spool.spool import Claimed, Settlement, SpoolError, SpoolOptions, State, Step
from gateway.spool.writer import Writer, connect

_log = log.get()
_SWEEP_SECONDS: Final = 3600.0
_SWEEP_ROWS: Final = 5000

OnStep = Callable[[Step], None]


def no_step(step: Step) -> None:
    """The default `on_step`: crash tests put a SIGKILL here."""


class Shard:
    """An open shard. All database work is done by its `writer`."""

    def __init__(
        self,
        directory: Path,
        database: sqlite3.Connection,
        lock: int,
        options: SpoolOptions,
        executor: Executor,
        on_step: OnStep,
    ) -> None:
        self.directory = directory
        self.content = directory / "content"
        self.on_step = on_step
        self._lock = lock
        self._executor = executor
        self._keep_records = options.keep_records
        self._next_sweep = time.monotonic() + 60.0
        self._version = _data_version(database)
        self.changed = False
        self.next_due = 0.0
        """No unclaimed message is due before this; a lower bound, corrected by every look into the database."""
        self.writer = Writer(database, name=f"spool-{directory.name}", idle=self._idle if lock >= 0 else None)

    def path_of(self, id: str) -> str:
        """Where the large content of message `id` lies."""
        return str(self.content / id)

    def _idle(self, database: sqlite3.Connection) -> None:
        version = _data_version(database)
        if version != self._version:
            self._version = version
            self.next_due = 0.0
            self.changed = True
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + _SWEEP_SECONDS
            self._sweep(database)

    def _sweep(self, database: sqlite3.Connection) -> None:
        """Drop decision records past their time. Ids begin with the time, so age is a key range."""
        oldest = base32(max(0, int((time.time_ns() // 1_000_000) - self._keep_records * 1000)), 9)
        for table in ("record", "attempt"):
            database.execute(
                f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE id < ?"
                " AND id NOT IN (SELECT id FROM message) LIMIT ?)",
                (oldest, _SWEEP_ROWS),
            )

    def claimed(self, row: tuple[Any, ...]) -> Claimed:
        """A row of `schema.COLUMNS` with its content; raises what `schema.read_row` raises."""
        stored = schema.read_row(row)
        n, skip, eight_bit, file = row[10:14]

        async def load() -> tuple[bytes, bytes | None]:
            found = await self.writer.submit(
                lambda db: db.execute("SELECT head, body FROM content WHERE n = ?", (n,)).fetchone()
            )
            if found is None or (found[1] is None and not file):
                raise SpoolError(f"content of {stored.id} is gone")
            return bytes(found[0]), None if found[1] is None else bytes(found[1])

        path = self.path_of(stored.id)
        return Claimed(stored, StoredContent(load, path, skip, stored.size, bool(eight_bit), self._executor))

    async def claim(self, now: float, limit: int) -> list[Claimed]:
        """Take due messages from the database. Rows that cannot be read are set aside as corrupt."""

        def step(db: sqlite3.Connection) -> tuple[list[tuple[Any, ...]], float]:
            rows = db.execute(
                f"SELECT {schema.COLUMNS} FROM message WHERE state = 'queued' AND claimed = 0 AND due <= ?"
                " ORDER BY due LIMIT ?",
                (now, limit),
            ).fetchall()
            db.executemany("UPDATE message SET claimed = 1 WHERE id = ?", [(row[0],) for row in rows])
            (due,) = db.execute("SELECT min(due) FROM message WHERE state = 'queued' AND claimed = 0").fetchone()
            return rows, float("inf") if due is None else float(due)

        # Lowered by whoever defers a message meanwhile, so it is set before the look and only raised after it.
        self.next_due = float("inf")
        try:
            rows, due = await self.writer.submit(step)
        except SpoolError:
            self.next_due = now
            raise
        self.next_due = min(self.next_due, due)
        out: list[Claimed] = []
        for row in rows:
            try:
                out.append(self.claimed(row))
            except (ValueError, KeyError, TypeError) as error:
                await self.set_aside(row[0], f"row cannot be read: {error!r}")
        return out

    async def set_aside(self, id: str, reason: str) -> None:
        """Mark a message corrupt: it stays, and is not tried again."""
        _log.error("message.corrupt", id=id, reason=reason)
        await self.writer.submit(
            lambda db: (
                db.execute(
                    "UPDATE message SET state = ?, claimed = 0, reason = ? WHERE id = ?", (State.CORRUPT, reason, id)
                ).rowcount
            )
        )

    async def settle(self, settlement: Settlement, dsn_row: Sequence[Any] | None, dsn_content: bytes) -> bool:
        """Store a settlement, DSN first. False when the message is not here any more."""
        done = not settlement.hold and not any(s.status.open for s in settlement.slots)

        def step(db: sqlite3.Connection) -> tuple[bool, int | None]:
            self.on_step(Step.SETTLE_BEGUN)
            row = db.execute("SELECT content, file FROM message WHERE id = ?", (settlement.id,)).fetchone()
            self._insert_attempts(db, settlement)
            if row is None:
                return False, None
            if dsn_row is not None:
                insert_message(db, dsn_row, b"", dsn_content)
            if done:
                db.execute("DELETE FROM message WHERE id = ?", (settlement.id,))
                db.execute("DELETE FROM content WHERE n = ?", (row[0],))
                return True, row[1]
            state = ", state = 'hold', reason = ?" if settlement.hold else ""
            db.execute(
                f"UPDATE message SET claimed = 0, due = ?, slots = ?, warned = warned OR ?{state} WHERE id = ?",
                (
                    schema.due_of(settlement.slots),
                    schema.slots_json(settlement.slots),
                    settlement.warned,
                    *([settlement.hold] if settlement.hold else []),
                    settlement.id,
                ),
            )
            return True, None

        found, file = await self.writer.submit(step, after=lambda: self.on_step(Step.SETTLE_DONE))
        self.next_due = min(self.next_due, schema.due_of(settlement.slots))
        if file:
            await asyncio.get_running_loop().run_in_executor(self._executor, self.remove_file, settlement.id)
        return found

    def _insert_attempts(self, db: sqlite3.Connection, settlement: Settlement) -> None:
        db.executemany(
            "INSERT OR REPLACE INTO attempt (id, n, body) VALUES (?, ?, ?)",
            [
                (settlement.id, int(a.time * 1e6) + i, schema.dumps(a.to_json()))
                for i, a in enumerate(settlement.attempts)
            ],
        )

    def remove_file(self, id: str) -> None:
        """Remove a message's content file. A crash before this leaves an orphan, which recovery removes."""
        try:
            os.unlink(self.path_of(id))
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("spool.file_not_removed", id=id, error=str(error))
        self.on_step(Step.FILE_REMOVED)

    def close(self) -> None:
        """Blocks until all steps are durable."""
        self.writer.close()
        if self._lock >= 0:
            os.close(self._lock)


def insert_message(db: sqlite3.Connection, row: Sequence[Any], head: bytes, body: bytes | None) -> None:
    """Insert content and message. `row` is as `schema.INSERT` wants it, without the content's number."""
    n = db.execute("INSERT INTO content (head, body) VALUES (?, ?)", (head, body)).lastrowid
    db.execute(schema.INSERT, (*row[:11], n, *row[11:]))


def _data_version(database: sqlite3.Connection) -> int:
    (version,) = database.execute("PRAGMA data_version").fetchone()
    return int(version)


def open_shard(directory: Path, options: SpoolOptions, executor: Executor, *, own: bool, on_step: OnStep) -> Shard:
    """Open a shard, made if need be; an owner also recovers it. Raises `SpoolError`."""
    try:
        return _open(directory, options, executor, own=own, on_step=on_step)
    except OSError as error:
        raise SpoolError(f"cannot use spool directory {directory}: {error.strerror}") from error
    except sqlite3.DatabaseError as error:
        raise SpoolError(f"cannot open {directory / 'spool.db'}: {error}") from error


def _open(directory: Path, options: SpoolOptions, executor: Executor, *, own: bool, on_step: OnStep) -> Shard:
    lock = -1
    if own:
        (directory / "content").mkdir(parents=True, exist_ok=True, mode=0o700)
        sync_directory(str(directory))
        sync_directory(str(directory.parent))
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise SpoolError(f"{directory} is in use by another Gatepost") from error
    try:
        database = connect(str(directory / "spool.db"))
        if own:
            recover(directory, database)
        else:
            database.execute("SELECT id FROM message LIMIT 1")
    except BaseException:
        if lock >= 0:
            os.close(lock)
        raise
    return Shard(directory, database, lock, options, executor, on_step)


def recover(directory: Path, database: sqlite3.Connection) -> None:
    """What a restart does: let go of all claims, find content that is gone, remove drafts nobody answered 250 to."""
    database.executescript(schema.SCHEMA)
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version not in (0, schema.VERSION):
        raise SpoolError(f"{directory} was written by another version of Gatepost (schema {version})")
    database.execute("BEGIN IMMEDIATE")
    database.execute(f"PRAGMA user_version = {schema.VERSION}")
    released = database.execute("UPDATE message SET claimed = 0 WHERE claimed = 1").rowcount
    known = {}
    for id, size, skip, head in database.execute(
        "SELECT m.id, m.size, m.skip, length(c.head) FROM message m LEFT JOIN content c ON c.n = m.content WHERE m.file"
    ):
        known[id] = None if head is None else size - head + skip
    orphans, lost = 0, []
    present = {}
    with os.scandir(directory / "content") as entries:
        for entry in entries:
            if entry.name in known:
                present[entry.name] = entry.stat().st_size
            elif entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)
                orphans += 1
    for id, size in known.items():
        if size is None or present.get(id) != size:
            lost.append(id)
    missing = database.execute(
        "SELECT id FROM message WHERE NOT file AND state != 'corrupt' AND content NOT IN (SELECT n FROM content)"
    ).fetchall()
    lost += [id for (id,) in missing]
    for id in lost:
        _log.error("message.corrupt", id=id, reason="content is missing or of the wrong size")
    database.executemany(
        "UPDATE message SET state = 'corrupt', reason = 'content is missing or of the wrong size' WHERE id = ?",
        [(id,) for id in lost],
    )
    database.execute("COMMIT")
    if released or orphans or lost:
        _log.info("spool.recovered", shard=directory.name, released=released, orphans=orphans, corrupt=len(lost))
