"""Other implementations of SRS: postsrsd (libsrs2) as Postfix asks it, and the command of Mail::SRS."""

from __future__ import annotations

import shutil
import socket
import subprocess

from tests.support.process import Process, binary, free_port, listens, new_directory


class Postsrsd:
    """A postsrsd for one domain, with one secret."""

    def __init__(self, domain: str, secret: str) -> None:
        self.ports = {"forward": free_port(), "reverse": free_port()}
        self.home = new_directory("postsrsd")
        secrets = self.home / "secrets"
        secrets.write_text(f"{secret}\n")
        secrets.chmod(0o600)
        self._process = Process(
            [
                binary("postsrsd"),
                f"-s{secrets}",
                f"-d{domain}",
                f"-f{self.ports['forward']}",
                f"-r{self.ports['reverse']}",
                "-4",
            ],
            self.home / "log",
        )
        self._process.wait_ready(lambda: all(map(listens, self.ports.values())))

    def _ask(self, way: str, address: str) -> str:
        with socket.create_connection(("127.0.0.1", self.ports[way]), timeout=30) as sock:
            sock.sendall(f"get {address}\n".encode())
            code, _, text = sock.makefile("r", encoding="ascii", newline="\n").readline().strip().partition(" ")
        return text if code == "200" else ""

    def forward(self, address: str) -> str:
        """The rewritten address; empty when it has none."""
        return self._ask("forward", address)

    def reverse(self, address: str) -> str:
        """The address inside; empty when it believes nothing of it."""
        return self._ask("reverse", address)

    def stop(self) -> None:
        self._process.stop()
        shutil.rmtree(self.home, ignore_errors=True)


def mail_srs(secret: str, *arguments: str) -> str:
    """What the command of Mail::SRS prints; empty when it refuses."""
    argv = [binary("srs"), "--secret", secret, *arguments]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60).stdout.strip()
