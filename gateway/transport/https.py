"""HTTPS to hosts that other domains name: to addresses that our own DNS gives, with the certificate checked first.

*Promises*: no redirect, no proxy of the environment, no cache, a bounded answer, a bounded time.

*Fails by*: `HttpsFailed`.

*RFCs*: 9110 (HTTP), 8996 (nothing below TLS 1.2).
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import httpx

from gateway.sdk.services import Dns
from gateway.transport.hosts import Unreachable, addresses
from gateway.transport.rule import Level
from gateway.transport.tls import make_context

SECONDS: Final = 60.0
_CONNECT: Final = 10.0
_ADDRESSES: Final = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """What the host said: `kind` is the media type without parameters, `body` is cut off after the limit plus one."""

    status: int
    kind: str
    body: bytes


@dataclass(frozen=True, slots=True)
class HttpsFailed:
    """No answer; `certificate` says that it is the host's certificate that was not good."""

    problem: str
    certificate: bool = False


class Https:
    """A client. `public_only` leaves out hosts whose addresses are not public ones: a stranger says where it leads."""

    def __init__(self, dns: Dns, *, ca_file: str = "", seconds: float = SECONDS, public_only: bool = False) -> None:
        self._dns = dns
        self._ca_file = ca_file
        self._seconds = seconds
        self._public_only = public_only
        self._client: httpx.AsyncClient | None = None

    async def close(self) -> None:
        """Close what is open."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def ask(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes = b"", limit: int = 0
    ) -> Answer | HttpsFailed:
        """One request; `limit` octets of the answer are wanted. Does not raise."""
        try:
            async with asyncio.timeout(self._seconds):
                return await self._try_addresses(method, httpx.URL(url), headers, content, limit)
        except TimeoutError:
            return HttpsFailed("no response in time")
        except httpx.InvalidURL:
            return HttpsFailed("it is no URL")
        except OSError as error:
            return HttpsFailed(f"the CAs cannot be read: {error.strerror or error}")

    async def _try_addresses(
        self, method: str, url: httpx.URL, headers: Mapping[str, str], content: bytes, limit: int
    ) -> Answer | HttpsFailed:
        host = url.raw_host.decode("ascii")
        found = await addresses(host, self._dns, configured=False)
        if isinstance(found, Unreachable):
            return HttpsFailed(found.reply.text)
        if self._client is None:
            context = await asyncio.to_thread(make_context, Level.CA, self._ca_file)
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
            self._client = self._client or httpx.AsyncClient(
                verify=context, trust_env=False, follow_redirects=False, limits=limits, timeout=None
            )
        failed = HttpsFailed("no address to connect to")
        for address in found[:_ADDRESSES]:
            if self._public_only and not ipaddress.ip_address(address).is_global:
                failed = HttpsFailed(f"[{address}] is no public address")
                continue
            request = self._client.build_request(
                method,
                url.copy_with(host=address),
                headers={"Host": url.netloc.decode("ascii"), "User-Agent": "Gatepost", **headers},
                content=content,
                extensions={"sni_hostname": host},
            )
            request.extensions["timeout"] = {"connect": _CONNECT, "read": None, "write": None, "pool": None}
            try:
                return await _send(self._client, request, limit)
            except httpx.HTTPError as error:
                failed = HttpsFailed(f"[{address}]: {_say(error)}", _is_certificate(error))
        return failed


async def _send(client: httpx.AsyncClient, request: httpx.Request, limit: int) -> Answer:
    response = await client.send(request, stream=True)
    try:
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = b""
        if limit:
            async for block in response.aiter_raw():
                body += block[: limit + 1 - len(body)]
                if len(body) > limit:
                    break
        return Answer(response.status_code, kind, body)
    finally:
        await response.aclose()


def _is_certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _say(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
