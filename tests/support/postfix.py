"""Private Postfix instances, and Postfix's load generator and counting sink."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.process import Process, alive, banner, binary, free_port, new_directory, wait_until

# Debian's own master.cf without chroot, on a port of our own and without the services nobody uses here.
_MASTER = """\
{address}:{port} inet n - n - {processes} smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
virtual unix - n n - - virtual
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""

_MAIN = """\
compatibility_level = 3.6
queue_directory = {home}/queue
data_directory = {home}/data
maillog_file = {home}/maillog
maillog_file_prefixes = /tmp, /var, /dev/stdout, {home}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = postfix.test
mydestination =
local_recipient_maps =
alias_maps =
mynetworks = 127.0.0.0/8
smtp_dns_support_level = disabled
smtpd_authorized_xclient_hosts = 127.0.0.0/8
queue_run_delay = 5s
minimal_backoff_time = 5s
maximal_backoff_time = 10s
"""


class Postfix:
    """One Postfix with a configuration and a queue directory of its own; needs root, as Postfix does."""

    def __init__(
        self,
        settings: Mapping[str, str],
        *,
        home: Path | None = None,
        processes: str = "-",
        prefix: str = "",
        address: str = "127.0.0.1",
        services: str = "",
    ) -> None:
        """`services` are more lines for master.cf; `prefix` is a shell command before each start."""
        if os.getuid() != 0:
            pytest.fail("Postfix can be started by root only: run the tests as root")
        self._postfix = binary("postfix")
        self._prefix = prefix
        self.port = free_port(address)
        self.home = home or new_directory("postfix")
        self.home.mkdir(exist_ok=True)
        for name in ("etc", "queue", "data"):
            (self.home / name).mkdir()
        shutil.chown(self.home / "data", "postfix")
        self.etc = self.home / "etc"
        master = _MASTER.format(address=address, port=self.port, processes=processes)
        (self.etc / "master.cf").write_text(master + services)
        main = _MAIN.format(home=self.home)
        main += "".join(f"{name} = {value}\n" for name, value in settings.items())
        # Postfix takes the last of two lines for one name, with a warning; leave no warning behind.
        kept = {line.partition("=")[0].strip(): line for line in main.splitlines()}
        (self.etc / "main.cf").write_text("\n".join(kept.values()) + "\n")
        self._control("start")
        self.pid = wait_until(self._read_pid, "Postfix wrote its pid file")
        wait_until(lambda: banner(self.port, address=address), "Postfix greets")

    @classmethod
    def store(cls, domain: str, users: list[str], services: str = "", **more: str) -> Postfix:
        """A mail store for `users` at `domain` with one Maildir each; others get 550 5.1.1 at RCPT."""
        home = new_directory("store")
        (home / "mail").mkdir()
        nobody = pwd.getpwnam("nobody")
        shutil.chown(home / "mail", nobody.pw_uid, nobody.pw_gid)
        (home / "boxes").write_text("".join(f"{user}@{domain} {user}/\n" for user in users))
        return cls(
            {
                "virtual_mailbox_domains": domain,
                "virtual_mailbox_base": str(home / "mail"),
                "virtual_mailbox_maps": f"texthash:{home / 'boxes'}",
                "virtual_uid_maps": f"static:{nobody.pw_uid}",
                "virtual_gid_maps": f"static:{nobody.pw_gid}",
            }
            | more,
            home=home,
            services=services,
        )

    @classmethod
    def relay(cls, next_hop_port: int, **more: str) -> Postfix:
        """Takes mail for everywhere and hands it to 127.0.0.1:`next_hop_port`."""
        return cls(
            {"relayhost": f"[127.0.0.1]:{next_hop_port}", "smtpd_recipient_restrictions": "permit_mynetworks,reject"}
            | more
        )

    def _control(self, command: str) -> None:
        argv = [self._postfix, "-c", str(self.etc), command]
        if self._prefix:
            argv = ["sh", "-c", f'{self._prefix}; exec "$@"', "sh", *argv]
        result = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        if result.returncode:
            # Postfix speaks of its trouble only in its log, or on a terminal.
            pytest.fail(f"postfix {command} ended with {result.returncode}: {result.stderr}\n{self.log}")

    def _read_pid(self) -> int:
        return int((self.home / "queue/pid/master.pid").read_text())

    @property
    def version(self) -> tuple[int, int]:
        """Its version, without the number of the patch."""
        argv = [binary("postconf"), "-c", str(self.etc), "-h", "mail_version"]
        major, minor = subprocess.check_output(argv, text=True, timeout=60).split(".")[:2]
        return int(major), int(minor)

    @property
    def log(self) -> str:
        path = self.home / "maillog"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_logged(self, pattern: str) -> re.Match[str]:
        """The first match of `pattern` in the log."""
        return wait_until(lambda: re.search(pattern, self.log), f"Postfix logs {pattern!r}")

    def mails(self, user: str) -> list[bytes]:
        """What arrived in the Maildir of `user` (store role)."""
        return [path.read_bytes() for path in sorted((self.home / "mail" / user / "new").glob("*"))]

    def queue_length(self) -> int:
        """Messages it still has, by its queue directories."""
        return sum(
            sum(len(files) for _, _, files in os.walk(self.home / "queue" / name))
            for name in ("incoming", "active", "deferred", "maildrop", "hold")
        )

    def stop(self) -> None:
        self._control("stop")
        wait_until(lambda: not alive(self.pid), "Postfix has ended")
        shutil.rmtree(self.home, ignore_errors=True)


class SmtpSink:
    """Postfix's smtp-sink: swallows mail and counts it, or misbehaves as its `flags` say.

    With `dump`, each message is kept as a file that begins with its envelope (X-Mail-Args, X-Rcpt-Args).
    """

    def __init__(self, *flags: str, dump: bool = False, port: int | None = None) -> None:
        self.port = port or free_port()
        self.directory = new_directory("sink")
        argv = [binary("smtp-sink"), "-c", *flags]
        if os.getuid() == 0:
            argv += ["-u", "nobody"]
        if dump:
            (self.directory / "dump").mkdir(mode=0o777)
            (self.directory / "dump").chmod(0o777)
            argv += ["-d", str(self.directory / "dump/m.")]
        # The backlog is 1000: a burst of connections must not wait for the kernel's retransmission.
        self._process = Process([*argv, f"127.0.0.1:{self.port}", "1000"], self.directory / "log")
        self._process.wait_ready(lambda: banner(self.port))

    @property
    def count(self) -> int:
        """Messages that reached their final dot so far."""
        counters = re.findall(rb"mesg=\s*(\d+)", self._tail())
        return int(counters[-1]) if counters else 0

    def _tail(self) -> bytes:
        with self._process.log_path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 200))
            return file.read()

    def messages(self) -> list[str]:
        """What was dumped, oldest name first."""
        return [path.read_text(errors="replace") for path in sorted((self.directory / "dump").iterdir())]

    def wait_count(self, count: int, deadline: float = 60.0) -> None:
        wait_until(lambda: self.count >= count, f"smtp-sink has counted {count} messages", deadline)

    def stop(self) -> None:
        self._process.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


def smtp_source(port: int, *flags: str, timeout: float = 120.0, address: str = "127.0.0.1") -> None:
    """Send mail with Postfix's smtp-source; any refusal of the server makes it fail, and this too."""
    argv = [binary("smtp-source"), *flags, f"{address}:{port}"]
    result = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
    assert result.returncode == 0, f"{' '.join(argv)}: {result.stdout[-2000:]}{result.stderr[-2000:]}"
