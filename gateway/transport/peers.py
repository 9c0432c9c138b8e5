"""Other gateways of ours, to which mail is handed over: who they are, and one offer at a time.

A peer is known by the id of its spool, wherever that is served from just now. All that one says is bounded and
believed only when it names the spool, the message and the offer that were meant.

*Promises*: no redirect, no proxy of the environment, a bounded answer, a bounded time. `Told.NOT_SENT` is said only
when no connection was made. `Told.TAKEN` and `Told.REFUSED` are only what the peer has said of this very offer.

*RFCs*: 9110 (HTTP).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import httpx

from gateway.mail.message import Content
from gateway.sdk.services import Dns
from gateway.transport.hosts import Unreachable, addresses
from gateway.transport.peer import URLS_MAX, Peer, Said, Told, check_url

PATH: Final = "/api/v1/handover"
_ADDRESSES_MAX: Final = 256
_ANSWER_OCTETS: Final = 64 << 10
_CONNECT: Final = 5.0
_LOOK: Final = 10.0
_ANSWER: Final = 60.0
_OCTETS_PER_SECOND: Final = 256 << 10
_MISDIRECTED: Final = 5
_SPOOL: Final = re.compile(r"[0-9a-f]{32}\Z")
_NAME: Final = re.compile(r"[A-Za-z0-9.:_\-]{1,255}\Z")


class Peers:
    """The peers that some URLs lead to; a name that has several addresses leads to as many peers."""

    def __init__(self, urls: Sequence[str], token: str, dns: Dns) -> None:
        self._dns = dns
        self._urls = [check_url(url) for url in urls][:URLS_MAX]
        headers = {"User-Agent": "Gatepost"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._client = httpx.AsyncClient(
            headers=headers,
            trust_env=False,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=3.0),
            timeout=httpx.Timeout(_ANSWER, connect=_CONNECT),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def find(self) -> tuple[list[Peer], list[str]]:
        """Who is there now, each once; and what is wrong with the other addresses."""
        places: dict[tuple[str, str], None] = {}
        problems = []
        for url in self._urls:
            found = await self._places(url)
            if isinstance(found, Unreachable):
                problems.append(f"{url}: {found.reply.text}")
            else:
                places |= dict.fromkeys(found)
        seen = await asyncio.gather(*(self.look(url, host) for url, host in list(places)[:_ADDRESSES_MAX]))
        peers = {peer.spool: peer for peer in seen if isinstance(peer, Peer)}
        return list(peers.values()), problems + [one for one in seen if isinstance(one, str)]

    async def _places(self, url: str) -> list[tuple[str, str]] | Unreachable:
        """The addresses that a URL leads to, each as a URL, with the host that the first one names."""
        parsed = httpx.URL(url)
        found = await addresses(parsed.host, self._dns, configured=True)
        if isinstance(found, Unreachable):
            return found
        host = parsed.netloc.decode("ascii")
        return [(str(parsed.copy_with(host=address)).rstrip("/"), host) for address in found]

    async def look(self, url: str, host: str) -> Peer | str:
        """Who is at an address; a text says what is wrong there."""
        try:
            async with asyncio.timeout(_LOOK):
                status, answer = await self._ask("GET", url, host, PATH)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            return f"{url}: {_say(error)}"
        spool, name, ready = answer.get("spool"), answer.get("name"), answer.get("ready")
        good = isinstance(spool, str) and isinstance(name, str) and _SPOOL.match(spool) and _NAME.match(name)
        if status != 200 or not good or not isinstance(ready, bool):
            return f"{url}: {_refusal(status, answer)}"
        return Peer(str(spool), str(name), url, host, ready, _text(answer.get("why")))

    async def offer(self, peer: Peer, id: str, offer: str, ours: str, description: bytes, content: Content) -> Said:
        """Send a message, once. `ours` is the id of our own spool. Raises what reading the content raises."""
        headers = {
            "Content-Type": "application/vnd.gatepost.message",
            "Content-Length": str(len(description) + 1 + content.size),
            "Gatepost-Spool": ours,
        }
        seconds = _ANSWER + content.size / _OCTETS_PER_SECOND
        try:
            async with asyncio.timeout(seconds):
                body = _body(description, content)
                status, answer = await self._ask("PUT", peer.url, peer.host, _path(peer, id, offer), headers, body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return Said(Told.NOT_SENT, _say(error))
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            return Said(Told.UNKNOWN, _say(error))
        said = _about(status, answer, peer, id, offer)
        if said.told is Told.UNKNOWN and status in (409, 413, 422):
            return Said(Told.AMISS, said.why)
        return said

    async def withdraw(self, peer: Peer, id: str, offer: str, ours: str) -> Said:
        """Have the peer say what came of an offer, and take it no more if it has not."""
        said = Said(Told.UNKNOWN)
        # Behind one address there may be several, of which another one may answer.
        for _ in range(_MISDIRECTED):
            try:
                async with asyncio.timeout(_ANSWER):
                    status, answer = await self._ask(
                        "DELETE", peer.url, peer.host, _path(peer, id, offer), {"Gatepost-Spool": ours}
                    )
            except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
                return Said(Told.UNKNOWN, _say(error))
            said = _about(status, answer, peer, id, offer)
            if status != 421:
                break
        return said

    async def _ask(
        self,
        method: str,
        url: str,
        host: str,
        path: str,
        headers: dict[str, str] | None = None,
        body: AsyncIterator[bytes] | None = None,
    ) -> tuple[int, dict[str, Any]]:
        request = self._client.build_request(
            method,
            url + path,
            headers={"Host": host, **(headers or {})},
            content=body,
            extensions={"sni_hostname": httpx.URL(f"http://{host}").host},
        )
        response = await self._client.send(request, stream=True)
        try:
            got = b""
            async for block in response.aiter_raw():
                got += block
                if len(got) > _ANSWER_OCTETS:
                    return response.status_code, {}
            return response.status_code, _object(got)
        finally:
            await response.aclose()


async def _body(description: bytes, content: Content) -> AsyncIterator[bytes]:
    yield description + b"\n"
    async for block in content.blocks():
        yield block


def _path(peer: Peer, id: str, offer: str) -> str:
    return f"{PATH}/{peer.spool}/{id}/{offer}"


def _about(status: int, answer: dict[str, Any], peer: Peer, id: str, offer: str) -> Said:
    """What an answer says of the offer that it was asked about; anything else says nothing."""
    named = (answer.get("spool"), answer.get("id"), answer.get("offer")) == (peer.spool, id, offer)
    if named and status in (200, 201) and answer.get("result") == "taken":
        return Said(Told.TAKEN)
    if named and status in (200, 410) and answer.get("result") == "refused":
        return Said(Told.REFUSED)
    return Said(Told.UNKNOWN, _refusal(status, answer))


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _refusal(status: int, answer: dict[str, Any]) -> str:
    said = _text(answer.get("error")) or "no answer of a Gatepost that takes mail over"
    return f"status {status}: {said}"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    return "".join(c if c.isprintable() else "?" for c in value[:300])


def _say(error: BaseException) -> str:
    return _text(str(error)) or type(error).__name__
