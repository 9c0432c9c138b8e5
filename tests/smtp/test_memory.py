"""Memory of a real worker while large messages arrive: they stream to disk, however many there are."""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path

import pytest

from tests.smtp.door import HOSTNAME
from tests.support.process import wait_until

pytestmark = pytest.mark.slow

SESSIONS = 50
OCTETS = 25 << 20
ALLOWED = 100 << 20


def memory(pid: int, key: str) -> int:
    """`VmRSS` or `VmHWM` (the most it ever was) in octets."""
    match = re.search(rf"{key}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]) << 10


class Sender(threading.Thread):
    """Sends one message of `OCTETS`, and waits before its end until told to go on."""

    def __init__(self, port: int, go_on: threading.Event) -> None:
        super().__init__()
        self._port = port
        self._go_on = go_on
        self.sent = False
        self.reply = b""

    def run(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port), timeout=300) as sock:
            replies = sock.makefile("rb")
            assert replies.readline().startswith(f"220 {HOSTNAME} ".encode())
            for line in (b"HELO client.test", b"MAIL FROM:<a@sender.test>", b"RCPT TO:<b@example.org>", b"DATA"):
                sock.sendall(line + b"\r\n")
                replies.readline()
            sock.sendall(b"Subject: x\r\n\r\n")
            block = (b"x" * 998 + b"\r\n") * 256
            left = OCTETS
            while left > 0:
                sock.sendall(block)
                left -= len(block)
            self.sent = True
            self._go_on.wait()
            sock.sendall(b".\r\n")
            self.reply = replies.readline()
            sock.sendall(b"QUIT\r\n")
            replies.readline()


def test_fifty_sessions_with_25_mib_each_cost_a_worker_less_than_100_mib(gatepost, directory):
    gate = gatepost(
        workers=1,
        domains={"example.org": {"next_hop": f"maildir:{directory}/mail", "recipients": "any"}},
        spool={"path": str(directory / "spool"), "min_free": "1MiB"},
        limits={"sessions_per_client": SESSIONS},
    )
    (worker,) = gate.workers
    before = memory(worker, "VmRSS")
    go_on = threading.Event()
    senders = [Sender(gate.port, go_on) for _ in range(SESSIONS)]
    for sender in senders:
        sender.start()
    wait_until(lambda: all(sender.sent for sender in senders), "everything is sent", 240)

    def arrived() -> bool:
        files = list((directory / "spool").glob("*/content/*"))
        return len(files) == SESSIONS and sum(f.stat().st_size for f in files) > SESSIONS * (OCTETS - (2 << 20))

    wait_until(arrived, "everything is on disk", 120)
    receiving = memory(worker, "VmHWM") - before
    go_on.set()
    for sender in senders:
        sender.join(240)
        assert sender.reply.startswith(b"250 2.0.0 queued as "), sender.reply
    print(f"grew by {receiving >> 20} MiB while receiving, {(memory(worker, 'VmHWM') - before) >> 20} MiB in all")
    assert receiving < ALLOWED
    assert memory(worker, "VmHWM") - before < ALLOWED
    gate.wait_empty()
