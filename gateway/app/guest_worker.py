"""The worker that lends a pipeline: no front door, no queue, and of the spool a shard for decision records only.

*Promises*: SIGTERM drains: nothing new is taken, what was asked is answered, transactions are ended, records are
written, exit status 0. SIGHUP swaps the pipeline; sessions that have begun finish under the old one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import uvloop

from gateway.app import wiring
from gateway.app.worker import CANNOT_START
from gateway.config import Config, ConfigError, load
from gateway.guest import actions, delegate
from gateway.guest.ruling import SplitRefused
from gateway.guest.visit import Host
from gateway.ops import log
from gateway.ops.board import Board, WorkerState
from gateway.pipeline.loader import Pipeline
from gateway.pipeline.plan import PipelineError
from gateway.sdk.endpoint import Endpoint
from gateway.sdk.services import StateError
from gateway.sdk.stage import Stage
from gateway.services.clock import SystemClock
from gateway.services.state import SqliteState
from gateway.services.tasks import Tasks
from gateway.smtp.options import Networks
from gateway.spool.spool import SpoolError
from gateway.spool.sqlite import SqliteSpool

_log = log.get()
_BEAT_SECONDS: Final = 1.0
_RETIRE_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Lending:
    """What is lent to whom: the command line as a value. `mode` is that of a unix socket.

    `ok` and `trouble` are a policy server's; see `gateway.guest.delegate.Options`.
    """

    listen: Endpoint
    pipeline: str = "default"
    milter: bool = False
    mode: int = 0o660
    ok: str = actions.DUNNO
    trouble: str = actions.TROUBLE

    def __post_init__(self) -> None:
        """Raises ValueError for an action that is none for trouble."""
        actions.check_trouble(self.trouble)

    @property
    def through(self) -> str:
        return "milter" if self.milter else "delegate"


class Server(Protocol):
    """What speaks to the MTA. `host` may be replaced at any time."""

    host: Host
    ended: asyncio.Event
    """Set when it has stopped, whoever told it to."""

    async def drain(self, patience: float) -> None: ...


class GuestWorker:
    """The worker. `run` it in a process of its own."""

    def __init__(self, config: Config, lending: Lending, board: Board) -> None:
        self._config = config
        self._lending = lending
        self._slot = board.slot(0)
        self._tasks = Tasks()
        self._stop = asyncio.Event()
        self._clock = SystemClock()
        self._server: Server | None = None

    async def run(self, sock: socket.socket | None) -> int:
        """Work until SIGTERM; gives the exit status."""
        self._slot.begin(time.monotonic())
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        loop.add_signal_handler(signal.SIGINT, self._stop.set)
        self._slot.set_state(WorkerState.RECOVERING)
        state = SqliteState(Path(self._config.state.path), self._clock)
        try:
            self._records = await SqliteSpool.open_guest(self._config.spool.options())
            await state.start()
            self._parts = wiring.make_parts(self._config, state, self._clock)
            self._pipeline = self._parts.pipelines[self._lending.pipeline]
            await self._parts.start()
            self._server = await self._serve(self._host(), sock)
        except (SpoolError, StateError, ConfigError, PipelineError, OSError) as error:
            _log.error("worker.cannot_start", reason=str(error))
            return CANNOT_START
        self._state = state
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        beat = self._tasks.start(self._beat(), name="heartbeat")
        self._slot.set_state(WorkerState.READY)
        _log.info("worker.ready", listeners=[str(self._lending.listen)])
        if not self._lending.milter and (late := _never_asked(self._pipeline)):
            _log.warning("delegate.not_asked", plugin=late, stage=Stage.MESSAGE.value)
        stopped = self._tasks.start(self._stop.wait(), name="stop")
        ended = self._tasks.start(self._server.ended.wait(), name="ended")
        await asyncio.wait({stopped, ended}, return_when=asyncio.FIRST_COMPLETED)
        failed = not self._stop.is_set()
        if failed:
            _log.error("worker.failed", reason="the server ended")
        beat.cancel()
        await self._drain(self._server)
        return 1 if failed else 0

    async def _serve(self, host: Host, sock: socket.socket | None) -> Server:
        """Begin to listen. Raises OSError."""
        lending, limits = self._lending, self._config.limits
        if lending.milter:
            return await self._serve_milter(host)
        if sock is None:
            raise OSError("no socket")
        options = delegate.Options(
            str(lending.listen),
            self._config.hostname,
            lending.ok,
            lending.trouble,
            limits.sessions,
            idle=self._config.timeouts.session,
        )
        server = delegate.Delegate(host, options)
        await server.listen(sock)
        return server

    async def _serve_milter(self, host: Host) -> Server:
        # Here, since only who asks for it needs pymilter.
        from gateway.guest.dialogue import Options
        from gateway.guest.milter import MilterServer

        config, lending = self._config, self._lending
        deadlines = {Stage(name): seconds for name, seconds in config.deadlines.model_dump().items()}
        limits = config.limits
        options = Options(str(lending.listen), config.hostname, deadlines, limits.message_size, limits.header_size)
        server = MilterServer(host, options, limits.sessions)
        await server.listen(lending.listen)
        if lending.listen.path:
            os.chmod(lending.listen.path, lending.mode)
        return server

    def _host(self) -> Host:
        config = self._parts.config
        relay = Networks(config.relay_from)
        refused = SplitRefused(config.split_refused)
        return Host(self._pipeline, self._records, self._clock, relay.__contains__, refused)

    async def _drain(self, server: Server) -> None:
        self._slot.set_state(WorkerState.DRAINING)
        _log.info("worker.draining")
        await server.drain(self._config.timeouts.drain)
        await self._parts.close()
        await self._records.close()
        await self._state.close()
        self._slot.set_state(WorkerState.STOPPED)
        _log.info("worker.stopped")

    async def _beat(self) -> None:
        while True:
            self._slot.beat(time.monotonic())
            await asyncio.sleep(_BEAT_SECONDS)

    def _reload(self) -> None:
        self._tasks.start(self._swap(), name="reload")

    async def _swap(self) -> None:
        """Take the new configuration for sessions that begin from now on. The supervisor has checked it."""
        try:
            # In a thread: it reads files, and a list of recipients may be long.
            config = await asyncio.to_thread(load, self._config.file)
            parts = wiring.make_parts(config, self._state, self._clock)
            if self._lending.pipeline not in parts.pipelines:
                raise PipelineError(f"no pipeline {self._lending.pipeline}", ())
            pipeline = parts.pipelines[self._lending.pipeline]
            await parts.start()
        except (ConfigError, PipelineError, OSError) as error:
            _log.error("reload.failed", reason=str(error))
            return
        old, self._parts, self._pipeline = self._parts, parts, pipeline
        if self._server is not None:
            self._server.host = self._host()
        _log.info("reload.done", pipelines=[pipeline.name])
        # Old sessions finish under the old policy; when the longest possible one is over, its parts can go.
        self._tasks.start(self._retire(old), name="retire")

    async def _retire(self, parts: wiring.Parts) -> None:
        await asyncio.sleep(min(_RETIRE_SECONDS, parts.config.timeouts.session))
        await parts.close()


def _never_asked(pipeline: Pipeline) -> list[str]:
    """Entries that have something to say of the message itself, of which Postfix tells a policy server nothing."""
    rows = [row for row in pipeline.table() if row.stage == Stage.MESSAGE]
    return sorted({row.entry for row in rows})


def work(config: Config, lending: Lending, board: Board, sock: socket.socket | None) -> int:
    """Be the worker process; gives the exit status."""
    log.setup(config.log.format, config.log.level, worker="0")
    os.umask(0o077)
    try:
        return uvloop.run(_work(config, lending, board, sock))
    except BaseException as error:  # noqa: BLE001  (the process ends, and must say why)
        _log.error("worker.failed", exc_info=error)
        sys.stderr.flush()
        return 1


async def _work(config: Config, lending: Lending, board: Board, sock: socket.socket | None) -> int:
    return await GuestWorker(config, lending, board).run(sock)
