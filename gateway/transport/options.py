"""Options of delivery by SMTP and LMTP. Frozen; a reload makes new transports."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class EightBit(StrEnum):
    """What to do with 8-bit content when the next hop does not offer 8BITMIME (RFC 6152)."""

    SEND = "send"
    """Send it as it is: nearly every host takes it, and a conversion would break signatures."""
    FAIL = "fail"
    """Fail with 5.6.3."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to wait for the next hop, by RFC 5321 section 4.5.3.2. Each is for one reply or one block."""

    connect: float = 30.0
    """TCP, per address."""
    hello: float = 300.0
    """Greeting, EHLO, STARTTLS and the TLS handshake."""
    command: float = 300.0
    """MAIL, RCPT, RSET."""
    data: float = 120.0
    """354 after DATA."""
    block: float = 180.0
    """The next hop takes a block of content."""
    dot: float = 600.0
    """The reply after the final dot."""
    quit: float = 5.0
    """QUIT; nothing depends on its reply."""


@dataclass(frozen=True, slots=True)
class SmtpOptions:
    """How this gateway speaks to next hops.

    `hostname` is what EHLO says, and the name by which we find ourselves among MX hosts. A connection is kept for
    `max_idle` seconds after a message and carries at most `messages_per_connection`. A message for more than
    `recipients_per_message` recipients is sent several times over. At most `max_addresses` addresses are tried per
    attempt.
    """

    hostname: str
    timeouts: Timeouts = Timeouts()
    max_idle: float = 20.0
    messages_per_connection: int = 100
    recipients_per_message: int = 100
    max_addresses: int = 10
    eight_bit: EightBit = EightBit.SEND
