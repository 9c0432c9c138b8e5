"""Mail that other gateways of ours hand over: ``/api/v1/handover``.

``GET`` says who we are and whether we take any. ``PUT .../SPOOL/ID/OFFER`` brings a message: its description in JSON, a
line feed, its octets. ``DELETE`` of the same says what came of that offer, and has it refused from now on if nothing
did.

*Promises*: `taken` is answered once the message is durable here, and for the same offer ever after. Only SPOOL's own
gateway answers for it. One that is ending, recovering, or handing over its own mail takes none; it still says what it
took.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from gateway.ops import health, log, metrics
from gateway.ops.board import Board
from gateway.ops.quarantine_api import id_of
from gateway.ops.queue_api import Places

DESCRIPTION_OCTETS: Final = 64 << 20
"""Of all descriptions together that are being read."""
AT_ONCE: Final = 32
_BLOCK_SECONDS: Final = 60.0
_TOTAL_SECONDS: Final = 4 * 3600.0
_SPOOL: Final = re.compile(r"[0-9a-f]{32}\Z")
_STATUS: Final = {"taken": 201, "refused": 410, "conflict": 409, "too-old": 409}
_WHY: Final = {
    "conflict": "another message of this id is in the spool",
    "too-old": "the offer is too old to know what came of it, or of a clock that is wrong",
}

_log = log.get()


@dataclass(frozen=True, slots=True)
class Intake:
    """What the spool gives for taking mail over. `identify` gives the id of our spool; `evacuated` says whether its
    own mail is being handed over, and `roomy` whether there is room; `describe` reads a description, raising
    ValueError. `full` is raised when there is no room after all.
    """

    name: str
    identify: Callable[[], str]
    evacuated: Callable[[], bool]
    roomy: Callable[[], bool]
    describe: Callable[[bytes], Any]
    full: type[Exception]


class HandoverApi:
    """The handlers. `open` opens the spool, `places` gives where mail goes now."""

    def __init__(
        self,
        open: Callable[[], Awaitable[Any]],
        places: Callable[[], Places],
        board: Board,
        intake: Intake | None,
        spool_error: type[Exception],
    ) -> None:
        self._shared = _Shared(open, spool_error)
        self._places = places
        self._board = board
        self._intake = intake
        self._spool_error = spool_error
        self._busy = 0
        self._held = 0
        """Octets of descriptions in memory."""

    async def look(self, _: Request) -> Response:
        """Who we are, and whether mail is taken."""
        intake = self._asked()
        why = self._not_ready(intake)
        return JSONResponse({"spool": self._identify(intake), "name": intake.name, "ready": not why, "why": why})

    async def take(self, request: Request) -> Response:
        """Store a message that is offered."""
        intake = self._asked()
        spool, id, offer, sender = self._meant(intake, request)
        if why := self._not_ready(intake):
            raise self._refused("not-ready", 503, why)
        if self._busy >= AT_ONCE:
            raise self._refused("not-ready", 503, f"{AT_ONCE} messages are being taken over already")
        self._busy += 1
        try:
            async with asyncio.timeout(_TOTAL_SECONDS):
                answer = await self._take(intake, request, id, offer, sender)
        except TimeoutError:
            raise self._refused("failed", 408, "the message did not come in time") from None
        except ClientDisconnect:
            raise self._refused("failed", 400, "the message was cut off") from None
        finally:
            self._busy -= 1
        metrics.HANDOVER_RECEIVED.labels(answer).inc()
        body = {"result": answer, "spool": spool, "id": id, "offer": offer}
        if answer in _WHY:
            body["error"] = _WHY[answer]
        return JSONResponse(body, _STATUS[answer])

    async def _take(self, intake: Intake, request: Request, id: str, offer: str, sender: str) -> str:
        body = _Body(request, self._hold)
        try:
            return await self._store(intake, request, body, id, offer, sender)
        finally:
            self._held -= body.counted

    def _hold(self, octets: int) -> None:
        """Count what is held in memory. Raises `HTTPException` when that is too much."""
        self._held += octets
        if self._held > DESCRIPTION_OCTETS:
            raise self._refused("not-ready", 503, f"descriptions have more than {DESCRIPTION_OCTETS} octets together")

    async def _store(self, intake: Intake, request: Request, body: _Body, id: str, offer: str, sender: str) -> str:
        async with self._shared.use() as spool:
            handover = spool.handover
            known = await handover.known(id, offer)
            if known is not None:
                return str(known)
            try:
                said = intake.describe(await body.description())
                by = _by(said, sender, request)
                hop = self._places().own_next_hop
                answer = str(await handover.take(said, offer, id, sender, hop, body.content(), by))
            except ValueError as error:
                raise self._refused("failed", 422, str(error)[:300]) from None
            except intake.full as error:
                raise self._refused("full", 507, str(error)[:300]) from None
        if answer == "taken":
            _log.info("handover.taken", id=id, offer=offer, spool=sender, by=by)
        return answer

    async def withdraw(self, request: Request) -> Response:
        """Say what came of an offer; one that nothing came of is refused from now on."""
        intake = self._asked()
        spool, id, offer, sender = self._meant(intake, request)
        async with self._shared.use() as opened:
            answer = str(await opened.handover.withdraw(id, offer, sender))
        if answer in _WHY:
            raise HTTPException(_STATUS[answer], _WHY[answer])
        _log.info("handover.asked", id=id, offer=offer, spool=sender, result=answer)
        return JSONResponse({"result": answer, "spool": spool, "id": id, "offer": offer})

    def _asked(self) -> Intake:
        if self._intake is None:
            raise HTTPException(404, "no mail is taken over here")
        return self._intake

    def _identify(self, intake: Intake) -> str:
        try:
            return intake.identify()
        except self._spool_error as error:
            _log.warning("admin.spool_unavailable", reason=str(error))
            raise HTTPException(503, "the spool does not answer; see the log") from error

    def _not_ready(self, intake: Intake) -> str:
        state = health.ready(self._board, time.monotonic())
        if not state.ok:
            return "; ".join(state.why)[:200]
        if intake.evacuated():
            return "its own mail is being handed over"
        return "" if intake.roomy() else "its spool is full"

    def _meant(self, intake: Intake, request: Request) -> tuple[str, str, str, str]:
        """Spool, id and offer of the path, and the sender's spool. Raises `HTTPException`."""
        spool = request.path_params["spool"]
        sender = request.headers.get("gatepost-spool", "")
        if not _SPOOL.match(spool) or not _SPOOL.match(sender):
            raise HTTPException(400, "that is no spool")
        ours = self._identify(intake)
        if sender == ours:
            raise HTTPException(409, "that is this gateway's own spool")
        if spool != ours:
            raise HTTPException(421, "that is another gateway's spool")
        return spool, id_of(request.path_params["id"]), id_of(request.path_params["offer"]), sender

    def _refused(self, outcome: str, status: int, why: str) -> HTTPException:
        metrics.HANDOVER_RECEIVED.labels(outcome).inc()
        return HTTPException(status, why)


