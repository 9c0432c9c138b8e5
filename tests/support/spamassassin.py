"""spamd with the packaged rules, three of its own, and nothing that asks the network."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from tests.support.process import Process, binary, free_port, new_directory
from tests.support.scanner import Scanner

# In two pieces, so that no filter finds it here.
GTUBE = b"XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-" + b"UBE-TEST-EMAIL*C.34X"

_RULES = """\
skip_rbl_checks 1
use_bayes 0
dns_available no
required_score 5
report_safe 0
rewrite_header Subject ***SPAM***
allow_user_rules 0
header GP_SIX Subject =~ /six-points/
describe GP_SIX The subject is worth six points
score GP_SIX 6
header GP_TWELVE Subject =~ /twelve-points/
score GP_TWELVE 12
header GP_RELAY X-Spam-Relays-Untrusted =~ /ip=198\\.51\\.100\\.7 rdns=\\S* helo=relay\\.sender\\.test /
score GP_RELAY 6
"""


class Spamd(Scanner):
    """One spamd with two children. Subjects with ``six-points`` and ``twelve-points`` score that much (and some)."""

    def __init__(self, *options: str, port: int = 0, rules: str = "") -> None:
        self.port = port or free_port()
        self.home = new_directory("spamd")
        site, home = self.home / "rules", self.home / "home"
        site.mkdir()
        home.mkdir()
        for source in Path("/etc/spamassassin").glob("*.pre"):
            shutil.copy(source, site / source.name)
        (site / "local.cf").write_text(_RULES + rules)
        self._argv = [binary("spamd"), "-L", "-i", "127.0.0.1", "-p", str(self.port), "-H", str(home)]
        self._argv += [f"--siteconfigpath={site}", "-s", "stderr", "-m", "2", "--min-children=1", *options]
        if os.getuid() == 0:
            shutil.chown(home, "debian-spamd")
            self._argv += ["-u", "debian-spamd"]
        self.start()

    def start(self) -> None:
        """Start it (again), on the same port."""
        self._process = Process(self._argv, self.home / "log")
        self._process.wait_ready(self._answers)

    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as sock:
            sock.sendall(b"PING SPAMC/1.2\r\n\r\n")
            return sock.recv(512).rstrip().endswith(b"PONG")
