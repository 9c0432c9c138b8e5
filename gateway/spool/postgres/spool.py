"""The spool that several gateways share: any of them delivers what any of them accepted.

*Promises*: those of `gateway.spool.spool`. A message is in the hand of one worker at a time; what a worker had in hand
that died is taken over by the others (`gateway.spool.postgres.lease`).

*Fails by*: while the database does not answer, `SpoolError` at once and for everything; it goes on by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from gateway.ops import log
from gateway.spool import schema
from gateway.spool.draft import SPILL, FileDraft, MemoryContent, own_draft
from gateway.spool.free import FreeSpace
from gateway.spool.notes import RECORD, Notes
from gateway.spool.postgres import mail
from gateway.spool.postgres.bell import Ring, ring
from gateway.spool.postgres.database import Database
from gateway.spool.postgres.desk import Desk
from gateway.spool.postgres.lease import Lease
from gateway.spool.postgres.writer import OutcomeUnknown, PostgresWriter
from gateway.spool.retention import Retention
from gateway.spool.rounds import Rounds, Taken
from gateway.spool.shard import OnStep
from gateway.spool.spool import (
    Claimed,
    Draft,
    NewMessage,
    Room,
    Settlement,
    SpoolError,
    SpoolOptions,
    State,
    Step,
)

_log = log.get()

_FRESH_MESSAGES: Final = 2000
_FRESH_OCTETS: Final = 32 << 20
_FAILED_PAUSE: Final = 1.0
_SILENCE: Final = 60.0
_DUE_PAUSE: Final = 1.0
_DOUBTS: Final = 10_000
_NEVER: Final = float("inf")
_NEXT: Final = "SELECT id FROM message WHERE claimed = ?"


class PostgresSpool(Desk):
    """Implements `gateway.spool.spool.Spool`; made by `gateway.spool.postgres.opening`.

    Without a `lease` it is an operator's view, or takes records only. `drafts` is where large messages lie while they
    arrive.
    """

    def __init__(
        self,
        options: SpoolOptions,
        notes: Notes,
        executor: ThreadPoolExecutor,
        on_step: OnStep,
        drafts: str,
        lease: Lease | None,
    ) -> None:
        super().__init__(notes, executor, lease, drafts)
        self._options = options
        self._on_step = on_step
        self._loop = asyncio.get_running_loop()
        self._fresh: deque[Claimed] = deque()
        self._claimed: dict[str, tuple[int, int, float]] = {}
        # By id: the number under which it is ours, for what is kept in memory its octets, -1 for the rest, and when it
        # came.
        self._fresh_octets = 0
        self._fresh_messages = 0
        self._changed = False
        self._short = False
        self._rounds = Rounds(mail.SharedRows(self._number))
        self._free = FreeSpace(options.path, options.min_free)
        self._doubtful: list[str] = []
        # Committed or not: their clients were told that they are not.
        self._doubtful_sessions: list[int] = []
        # Of the server, which may commit some of them yet.
        self._suspected_until = 0.0
        self._suspects: frozenset[str] = frozenset()
        self._next_ring = 0.0
        self._retention = Retention(
            "postgres",
            options.keep_records,
            options.keep_octets,
            begin="BEGIN",
            size="octet_length(body)",
        )
        self._ring: Callable[[], None] = lambda: None
        self.release_lock: Callable[[], None] = lambda: None

    def _number(self) -> int:
        return self._lease.number if self._lease else 0

    # In the writer's thread.

    def upkeep(self, db: Database) -> bool:
        """Keep the lease, hear the bell, let old records go; says whether there is more to let go."""
        if self._lease is None:
            return False
        if self._lease.keep(db) and time.monotonic() < self._suspected_until:
            ids = frozenset(id for (id,) in db.execute(_NEXT, (self._lease.number,)))
            self._loop.call_soon_threadsafe(self._compare, ids)
        if not self._lease.keeper:
            self._retention.close()
            return False
        return self._retention.step(db)

    def heard(self, said: str) -> None:
        """What others say, and that our number is another one."""
        self._loop.call_soon_threadsafe(self._hear, said)

    def back(self) -> None:
        """There is a connection again."""
        self._loop.call_soon_threadsafe(self._go_on)

    # On the event loop.

    def _hear(self, said: str) -> None:
        self._next_due = 0.0
        self._stale = self._stale or said == Ring.CHANGED
        self._ring()

    def _go_on(self) -> None:
        """Nobody has told us anything meanwhile, and what was being stored when the connection was lost is in doubt."""
        self._hear(Ring.CHANGED)
        if self._lease is None:
            return
        self._suspected_until = time.monotonic() + (self._options.postgres.lease if self._options.postgres else 0.0)
        self._retract()

    def _retract(self) -> None:
        """Have nothing stored of what failed: its clients send it again."""
        doubtful, self._doubtful = self._doubtful, []
        sessions, self._doubtful_sessions = self._doubtful_sessions, []
        if doubtful:
            bulk = self.lines.bulk_name
            step = partial(mail.retract, ids=doubtful, worker=self._number(), name=bulk, sessions=sessions)
            done = self.lines.writer.submit(step, landed=partial(self._retracted, doubtful, sessions))
            # `landed` is who hears of it.
            done.add_done_callback(asyncio.Future.exception)

    def _retracted(self, ids: Sequence[str], sessions: Sequence[int], error: SpoolError | None) -> None:
        if error is not None:
            self._doubt(ids, sessions)
            if not self.lines.writer.silent(_SILENCE):
                # Else it is tried when there is a connection again.
                self._loop.call_later(_FAILED_PAUSE, self._retract)

    def _doubt(self, ids: Sequence[str], sessions: Sequence[int]) -> None:
        self._doubtful = [*self._doubtful, *ids][:_DOUBTS]
        self._doubtful_sessions = [*self._doubtful_sessions, *sessions][:_DOUBTS]

    def _compare(self, ids: frozenset[str]) -> None:
        """Give back what is claimed for us and in nobody's hand here, when it was so the last time, too."""
        astray = ids - self._claimed.keys()
        again, self._suspects = astray & self._suspects, astray
        if again:
            _log.warning("spool.claims_astray", messages=len(again))
            step = partial(mail.let_go, ids=sorted(again), worker=self._number())
            self.lines.writer.submit(step, landed=self._given_back)

    def _given_back(self, error: SpoolError | None) -> None:
        self._next_due = 0.0

    # For the front door.

    def check_room(self, size: int) -> None:
        timeout = self._options.postgres.timeout if self._options.postgres else 0.0
        if why := self.lines.writer.silent(timeout / 2):
            raise SpoolError(f"the database does not answer: {why}")
        if size > SPILL:
            self._free.check(size)

    def draft(self, id: str, *, edited: bool = False) -> FileDraft:
        path = f"{self._drafts}/{id}"
        return FileDraft(id, path + ".edited" if edited else path, self._executor, self._on_step, self._free.check)

    async def commit(self, draft: Draft, message: NewMessage, *copies: NewMessage) -> None:
        drafts: dict[FileDraft, list[NewMessage]] = {own_draft(draft): []}
        for one in (message, *copies):
            drafts.setdefault(own_draft(one.content or draft), []).append(one)
        try:
            self.check_room(0)
            await self._finish(drafts)
            await self._insert(drafts)
        except BaseException as error:
            for each in drafts:
                each.settled = each.settled and not isinstance(error, SpoolError)
                await each.abandon()
            raise

    async def _finish(self, drafts: Mapping[FileDraft, Sequence[NewMessage]]) -> None:
        """Have all of it where the committing step reads it. No file is synced: a file is no message."""
        for draft, messages in drafts.items():
            if not messages:
                await draft.abandon()
            elif draft.file is not None:
                await draft.flush()
                self._on_step(Step.FILE_WRITTEN)
        # From here on the rows decide what becomes of the drafts, even when the caller is cancelled.
        for draft in drafts:
            draft.settled = True

    def _insert(self, drafts: Mapping[FileDraft, Sequence[NewMessage]]) -> asyncio.Future[None]:
        """Hand all of them to a writer as one step, so that all are durable or none."""
        made = [(self._prepare(draft, message), message) for draft, messages in drafts.items() for message in messages]
        used = [0]
        large = any(draft.file is not None for draft in drafts)

        def step(db: Database) -> None:
            used[0] = self._number()
            for new, _ in made:
                mail.insert(db, new, used[0], self._notes)
            self._on_step(Step.COMMIT_BEGUN)

        def landed(error: SpoolError | None) -> None:
            for new, message in made:
                self._landed(new, message, used[0], error)
            if isinstance(error, OutcomeUnknown):
                self._doubt([message.id for _, message in made], [error.session] if large else [])
                if large:
                    # Of the other connection's end we hear when it is back.
                    self._retract()
            for draft in drafts:
                if draft.file is not None:
                    self._executor.submit(self._remove, draft)

        writer = self.lines.bulk if large else self.lines.writer
        return writer.submit(step, after=partial(self._on_step, Step.COMMIT_DONE), landed=landed)

    def _remove(self, draft: FileDraft) -> None:
        """Its octets are in the database, or were refused."""
        if draft.file is not None:
            draft.file.remove()
            self._on_step(Step.FILE_REMOVED)

    def _prepare(self, draft: FileDraft, message: NewMessage) -> mail.NewRow:
        """What is to be inserted. Small content is kept in memory, too, if there is room, and born in our hand."""
        head, body = message.head, None
        size = len(head) + draft.size - message.skip
        eight_bit = draft.eight_bit or not head.isascii()
        if draft.file is None:
            head, body = b"", head + memoryview(draft.memory)[message.skip :]
        fresh = (
            body is not None
            and self._lease is not None
            and message.state is State.QUEUED
            and self._fresh_messages < _FRESH_MESSAGES
            and self._fresh_octets + size <= _FRESH_OCTETS
        )
        if fresh:
            self._keep_fresh(1, size)
        row = schema.new_row(message, schema.first_slots(message), size, eight_bit, file=body is None)
        new = mail.NewRow(row, head, body, message.record, fresh)
        if draft.file is not None:
            new.path, new.skip, new.octets = draft.path, message.skip, draft.size - message.skip
        return new

    def _landed(self, new: mail.NewRow, message: NewMessage, number: int, error: SpoolError | None) -> None:
        """Its row is durable, or is not there."""
        body = new.body
        if error is not None:
            if new.fresh and body is not None:
                self._keep_fresh(-1, -len(body))
        elif new.fresh and body is not None:
            self._claimed[message.id] = (number, len(body), message.received)
            stored = schema.new_stored(message, len(body), schema.first_slots(message))
            eight_bit = bool(new.row[-3])
            self._fresh.append(Claimed(stored, MemoryContent(body, eight_bit)))
        elif message.state is State.QUEUED:
            self._next_due = min(self._next_due, message.received)

    def _keep_fresh(self, messages: int, octets: int) -> None:
        """Count what is kept in memory until it is settled."""
        self._fresh_messages += messages
        self._fresh_octets += octets

    def note(self, record: dict[str, Any]) -> None:
        if not self._notes.kept:
            return
        id, text = record["id"], self._notes.record(record)
        self.lines.writer.post(lambda db: db.execute(RECORD, (id, text)))

    # For the scheduler.

    async def claim(self, now: float, limit: int, room: Room | None = None) -> Sequence[Claimed]:
        if self._stale:
            await self._forget_fresh()
        # Where there is both, older mail gets a part of the limit, so that a stream of new mail never starves it.
        share = max(1, limit // 4) if self._fresh else limit
        room, hurried = room or Room(share, share, share, share), room is None
        try:
            out = await self._claim_stored(now, room)
        except SpoolError:
            if not self._fresh:
                raise
            out = []
        if hurried and self._short:
            self._next_due = min(self._next_due, now)
        while self._fresh and len(out) < limit:
            out.append(self._fresh.popleft())
        return out

    async def _claim_stored(self, now: float, room: Room) -> list[Claimed]:
        """Take due messages from the database. Rows that cannot be read are set aside as corrupt."""
        wanted = self._next_due <= now or (self._short and room.again)
        if not wanted or room.total <= 0 or (room.unfiled <= 0 and room.filed <= 0):
            return []

        def step(db: Database) -> tuple[Taken, int]:
            taken = self._rounds.take(db, now, room)
            if taken.short and time.monotonic() >= self._next_ring:
                # There is more than we have room for: others may have some.
                self._next_ring = time.monotonic() + _DUE_PAUSE
                ring(db, Ring.DUE)
            return taken, self._number()

        # Lowered by whoever defers a message meanwhile, so it is set before the look and only lowered after it.
        self._next_due = _NEVER
        try:
            taken, number = await self.lines.writer.submit(step, after=partial(self._on_step, Step.CLAIM_DONE))
        except SpoolError:
            self._next_due = now + _FAILED_PAUSE
            raise
        self._next_due = min(self._next_due, taken.due)
        self._short = taken.short
        self._claimed.update((row[0], (number, -1, row[2])) for row in taken.rows)
        out: list[Claimed] = []
        for row in taken.rows:
            try:
                out.append(self._read(row))
            except schema.Unreadable as error:
                await self._broken(row[0], f"row cannot be read: {error}")
        return out

    async def _broken(self, id: str, reason: str) -> None:
        """Mark a message that we have in hand as corrupt."""
        number, *_ = self._claimed.get(id, (0, -1, 0.0))
        if not number:
            return
        try:
            found = await self.lines.writer.submit(partial(mail.set_aside, id=id, reason=reason, worker=number))
        except SpoolError as error:
            _log.error("message.corrupt", id=id, reason=reason, error=str(error))
            return
        if found:
            self._claimed.pop(id, None)
            _log.error("message.corrupt", id=id, reason=reason)

    def attend(self, ring: Callable[[], None]) -> None:
        self._ring = ring

    def changed(self) -> bool:
        changed, self._changed = self._changed, False
        return changed

    async def _forget_fresh(self) -> None:
        """Have the messages that wait in memory come from the database, which knows of holds, drops and leases."""
        self._changed = True
        self._stale = False
        fresh = [claimed.message.id for claimed in self._fresh]
        try:
            for number in {self._claimed[id][0] for id in fresh}:
                await self.lines.writer.submit(partial(mail.let_go, ids=fresh, worker=number))
        except SpoolError as error:
            # Next time, then: a hold comes too late for some, but mail does not stand still.
            self._stale = True
            _log.error("queue.claim_failed", error=str(error))
            return
        self._next_due = 0.0
        for id in fresh:
            self._fresh.popleft()
            self._keep_fresh(-1, -self._claimed.pop(id)[1])

    def _in_hand(self) -> float | None:
        return min((received for _, _, received in self._claimed.values()), default=None)

    async def next_due(self, now: float) -> float | None:
        if self._fresh:
            return now
        return None if self._next_due >= schema.NEVER else self._next_due

    async def settle(self, settlement: Settlement) -> None:
        id = settlement.id
        number, octets, _ = self._claimed.get(id, (self._number(), -1, 0.0))
        due = schema.due_of(settlement.slots)
        step = partial(
            mail.settle, settlement=settlement, worker=number, due=due, notes=self._notes, on_step=self._on_step
        )
        # Nobody waits for it but us, and what it costs to be late is a second delivery if we crash just now.
        after = partial(self._on_step, Step.SETTLE_DONE)
        if await self.lines.writer.submit(step, after=after, patient=True):
            dsns = (dsn.message.received for dsn in settlement.dsns)
            self._next_due = min(self._next_due, due, settlement.deadline, *dsns)
        else:
            self._next_due = 0.0
            mail.note_lost(id)
        if self._claimed.pop(id, None) and octets >= 0:
            self._keep_fresh(-1, -octets)

    async def close(self) -> None:
        lines = self.lines
        await _end(lines.bulk)
        if self._lease is not None:
            try:
                await lines.writer.read(self._lease.end)
            except SpoolError as error:
                # The others take over what we had in hand.
                _log.warning("spool.lease_not_ended", error=str(error))
        for line in (lines.writer, lines.reader):
            await _end(line)
        self._retention.close()
        self._executor.shutdown(wait=True)
        self.release_lock()
        self.release_lock = lambda: None


async def _end(line: PostgresWriter) -> None:
    """Finish what was submitted, and end the thread and its connection."""
    line.end()
    await asyncio.to_thread(line.close)
