"""The admin server: health, metrics, drain, and the queue as JSON, in a process of its own.

*Promises*: it reads the board and the spool and never stands in the way of mail. With a token configured, everything
but the three probes (and metrics, at an address of their own) asks for it. Without one it answers only requests that
name a loopback host, so that a web page open on the same machine can't reach it by a name of its own.
"""

from __future__ import annotations

import hmac
import ipaddress
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.ops import health, log, quarantine_api
from gateway.ops.board import Board
from gateway.ops.callers import Caller
from gateway.ops.handover_api import HandoverApi, Intake
from gateway.ops.quarantine_api import QuarantineApi, id_of
from gateway.ops.queue_api import Places, QueueApi
from gateway.ops.requests import Requests
from gateway.ops.view import ExplainedView, explained_json

_CONCURRENCY: Final = 64
_RELOAD_SECONDS: Final = 120.0
"""For a reload, and for one that runs already; each of them is bounded."""

_log = log.get()


class SpoolView(quarantine_api.SpoolView, Protocol):
    """The part of `gateway.spool.spool.Spool` that is asked for here."""

    @property
    def postmaster(self) -> Any: ...
    async def explain(self, id: str) -> Sequence[ExplainedView]: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Deps:
    """What the admin server is given.

    `drain` starts the drain and returns at once. `open_spool` opens the operator's view, anew for each request, so
    that it never misses a shard; `spool_error` is what it and its methods raise; `states` is the enum of the
    spool's states; `places` gives where mail goes now. Requests for a reload go into `requests`, and `ring` has them
    looked at.
    """

    board: Board
    token: str
    drain: Callable[[], None]
    open_spool: Callable[[], Awaitable[SpoolView]]
    spool_error: type[Exception]
    states: type[StrEnum]
    places: Callable[[], Places]
    requests: Requests = field(default_factory=Requests)
    ring: Callable[[], None] = lambda: None
    intake: Intake | None = None
    """For mail that other gateways hand over; None takes none."""


def run_admin(
    sock: socket.socket,
    deps: Deps,
    health_sock: socket.socket | None = None,
    handover_sock: socket.socket | None = None,
) -> None:
    """Serve on sockets that are bound already, until SIGTERM or SIGINT. Blocks; for a process of its own.

    What comes in on `health_sock` gets the probes and the metrics, what comes in on `handover_sock` may hand mail over,
    and nothing else.
    """
    sockets = [one for one in (sock, health_sock, handover_sock) if one is not None]
    serve: ASGIApp = app(deps)
    for narrow, narrow_sock in ((open_app, health_sock), (handover_app, handover_sock)):
        if narrow_sock is not None:
            serve = by_port(narrow_sock.getsockname()[1], narrow(deps), serve)
    config = uvicorn.Config(
        serve,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        http=Caller,
        ws="none",
        limit_concurrency=_CONCURRENCY,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
    )
    # uvicorn raises the signal that ended it once more when it is done; that must not end us with an error.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=sockets)


def by_port(port: int, there: ASGIApp, elsewhere: ASGIApp) -> ASGIApp:
    """The application of the port that a request came in at."""

    async def choose(scope: Scope, receive: Receive, send: Send) -> None:
        await (there if (scope.get("server") or ("", 0))[1] == port else elsewhere)(scope, receive, send)

    return choose


def open_app(deps: Deps) -> Starlette:
    """What anybody may ask who reaches it: the probes and the metrics."""
    server = _Server(deps)
    return _application([*server.probes(), Route("/metrics", metrics)])


def handover_app(deps: Deps) -> Starlette:
    """What other gateways may ask that hand mail over."""
    server = _Server(deps)
    return _application(server.guarded(server.handovers()))


def app(deps: Deps) -> Starlette:
    """The ASGI application."""
    server = _Server(deps)
    guarded: list[tuple[str, str, Handler]] = [
        ("/metrics", "GET", metrics),
        ("/drain", "POST", server.drain),
        ("/api/v1/status", "GET", server.status),
        ("/api/v1/reload", "POST", server.reload),
        ("/api/v1/queue", "GET", server.queue.list),
        ("/api/v1/queue/import", "POST", server.queue.enter),
        ("/api/v1/queue/{id}", "GET", server.queue.show),
        ("/api/v1/queue/{id}/content", "GET", server.queue.content),
        ("/api/v1/queue/{id}/export", "GET", server.queue.export),
        ("/api/v1/queue/{operation}", "POST", server.queue.change),
        ("/api/v1/destinations", "GET", server.queue.destinations),
        ("/api/v1/destinations/suspend", "POST", server.queue.suspend),
        ("/api/v1/destinations/resume", "POST", server.queue.resume),
        ("/api/v1/quarantine", "GET", server.quarantine.list),
        ("/api/v1/quarantine/{id}", "GET", server.quarantine.show),
        ("/api/v1/quarantine/{id}", "DELETE", server.quarantine.drop),
        ("/api/v1/quarantine/{id}/content", "GET", server.quarantine.content),
        ("/api/v1/quarantine/{id}/release", "POST", server.quarantine.release),
        ("/api/v1/explain/{id}", "GET", server.explain),
    ]
    return _application([*server.probes(), *server.guarded(guarded), *server.guarded(server.handovers())])


