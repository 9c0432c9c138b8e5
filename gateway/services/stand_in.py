"""Shared state with a stand-in: while Redis is down, a replica goes on with what is on its own machine.

A call that Redis does not answer is answered by the local store. Buckets begin full there, so a limit then holds for
each replica. What was put or counted is noted in a journal and given to Redis when it is back, before anybody asks this
worker for it again: values with what is left of their time, counts as what was added. Nothing that is newer is
overwritten; a value that was only new to this replica does not replace one that Redis knew already.

*Promises*: the journal is bounded (`gateway.services.journal`). What was given back is forgotten here, so that another
outage does not begin with it.

*Fails by*: `StateError` when the local store fails, too. What a killed worker had not given back is lost to the others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from gateway.ops import log, metrics
from gateway.sdk.services import Clock, State, StateError, Taken
from gateway.services.journal import Journal, Learned
from gateway.services.redis_state import Kept, RedisState
from gateway.services.state import SqliteState
from gateway.services.tasks import Tasks

CLOSING_SECONDS: Final = 2.0
_PAUSE: Final = 1.0
_DELETED_SECONDS: Final = 86_400.0
"""How long a deletion is worth telling."""

_T = TypeVar("_T")
_log = log.get()


class StandIn:
    """`gateway.sdk.State` of a shared and a local store. `start` and `close` are theirs, too."""

    def __init__(self, shared: RedisState, local: SqliteState, clock: Clock) -> None:
        self._shared = shared
        self._local = local
        self._clock = clock
        self._journal = Journal()
        self._giving = asyncio.Lock()
        self._given: Counter[str] = Counter()
        self._full = False
        self._tasks = Tasks()
        self._settler: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open both. Raises StateError when the local one cannot be; the shared one may be down."""
        await self._local.start()
        await self._shared.start()

    async def close(self) -> None:
        """Give back what can be given back at once, and close both."""
        await self._tasks.cancel()
        if self._journal and self._shared.up:
            with contextlib.suppress(TimeoutError, StateError):
                async with asyncio.timeout(CLOSING_SECONDS):
                    while self._journal:
                        await self._give_back(self._journal.first())
        if self._journal:
            _log.warning("state.not_settled", entries=len(self._journal))
        await self._shared.close()
        await self._local.close()

    @property
    def exact(self) -> State:
        return self._shared

    async def get(self, key: str) -> bytes | None:
        """The value, or None when there is none or its time is over."""
        value, _ = await self._ask(key, lambda state: state.get(key))
        return value

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        """Store for `ttl` seconds."""
        _, shared = await self._ask(key, lambda state: state.put(key, value, ttl))
        if not shared:
            self._learn(key, Kept.SET, value, ttl)

    async def put_new(self, key: str, value: bytes, ttl: float) -> bytes | None:
        """Store unless there is a value; give the value that was there, None when ours was stored."""
        there, shared = await self._ask(key, lambda state: state.put_new(key, value, ttl))
        if not shared and there is None:
            self._learn(key, Kept.NEW, value, ttl)
        return there

    async def delete(self, key: str) -> None:
        """Forget the key."""
        _, shared = await self._ask(key, lambda state: state.delete(key))
        if not shared:
            known = self._journal.forget(key)
            # Of what was new here only, Redis need not hear.
            if known is None or known.kept is not Kept.NEW:
                self._learn(key, Kept.DELETE, b"", _DELETED_SECONDS)

    async def take(self, key: str, *, capacity: float, per_second: float, cost: float = 1.0) -> Taken:
        """Take `cost` tokens from the bucket `key`, all or none, in one atomic step."""
        taken, _ = await self._ask(
            key, lambda state: state.take(key, capacity=capacity, per_second=per_second, cost=cost)
        )
        return taken

    async def count(self, key: str, member: str, ttl: float, by: int = 1) -> int:
        """Add `by` to the count of `member` in the tally `key`; gives the new count."""
        count, shared = await self._ask(key, lambda state: state.count(key, member, ttl, by))
        if not shared:
            self._note(self._journal.count(key, member, by, ttl, self._clock.monotonic()))
        return count

    async def tally(self, key: str, limit: int = 10_000) -> dict[str, int]:
        """The counts of a tally, at most `limit` members, the largest counts first."""
        counts, _ = await self._ask(key, lambda state: state.tally(key, limit))
        return counts

    async def _ask(self, key: str, ask: Callable[[State], Awaitable[_T]]) -> tuple[_T, bool]:
        """The answer, and whether it is the shared store's."""
        try:
            if key in self._journal and self._shared.up:
                await self._give_back(key)
            return await ask(self._shared), True
        except StateError:
            metrics.STATE_STAND_IN.inc()
        return await ask(self._local), False

    def _learn(self, key: str, kept: Kept, value: bytes, ttl: float) -> None:
        if kept is Kept.SET and (known := self._journal.value(key)) and known.kept is Kept.NEW and known.value == value:
            return
        self._note(self._journal.learn(key, Learned(kept, bytes(value), ttl, self._clock.monotonic())))

    def _note(self, fitted: bool) -> None:
        if not fitted:
            metrics.STATE_SETTLED.labels("dropped").inc()
            if not self._full:
                self._full = True
                _log.warning("state.journal_full", entries=len(self._journal))
        if self._journal and (self._settler is None or self._settler.done()):
            self._settler = self._tasks.start(self._settle(), name="state.settle")

    async def _settle(self) -> None:
        """Give all of it back, as soon as there is somebody who takes it."""
        while self._journal:
            await self._shared.wait_up()
            try:
                await self._give_back(self._journal.first())
            except StateError:
                # It is down again, or about to count as down.
                await asyncio.sleep(_PAUSE)
        self._full = False
        done, self._given = self._given, Counter()
        _log.info("state.settled", stored=done["stored"], newer=done["newer"], expired=done["expired"])

    async def _give_back(self, key: str) -> None:
        """Give back what was learned of a key. Raises `StateError`; what was not given stays in the journal.

        One at a time, and out of the journal only when it has been given: who asks for the key meanwhile waits.
        """
        done: Counter[str] = Counter()
        async with self._giving:
            if learned := self._journal.value(key):
                done[await self._store(key, learned)] += 1
                # Unless it was learned anew meanwhile.
                if self._journal.value(key) is learned:
                    self._journal.forget(key)
            if tally := self._journal.tally(key):
                for member, by in list(tally.members.items()):
                    rest = tally.ttl - (self._clock.monotonic() - tally.at)
                    if rest > 0 and by:
                        await self._shared.count(key, member, rest, by)
                    done["stored" if rest > 0 else "expired"] += 1
                    if self._journal.tally(key) is tally:
                        self._journal.uncount(key, member, by)
            if done and key not in self._journal:
                # What the local store cannot forget now goes when its time is over.
                with contextlib.suppress(StateError):
                    await self._local.forget(key)
        for outcome, times in done.items():
            metrics.STATE_SETTLED.labels(outcome).inc(times)
        self._given += done

    async def _store(self, key: str, learned: Learned) -> str:
        age = max(0.0, self._clock.monotonic() - learned.at)
        if age >= learned.ttl:
            return "expired"
        return "stored" if await self._shared.settle(key, learned.kept, learned.value, learned.ttl, age) else "newer"
