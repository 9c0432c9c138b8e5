"""Where the shared state is when replicas share it: a Redis or Valkey server, and how it is asked.

*Promises*: no text made here holds a password: a URL that has one is refused, and is not repeated.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from gateway.services.password import read_password

PORT: Final = 6379
_URL: Final = re.compile(
    r"(?P<scheme>rediss?)://(?:(?P<user>[^:@/?#]{0,128})(?P<password>:[^@/]*)?@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.-]{1,253})(?::(?P<port>[0-9]{1,5}))?(?:/(?P<database>[0-9]{0,4}))?\Z"
)
_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?\Z")


@dataclass(frozen=True, slots=True)
class RedisServer:
    """One server and one of its databases; `tls` says that the connection begins with TLS (``rediss``)."""

    host: str
    port: int = PORT
    database: int = 0
    tls: bool = False
    user: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.database}"


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """How the server is asked. `timeout` is in seconds, for one call, connecting included; `connections` at once, per
    worker. `prefix` begins every key. Files are paths, empty for none; `password_env` names a variable."""

    server: RedisServer
    password_file: str = ""
    password_env: str = ""
    tls_ca: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    timeout: float = 1.0
    connections: int = 8
    prefix: str = "gatepost"


def parse_url(text: str) -> RedisServer:
    """A server from ``redis://[USER@]HOST[:PORT][/DATABASE]``, or ``rediss://`` for TLS. Raises ValueError.

    What is wrong is said without the URL: there may be a password in it.
    """
    match = _URL.match(text)
    if match is None:
        raise ValueError("is no URL of a Redis server; write redis://HOST:PORT/DATABASE, or rediss:// for TLS")
    if match["password"]:
        raise ValueError("has a password in it; write redis://USER@HOST and put the password into password_file")
    host, port = match["host"].lower(), int(match["port"] or PORT)
    if host.startswith("["):
        try:
            host = str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise ValueError("has something in [] that is no IPv6 address") from None
    elif not _NAME.match(host):
        raise ValueError("names a host that is neither a host name nor an IP address")
    if not 1 <= port <= 65535:
        raise ValueError("names a port that is none; ports are 1 to 65535")
    return RedisServer(host, port, int(match["database"] or 0), match["scheme"] == "rediss", match["user"] or "")


def password(options: RedisOptions) -> str:
    """The password as it is now: of the variable, if that is set, or the first line of the file; empty for none.

    Raises OSError, and ValueError when neither has one, for a file that cannot be used.
    """
    return read_password(options.password_env, options.password_file)


def check_library() -> None:
    """Raises ValueError, saying what to do, when the optional package is missing."""
    try:
        import redis  # noqa: F401
    except ImportError:
        raise ValueError("needs the package redis: install gatepost[redis]") from None
