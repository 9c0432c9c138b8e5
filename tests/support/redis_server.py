"""A real redis-server, and a wire to it that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from pathlib import Path
from types import TracebackType

from redis import Redis

from gateway.services.redis_options import RedisOptions, parse_url
from tests.support.process import Process, binary, free_port, new_directory
from tests.support.servers import Certificate


class RedisServer:
    """redis-server on a port of its own, with `password` if one is given; with a certificate, TLS on `tls_port`."""

    def __init__(self, *, password: str = "", certificate: Certificate | None = None, save: bool = False) -> None:
        self.home = new_directory("redis")
        self.port, self.tls_port = free_port(), free_port()
        self._password = password
        # The data outlives a kill where a test wants that.
        kept = ["--appendonly", "yes", "--appendfsync", "always"] if save else ["--appendonly", "no"]
        self._options = ["--save", "", *kept, "--dir", str(self.home)]
        if password:
            self._options += ["--requirepass", password]
        if certificate is not None:
            files = ["--tls-cert-file", str(certificate.certificate), "--tls-key-file", str(certificate.key)]
            ca = ["--tls-ca-cert-file", str(certificate.certificate), "--tls-auth-clients", "optional"]
            self._options += ["--tls-port", str(self.tls_port), *files, *ca]
        self.start()

    def start(self) -> None:
        """Start it (again)."""
        argv = [binary("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1", *self._options]
        self._process = Process(argv, self.home / "log")
        self._process.wait_ready(self._answers)

    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
            sock.sendall(b"PING\r\n")
            return sock.recv(100).startswith((b"+PONG", b"-NOAUTH"))

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def options(self, **more: object) -> RedisOptions:
        """To reach it."""
        return RedisOptions(parse_url(self.url), **more)  # type: ignore[arg-type]  # its own fields

    def client(self) -> Redis:
        """Another client of it, to look at the keys and to spoil them."""
        return Redis(port=self.port, password=self._password or None, protocol=2)

    def kill(self) -> None:
        """SIGKILL, by its own process id."""
        self._process.kill()

    def hung(self) -> contextlib.AbstractContextManager[None]:
        """Inside the block the kernel takes connections for it, and nobody answers."""
        return self._process.hung()

    @property
    def log(self) -> Path:
        return self.home / "log"

    def stop(self) -> None:
        self._process.stop()
        shutil.rmtree(self.home, ignore_errors=True)


class Wire:
    """A port of its own that leads to the server until it is cut; all on the event loop."""

    def __init__(self, port: int) -> None:
        self.port = free_port()
        self.connections = 0
        self._target = port
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def mend(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._join, "127.0.0.1", self.port)

    async def cut(self) -> None:
        """Whoever connects is refused, and what is connected is no more."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        await server.wait_closed()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        back, forth = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, forth]
        await asyncio.gather(_pump(reader, forth), _pump(back, writer))

    async def __aenter__(self) -> Wire:
        await self.mend()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cut()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # The end of the event loop may be the end of it.
    with contextlib.suppress(OSError, asyncio.CancelledError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
