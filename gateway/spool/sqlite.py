"""The spool on one machine: SQLite shards, one written by each worker.

*Promises*: those of `gateway.spool.spool`. New mail goes to the worker's own shard; a restart with
another number of workers shares out all shards that exist, so nobody's mail is left behind.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from gateway.mail.envelope import Recipient
from gateway.ops import log
from gateway.spool import operator, schema
from gateway.spool.draft import FileDraft, MemoryContent, own_draft
from gateway.spool.free import FreeSpace
from gateway.spool.handover import Handover
from gateway.spool.notes import RECORD, Notes, open_notes
from gateway.spool.postmaster import Postmaster
from gateway.spool.recovery import InUse, make_root
from gateway.spool.shard import GUEST_NAME, OnStep, Shard, claim_from, no_step, open_shard, shard_numbers, view_shard
from gateway.spool.spool import (
    OURS,
    SET_ASIDE,
    Claimed,
    Draft,
    Explained,
    NewMessage,
    Room,
    Settlement,
    SpoolError,
    SpoolOptions,
    State,
    Step,
    Stored,
)

_log = log.get()

# Messages committed a moment ago are handed to the scheduler from memory, up to these bounds.
_FRESH_MESSAGES: Final = 2000
_FRESH_OCTETS: Final = 32 << 20
_GUESTS: Final = 64
_Insert = Callable[[sqlite3.Connection], None]
_Landed = Callable[[SpoolError | None], None]


class SqliteSpool:
    """Implements `gateway.spool.spool.Spool`. Make it with `open` (a worker's) or `open_all` (an operator's view)."""

    def __init__(
        self,
        options: SpoolOptions,
        notes: Notes,
        shards: Sequence[Shard],
        executor: ThreadPoolExecutor,
        on_step: OnStep,
    ) -> None:
        self._options = options
        self._notes = notes
        self._shards = shards
        self._executor = executor
        self._on_step = on_step
        self._fresh: deque[Claimed] = deque()
        self._claimed: dict[str, tuple[Shard, int, float]] = {}
        # By id: whose it is, for what is kept in memory its octets, -1 for the rest, and when it came.
        self._fresh_octets = 0
        self._fresh_messages = 0
        self._changed = False
        self._free = FreeSpace(options.path, options.min_free)

    @classmethod
    async def open(cls, options: SpoolOptions, *, worker: int = 0, workers: int = 1, on_step: OnStep = no_step) -> Self:
        """Open and recover the shards of one worker. Raises `SpoolError`."""
        root = Path(options.path)
        try:
            make_root(root)
            exist = set(shard_numbers(root))
        except OSError as error:
            raise SpoolError(f"cannot use spool directory {root}: {error.strerror}") from error
        notes = open_notes(options, make=True)
        # What all may keep is shared out, since no shard knows what the others have.
        share = replace(options, keep_octets=options.keep_octets // len(exist | set(range(workers))))
        numbers = {n for n in exist if n % workers == worker}
        executor = ThreadPoolExecutor(4, thread_name_prefix="spool-file")
        shards: list[Shard] = []
        try:
            # The worker's own shard first: new mail goes there.
            for n in [worker, *sorted(numbers - {worker})]:
                shards.append(open_shard(root / f"shard-{n:02}", share, notes, executor, on_step))
        except SpoolError:
            await cls(options, notes, shards, executor, on_step).close()
            raise
        return cls(options, notes, shards, executor, on_step)

    @classmethod
    async def open_guest(cls, options: SpoolOptions) -> Self:
        """A shard for decision records only, of a process that judges for another MTA and keeps no mail.

        No worker of a gateway on the same spool takes it over. Raises `SpoolError`.
        """
        root = Path(options.path)
        try:
            make_root(root)
        except OSError as error:
            raise SpoolError(f"cannot use spool directory {root}: {error.strerror}") from error
        notes = open_notes(options, make=True)
        executor = ThreadPoolExecutor(1, thread_name_prefix="spool-file")
        for n in range(_GUESTS):
            try:
                shard = open_shard(root / f"guest-{n:02}", options, notes, executor, no_step)
            except InUse:
                continue
            return cls(options, notes, [shard], executor, no_step)
        raise SpoolError(f"{_GUESTS} others use {root} already")

    def check_room(self, size: int) -> None:
        self._free.check(size)

    def draft(self, id: str, *, edited: bool = False) -> FileDraft:
        path = self._shards[0].path_of(id)
        # What is edited is read while its successor is written. No message has such an id, so a crash leaves an orphan.
        return FileDraft(id, path + ".edited" if edited else path, self._executor, self._on_step, self.check_room)

    async def commit(self, draft: Draft, message: NewMessage, *copies: NewMessage) -> None:
        # The draft comes first: it gives its name away before an edited one takes it.
        drafts: dict[FileDraft, list[NewMessage]] = {own_draft(draft): []}
        for one in (message, *copies):
            drafts.setdefault(own_draft(one.content or draft), []).append(one)
        try:
            await self._sync(drafts)
            await self._insert(drafts)
        except BaseException as error:
            for each in drafts:
                each.settled = each.settled and not isinstance(error, SpoolError)
                await each.abandon()
            raise

    async def _sync(self, drafts: Mapping[FileDraft, Sequence[NewMessage]]) -> None:
        """Make all content durable that is in files, under the names of its messages."""
        self.check_room(sum(d.size * (len(of) if d.file is None else 1) for d, of in drafts.items()))
        for draft, messages in drafts.items():
            if messages:
                await draft.sync([self._shards[0].path_of(message.id) for message in messages])
            else:
                await draft.abandon()
        # From here on the rows decide what becomes of the drafts, even when the caller is cancelled.
        for draft in drafts:
            draft.settled = True

    def _insert(self, drafts: Mapping[FileDraft, Sequence[NewMessage]]) -> asyncio.Future[None]:
        """Hand all of them to the writer as one step, so that all are durable or none."""
        shard = self._shards[0]
        made = [self._prepare(shard, draft, message) for draft, messages in drafts.items() for message in messages]

        def step(db: sqlite3.Connection) -> None:
            for insert, _ in made:
                insert(db)
            self._on_step(Step.COMMIT_BEGUN)

        def landed(error: SpoolError | None) -> None:
            for _, land in made:
                land(error)
            for draft in drafts:
                if error is not None and draft.file is not None:
                    self._executor.submit(draft.file.remove)

        return shard.writer.submit(step, after=partial(self._on_step, Step.COMMIT_DONE), landed=landed)

    def _prepare(self, shard: Shard, draft: FileDraft, message: NewMessage) -> tuple[_Insert, _Landed]:
        """How one message is inserted, and what follows when that is durable, or has failed."""
        head, body = message.head, None
        size = len(head) + draft.size - message.skip
        eight_bit = draft.eight_bit or not head.isascii()
        if draft.file is None:
            head, body = b"", head + memoryview(draft.memory)[message.skip :]
        slots = schema.first_slots(message)
        fresh = (
            body is not None
            and message.state is State.QUEUED
            and self._fresh_messages < _FRESH_MESSAGES
            and self._fresh_octets + size <= _FRESH_OCTETS
        )
        skip = 0 if body is not None else message.skip
        row = schema.new_row(message, slots, size, eight_bit, claimed=fresh, skip=skip, file=body is None)

        def insert(db: sqlite3.Connection) -> None:
            shard.insert(db, row, head, body, message.record)

        def landed(error: SpoolError | None) -> None:
            if error is not None:
                self._keep_fresh(-1, -size) if fresh else None
            elif fresh and body is not None:
                self._claimed[message.id] = (shard, size, message.received)
                stored = schema.new_stored(message, size, slots)
                self._fresh.append(Claimed(stored, MemoryContent(body, eight_bit)))
            elif message.state is State.QUEUED:
                shard.next_due = min(shard.next_due, message.received)

        if fresh:
            self._keep_fresh(1, size)
        return insert, landed

    def _keep_fresh(self, messages: int, octets: int) -> None:
        """Count what is kept in memory until it is settled."""
        self._fresh_messages += messages
        self._fresh_octets += octets

    def note(self, record: dict[str, Any]) -> None:
        if not self._notes.kept:
            return
        id, text = record["id"], self._notes.record(record)
        self._shards[0].writer.post(lambda db: db.execute(RECORD, (id, text)))

    async def claim(self, now: float, limit: int, room: Room | None = None) -> Sequence[Claimed]:
        if any(shard.stale for shard in self._shards):
            await self._forget_fresh()
        # Where there is both, older mail gets a part of the limit, so that a stream of new mail never starves it.
        share = max(1, limit // 4) if self._fresh else limit
        room, hurried = room or Room(share, share, share, share), room is None
        try:
            found = await claim_from(self._shards, now, room, hurried=hurried)
        except SpoolError:
            if not self._fresh:
                raise
            found = []
        out = [claimed for _, claimed in found]
        self._claimed.update((one.message.id, (shard, -1, one.message.received)) for shard, one in found)
        while self._fresh and len(out) < limit:
            out.append(self._fresh.popleft())
        return out

    def attend(self, ring: Callable[[], None]) -> None:
        for shard in self._shards:
            shard.ring = ring

    def changed(self) -> bool:
        changed, self._changed = self._changed, False
        return changed

    async def _forget_fresh(self) -> None:
        """Have the messages that wait in memory come from the database, which knows of holds and drops."""
        self._changed = True
        for shard in self._shards:
            shard.stale = False
        fresh = [claimed.message.id for claimed in self._fresh]
        try:
            await self._shards[0].let_go(fresh)
        except SpoolError as error:
            # Next time, then: a hold comes too late for some, but mail does not stand still.
            self._shards[0].stale = True
            _log.error("queue.claim_failed", error=str(error))
            return
        for id in fresh:
            self._fresh.popleft()
            self._keep_fresh(-1, -self._claimed.pop(id)[1])

    async def next_due(self, now: float) -> float | None:
        if self._fresh:
            return now
        due = min(shard.next_due for shard in self._shards)
        return None if due >= schema.NEVER else due

    async def settle(self, settlement: Settlement) -> None:
        shard, octets, _ = self._claimed.get(settlement.id, (self._shards[0], -1, 0.0))
        await shard.settle(settlement)
        if self._claimed.pop(settlement.id, None) and octets >= 0:
            self._keep_fresh(-1, -octets)

    # For the operator.

    @property
    def postmaster(self) -> Postmaster:
        """Finds and amends messages of these shards."""
        return Postmaster(Path(self._options.path), self._shards, self._notes, self._executor)

    @property
    def handover(self) -> Handover:
        """Hands messages of these shards over to another gateway, and takes over those of another."""
        return Handover(self._shards, self._notes, self._executor, self.postmaster, self.check_room)

    async def _read(self, step: Callable[[sqlite3.Connection], list[Any]]) -> list[Any]:
        """What `step` finds in all shards."""
        found = await asyncio.gather(*(shard.writer.read(step) for shard in self._shards))
        return [row for rows in found for row in rows]

    async def list(self, *, state: State | None = None, limit: int = 1000, after: str = "") -> Sequence[Stored]:
        condition, values = ("AND state = ?", (state.value,)) if state else ("", ())
        query = f"SELECT {schema.COLUMNS} FROM message WHERE id > ? {condition} ORDER BY id LIMIT ?"
        rows = await self._read(lambda db: db.execute(query, (after, *values, limit)).fetchall())
        return sorted(map(schema.lenient, rows), key=lambda m: m.id)[:limit]

    async def show(self, id: str) -> Claimed | None:
        query = f"SELECT {schema.COLUMNS} FROM message WHERE id = ?"
        for shard in self._shards:
            row = await shard.writer.read(lambda db: db.execute(query, (id,)).fetchone())
            if row is not None:
                try:
                    return shard.claimed(row)
                except schema.Unreadable as error:
                    raise SpoolError(f"{id} cannot be read: {error}") from error
        return None

    async def counts(self) -> dict[State, int]:
        out = dict.fromkeys(State, 0)
        query = "SELECT state, count(*), 0 FROM message GROUP BY state"
        if all(shard.owned for shard in self._shards):
            # Asked again and again, so it counts in small indexes, and knows itself what is claimed.
            query = schema.COUNT_KNOWN
            out[State.QUEUED] = len(self._claimed)
        for state, count, claimed in await self._read(lambda db: db.execute(query).fetchall()):
            out[State(state) if state in out else State.CORRUPT] += count
            out[State.QUEUED] -= int(claimed)
        return out

    async def oldest(self) -> dict[State, float]:
        # What is in hand is looked at twice: what was let go of meanwhile was in hand when the database was asked.
        before = self._in_hand()
        rows = await self._read(lambda db: db.execute(schema.OLDEST).fetchall())
        return schema.oldest([*rows, (State.QUEUED, before), (State.QUEUED, self._in_hand())])

    def _in_hand(self) -> float | None:
        """When the oldest message came that we have in hand."""
        return min((received for _, _, received in self._claimed.values()), default=None)

    async def release(
        self,
        ids: Sequence[str],
        *,
        by: str = "",
        to: Sequence[Recipient] = (),
        states: Collection[State] = SET_ASIDE,
    ) -> int:
        change = partial(operator.release, to=to, by=by, states=states, notes=self._notes)
        count = 0
        for shard in self._shards:
            shard.stale = True
            # Page by page, so that the gateway's own steps never wait for long.
            for page in operator.pages(ids):
                count += await shard.writer.submit(partial(change, ids=page))
            shard.next_due = 0.0
        return count

    async def hold(self, ids: Sequence[str], reason: str) -> int:
        query = "UPDATE message SET state = 'hold', reason = ? WHERE id = ? AND state = 'queued'"

        def step(db: sqlite3.Connection) -> int:
            return sum(db.execute(query, (reason, id)).rowcount for id in ids)

        for shard in self._shards:
            shard.stale = True
        return sum(await asyncio.gather(*(shard.writer.submit(step) for shard in self._shards)))

    async def drop(self, ids: Sequence[str], *, by: str = "", states: Collection[State] = OURS) -> int:
        return sum([len(await shard.drop(list(ids), "dropped", by, states)) for shard in self._shards])

    async def expire(self, state: State, before: float, limit: int, *, by: str = "") -> Sequence[Stored]:
        gone: list[Stored] = []
        for shard in self._shards:
            rows = await shard.writer.read(lambda db: db.execute(schema.ASIDE, (state.value, before, limit)).fetchall())
            if not (old := {row[0]: schema.lenient(row) for row in rows}):
                continue
            # Somebody may release one of them meanwhile: what counts is the state when they are removed.
            gone += [old[id] for id in await shard.drop(list(old), "expired", by, (state,))]
        return gone

    async def explain(self, id: str) -> Sequence[Explained]:
        return operator.explained(await self._read(partial(operator.explain, prefix=id)))

    async def attempts(self, first: str, last: str) -> dict[str, Sequence[dict[str, Any]]]:
        return operator.attempts_by_id(await self._read(partial(operator.attempts, first=first, last=last)))

    async def records(
        self, *, after: str = "", before: str = "", limit: int = 1000, newest: bool = False
    ) -> Sequence[dict[str, Any]]:
        return operator.read_records(await self.record_texts(after=after, before=before, limit=limit, newest=newest))

    async def record_texts(
        self, *, after: str = "", before: str = "", limit: int = 1000, newest: bool = False
    ) -> Sequence[tuple[str, bytes]]:
        step = partial(operator.record_ids, after=after, before=before or "\uffff", limit=limit, newest=newest)
        if not (ids := sorted(await self._read(step), reverse=newest)[:limit]):
            return []
        return sorted(await self._read(partial(operator.record_texts, ids=(min(ids), max(ids)))), reverse=newest)

    async def close(self) -> None:
        for shard in self._shards:
            await shard.close()
        self._executor.shutdown(wait=True)


async def open_all(options: SpoolOptions, on_step: OnStep = no_step) -> SqliteSpool:
    """All shards, owned or not by a running gateway, for the operator's commands. Raises `SpoolError`."""
    root = Path(options.path)
    try:
        names = [f"shard-{n:02}" for n in shard_numbers(root)] + sorted(filter(GUEST_NAME.match, os.listdir(root)))
    except OSError as error:
        raise SpoolError(f"cannot read spool directory {root}: {error.strerror}") from error
    if not names:
        raise SpoolError(f"no spool in {root}")
    notes = open_notes(options, make=False)
    executor = ThreadPoolExecutor(1, thread_name_prefix="spool-file")
    shards: list[Shard] = []
    try:
        for name in names:
            shard = view_shard(root / name, options, notes, executor, on_step)
            if shard is not None:
                shards.append(shard)
    except SpoolError:
        await SqliteSpool(options, notes, shards, executor, on_step).close()
        raise
    return SqliteSpool(options, notes, shards, executor, on_step)
