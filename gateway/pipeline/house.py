"""What all sessions of a pipeline share, and how plugins are told what became of things.

*Promises*: what a plugin does when it is told changes nothing for the client, and is bounded in number and time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from gateway.ops import log
from gateway.ops.metrics import FINDINGS, PLUGIN_SECONDS, counting, observing
from gateway.pipeline.breaker import Breaker
from gateway.pipeline.plan import Entry, Node
from gateway.sdk.ending import Ending
from gateway.sdk.findings import Finding
from gateway.sdk.services import Clock
from gateway.sdk.stage import Stage
from gateway.services.tasks import Tasks

if TYPE_CHECKING:
    from gateway.mail.session import Session
    from gateway.pipeline.lookup import Absent

SESSION_LOOKUPS: Final = 32
WORKER_LOOKUPS: Final = 500
TELLING: Final = 500
"""Endings that plugins are being told of at once, per pipeline; more than that are left out."""
TELLING_SECONDS: Final = 2.0

_log = log.get()


class Slots:
    """How many look-ups may run at once: so many per session, and so many in the worker."""

    __slots__ = ("_session", "_worker")

    def __init__(self, worker: asyncio.Semaphore) -> None:
        self._session = asyncio.Semaphore(SESSION_LOOKUPS)
        self._worker = worker

    async def take(self) -> None:
        await self._session.acquire()
        try:
            await self._worker.acquire()
        except BaseException:
            self._session.release()
            raise

    def give(self) -> None:
        self._worker.release()
        self._session.release()


class House:
    """What all sessions of a pipeline share: tasks, breakers, slots, clock, bound metrics."""

    __slots__ = (
        "_breaker_of",
        "_breakers",
        "_ended",
        "_holders",
        "_learners",
        "_seconds",
        "_telling",
        "clock",
        "fixed",
        "tasks",
        "worker_slots",
    )

    def __init__(self, entries: Sequence[Entry], clock: Clock, worker_slots: asyncio.Semaphore | None) -> None:
        self.tasks = Tasks()
        self.fixed: Mapping[type[Finding], Finding | Absent] = {}
        """What is taken as found, or as not found, so that nobody looks for it: for simulations and specs."""
        self.clock = clock
        self._breakers: dict[tuple[int, Stage], Breaker] = {}
        self._breaker_of: dict[Node, Breaker] = {}
        self.worker_slots = worker_slots or asyncio.Semaphore(WORKER_LOOKUPS)
        self._seconds: dict[Node, Callable[[float], None]] = {}
        self._ended: dict[tuple[str, str], Callable[[int], None]] = {}
        self._learners = tuple(entry for entry in entries if entry.plugin and entry.plugin.learns())
        self._holders = tuple(entry for entry in entries if entry.plugin and entry.plugin.holds())
        self._telling = Tasks()

    def breaker(self, node: Node) -> Breaker:
        """The breaker of the node's entry at its stage."""
        breaker = self._breaker_of.get(node)
        if breaker is None:
            key = node.entry.index, node.stage
            if (breaker := self._breakers.get(key)) is None:
                breaker = self._breakers[key] = Breaker(node.entry.name, node.stage, self.clock)
            self._breaker_of[node] = breaker
        return breaker

    @property
    def learns(self) -> bool:
        """Whether anybody wants to be told of endings."""
        return bool(self._learners)

    def tell(self, ending: Ending) -> None:
        """Tell the plugins that learn from endings, in the background. When too many are being told, it is left out."""
        for entry in self._learners:
            if len(self._telling) >= TELLING:
                FINDINGS.labels(entry.name, "not-told").inc()
            else:
                self._telling.start(_tell(entry, ending), name=f"{entry.name}.ended")

    def hang_up(self, session: Session) -> None:
        """Tell the plugins that hold something for each session that this one is over, in the background."""
        for entry in self._holders:
            self._telling.start(_hang_up(entry, session), name=f"{entry.name}.hung_up")

    async def told(self) -> None:
        """Wait until nobody is being told of anything."""
        await self._telling.wait()

    async def close(self) -> None:
        """End what still runs; who is being told something has a moment to take it in."""
        await self.tasks.cancel()
        try:
            async with asyncio.timeout(TELLING_SECONDS):
                await self._telling.wait()
        except TimeoutError:
            await self._telling.cancel()
        for breaker in self._breakers.values():
            breaker.retire()

    def count(self, node: Node, outcome: str, seconds: float | None) -> None:
        """Count one look-up's end; `seconds` is None when its finder was never called."""
        name = node.entry.name
        if seconds is not None:
            if (histogram := self._seconds.get(node)) is None:
                histogram = self._seconds[node] = observing(PLUGIN_SECONDS.labels(name, node.stage.value))
            histogram(seconds)
        if (counter := self._ended.get((name, outcome))) is None:
            counter = self._ended[name, outcome] = counting(FINDINGS.labels(name, outcome))
        counter(1)


async def _tell(entry: Entry, ending: Ending) -> None:
    try:
        async with asyncio.timeout(entry.timeout):
            if entry.plugin:
                await entry.plugin.ended(ending)
    except Exception as error:  # noqa: BLE001 - whatever a plugin raises here changes nothing for the client
        FINDINGS.labels(entry.name, "not-told").inc()
        reason = f"{type(error).__name__}: {error}"
        _log.warning("plugin.not_told", plugin=entry.name, session=ending.session.id, reason=reason)


async def _hang_up(entry: Entry, session: Session) -> None:
    try:
        async with asyncio.timeout(entry.timeout):
            if entry.plugin:
                await entry.plugin.hung_up(session)
    except Exception as error:  # noqa: BLE001 - nobody waits for it, and the session is over either way
        reason = f"{type(error).__name__}: {error}"
        _log.warning("plugin.not_told", plugin=entry.name, session=session.id, reason=reason)
