"""The supervisor: binds the sockets, starts the workers, starts dead ones again, forwards signals.

It takes no part in mail: no threads, no event loop, so that forking from it is always safe.

*Promises*: each worker has a listening socket of its own (SO_REUSEPORT) that outlives it, so connections that wait
when a worker dies are served by its successor. SIGTERM and SIGINT drain and end with status 0; SIGHUP reloads, and one
that comes while a reload runs reloads again (`gateway.app.reload`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final

from prometheus_client import multiprocess

from gateway.app import certificates, evacuation, wiring
from gateway.app.destinations import FromFile
from gateway.app.keeping import FIXED
from gateway.app.reload import Outcome, Reload, Result
from gateway.app.watch import Watch
from gateway.app.worker import CANNOT_START, work
from gateway.config import Config, ConfigError
from gateway.ops import log, metrics
from gateway.ops.admin import Deps, run_admin
from gateway.ops.board import Board, WorkerState
from gateway.ops.handover_api import Intake
from gateway.ops.orders import BELL, Orders
from gateway.ops.requests import Requests
from gateway.services.clock import SystemClock
from gateway.spool.opening import open_all
from gateway.spool.shard import OnStep, no_step
from gateway.spool.spool import SpoolError, State

_log = log.get()
_SIGNALS: Final = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
_BACKLOG: Final = 1024
_HASTE: Final = 5.0
_PAUSE_MAX: Final = 30.0
_DRAIN_MARGIN: Final = 25.0
_EVACUATION_MARGIN: Final = 20.0
_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
EXIT_CONFIG: Final = 2


class StartError(Exception):
    """Gatepost cannot start; the text says what to do about it."""


@dataclass(slots=True)
class Child:
    """A process to keep alive. `start` runs in the fork and gives the exit status."""

    name: str
    index: int
    start: Callable[[], int]
    pid: int = 0
    began: float = 0.0
    pause: float = 0.0
    due: float = 0.0
    proven: bool = False
    """Whether it has ever been ready. What cannot start for the first time never will; later it is worth a try."""


def bind(host: str, port: int, copies: int) -> list[socket.socket]:
    """`copies` sockets on one address, the port found free first. Raises `StartError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # Without SO_REUSEPORT this fails when anybody has the port, even another Gatepost.
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _only_v6(probe, family)
            probe.bind((host, port))
            port = probe.getsockname()[1]
            out = []
            for n in range(copies):
                if n == 0:
                    probe.close()
                sock = socket.socket(family, socket.SOCK_STREAM)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                _only_v6(sock, family)
                sock.bind((host, port))
                sock.listen(_BACKLOG)
                sock.setblocking(False)
                out.append(sock)
            return out
    except OSError as error:
        advice = {
            errno.EADDRINUSE: "something listens there already; stop it or choose another port",
            errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE",
            errno.EADDRNOTAVAIL: "this machine has no such address",
        }.get(error.errno or 0, "")
        raise StartError(
            f"cannot listen on {host}:{port}: {error.strerror}{'; ' + advice if advice else ''}"
        ) from error


def _end_with_parent() -> None:
    """Have this process drained when the supervisor is killed: nobody would start it again or stop it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        _log.warning("worker.not_tied", reason=os.strerror(ctypes.get_errno()))


def _only_v6(sock: socket.socket, family: int) -> None:
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


class Supervisor:
    """Keeps the workers and the admin server running; the `gateway.app.reload.Crew` of a reload.

    `fixed` are the keys that a reload cannot change.
    """

    fixed: ClassVar[tuple[str, ...]] = FIXED

    def __init__(self, config: Config, on_step: OnStep = no_step) -> None:
        self._config = config
        self._generation = 1
        self._board = Board.create(config.workers, time.monotonic())
        self._orders = Orders(config.workers)
        self._requests = Requests()
        self._died_trying: dict[int, int] = {}
        self._fatal = False
        self._children: list[Child] = []
        self._sockets: list[list[socket.socket]] = []
        self._on_step = on_step
        self._status = 0
        self._watch = Watch(config, time.monotonic())

    def run(self) -> int:
        """Until told to stop. Gives the exit status. Raises `StartError`."""
        self._prepare()
        # So numbers of configurations and of orders are the same.
        self._orders.prepare(self._generation, b"")
        self._orders.take()
        metrics.RELOADED.set(SystemClock().now())
        metrics.RELOAD_OK.set(1)
        certificates.note(self._config.listeners)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        for child in self._children:
            self._start(child)
        while True:
            info = signal.sigtimedwait(_SIGNALS, self._patience())
            number = info.si_signo if info else 0
            if number in (signal.SIGTERM, signal.SIGINT):
                return self._stop()
            if number == signal.SIGHUP or self._watch.changed(self._config, time.monotonic()):
                self._reload()
            self._keep_running()
            if self._fatal:
                self._stop()
                return self._status

    def _prepare(self) -> None:
        """Everything that can go wrong before the first fork goes wrong here, with a text that says what to do."""
        config = self._config
        for path in (config.spool.path, config.state.path):
            usable(path)
        for listener in config.listeners:
            self._sockets.append(bind(str(listener.address.ip), listener.address.port, config.workers))
        admin, *narrow = self._bind_admin()
        for i in range(config.workers):
            self._children.append(Child(f"worker {i}", i, partial(self._work, i)))
        self._children.append(Child("admin", -1, partial(self._admin, admin, *narrow)))
        names = [wiring.name_of(group[0]) for group in self._sockets]
        _log.info("gatepost.listening", smtp=names, admin=wiring.name_of(admin), workers=config.workers)

    def _bind_admin(self) -> tuple[socket.socket, socket.socket | None, socket.socket | None]:
        """The sockets of the admin server: its own, those for probes and metrics and for other gateways, if any."""
        options = self._config.admin
        (admin,) = bind(str(options.address.ip), options.address.port, 1)
        health = bind(str(options.health.ip), options.health.port, 1)[0] if options.health else None
        handover = bind(str(options.handover.ip), options.handover.port, 1)[0] if options.handover else None
        return admin, health, handover

    def _work(self, index: int) -> int:
        sockets = [group[index] for group in self._sockets]
        return work(self._config, self._generation, index, self._board, self._orders, sockets, self._on_step)

    def _admin(
        self,
        sock: socket.socket,
        health_sock: socket.socket | None = None,
        handover_sock: socket.socket | None = None,
    ) -> int:
        log.setup(self._config.log.format, self._config.log.level, worker="admin")
        parent = os.getppid()
        options = self._config.spool.options()
        run_admin(
            sock,
            Deps(
                self._board,
                self._config.admin.secret,
                lambda: os.kill(parent, signal.SIGTERM),
                lambda: open_all(options, self._on_step),
                SpoolError,
                State,
                FromFile(self._config),
                self._requests,
                lambda: os.kill(parent, signal.SIGHUP),
                self._intake(),
            ),
            health_sock,
            handover_sock,
        )
        return 0

    def _intake(self) -> Intake | None:
        """How mail of other gateways is taken over."""
        return evacuation.intake(self._config)

    def _start(self, child: Child) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            pid = os.fork()
        except OSError as error:
            # No memory, or as many processes as there may be: the others go on, and this one is tried again.
            child.pause = min(_PAUSE_MAX, max(1.0, child.pause * 2))
            child.due = time.monotonic() + child.pause
            _log.error("worker.not_started", name=child.name, reason=error.strerror, restart_in=child.pause)
            return
        if pid == 0:
            status = 1
            try:
                _end_with_parent()
                # Its bell may ring before it can hear it, and SIGHUP is the supervisor's.
                signal.signal(BELL, signal.SIG_IGN)
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
                self._close_others(child)
                status = child.start()
            finally:
                sys.stderr.flush()
                os._exit(status)
        child.pid, child.began = pid, time.monotonic()

    def _close_others(self, child: Child) -> None:
        """A worker keeps its own sockets only, or another's queue of connections would never be empty."""
        for group in self._sockets:
            for i, sock in enumerate(group):
                if i != child.index:
                    sock.close()

    def _patience(self) -> float:
        waiting = [c.due - time.monotonic() for c in self._children if not c.pid]
        return max(0.0, min([1.0, *waiting]))

    def _keep_running(self) -> None:
        """Collect who ended, and start again who is due."""
        self._reap()
        now = time.monotonic()
        for child in self._children:
            if not child.pid and child.due <= now and not self._fatal:
                self._start(child)

    def _reap(self) -> None:
        """Collect who ended. Gatepost has to stop when a worker cannot start."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = next((c for c in self._children if c.pid == pid), None)
            if child is None:
                continue
            child.pid = 0
            multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
            if child.index >= 0:
                child.proven = child.proven or self._board.slot(child.index).state >= WorkerState.READY
                self._board.clear(child.index, time.monotonic())
                self._died_trying[child.index] = self._orders.answers[child.index].trying
                self._orders.answers[child.index].clear()
            code = os.waitstatus_to_exitcode(status)
            if code == CANNOT_START and not child.proven:
                self._status = EXIT_CONFIG
                self._fatal = True
                continue
            lived = time.monotonic() - child.began
            child.pause = min(_PAUSE_MAX, max(0.1, child.pause * 2)) if lived < _HASTE else 0.0
            child.due = time.monotonic() + child.pause
            metrics.WORKER_RESTARTS.inc()
            _log.error("worker.died", name=child.name, pid=pid, status=code, restart_in=child.pause)

    # Reloading

    def check(self, config: Config) -> None:
        """Raise `ConfigError` when this cannot be put in the place of what is in force. Says what options are going."""
        wiring.log_notices(config, wiring.load_pipelines(config))
        for listener in config.listeners:
            if listener.pipeline not in config.all_pipelines:
                message = (
                    f"{listener.address} has pipeline {listener.pipeline} until the next start; keep it, or restart"
                )
                raise ConfigError([config.problem(("pipelines",), message)])

    def _reload(self) -> None:
        asked, began = self._requests.asked(), time.monotonic()
        self._watch.look(self._config)
        reload = Reload(self, self._board, self._orders, self.check, self.fixed)
        outcome = reload.run(self._config, self._generation)
        seconds = round(time.monotonic() - began, 3)
        metrics.RELOADS.labels(outcome.result.value).inc()
        metrics.RELOAD_OK.set(outcome.result is Result.DONE)
        self._tell(outcome, seconds)
        now = SystemClock().now()
        if outcome.result is not Result.REFUSED:
            metrics.RELOADED.set(now)
            certificates.note(outcome.config.listeners)
        self._watch.adopt(self._config)
        self._requests.answer(asked, {**outcome.to_json(self._board), "time": round(now, 3), "seconds": seconds})

    def _tell(self, outcome: Outcome, seconds: float) -> None:
        config = outcome.config
        where = {"generation": outcome.generation, "config": config.digest, "file": config.file}
        for key in outcome.needs_restart:
            _log.warning("reload.needs_restart", key=key)
        match outcome.result:
            case Result.DONE:
                _log.info("reload.complete", **where, workers=len(self._board.slots), seconds=seconds)
            case Result.REFUSED:
                _log.error("reload.refused", **where, reason=outcome.reason)
            case Result.FAILED:
                _log.error("reload.incomplete", **where, reason=outcome.reason, seconds=seconds)

    def running(self) -> list[int]:
        """Workers that run now, by index."""
        return [c.index for c in self._children if c.pid and c.index >= 0]

    def ring(self) -> None:
        """Have all workers look at their orders."""
        self._signal(BELL, workers_only=True)

    def tend(self, seconds: float) -> bool:
        """Wait so long, and start those again who died. False when Gatepost is to stop."""
        signal.sigtimedwait({signal.SIGCHLD}, seconds)
        self._keep_running()
        return not self._fatal and not signal.sigpending() & {signal.SIGTERM, signal.SIGINT}

    def died_trying(self, number: int) -> list[int]:
        """Workers that have died while they prepared this order."""
        return [index for index, tried in self._died_trying.items() if tried == number]

    def engage(self, config: Config, generation: int) -> None:
        """A worker that has to be started again starts with the new policy, on the old sockets and spool."""
        self._config, self._generation = config, generation

    def _signal(self, number: int, *, workers_only: bool = False) -> None:
        for child in self._children:
            if child.pid and (child.index >= 0 or not workers_only):
                os.kill(child.pid, number)

    def _stop(self) -> int:
        _log.info("gatepost.stopping")
        for group in self._sockets:
            for sock in group:
                sock.close()
        self._signal(signal.SIGTERM, workers_only=True)
        timeouts = self._config.timeouts
        deadline = time.monotonic() + timeouts.drain_delay + timeouts.drain + _DRAIN_MARGIN
        while any(c.pid for c in self._children if c.index >= 0) and time.monotonic() < deadline:
            signal.sigtimedwait({signal.SIGCHLD}, 0.2)
            self._collect()
        for child in self._children:
            if child.pid and child.index >= 0:
                _log.error("worker.killed", name=child.name, pid=child.pid)
                os.kill(child.pid, signal.SIGKILL)
        self._evacuate()
        # The admin server goes last: it says why readiness is gone while the workers drain.
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + 6.0
        while any(c.pid for c in self._children) and time.monotonic() < deadline:
            signal.sigtimedwait({signal.SIGCHLD}, 0.2)
            self._collect()
        self._signal(signal.SIGKILL)
        _log.info("gatepost.stopped")
        return self._status

    def _evacuate(self) -> None:
        """Have what is left handed over, where that is wanted, by a process of its own: no worker is there any more."""
        options = self._config.evacuate
        if options.when != "drain" or self._status or self._config.spool.postgres is not None:
            return
        child = Child("evacuation", -1, partial(evacuation.work, self._config, self._on_step))
        self._children.append(child)
        self._start(child)
        deadline = time.monotonic() + options.time + _EVACUATION_MARGIN
        while child.pid and time.monotonic() < deadline:
            signal.sigtimedwait({signal.SIGCHLD}, 0.2)
            self._collect()
        if child.pid:
            _log.error("worker.killed", name=child.name, pid=child.pid)
            os.kill(child.pid, signal.SIGKILL)

    def _collect(self) -> None:
        for child in self._children:
            if child.pid and os.waitpid(child.pid, os.WNOHANG)[0]:
                child.pid = 0


def usable(path: str) -> None:
    """Make a directory and see that it can be written. Raises `StartError`."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        probe = os.path.join(path, f".probe-{os.getpid()}")
        os.close(os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        os.unlink(probe)
    except OSError as error:
        raise StartError(
            f"cannot write to {path}: {error.strerror}; give user {os.geteuid()} the directory, or change the path"
        ) from error


def run(config: Config, on_step: OnStep = no_step) -> int:
    """Run Gatepost until SIGTERM. Gives the exit status: 0, or 2 when it cannot start."""
    log.setup(config.log.format, config.log.level)
    try:
        wiring.log_notices(config, wiring.load_pipelines(config))
        return Supervisor(config, on_step).run()
    except StartError as error:
        print(f"gatepost: {error}", file=sys.stderr)  # noqa: T201  (for whoever started it)
        return EXIT_CONFIG
