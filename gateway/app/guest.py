"""``gatepost delegate`` and ``gatepost milter``: processes that lend the pipeline to another MTA.

A supervisor as the gateway's, with one worker: requests about one message must meet in one process, and what a pipeline
does is mostly waiting.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from gateway.app import wiring
from gateway.app.guest_worker import Lending, work
from gateway.app.keeping import FIXED_FOR_GUESTS
from gateway.app.supervisor import EXIT_CONFIG, Child, StartError, Supervisor, bind, usable
from gateway.config import Config, ConfigError
from gateway.ops import log
from gateway.ops.handover_api import Intake
from gateway.sdk.endpoint import Endpoint

_log = log.get()
_BACKLOG = 1024


class GuestSupervisor(Supervisor):
    """Keeps one worker running that lends a pipeline, and the admin server where the configuration asks for one."""

    fixed = FIXED_FOR_GUESTS

    def __init__(self, config: Config, lending: Lending) -> None:
        super().__init__(config.model_copy(update={"workers": 1}))
        self._lending = lending
        self.bound = False

    def _prepare(self) -> None:
        config, lending = self._config, self._lending
        if lending.pipeline not in config.all_pipelines:
            raise StartError(f"no pipeline {lending.pipeline}; there are {', '.join(config.all_pipelines)}")
        for path in (config.spool.path, config.state.path):
            usable(path)
        # libmilter binds its socket itself, in the worker; that it can is seen here, where it can be said.
        sock = bind_endpoint(lending.listen, lending.mode)
        self.bound = True
        if lending.milter:
            sock.close()
            _unlink(lending.listen)
        else:
            self._sockets.append([sock])
        self._children.append(Child("worker 0", 0, partial(self._work, 0)))
        admin = ""
        if "admin" in config.model_fields_set:
            listener, *narrow = self._bind_admin()
            self._children.append(Child("admin", -1, partial(self._admin, listener, *narrow)))
            admin = wiring.name_of(listener)
        _log.info("guest.listening", through=lending.through, address=str(lending.listen), admin=admin)

    def _intake(self) -> Intake | None:
        """It keeps no mail."""
        return None

    def _work(self, index: int) -> int:
        sock = self._sockets[0][0] if self._sockets else None
        return work(self._config, self._generation, self._lending, self._board, self._orders, sock)

    def check(self, config: Config) -> None:
        wiring.load_pipelines(config)
        if self._lending.pipeline not in config.all_pipelines:
            message = f"there is no pipeline {self._lending.pipeline} any more, and it is lent"
            raise ConfigError([config.problem(("pipelines",), message)])


def bind_endpoint(endpoint: Endpoint, mode: int) -> socket.socket:
    """A socket that listens, a unix one with this mode. Raises `StartError`."""
    if not endpoint.path:
        return bind(endpoint.host, endpoint.port, 1)[0]
    try:
        _remove_stale(endpoint.path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _umask(0o177):
            sock.bind(endpoint.path)
        os.chmod(endpoint.path, mode)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
        return sock
    except OSError as error:
        advice = "; something listens there already" if error.errno == errno.EADDRINUSE else ""
        raise StartError(f"cannot listen on {endpoint}: {error.strerror or error}{advice}") from error


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on. Raises OSError when somebody does, or when it is no socket."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EADDRINUSE, "there is a file that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _unlink(endpoint: Endpoint) -> None:
    if endpoint.path:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(endpoint.path)


def lend(config: Config, lending: Lending) -> int:
    """Lend a pipeline until SIGTERM. Gives the exit status: 0, or 2 when it cannot start. Raises `ConfigError`."""
    log.setup(config.log.format, config.log.level)
    try:
        wiring.log_notices(config, wiring.load_pipelines(config))
        supervisor = GuestSupervisor(config, lending)
        try:
            return supervisor.run()
        finally:
            if supervisor.bound:
                _unlink(lending.listen)
    except StartError as error:
        print(f"gatepost: {error}", file=sys.stderr)  # noqa: T201  (for whoever started it)
        return EXIT_CONFIG
