"""A worker's side of reloads: it prepares what it is ordered to, takes it when all others can too, and closes what is
no longer used.

*Promises*: taking is one step on the event loop, so each session has one configuration from its beginning to its end. A
configuration that cannot be prepared changes nothing. What the old one used is closed when its last session and its
last delivery have ended, not before.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from gateway.config import Config, ConfigError
from gateway.ops import log, metrics
from gateway.ops.board import Slot
from gateway.ops.orders import Answer, Order, Orders, Phase
from gateway.pipeline.plan import PipelineError
from gateway.services.tasks import Tasks
from gateway.services.tenancy import Tenancy

GRACE_SECONDS: Final = 1.0
"""So long what was replaced stays open at least: a thread may have taken it a moment ago and not be counted yet."""

_log = log.get()


class Equipment(Protocol):
    """All that a configuration determines, for one worker."""

    @property
    def config(self) -> Config: ...
    @property
    def tenancy(self) -> Tenancy: ...
    async def close(self) -> None: ...


_E = TypeVar("_E", bound=Equipment)


@dataclass(frozen=True, slots=True)
class Bench(Generic[_E]):
    """What a renewal works with.

    `make` gives equipment that is started, from the text of a configuration; it raises `ConfigError`, `PipelineError`
    or OSError. `use` puts it to use, at once, for sessions that begin from then on.
    """

    orders: Orders
    slot: Slot
    make: Callable[[bytes], Awaitable[_E]]
    use: Callable[[_E], None]

    @property
    def answer(self) -> Answer:
        return self.orders.answers[self.slot.index]


class Renewal(Generic[_E]):
    """The equipment in use in this worker, what is prepared, and what is still used by sessions that began with it."""

    def __init__(self, bench: Bench[_E], equipment: _E, generation: int, *, grace: float = GRACE_SECONDS) -> None:
        self.current = equipment
        self._bench = bench
        self._prepared: tuple[int, _E] | None = None
        self._seen = Order()
        self._bell = asyncio.Event()
        self._grace = grace
        self._retiring: dict[asyncio.Task[None], _E] = {}
        self._tasks = Tasks()
        self._note(generation)

    @property
    def retiring(self) -> int:
        """How many old ones are not closed yet."""
        return len(self._retiring)

    def ring(self) -> None:
        """Have a look at the orders soon. Ringing once too often is harmless."""
        if self._bench.orders.order() != self._seen:
            self._bell.set()

    async def run(self) -> None:
        """Do what is ordered, until cancelled."""
        while True:
            order = self._bench.orders.order()
            if order == self._seen:
                await self._bell.wait()
                self._bell.clear()
                continue
            self._seen = order
            await self._obey(order)

    async def close(self) -> None:
        """The worker ends: close everything."""
        await self._tasks.cancel()
        left = [*self._retiring.values(), self.current]
        if self._prepared is not None:
            left.append(self._prepared[1])
        for equipment in left:
            await self._shut(equipment)

    async def _obey(self, order: Order) -> None:
        if self._prepared is not None:
            number, equipment = self._prepared
            if number == order.taken:
                # Also when there is another order already: all were told to take this one.
                self._prepared = None
                self._take(number, equipment)
            elif number != order.number or order.phase is Phase.GIVE_UP:
                self._prepared = None
                await self._shut(equipment)
        if order.phase is Phase.PREPARE:
            await self._prepare(order.number)

    async def _prepare(self, number: int) -> None:
        answer = self._bench.answer
        text = self._bench.orders.text(number)
        if text is None:
            return
        answer.begin(number)
        try:
            equipment = await self._bench.make(text)
        except Exception as error:  # noqa: BLE001 - whatever it is, the configuration cannot be used here; it is reported
            known = isinstance(error, (ConfigError, PipelineError, OSError))
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            _log.error("reload.failed", generation=number, reason=reason, exc_info=None if known else error)
            answer.fail(number, reason)
            return
        self._prepared = number, equipment
        answer.done(number)

    def _take(self, number: int, equipment: _E) -> None:
        old, self.current = self.current, equipment
        self._bench.use(equipment)
        self._note(number)
        config = equipment.config
        _log.info("reload.done", generation=number, config=config.digest, file=config.file)
        task = self._tasks.start(self._retire(old), name="retire")
        self._retiring[task] = old
        task.add_done_callback(lambda task: self._retiring.pop(task, None))

    def _note(self, generation: int) -> None:
        self._bench.slot.set_config(generation, self.current.config.digest)
        metrics.CONFIG_GENERATION.labels(str(self._bench.slot.index)).set(generation)

    async def _retire(self, old: _E) -> None:
        """Old sessions and deliveries finish under the old policy; when the last one is over, its parts can go."""
        await asyncio.sleep(self._grace)
        await old.tenancy.empty()
        await self._shut(old)
        # Plans and sessions refer to each other, and the collector would come to them late.
        asyncio.get_running_loop().call_soon(gc.collect)

    async def _shut(self, equipment: _E) -> None:
        """Close it; what goes wrong there changes nothing for those who use another one."""
        try:
            await equipment.close()
        except Exception as error:  # noqa: BLE001 - a plugin's trouble with its end must not end reloads
            _log.error("reload.not_closed", config=equipment.config.digest, exc_info=error)
