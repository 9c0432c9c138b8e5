"""One LDAP connection: opened, bound and asked by blocking calls, for a thread. ldap3 writes and reads the messages.

The socket is ours and not ldap3's, so that every wait ends at a deadline, however slowly the server drips, and an
answer has a bound. Certificates are checked by Python's `ssl`.

*Fails by*: `LinkError`, whatever the network or the server does; the link is closed then.

*RFCs*: 4511 (messages, StartTLS in section 4.14), 4513 section 5.1.2 (no bind with an empty password).
"""

from __future__ import annotations

import math
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import ldap3
from ldap3.core.exceptions import LDAPSocketReceiveError, LDAPSocketSendError
from ldap3.strategy.base import BaseStrategy
from ldap3.strategy.sync import SyncStrategy

from gateway.services.ldap_options import LdapOptions, LdapServer

MESSAGE_OCTETS: Final = 64 << 10
ANSWER_OCTETS: Final = 1 << 20
"""All messages that answer one question."""
_PASSWORD_OCTETS: Final = 4096
_BLOCK: Final = 16 << 10
_START_TLS: Final = "1.3.6.1.4.1.1466.20037"
_SUCCESS: Final = 0
_SIZE_LIMIT: Final = 4
_NO_SUCH_OBJECT: Final = 32
_SCOPES: Final = {"subtree": ldap3.SUBTREE, "one": ldap3.LEVEL, "base": ldap3.BASE}
_T = TypeVar("_T")


class LinkError(Exception):
    """No answer; the text says why, for the record. `slow` when it was the time that ran out."""

    def __init__(self, text: str, *, slow: bool = False) -> None:
        super().__init__("".join(c if c.isprintable() else "?" for c in text[:300]))
        self.slow = slow


class _Bounded(SyncStrategy):  # type: ignore[misc]  # ldap3 has no types
    """ldap3's way to send and receive, on a socket that is given to it, within a deadline and a number of octets."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self.deadline = 0.0
        self.octets = 0
        self.buffer = b""

    def attach(self, sock: socket.socket) -> None:
        """Work on this socket. ldap3 keeps bound methods of its strategy, so they are put in place again."""
        connection = self.connection
        connection.strategy = self
        for name in ("send", "open", "get_response", "post_send_single_response", "post_send_search"):
            setattr(connection, name, getattr(self, name))
        connection.socket, connection.closed = sock, False
        self._outstanding: dict[int, Any] = {}
        self._start_listen()

    def left(self) -> float:
        """Seconds until the deadline. Raises `LinkError` when it is over."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise LinkError("no answer in time", slow=True)
        return left

    def sending(self, ldap_message: Any) -> None:
        self.connection.socket.settimeout(self.left())
        super().sending(ldap_message)

    def receiving(self) -> list[bytes]:
        """All whole messages that are there, one at least; none when the server has hung up."""
        messages: list[bytes] = []
        while not messages:
            sock = self.connection.socket
            sock.settimeout(self.left())
            data = sock.recv(_BLOCK)
            if not data:
                return []
            self.octets += len(data)
            if self.octets > ANSWER_OCTETS:
                raise LinkError("the answer is too long")
            self.buffer += data
            while (size := BaseStrategy.compute_ldap_message_size(self.buffer)) != -1:
                # A sequence, or it is not LDAP at all.
                if self.buffer[0] != 0x30 or size > MESSAGE_OCTETS:
                    raise LinkError("the server does not speak LDAP")
                if len(self.buffer) < size:
                    break
                messages.append(self.buffer[:size])
                self.buffer = self.buffer[size:]
            if self.buffer and self.buffer[0] != 0x30:
                raise LinkError("the server does not speak LDAP")
        return messages


