"""postgrey, asked over the Postfix policy protocol at any time one likes."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from tests.support.process import Process, binary, free_port, listens, new_directory


class Postgrey:
    """A postgrey with an empty database and without its list of clients that never wait."""

    def __init__(self, *options: str) -> None:
        self.port = free_port()
        self.home = new_directory("postgrey")
        database = self.home / "db"
        database.mkdir()
        clients, recipients = self.home / "clients", self.home / "recipients"
        clients.write_text("")
        recipients.write_text("postmaster@\nabuse@\n")
        self._argv = [
            binary("postgrey"),
            f"--inet=127.0.0.1:{self.port}",
            f"--dbdir={database}",
            f"--pidfile={self.home / 'pid'}",
            f"--whitelist-clients={clients}",
            f"--whitelist-recipients={recipients}",
            *options,
        ]
        if os.getuid() == 0:
            shutil.chown(database, "postgrey", "postgrey")
        self.start()
        self._socket = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        self._replies = self._socket.makefile("r", encoding="utf-8", newline="\n")

    def start(self) -> None:
        """Start it (again), with the database that is there."""
        # Perl must not look for modules where nobody may look.
        self._process = Process(self._argv, self.home / "log", cwd=Path("/"))
        self._process.wait_ready(lambda: listens(self.port))

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def ask(self, when: float, client: str, sender: str, recipient: str) -> str:
        """The action for one recipient of a message that comes at `when`, in seconds."""
        attributes = {
            "request": "smtpd_access_policy",
            "protocol_state": "RCPT",
            "client_address": client,
            "client_name": "unknown",
            "sender": sender,
            "recipient": recipient,
            "policy_test_time": f"{when:.0f}",
        }
        lines = "".join(f"{name}={value}\n" for name, value in attributes.items())
        self._socket.sendall(f"{lines}\n".encode())
        action = self._replies.readline().rstrip("\n")
        assert action.startswith("action="), (action, self._process.log)
        assert self._replies.readline() == "\n"
        return action.removeprefix("action=")

    def stop(self) -> None:
        self._replies.close()
        self._socket.close()
        self._process.stop()
        shutil.rmtree(self.home, ignore_errors=True)
