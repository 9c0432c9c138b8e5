"""Real servers around Gatepost: Dovecot as mail store, unbound as DNS, haproxy as load balancer."""

from __future__ import annotations

import contextlib
import imaplib
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.process import Process, banner, binary, free_port, listens, new_directory, wait_until


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate for localhost and 127.0.0.1."""

    certificate: Path
    key: Path


def make_certificate(directory: Path) -> Certificate:
    made = Certificate(directory / "cert.pem", directory / "key.pem")
    request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(made.key), "-out", str(made.certificate)]
    subprocess.run([binary("openssl"), *request, *names, *files], check=True, capture_output=True, timeout=60)
    return made


_DOVECOT = """\
base_dir = {home}/run
state_dir = {home}/lib
log_path = {home}/dovecot.log
protocols = imap lmtp
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
mail_location = maildir:{home}/mail/%n
mail_uid = nobody
mail_gid = nogroup
first_valid_uid = 1
first_valid_gid = 1
default_login_user = {login}
default_internal_user = {internal}
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {home}/users
}}
userdb {{
  driver = passwd-file
  args = username_format=%u {home}/users
}}
service lmtp {{
  inet_listener lmtp {{
    port = {lmtp}
  }}
}}
service imap-login {{
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
"""


class Dovecot:
    """Dovecot with LMTP and IMAP, and as many empty mailboxes as tests ask for."""

    DOMAIN = "example.test"

    def __init__(self) -> None:
        self.lmtp_port, self.imap_port = free_port(), free_port()
        self.home = new_directory("dovecot")
        (self.home / "mail").mkdir(mode=0o777)
        (self.home / "mail").chmod(0o777)
        self._users = [f"user{number}" for number in range(100)]
        (self.home / "users").write_text(
            "".join(f"{user}@{self.DOMAIN}:{{PLAIN}}secret::::::\n" for user in self._users)
        )
        self._unused = iter(self._users)
        self._config = self.home / "dovecot.conf"
        self._config.write_text(
            _DOVECOT.format(
                home=self.home, lmtp=self.lmtp_port, imap=self.imap_port, login="dovenull", internal="dovecot"
            )
        )
        self._start()

    def _start(self) -> None:
        argv = [binary("dovecot"), "-F", "-c", str(self._config)]
        self._process = Process(argv, self.home / "output")
        self._process.wait_ready(lambda: banner(self.lmtp_port) and banner(self.imap_port, b"* OK"))

    def mailbox(self) -> str:
        """The address of a mailbox that no other test uses."""
        return f"{next(self._unused)}@{self.DOMAIN}"

    @contextlib.contextmanager
    def _inbox(self, address: str) -> Iterator[imaplib.IMAP4]:
        with imaplib.IMAP4("127.0.0.1", self.imap_port, timeout=30) as client:
            client.login(address, "secret")
            client.select("INBOX", readonly=True)
            yield client

    def mails(self, address: str) -> list[bytes]:
        """All messages of the mailbox, over IMAP, as they are stored."""
        with self._inbox(address) as client:
            numbers = client.search(None, "ALL")[1][0].split()
            found: list[bytes] = []
            for number in numbers:
                part = client.fetch(number.decode(), "(BODY.PEEK[])")[1][0]
                assert isinstance(part, tuple)
                found.append(part[1])
            return found

    def wait_mails(self, address: str, count: int = 1) -> list[bytes]:
        """As `mails`, as soon as there are `count`."""

        def enough() -> list[bytes] | None:
            mails = self.mails(address)
            return mails if len(mails) >= count else None

        return wait_until(enough, f"{count} message(s) are in the mailbox of {address}")

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Down inside the block, up again after it."""
        self._process.stop()
        try:
            yield
        finally:
            self._start()

    def stop(self) -> None:
        self._process.stop()
        shutil.rmtree(self.home, ignore_errors=True)


class Unbound:
    """unbound as the authority for everything: `records` in zone file form, NXDOMAIN for the rest."""

    def __init__(self, records: Sequence[str], *, interface: str = "127.0.0.1", port: int = 0) -> None:
        self.interface = interface
        self.port = port or free_port(interface)
        self.home = new_directory("unbound")
        config = self.home / "unbound.conf"
        server = {
            "interface": interface,
            "port": str(self.port),
            "chroot": '""',
            "username": '""',
            "directory": f'"{self.home}"',
            "pidfile": f'"{self.home}/pid"',
            "do-daemonize": "no",
            "use-syslog": "no",
            "module-config": '"iterator"',
            "local-zone": '"." static',
        }
        lines = [f"  {name}: {value}" for name, value in server.items()]
        # Single quotes outside: TXT data carries double ones.
        lines += [f"  local-data: '{record}'" for record in records]
        config.write_text("server:\n" + "\n".join(lines) + "\nremote-control:\n  control-enable: no\n")
        self._process = Process([binary("unbound"), "-d", "-c", str(config)], self.home / "log")
        self._process.wait_ready(self._answers)

    @property
    def address(self) -> str:
        return f"{self.interface}:{self.port}"

    def _answers(self) -> bool:
        query = struct.pack(">6H", 4711, 0x0100, 1, 0, 0, 0) + b"\4test\0" + struct.pack(">2H", 6, 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(1)
            sock.sendto(query, (self.interface, self.port))
            return sock.recv(512).startswith(query[:2])

    def stop(self) -> None:
        self._process.stop()
        shutil.rmtree(self.home, ignore_errors=True)


class Haproxy:
    """haproxy in TCP mode in front of one server port, with PROXY protocol version 1 or 2 towards it."""

    def __init__(self, server_port: int, version: int, *, speaks_first: bool = True) -> None:
        self.port = free_port()
        self.home = new_directory("haproxy")
        send = {1: "send-proxy", 2: "send-proxy-v2"}[version]
        config = self.home / "haproxy.cfg"
        config.write_text(
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n"
            f"frontend mail\n  bind 127.0.0.1:{self.port}\n  default_backend gatepost\n"
            f"backend gatepost\n  server gatepost 127.0.0.1:{server_port} {send}\n"
        )
        self._process = Process([binary("haproxy"), "-db", "-f", str(config)], self.home / "log")
        # With implicit TLS behind it nobody greets; then an open port is all there is to see.
        self._process.wait_ready(lambda: banner(self.port) if speaks_first else listens(self.port))

    def stop(self) -> None:
        self._process.stop()
        shutil.rmtree(self.home, ignore_errors=True)


def require_root(what: str) -> None:
    """Fail with a clear word when `what` can't be done as an ordinary user."""
    assert os.getuid() == 0, f"{what} needs root: run the tests as root"
