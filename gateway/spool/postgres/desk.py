"""What the postmaster sees and changes of the shared spool: states and records. See `gateway.spool.postgres.spool`."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

from gateway.mail.envelope import Recipient
from gateway.spool import operator, schema
from gateway.spool.draft import MemoryContent
from gateway.spool.hands import Hands
from gateway.spool.notes import Notes
from gateway.spool.postgres import mail
from gateway.spool.postgres.bell import Ring, ring
from gateway.spool.postgres.content import PostgresContent
from gateway.spool.postgres.database import Database
from gateway.spool.postgres.lease import Lease
from gateway.spool.postgres.postmaster import PostgresPostmaster
from gateway.spool.postgres.tables import COUNT
from gateway.spool.postgres.writer import PostgresWriter
from gateway.spool.spool import SET_ASIDE, Claimed, Explained, SpoolError, State, Stored


@dataclass(slots=True)
class Lines:
    """The connections of one process, each with its thread.

    `writer` commits groups; `bulk` commits large messages, so that nobody waits for those; `reader` only reads.
    """

    writer: PostgresWriter
    bulk: PostgresWriter
    reader: PostgresWriter
    bulk_name: str
    """What the server's lists show for `bulk`."""


class Desk:
    """The operator's part of `gateway.spool.spool.Spool`. Without a `lease` nothing is in our hand."""

    lines: Lines

    def __init__(self, notes: Notes, executor: Executor, lease: Lease | None, drafts: str) -> None:
        self._notes = notes
        self._executor = executor
        self._lease = lease
        self._drafts = drafts
        self._stale = False
        """What memory says of unclaimed messages may not hold any more."""
        self._next_due = 0.0
        """No unclaimed message is due before this, but for what there was no room for."""

    def begin(self, lines: Lines) -> None:
        """Work over these connections."""
        self.lines = lines

    @property
    def postmaster(self) -> Hands:
        """Finds and amends messages."""
        return PostgresPostmaster(self.lines, self._look, self._alter, self._notes, self._executor, self._drafts)

    def _read(self, row: tuple[Any, ...]) -> Claimed:
        """A row of `schema.COLUMNS` with its content. Raises `schema.Unreadable`."""
        stored = schema.read_row(row)
        n, _, eight_bit, chunked = row[10:14]
        lane, head, body = row[14:17] if len(row) > 14 else (None, None, None)
        if head is not None and body is not None and len(head) + len(body) == stored.size:
            return Claimed(stored, MemoryContent(head + body if head else body, bool(eight_bit)), lane)
        broken = partial(self._broken, stored.id)
        content = PostgresContent(
            self.lines.reader, broken, n, stored.size, bool(eight_bit), self._executor, chunked=bool(chunked)
        )
        return Claimed(stored, content, lane)

    async def _broken(self, id: str, reason: str) -> None:
        """Content is not all there. Whoever only looks does nothing about it."""

    async def _look(self, step: Callable[[Database], Any]) -> Any:
        """What `step` finds, after all that was submitted before."""
        await self.lines.writer.read(lambda db: None)
        return await self.lines.reader.read(step)

    async def _alter(self, step: Callable[[Database], Any]) -> Any:
        """Have `step` change something, and others know it."""

        def altering(db: Database) -> Any:
            if self._lease is None:
                # Where an operator and a gateway wait for each other, it is the operator who gives way and tries again.
                db.execute("SET LOCAL lock_timeout = '200ms'")
            result = step(db)
            ring(db, Ring.CHANGED)
            return result

        self._stale = True
        result = await self.lines.writer.submit(altering)
        self._next_due = 0.0
        return result

    async def list(self, *, state: State | None = None, limit: int = 1000, after: str = "") -> Sequence[Stored]:
        condition, values = ("AND state = ?", (state.value,)) if state else ("", ())
        query = f"SELECT {schema.COLUMNS} FROM message WHERE id > ? {condition} ORDER BY id LIMIT ?"
        rows = await self._look(lambda db: db.execute(query, (after, *values, limit)).fetchall())
        return [schema.lenient(row) for row in rows]

    async def show(self, id: str) -> Claimed | None:
        query = f"SELECT {schema.COLUMNS} FROM message WHERE id = ?"
        row = await self._look(lambda db: db.execute(query, (id,)).fetchone())
        try:
            return None if row is None else self._read(row)
        except schema.Unreadable as error:
            raise SpoolError(f"{id} cannot be read: {error}") from error

    async def counts(self) -> dict[State, int]:
        out = dict.fromkeys(State, 0)
        if self._counted_by_others:
            return out
        for state, count in await self._look(lambda db: db.execute(COUNT).fetchall()):
            out[State(state) if state in out else State.CORRUPT] += count
        return out

    async def oldest(self) -> dict[State, float]:
        # What is in hand is looked at twice: what was let go of meanwhile was in hand when the database was asked.
        before = self._in_hand()
        rows = [] if self._counted_by_others else await self._look(lambda db: db.execute(schema.OLDEST).fetchall())
        return schema.oldest([*rows, (State.QUEUED, before), (State.QUEUED, self._in_hand())])

    def _in_hand(self) -> float | None:
        """When the oldest message came that we have in hand."""
        return None

    @property
    def _counted_by_others(self) -> bool:
        """One of the workers counts for all, or the sum over workers would be wrong."""
        return self._lease is not None and not self._lease.keeper

    async def release(
        self,
        ids: Sequence[str],
        *,
        by: str = "",
        to: Sequence[Recipient] = (),
        states: Collection[State] = SET_ASIDE,
    ) -> int:
        change = partial(operator.release, to=to, by=by, states=states, notes=self._notes, lock=mail.LOCK)
        # Page by page, so that nobody waits for long.
        return sum([await self._alter(partial(change, ids=page)) for page in operator.pages(ids)])

    async def hold(self, ids: Sequence[str], reason: str) -> int:
        query = "UPDATE message SET state = 'hold', reason = ? WHERE id = ANY (?) AND state = 'queued'"
        held: int = await self._alter(lambda db: db.execute(query, (reason, list(ids))).rowcount)
        return held

    async def drop(self, ids: Sequence[str], *, by: str = "", states: Collection[State] = tuple(State)) -> int:
        return len(await self._drop(list(ids), "dropped", by, states))

    async def _drop(self, ids: Sequence[str], outcome: str, by: str, states: Collection[State]) -> Sequence[str]:
        now = time.time_ns() / 1e9
        step = partial(mail.drop, ids=ids, outcome=outcome, by=by, states=states, now=now, notes=self._notes)
        gone: Sequence[str] = await self._alter(step)
        return gone

    async def expire(self, state: State, before: float, limit: int, *, by: str = "") -> Sequence[Stored]:
        rows = await self._look(lambda db: db.execute(schema.ASIDE, (state.value, before, limit)).fetchall())
        if not (old := {row[0]: schema.lenient(row) for row in rows}):
            return []
        # Somebody may release or drop one of them meanwhile: what counts is the state when they are removed.
        return [old[id] for id in await self._drop(list(old), "expired", by, (state,))]

    async def explain(self, id: str) -> Sequence[Explained]:
        return operator.explained(await self._look(partial(operator.explain, prefix=id)))

    async def attempts(self, first: str, last: str) -> dict[str, Sequence[dict[str, Any]]]:
        return operator.attempts_by_id(await self._look(partial(operator.attempts, first=first, last=last)))

    async def records(
        self, *, after: str = "", before: str = "", limit: int = 1000, newest: bool = False
    ) -> Sequence[dict[str, Any]]:
        return operator.read_records(await self.record_texts(after=after, before=before, limit=limit, newest=newest))

    async def record_texts(
        self, *, after: str = "", before: str = "", limit: int = 1000, newest: bool = False
    ) -> Sequence[tuple[str, bytes]]:
        order = "DESC" if newest else "ASC"
        query = f"SELECT id, convert_to(body, 'UTF8') FROM record WHERE id > ? AND id < ? ORDER BY id {order} LIMIT ?"
        bounds = (after, before or "\uffff", limit)
        texts: Sequence[tuple[str, bytes]] = await self._look(lambda db: db.execute(query, bounds).fetchall())
        return texts
