"""A worker process: front door, pipelines, spool shards and scheduler on one event loop.

*Promises*: SIGTERM drains: no new sessions once `timeouts.drain_delay` is over, open ones finish, attempts in flight
are settled, the spool is closed, exit status 0. A reload that the supervisor orders swaps all that a configuration
determines, but for what is bound to the start; sessions that have begun finish under the old one.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import uvloop

from gateway.app import wiring
from gateway.app.destinations import hasten, hop_of
from gateway.app.evacuation import settle_again_and_again
from gateway.app.keeping import FIXED, keep
from gateway.app.outbox import SpoolOutbox
from gateway.app.renewal import Bench, Renewal
from gateway.app.roads import Roads
from gateway.app.sharing import make_state
from gateway.config import Config, ConfigError, parse
from gateway.mail.session import IPAddress
from gateway.ops import log
from gateway.ops.board import Board, WorkerState
from gateway.ops.orders import BELL, Orders
from gateway.pipeline.plan import PipelineError
from gateway.queue.quarantine import Keeper
from gateway.queue.scheduler import Scheduler
from gateway.sdk.services import StateError
from gateway.services.clock import SystemClock
from gateway.services.tasks import Tasks
from gateway.services.tenancy import Tenancy
from gateway.smtp.lines import OpenLines
from gateway.smtp.listener import Front
from gateway.smtp.options import ListenerOptions
from gateway.spool.opening import open_worker
from gateway.spool.shard import OnStep, no_step
from gateway.spool.spool import SpoolError
from gateway.spool.suspensions import Watch

_log = log.get()
CANNOT_START: Final = 3
"""Exit status of a worker that could not start; trying again would not help."""
_BEAT_SECONDS: Final = 1.0
_GARBAGE: Final = 10_000
_SETTLE_SECONDS: Final = 15.0


class _Counter:
    """Counts sessions over all workers; implements `gateway.smtp.conversation.Counter`."""

    def __init__(self, board: Board, index: int) -> None:
        self._board = board
        slot = board.slot(index)
        self.session_opened = slot.session_opened
        self.session_closed = slot.session_closed

    def sessions(self) -> int:
        return self._board.sessions()

    def sessions_of(self, client: IPAddress) -> int:
        return self._board.sessions_of(client)


@dataclass(frozen=True, slots=True, eq=False)
class _Equipment:
    """Parts, and the listeners with their certificates."""

    parts: wiring.Parts
    listeners: tuple[ListenerOptions, ...]

    @property
    def config(self) -> Config:
        return self.parts.config

    @property
    def tenancy(self) -> Tenancy:
        return self.parts.tenancy

    async def close(self) -> None:
        await self.parts.close()


class Worker:
    """One worker. `run` it in a process of its own. `generation` is the number of the configuration."""

    def __init__(
        self, config: Config, generation: int, index: int, board: Board, orders: Orders, on_step: OnStep = no_step
    ) -> None:
        self._config = config
        self._generation = generation
        self._index = index
        self._board = board
        self._orders = orders
        self._slot = board.slot(index)
        self._on_step = on_step
        self._tasks = Tasks()
        self._stop = asyncio.Event()
        self._clock = SystemClock()

    async def run(self, sockets: Sequence[socket.socket]) -> int:
        """Work until SIGTERM; gives the exit status. `sockets` are bound, in the order of `config.listeners`."""
        self._slot.begin(time.monotonic())
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        loop.add_signal_handler(signal.SIGINT, self._stop.set)
        config = self._config
        self._slot.set_state(WorkerState.RECOVERING)
        self._sockets = sockets
        self._state = make_state(config, self._clock)
        try:
            self._spool = await open_worker(
                config.spool.options(), worker=self._index, workers=config.workers, on_step=self._on_step
            )
            await self._state.start()
            self._lines = OpenLines()
            self._outbox = SpoolOutbox(
                self._spool, self._clock, lambda: self._scheduler.ring(), lambda content: self._roads.sign(content)
            )
            equipment = self._make(config)
            parts = equipment.parts
            self._roads = Roads(parts)
            self._watch = Watch(self._spool.postmaster.listing, self._resumed)
            # Before the first attempt.
            await self._watch.look()
            self._scheduler = Scheduler(
                self._spool,
                self._roads,
                self._roads,
                retry=wiring.retry_options(config),
                clock=self._clock,
                hostname=config.hostname,
                options=wiring.scheduler_options(config),
                bounces=lambda: self._roads.parts.bounces,
                paths=self._roads,
                signer=self._roads,
                suspended=self._watch.suspended,
            )
            await parts.start()
        except (SpoolError, StateError, ConfigError, PipelineError, OSError) as error:
            _log.error("worker.cannot_start", reason=str(error))
            return CANNOT_START
        self._front = Front(
            parts.desk(self._spool, self._clock, self._scheduler.ring),
            _Counter(self._board, self._index),
            self._lines,
        )
        renewal = self._renewal = Renewal(
            Bench(self._orders, self._slot, self._prepare, self._use), equipment, self._generation
        )
        queue = self._tasks.start(self._scheduler.run(), name="scheduler")
        beat = self._tasks.start(self._beat(), name="heartbeat")
        # A reload swaps the parts, and what is kept how long with them.
        keeper = Keeper(self._spool, self._clock, lambda: renewal.current.config.quarantine.keep)
        self._keeper = self._tasks.start(keeper.run(), name="quarantine")
        self._watching = self._tasks.start(self._watch.run(), name="suspensions")
        # What an evacuation that was cut off has left in any worker's shards.
        settler = settle_again_and_again(lambda: renewal.current.config, self._spool)
        self._settling = self._tasks.start(settler, name="handover")
        await self._front.listen(list(zip(equipment.listeners, sockets, strict=True)))
        loop.add_signal_handler(BELL, renewal.ring)
        self._slot.set_state(WorkerState.READY)
        _log.info("worker.ready", listeners=[o.address for o in equipment.listeners])
        self._reloads = self._tasks.start(renewal.run(), name="reload")
        stopped = self._tasks.start(self._stop.wait(), name="stop")
        await asyncio.wait({queue, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not self._stop.is_set():
            _log.error("worker.failed", reason="the scheduler ended")
            return 1
        await self._drain(queue)
        beat.cancel()
        return 0

    def _make(self, config: Config) -> _Equipment:
        """What the configuration determines; nothing is started. Raises `ConfigError` and OSError."""
        listeners = tuple(
            wiring.listener_options(listener, wiring.name_of(sock))
            for listener, sock in zip(config.listeners, self._sockets, strict=True)
        )
        return _Equipment(wiring.make_parts(config, self._state, self._clock, self._lines, self._outbox), listeners)

    async def _prepare(self, text: bytes) -> _Equipment:
        """What a new configuration determines, started. The supervisor has checked it."""
        old = self._renewal.current.config
        # In a thread: it reads files, and a list of recipients may be long.
        config = await asyncio.to_thread(parse, text, old.file)
        equipment = self._make(keep(old, config, FIXED)[0])
        await equipment.parts.start()
        return equipment

    def _use(self, equipment: _Equipment) -> None:
        """Have sessions that begin from now on, and deliveries, use it."""
        parts, config = equipment.parts, equipment.config
        self._front.renew(parts.desk(self._spool, self._clock, self._scheduler.ring), equipment.listeners)
        self._roads.parts = parts
        self._scheduler.renew(wiring.retry_options(config), config.hostname, wiring.scheduler_options(config))

    async def _resumed(self, destinations: frozenset[str]) -> None:
        """Make due what was put off because they were suspended."""
        try:
            await hasten(self._spool.postmaster, hop_of(self._roads.parts.router), destinations)
        except (SpoolError, ValueError) as error:
            # It is due by itself before long, and whoever watches goes on.
            _log.error("queue.not_hastened", error=str(error))
        self._scheduler.ring()

    async def _drain(self, queue: asyncio.Task[None]) -> None:
        self._slot.set_state(WorkerState.DRAINING)
        _log.info("worker.draining")
        # Readiness is gone. Until load balancers have seen it they send sessions here, and those are served.
        await asyncio.sleep(self._renewal.current.config.timeouts.drain_delay)
        self._reloads.cancel()
        await self._front.drain(self._renewal.current.config.timeouts.drain)
        if not await self._scheduler.drain(_SETTLE_SECONDS):
            _log.warning("worker.attempts_cut_off", active=self._scheduler.active)
        queue.cancel()
        self._keeper.cancel()
        self._watching.cancel()
        self._settling.cancel()
        await self._renewal.close()
        await self._spool.close()
        await self._state.close()
        self._slot.set_state(WorkerState.STOPPED)
        _log.info("worker.stopped")

    async def _beat(self) -> None:
        while True:
            self._slot.beat(time.monotonic())
            # A bell that was not heard costs a moment, and no reload.
            self._renewal.ring()
            try:
                self._spool.check_room(0)
                self._slot.set_spool_ok(True)
            except SpoolError:
                self._slot.set_spool_ok(False)
            await asyncio.sleep(_BEAT_SECONDS)


def work(
    config: Config,
    generation: int,
    index: int,
    board: Board,
    orders: Orders,
    sockets: Sequence[socket.socket],
    on_step: OnStep = no_step,
) -> int:
    """Be a worker process; gives the exit status."""
    log.setup(config.log.format, config.log.level, worker=str(index))
    os.umask(0o077)
    # What was made at start lives as long as we do: collecting garbage need not look at it again and again.
    gc.freeze()
    gc.set_threshold(_GARBAGE, 20, 50)
    try:
        return uvloop.run(_work(sockets, config, generation, index, board, orders, on_step))
    except BaseException as error:  # noqa: BLE001  (the process ends, and must say why)
        _log.error("worker.failed", exc_info=error)
        sys.stderr.flush()
        return 1


async def _work(sockets: Sequence[socket.socket], *worker: Any) -> int:
    return await Worker(*worker).run(sockets)
