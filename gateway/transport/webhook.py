"""The HTTP transport: each message is a POST to a URL.

The host's addresses come from our own DNS. The connection goes to the address, and the certificate must be for the
name. No proxy of the environment is used and no redirect is followed: the message goes where the configuration says.

*Promises*: delivered is only what a 2xx answered after the whole request was sent.

*Fails by*: deferrals: `Fault.CONNECT` when no connection was to be had, else `Fault.PEER` or, for what is wrong on
our side, `Fault.OURS`.

*RFCs*: 9110 (HTTP), 8996 (nothing below TLS 1.2).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence
from typing import Final

import httpx

from gateway.mail.envelope import Recipient
from gateway.mail.message import Content
from gateway.mail.reply import Reply
from gateway.sdk.services import Clock, Dns
from gateway.transport.hosts import Unreachable, addresses
from gateway.transport.options import SmtpOptions, WebhookOptions
from gateway.transport.posting import Posting, compose, judge
from gateway.transport.storage import in_thread
from gateway.transport.transport import Delivery, Fault, Outcome, Result, keeping

KEPT: Final = 4096
"""Octets of a response that are read."""
_TOKEN_OCTETS: Final = 4096
_CONNECT: Final = 30.0


class WebhookTransport:
    """Implements `gateway.transport.transport.Transport` for `Kind.HTTP`."""

    def __init__(self, options: WebhookOptions, smtp: SmtpOptions, dns: Dns, clock: Clock) -> None:
        self._options = options
        self._url = httpx.URL(options.url)
        self._host = self._url.raw_host.decode("ascii")
        self._idle = smtp.max_idle
        self._most_addresses = smtp.max_addresses
        self._dns = dns
        self._clock = clock
        self._client: httpx.AsyncClient | None = None
        self._users = 0
        self._closing = False

    async def deliver(self, delivery: Delivery) -> list[Outcome]:
        """Attempt it once, request by request; see `gateway.transport.transport.Transport`."""
        outcomes: list[Outcome] = []
        at_once = self._options.recipients_per_request
        self._users += 1
        try:
            with keeping(outcomes):
                for start in range(0, len(delivery.recipients), at_once):
                    some = delivery.recipients[start : start + at_once]
                    outcomes += [await self._post(delivery, some)] * len(some)
        finally:
            self._users -= 1
            if self._closing and not self._users:
                await self._close()
        return outcomes

    async def close(self) -> None:
        """Close the connections that nobody uses; the last delivery closes its own."""
        self._closing = True
        if not self._users:
            await self._close()

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _post(self, delivery: Delivery, recipients: Sequence[Recipient]) -> Outcome:
        try:
            token = await in_thread(_read_token, self._options.token_file) if self._options.token_file else ""
            if self._client is None:
                context = await in_thread(_context, self._options.tls_ca)
                self._client = self._client or _client(context, self._idle)
        except (OSError, ValueError) as error:
            return self._deferred("3.5", str(error), Fault.OURS)
        posting = compose(delivery, recipients, self._options.format, token)
        try:
            async with asyncio.timeout(self._options.timeout):
                return await self._try_addresses(delivery.content, posting)
        except TimeoutError:
            return self._deferred("4.2", "no response in time", Fault.PEER)

    async def _try_addresses(self, content: Content, posting: Posting) -> Outcome:
        found = await addresses(self._host, self._dns, configured=True)
        if isinstance(found, Unreachable):
            return Outcome(Result.DEFERRED, found.reply, self._host, fault=Fault.CONNECT)
        detail, problem = "4.1", ""
        for address in found[: self._most_addresses]:
            sent = _Sent(posting, content)
            try:
                return await self._request(address, posting, sent)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                detail = "7.5" if _is_tls(error) else "4.1"
                problem = f"[{address}]: {_say(error)}"
            except httpx.HTTPError as error:
                return self._deferred("4.2", f"the connection was lost: {_say(error)}", Fault.PEER)
        return self._deferred(detail, problem, Fault.CONNECT)

    async def _request(self, address: str, posting: Posting, sent: _Sent) -> Outcome:
        assert self._client is not None
        request = self._client.build_request(
            "POST",
            self._url.copy_with(host=address),
            headers={"Host": self._url.netloc.decode("ascii"), **posting.headers},
            content=sent.blocks(),
            extensions={"sni_hostname": self._host},
        )
        # A request of a client is fully timed by us; a connection is tried for a while only, since there may be others.
        request.extensions["timeout"] = {"connect": _CONNECT, "read": None, "write": None, "pool": None}
        response = await self._client.send(request, stream=True)
        try:
            text = await _beginning(response)
            if response.is_success and not sent.all:
                return self._deferred("5.0", "it answered before it had the whole message", Fault.PEER)
            retry_after = response.headers.get("retry-after", "")
            outcome = judge(response.status_code, text, retry_after, self._clock.now(), self._host)
        finally:
            await response.aclose()
        return outcome

    def _deferred(self, detail: str, problem: str, fault: Fault) -> Outcome:
        return Outcome(Result.DEFERRED, Reply(451, detail, f"{self._host}: {problem}"), self._host, fault=fault)


class _Sent:
    """The body on its way; `all` says that all of it was taken."""

    def __init__(self, posting: Posting, content: Content) -> None:
        self.all = False
        self._posting = posting
        self._content = content

    async def blocks(self) -> AsyncIterator[bytes]:
        async for block in self._posting.body(self._content):
            yield block
        self.all = True


def _client(context: ssl.SSLContext, idle: float) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=idle)
    return httpx.AsyncClient(verify=context, trust_env=False, follow_redirects=False, limits=limits, timeout=None)


def _context(ca_file: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise OSError(f"the CA file cannot be used: {error.strerror or error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _read_token(file: str) -> str:
    """The first line. Raises OSError or ValueError that do not show it."""
    try:
        with open(file, "rb") as opened:
            token = opened.read(_TOKEN_OCTETS).split(b"\n", 1)[0].strip()
    except OSError as error:
        raise OSError(f"the token file cannot be read: {error.strerror}") from error
    if not token or not all(0x21 <= octet <= 0x7E for octet in token):
        raise ValueError("the first line of the token file is no token")
    return token.decode("ascii")


async def _beginning(response: httpx.Response) -> bytes:
    """The first `KEPT` octets of a response; what is wrong with the rest does not matter."""
    kept = b""
    with contextlib.suppress(httpx.HTTPError):
        async for block in response.aiter_raw():
            kept += block[: KEPT - len(kept)]
            if len(kept) >= KEPT:
                break
    return kept


def _is_tls(error: BaseException | None) -> bool:
    """Whether the handshake failed, most likely by the certificate."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _say(error: Exception) -> str:
    """An exception as one short line for the record."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
