"""A server that does what a test says with each connection, in threads of its own."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from tests.support.process import free_port

Serve = Callable[[socket.socket], None]


class Scripted:
    """Listens on a port of its own (or on `path`), and gives each connection to `serve`, then closes it."""

    def __init__(self, serve: Serve, *, port: int = 0, path: Path | None = None) -> None:
        self._serve = serve
        self.connections = 0
        if path is None:
            self.port = port or free_port()
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=100)
            self.endpoint = f"127.0.0.1:{self.port}"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self._listener.listen(100)
            self.endpoint = f"unix:{path}"
        self.done = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self.done.is_set():
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._one, args=(link,))
            self._threads.append(thread)
            thread.start()

    def _one(self, link: socket.socket) -> None:
        with link, contextlib.suppress(OSError):
            link.settimeout(20)
            self._serve(link)

    def stop(self) -> None:
        self.done.set()
        # This wakes whoever waits in accept; closing alone does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
        self._listener.close()

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def read_to(link: socket.socket, end: bytes) -> bytes:
    """Octets up to and with `end`, one at a time so that nothing behind it is taken. Raises EOFError without it."""
    out = b""
    while not out.endswith(end):
        if not (data := link.recv(1)):
            raise EOFError(out)
        out += data
    return out


def read_exactly(link: socket.socket, count: int) -> bytes:
    """So many octets. Raises EOFError when there are fewer."""
    out = b""
    while len(out) < count:
        if not (data := link.recv(count - len(out))):
            raise EOFError(out)
        out += data
    return out


def until_closed(link: socket.socket) -> None:
    """Read whatever comes until the other side closes."""
    while link.recv(1 << 16):
        pass


def read_instream(link: socket.socket) -> bytes:
    """What clamd reads: the command, the chunks, the end; gives the content."""
    assert read_to(link, b"\0") == b"zINSTREAM\0"
    content = b""
    while size := struct.unpack(">I", read_exactly(link, 4))[0]:
        content += read_exactly(link, size)
    return content


def read_spamc(link: socket.socket) -> tuple[str, dict[str, str], bytes]:
    """What spamd reads: the request line, its fields, the message."""
    first, *lines = read_to(link, b"\r\n\r\n").decode().splitlines()[:-1]
    fields = dict(line.split(": ", 1) for line in lines)
    return first, fields, read_exactly(link, int(fields["Content-length"]))


def read_http(link: socket.socket) -> tuple[str, list[tuple[str, str]], bytes]:
    """What an HTTP server reads: the request line, its fields, the body."""
    first, *lines = read_to(link, b"\r\n\r\n").decode().splitlines()[:-1]
    fields = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    size = next(int(value) for name, value in fields if name.lower() == "content-length")
    return first, fields, read_exactly(link, size)
