"""Requests to rspamd over HTTP, on connections that are kept for the next message."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import httpx

from gateway.sdk import Content, Dns, Endpoint, find_addresses
from plugins.rspamd.reply import REPLY_OCTETS, RspamdError

_CONNECTIONS: Final = 100
_KEPT: Final = 20
_KEPT_SECONDS: Final = 10.0
_UNFIT: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

Fields = Sequence[tuple[str, str]]


class Client:
    """Where rspamd listens. The entry's timeout is the only limit of time; a request that is called off is hung up."""

    def __init__(self, endpoint: Endpoint, dns: Dns) -> None:
        self._endpoint = endpoint
        self._dns = dns
        limits = httpx.Limits(
            max_connections=_CONNECTIONS, max_keepalive_connections=_KEPT, keepalive_expiry=_KEPT_SECONDS
        )
        # Nothing here speaks TLS, so no authorities need to be read; and no proxy may stand between.
        transport = httpx.AsyncHTTPTransport(verify=False, trust_env=False, limits=limits, uds=endpoint.path or None)
        self._http = httpx.AsyncClient(
            transport=transport, timeout=None, trust_env=False, headers={"Accept-Encoding": "identity"}
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def check(self, fields: Fields, content: Content) -> bytes:
        """The body of rspamd's answer. Raises OSError when there is none, or an error.

        `fields` are those of the request that say what is known of the message.
        """
        endpoint = self._endpoint
        addresses = [""] if endpoint.path else await find_addresses(endpoint.host, self._dns)
        trouble: httpx.HTTPError | None = None
        for address in addresses:
            try:
                return await self._ask(address, fields, content)
            except httpx.ConnectError as error:
                trouble = error
            except httpx.HTTPError as error:
                trouble = error
                break
        raise RspamdError(f"no answer from rspamd: {type(trouble).__name__} {trouble}") from trouble

    async def _ask(self, address: str, fields: Fields, content: Content) -> bytes:
        authority = str(Endpoint(address, self._endpoint.port)) if address else "localhost"
        named = "localhost" if self._endpoint.path else str(self._endpoint)
        headers = [("Host", named), ("Content-Length", str(content.size)), *fields]
        octets = [(name.encode("ascii"), _UNFIT.sub("?", value).strip().encode()) for name, value in headers]
        request = self._http.build_request(
            "POST", f"http://{authority}/checkv2", headers=octets, content=content.blocks()
        )
        response = await self._http.send(request, stream=True)
        try:
            body = await _read(response)
        finally:
            await response.aclose()
        if response.status_code != httpx.codes.OK:
            raise RspamdError(f"rspamd says {response.status_code}: {body[:200]!r}")
        return body


async def _read(response: httpx.Response) -> bytes:
    """The body as it came; compressed it would have no bounds, and nobody has asked for that."""
    body = bytearray()
    async for block in response.aiter_raw():
        body += block
        if len(body) > REPLY_OCTETS:
            raise RspamdError(f"rspamd's reply is longer than {REPLY_OCTETS} octets")
    return bytes(body)
