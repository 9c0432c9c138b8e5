"""A policy request with its attributes' meaning: where the SMTP session stands, whose it is, what was said.

*RFCs*: 3461 is not seen here, since Postfix tells policy servers no DSN parameters.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from gateway.guest.envelope import parse_size
from gateway.mail.envelope import MailParameters
from gateway.mail.session import IPAddress, Session, Tls, new_session_id, plain_address
from gateway.sdk.stage import Stage

UNKNOWN_CLIENT: Final = ipaddress.IPv4Address("0.0.0.0")
"""Stands for a client whose address the MTA does not know; no list has it."""

_NAME_CHARACTERS: Final = 512


class RequestError(ValueError):
    """A request that makes no sense; the text says why."""


class State(Enum):
    """Where the SMTP session stands (``protocol_state``), and up to which stage that can be judged."""

    CONNECT = Stage.CONNECT
    HELO = Stage.HELO
    MAIL = Stage.MAIL
    RCPT = Stage.RCPT
    DATA = Stage.DATA
    END = Stage.MESSAGE


_STATES: Final = {
    "CONNECT": State.CONNECT,
    # The client is another than the one that connected.
    "XCLIENT": State.CONNECT,
    "EHLO": State.HELO,
    "HELO": State.HELO,
    # These two tell a client something, and begin nothing.
    "VRFY": State.HELO,
    "ETRN": State.HELO,
    "MAIL": State.MAIL,
    "RCPT": State.RCPT,
    "DATA": State.DATA,
    "BDAT": State.DATA,
    "END-OF-MESSAGE": State.END,
}


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `sender` and `recipient` are as the MTA wrote them.

    `recipient` is the one in question; after DATA it is there only if the message has no other.
    """

    state: State
    instance: str
    client: IPAddress
    port: int
    helo: str
    esmtp: bool
    tls: Tls | None
    name: str
    login: str
    sender: str
    recipient: str
    size: int
    queue_id: str

    @property
    def caller(self) -> tuple[IPAddress, int, str]:
        """What tells this client's session from others, as far as the MTA knows it (the port is 0 if not)."""
        return (self.client, self.port, self.name)

    @property
    def parameters(self) -> MailParameters:
        return MailParameters(size=self.size)

    def session(self, listener: str, now: float, trusted: Callable[[IPAddress], bool]) -> Session:
        """A session that begins with this request, as far as it was said."""
        known = bool(self.login) or trusted(self.client)
        return Session(
            new_session_id(),
            self.client,
            self.port,
            self.client,
            listener,
            now,
            self.helo,
            self.esmtp,
            self.tls,
            self.name,
            known,
        )


def read_request(attributes: Mapping[str, str]) -> Request:
    """The request that the attributes make. Raises `RequestError`."""
    state = _STATES.get(attributes.get("protocol_state", ""))
    if state is None:
        raise RequestError("protocol_state is none that is known")
    version = _short(attributes, "encryption_protocol")
    return Request(
        state,
        _short(attributes, "instance"),
        _client(attributes.get("client_address", "")),
        _port(attributes.get("client_port", "")),
        # A client may give one as long as it likes, and is not to be left unjudged for it.
        attributes.get("helo_name", "")[:_NAME_CHARACTERS],
        attributes.get("protocol_name", "") == "ESMTP",
        Tls(version, _short(attributes, "encryption_cipher")) if version else None,
        "" if attributes.get("client_name") == "unknown" else _short(attributes, "client_name"),
        _short(attributes, "sasl_username"),
        attributes.get("sender", ""),
        attributes.get("recipient", ""),
        parse_size(attributes.get("size", "")),
        _short(attributes, "queue_id"),
    )


def _short(attributes: Mapping[str, str], name: str) -> str:
    value = attributes.get(name, "")
    if len(value) > _NAME_CHARACTERS:
        raise RequestError(f"{name} is too long")
    return value


def _client(text: str) -> IPAddress:
    if text in ("", "unknown"):
        return UNKNOWN_CLIENT
    try:
        client = ipaddress.ip_address(text)
    except ValueError as error:
        raise RequestError("client_address is no address") from error
    return plain_address(client)


def _port(text: str) -> int:
    port = parse_size(text)
    return port if port < 65536 else 0
