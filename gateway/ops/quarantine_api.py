"""The quarantine over HTTP: ``/api/v1/quarantine``.

What was set aside may be anything. It is given out as an attachment that no browser shows, and header sections as text
in JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from gateway.mail.address import AddressError
from gateway.mail.envelope import Recipient
from gateway.mail.message import Content, split_header
from gateway.ops import log
from gateway.ops.quarantine import Filter, released_to, search
from gateway.ops.view import StoredView, stored_json

LIMIT_MAX: Final = 1000
_BODY: Final = 64 << 10
_HEADER: Final = 1 << 20
_TEXT: Final = 200
_RECIPIENTS: Final = 100
_SECONDS: Final = re.compile(r"(?:[0-9]{1,12}(?:\.[0-9]{1,9})?)?\Z")

_log = log.get()


class ClaimedView(Protocol):
    """See `gateway.spool.spool.Claimed`."""

    @property
    def message(self) -> StoredView: ...
    @property
    def content(self) -> Content: ...


class SpoolView(Protocol):
    """The part of `gateway.spool.spool.Spool` that is asked for here."""

    async def list(self, *, state: Any = None, limit: int = 1000, after: str = "") -> Sequence[Any]: ...
    async def show(self, id: str) -> Any: ...
    async def release(
        self, ids: Sequence[str], *, by: str = "", to: Sequence[Recipient] = (), states: Any = ...
    ) -> int: ...
    async def drop(self, ids: Sequence[str], *, by: str = "", states: Any = ...) -> int: ...


class QuarantineApi:
    """The handlers. `open` gives the spool for one request, `state` is its word for quarantine."""

    def __init__(self, open: Callable[[], AbstractAsyncContextManager[SpoolView]], state: Any) -> None:
        self._open = open
        self._state = state

    async def list(self, request: Request) -> Response:
        """A page of messages; `next` is the `after` of the next one, or null."""
        query = request.query_params
        limit = query.get("limit", "100")
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= LIMIT_MAX):
            raise HTTPException(400, f"limit is a number from 1 to {LIMIT_MAX}")
        texts = {key: query.get(key, "") for key in ("reason", "sender", "recipient")}
        if any(len(text) > _TEXT for text in texts.values()):
            raise HTTPException(400, f"reason, sender and recipient have at most {_TEXT} characters")
        moments = {key: _moment(key, query.get(key, "")) for key in ("before", "since")}
        wanted = Filter(texts["reason"], texts["sender"], texts["recipient"], moments["before"], moments["since"])
        after = id_of(query.get("after", ""))
        async with self._open() as spool:
            found, following = await search(spool, self._state, wanted, limit=int(limit), after=after)
        return JSONResponse({"messages": [stored_json(m) for m in found], "next": following})

    async def show(self, request: Request) -> Response:
        """One message with its header section."""
        async with self._open() as spool:
            found = await self._find(spool, request)
            head = b""
            async for block in found.content.blocks():
                head += block
                if len(head) >= _HEADER or b"\r\n\r\n" in head:
                    break
        header = head[: split_header(head)[1]].decode("utf-8", "replace").replace("\r\n", "\n")
        return JSONResponse({**stored_json(found.message), "header": header})

    async def content(self, request: Request) -> Response:
        """One message's octets, as they would leave."""
        async with self._open() as spool:
            await self._find(spool, request)
        return await content_response(self._open, id_of(request.path_params["id"]))

    async def release(self, request: Request) -> Response:
        """Queue it again. The body may say ``{"to": [...], "by": "..."}``."""
        id = id_of(request.path_params["id"])
        body = await read_body(request, _BODY)
        if body.keys() - {"to", "by"}:
            raise HTTPException(400, "the body is an object with `to` and `by`, or empty")
        to = _recipients(body.get("to", []))
        by = by_whom(request, body.get("by"))
        async with self._open() as spool:
            changed = await spool.release([id], by=by, to=to, states=(self._state,))
        return self._done("released", id, changed, by, to=[str(r.address) for r in to])

    async def drop(self, request: Request) -> Response:
        """Remove it for good."""
        id = id_of(request.path_params["id"])
        by = by_whom(request, request.query_params.get("by"))
        async with self._open() as spool:
            changed = await spool.drop([id], by=by, states=(self._state,))
        return self._done("dropped", id, changed, by)

    def _done(self, what: str, id: str, changed: int, by: str, **more: Any) -> Response:
        if not changed:
            raise HTTPException(404, "no such message in quarantine")
        _log.info(f"quarantine.{what}", id=id, by=by, **more)
        return JSONResponse({what: id})

    async def _find(self, spool: SpoolView, request: Request) -> ClaimedView:
        found: ClaimedView | None = await spool.show(id_of(request.path_params["id"]))
        if found is None or found.message.state != self._state:
            raise HTTPException(404, "no such message in quarantine")
        return found


async def content_response(open: Callable[[], AbstractAsyncContextManager[Any]], id: str) -> Response:
    """A message's octets, as a file that no browser shows. Raises `HTTPException`."""
    async with open() as spool:
        if (found := await spool.show(id)) is None:
            raise HTTPException(404, "no such message in the spool")

    async def blocks() -> AsyncIterator[bytes]:
        # Opened again, since this runs when the handler has returned.
        async with open() as spool:
            if (again := await spool.show(id)) is None:
                return
            async for block in again.content.blocks():
                yield block

    headers = {
        "content-disposition": f'attachment; filename="{id}.eml"',
        "content-length": str(found.message.size),
        "x-content-type-options": "nosniff",
    }
    return StreamingResponse(blocks(), media_type="message/rfc822", headers=headers)


def id_of(text: str) -> str:
    """A queue id as the spool writes it. Raises `HTTPException`."""
    if len(text) > 64 or not ((text.isascii() and text.isalnum()) or not text):
        raise HTTPException(400, "that is no id")
    return text.upper()


def _moment(name: str, text: str) -> float:
    """Epoch seconds; 0 for none."""
    if not _SECONDS.match(text):
        raise HTTPException(400, f"{name} is a moment in epoch seconds")
    return float(text or 0)


async def read_body(request: Request, limit: int) -> dict[str, Any]:
    """The body, a JSON object or nothing. Raises `HTTPException`."""
    octets = b""
    async for block in request.stream():
        octets += block
        if len(octets) > limit:
            raise HTTPException(413, "the body is too long")
    if not octets.strip():
        return {}
    try:
        read = json.loads(octets)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is no JSON") from None
    if not isinstance(read, dict):
        raise HTTPException(400, "the body is a JSON object")
    return read


def _recipients(addresses: Any) -> tuple[Recipient, ...]:
    if not isinstance(addresses, list) or len(addresses) > _RECIPIENTS:
        raise HTTPException(400, f"to is a list of at most {_RECIPIENTS} addresses")
    try:
        return tuple(released_to(address) for address in addresses)
    except AddressError as error:
        raise HTTPException(400, f"to: {error}") from None


def by_whom(request: Request, by: Any) -> str:
    """Who wants something, for the record. Raises `HTTPException`."""
    where = f"the API at {request.client.host}" if request.client else "the API"
    if by is None:
        return where
    if not isinstance(by, str) or not by.isprintable() or not 1 <= len(by) <= 80:
        raise HTTPException(400, "by has 1 to 80 printable characters")
    return f"{by} by {where}"
