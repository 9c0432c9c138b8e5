"""The spool on one machine: SQLite shards, one written by each worker.

*Promises*: those of `gateway.spool.spool`. New mail goes to the worker's own shard; a restart with
another number of workers shares out all shards that exist, so nobody's mail is left behind.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from gateway.ops import log, metrics
from gateway.spool import schema
from gateway.spool.draft import FileDraft, MemoryContent
from gateway.spool.shard import OnStep, Shard, insert_message, no_step, open_shard
from gateway.spool.spool import (
    Claimed,
    Draft,
    Explained,
    NewMessage,
    Settlement,
    SpoolError,
    SpoolFull,
    SpoolOptions,
    State,
    Step,
    Stored,
)

_log = log.get()

# Messages committed a moment ago are handed to the scheduler from memory, up to these bounds.
_FRESH_MESSAGES: Final = 2000
_FRESH_OCTETS: Final = 32 << 20
_ROOM_SECONDS: Final = 1.0
_Change = Callable[[list[dict[str, Any]]], None]
_SHARD_NAME = re.compile(r"shard-(\d{2,4})\Z")


class SqliteSpool:
    """Implements `gateway.spool.spool.Spool`. Make it with `open` (a worker's) or `open_all` (an operator's view)."""

    def __init__(
        self, options: SpoolOptions, shards: Sequence[Shard], executor: ThreadPoolExecutor, on_step: OnStep
    ) -> None:
        self._options = options
        self._shards = shards
        self._executor = executor
        self._on_step = on_step
        self._fresh: deque[Claimed] = deque()
        self._claimed: dict[str, tuple[Shard, int]] = {}
        self._fresh_octets = 0
        self._room_checked = -_ROOM_SECONDS
        self._room = 0

    @classmethod
    async def open(
        cls, options: SpoolOptions, *, worker: int = 0, workers: int = 1, on_step: OnStep = no_step
    ) -> SqliteSpool:
        """Open and recover the shards of one worker. Raises `SpoolError`."""
        executor = ThreadPoolExecutor(4, thread_name_prefix="spool-file")
        root = Path(options.path)
        try:
            os.makedirs(root, exist_ok=True, mode=0o700)
            numbers = {n for n in shard_numbers(root) if n % workers == worker} | {worker}
        except OSError as error:
            raise SpoolError(f"cannot use spool directory {root}: {error.strerror}") from error
        shards: list[Shard] = []
        # The worker's own shard first: new mail goes there.
        for n in [worker, *sorted(numbers - {worker})]:
            directory = root / f"shard-{n:02}"
            try:
                shards.append(open_shard(directory, options, executor, own=True, on_step=on_step))
            except SpoolError as error:
                if not isinstance(error.__cause__, sqlite3.DatabaseError) or isinstance(
                    error.__cause__, sqlite3.OperationalError
                ):
                    raise
                _set_aside(directory, error)
                shards.append(open_shard(directory, options, executor, own=True, on_step=on_step))
        return cls(options, shards, executor, on_step)

    def check_room(self, size: int) -> None:
        now = time.monotonic()
        if now - self._room_checked >= _ROOM_SECONDS:
            self._room_checked = now
            try:
                self._room = shutil.disk_usage(self._options.path).free
            except OSError as error:
                raise SpoolError(f"spool directory: {error.strerror}") from error
        if self._room - size < self._options.min_free:
            raise SpoolFull(f"{self._room} octets free, spool.min_free is {self._options.min_free}")

    def draft(self, id: str) -> FileDraft:
        return FileDraft(id, self._shards[0].path_of(id), self._executor, self._on_step)

    async def commit(self, draft: Draft, message: NewMessage) -> None:
        if not isinstance(draft, FileDraft):
            raise TypeError("the draft is of another spool")
        try:
            await self._commit(draft, message)
        except SpoolError:
            await draft.abandon()
            raise
        draft.settled = True

    async def _commit(self, draft: FileDraft, message: NewMessage) -> None:
        await draft.sync()
        shard = self._shards[0]
        body = None if draft.memory is None else bytes(memoryview(draft.memory)[message.skip :])
        size = len(message.head) + draft.size - message.skip
        eight_bit = draft.eight_bit or not message.head.isascii()
        slots = schema.first_slots(message)
        fresh = (
            body is not None
            and message.state is State.QUEUED
            and len(self._fresh) < _FRESH_MESSAGES
            and self._fresh_octets + size <= _FRESH_OCTETS
        )
        row = message_row(message, slots, size, eight_bit, message.skip, file=body is None, claimed=fresh)
        record = message.record if self._options.record else None

        def step(db: sqlite3.Connection) -> None:
            insert_message(db, row, message.head, body)
            if record is not None:
                db.execute("INSERT OR REPLACE INTO record (id, body) VALUES (?, ?)", (message.id, schema.dumps(record)))
            self._on_step(Step.COMMIT_BEGUN)

        if fresh:
            self._fresh_octets += size
        try:
            await shard.writer.submit(step, after=lambda: self._on_step(Step.COMMIT_DONE))
        except SpoolError:
            if fresh:
                self._fresh_octets -= size
            raise
        if fresh and body is not None:
            stored = schema.new_stored(message, size, slots)
            self._claimed[message.id] = (shard, size)
            self._fresh.append(Claimed(stored, MemoryContent(message.head + body, eight_bit)))
        elif message.state is State.QUEUED:
            shard.next_due = min(shard.next_due, message.received)

    def note(self, record: dict[str, Any]) -> None:
        if not self._options.record:
            return
        id, text = record["id"], schema.dumps(record)
        self._shards[0].writer.post(
            lambda db: db.execute("INSERT OR REPLACE INTO record (id, body) VALUES (?, ?)", (id, text))
        )

    async def claim(self, now: float, limit: int) -> Sequence[Claimed]:
        out: list[Claimed] = []
        while self._fresh and len(out) < limit:
            out.append(self._fresh.popleft())
        for shard in self._shards:
            if len(out) < limit and shard.next_due <= now:
                found = await shard.claim(now, limit - len(out))
                for claimed in found:
                    self._claimed[claimed.message.id] = (shard, 0)
                out += found
        return out

    async def next_due(self, now: float) -> float | None:
        if self._fresh:
            return now
        due = min(shard.next_due for shard in self._shards)
        return None if due >= schema.NEVER else due

    async def settle(self, settlement: Settlement) -> None:
        shard, octets = self._claimed.get(settlement.id, (self._shards[0], 0))
        row = None
        if settlement.dsn is not None:
            row = _dsn_row(settlement.dsn.message, settlement.dsn.content)
        await shard.settle(settlement, row, settlement.dsn.content if settlement.dsn else b"")
        if row is not None:
            shard.next_due = 0.0
        self._fresh_octets -= octets
        self._claimed.pop(settlement.id, None)

    def changed(self) -> bool:
        changed = any(shard.changed for shard in self._shards)
        for shard in self._shards:
            shard.changed = False
        return changed

    async def _each(self, step: Callable[[sqlite3.Connection], Any]) -> list[Any]:
        return list(await asyncio.gather(*(shard.writer.submit(step) for shard in self._shards)))

    async def list(self, *, state: State | None = None, limit: int = 1000, after: str = "") -> Sequence[Stored]:
        condition, values = ("AND state = ?", (state.value,)) if state else ("", ())

        def step(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
            return db.execute(
                f"SELECT {schema.COLUMNS} FROM message WHERE id > ? {condition} ORDER BY id LIMIT ?",
                (after, *values, limit),
            ).fetchall()

        out = [_lenient(row) for rows in await self._each(step) for row in rows]
        return sorted(out, key=lambda m: m.id)[:limit]

    async def show(self, id: str) -> Claimed | None:
        def step(db: sqlite3.Connection) -> Any:
            return db.execute(f"SELECT {schema.COLUMNS} FROM message WHERE id = ?", (id,)).fetchone()

        for shard in self._shards:
            row = await shard.writer.submit(step)
            if row is not None:
                try:
                    return shard.claimed(row)
                except (ValueError, KeyError, TypeError) as error:
                    raise SpoolError(f"{id} cannot be read: {error!r}") from error
        return None

    async def counts(self) -> dict[State, int]:
        out = dict.fromkeys(State, 0)
        for rows in await self._each(
            lambda db: db.execute("SELECT state, count(*) FROM message GROUP BY state").fetchall()
        ):
            for state, count in rows:
                out[State(state)] += count
        return out

    async def flush(self, ids: Sequence[str] | None = None) -> int:
        return await self._rewrite(ids, State.QUEUED, _due_now)

    async def hold(self, ids: Sequence[str], reason: str) -> int:
        return await self._update(ids, "state = 'hold', reason = ?", (reason,), (State.QUEUED,))

    async def release(self, ids: Sequence[str]) -> int:
        return await self._rewrite(ids, None, _reopened)

    async def drop(self, ids: Sequence[str]) -> int:
        removed = 0
        for shard in self._shards:

            def step(db: sqlite3.Connection) -> Sequence[tuple[str, int]]:
                gone = []
                for id in ids:
                    row = db.execute("SELECT content, file FROM message WHERE id = ?", (id,)).fetchone()
                    if row is not None:
                        db.execute("DELETE FROM content WHERE n = ?", (row[0],))
                        db.execute("DELETE FROM message WHERE id = ?", (id,))
                        gone.append((id, row[1]))
                return gone

            for id, file in await shard.writer.submit(step):
                removed += 1
                if file:
                    shard.remove_file(id)
        return removed

    async def _update(self, ids: Sequence[str], change: str, values: tuple[Any, ...], states: tuple[State, ...]) -> int:
        wanted = ", ".join(f"'{state.value}'" for state in states)

        def step(db: sqlite3.Connection) -> int:
            query = f"UPDATE message SET {change} WHERE id = ? AND state IN ({wanted})"
            return sum(db.execute(query, (*values, id)).rowcount for id in ids)

        return sum(int(n) for n in await self._each(step))

    async def _rewrite(self, ids: Sequence[str] | None, state: State | None, change: _Change) -> int:
        """Change the slots of messages in `state` (None: hold or quarantine) and queue them, due now."""

        def step(db: sqlite3.Connection) -> int:
            wanted = ("queued",) if state is State.QUEUED else ("hold", "quarantine")
            marks = ", ".join("?" * len(wanted))
            rows = db.execute(f"SELECT id, slots FROM message WHERE state IN ({marks})", wanted).fetchall()
            count = 0
            for id, text in rows:
                if ids is not None and id not in ids:
                    continue
                slots = json.loads(text)
                change(slots)
                db.execute(
                    "UPDATE message SET state = 'queued', reason = '', due = 0, slots = ? WHERE id = ?",
                    (schema.dumps(slots), id),
                )
                count += 1
            return count

        count = sum(int(n) for n in await self._each(step))
        for shard in self._shards:
            shard.next_due = 0.0
        return count

    async def explain(self, id: str) -> Sequence[Explained]:
        def step(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
            return [
                (record, body, db.execute("SELECT body FROM attempt WHERE id = ? ORDER BY n", (record,)).fetchall(),
                 db.execute(f"SELECT {schema.COLUMNS} FROM message WHERE id = ?", (record,)).fetchone())
                for record, body in db.execute(
                    "SELECT id, body FROM record WHERE id >= ? AND id < ? ORDER BY id LIMIT 1000", (id, id + "\uffff")
                )
            ]  # fmt: skip

        found = sorted(row for rows in await self._each(step) for row in rows)
        return [
            Explained(json.loads(body), tuple(json.loads(a) for (a,) in attempts), _lenient(row) if row else None)
            for _, body, attempts, row in found
        ]

    async def close(self) -> None:
        loop = asyncio.get_running_loop()
        for shard in self._shards:
            await loop.run_in_executor(None, shard.close)
        self._executor.shutdown(wait=True)


def message_row(
    message: NewMessage,
    slots: tuple[Any, ...],
    size: int,
    eight_bit: bool,
    skip: int,
    *,
    file: bool,
    claimed: bool = False,
) -> tuple[Any, ...]:
    """The row for `insert_message`."""
    return (
        message.id,
        message.state.value,
        claimed,
        message.received,
        message.received,
        size,
        schema.dumps(message.envelope.to_json()),
        schema.slots_json(slots),
        message.owed,
        message.trusted,
        message.reason,
        skip,
        eight_bit,
        file,
    )


def _dsn_row(message: NewMessage, content: bytes) -> tuple[Any, ...]:
    slots = schema.first_slots(message)
    return message_row(message, slots, len(content), not content.isascii(), 0, file=False)


def _due_now(slots: list[dict[str, Any]]) -> None:
    for slot in slots:
        if slot["status"] in ("pending", "deferred"):
            slot["due"] = 0.0


def _reopened(slots: list[dict[str, Any]]) -> None:
    for slot in slots:
        if slot["status"] != "delivered":
            slot.update(status="pending", due=0.0, attempts=0)


def _lenient(row: tuple[Any, ...]) -> Stored:
    """A row for the operator's eyes, even when it cannot be read."""
    try:
        return schema.read_row(row)
    except (ValueError, KeyError, TypeError) as error:
        return schema.unreadable(row, repr(error))


