"""A real PostgreSQL server, whose every commit is synced, as in production."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from gateway.spool.postgres.options import PostgresOptions, parse_url
from tests.support.process import Process, alive, descendants, free_port, new_directory, wait_until
from tests.support.servers import Certificate

_HOMES: Final = Path("/usr/lib/postgresql")
_USER: Final = "postgres"
_SETTINGS: Final = ("shared_buffers=16MB", "max_connections=60", "autovacuum_naptime=10s", "restart_after_crash=off")


def _program(name: str) -> str:
    """A server's program, of the newest version that is installed."""
    found = sorted(_HOMES.glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    if not found:
        pytest.fail("postgresql is not installed: run `make test`, which installs the servers that tests talk to")
    return str(found[-1])


def _as_server(argv: Sequence[str]) -> list[str]:
    """It refuses to run as root. Not by runuser, which stays in between, and stops with a server that stands still."""
    become = ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--init-groups", "--"]
    return [*become, *argv] if os.geteuid() == 0 else list(argv)


def version() -> str:
    """The version of the server that is started here."""
    said = subprocess.run([_program("postgres"), "--version"], check=True, capture_output=True, text=True).stdout
    return said.split()[2]


class PostgresServer:
    """postgres with a data directory and a loopback port of its own; its superuser is ``test``.

    With a `password` it asks for that (SCRAM), with a certificate it offers TLS.
    """

    def __init__(
        self,
        *settings: str,
        password: str = "",
        certificate: Certificate | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """`prepare` is called in the new process."""
        self._prepare = prepare
        self.home = new_directory("postgres")
        self.port = free_port()
        self._settings = [*_SETTINGS, *settings]
        if os.geteuid() == 0:
            os.chown(self.home, pwd.getpwnam(_USER).pw_uid, -1)
        self._password = password
        self._tls = certificate is not None
        made = [_program("initdb"), "-D", str(self.home / "data"), "-U", "test", "--no-sync"]
        if password:
            made += ["-A", "scram-sha-256", f"--pwfile={self._give('password', password.encode())}"]
        else:
            made += ["-A", "trust"]
        if certificate is not None:
            files = {"ssl_cert_file": certificate.certificate, "ssl_key_file": certificate.key}
            given = [f"{name}={self._give(name, file.read_bytes())}" for name, file in files.items()]
            self._settings += ["ssl=on", *given]
        subprocess.run(
            _as_server([*made, "--locale=C", "--encoding=UTF8"]), check=True, capture_output=True, cwd=self.home
        )
        self.start()

    def _give(self, name: str, octets: bytes) -> Path:
        """A file of the server's own."""
        path = self.home / name
        path.write_bytes(octets)
        path.chmod(0o600)
        if os.geteuid() == 0:
            os.chown(path, pwd.getpwnam(_USER).pw_uid, -1)
        return path

    def start(self) -> None:
        """Start it (again)."""
        places = ("listen_addresses=127.0.0.1", f"unix_socket_directories={self.home}")
        settings = [part for setting in (*places, *self._settings) for part in ("-c", setting)]
        argv = [_program("postgres"), "-D", str(self.home / "data"), "-p", str(self.port), *settings]
        self._process = Process(_as_server(argv), self.home / "log", cwd=self.home, prepare=self._prepare)
        self._process.wait_ready(self._answers)

    def _answers(self) -> bool:
        # An SSLRequest: the postmaster answers it itself (PostgreSQL documentation, 55.2.10).
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
            sock.sendall(struct.pack(">II", 8, 80877103))
            if sock.recv(1) != (b"S" if self._tls else b"N"):
                return False
        try:
            self.query("SELECT 1")
        except psycopg.OperationalError as error:
            raise ConnectionError(str(error)) from error
        return True

    @property
    def pid(self) -> int:
        """The postmaster's."""
        return self._process.pid

    @property
    def url(self) -> str:
        return f"postgresql://test@127.0.0.1:{self.port}/postgres"

    def options(self, schema: str = "gatepost", **more: Any) -> PostgresOptions:
        """To reach it; a schema is a spool of its own."""
        return PostgresOptions(parse_url(self.url), schema=schema, **{"timeout": 5.0, **more})

    def query(self, sql: str, *values: Any, schema: str = "gatepost") -> list[Any]:
        """What another session sees or does, as an operator's ``psql`` would."""
        secret = self._password or None
        with psycopg.connect(self.url, autocommit=True, connect_timeout=10, password=secret) as connection:
            connection.execute("SELECT set_config('search_path', %s, false)", (schema,))
            cursor = connection.execute(sql.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def kill(self) -> None:
        """SIGKILL for the postmaster and all that it started, by their own process ids."""
        below = descendants(self._process.pid)
        self._process.kill()
        wait_until(lambda: not any(map(alive, below)), "all of PostgreSQL is gone")

    def hung(self) -> contextlib.AbstractContextManager[None]:
        """Inside the block the kernel takes connections for it, and nobody answers."""
        return self._process.hung()

    @property
    def log(self) -> Path:
        return self.home / "log"

    def halt(self) -> None:
        """Stop it and leave its data: fast shutdown, which ends sessions."""
        self._process.signal(signal.SIGINT)
        self._process.wait()

    def stop(self) -> None:
        """End it for good: nobody needs what it would still write."""
        if self._process.status is None:
            self._process.signal(signal.SIGQUIT)
            self._process.wait()
        shutil.rmtree(self.home, ignore_errors=True)
