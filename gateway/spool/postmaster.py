"""The postmaster's hands on a spool: find messages, amend them, put some in, suspend destinations.

*Promises*: beside a running gateway as without one. A message that the gateway has in hand is left to it, after a wait
if one is wanted; claims of a gateway that died are none. Messages are changed in small steps, so that the gateway's own
never wait for long.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from gateway.ops import metrics
from gateway.ops.operations import DEEDS, STATES, Amended, Amendment, Drop, Retry, Selection, Suspension, Waiting
from gateway.spool import amend as amending
from gateway.spool import finding, schema, suspensions
from gateway.spool.hands import Found, Hop
from gateway.spool.notes import Notes
from gateway.spool.parcel import Entered, Parcel, enter, from_json, to_json
from gateway.spool.spool import SpoolError, State
from gateway.spool.suspensions import Source

if TYPE_CHECKING:
    from gateway.spool.shard import Shard

_PAGE: Final = 200
_PAUSE: Final = 0.1
_T = TypeVar("_T")


class Postmaster:
    """Implements `gateway.spool.hands.Hands` for the shards of a spool.

    All of them in an operator's view, its own in a worker.
    """

    def __init__(self, root: Path, shards: Sequence[Shard], notes: Notes, executor: Executor) -> None:
        self.root = root
        self._shards = shards
        self._notes = notes
        self._executor = executor

    async def find(self, wanted: Selection, hop: Hop, *, limit: int, after: str = "") -> list[Found]:
        """Messages by id, rising, beginning after `after`. `hop` says where a recipient's mail goes."""
        step = partial(finding.find, wanted=wanted, after=after, limit=limit, hop=hop)
        found = [(row, owned) for rows, owned in await self._all(step) for row in rows]
        found.sort(key=lambda one: str(one[0][0]))
        return [Found(schema.lenient(row), owned and bool(row[-1])) for row, owned in found[:limit]]

    async def one(self, id: str) -> Found | None:
        """One message, even when its row cannot be read."""
        query = f"SELECT {schema.COLUMNS}, claimed FROM message WHERE id = ?"
        for row, owned in await self._all(lambda db: db.execute(query, (id,)).fetchone()):
            if row is not None:
                return Found(schema.lenient(row), owned and bool(row[-1]))
        return None

    async def waiting(self, now: float, hop: Hop) -> list[Waiting]:
        """What waits for each destination, the most recipients first."""
        found = await self._all(partial(finding.waiting, now=now, hop=hop))
        return finding.merged([row if owned else (*row[:3], 0, *row[4:]) for rows, owned in found for row in rows])

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
        await self._free()
        while True:
            # What was in hand may have left.
            out |= dict.fromkeys(left, Amended.MISSING)
            for shard in self._shards:
                for start in range(0, len(left), _PAGE):
                    out |= await self._page(shard, left[start : start + _PAGE], amendment, by)
            left = [id for id in left if out[id] is Amended.CLAIMED]
            if not left:
                break
            if time.monotonic() >= deadline:
                break
            if not knocked:
                knocked = True
                await self._knock()
            await asyncio.sleep(_PAUSE)
        for result in out.values() if by else ():
            metrics.QUEUE_OPERATIONS.labels(DEEDS[type(amendment)], result.value).inc()
        return out

    async def hasten(self, wanted: Selection, hop: Hop, *, by: str, wait: float = 0.0) -> dict[str, Amended]:
        """Have all queued messages that are meant tried again now: `Retry`, for many at once.

        Between two steps a shard is left to its gateway for as long as the step took: it has mail to take, and what is
        due by now to deliver.
        """
        await self._free()
        wanted = replace(wanted, states=STATES[Retry])
        out: dict[str, Amended] = {}
        for results in await asyncio.gather(*(self._hasten(shard, wanted, hop, by) for shard in self._shards)):
            out |= results
        done = sum(result is Amended.DONE for result in out.values())
        metrics.QUEUE_OPERATIONS.labels(DEEDS[Retry], Amended.DONE.value).inc(done)
        left = [id for id, result in out.items() if result is not Amended.DONE]
        return out | await self.amend(left, Retry(), by=by, wait=wait) if left else out

    async def _hasten(self, shard: Shard, wanted: Selection, hop: Hop, by: str) -> dict[str, Amended]:
        out: dict[str, Amended] = {}
        after: str | None = ""
        while after is not None:

            def step(db: sqlite3.Connection, after: str = after) -> list[tuple[str, Amended]]:
                rows = finding.find_to_hasten(db, wanted, after, _PAGE, hop)
                return amending.hasten(db, rows, by, time.time_ns() / 1e9, self._notes)

            begun = time.monotonic()
            page = await shard.writer.submit(step)
            shard.next_due = 0.0
            out |= dict(page)
            after = page[-1][0] if len(page) == _PAGE else None
            await asyncio.sleep(time.monotonic() - begun)
        return out

    async def _page(self, shard: Shard, ids: Sequence[str], amendment: Amendment, by: str) -> dict[str, Amended]:
        noted = partial(amending.amend, by=by, now=time.time_ns() / 1e9, notes=self._notes)
        step = partial(noted, ids=ids, amendment=amendment, rows=amending.ShardRows())
        if isinstance(amendment, Drop):
            shard.stale = True
        results = await shard.writer.submit(step)
        shard.next_due = 0.0
        for _, _, file in results:
            if file:
                await asyncio.get_running_loop().run_in_executor(self._executor, shard.remove_file, file)
        return {id: result for id, result, _ in results}

    async def _free(self) -> None:
        """Let go of claims whose owner is gone."""
        for shard in self._shards:
            if shard.owned:
                continue
            with unowned(shard.directory) as dead:
                if dead:
                    await shard.writer.submit(_let_go)

    async def _knock(self) -> None:
        """Have owners give back what merely waits in their memory: they do when they see that somebody was here.

        So something is changed, and changed back.
        """
        for shard in self._shards:
            await shard.writer.submit(
                lambda db: [db.execute(f"UPDATE kept SET records = records {sign} 1") for sign in "+-"]
            )

    async def _all(self, step: Callable[[sqlite3.Connection], _T]) -> list[tuple[_T, bool]]:
        """What `step` finds in each shard, and whether somebody owns the shard: claims of others are none."""
        found = await asyncio.gather(*(shard.writer.read(step) for shard in self._shards))
        return list(zip(found, await asyncio.to_thread(self._owned), strict=True))

    def _owned(self) -> list[bool]:
        out = []
        for shard in self._shards:
            with unowned(shard.directory) as free:
                out.append(not free)
        return out

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
        shard = next(filter(for_mail, self._shards), None)
        if shard is None:
            raise SpoolError("there is no shard for mail yet: start Gatepost once")
        return await enter(shard, parcel, blocks, by, self._notes, self._executor)

    async def suspensions(self) -> dict[str, Suspension]:
        """What is suspended. Raises `SpoolError`."""
        return await asyncio.to_thread(suspensions.read, self.root)

    async def suspend(self, suspension: Suspension) -> bool:
        """Have nothing delivered there, from about now on; False when that is so already. Raises `SpoolError`."""
        return await asyncio.to_thread(suspensions.suspend, self.root, suspension)

    async def resume(self, destination: str, *, by: str) -> Suspension | None:
        """Have mail delivered there again; None when it was not suspended. Raises `SpoolError`."""
        return await asyncio.to_thread(suspensions.resume, self.root, destination, by)

    @property
    def listing(self) -> Source:
        """The list of what is suspended, to be looked at again and again."""
        return suspensions.ListFile(self.root)

    async def unattended(self) -> bool:
        """Whether there are shards with mail that no gateway works on."""
        owned = await asyncio.to_thread(self._owned)
        return not all(owns for shard, owns in zip(self._shards, owned, strict=True) if for_mail(shard))


def for_mail(shard: Shard) -> bool:
    """Whether it is a gateway's, and not a guest's."""
    return shard.directory.name.startswith("shard-")


def _let_go(db: sqlite3.Connection) -> int:
    return db.execute("UPDATE message SET claimed = 0 WHERE claimed = 1").rowcount


@contextmanager
def unowned(directory: Path) -> Iterator[bool]:
    """Keep a shard from being owned for a moment; False when somebody owns it."""
    try:
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        # Never owned, or not ours to write: a question that cannot be asked is answered by caution.
        yield not (directory / "lock").exists()
        return
    try:
        try:
            # Shared with others who ask, and not with an owner.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(lock)
