"""The queue over HTTP: ``/api/v1/queue`` and ``/api/v1/destinations``; what ``gatepost queue`` does, as JSON.

*Promises*: whatever is changed is logged with who wanted it. What cannot be taken back needs ``"yes": true`` when it
was chosen by a selection and is more than one message.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, Final, Protocol

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.mail.address import AddressError
from gateway.mail.envelope import Recipient
from gateway.mail.message import split_header
from gateway.ops import log
from gateway.ops.operations import (
    DEEDS,
    FOR_GOOD,
    STATES,
    TEXT_MAX,
    Amended,
    Amendment,
    Drop,
    EditRecipients,
    Hold,
    Redirect,
    Release,
    Reroute,
    Retry,
    Return,
    Selection,
    SelectionError,
    Suspension,
)
from gateway.ops.quarantine import released_to
from gateway.ops.quarantine_api import by_whom, content_response, id_of, read_body
from gateway.ops.view import stored_json
from gateway.ops.why import Scene, reasons

LIMIT_MAX: Final = 1000
SELECTED_MAX: Final = 10_000
IMPORT_OCTETS: Final = 16 << 20
_BODY: Final = 1 << 20
_HEADER: Final = 1 << 20
_WAIT_MAX: Final = 60.0
_RECIPIENTS: Final = 100
_TOLD: Final = 20
_TEXTS: Final = ("sender", "recipient", "domain", "next_hop", "reason")
_NUMBERS: Final = ("before", "since", "larger", "smaller")

_log = log.get()


class Places(Protocol):
    """Where mail goes, by the configuration; see `gateway.app.destinations.Destinations`."""

    give_up: float
    keep: float

    @property
    def hop(self) -> Callable[[str, str, str, str, str], str]: ...
    def own_next_hop(self, text: str) -> str: ...
    def label(self, text: str) -> str: ...


class QueueApi:
    """The handlers. `open` gives the spool for one request, `places` where mail goes now.

    `spool_error` is what the spool raises for a message that cannot be read.
    """

    def __init__(
        self,
        open: Callable[[], AbstractAsyncContextManager[Any]],
        places: Callable[[], Places],
        states: Sequence[str],
        spool_error: type[Exception],
    ) -> None:
        self._open = open
        self._places = places
        self._states = tuple(states)
        self._spool_error = spool_error

    # Looking

    async def list(self, request: Request) -> Response:
        """A page of messages; `next` is the `after` of the next one, or null."""
        query = request.query_params
        limit = query.get("limit", "100")
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= LIMIT_MAX):
            raise HTTPException(400, f"limit is a number from 1 to {LIMIT_MAX}")
        given = {key: query[key] for key in ("state", *_TEXTS, *_NUMBERS) if query.get(key)}
        places = self._places()
        wanted = self._selection(given, places)
        async with self._open() as spool:
            found = await spool.postmaster.find(
                wanted, places.hop, limit=int(limit), after=id_of(query.get("after", ""))
            )
        following = found[-1].message.id if len(found) == int(limit) else None
        messages = [{**stored_json(one.message), "claimed": one.claimed} for one in found]
        return JSONResponse({"messages": messages, "next": following})

    async def show(self, request: Request) -> Response:
        """One message: envelope, header section, attempts, why it is still here."""
        id = id_of(request.path_params["id"])
        places = self._places()
        async with self._open() as spool:
            postmaster = spool.postmaster
            found = await postmaster.one(id)
            if found is None:
                raise HTTPException(404, "no such message in the spool")
            scene = Scene(
                now=time.time_ns() / 1e9,
                give_up=places.give_up,
                keep=places.keep,
                hop=places.hop,
                suspended=await postmaster.suspensions(),
                attended=not await postmaster.unattended(),
                claimed=found.claimed,
            )
            explained = await spool.explain(id)
            header, problem = await self._header(spool, id)
        return JSONResponse(
            {
                **stored_json(found.message),
                "claimed": found.claimed,
                "header": header,
                "attempts": [attempt for one in explained for attempt in one.attempts],
                "why": [reason.to_json() for reason in reasons(found.message, scene)],
                **({"problem": problem} if problem else {}),
            }
        )

    async def _header(self, spool: Any, id: str) -> tuple[str, str]:
        """The header section, and why there is none."""
        head = b""
        try:
            claimed = await spool.show(id)
            async for block in claimed.content.blocks() if claimed else _none():
                head += block
                if len(head) >= _HEADER or b"\r\n\r\n" in head:
                    break
        except self._spool_error as error:
            return "", str(error)
        return head[: split_header(head)[1]].decode("utf-8", "replace").replace("\r\n", "\n"), ""

    async def content(self, request: Request) -> Response:
        """One message's octets, as they would leave."""
        return await content_response(self._open, id_of(request.path_params["id"]))

    async def export(self, request: Request) -> Response:
        """One message as ``gatepost queue export`` describes it; its octets are its content."""
        id = id_of(request.path_params["id"])
        digest = hashlib.sha256()
        async with self._open() as spool:
            claimed = await spool.show(id)
            async for block in claimed.content.blocks() if claimed else _none():
                digest.update(block)
            described = await spool.postmaster.describe(id, digest.hexdigest())
        if described is None:
            raise HTTPException(404, "no such message in the spool, or a corrupt one")
        _log.info("queue.exported", id=id, by=by_whom(request, request.query_params.get("by")))
        return JSONResponse(described)

    async def destinations(self, _: Request) -> Response:
        """What waits for each destination, and what is suspended."""
        async with self._open() as spool:
            postmaster = spool.postmaster
            waiting = await postmaster.waiting(time.time_ns() / 1e9, self._places().hop)
            suspended = await postmaster.suspensions()
        return JSONResponse(
            {
                "destinations": [{**one.to_json(), "suspended": one.destination in suspended} for one in waiting],
                "suspended": [one.to_json() for one in suspended.values()],
            }
        )

    # Changing

    async def change(self, request: Request) -> Response:
        """Amend messages: those of `ids`, or those that `select` finds."""
        body = await read_body(request, _BODY)
        places = self._places()
        amendment = _amendment(request.path_params["operation"], body, places)
        by = by_whom(request, body.get("by"))
        wait = body.get("wait", 0)
        if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait <= _WAIT_MAX:
            raise HTTPException(400, f"wait is a number of seconds up to {_WAIT_MAX:g}")
        flags = {key: body.get(key, False) for key in ("dry_run", "yes")}
        if not all(isinstance(flag, bool) for flag in flags.values()):
            raise HTTPException(400, "dry_run and yes are true or false")
        async with self._open() as spool:
            ids = await self._chosen(spool, body, type(amendment), places)
            if flags["dry_run"]:
                return JSONResponse({"dry_run": True, "messages": len(ids), "ids": ids})
            if isinstance(amendment, FOR_GOOD) and "ids" not in body and len(ids) > 1 and not flags["yes"]:
                deed = DEEDS[type(amendment)]
                raise HTTPException(409, f'{len(ids)} messages would be {deed}; say "yes": true if that is meant')
            results = await spool.postmaster.amend(ids, amendment, by=by, wait=float(wait))
        done = [id for id, result in results.items() if result.done]
        deed = DEEDS[type(amendment)]
        _log.info("queue.amended", deed=deed, by=by, messages=len(done), ids=done[:_TOLD])
        others = {id: result.value for id, result in results.items() if result is not Amended.DONE}
        return JSONResponse({"messages": len(done), "others": others, "more": len(ids) >= SELECTED_MAX})

    async def _chosen(self, spool: Any, body: dict[str, Any], kind: type[Any], places: Places) -> Sequence[str]:
        if ("ids" in body) == ("select" in body):
            raise HTTPException(400, "give `ids` or `select`")
        if "ids" in body:
            ids = body["ids"]
            if not isinstance(ids, list) or len(ids) > SELECTED_MAX or not all(isinstance(id, str) for id in ids):
                raise HTTPException(400, f"ids is a list of at most {SELECTED_MAX} ids")
            return list(dict.fromkeys(id_of(id) for id in ids))
        wanted = self._selection(body["select"], places)
        if not wanted.states:
            wanted = replace(wanted, states=STATES[kind])
        out: list[str] = []
        while len(out) < SELECTED_MAX:
            page = await spool.postmaster.find(wanted, places.hop, limit=LIMIT_MAX, after=out[-1] if out else "")
            out += [one.message.id for one in page]
            if len(page) < LIMIT_MAX:
                break
        return out

    def _selection(self, given: Any, places: Places) -> Selection:
        if not isinstance(given, Mapping) or given.keys() - {"state", *_TEXTS, *_NUMBERS}:
            raise HTTPException(400, f"a selection has the keys state, {', '.join((*_TEXTS, *_NUMBERS))}")
        state = given.get("state")
        if state is not None and state not in self._states:
            raise HTTPException(400, f"state is one of {', '.join(self._states)}")
        texts = {key: given.get(key, "") for key in _TEXTS}
        if not all(isinstance(text, str) for text in texts.values()):
            raise HTTPException(400, f"{', '.join(_TEXTS)} are texts")
        try:
            if texts["next_hop"] not in ("", "?"):
                texts["next_hop"] = places.label(texts["next_hop"])
            numbers = {key: _number(key, given.get(key)) for key in _NUMBERS}
            return Selection(states=(state,) if state else (), **texts, **numbers)  # type: ignore[arg-type]
        except (SelectionError, ValueError) as error:
            raise HTTPException(400, str(error)) from None

    async def enter(self, request: Request) -> Response:
        """Store what `export` gave: ``{"message": {...}, "content": "BASE64"}``."""
        body = await read_body(request, IMPORT_OCTETS)
        by = by_whom(request, body.get("by"))
        if body.keys() - {"message", "content", "by"} or not isinstance(body.get("content"), str):
            raise HTTPException(400, "the body is an object with `message`, `content` in Base64, and `by` or not")
        try:
            content = base64.b64decode(body["content"], validate=True)
            async with self._open() as spool:
                id = await spool.postmaster.enter_described(
                    body.get("message"), self._places().own_next_hop, _blocks(content), by=by
                )
        except (binascii.Error, ValueError) as error:
            raise HTTPException(400, str(error)) from None
        if id is None:
            raise HTTPException(409, "a message of this id is in the spool already")
        _log.info("queue.imported", id=id, by=by)
        return JSONResponse({"imported": id}, 201)

    async def suspend(self, request: Request) -> Response:
        """Have nothing delivered to a destination; its workers log it."""
        body, label = await self._destination(request)
        reason = _text("reason", body.get("reason", ""))
        made = Suspension(label, by_whom(request, body.get("by")), time.time_ns() / 1e9, reason)
        async with self._open() as spool:
            if not await spool.postmaster.suspend(made):
                raise HTTPException(409, f"{label} is suspended already")
        return JSONResponse(made.to_json())

    async def resume(self, request: Request) -> Response:
        """Have mail delivered to a destination again."""
        body, label = await self._destination(request)
        by = by_whom(request, body.get("by"))
        async with self._open() as spool:
            if (ended := await spool.postmaster.resume(label, by=by)) is None:
                raise HTTPException(404, f"{label} is not suspended")
        return JSONResponse(ended.to_json())

    async def _destination(self, request: Request) -> tuple[dict[str, Any], str]:
        body = await read_body(request, _BODY)
        if body.keys() - {"destination", "reason", "by"} or not isinstance(body.get("destination"), str):
            raise HTTPException(400, "the body is an object with `destination`, and `reason` and `by` or not")
        try:
            return body, self._places().label(body["destination"])
        except ValueError as error:
            raise HTTPException(400, f"destination: {error}") from None


