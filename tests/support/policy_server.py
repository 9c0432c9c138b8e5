"""A policy server that writes down what it is asked, and answers or misbehaves as a test tells it to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from tests.support.process import free_port


class Trouble(StrEnum):
    """How it misbehaves instead of answering."""

    HANGS = "it hangs"
    DRIPS = "it drips its answer"
    CLOSES = "it closes without an answer"
    CUTS = "it closes in the middle of its answer"
    GARBAGE = "it answers garbage"
    BINARY = "it answers octets that are no text"
    NO_ACTION = "it answers without an action"
    UNKNOWN = "it answers an action that nobody knows"
    TWICE = "it answers twice"
    ENDLESS = "its answer does not end"


_SAYS = {
    Trouble.GARBAGE: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    Trouble.BINARY: b"action=\xff\xfe\x00\n\n",
    Trouble.NO_ACTION: b"status=fine\n\n",
    Trouble.UNKNOWN: b"action=maybe tomorrow\n\n",
    Trouble.TWICE: b"action=DUNNO\n\naction=DUNNO\n\n",
}

Answer = str | Trouble


@dataclass(frozen=True)
class Request:
    """One request: its attributes in order, and the number of the connection that it came over."""

    attributes: tuple[tuple[str, str], ...]
    connection: int

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.attributes]

    def __getitem__(self, name: str) -> str:
        return dict(self.attributes)[name]


class PolicyServer:
    """Listens on a port of its own; `answer` says what each request gets."""

    def __init__(
        self, answer: Callable[[Request], Answer] = lambda request: "DUNNO", *, per_connection: int = 0
    ) -> None:
        """`per_connection` is after how many answers it closes a connection; 0 means never."""
        self.port = free_port()
        self.answer = answer
        self.requests: list[Request] = []
        self.connections = 0
        self._per_connection = per_connection
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._ended = threading.Event()
        self.start()

    @property
    def address(self) -> str:
        return f"inet:127.0.0.1:{self.port}"

    def always(self, answer: Answer) -> None:
        """Give this answer from now on."""
        self.answer = lambda request: answer

    def take(self) -> list[Request]:
        """The requests since the last call."""
        with self._lock:
            taken, self.requests = self.requests, []
            return taken

    def start(self) -> None:
        """Listen (again)."""
        self._ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=100)
        threading.Thread(target=self._accept, args=(self._listener, self._ended), daemon=True).start()

    def stop(self) -> None:
        """Close the port and every connection."""
        self._ended.set()
        # A thread that waits in accept keeps the port open until it is woken.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()

    def hang_up(self) -> None:
        """Close every connection, and go on listening."""
        with self._lock:
            for sock in self._open:
                _end(sock)

    def _accept(self, listener: socket.socket, ended: threading.Event) -> None:
        while not ended.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                number = self.connections
                self._open.add(sock)
            threading.Thread(target=self._serve, args=(sock, number, ended), daemon=True).start()

    def _serve(self, sock: socket.socket, number: int, ended: threading.Event) -> None:
        try:
            with sock, sock.makefile("rb") as lines:
                self._talk(sock, lines, number, ended)
        except OSError:
            # The other side has gone, or `stop` has ended us.
            return
        finally:
            with self._lock:
                self._open.discard(sock)

    def _talk(self, sock: socket.socket, lines: Iterable[bytes], number: int, ended: threading.Event) -> None:
        answered = 0
        attributes: list[tuple[str, str]] = []
        for line in lines:
            text = line.decode().removesuffix("\n")
            if text:
                name, _, value = text.partition("=")
                attributes.append((name, value))
                continue
            request = Request(tuple(attributes), number)
            attributes = []
            answer = self.answer(request)
            with self._lock:
                self.requests.append(request)
            if isinstance(answer, Trouble):
                if not self._trouble(sock, answer, ended):
                    return
            else:
                sock.sendall(f"action={answer}\n\n".encode())
            answered += 1
            if answered == self._per_connection:
                return

    def _trouble(self, sock: socket.socket, trouble: Trouble, ended: threading.Event) -> bool:
        """Misbehave; says whether the connection goes on."""
        match trouble:
            case Trouble.CLOSES:
                return False
            case Trouble.CUTS:
                sock.sendall(b"action=DUN")
                return False
            case Trouble.HANGS:
                return sock.recv(1) != b""
            case Trouble.DRIPS:
                for octet in b"action=DUNNO\n\n":
                    if ended.wait(1.0):
                        return False
                    sock.sendall(bytes([octet]))
            case Trouble.ENDLESS:
                while not ended.is_set():
                    sock.sendall(b"x=" + b"y" * 1000 + b"\n")
            case _:
                sock.sendall(_SAYS[trouble])
        return True


def _end(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        # Its own thread was faster.
        return