def shard_numbers(root: Path) -> list[int]:
    """Numbers of the shards that exist under the spool's directory. Raises OSError."""
    return sorted(int(match[1]) for name in os.listdir(root) if (match := _SHARD_NAME.match(name)))


def _set_aside(directory: Path, error: SpoolError) -> None:
    """A database that is none any more is kept under another name; mail goes on in a new one."""
    aside = directory.with_name(f"{directory.name}.corrupt-{time.time_ns() // 1_000_000_000}")
    os.rename(directory, aside)
    metrics.SPOOL_ERRORS.labels("shard").inc()
    _log.error("spool.shard_corrupt", shard=directory.name, kept_as=aside.name, error=str(error))


async def open_all(options: SpoolOptions) -> SqliteSpool:
    """All shards, owned or not by a running gateway, for the operator's commands. Raises `SpoolError`."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="spool-file")
    root = Path(options.path)
    try:
        numbers = shard_numbers(root)
    except OSError as error:
        raise SpoolError(f"cannot read spool directory {root}: {error.strerror}") from error
    if not numbers:
        raise SpoolError(f"no spool in {root}")
    shards = [open_shard(root / f"shard-{n:02}", options, executor, own=False, on_step=no_step) for n in numbers]
    return SqliteSpool(options, shards, executor, no_step)