_PARAMETERS: Final[Mapping[str, frozenset[str]]] = {
    "retry": frozenset(),
    "release": frozenset(),
    "drop": frozenset(),
    "hold": frozenset({"reason"}),
    "return": frozenset({"reason"}),
    "reroute": frozenset({"to"}),
    "redirect": frozenset({"to"}),
    "recipients": frozenset({"add", "remove"}),
}
_COMMON: Final = frozenset({"ids", "select", "by", "wait", "dry_run", "yes"})


def _amendment(operation: str, body: dict[str, Any], places: Places) -> Amendment:
    """What is to be done. Raises `HTTPException`."""
    if operation not in _PARAMETERS:
        raise HTTPException(404, f"there are {', '.join(sorted(_PARAMETERS))}")
    if odd := body.keys() - _COMMON - _PARAMETERS[operation]:
        raise HTTPException(400, f"{operation} knows no {', '.join(sorted(odd))[:200]}")
    match operation:
        case "retry":
            return Retry()
        case "release":
            return Release()
        case "drop":
            return Drop()
        case "hold":
            return Hold(_text("reason", body.get("reason", Hold().reason)))
        case "return":
            return Return(_text("reason", body.get("reason", Return().reason)))
        case "reroute":
            return Reroute(_own_next_hop(body.get("to"), places))
        case "redirect":
            return Redirect(_recipients("to", body.get("to"), some=True))
    add, remove = (_recipients(key, body.get(key, []), some=False) for key in ("add", "remove"))
    if not add and not remove:
        raise HTTPException(400, "give `add` or `remove`")
    return EditRecipients(add, tuple(recipient.address for recipient in remove))


