"""What happens on an SMTP or LMTP connection, as `gateway.transport.client` tells it: steps, phases, events."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from gateway.mail.reply import Reply


class Step(IntEnum):
    """What a reply is awaited for."""

    GREETING = 0
    EHLO = 1
    HELO = 2
    STARTTLS = 3
    MAIL = 4
    RCPT = 5
    DATA = 6
    DOT = 7
    RSET = 8
    CHUNK = 9
    """BDAT with more to come."""
    LAST = 10
    """BDAT with the end of the content."""
    XCLIENT = 11
    XFORWARD = 12
    AUTH = 13


class Phase(Enum):
    """Where the connection stands. The values read after "while" in problem texts."""

    HELLO = "in the greeting"
    TLS = "before the TLS handshake"
    IDLE = "idle"
    ENVELOPE = "sending the envelope"
    CONTENT = "sending the content"
    DOT = "waiting for the reply to the content"
    CLOSED = "closed"


class Signal(Enum):
    """Events that carry nothing."""

    READY = "ready"
    """EHLO is done; a transaction may begin."""
    START_TLS = "start tls"
    """Do the handshake now, then call `Codec.tls_established`."""
    SEND_CONTENT = "send content"
    """Write the content with its final dot, then call `Codec.content_sent`; or in chunks, by `Codec.chunk`."""
    NEXT_CHUNK = "next chunk"
    """The chunk was taken, and the peer wants to be asked before each."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The next hop does not want to talk to us: greeting or EHLO refused, or 421 before the first transaction."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Unauthenticated:
    """We could not log in: the next hop's `reply` to AUTH, or None where it did not come to that, and `problem` why."""

    problem: str
    reply: Reply | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """The connection is of no more use outside of a transaction."""

    problem: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A transaction is over. `replies` by recipient, None for those whose fate the peer never told.

    `mail_refused` says that the replies are the one to MAIL; `mail_answered` that MAIL got any reply (421 apart);
    `open` that the connection can be used again; `problem` what broke it, if the peer did; `no_chunks` that the peer
    does not know BDAT, though it offered it, and so has taken nothing.
    """

    replies: tuple[Reply | None, ...]
    mail_refused: bool = False
    mail_answered: bool = True
    open: bool = True
    problem: str = ""
    no_chunks: bool = False


Event = Signal | Refused | Unauthenticated | Broken | Finished
