"""A server of Postfix's policy delegation protocol: each request is judged as far as the SMTP session has come.

Requests that name the same ``instance`` are about one message, and are judged as one transaction. Postfix does not say
when a message has ended, so a transaction ends with the end-of-message request, with a request about another message on
the same connection (Postfix promises that the earlier one is over then), or some time after its connection went.

*Promises*: connections, messages and time are bounded. What cannot be understood is not answered: the connection is
closed, and Postfix does what it does without a policy server. Our own trouble is answered as `Options.trouble` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.guest import actions
from gateway.guest.attributes import AttributeReader, BadRequest
from gateway.guest.instance import Instance, renew
from gateway.guest.request import Request, RequestError, State, read_request
from gateway.guest.visit import Host, Visit
from gateway.ops import log, metrics
from gateway.services.tasks import Tasks

THROUGH: Final = "delegate"
INSTANCES: Final = 10_000
"""Messages that are open at once; beyond that the ones not asked about for longest are ended."""

_READ: Final = 1 << 16
_REST_SECONDS: Final = 30.0
"""For the rest of a request that has begun, and for an answer to be taken."""
_ORPHAN_SECONDS: Final = 30.0
"""So long a message whose connection went may be asked about on another one."""
_SWEEP_SECONDS: Final = 5.0
_NAMELESS: Final = "\0"
_BEFORE_NAMES: Final = frozenset({State.CONNECT, State.HELO, State.MAIL})

_log = log.get()


@dataclass(frozen=True, slots=True)
class Options:
    """How a policy server answers.

    `ok` is the action where a verdict accepts: OK would end Postfix's list of restrictions there, so it is DUNNO unless
    the operator says otherwise. `trouble` is the action when something of ours failed. `answer` is how long an answer
    may take (Postfix waits 100 s by default), `idle` how long a connection may be silent, in seconds.
    """

    listener: str
    hostname: str
    ok: str = actions.DUNNO
    trouble: str = actions.TROUBLE
    connections: int = 1000
    answer: float = 95.0
    idle: float = 3600.0


class _Closed(Exception):
    """The connection is to be closed without an answer."""


@dataclass(slots=True, eq=False)
class _Line:
    """One connection. `instance` is the message that was asked about last; `busy` while a request is being judged."""

    writer: asyncio.StreamWriter
    task: asyncio.Task[Any] | None
    instance: Instance | None = None
    key: str = ""
    caller: object = None
    busy: bool = False

    @property
    def nameless(self) -> bool:
        return self.key.startswith(_NAMELESS)


class Delegate:
    """The server. `host` and `options` may be replaced at any time; sessions that have begun keep their host."""

    def __init__(self, host: Host, options: Options) -> None:
        self.host = host
        self.ended = asyncio.Event()
        self._options = options
        self._lines: set[_Line] = set()
        self._instances: dict[str, Instance] = {}
        self._tasks = Tasks()
        self._draining = False
        self._server: asyncio.Server | None = None

    def renew(self, host: Host, options: Options) -> None:
        """What begins from now on gets these."""
        self.host, self._options = host, options

    async def listen(self, sock: socket.socket) -> None:
        """Serve on a socket that is bound."""
        start = asyncio.start_unix_server if sock.family == socket.AF_UNIX else asyncio.start_server
        self._server = await start(self._serve, sock=sock, limit=_READ)
        self._tasks.start(self._sweep(), name="delegate.sweep")

    async def drain(self, patience: float) -> None:
        """Take no new connections, answer what was asked, and end every transaction."""
        self._draining = True
        if self._server is not None:
            self._server.close()
        for line in list(self._lines):
            if not line.busy and line.task is not None:
                line.task.cancel()
        tasks = [line.task for line in self._lines if line.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=patience)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._tasks.cancel()
        for key in list(self._instances):
            await self._release(key)

    # Connections

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = _Line(writer, asyncio.current_task())
        if self._draining or len(self._lines) >= self._options.connections:
            metrics.SESSIONS.labels(self._options.listener, "too-many").inc()
            _log.warning("delegate.turned_away", reason="draining" if self._draining else "too many connections")
            writer.close()
            return
        self._lines.add(line)
        metrics.SESSIONS_OPEN.inc()
        end = "closed"
        try:
            await self._talk(reader, line)
        except _Closed as error:
            end = "bad-request"
            _log.warning("delegate.bad_request", peer=_peer(writer), reason=str(error))
        except TimeoutError:
            end = "timeout"
        except (ConnectionError, asyncio.IncompleteReadError):
            end = "lost"
        except asyncio.CancelledError:
            end = "draining"
        finally:
            self._lines.discard(line)
            metrics.SESSIONS_OPEN.dec()
            metrics.SESSIONS.labels(self._options.listener, end).inc()
            if line.instance is not None:
                line.instance.attached -= 1
                line.instance.used = self._now()
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, line: _Line) -> None:
        attributes = AttributeReader()
        while not self._draining:
            async with asyncio.timeout(_REST_SECONDS if attributes.partial else self._options.idle):
                data = await reader.read(_READ)
            if not data:
                return
            line.busy = True
            try:
                for found in attributes.feed(data):
                    if isinstance(found, BadRequest):
                        raise _Closed(found.reason)
                    action = await self._action(found, line)
                    line.writer.write(f"action={action}\n\n".encode("utf-8", "surrogateescape"))
                    async with asyncio.timeout(_REST_SECONDS):
                        await line.writer.drain()
            finally:
                line.busy = False

    async def _action(self, attributes: Mapping[str, str], line: _Line) -> str:
        """The action for one request."""
        try:
            request = read_request(attributes)
        except RequestError as error:
            raise _Closed(str(error)) from error
        try:
            async with asyncio.timeout(self._options.answer):
                action = await self._ask(request, line)
        except Exception as error:  # noqa: BLE001  (our bug, whatever it is, defers)
            late = isinstance(error, TimeoutError)
            reason = f"no decision within {self._options.answer:g} s" if late else type(error).__name__
            _log.error("delegate.failed", state=request.state.name, reason=reason, exc_info=None if late else error)
            action = self._options.trouble
            await self._forget(line)
        metrics.GUEST_ANSWERS.labels(THROUGH, request.state.value.value, action.partition(" ")[0]).inc()
        return action

    async def _ask(self, request: Request, line: _Line) -> str:
        instance = await self._find(request, line)
        async with instance.lock:
            action = await instance.answer(request)
            instance.used = self._now()
        if not request.instance and request.state not in _BEFORE_NAMES:
            # Whoever gives no names at all is asked about each recipient by itself.
            await self._forget(line)
        return action

    # Messages

    async def _find(self, request: Request, line: _Line) -> Instance:
        """The message that the request is about; a new one ends the one before on the same connection.

        Postfix names a message at its first recipient only, so one without a name is that of the first name that
        follows on the connection.
        """
        here, name = line.instance, request.instance
        if here is not None and line.nameless and line.caller == request.caller and here.continues(request):
            if not name:
                return here
            if name not in self._instances:
                self._instances[name] = self._instances.pop(line.key)
                line.key = name
                return here
        known = self._instances.get(name)
        if known is not None and (known.visit.session.client, known.visit.session.client_port) != request.caller[:2]:
            # After XCLIENT it is somebody else's session.
            await self._release(name)
            known = None
        line_of = name or f"{_NAMELESS}{id(line)}"
        if known is None:
            visit = await self._part(line, request)
            if visit is None:
                session = request.session(self._options.listener, self.host.clock.now(), self.host.trusted)
                visit = Visit(self.host, session, THROUGH)
            known = Instance(visit, self._options.hostname, self._options.ok, renew)
            if len(self._instances) >= INSTANCES:
                await self._release(min(self._instances, key=lambda k: self._instances[k].used))
            self._instances[line_of] = known
            self._attach(line, known, line_of)
        elif known is not here:
            await self._part(line, None)
            self._attach(line, known, line_of)
        line.caller = request.caller
        return known

    def _attach(self, line: _Line, instance: Instance, key: str) -> None:
        instance.attached += 1
        instance.used = self._now()
        line.instance, line.key = instance, key

    async def _part(self, line: _Line, following: Request | None) -> Visit | None:
        """End the message that the connection was about. Gives its session, if the following request is of the same."""
        instance, key, caller = line.instance, line.key, line.caller
        if instance is None:
            return None
        line.instance, line.key = None, ""
        instance.attached -= 1
        if instance.attached or instance.closed:
            return None
        same = following is not None and following.port and caller == following.caller
        if not same or instance.visit.host is not self.host:
            await self._release(key)
            return None
        self._instances.pop(key, None)
        instance.closed = True
        try:
            async with instance.lock:
                await instance.end()
        except BaseException:
            await instance.visit.close()
            raise
        return instance.visit

    async def _forget(self, line: _Line) -> None:
        """Let go of the message that the connection is about: nothing more will be asked, or it cannot be trusted."""
        if line.instance is not None:
            key = line.key
            line.instance.attached -= 1
            line.instance, line.key = None, ""
            await self._release(key)

    async def _release(self, key: str) -> None:
        """End a message and its session."""
        instance = self._instances.pop(key, None)
        if instance is None:
            return
        try:
            async with instance.lock:
                await instance.close()
        except Exception as error:  # noqa: BLE001  (one message's trouble is not another's)
            _log.error("delegate.failed", state="end", reason=type(error).__name__, exc_info=error)

    async def _sweep(self) -> None:
        """End what nobody will ask about any more."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = self._now()
            for key, instance in list(self._instances.items()):
                if now - instance.used > (self._options.idle if instance.attached else _ORPHAN_SECONDS):
                    await self._release(key)

    def _now(self) -> float:
        return self.host.clock.monotonic()


def _peer(writer: asyncio.StreamWriter) -> str:
    with contextlib.suppress(TypeError, IndexError):
        return str(writer.get_extra_info("peername")[0])
    return ""
