"""A connection to the database, with what durability and bounded waiting rest on; and the text that stands for values.

*Promises*: no call waits for much longer than the timeout, whether the server is slow, hung or gone. A connection that
was given up is closed. No text made here holds the password.

*Fails by*: psycopg.Error, whatever the call.
"""

from __future__ import annotations

import os
import re
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

import psycopg
from psycopg import Notify, RawCursor
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus

from gateway.spool.postgres.options import PostgresOptions, password

_MARK: Final = re.compile(r"\?(\d*)")
_SSL_MODES: Final = {"none": "disable", "prefer": "prefer", "require": "require", "verify": "verify-full"}
_LATE_SECONDS: Final = 2.0
"""The server has this long after the timeout to say that it ended a statement; then it counts as hung."""
_READ_ONLY: Final = "25006"
_NOT_DURABLE: Final = ("off",)
"""What `synchronous_commit` must not be."""
_VERSION: Final = 140_000
_Value = TypeVar("_Value")


class _Connection(psycopg.Connection[Any]):
    """A connection that does not wait for ever for a server that says nothing."""

    bound = 0.0

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, timeout or self.bound or None)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                # Whatever still comes would be taken for the answer to another question.
                self.pgconn.finish()
            raise


class Lost(psycopg.OperationalError):
    """There is no connection, and it is not yet time to try again."""


class Database:
    """A connection on which each statement is a transaction of its own unless ``BEGIN`` was said.

    Values stand for ``?`` in the text, or ``?1`` for the first. Text that PostgreSQL has no room for (NUL, lone
    surrogates) is kept with U+FFFD in its place.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self.pid = connection.info.backend_pid
        """Which of the server's processes it is."""
        self.asked: float | None = None
        """Since when an answer is waited for, in seconds of the monotonic clock; None while none is."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> RawCursor[Any]:
        """One statement; gives its cursor."""
        cursor = RawCursor(self._connection)
        text = marked(sql)
        self.asked = time.monotonic()
        try:
            return cursor.execute(text, parameters, binary=True)
        except (UnicodeEncodeError, psycopg.DataError):
            cleaned = [clean(value) for value in parameters]
            if cleaned == list(parameters):
                raise
            # Nothing was sent: the library had refused.
            return cursor.execute(text, cleaned, binary=True)
        finally:
            self.asked = None

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> RawCursor[Any]:
        """One statement with many values, sent together."""
        cursor = RawCursor(self._connection)
        cursor.executemany(marked(sql), [[clean(value) for value in row] for row in parameters])
        return cursor

    def run(self, script: str) -> None:
        """Several statements without values, as one transaction unless one is open."""
        self._connection.execute(script.encode())

    @property
    def in_transaction(self) -> bool:
        """Whether ``BEGIN`` was said."""
        return self._connection.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)

    @property
    def lost(self) -> bool:
        """Whether the connection is of no use any more."""
        return self._connection.closed

    def listen(self, channel: str, heard: Callable[[Notify], None]) -> None:
        """Have `heard` called with what others say there, while a statement is executed."""
        self._connection.add_notify_handler(heard)
        self._connection.execute(b'LISTEN "' + channel.encode() + b'"')

    def close(self) -> None:
        """End it; what was not committed is undone."""
        self._connection.close()


class Unconnected(Database):
    """No connection yet: what a thread begins with that makes one when it is needed."""

    def __init__(self) -> None:
        self.pid = 0
        self.asked = None

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> RawCursor[Any]:
        raise Lost("there is no connection yet")

    @property
    def lost(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing to end."""


def connect(options: PostgresOptions, name: str) -> Database:
    """A connection whose settings durability rests on. `name` is what the server's lists show for it.

    Raises psycopg.Error, also for a password that cannot be had.
    """
    try:
        secret = password(options)
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else str(error)
        raise psycopg.OperationalError(f"the password cannot be read: {reason}") from error
    connection = _Connection.connect(conninfo(options, secret, name), autocommit=True)
    connection.bound = options.timeout + _LATE_SECONDS
    try:
        _set(connection, options)
    except BaseException:
        connection.close()
        raise
    return Database(connection)


def conninfo(options: PostgresOptions, secret: str, name: str) -> str:
    """The connection string of libpq."""
    server = options.server
    given: dict[str, Any] = {
        "host": ",".join(host for host, _ in server.hosts),
        "port": ",".join(str(port) for _, port in server.hosts),
        "dbname": server.database,
        "user": server.user,
        "password": secret,
        "sslmode": _SSL_MODES[options.tls],
        "sslcert": options.tls_certificate,
        "sslkey": options.tls_key,
        # Only what was asked for, and not what lies in somebody's home.
        "passfile": "/dev/null/none",
        "connect_timeout": max(2, round(options.timeout)),
        # Of several hosts, the one that is no standby.
        "target_session_attrs": "read-write",
        "application_name": name,
        "client_encoding": "UTF8",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": round(options.timeout * 1000),
    }
    if options.tls == "verify":
        given["sslrootcert"] = options.tls_ca or ssl.get_default_verify_paths().cafile or "system"
    return make_conninfo(**{key: value for key, value in given.items() if value != ""})


def _set(connection: psycopg.Connection[Any], options: PostgresOptions) -> None:
    """What a session must have, whatever the server's, the database's and the role's defaults are."""
    milliseconds = round(options.timeout * 1000)
    settings = {
        "search_path": options.schema,
        "statement_timeout": str(milliseconds),
        # A worker that stands still must not keep rows locked.
        "idle_in_transaction_session_timeout": str(milliseconds),
        "default_transaction_isolation": "read committed",
        "jit": "off",
    }
    calls = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in settings.items())
    (encoding, durable, *_) = connection.execute(
        f"SELECT current_setting('server_encoding'), current_setting('synchronous_commit'), {calls}".encode()
    ).fetchone() or ("", "")
    if connection.info.server_version < _VERSION:
        raise psycopg.OperationalError(f"the server's version is below {_VERSION // 10_000}")
    if encoding != "UTF8":
        raise psycopg.OperationalError(f"the database's encoding is {encoding}; Gatepost needs one with UTF8")
    if durable in _NOT_DURABLE:
        # 250 means durable, whatever somebody has set for all.
        connection.execute(b"SET synchronous_commit = on")


@lru_cache(maxsize=1000)
def marked(sql: str) -> bytes:
    """The statement with ``$1`` for ``?``, as the server takes it."""
    count = 0

    def number(match: re.Match[str]) -> str:
        nonlocal count
        count += 1
        return f"${match[1] or count}"

    return _MARK.sub(number, sql).encode()


def clean(value: _Value) -> _Value:
    """A value that PostgreSQL takes."""
    if isinstance(value, str):
        text: Any = value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
        return text  # type: ignore[no-any-return]
    if isinstance(value, list):
        texts: Any = [clean(one) for one in value]
        return texts  # type: ignore[no-any-return]
    return value


def gone(error: Exception, database: Database) -> bool:
    """Whether it takes another connection to go on."""
    if database.lost or isinstance(error, Lost):
        return True
    # The server has become a standby.
    return isinstance(error, psycopg.Error) and error.sqlstate == _READ_ONLY
