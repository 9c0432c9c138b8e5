"""The way to a Redis or Valkey server: connections, time limits, and a breaker.

*Promises*: a call ends within its time; connections, calls at once and answers are bounded. A dead server costs three
calls their time and nobody after them: from then on calls fail at once, and one task asks, at growing intervals, until
it takes writes again. Connections are made when they are needed, each with the password as it is then.

*Fails by*: `StateError`, whatever the server or the network does.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Sequence
from typing import Any, Final

import redis.asyncio
from redis._parsers import _AsyncRESP2Parser
from redis.asyncio.connection import BlockingConnectionPool, Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, InvalidResponse

from gateway.ops import log, metrics
from gateway.sdk.services import StateError
from gateway.services.redis_options import RedisOptions, password
from gateway.services.redis_scripts import PUT
from gateway.services.tasks import Tasks

FAULTS: Final = 3
"""Calls in a row without an answer, after which the server counts as down."""
FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 5.0
ANSWER_OCTETS: Final = 64 << 20
_PROBE: Final = "probe"
_PROBE_SECONDS: Final = 60
_REASON: Final = 300

_log = log.get()


class _Bounded(_AsyncRESP2Parser):
    """The library's parser, but for answers larger than any of ours: whoever sends them is no store of ours."""

    _octets = 0

    async def read_response(self, disable_decoding: bool = False) -> Any:
        self._octets = 0
        return await super().read_response(disable_decoding)

    async def _read(self, length: int) -> bytes:
        self._octets += length
        if length < 0 or self._octets > ANSWER_OCTETS:
            raise InvalidResponse("the answer is too long")
        return await super()._read(length)


class _Credentials(CredentialProvider):
    """Reads the password at each new connection, so that it may change."""

    def __init__(self, options: RedisOptions) -> None:
        self._options = options

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Not in a thread: a caller who leaves while it is read would leave a connection that nobody logs in at."""
        try:
            secret, user = password(self._options), self._options.server.user
        except (OSError, ValueError) as error:
            # Of its own kinds of errors only the library closes the connection.
            raise AuthenticationError(f"no password: {error}") from error
        return (user, secret) if user else (secret,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


class Link:
    """Runs scripts on the server. Call `start` first and `close` at the end."""

    def __init__(self, options: RedisOptions) -> None:
        self.server = str(options.server)
        self._options = options
        self._client = redis.asyncio.Redis.from_pool(_pool(options))
        self._scripts: dict[str, Any] = {}
        self._tasks = Tasks()
        self._up = asyncio.Event()
        self._closed = True
        self._faults = 0
        self._reason = ""

    @property
    def up(self) -> bool:
        """Whether calls go to the server; otherwise they fail at once."""
        return self._up.is_set()

    async def wait_up(self) -> None:
        """Return as soon as the server answers."""
        await self._up.wait()

    async def start(self) -> None:
        """Ask once. A server that does not answer is down from the beginning, which is logged and no error."""
        self._closed = False
        self._up.set()
        try:
            await self._probe()
        except StateError as error:
            self._fall(str(error))

    async def close(self) -> None:
        """End calls and close all connections."""
        self._closed = True
        await self._tasks.cancel()
        if not self.up:
            metrics.STATE_DOWN.set(0)
        await self._client.aclose()
        await self._client.connection_pool.disconnect()

    async def run(self, script: str, key: str, arguments: Sequence[str | bytes], *, patience: float = 1.0) -> Any:
        """The answer of the script. `patience` is how many times the usual time it may take. Raises `StateError`."""
        if self._closed:
            raise StateError("the state store is closed")
        if not self.up:
            metrics.STATE_CALLS.labels("refused").inc()
            raise StateError(f"{self.server} is down: {self._reason}")
        try:
            answer = await self._ask(script, key, arguments, patience)
        except StateError as error:
            metrics.STATE_CALLS.labels("failed").inc()
            self._faults += 1
            if self._faults >= FAULTS and self.up:
                self._fall(str(error))
            raise
        metrics.STATE_CALLS.labels("answered").inc()
        self._faults = 0
        return answer

    async def _ask(self, text: str, key: str, arguments: Sequence[str | bytes], patience: float = 1.0) -> Any:
        script = self._scripts.get(text)
        if script is None:
            script = self._scripts[text] = self._client.register_script(text)
        seconds = self._options.timeout * patience
        try:
            with metrics.STATE_SECONDS.time():
                async with asyncio.timeout(seconds):
                    return await script(keys=[key], args=arguments)
        except TimeoutError as error:
            raise StateError(f"{self.server}: no answer in {seconds:g} s") from error
        # What a hostile answer makes of the parser is any kind of error: RecursionError, ValueError.
        except Exception as error:
            raise StateError(f"{self.server}: {_said(error)}") from error

    async def _probe(self) -> None:
        """A write: a server that is full, or a replica that only reads, is not back."""
        await self._ask(PUT, f"{self._options.prefix}:{_PROBE}", ("", b"", str(_PROBE_SECONDS)))

    def _fall(self, reason: str) -> None:
        self._up.clear()
        self._reason = reason
        metrics.STATE_DOWN.set(1)
        _log.warning("state.down", server=self.server, reason=reason)
        self._tasks.start(self._recover(), name="state.recover")

    async def _recover(self) -> None:
        loop = asyncio.get_running_loop()
        since, pause = loop.time(), FIRST_PAUSE
        while not self.up:
            # All workers of all replicas have lost it at the same moment.
            await asyncio.sleep(pause * random.uniform(0.7, 1.3))
            try:
                await self._probe()
            except StateError as error:
                self._reason = str(error)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            self._faults = 0
            self._up.set()
        metrics.STATE_DOWN.set(0)
        _log.info("state.back", server=self.server, seconds=round(loop.time() - since, 3))


def _pool(options: RedisOptions) -> BlockingConnectionPool:
    server = options.server
    kind: type[Connection] = Connection
    more: dict[str, Any] = {}
    if server.tls:
        kind = SSLConnection
        more = {
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_min_version": ssl.TLSVersion.TLSv1_2,
            "ssl_ca_certs": options.tls_ca or None,
            "ssl_certfile": options.tls_certificate or None,
            "ssl_keyfile": options.tls_key or None,
        }
    if options.password_file or options.password_env:
        more["credential_provider"] = _Credentials(options)
    return BlockingConnectionPool(
        max_connections=options.connections,
        # The time of a call is ours to keep; the library's own limits would only come on top.
        timeout=None,
        socket_timeout=None,
        socket_connect_timeout=None,
        connection_class=kind,
        parser_class=_Bounded,
        protocol=2,
        # It need not hear which library this is.
        driver_info=None,
        # A call that may have been carried out is not made again: a token would be taken twice.
        retry=Retry(NoBackoff(), 0),
        host=server.host,
        port=server.port,
        db=server.database,
        **more,
    )


def _said(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text[:_REASON])
