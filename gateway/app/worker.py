"""A worker process: front door, pipelines, spool shards and scheduler on one event loop.

*Promises*: SIGTERM drains: no new sessions, open ones finish, attempts in flight are settled, the spool is closed, exit
status 0. SIGHUP swaps policies, domains and limits; sessions that have begun finish under the old ones.
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
from pathlib import Path
from typing import Final

import uvloop

from gateway.app import wiring
from gateway.app.outbox import SpoolOutbox
from gateway.config import Config, ConfigError, load
from gateway.mail.session import IPAddress
from gateway.ops import log
from gateway.ops.board import Board, WorkerState
from gateway.pipeline.plan import PipelineError
from gateway.queue.quarantine import Keeper
from gateway.queue.scheduler import Scheduler
from gateway.sdk.services import StateError
from gateway.services.clock import SystemClock
from gateway.services.state import SqliteState
from gateway.services.tasks import Tasks
from gateway.smtp.lines import OpenLines
from gateway.smtp.listener import Front
from gateway.spool.shard import OnStep, no_step
from gateway.spool.spool import SpoolError
from gateway.spool.sqlite import SqliteSpool

_log = log.get()
CANNOT_START: Final = 3
"""Exit status of a worker that could not start; trying again would not help."""
_BEAT_SECONDS: Final = 1.0
_GARBAGE: Final = 10_000
_SETTLE_SECONDS: Final = 15.0
_RETIRE_SECONDS: Final = 3600.0


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


class Worker:
    """One worker. `run` it in a process of its own."""

    def __init__(self, config: Config, index: int, board: Board, on_step: OnStep = no_step) -> None:
        self._config = config
        self._index = index
        self._board = board
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
        state = SqliteState(Path(config.state.path), self._clock)
        try:
            self._spool = await SqliteSpool.open(
                config.spool.options(), worker=self._index, workers=config.workers, on_step=self._on_step
            )
            await state.start()
            self._lines = OpenLines()
            self._outbox = SpoolOutbox(self._spool, self._clock, lambda: self._scheduler.ring())
            self._parts = wiring.make_parts(config, state, self._clock, self._lines, self._outbox)
            self._roads = wiring.Roads(self._parts)
            self._scheduler = Scheduler(
                self._spool,
                self._roads,
                self._roads,
                retry=wiring.retry_options(config),
                clock=self._clock,
                hostname=config.hostname,
                options=wiring.scheduler_options(config),
            )
            await self._parts.start()
            options = [
                wiring.listener_options(listener, wiring.name_of(sock))
                for listener, sock in zip(config.listeners, sockets, strict=True)
            ]
        except (SpoolError, StateError, ConfigError, PipelineError, OSError) as error:
            _log.error("worker.cannot_start", reason=str(error))
            return CANNOT_START
        self._state = state
        self._front = Front(
            self._parts.desk(self._spool, self._clock, self._scheduler.ring),
            _Counter(self._board, self._index),
            self._lines,
        )
        queue = self._tasks.start(self._scheduler.run(), name="scheduler")
        beat = self._tasks.start(self._beat(), name="heartbeat")
        # A reload swaps the parts, and what is kept how long with them.
        keeper = Keeper(self._spool, self._clock, lambda: self._parts.config.quarantine.keep)
        self._keeper = self._tasks.start(keeper.run(), name="quarantine")
        await self._front.listen(list(zip(options, sockets, strict=True)))
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        self._slot.set_state(WorkerState.READY)
        _log.info("worker.ready", listeners=[o.address for o in options])
        stopped = self._tasks.start(self._stop.wait(), name="stop")
        await asyncio.wait({queue, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not self._stop.is_set():
            _log.error("worker.failed", reason="the scheduler ended")
            return 1
        await self._drain(queue)
        beat.cancel()
        return 0

    async def _drain(self, queue: asyncio.Task[None]) -> None:
        self._slot.set_state(WorkerState.DRAINING)
        _log.info("worker.draining")
        await self._front.drain(self._config.timeouts.drain)
        if not await self._scheduler.drain(_SETTLE_SECONDS):
            _log.warning("worker.attempts_cut_off", active=self._scheduler.active)
        queue.cancel()
        self._keeper.cancel()
        await self._parts.close()
        await self._spool.close()
        await self._state.close()
        self._slot.set_state(WorkerState.STOPPED)
        _log.info("worker.stopped")

    async def _beat(self) -> None:
        while True:
            self._slot.beat(time.monotonic())
            try:
                self._spool.check_room(0)
                self._slot.set_spool_ok(True)
            except SpoolError:
                self._slot.set_spool_ok(False)
            await asyncio.sleep(_BEAT_SECONDS)

    def _reload(self) -> None:
        self._tasks.start(self._swap(), name="reload")

    async def _swap(self) -> None:
        """Take the new configuration for sessions that begin from now on. The supervisor has checked it."""
        try:
            # In a thread: it reads files, and a list of recipients may be long.
            config = await asyncio.to_thread(load, self._config.file)
            parts = wiring.make_parts(config, self._state, self._clock, self._lines, self._outbox)
            await parts.start()
        except (ConfigError, PipelineError, OSError) as error:
            _log.error("reload.failed", reason=str(error))
            return
        old, self._parts = self._parts, parts
        self._front.desk = parts.desk(self._spool, self._clock, self._scheduler.ring)
        self._roads.parts = parts
        _log.info("reload.done", pipelines=sorted(parts.pipelines))
        # Old sessions finish under the old policy; when the longest possible one is over, its parts can go.
        self._tasks.start(self._retire(old), name="retire")

    async def _retire(self, parts: wiring.Parts) -> None:
        await asyncio.sleep(min(_RETIRE_SECONDS, parts.config.timeouts.session))
        await parts.close()


def work(config: Config, index: int, board: Board, sockets: Sequence[socket.socket], on_step: OnStep = no_step) -> int:
    """Be a worker process; gives the exit status."""
    log.setup(config.log.format, config.log.level, worker=str(index))
    os.umask(0o077)
    # What was made at start lives as long as we do: collecting garbage need not look at it again and again.
    gc.freeze()
    gc.set_threshold(_GARBAGE, 20, 50)
    try:
        return uvloop.run(_work(config, index, board, sockets, on_step))
    except BaseException as error:  # noqa: BLE001  (the process ends, and must say why)
        _log.error("worker.failed", exc_info=error)
        sys.stderr.flush()
        return 1


async def _work(config: Config, index: int, board: Board, sockets: Sequence[socket.socket], on_step: OnStep) -> int:
    return await Worker(config, index, board, on_step).run(sockets)
