"""Messages on their way from one gateway's spool into another's, each with one owner at any time.

The sender writes down to whom it offers a message (`State.LEAVING` and a row of `offer`), then sends it. The receiver
stores it and notes the offer as taken in one transaction: **from that COMMIT on the receiver owns it.** The sender
removes its copy when it has heard so. When it has heard nothing, it asks for the offer to be withdrawn, and the
receiver either says that it has taken it, or writes down that it never will. Every offer has an id of its own and is
sent once.

*Promises*: a message that is leaving is never delivered, dropped or offered to another, whatever crashes, until its
receiver has said for certain what came of the offer. An offer that was taken is never taken again, an offer that was
withdrawn never, though the message may have left the receiver since: notes outlive messages and records.

*Fails by*: `SpoolError`, and `ParcelError` for what is no message.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from gateway.mail.message import Content
from gateway.mail.session import ids_from
from gateway.ops.operations import STATES, Amended, Leave
from gateway.spool import offers, schema
from gateway.spool.draft import FileDraft
from gateway.spool.notes import Notes
from gateway.spool.offers import AHEAD_SECONDS, KEPT_SECONDS, Answer, Offer
from gateway.spool.parcel import Parcel, ParcelError, from_json, has, insert_row, note, receive, to_json
from gateway.spool.postmaster import Postmaster, for_mail
from gateway.spool.spool import SpoolError, Step

if TYPE_CHECKING:
    from gateway.spool.shard import Shard

_FIRST: Final = "shard-00"
_OFFER_ID: Final = re.compile(r"[0-9A-Z]{13}\Z")


@dataclass(frozen=True, slots=True)
class Pack:
    """What is sent: the description as JSON without a line end, and the content of `size` octets."""

    description: bytes
    content: Content
    sha256: str


class Handover:
    """Both sides, for the shards of a spool."""

    def __init__(
        self,
        shards: Sequence[Shard],
        notes: Notes,
        executor: Executor,
        postmaster: Postmaster,
        check_room: Callable[[int], None],
    ) -> None:
        self.root = postmaster.root
        self._shards = [shard for shard in shards if for_mail(shard)]
        self._notes = notes
        self._executor = executor
        self._postmaster = postmaster
        self._check_room = check_room

    # The sender's side

    async def candidates(self, after: str, limit: int) -> list[str]:
        """Ids of messages that may be offered, rising, beginning after `after`."""
        states = ", ".join(f"'{state}'" for state in STATES[Leave])
        query = f"SELECT id FROM message WHERE id > ? AND state IN ({states}) ORDER BY id LIMIT ?"
        rows = await self._read(lambda db: db.execute(query, (after, limit)).fetchall())
        return sorted(str(row[0]) for row in rows)[:limit]

    async def counts(self) -> dict[str, int]:
        """Messages by the state that is stored, claimed or not."""
        out: dict[str, int] = {}
        query = "SELECT state, count(*) FROM message GROUP BY state"
        for state, count in await self._read(lambda db: db.execute(query).fetchall()):
            out[str(state)] = out.get(str(state), 0) + int(count)
        return out

    async def offer(self, ids: Sequence[str], to: Leave, *, wait: float = 0.0) -> dict[str, Amended]:
        """Write down, durably, that these are offered; what came of each. What somebody has in hand is not."""
        results = await self._postmaster.amend(ids, to, by="", wait=wait)
        for shard in self._shards[:1]:
            shard.on_step(Step.LEAVE_DONE)
        return results

    async def pending(self, offer: str = "") -> list[Offer]:
        """All that is leaving, or what is by this offer."""
        return [one for offers in await self._gather(partial(offers.pending, offer=offer)) for one in offers]

    async def pack(self, offer: Offer, by: str) -> Pack:
        """All there is to say of it. Raises `SpoolError` when that is not what was stored."""
        for shard in self._shards:
            query = f"SELECT {schema.COLUMNS} FROM message WHERE id = ?"
            row = await shard.writer.read(lambda db: db.execute(query, (offer.id,)).fetchone())  # noqa: B023
            if row is None:
                continue
            try:
                claimed = shard.claimed(row)
            except schema.Unreadable as error:
                raise SpoolError(f"it cannot be read: {error}") from error
            digest = hashlib.sha256()
            async for block in claimed.content.blocks():
                digest.update(block)
            message = replace(claimed.message, state=offer.state, reason=offer.reason)
            said = {
                "message": to_json(message, digest.hexdigest()),
                "papers": await shard.writer.read(
                    partial(offers.papers_of, id=offer.id, redacted=bool(self._notes.redactor))
                ),
                "by": by,
            }
            return Pack(schema.dumps(said).encode(), claimed.content, digest.hexdigest())
        raise SpoolError("it is not there any more")

    async def left(self, offer: Offer, by: str) -> None:
        """The receiver has it: remove our copy."""
        for shard in self._shards:
            step = partial(offers.leave, shard=shard, offer=offer, by=by, notes=self._notes)
            if await shard.writer.submit(step, after=partial(shard.on_step, Step.LEFT_DONE)):
                await asyncio.get_running_loop().run_in_executor(self._executor, shard.remove_file, offer.id)

    async def back(self, offer: Offer) -> None:
        """The receiver has it not, and never will: it is ours again, as it was."""
        for shard in self._shards:
            await shard.writer.submit(partial(offers.come_back, offer=offer))
            shard.next_due = 0.0

    # The receiver's side

    async def take(
        self,
        said: Any,
        offer: str,
        id: str,
        spool: str,
        check_next_hop: Callable[[str], object],
        blocks: AsyncIterator[bytes],
        by: str,
    ) -> Answer:
        """Store what `pack` made. Raises `ParcelError` and `SpoolError`; then nothing is stored, and the offer stands.

        `spool` is the sender's id, `by` who it was, for the record.
        """
        if not isinstance(said, dict) or said.keys() != {"message", "papers", "by"}:
            raise ParcelError("it is no message that is handed over")
        parcel = from_json(said["message"], check_next_hop)
        if parcel.id != id:
            raise ParcelError("the message has another id")
        papers = offers.read_papers(said["papers"])
        if (known := await self.known(id, offer)) is not None:
            return known
        if any(await self._gather(partial(has, id=id))):
            return Answer.CONFLICT
        self._check_room(parcel.size)
        shard = self._noting
        insert = _Taking(shard, parcel, offer, spool, papers, by, self._notes)
        after = partial(shard.on_step, Step.TAKE_DONE)
        # Line ends are as another gateway of ours has stored them.
        await receive(
            shard,
            parcel,
            blocks,
            self._executor,
            insert,
            mark=offer,
            lines=False,
            check_room=self._check_room,
            after=after,
        )
        return insert.answer

    async def known(self, id: str, offer: str) -> Answer | None:
        """What came of an offer, None for one that is new."""
        now = time.time_ns() / 1e9
        if not _OFFER_ID.match(offer) or not ids_from(now - KEPT_SECONDS) < offer < ids_from(now + AHEAD_SECONDS):
            return Answer.TOO_OLD
        return await self._noting.writer.read(partial(offers.noted, id=id, offer=offer))

    async def withdraw(self, id: str, offer: str, spool: str) -> Answer:
        """What came of an offer; one that was not taken never will be from now on."""
        if await self.known(id, offer) is Answer.TOO_OLD:
            return Answer.TOO_OLD

        def step(db: sqlite3.Connection) -> Answer:
            known = offers.noted(db, id, offer)
            if known is None:
                offers.note_answer(db, id, offer, spool, taken=False)
            return known or Answer.REFUSED

        return await self._noting.writer.submit(step)

    @property
    def _noting(self) -> Shard:
        """The shard that all offers are noted in: that of the first worker, whom every gateway has.

        No other one will do while it is being made: nobody would look there later.
        """
        shard = next((shard for shard in self._shards if shard.directory.name == _FIRST), None)
        if shard is None:
            raise SpoolError(f"there is no {_FIRST} yet: start Gatepost once")
        return shard

    async def _gather(self, step: Callable[[sqlite3.Connection], Any]) -> list[Any]:
        return await asyncio.gather(*(shard.writer.read(step) for shard in self._shards))

    async def _read(self, step: Callable[[sqlite3.Connection], list[Any]]) -> list[Any]:
        return [row for rows in await self._gather(step) for row in rows]


class _Taking:
    """The step that makes an offered message ours; `answer` says what came of it. It may be run again."""

    def __init__(
        self, shard: Shard, parcel: Parcel, offer: str, spool: str, papers: offers.Papers, by: str, notes: Notes
    ) -> None:
        self._shard = shard
        self._parcel = parcel
        self._offer = offer
        self._spool = spool
        self._papers = papers
        self._by = by
        self._notes = notes
        self.answer = Answer.REFUSED

    def __call__(self, db: sqlite3.Connection, draft: FileDraft) -> bool:
        id = self._parcel.id
        known = offers.noted(db, id, self._offer)
        if known is not None or has(db, id):
            self.answer = known or Answer.CONFLICT
            return False
        insert_row(db, self._shard, draft, self._parcel)
        if self._notes.kept:
            self._papers.store(db, id, self._notes)
        note(db, self._parcel, "taken-over", self._by, self._notes)
        offers.note_answer(db, id, self._offer, self._spool, taken=True)
        self._shard.on_step(Step.TAKE_BEGUN)
        self.answer = Answer.TAKEN
        return True


def read_description(octets: bytes) -> Any:
    """The JSON in front of the content. Raises `ParcelError`."""
    try:
        return json.loads(octets)
    except (ValueError, RecursionError) as error:
        raise ParcelError(f"no JSON: {error}"[:300]) from error
