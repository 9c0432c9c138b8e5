"""A TCP forwarder: a server that listens on a port of its own choice is reached at port 25 of a loopback address."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
from types import TracebackType

# Another run of the tests at the same time has addresses of its own.
_hosts = itertools.count(os.getpid() % 1024 * 64 + 1)


def loopback_address() -> str:
    """An address in 127.83.0.0/16 that no other test uses: every one of them has a port 25."""
    number = next(_hosts) % (1 << 16)
    return f"127.83.{number >> 8}.{number & 255}"


class MailHost:
    """Listens at port 25 of `address` and forwards to 127.0.0.1:`port`. Needs root, as port 25 does."""

    def __init__(self, port: int) -> None:
        self.address = loopback_address()
        self.connections = 0
        self._port = port
        self._listener = socket.create_server((self.address, 25))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                server = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                client.close()
                continue
            self._open += [client, server]
            for source, target in ((client, server), (server, client)):
                thread = threading.Thread(target=_pump, args=(source, target), daemon=True)
                self._threads.append(thread)
                thread.start()

    def stop(self) -> None:
        # A blocked accept is not woken by close.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(10)

    def __enter__(self) -> MailHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