class _Shared:
    """One open spool for all requests that come together, so that what they store becomes durable in one step.

    It is opened anew when the last of them has ended, so that it never misses a shard for long.
    """

    def __init__(self, open: Callable[[], Awaitable[Any]], spool_error: type[Exception]) -> None:
        self._open = open
        self._spool_error = spool_error
        self._changing = asyncio.Lock()
        self._users = 0
        self._spool: Any = None

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Any]:
        """The spool. Raises `HTTPException` when it does not work."""
        self._users += 1
        try:
            async with self._changing:
                if self._spool is None:
                    self._spool = await self._open()
            yield self._spool
        except self._spool_error as error:
            _log.warning("admin.spool_unavailable", reason=str(error))
            raise HTTPException(503, "the spool does not answer; see the log") from error
        finally:
            self._users -= 1
            async with self._changing:
                if not self._users and self._spool is not None:
                    spool, self._spool = self._spool, None
                    await spool.close()


def _by(said: Any, sender: str, request: Request) -> str:
    """Who hands it over, for the record."""
    name = said.get("by") if isinstance(said, dict) else None
    if not isinstance(name, str) or not name.isprintable() or not 1 <= len(name) <= 255:
        raise ValueError("it does not say who hands it over")
    where = request.client.host if request.client else "?"
    return f"{name} at {where}, spool {sender[:8]}"


class _Body:
    """A request's body as it comes: one line, and then the rest. A block that does not come in time ends it."""

    def __init__(self, request: Request, hold: Callable[[int], None]) -> None:
        self._blocks = request.stream().__aiter__()
        self._hold = hold
        self._rest = b""
        self.held = self.counted = 0
        """Octets of the description, and those that `hold` was told of."""

    async def description(self) -> bytes:
        """The first line. Raises ValueError when it does not end, and what `hold` raises."""
        parts: list[bytes] = []
        while (block := await self._next()) is not None:
            line, end, rest = block.partition(b"\n")
            self.held += len(line)
            if self.held > DESCRIPTION_OCTETS:
                raise ValueError("the description is too long")
            self.counted += len(line)
            self._hold(len(line))
            parts.append(line)
            if end:
                self._rest = rest
                return b"".join(parts)
        raise ValueError("the description has no end")

    async def content(self) -> AsyncIterator[bytes]:
        """What follows."""
        if self._rest:
            yield self._rest
        while (block := await self._next()) is not None:
            if block:
                yield block

    async def _next(self) -> bytes | None:
        async with asyncio.timeout(_BLOCK_SECONDS):
            return await anext(self._blocks, None)
