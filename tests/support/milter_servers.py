"""Real milters: OpenDMARC, ClamAV's, SpamAssassin's, those of dkimpy and spf-engine, and pymilter classes.

Each is one process on a port of its own; `address` is what Gatepost calls it, `milter` what Postfix does.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

import publicsuffixlist

from tests.support.clamav import Clamd
from tests.support.process import Process, binary, free_port, new_directory
from tests.support.spamassassin import Spamd

RUNNER = Path(__file__).with_name("run_milter.py")
NOBODY = "203.0.113.99"
"""An address that no client has, for lists that must not be empty."""


def negotiates(port: int) -> bool:
    """Whether a milter answers our options, and not only takes connections."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(struct.pack(">IBIII", 13, ord("O"), 6, 0x1FF, 0x1FFFFF) + struct.pack(">IB", 1, ord("Q")))
        return sock.recv(5)[4:] == b"O"


class MilterServer:
    """A milter in the foreground."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        port: int,
        home: Path,
        nameserver: str = "",
        env: Mapping[str, str] | None = None,
    ) -> None:
        """With `nameserver` it runs in a mount namespace with a resolv.conf of its own."""
        self.port, self.home = port, home
        self._argv = list(argv)
        self._env = env
        if nameserver:
            (home / "resolv.conf").write_text(f"nameserver {nameserver}\noptions timeout:2 attempts:1\n")
            script = f'mount --bind {home}/resolv.conf /etc/resolv.conf && exec "$@"'
            private = "-m" if os.geteuid() == 0 else "-rm"
            self._argv = [binary("unshare"), private, "sh", "-c", script, "sh", *self._argv]
        self.start()

    def start(self) -> None:
        """Start it (again), on the same port."""
        self._process = Process(self._argv, self.home / "log", env=self._env)
        self._process.wait_ready(lambda: negotiates(self.port))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def milter(self) -> str:
        return f"inet:{self.address}"

    @property
    def log(self) -> str:
        return self._process.log

    def signal(self, number: int) -> None:
        self._process.signal(number)

    def kill(self) -> None:
        self._process.kill()

    def stop(self) -> None:
        """End it at once: libmilter looks for signals every five seconds only, and there is nothing to be saved."""
        self._process.kill()
        shutil.rmtree(self.home, ignore_errors=True)


def configured(home: Path, values: Mapping[str, str]) -> str:
    """Write a configuration file of names and values; gives its path."""
    path = home / "conf"
    path.write_text("".join(f"{name} {value}\n" for name, value in values.items()))
    return str(path)


def pymilter(name: str, record: Path) -> MilterServer:
    """A class of `tests.support.milters`, which writes its callbacks to `record`."""
    port = free_port()
    argv = [sys.executable, str(RUNNER), name, f"inet:{port}@127.0.0.1"]
    env = os.environ | {"MILTER_RECORD": str(record)}
    return MilterServer(argv, port=port, home=new_directory("pymilter"), env=env)


def opendmarc(nameserver: str, believed: str) -> MilterServer:
    """Refuses what fails; believes Authentication-Results of `believed` and checks SPF by itself."""
    port, home = free_port(), new_directory("opendmarc")
    (home / "ignored").write_text(f"{NOBODY}\n")
    values = {
        "AuthservID": believed,
        "TrustedAuthservIDs": believed,
        "IgnoreHosts": str(home / "ignored"),
        "PublicSuffixList": str(Path(publicsuffixlist.__file__).with_name("public_suffix_list.dat")),
        "Socket": f"inet:{port}@127.0.0.1",
        "SPFSelfValidate": "true",
        "RejectFailures": "true",
        "Background": "false",
        "Syslog": "false",
    }
    argv = [binary("opendmarc"), "-f", "-c", configured(home, values)]
    return MilterServer(argv, port=port, home=home, nameserver=nameserver)


def clamav_milter(clamd: Clamd) -> MilterServer:
    """Refuses what clamd finds infected, and marks the rest."""
    port, home = free_port(), new_directory("clamav-milter")
    values = {
        "Foreground": "yes",
        "MilterSocket": f"inet:{port}@127.0.0.1",
        "ClamdSocket": f"tcp:127.0.0.1:{clamd.port}",
        "OnInfected": "Reject",
        "RejectMsg": "Virus found: %v",
        "OnFail": "Defer",
        "AddHeader": "Replace",
        **({"User": "clamav"} if os.getuid() == 0 else {}),
    }
    return MilterServer([binary("clamav-milter"), "-c", configured(home, values)], port=port, home=home)


def spamass_milter(spamd: Spamd) -> MilterServer:
    """Refuses from 15 points on, and marks the rest."""
    port, home = free_port(), new_directory("spamass-milter")
    user = ["-u", "debian-spamd"] if os.getuid() == 0 else []
    argv = [binary("spamass-milter"), "-p", f"inet:{port}@127.0.0.1", "-r", "15", *user]
    argv += ["--", "-d", "127.0.0.1", "-p", str(spamd.port)]
    return MilterServer(argv, port=port, home=home)


def _python(home: Path, program: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """A program of this environment under the system's Python, where a dropped user can read the modules."""
    paths = sysconfig.get_paths()
    script = Path(paths["scripts"]) / program
    return ["/usr/bin/python3", str(script), *arguments], os.environ | {"PYTHONPATH": paths["purelib"]}


def dkimpy_milter(nameserver: str, authserv_id: str) -> MilterServer:
    """Verifies DKIM."""
    port, home = free_port(), new_directory("dkimpy-milter")
    values = {
        "Socket": f"inet:{port}@127.0.0.1",
        "PidFile": str(home / "pid"),
        "UserID": "nobody:nogroup",
        "AuthservID": authserv_id,
        "Mode": "v",
        "InternalHosts": NOBODY,
        "Syslog": "no",
        "UMask": "007",
    }
    argv, env = _python(home, "dkimpy-milter", configured(home, values))
    return MilterServer(argv, port=port, home=home, nameserver=nameserver, env=env)


def pyspf_milter(nameserver: str) -> MilterServer:
    """Checks SPF and refuses what fails."""
    port, home = free_port(), new_directory("pyspf-milter")
    path = home / "conf"
    values = {
        "debugLevel": "1",
        "TestOnly": "1",
        "HELO_reject": "Fail",
        "Mail_From_reject": "Fail",
        "skip_addresses": NOBODY,
        "Socket": f"inet:{port}@127.0.0.1",
        "PidFile": str(home / "pid"),
        "UserID": "nobody:nogroup",
        "InternalHosts": NOBODY,
    }
    path.write_text("".join(f"{name} = {value}\n" for name, value in values.items()))
    argv, env = _python(home, "pyspf-milter", str(path))
    return MilterServer(argv, port=port, home=home, nameserver=nameserver, env=env)