def _own_next_hop(to: Any, places: Places) -> str:
    if not isinstance(to, str):
        raise HTTPException(400, "to is a next hop, or empty for where the routes lead")
    try:
        return places.own_next_hop(to) if to else ""
    except ValueError as error:
        raise HTTPException(400, f"to: {error}") from None


def _recipients(key: str, addresses: Any, *, some: bool) -> tuple[Recipient, ...]:
    if not isinstance(addresses, list) or len(addresses) > _RECIPIENTS or (some and not addresses):
        raise HTTPException(400, f"{key} is a list of {'1' if some else '0'} to {_RECIPIENTS} addresses")
    try:
        return tuple(released_to(address) for address in addresses)
    except AddressError as error:
        raise HTTPException(400, f"{key}: {error}") from None


def _text(key: str, text: Any) -> str:
    if not isinstance(text, str) or len(text) > TEXT_MAX or not text.isprintable():
        raise HTTPException(400, f"{key} has at most {TEXT_MAX} printable characters")
    return text


def _number(key: str, value: Any) -> float | int | None:
    """A number as JSON or a query has it. Raises ValueError."""
    if value is None:
        return None
    if isinstance(value, str) and len(value) <= 22:
        value = json.loads(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 60:
        raise ValueError(f"{key} is a number")
    return value


async def _none() -> AsyncIterator[bytes]:
    return
    yield b""


async def _blocks(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 1 << 18):
        yield content[start : start + (1 << 18)]
