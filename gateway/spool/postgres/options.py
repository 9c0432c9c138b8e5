"""Where the database is, and how it is asked. Needs no library, so that a configuration can be checked without it.

*Promises*: no text made here holds a password: a URL that has one is refused, and is not repeated.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from gateway.services.password import read_password

PORT: Final = 5432
HOSTS_MAX: Final = 8
_NAME: Final = r"[^:@/?#\[\]\s]{1,200}"
_URL: Final = rf"postgres(?:ql)?://(?:(?P<user>{_NAME})(?P<password>:[^@/]*)?@)?(?P<hosts>[^@/?#\s]{{1,2000}})/(?P<database>{_NAME})\Z"
_HOST: Final = r"(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.%-]{1,253})(?::(?P<port>[0-9]{1,5}))?\Z"
_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOST_NAME: Final = rf"{_LABEL}(?:\.{_LABEL})*\.?\Z"
# Not compiled here: most configurations have no such URL, and it takes longer than the rest of the module.


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A database, and where it may be: the hosts are tried in turn until one is found that takes writes.

    A host is a name, an IP address, or the directory of a Unix socket.
    """

    hosts: tuple[tuple[str, int], ...]
    database: str
    user: str = ""

    def __str__(self) -> str:
        hosts = ",".join(f"{f'[{host}]' if ':' in host else host}:{port}" for host, port in self.hosts)
        return f"postgresql://{hosts}/{self.database}"


@dataclass(frozen=True, slots=True)
class PostgresOptions:
    """How the database is asked. `timeout` is in seconds, for one statement and for connecting.

    A worker that has not been heard of for `lease` seconds has lost what it had claimed. Files are paths, empty for
    none; `password_env` names a variable. `tls` is one of ``none``, ``prefer``, ``require``, ``verify``.
    """

    server: PostgresServer
    password_file: str = ""
    password_env: str = ""
    tls: str = "prefer"
    tls_ca: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    timeout: float = 10.0
    lease: float = 30.0
    schema: str = "gatepost"


def parse_url(text: str) -> PostgresServer:
    """A server from ``postgresql://[USER@]HOST[:PORT][,...]/DATABASE``. Raises ValueError.

    The directory of a Unix socket is written with ``%2F`` for its slashes. What is wrong is said without the URL:
    there may be a password in it.
    """
    match = re.match(_URL, text)
    if match is None:
        raise ValueError("is no URL of a database; write postgresql://USER@HOST:PORT/DATABASE")
    if match["password"]:
        raise ValueError("has a password in it; write postgresql://USER@HOST and put the password into password_file")
    parts = match["hosts"].split(",")
    if len(parts) > HOSTS_MAX:
        raise ValueError(f"names more than {HOSTS_MAX} hosts")
    hosts = tuple(_host(part) for part in parts)
    user, database = (unquote(match[name] or "", errors="strict") for name in ("user", "database"))
    for name in (user, database):
        if not name.isprintable() or len(name.encode()) > 63:
            raise ValueError("names a user or a database that cannot be one")
    return PostgresServer(hosts, database, user)


def _host(text: str) -> tuple[str, int]:
    match = re.match(_HOST, text)
    if match is None:
        raise ValueError("names a host that is neither a host name nor an IP address")
    host, port = unquote(match["host"]), int(match["port"] or PORT)
    if host.startswith("["):
        try:
            host = str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise ValueError("has something in [] that is no IPv6 address") from None
    elif not host.startswith("/") and not re.match(_HOST_NAME, host):
        raise ValueError("names a host that is neither a host name nor an IP address")
    if "," in host or not host.isprintable():
        raise ValueError("names a directory that cannot be one of a socket")
    if not 1 <= port <= 65535:
        raise ValueError("names a port that is none; ports are 1 to 65535")
    return host, port


def password(options: PostgresOptions) -> str:
    """The password as it is now: of the variable, if that is set, or the first line of the file; empty for none.

    Raises OSError, and ValueError when neither has one, for a file that cannot be used.
    """
    return read_password(options.password_env, options.password_file)


def check_library() -> None:
    """Raises ValueError, saying what to do, when the optional package is missing."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise ValueError("needs the package psycopg: install gatepost[postgres]") from None
