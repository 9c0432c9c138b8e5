"""One shard: a directory with a database, a directory for large content, and a lock.

A shard belongs to one worker at a time; the lock makes a second gateway on the same spool fail loudly. The
operator's view opens shards without owning them: SQLite keeps its writes apart from the owner's.
"""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from gateway.ops import log
from gateway.spool import operator, schema
from gateway.spool.draft import MemoryContent, StoredContent
from gateway.spool.notes import RECORD, Notes
from gateway.spool.recovery import Damaged, lock_shard, open_database, set_aside
from gateway.spool.retention import Retention
from gateway.spool.rounds import Misfit, Rounds, Taken, mend
from gateway.spool.spool import Claimed, NewDsn, Room, Settlement, SpoolError, SpoolOptions, State, Step
from gateway.spool.writer import Writer, connect

_log = log.get()
_FAILED_PAUSE: Final = 1.0
_SAID: Final = 20
_SLACK_OCTETS: Final = 64 << 20
_SHRINK_OCTETS: Final = 16 << 20
_NEVER: Final = float("inf")
_READABLE: Final = tuple(state for state in State if state is not State.CORRUPT)
"""A corrupt message stays: only the postmaster may remove it."""

_SHARD_NAME: Final = re.compile(r"shard-(\d{2,4})\Z")
GUEST_NAME: Final = re.compile(r"guest-\d{2}\Z")

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
        notes: Notes,
        executor: Executor,
        on_step: OnStep,
    ) -> None:
        self.directory = directory
        self._content = str(directory / "content")
        self.on_step = on_step
        self._lock = lock
        self._executor = executor
        self._notes = notes
        self.retention = Retention(directory.name, options.keep_records, options.keep_octets)
        self._version = _data_version(database)
        (self._page,) = database.execute("PRAGMA page_size").fetchone()
        self._loop = asyncio.get_running_loop()
        self.stale = False
        """An operator changed something, so what memory says of unclaimed messages may not hold any more."""
        self.ring: Callable[[], None] = _nobody
        """Called when that happened."""
        self.next_due = 0.0
        """No unclaimed message is due before this; a lower bound, corrected by every look into the database.

        But for what there was no room for then, which makes the shard `short`.
        """
        self.short = False
        self._rounds = Rounds()
        self.writer = Writer(
            partial(connect, str(directory / "spool.db"), create=False),
            database,
            name=f"spool-{directory.name}",
            idle=self.upkeep if self.owned else None,
        )

    @property
    def owned(self) -> bool:
        """Whether this process works on the shard's mail, or only looks at it."""
        return self._lock >= 0

    def path_of(self, id: str) -> str:
        """Where the large content of message `id` lies."""
        return f"{self._content}/{id}"

    def upkeep(self, database: sqlite3.Connection) -> bool:
        """Notice what others changed, drop old records, give room back. Runs in the writer's thread.

        Says whether there is more to drop.
        """
        version = _data_version(database)
        if version != self._version:
            self._version = version
            self._loop.call_soon_threadsafe(self._noticed)
        more = self.retention.step(database)
        (free,) = database.execute("PRAGMA freelist_count").fetchone()
        if free * self._page > _SLACK_OCTETS:
            # Not `execute`: it would stop after one page.
            database.executescript(f"PRAGMA incremental_vacuum({_SHRINK_OCTETS // self._page})")
        return more

    def _noticed(self) -> None:
        self.next_due = 0.0
        self.stale = True
        self.ring()

    def claimed(self, row: tuple[Any, ...]) -> Claimed:
        """A row of `schema.COLUMNS` with its content. Raises `schema.Unreadable`."""
        stored = schema.read_row(row)
        n, skip, eight_bit, file = row[10:14]
        lane, head, body = row[14:17] if len(row) > 14 else (None, None, None)
        if not all(part is None or isinstance(part, bytes) for part in (head, body)):
            raise schema.Unreadable("content is none")
        if head is not None and body is not None and len(head) + len(body) == stored.size:
            return Claimed(stored, MemoryContent(head + body if head else body, bool(eight_bit)), lane)

        def content(db: sqlite3.Connection) -> tuple[bytes, bytes | None] | None:
            found = db.execute("SELECT head, body FROM content WHERE n = ?", (n,)).fetchone()
            if found is None or (found[1] is None and not file):
                return None
            # SQLite keeps whatever it was given, or what damage has made of it.
            return found if all(part is None or isinstance(part, bytes) for part in found) else None

        async def broken(reason: str) -> None:
            if self.owned:
                await self.set_aside(stored.id, reason)

        return Claimed(
            stored,
            StoredContent(
                partial(self.writer.read, content),
                broken,
                self.path_of(stored.id),
                skip,
                stored.size,
                bool(eight_bit),
                self._executor,
            ),
            lane,
        )

    async def claim(self, now: float, room: Room) -> list[Claimed]:
        """Take due messages from the database. Rows that cannot be read are set aside as corrupt."""

        # Lowered by whoever defers a message meanwhile, so it is set before the look and only lowered after it.
        self.next_due = _NEVER
        try:
            taken = await self._take(now, room)
        except SpoolError:
            self.next_due = now + _FAILED_PAUSE
            raise
        self.next_due = min(self.next_due, taken.due)
        self.short = taken.short
        out: list[Claimed] = []
        for row in taken.rows:
            try:
                out.append(self.claimed(row))
            except schema.Unreadable as error:
                await self.set_aside(row[0], f"row cannot be read: {error}")
        return out

    async def _take(self, now: float, room: Room) -> Taken:
        """One step of the rounds; where a damaged row is in the way, another one after that was mended."""

        def step(db: sqlite3.Connection) -> Taken:
            return self._rounds.take(db, now, room)

        try:
            return await self.writer.submit(step, after=partial(self.on_step, Step.CLAIM_DONE))
        except Misfit as error:
            mended = await self.writer.submit(mend)
            _log.error("message.mended", shard=self.directory.name, ids=mended[:_SAID], reason=str(error))
        return await self.writer.submit(step, after=partial(self.on_step, Step.CLAIM_DONE))

    async def let_go(self, ids: Sequence[str]) -> None:
        """Give claimed messages back, for the next claim to find what has become of them."""
        query = "UPDATE message SET claimed = 0 WHERE id = ?"
        await self.writer.submit(lambda db: db.executemany(query, [(id,) for id in ids]).rowcount)
        self.next_due = 0.0

    async def set_aside(self, id: str, reason: str) -> None:
        """Mark a message corrupt: it stays, and is not tried again."""
        query = "UPDATE message SET state = ?, claimed = 0, reason = ? WHERE id = ?"
        try:
            found = await self.writer.submit(lambda db: db.execute(query, (State.CORRUPT, reason, id)).rowcount)
        except SpoolError as error:
            _log.error("message.corrupt", id=id, reason=reason, error=str(error))
            return
        if found:
            _log.error("message.corrupt", id=id, reason=reason)

    async def settle(self, settlement: Settlement) -> None:
        """Store a settlement and the DSNs that it owes. Nothing is owed for a message that was dropped meanwhile."""
        id, slots, dsns = settlement.id, settlement.slots, settlement.dsns
        done = not settlement.hold and not any(slot.status.open for slot in slots)
        due = schema.due_of(slots)

        def step(db: sqlite3.Connection) -> bool:
            self.on_step(Step.SETTLE_BEGUN)
            self._notes.add_attempts(db, id, settlement.attempts)
            gone = _delete(db, id, _READABLE) if done else None
            kept = gone is None and _keep(db, settlement, due)
            if gone is not None or kept:
                for dsn in dsns:
                    self.insert_dsn(db, dsn)
            return bool(gone and gone[1])

        # Nobody waits for it but us, and what it costs to be late is a second delivery if we crash just now.
        file = await self.writer.submit(step, after=partial(self.on_step, Step.SETTLE_DONE), patient=True)
        self.next_due = min(self.next_due, due, settlement.deadline, *(dsn.message.received for dsn in dsns))
        if file:
            await self._loop.run_in_executor(self._executor, self.remove_file, id)

    def insert_dsn(self, db: sqlite3.Connection, dsn: NewDsn) -> None:
        """A DSN is a message like any other, except that nobody sent it in."""
        message, slots = dsn.message, schema.first_slots(dsn.message)
        row = schema.new_row(message, slots, len(dsn.content), not dsn.content.isascii())
        self.insert(db, row, b"", dsn.content, message.record)

    def insert(
        self,
        db: sqlite3.Connection,
        row: Sequence[Any],
        head: bytes,
        body: bytes | None,
        record: dict[str, Any] | None,
    ) -> None:
        """Insert a message with its content and its decision record. `row` is a `schema.new_row`."""
        n = db.execute("INSERT INTO content (head, body) VALUES (?, ?)", (head, body)).lastrowid
        db.execute(schema.INSERT, (n, *row))
        if record is not None and self._notes.kept:
            db.execute(RECORD, (row[0], self._notes.record(record)))

    async def drop(self, ids: Sequence[str], outcome: str, by: str, states: Collection[State]) -> list[str]:
        """Remove messages in one of `states`; gives their ids. With `by` they are noted as ended so."""
        now = time.time_ns() / 1e9

        def step(db: sqlite3.Connection) -> list[tuple[str, int]]:
            out: list[tuple[str, int]] = []
            for id in ids:
                if by and self._notes.kept:
                    operator.note_end(db, id, states, outcome, by, now, self._notes)
                if (row := _delete(db, id, states)) is not None:
                    out.append((id, row[1]))
            return out

        self.stale = True
        dropped = await self.writer.submit(step)
        for id, file in dropped:
            if file:
                await self._loop.run_in_executor(self._executor, self.remove_file, id)
        return [id for id, _ in dropped]

    def remove_file(self, id: str) -> None:
        """Remove a message's content file. A crash before this leaves an orphan, which recovery removes."""
        try:
            os.unlink(self.path_of(id))
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("spool.file_not_removed", id=id, error=str(error))
        self.on_step(Step.FILE_REMOVED)

    async def close(self) -> None:
        """Returns when all steps are durable."""
        self.writer.end()
        await self._loop.run_in_executor(None, self.writer.close)
        if self.owned:
            self.retention.close()
            os.close(self._lock)


