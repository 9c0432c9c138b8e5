"""What every transport is: a delivery goes in, one outcome per recipient comes out.

*Fails by*: nothing. Whatever the network or the next hop does becomes an outcome; an exception out of `deliver` is a
bug, or content that cannot be read, and the queue treats it as a deferral of all recipients who have no outcome yet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from gateway.mail.address import Sender
from gateway.mail.envelope import MailParameters, Origin, Recipient
from gateway.mail.message import Content
from gateway.mail.reply import Reply
from gateway.transport.options import PLAIN_HOP, HopOptions, LocalOptions, WebhookOptions


class Kind(StrEnum):
    """Which transport carries it."""

    SMTP = "smtp"
    LMTP = "lmtp"
    MAILDIR = "maildir"
    MBOX = "mbox"
    PIPE = "pipe"
    HTTP = "http"
    DISCARD = "discard"
    NAMED = "transport"
    """A name of the configuration's `transports`, which `gateway.transport.routing.Router` looks up."""


class Security(StrEnum):
    """TLS towards the next hop (`domains.X.tls`, `routes.X.tls`)."""

    NONE = "none"
    OPPORTUNISTIC = "opportunistic"
    """STARTTLS when offered, any certificate; in the clear when it is not offered or the handshake fails."""
    REQUIRE = "require"
    """STARTTLS or deferral, any certificate."""
    VERIFY = "verify"
    """STARTTLS with a certificate for the next hop's name from a trusted CA, or deferral."""
    DANE = "dane"
    """What the host's TLSA records ask for; as OPPORTUNISTIC where there are none."""
    DANE_ONLY = "dane-only"
    """What the host's TLSA records ask for; deferral where there are none."""


@dataclass(frozen=True, slots=True)
class Server:
    """One server: `host` and `port`, or `path` of a unix socket.

    Of several, those with the lowest `priority` go first; who share one are chosen in proportion to their `weight`, as
    RFC 2782 says it for SRV records.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    priority: int = 1
    weight: int = 1

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Destination:
    """A place mail goes to: what deliveries are grouped, limited and pooled by.

    For SMTP and LMTP: `host` and `port`, or `path` of a unix socket, or several servers in `alternatives`; with `mx`,
    `host` is a domain whose MX records are looked up; `literal` says that the recipient's domain is the address in
    `host`; `hop` is how servers are spoken to. For maildir and mbox: `path`. `name` is that of the configuration's
    `transports`, and `options` are what it says there.
    """

    kind: Kind
    host: str = ""
    port: int = 0
    path: str = ""
    mx: bool = False
    security: Security = Security.OPPORTUNISTIC
    tls_ca: str = ""
    tls_names: tuple[str, ...] = ()
    """For VERIFY: names that the certificate may be for, instead of the host's."""
    name: str = ""
    options: LocalOptions | None = None
    hop: HopOptions = PLAIN_HOP
    alternatives: tuple[Server, ...] = ()
    literal: bool = False

    @property
    def servers(self) -> tuple[Server, ...]:
        """The servers that the configuration names, or the recipient; none with `mx`."""
        if self.mx or self.kind not in (Kind.SMTP, Kind.LMTP):
            return ()
        return self.alternatives or (Server(self.host, self.port, self.path),)

    def __str__(self) -> str:
        if self.name:
            return f"transport:{self.name}"
        if isinstance(self.options, WebhookOptions):
            # What follows the path may be a secret.
            return self.options.url.partition("?")[0]
        if self.mx:
            return f"mx:{self.host}"
        if self.kind is Kind.DISCARD:
            return "discard"
        if self.servers:
            return ",".join(f"{self.kind}:{server}" for server in self.servers)
        return f"{self.kind}:{self.path}"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message for some recipients that share a destination. `id` is the queue id, `origin` whom it came from."""

    id: str
    sender: Sender
    parameters: MailParameters
    recipients: tuple[Recipient, ...]
    content: Content
    origin: Origin | None = None


class Result(StrEnum):
    """How an attempt ended for one recipient."""

    DELIVERED = "delivered"
    DEFERRED = "deferred"
    FAILED = "failed"


class Fault(StrEnum):
    """Whose doing an outcome is. CONNECT means that the destination as a whole could not be reached."""

    NONE = "none"
    PEER = "peer"
    CONNECT = "connect"
    OURS = "ours"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One recipient's outcome. `reply` is the next hop's, or one of ours that says what happened (4.4.1 and so on).

    `host` is the next hop's name for the record and the DSN's Remote-MTA; `replied` says that `reply` came from it.
    `dsn_passed` says that the next hop offers DSN, so that it will send what NOTIFY=SUCCESS asks for. `retry_after`
    is how many seconds a next hop that defers wants to be left alone, at least. `tls` is version and cipher, empty in
    the clear; `tls_policy` the rule that applied; `tls_peer` how the next hop was authenticated, empty when it was not.
    """

    result: Result
    reply: Reply
    host: str = ""
    replied: bool = False
    fault: Fault = Fault.NONE
    dsn_passed: bool = False
    tls: str = ""
    retry_after: float = 0.0
    tls_policy: str = ""
    tls_peer: str = ""


class BrokenOff(Exception):
    """A delivery that could not go on, by its cause. `outcomes` are those of the recipients who had their turn."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        super().__init__(f"after {len(outcomes)} recipients")
        self.outcomes = list(outcomes)


@contextlib.contextmanager
def keeping(outcomes: Sequence[Outcome]) -> Iterator[None]:
    """What raises inside takes nothing back: who was delivered by then would get it twice. Raises `BrokenOff`."""
    try:
        yield
    except Exception as error:
        if outcomes:
            raise BrokenOff(outcomes) from error
        raise


class Transport(Protocol):
    """Delivers to one `Destination`; reuses connections between calls, and may be called concurrently."""

    async def deliver(self, delivery: Delivery) -> list[Outcome]:
        """Attempt it once. Gives one outcome per recipient, in their order.

        Raises `BrokenOff` when some have theirs already.
        """

    async def close(self) -> None:
        """Close idle connections (with QUIT)."""
