"""The postmaster's hands on the spool that several gateways share.

*Promises*: beside running gateways as without one. A message that a living worker has in hand is left to it, after a
wait if one is wanted; claims of dead workers are none. Messages are changed in small steps, so that no gateway waits
for long.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol

from gateway.ops import metrics
from gateway.ops.operations import DEEDS, STATES, Amended, Amendment, Retry, Selection, Suspension, Waiting
from gateway.spool import amend as amending
from gateway.spool import schema, writer
from gateway.spool.draft import FileDraft
from gateway.spool.finding import merged
from gateway.spool.hands import Found, Hop
from gateway.spool.notes import Notes
from gateway.spool.parcel import Entered, Parcel, fill, finish, from_json, no_step, note, row_of, to_json
from gateway.spool.postgres import finding, lease, mail, suspensions
from gateway.spool.postgres.bell import Ring, ring
from gateway.spool.postgres.database import Database
from gateway.spool.postgres.writer import PostgresWriter
from gateway.spool.spool import SpoolError, State
from gateway.spool.suspensions import Source

_PAGE: Final = 200
_PAUSE: Final = 0.1
_ONE: Final = f"SELECT {schema.COLUMNS}, claimed FROM message WHERE id = ?"
_TO_HASTEN: Final = (
    "SELECT id, EXISTS (SELECT 1 FROM worker WHERE n = message.claimed), reason, slots FROM message"
    " WHERE id = ANY (?) AND state = 'queued' ORDER BY id FOR UPDATE OF message"
)

Do = Callable[[Callable[[Database], Any]], Awaitable[Any]]


class Lines(Protocol):
    """The connections that are needed here; see `gateway.spool.postgres.desk.Lines`."""

    writer: PostgresWriter
    bulk: PostgresWriter
    reader: PostgresWriter


class _LockedRows:
    """Implements `gateway.spool.amend.Rows` where others write, too."""

    find = (
        "SELECT state, EXISTS (SELECT 1 FROM worker WHERE n = message.claimed), owed, reason, slots, envelope"
        " FROM message WHERE id = ? FOR UPDATE OF message"
    )

    def remove(self, db: writer.Database, id: str) -> str:
        mail.delete(db, id, tuple(State))
        return ""


class PostgresPostmaster:
    """Implements `gateway.spool.hands.Hands`.

    `look` runs a step that only reads, `alter` one that changes something, which others are told. `drafts` is a
    directory for large messages on their way in.
    """

    def __init__(self, lines: Lines, look: Do, alter: Do, notes: Notes, executor: Executor, drafts: str) -> None:
        self._lines = lines
        self._look = look
        self._alter = alter
        self._notes = notes
        self._executor = executor
        self._drafts = drafts

    async def find(self, wanted: Selection, hop: Hop, *, limit: int, after: str = "") -> list[Found]:
        """Messages by id, rising, beginning after `after`. `hop` says where a recipient's mail goes."""
        question = finding.Question(wanted, hop)
        living = await self._look(lease.living)
        out: list[Found] = []
        following: str | None = after
        while following is not None and len(out) < limit:
            step = partial(question.page, after=following, limit=limit - len(out))
            rows, following = await self._look(step)
            out += [Found(schema.lenient(row), row[-1] in living) for row in rows]
        return out

    async def one(self, id: str) -> Found | None:
        """One message, even when its row cannot be read."""

        def step(db: Database) -> tuple[tuple[Any, ...] | None, frozenset[int]]:
            return db.execute(_ONE, (id,)).fetchone(), lease.living(db)

        row, living = await self._look(step)
        return None if row is None else Found(schema.lenient(row), row[-1] in living)

    async def waiting(self, now: float, hop: Hop) -> list[Waiting]:
        """What waits for each destination, the most recipients first."""
        groups: dict[str, finding.Group] = {}
        page = partial(
            finding.waiting, now=now, hop=finding.known(hop), living=await self._look(lease.living), groups=groups
        )
        after: str | None = ""
        while after is not None:
            after = await self._look(partial(page, after=after))
        return merged(finding.told(groups))

    async def amend(
        self, ids: Sequence[str], amendment: Amendment, *, by: str, wait: float = 0.0
    ) -> dict[str, Amended]:
        """Amend messages; gives what came of each. What is claimed is tried again for `wait` seconds.

        `by` says who wants it so: that is kept with the attempts.
        """
        out: dict[str, Amended] = {}
        deadline = time.monotonic() + wait
        left = list(dict.fromkeys(ids))
        knocked = False
        while True:
            await self._lines.writer.submit(lease.bury)
            # What was in hand may have left.
            out |= dict.fromkeys(left, Amended.MISSING)
            for start in range(0, len(left), _PAGE):
                out |= await self._page(left[start : start + _PAGE], amendment, by)
            left = [id for id in left if out[id] is Amended.CLAIMED]
            if not left or time.monotonic() >= deadline:
                break
            if not knocked:
                knocked = True
                # Workers give back what merely waits in their memory when somebody changes something.
                await self._alter(lambda db: None)
            await asyncio.sleep(_PAUSE)
        for result in out.values():
            metrics.QUEUE_OPERATIONS.labels(DEEDS[type(amendment)], result.value).inc()
        return out

    async def hasten(self, wanted: Selection, hop: Hop, *, by: str, wait: float = 0.0) -> dict[str, Amended]:
        """Have all queued messages that are meant tried again now: `Retry`, for many at once."""
        await self._lines.writer.submit(lease.bury)
        question = finding.Question(replace(wanted, states=STATES[Retry]), hop)
        out: dict[str, Amended] = {}
        after: str | None = ""
        while after is not None:
            ids, after = await self._look(partial(question.ids, after=after))
            out |= await self._alter(partial(self._hasten, ids=ids, by=by)) if ids else {}
        done = sum(result is Amended.DONE for result in out.values())
        metrics.QUEUE_OPERATIONS.labels(DEEDS[Retry], Amended.DONE.value).inc(done)
        left = [id for id, result in out.items() if result is not Amended.DONE]
        return out | await self.amend(left, Retry(), by=by, wait=wait) if left else out

    def _hasten(self, db: Database, ids: Sequence[str], by: str) -> dict[str, Amended]:
        """Make due what is queued of these, all of it in one go."""
        rows = db.execute(_TO_HASTEN, (list(ids),)).fetchall()
        return dict(amending.hasten(db, rows, by, time.time_ns() / 1e9, self._notes))

    async def _page(self, ids: Sequence[str], amendment: Amendment, by: str) -> dict[str, Amended]:
        def step(db: Database) -> dict[str, Amended]:
            hastened = self._hasten(db, ids, by) if isinstance(amendment, Retry) else {}
            # In the order in which other operators lock them.
            left = sorted(id for id in ids if id not in hastened)
            now = time.time_ns() / 1e9
            results = amending.amend(db, left, amendment, by, now, self._notes, _LockedRows())
            return hastened | {id: result for id, result, _ in results}

        return await self._alter(step)  # type: ignore[no-any-return]

    async def describe(self, id: str, sha256: str) -> dict[str, Any] | None:
        """What an export says of a message whose content has this digest; None for one that is not there whole."""
        found = await self.one(id)
        if found is None or found.message.state is State.CORRUPT:
            return None
        return to_json(found.message, sha256)

    async def enter_described(
        self, data: Any, check_next_hop: Callable[[str], object], blocks: AsyncIterator[bytes], *, by: str
    ) -> str | None:
        """Store what `describe` said; gives its id, None when that is there. Raises ValueError and `SpoolError`."""
        parcel = from_json(data, check_next_hop)
        return parcel.id if await self.enter(parcel, blocks, by=by) is Entered.DONE else None

    async def enter(self, parcel: Parcel, blocks: AsyncIterator[bytes], *, by: str) -> Entered:
        """Store a message that was exported, with the state that it was in. Raises `SpoolError`."""
        if await self.one(parcel.id) is not None:
            return Entered.THERE
        try:
            with tempfile.TemporaryDirectory(prefix="import-", dir=self._place()) as directory:
                draft = FileDraft(parcel.id, f"{directory}/content", self._executor, no_step, lambda _: None)
                try:
                    await fill(draft, parcel, blocks)
                    return await self._enter(draft, parcel, by)
                finally:
                    await draft.abandon()
        except OSError as error:
            raise SpoolError(f"no room for a draft: {error.strerror}") from error

    def _place(self) -> str | None:
        """Where a draft may lie; None for where the system has others."""
        return self._drafts if os.access(self._drafts, os.W_OK | os.X_OK) else None

    async def _enter(self, draft: FileDraft, parcel: Parcel, by: str) -> Entered:
        large = draft.file is not None
        if large:
            await draft.flush()
        new = mail.NewRow(row_of(parcel, draft), b"", None if large else bytes(draft.memory), None)
        if draft.file is not None:
            new.path, new.octets = draft.file.path, draft.size

        def step(db: Database) -> None:
            mail.insert(db, new, 0, self._notes)
            finish(db, parcel)
            note(db, parcel, "imported", by, self._notes)
            ring(db, Ring.DUE)

        try:
            await (self._lines.bulk if large else self._lines.writer).submit(step)
        except SpoolError:
            # Somebody else may have entered it meanwhile.
            if await self.one(parcel.id) is not None:
                return Entered.THERE
            raise
        return Entered.DONE

    async def suspensions(self) -> dict[str, Suspension]:
        """What is suspended. Raises `SpoolError`."""
        return suspensions.listed(await self._look(suspensions.read)).suspended

    async def suspend(self, suspension: Suspension) -> bool:
        """Have nothing delivered there, from about now on; False when that is so already. Raises `SpoolError`."""
        return await self._lines.writer.submit(partial(suspensions.suspend, suspension=suspension))

    async def resume(self, destination: str, *, by: str) -> Suspension | None:
        """Have mail delivered there again; None when it was not suspended. Raises `SpoolError`."""
        return await self._lines.writer.submit(partial(suspensions.resume, destination=destination, by=by))

    @property
    def listing(self) -> Source:
        """The list of what is suspended, to be looked at again and again."""
        return suspensions.ListTable(self._lines.reader)

    async def unattended(self) -> bool:
        """Whether no gateway works on the mail."""
        return not await self._look(lease.living)
