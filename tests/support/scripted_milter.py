"""A milter server that does as it is told: answers, edits, dies, hangs, talks nonsense, at any command.

It speaks the server's side of the protocol by hand, so that what it says need not be sensible, and it writes down
what it was told.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.process import free_port, wait_until

SILENT = {"L": 0x80, "C": 0x1000, "H": 0x2000, "M": 0x4000, "R": 0x8000, "T": 0x10000, "N": 0x40000, "B": 0x80000}
"""By command: the step by which a milter says that it does not answer it."""
NEVER_ANSWERED = "DAQK"


class Die:
    """Close the connection instead of an answer."""


class Hang:
    """Give no answer, and keep the connection."""


@dataclass(frozen=True)
class ThenDie:
    """Say this and close the connection."""

    said: bytes


@dataclass(frozen=True)
class Forever:
    """Say this again and again."""

    said: bytes
    seconds: float


Answer = bytes | type[Die] | type[Hang] | ThenDie | Forever | Callable[[bytes], bytes]
Script = Answer | list[Answer]


def packet(letter: str, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data) + 1) + letter.encode() + data


CONTINUE, ACCEPT, REJECT, TEMPFAIL = packet("c"), packet("a"), packet("r"), packet("t")
DISCARD, SKIP, PROGRESS, CLOSE = packet("d"), packet("s"), packet("p"), packet("f")


def reply(text: str) -> bytes:
    return packet("y", text.encode() + b"\0")


def added(name: str, value: str) -> bytes:
    return packet("h", f"{name}\0{value}\0".encode("utf-8", "surrogateescape"))


def inserted(index: int, name: str, value: str) -> bytes:
    return packet("i", struct.pack(">I", index) + f"{name}\0{value}\0".encode())


def changed(nth: int, name: str, value: str) -> bytes:
    return packet("m", struct.pack(">I", nth) + f"{name}\0{value}\0".encode())


class ScriptedMilter:
    """Answers each command with `script[letter]`, else *continue* (nothing, where `steps` promise silence).

    A list is for one command after another, its last element for all that follow. A callable is given the data.
    """

    def __init__(
        self,
        script: Mapping[str, Script] | None = None,
        *,
        version: int = 6,
        actions: int = 0x1FF,
        steps: int = 0,
        macros: bytes = b"",
        path: Path | None = None,
        port: int = 0,
    ) -> None:
        self.script: dict[str, Script] = dict(script or {})
        self.terms = (version, actions, steps)
        self.macros = macros
        self.told: list[tuple[str, bytes]] = []
        """Every command of every connection, macros too, but the options."""
        self.offered: list[tuple[int, int, int]] = []
        """What the client offered, once for each connection."""
        self.writes: list[int] = []
        """How many octets came in each read."""
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._path = path
        if path:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
        else:
            self._listener = socket.create_server(("127.0.0.1", port or free_port()))
        self._listener.listen(20)
        self.port = 0 if path else self._listener.getsockname()[1]
        self._closing = False
        self._thread(self._accept)

    @property
    def address(self) -> str:
        return f"unix:{self._path}" if self._path else f"127.0.0.1:{self.port}"

    @property
    def letters(self) -> str:
        """The commands in order, without macros."""
        with self._lock:
            return "".join(letter for letter, _ in self.told if letter != "D")

    @property
    def connections(self) -> int:
        return len(self.offered)

    def data(self, letter: str) -> list[bytes]:
        """What came with each command of this letter."""
        with self._lock:
            return [data for told, data in self.told if told == letter]

    def macros_of(self, letter: str) -> dict[str, str]:
        """The macros that came last before a command."""
        found = [data[1:] for data in self.data("D") if data[:1] == letter.encode()]
        parts = found[-1].split(b"\0")[:-1] if found else []
        return {name.decode(): value.decode() for name, value in zip(parts[::2], parts[1::2], strict=True)}

    def wait_letters(self, letters: str) -> None:
        wait_until(lambda: self.letters == letters, f"the milter was told {letters}", 10.0)

    def hang_up(self) -> None:
        """Close all connections."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()

    def __enter__(self) -> ScriptedMilter:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _thread(self, target: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=target, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._thread(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)
        buffer = b""
        try:
            while data := connection.recv(1 << 20):
                self.writes.append(len(data))
                buffer += data
                while len(buffer) >= 4 and len(buffer) >= 4 + (size := struct.unpack_from(">I", buffer)[0]):
                    command, buffer = buffer[4 : 4 + size], buffer[4 + size :]
                    if not self._answer(connection, chr(command[0]), command[1:]):
                        return
        except OSError:
            return
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _answer(self, connection: socket.socket, letter: str, data: bytes) -> bool:
        """Write the answer down and give it; says whether the connection stays."""
        if letter == "O":
            self.offered.append(struct.unpack(">III", data))
        else:
            with self._lock:
                self.told.append((letter, data))
        script = self._scripted(letter)
        if script is Die:
            return False
        if isinstance(script, ThenDie):
            connection.sendall(script.said)
            return False
        if isinstance(script, Forever):
            while not self._closing:
                connection.sendall(script.said)
                time.sleep(script.seconds)  # noqa: TID251 - a thread of its own
            return False
        if isinstance(script, bytes):
            connection.sendall(script)
        elif script is not None and not isinstance(script, type):
            connection.sendall(script(data))
        return letter != "Q"

    def _scripted(self, letter: str) -> Answer | None:
        script = self.script.get(letter)
        if isinstance(script, list):
            return script.pop(0) if len(script) > 1 else script[0]
        if script is not None:
            return script
        if letter == "O":
            return packet("O", struct.pack(">III", *self.terms) + self.macros)
        silent = letter in NEVER_ANSWERED or self.terms[2] & SILENT.get(letter, 0)
        return None if silent else CONTINUE
