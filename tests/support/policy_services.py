"""Real policy servers: policyd-spf, policyd-rate-limit, policyd-weight, and Dovecot's quota-status."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import yaml

from tests.support.process import Process, alive, binary, descendants, free_port, listens, new_directory
from tests.support.servers import Unbound


class NameserverAt53:
    """A nameserver at port 53 of an address of its own, for those who cannot be told a port."""

    def __init__(self, records: list[str]) -> None:
        self.address = f"127.{random.randrange(64, 128)}.{random.randrange(256)}.{random.randrange(1, 255)}"
        self._server = Unbound(records, interface=self.address, port=53)

    def stop(self) -> None:
        self._server.stop()


class PolicydSpf:
    """policyd-spf, which talks on standard input and output: one process for each connection to a unix socket."""

    def __init__(self, nameserver: str) -> None:
        self.home = new_directory("policyd-spf")
        self.path = self.home / "socket"
        (self.home / "resolv.conf").write_text(f"nameserver {nameserver}\n")
        config = self.home / "policyd-spf.conf"
        config.write_text(
            # TestOnly = 1 is the mode in which it acts.
            "debugLevel = 1\nTestOnly = 1\nHELO_reject = Fail\nMail_From_reject = Fail\n"
            "PermError_reject = False\nTempError_Defer = False\nskip_addresses = 127.0.0.0/8\n"
        )
        program, resolv = binary("policyd-spf"), self.home / "resolv.conf"
        script = f"mount --bind {resolv} /etc/resolv.conf && exec {program} {config}"
        # It reads the system's resolv.conf, so it gets one of its own.
        self._argv = [binary("unshare"), "-m", "sh", "-c", script]
        self._children: list[subprocess.Popen[bytes]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(20)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def connections(self) -> int:
        """How many there have been, and so processes."""
        return len(self._children)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock, (self.home / "log").open("ab") as log:
                link = sock.fileno()
                self._children.append(subprocess.Popen(self._argv, stdin=link, stdout=link, stderr=log))

    def kill(self) -> None:
        """SIGKILL for all that run; the next connection gets a new one."""
        for child in self._children:
            child.kill()
            child.wait(10)

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)


class PolicydRateLimit:
    """policyd-rate-limit: so many recipients in so many seconds for each client address."""

    def __init__(self, recipients: int, seconds: int) -> None:
        self.port = free_port()
        self.home = new_directory("policyd-rate-limit")
        options = yaml.safe_load(Path("/etc/policyd-rate-limit.yaml").read_text())
        options |= {
            "pidfile": str(self.home / "pid"),
            "sqlite_config": {"database": str(self.home / "db.sqlite3")},
            "SOCKET": ["127.0.0.1", self.port],
            "limits": [[recipients, seconds]],
            "limit_by_ip": True,
            "limited_networks": ["0.0.0.0/0"],
        }
        config = self.home / "policyd-rate-limit.yaml"
        config.write_text(yaml.safe_dump(options))
        shutil.chown(self.home, options["user"], options["group"])
        # It takes its configuration for old, and warns of it, unless only its owner may read it.
        shutil.chown(config, options["user"], options["group"])
        self._process = Process([binary("policyd-rate-limit"), "-f", str(config)], self.home / "log", cwd=Path("/"))
        self._process.wait_ready(lambda: listens(self.port))

    def stop(self) -> None:
        self._process.stop()
        shutil.rmtree(self.home, ignore_errors=True)


class PolicydWeight:
    """policyd-weight, which weighs the client's names and the DNS lists that it is on."""

    def __init__(self, nameserver: str, zone: str) -> None:
        self.port = free_port()
        self.home = new_directory("policyd-weight")
        run = self.home / "run"
        run.mkdir()
        shutil.chown(run, "polw", "polw")
        config = self.home / "policyd-weight.conf"
        config.write_text(
            f"$LOCKPATH = '{run}/';\n$SPATH = '{run}/polw.sock';\n$PIDFILE = '{run}/policyd-weight.pid';\n"
            f"$TCP_PORT = {self.port};\n$BIND_ADDRESS = '127.0.0.1';\n$NS = '{nameserver}';\n$USE_NET_DNS = 1;\n"
            f"@dnsbl_score = ('{zone}', 9, 0, 'TEST_LIST');\n@rhsbl_score = ();\n"
            # Syslog's socket is not there; by UDP it does not notice that nobody listens.
            "$syslog_socktype = 'udp';\n"
        )
        argv = [binary("policyd-weight"), "-f", str(config), "-D", "start"]
        self._process = Process(argv, self.home / "log", cwd=Path("/"))
        self._process.wait_ready(lambda: listens(self.port))

    def stop(self) -> None:
        below = descendants(self._process.pid)
        self._process.stop()
        # Its cache does not end with it.
        for pid in filter(alive, below):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.home, ignore_errors=True)


_DOVECOT = """\
base_dir = {home}/run
state_dir = {home}/lib
log_path = {home}/dovecot.log
protocols =
listen = 127.0.0.1
ssl = no
mail_location = maildir:{home}/mail/%n
mail_uid = nobody
mail_gid = nogroup
first_valid_uid = 1
first_valid_gid = 1
mail_plugins = quota
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {home}/users
}}
userdb {{
  driver = passwd-file
  args = username_format=%u {home}/users
}}
plugin {{
  quota = count:User quota
  quota_vsizes = yes
  quota_rule = *:storage=1M
  quota_exceeded_message = mailbox is full
  quota_status_overquota = 552 5.2.2 mailbox is full
  quota_status_nouser = REJECT 5.1.1 no such mailbox
}}
service quota-status {{
  executable = quota-status -p postfix
  client_limit = 10
  inet_listener {{
    port = {port}
  }}
}}
"""


class QuotaStatus:
    """Dovecot's quota-status, with mailboxes of one megabyte and one of 300 octets."""

    DOMAIN = "example.org"

    def __init__(self, users: list[str], small: str) -> None:
        self.port = free_port()
        self.home = new_directory("quota")
        (self.home / "mail").mkdir(mode=0o777)
        (self.home / "mail").chmod(0o777)
        lines = [f"{user}@{self.DOMAIN}:{{PLAIN}}secret::::::\n" for user in users]
        lines.append(f"{small}@{self.DOMAIN}:{{PLAIN}}secret::::::userdb_quota_rule=*:bytes=300\n")
        (self.home / "users").write_text("".join(lines))
        config = self.home / "dovecot.conf"
        config.write_text(_DOVECOT.format(home=self.home, port=self.port))
        self._process = Process([binary("dovecot"), "-F", "-c", str(config)], self.home / "output")
        self._process.wait_ready(lambda: listens(self.port))

    def stop(self) -> None:
        self._process.stop()
        shutil.rmtree(self.home, ignore_errors=True)