async def claim_from(shards: Sequence[Shard], now: float, room: Room, *, hurried: bool) -> list[tuple[Shard, Claimed]]:
    """What the shards have, as far as there is room. `hurried`: what there was no room for is due all the same.

    Raises `SpoolError` when the last of them cannot be asked, and the others had nothing.
    """
    out: list[tuple[Shard, Claimed]] = []
    for shard in shards:
        wanted = shard.next_due <= now or (shard.short and room.again)
        if not wanted or room.total <= 0 or (room.unfiled <= 0 and room.filed <= 0):
            continue
        try:
            found = await shard.claim(now, room)
        except SpoolError as error:
            if not out and shard is shards[-1]:
                raise
            _log.error("queue.claim_failed", shard=shard.directory.name, error=str(error))
            continue
        if hurried and shard.short:
            shard.next_due = min(shard.next_due, now)
        filed = sum(bool(claimed.lane) for claimed in found)
        left = (room.total - len(found), room.unfiled - len(found) + filed, room.filed - filed)
        room = replace(room, total=left[0], unfiled=left[1], filed=left[2])
        out += [(shard, claimed) for claimed in found]
    return out


def _delete(db: sqlite3.Connection, id: str, states: Collection[State]) -> tuple[int | None, int] | None:
    """Delete a message in one of `states` with its content.

    Gives the content's number and whether there is a file, None for no such message.
    """
    query = f"DELETE FROM message WHERE id = ? AND {operator.state_in(states)} RETURNING content, file"
    gone: tuple[int | None, int] | None = db.execute(query, (id,)).fetchone()
    if gone is not None:
        db.execute("DELETE FROM content WHERE n = ?", (gone[0],))
    return gone