def _application(routes: list[Route]) -> Starlette:
    return Starlette(routes=routes, exception_handlers={HTTPException: _refusal, Exception: _failure})


Handler = Callable[[Request], Awaitable[Response]]


class _Server:
    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self.quarantine = QuarantineApi(self._spool, deps.states("quarantine"))
        self.queue = QueueApi(self._spool, deps.places, [str(state) for state in deps.states], deps.spool_error)
        self.handover = HandoverApi(deps.open_spool, deps.places, deps.board, deps.intake, deps.spool_error)

    @asynccontextmanager
    async def _spool(self) -> AsyncIterator[SpoolView]:
        """The spool, for one request."""
        try:
            spool = await self._deps.open_spool()
            try:
                yield spool
            finally:
                await spool.close()
        except self._deps.spool_error as error:
            _log.warning("admin.spool_unavailable", reason=str(error))
            raise HTTPException(503, "the spool does not answer; see the log") from error

    def probes(self) -> list[Route]:
        return [
            Route("/livez", self.probe(health.live)),
            Route("/readyz", self.probe(health.ready)),
            Route("/startupz", self.probe(health.started)),
        ]

    def handovers(self) -> list[tuple[str, str, Handler]]:
        """What other gateways ask."""
        message = "/api/v1/handover/{spool}/{id}/{offer}"
        return [
            ("/api/v1/handover", "GET", self.handover.look),
            (message, "PUT", self.handover.take),
            (message, "DELETE", self.handover.withdraw),
        ]

    def guarded(self, handlers: list[tuple[str, str, Handler]]) -> list[Route]:
        return [Route(path, self.guard(handler), methods=[method]) for path, method, handler in handlers]

    def probe(self, check: Callable[[Board, float], health.Health]) -> Handler:
        async def answer(_: Request) -> Response:
            # CLOCK_MONOTONIC is one clock for the whole machine: the workers' beats are comparable with it.
            result = check(self._deps.board, time.monotonic())
            return JSONResponse(result.to_json(), 200 if result.ok else 503)

        return answer

    def guard(self, handler: Handler) -> Handler:
        """The handler, for those who may: by token, or without one by naming a loopback host and no foreign origin."""

        async def answer(request: Request) -> Response:
            token = self._deps.token
            if token:
                given = request.headers.get("authorization", "")
                if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
                    raise HTTPException(401, "token needed", {"WWW-Authenticate": "Bearer"})
            elif not _loopback(request.url.hostname or "") or "origin" in request.headers:
                raise HTTPException(403, "only from this machine, and not from a web page")
            return await handler(request)

        return answer

    async def drain(self, _: Request) -> Response:
        _log.info("admin.drain")
        self._deps.drain()
        return JSONResponse({"draining": True}, 202)

    async def status(self, _: Request) -> Response:
        """What each worker is doing, by which configuration, and what came of the last reload."""
        now = time.monotonic()
        workers = [health.worker_json(slot, now) for slot in self._deps.board.slots]
        return JSONResponse({"workers": workers, "last_reload": self._deps.requests.last()})

    async def reload(self, _: Request) -> Response:
        _log.info("admin.reload")
        outcome = await self._deps.requests.ask(self._deps.ring, _RELOAD_SECONDS)
        if outcome is None:
            raise HTTPException(504, f"no outcome within {_RELOAD_SECONDS:.0f} s; see the log")
        return JSONResponse(outcome, 200 if outcome.get("result") == "done" else 409)

    async def explain(self, request: Request) -> Response:
        id = id_of(request.path_params["id"])
        async with self._spool() as spool:
            found = await spool.explain(id)
        if not found:
            raise HTTPException(404, "no record of this id")
        return JSONResponse([explained_json(e) for e in found])


async def metrics(request: Request) -> Response:
    """All processes' metrics, in the text form or as OpenMetrics, as the client asks."""
    return await run_in_threadpool(_metrics, request.headers.get("accept", ""))


def _metrics(accept: str) -> Response:
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    encoder, content_type = choose_encoder(accept)
    return Response(encoder(registry), media_type=content_type)


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, dict(error.headers or {}))


async def _failure(_: Request, error: Exception) -> Response:
    _log.error("admin.failed", exc_info=error)
    return JSONResponse({"error": "internal error; see the log"}, 500)