class Link:
    """A bound connection to one server. One thread at a time."""

    def __init__(self, server: LdapServer, connection: Any, strategy: _Bounded) -> None:
        self.server = server
        self._connection = connection
        self._strategy = strategy

    @classmethod
    def open(cls, server: LdapServer, address: str, options: LdapOptions, deadline: float) -> Link:
        """Connect to the address, with TLS where it is asked for, and bind. Raises `LinkError`."""
        password = _password(options.password_file) if options.bind_dn else None
        try:
            sock = socket.create_connection((address, server.port), max(0.001, deadline - time.monotonic()))
        except OSError as error:
            raise LinkError(f"connect to {address}: {_said(error)}", slow=isinstance(error, TimeoutError)) from error
        connection = ldap3.Connection(
            ldap3.Server(server.host, server.port, get_info=ldap3.NONE),
            options.bind_dn,
            password,
            auto_bind=ldap3.AUTO_BIND_NONE,
            auto_referrals=False,
            auto_range=False,
            auto_escape=False,
            check_names=False,
            read_only=True,
        )
        strategy = _Bounded(connection)
        strategy.attach(sock)
        link = cls(server, connection, strategy)
        link._run(deadline, lambda: link._greet(options))
        # It is not needed again, and what is not there cannot get into a log.
        connection.password = None
        return link

    def search(self, options: LdapOptions, filter: str, deadline: float) -> bool:
        """Whether an entry matches the filter. Raises `LinkError`."""
        return self._run(deadline, lambda: self._search(options, filter))

    def close(self) -> None:
        """Say goodbye, as far as that is possible at once, and close the socket."""
        self._strategy.deadline = time.monotonic() + 0.1
        try:
            self._connection.unbind()
        except Exception:  # noqa: BLE001  (it is over, whatever ldap3 thinks of it)
            self._strategy.close()

    def _run(self, deadline: float, work: Callable[[], _T]) -> _T:
        self._strategy.deadline, self._strategy.octets = deadline, 0
        try:
            return work()
        except LinkError:
            self.close()
            raise
        except TimeoutError as error:
            self.close()
            raise LinkError("no answer in time", slow=True) from error
        except (OSError, LDAPSocketSendError, LDAPSocketReceiveError) as error:
            self.close()
            raise LinkError(_said(error)) from error
        except Exception as error:
            self.close()
            raise LinkError(f"the answer is not understood ({type(error).__name__})") from error

    def _greet(self, options: LdapOptions) -> None:
        if options.starttls:
            self._connection.extended(_START_TLS)
            self._check("StartTLS")
            if self._strategy.buffer:
                raise LinkError("the server talks before TLS has begun")
        if self.server.tls or options.starttls:
            self._begin_tls(options.tls_ca)
        if options.bind_dn:
            self._connection.bind(read_server_info=False)
            self._check("bind")

    def _begin_tls(self, ca: str) -> None:
        context = ssl.create_default_context(cafile=ca or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        sock = self._connection.socket
        sock.settimeout(self._strategy.left())
        try:
            self._connection.socket = context.wrap_socket(sock, server_hostname=self.server.host)
        except ssl.SSLError as error:
            raise LinkError(f"TLS: {error.reason or error}") from error
        except ValueError as error:  # CertificateError is one
            raise LinkError(f"TLS: {error}") from error

    def _search(self, options: LdapOptions, filter: str) -> bool:
        self._connection.search(
            options.base,
            filter,
            _SCOPES[options.scope],
            dereference_aliases=ldap3.DEREF_NEVER,
            attributes=[ldap3.NO_ATTRIBUTES],
            size_limit=1,
            time_limit=math.ceil(self._strategy.left()),
            types_only=True,
        )
        found = any(entry.get("type") == "searchResEntry" for entry in self._connection.response)
        # One entry is all we asked for; that there are more is no trouble.
        if found and self._connection.result["result"] == _SIZE_LIMIT:
            return True
        self._check("search")
        return found

    def _check(self, what: str) -> None:
        result = self._connection.result
        if result["result"] == _SUCCESS:
            return
        if result["result"] == _NO_SUCH_OBJECT:
            raise LinkError("search: the base does not exist, or may not be read")
        message = f": {result['message']}" if result.get("message") else ""
        raise LinkError(f"{what}: {result['description']}{message}")


def _password(path: str) -> bytes:
    """The first line of the file, as octets. It is read at each connection, so that it can be changed meanwhile."""
    try:
        with open(path, "rb") as file:
            password = file.read(_PASSWORD_OCTETS).partition(b"\n")[0].removesuffix(b"\r")
    except OSError as error:
        raise LinkError(f"password_file cannot be read: {error.strerror}") from error
    if not password:
        raise LinkError("password_file is empty")
    return password


def _said(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