def _keep(db: sqlite3.Connection, settlement: Settlement, due: float) -> bool:
    """Store where the recipients stand, and let go of the message. False when it is not here any more."""
    hold = settlement.hold
    query = (
        "UPDATE message SET claimed = 0, due = ?, slots = ?, lane = ?, deadline = ?, warned = warned OR ?,"
        " state = CASE WHEN ? AND state = 'queued' THEN 'hold' ELSE state END,"
        " reason = CASE WHEN ? AND state = 'queued' THEN ? ELSE reason END WHERE id = ?"
    )
    filed = (due, schema.slots_json(settlement.slots), settlement.lane, settlement.deadline, settlement.warned)
    values = (*filed, bool(hold), bool(hold), hold, settlement.id)
    return db.execute(query, values).rowcount > 0


def _nobody() -> None:
    """Rings no bell."""


def _data_version(database: sqlite3.Connection) -> int:
    (version,) = database.execute("PRAGMA data_version").fetchone()
    return int(version)


def open_shard(directory: Path, options: SpoolOptions, notes: Notes, executor: Executor, on_step: OnStep) -> Shard:
    """Own a shard: made if need be, recovered, and set aside for a new one when it is damaged. Raises `SpoolError`."""
    try:
        try:
            return _own(directory, options, notes, executor, on_step)
        except Damaged as error:
            set_aside(directory, error)
            return _own(directory, options, notes, executor, on_step)
    except OSError as error:
        raise SpoolError(f"cannot use spool directory {directory}: {error.strerror}") from error


def _own(directory: Path, options: SpoolOptions, notes: Notes, executor: Executor, on_step: OnStep) -> Shard:
    lock = lock_shard(directory)
    try:
        return Shard(directory, open_database(directory, on_step), lock, options, notes, executor, on_step)
    except BaseException:
        os.close(lock)
        raise


def view_shard(
    directory: Path, options: SpoolOptions, notes: Notes, executor: Executor, on_step: OnStep = no_step
) -> Shard | None:
    """Look at a shard that another process may own; None when it is only just being made. Raises `SpoolError`."""
    path = directory / "spool.db"
    try:
        if not path.exists():
            return None
        database = connect(str(path), create=False)
        try:
            if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'attempt'").fetchone() is None:
                database.close()
                return None
            return Shard(directory, database, -1, options, notes, executor, on_step)
        except BaseException:
            database.close()
            raise
    except OSError as error:
        raise SpoolError(f"cannot read {path}: {error.strerror}") from error
    except sqlite3.Error as error:
        raise SpoolError(f"cannot open {path}: {error}") from error


def shard_numbers(root: Path) -> list[int]:
    """Numbers of the shards that exist under the spool's directory. Raises OSError."""
    return sorted(int(match[1]) for name in os.listdir(root) if (match := _SHARD_NAME.match(name)))


def is_shard(name: str) -> bool:
    """Whether a directory of this name is a shard, a gateway's or a guest's."""
    return bool(_SHARD_NAME.match(name) or GUEST_NAME.match(name))
