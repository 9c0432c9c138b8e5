"""Options of the transports. Frozen; a reload makes new transports."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.transport.order import Families
from gateway.transport.own import NOWHERE, OwnAddresses
from gateway.transport.sasl import MechanismName


class EightBit(StrEnum):
    """What to do with 8-bit content when the next hop does not offer 8BITMIME (RFC 6152)."""

    CONVERT = "convert"
    """Write it in 7 bits; what cannot be converted fails with 5.6.3."""
    BOUNCE = "bounce"
    """Fail with 5.6.3."""
    SEND = "send"
    """Send it as it is, against the RFC."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to wait for the next hop, by RFC 5321 section 4.5.3.2. Each is for one reply or one block."""

    connect: float = 30.0
    """TCP, per address."""
    hello: float = 300.0
    """Greeting, EHLO, STARTTLS."""
    tls: float = 60.0
    """The TLS handshake."""
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


class Proxy(StrEnum):
    """The PROXY protocol header that a connection begins with."""

    NONE = "none"
    V1 = "v1"
    V2 = "v2"


@dataclass(frozen=True, slots=True)
class Credentials:
    """How to log in at a next hop. The password is the first line of a file, or stands in an environment variable.

    It is read for each connection. See `gateway.transport.sasl.Login` for the rest.
    """

    user: str
    password_file: str = ""
    password_env: str = ""
    mechanisms: tuple[MechanismName, ...] = tuple(MechanismName)
    without_tls: bool = False


@dataclass(frozen=True, slots=True)
class HopOptions:
    """How this gateway speaks to one next hop by SMTP or LMTP. `chunking` allows BDAT where it is offered.

    `xclient`, `xforward` and `proxy` tell it whom a message came from; the first two where they are offered. With
    `auth`, nothing is sent before we have logged in.
    """

    eight_bit: EightBit = EightBit.CONVERT
    chunking: bool = True
    xclient: bool = False
    xforward: bool = False
    proxy: Proxy = Proxy.NONE
    auth: Credentials | None = None


PLAIN_HOP: Final = HopOptions()


@dataclass(frozen=True, slots=True)
class SmtpOptions:
    """How this gateway speaks to next hops.

    `hostname` is what EHLO says, and the name by which we find ourselves among MX hosts. A connection is kept for
    `max_idle` seconds after a message and carries at most `messages_per_connection`. A message for more than
    `recipients_per_message` recipients is sent several times over. At most `max_addresses` addresses are tried per
    attempt, of `families`; when one has not answered for `next_address` seconds, the next is tried beside it, unless
    `connections` to the destination are open already. `own` are the addresses by which we find ourselves.
    """

    hostname: str
    timeouts: Timeouts = Timeouts()
    max_idle: float = 20.0
    messages_per_connection: int = 100
    recipients_per_message: int = 100
    max_addresses: int = 10
    families: Families = Families.IPV4_FIRST
    next_address: float = 0.25
    connections: int = 20
    own: OwnAddresses = NOWHERE


class LineEnds(StrEnum):
    """Line ends of a message that is handed to a command."""

    LF = "lf"
    """As Unix tools expect them."""
    CRLF = "crlf"
    """As they come over the wire."""


@dataclass(frozen=True, slots=True)
class RunAs:
    """Whom a command runs as, looked up at each run. Without `group`, as the user's own."""

    user: str
    group: str = ""


PERMANENT_EXITS: Final = (65, 67, 68, 69, 77)
"""Exit statuses of sysexits.h by which a command refuses a message or a recipient for good."""


@dataclass(frozen=True, slots=True)
class PipeOptions:
    """A command that takes messages on its standard input. See `gateway.transport.pipe`.

    `command` is its words, with placeholders. Without `run_as` it runs as we do. `timeout` is in seconds. An exit
    status in `fail_on` fails the recipients for good; any other than 0 defers them. `environment` is added to what
    every command is given.
    """

    command: tuple[str, ...]
    run_as: RunAs | None = None
    timeout: float = 300.0
    recipients_per_run: int = 1
    line_ends: LineEnds = LineEnds.LF
    from_line: bool = False
    return_path: bool = True
    delivered_to: bool = True
    fail_on: tuple[int, ...] = PERMANENT_EXITS
    environment: tuple[tuple[str, str], ...] = ()


class OverQuota(StrEnum):
    """What becomes of a message that has no room in a mailbox."""

    DEFER = "defer"
    """452 4.2.2."""
    FAIL = "fail"
    """552 5.2.2."""


@dataclass(frozen=True, slots=True)
class MaildirOptions:
    """`quota` in octets and `quota_messages` bound each Maildir; 0 is no bound of ours.

    With neither, the quota that a Maildir's own ``maildirsize`` names is kept.
    """

    quota: int = 0
    quota_messages: int = 0
    over_quota: OverQuota = OverQuota.DEFER


@dataclass(frozen=True, slots=True)
class MboxOptions:
    """Seconds to wait for a mailbox that another program has locked, and the age of a dotlock that nobody holds."""

    lock_timeout: float = 30.0
    stale_lock: float = 300.0


class WebhookFormat(StrEnum):
    """How a message is put into a POST."""

    MESSAGE = "message"
    """The body is the message (message/rfc822), the envelope stands in the header."""
    MULTIPART = "multipart"
    """multipart/form-data with the envelope as JSON and the message."""


@dataclass(frozen=True, slots=True)
class WebhookOptions:
    """Where and how messages are posted. `token_file` holds a bearer token; `tls_ca` replaces the system's CAs.

    `timeout`, in seconds, is for one request as a whole.
    """

    url: str
    format: WebhookFormat = WebhookFormat.MESSAGE
    token_file: str = ""
    tls_ca: str = ""
    timeout: float = 60.0
    recipients_per_request: int = 20


LocalOptions = PipeOptions | MaildirOptions | MboxOptions | WebhookOptions
