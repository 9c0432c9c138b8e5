"""haproxy as a balancer that checks its server over SMTP, behind a PROXY version 2 header that says LOCAL."""

from __future__ import annotations

import csv
import shutil
import socket

from tests.support.process import Process, binary, free_port, listens, new_directory


class CheckingHaproxy:
    """Checks a server port twice a second; `check` is what the last check came to, such as ``L7OK`` or ``L7TOUT``."""

    def __init__(self, server_port: int, *, timeout: str) -> None:
        self.port = free_port()
        self.home = new_directory("checker")
        self._stats = self.home / "stats"
        config = self.home / "haproxy.cfg"
        config.write_text(
            f"global\n  stats socket {self._stats}\n"
            f"defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n"
            f"  timeout check {timeout}\n"
            f"frontend mail\n  bind 127.0.0.1:{self.port}\n  default_backend gatepost\n"
            f"backend gatepost\n  option smtpchk EHLO checker.test\n"
            f"  server gatepost 127.0.0.1:{server_port} send-proxy-v2 check check-send-proxy inter 500ms\n"
        )
        self._process = Process([binary("haproxy"), "-db", "-f", str(config)], self.home / "log")
        self._process.wait_ready(lambda: listens(self.port))

    @property
    def check(self) -> str:
        """The last check's result, empty before the first one."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(self._stats))
            sock.sendall(b"show stat\n")
            said = b""
            while block := sock.recv(65536):
                said += block
        rows = csv.DictReader(said.decode().removeprefix("# ").splitlines())
        (row,) = [row for row in rows if (row["pxname"], row["svname"]) == ("gatepost", "gatepost")]
        # A star in front says that a check is under way.
        return row["check_status"].removeprefix("* ")

    def stop(self) -> None:
        self._process.stop()
        shutil.rmtree(self.home, ignore_errors=True)
