"""SMTP clients: swaks, and smtplib with a PROXY header in front."""

from __future__ import annotations

import re
import smtplib
import socket
import subprocess
from dataclasses import dataclass

from tests.support.process import binary

MESSAGE = (
    b"From: Ann <ann@sender.test>\r\nTo: Ben <ben@example.test>\r\nSubject: A test\r\n"
    b"Date: Sun, 01 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@sender.test>\r\n\r\nHello.\r\n"
)


@dataclass(frozen=True)
class Transcript:
    """What swaks said and heard; `status` 0 says that the message was taken."""

    status: int
    text: str

    @property
    def queue_id(self) -> str:
        """The id in the reply that ended the message."""
        match = re.search(r"queued as (\w+)", self.text)
        assert match, self.text
        return match[1]


def swaks(port: int, *arguments: str) -> Transcript:
    """Run swaks against 127.0.0.1:`port`."""
    argv = [binary("swaks"), "--server", "127.0.0.1", "--port", str(port), "--timeout", "30", *arguments]
    result = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    return Transcript(result.returncode, (result.stdout + result.stderr).decode(errors="replace"))


class ProxiedClient(smtplib.SMTP):
    """smtplib behind a load balancer that says, with PROXY version 1, that the client is `client`."""

    def __init__(self, port: int, client: str) -> None:
        family, server = ("TCP6", "::1") if ":" in client else ("TCP4", "127.0.0.1")
        self._header = f"PROXY {family} {client} {server} 40000 25\r\n".encode()
        super().__init__("127.0.0.1", port, local_hostname="client.test", timeout=30)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        sock = socket.create_connection((host, port), timeout)
        sock.sendall(self._header)
        return sock


def connect(port: int, source: str = "127.0.0.1") -> smtplib.SMTP:
    """A plain client that has said EHLO; `source` is the address it comes from."""
    client = smtplib.SMTP("127.0.0.1", port, local_hostname="client.test", timeout=30, source_address=(source, 0))
    client.ehlo()
    return client


def transact(
    client: smtplib.SMTP, sender: str, recipients: list[str], content: bytes = MESSAGE, *, parameters: str = ""
) -> tuple[int, str]:
    """One transaction, one command at a time. Gives the first refusal, or the reply after the final dot."""
    reply = client.docmd("MAIL", f"FROM:<{sender}>{parameters}")
    if reply[0] == 250:
        for recipient in recipients:
            reply = client.docmd("RCPT", f"TO:<{recipient}>")
            if reply[0] != 250:
                break
        else:
            try:
                reply = client.data(content)
            except smtplib.SMTPDataError as error:
                reply = (error.smtp_code, error.smtp_error if isinstance(error.smtp_error, bytes) else b"")
    if reply[0] != 250:
        client.rset()
    return reply[0], reply[1].decode()


def queue_id(reply: tuple[int, str]) -> str:
    """The id in ``250 2.0.0 queued as ID``."""
    code, text = reply
    assert code == 250, reply
    match = re.fullmatch(r"2\.0\.0 queued as (\w+)", text)
    assert match, reply
    return match[1]


def reference(text: str) -> str:
    """The reference at the end of a refusal."""
    match = re.search(r"\(ref (\w+)\)$", text)
    assert match, text
    return match[1]
