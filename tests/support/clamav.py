"""clamd with a database of its own: three words and the test file that every scanner knows. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket

from tests.support.process import Process, binary, free_port, new_directory
from tests.support.scanner import Scanner

# In two pieces, so that no scanner finds it here.
EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-STANDARD-" + rb"ANTIVIRUS-TEST-FILE!$H+H*"
EICAR_NAME = "Test.Eicar.UNOFFICIAL"
MARKER = b"gatepost-virus-marker"
MARKER_NAME = "Test.Marker.UNOFFICIAL"
HEURISTIC = b"gatepost-heuristic-marker"
HEURISTIC_NAME = "Heuristics.Test.Guess.UNOFFICIAL"
UNWANTED = b"gatepost-unwanted-marker"
UNWANTED_NAME = "PUA.Test.Tool.UNOFFICIAL"

_WORDS = {"Test.Marker": MARKER, "Heuristics.Test.Guess": HEURISTIC, "PUA.Test.Tool": UNWANTED}


class Clamd(Scanner):
    """One clamd on a TCP port and a unix socket of its own. `settings` are lines of clamd.conf by name."""

    def __init__(self, *, port: int = 0, **settings: str) -> None:
        self.port = port or free_port()
        self.home = new_directory("clamd")
        self.socket = self.home / "socket"
        database = self.home / "db"
        database.mkdir()
        (database / "t.hdb").write_text(f"{hashlib.md5(EICAR).hexdigest()}:{len(EICAR)}:Test.Eicar\n")
        (database / "t.ndb").write_text("".join(f"{name}:0:*:{word.hex()}\n" for name, word in _WORDS.items()))
        values = {
            "Foreground": "yes",
            "DatabaseDirectory": str(database),
            "TCPSocket": str(self.port),
            "TCPAddr": "127.0.0.1",
            "LocalSocket": str(self.socket),
            "DetectPUA": "yes",
            **settings,
        }
        if os.getuid() == 0:
            shutil.chown(self.home, "clamav")
            values["User"] = "clamav"
        self._config = self.home / "clamd.conf"
        self._config.write_text("".join(f"{name} {value}\n" for name, value in values.items()))
        self.start()

    def start(self) -> None:
        """Start it (again), on the same port."""
        self._process = Process([binary("clamd"), "-c", str(self._config)], self.home / "log")
        self._process.wait_ready(lambda: self.ask(b"PING") == b"PONG")

    def ask(self, command: bytes) -> bytes:
        """The reply to a command without data."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as sock:
            sock.sendall(b"z" + command + b"\0")
            reply = b""
            while data := sock.recv(4096):
                reply += data
        return reply.rstrip(b"\0")
