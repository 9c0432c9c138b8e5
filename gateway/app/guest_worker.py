"""The worker that lends a pipeline: no front door, no queue, and of the spool a shard for decision records only.

*Promises*: SIGTERM drains: nothing new is taken, what was asked is answered, transactions are ended, records are
written, exit status 0. A reload that the supervisor orders swaps the pipeline; sessions that have begun finish under
the old one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any, Final, Protocol

import uvloop

from gateway.app import wiring
from gateway.app.keeping import FIXED_FOR_GUESTS, keep
from gateway.app.renewal import Bench, Renewal
from gateway.app.sharing import make_state
from gateway.app.worker import CANNOT_START
from gateway.config import Config, ConfigError, parse
from gateway.guest import actions, delegate, dialogue
from gateway.guest.ruling import SplitRefused
from gateway.guest.visit import Host
from gateway.ops import log
from gateway.ops.board import Board, WorkerState
from gateway.ops.orders import BELL, Orders
from gateway.pipeline.loader import Pipeline
from gateway.pipeline.plan import PipelineError
from gateway.sdk.endpoint import Endpoint
from gateway.sdk.services import StateError
from gateway.sdk.stage import Stage
from gateway.services.clock import SystemClock
from gateway.services.tasks import Tasks
from gateway.smtp.options import Networks
from gateway.spool.opening import open_guest
from gateway.spool.spool import SpoolError

_log = log.get()
_BEAT_SECONDS: Final = 1.0


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
    """What speaks to the MTA."""

    ended: asyncio.Event
    """Set when it has stopped, whoever told it to."""

    def renew(self, host: Host, options: Any) -> None:
        """What sessions that begin from now on get; `options` are its own kind's."""

    async def drain(self, patience: float) -> None: ...


class GuestWorker:
    """The worker. `run` it in a process of its own. `generation` is the number of the configuration."""

    def __init__(self, config: Config, generation: int, lending: Lending, board: Board, orders: Orders) -> None:
        self._config = config
        self._generation = generation
        self._lending = lending
        self._slot = board.slot(0)
        self._orders = orders
        self._tasks = Tasks()
        self._stop = asyncio.Event()
        self._clock = SystemClock()

    async def run(self, sock: socket.socket | None) -> int:
        """Work until SIGTERM; gives the exit status."""
        self._slot.begin(time.monotonic())
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        loop.add_signal_handler(signal.SIGINT, self._stop.set)
        self._slot.set_state(WorkerState.RECOVERING)
        self._state = make_state(self._config, self._clock)
        try:
            self._records = await open_guest(self._config.spool.options())
            await self._state.start()
            parts = wiring.make_parts(self._config, self._state, self._clock)
            pipeline = parts.pipelines[self._lending.pipeline]
            await parts.start()
            self._server = await self._serve(parts, sock)
        except (SpoolError, StateError, ConfigError, PipelineError, OSError) as error:
            _log.error("worker.cannot_start", reason=str(error))
            return CANNOT_START
        self._renewal = Renewal(Bench(self._orders, self._slot, self._prepare, self._use), parts, self._generation)
        loop.add_signal_handler(BELL, self._renewal.ring)
        self._reloads = self._tasks.start(self._renewal.run(), name="reload")
        beat = self._tasks.start(self._beat(), name="heartbeat")
        self._slot.set_state(WorkerState.READY)
        _log.info("worker.ready", listeners=[str(self._lending.listen)])
        if not self._lending.milter and (late := _never_asked(pipeline)):
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

    async def _serve(self, parts: wiring.Parts, sock: socket.socket | None) -> Server:
        """Begin to listen. Raises OSError."""
        if self._lending.milter:
            return await self._serve_milter(parts)
        if sock is None:
            raise OSError("no socket")
        server = delegate.Delegate(self._host(parts), self._delegate_options(parts.config))
        await server.listen(sock)
        return server

    async def _serve_milter(self, parts: wiring.Parts) -> Server:
        # Here, since only who asks for it needs pymilter.
        from gateway.guest.milter import MilterServer

        lending = self._lending
        server = MilterServer(self._host(parts), self._milter_options(parts.config))
        await server.listen(lending.listen)
        if lending.listen.path:
            os.chmod(lending.listen.path, lending.mode)
        return server

    def _delegate_options(self, config: Config) -> delegate.Options:
        lending = self._lending
        return delegate.Options(
            str(lending.listen),
            config.hostname,
            lending.ok,
            lending.trouble,
            config.limits.sessions,
            idle=config.timeouts.session,
        )

    def _milter_options(self, config: Config) -> dialogue.Options:
        deadlines = {Stage(name): seconds for name, seconds in config.deadlines.model_dump().items()}
        limits = config.limits
        return dialogue.Options(
            str(self._lending.listen),
            config.hostname,
            deadlines,
            limits.message_size,
            limits.header_size,
            limits.sessions,
        )

    def _host(self, parts: wiring.Parts) -> Host:
        config = parts.config
        return Host(
            parts.pipelines[self._lending.pipeline],
            self._records,
            self._clock,
            Networks(config.relay_from).__contains__,
            SplitRefused(config.split_refused),
            config.digest,
            parts.tenancy,
        )

    async def _drain(self, server: Server) -> None:
        self._slot.set_state(WorkerState.DRAINING)
        _log.info("worker.draining")
        self._reloads.cancel()
        await server.drain(self._renewal.current.config.timeouts.drain)
        await self._renewal.close()
        await self._records.close()
        await self._state.close()
        self._slot.set_state(WorkerState.STOPPED)
        _log.info("worker.stopped")

    async def _beat(self) -> None:
        while True:
            self._slot.beat(time.monotonic())
            # A bell that was not heard costs a moment, and no reload.
            self._renewal.ring()
            await asyncio.sleep(_BEAT_SECONDS)

    async def _prepare(self, text: bytes) -> wiring.Parts:
        """What a new configuration determines, started. The supervisor has checked it."""
        old = self._renewal.current.config
        # In a thread: it reads files, and a list of recipients may be long.
        config = await asyncio.to_thread(parse, text, old.file)
        parts = wiring.make_parts(keep(old, config, FIXED_FOR_GUESTS)[0], self._state, self._clock)
        if self._lending.pipeline not in parts.pipelines:
            raise PipelineError(f"there is no pipeline {self._lending.pipeline} any more", ())
        await parts.start()
        return parts

    def _use(self, parts: wiring.Parts) -> None:
        """Have sessions that begin from now on use it."""
        config = parts.config
        options = self._milter_options(config) if self._lending.milter else self._delegate_options(config)
        self._server.renew(self._host(parts), options)


def _never_asked(pipeline: Pipeline) -> list[str]:
    """Entries that have something to say of the message itself, of which Postfix tells a policy server nothing."""
    rows = [row for row in pipeline.table() if row.stage == Stage.MESSAGE]
    return sorted({row.entry for row in rows})


def work(
    config: Config, generation: int, lending: Lending, board: Board, orders: Orders, sock: socket.socket | None
) -> int:
    """Be the worker process; gives the exit status."""
    log.setup(config.log.format, config.log.level, worker="0")
    os.umask(0o077)
    try:
        return uvloop.run(_work(sock, config, generation, lending, board, orders))
    except BaseException as error:  # noqa: BLE001  (the process ends, and must say why)
        _log.error("worker.failed", exc_info=error)
        sys.stderr.flush()
        return 1


async def _work(sock: socket.socket | None, *worker: Any) -> int:
    return await GuestWorker(*worker).run(sock)
