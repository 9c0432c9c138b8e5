"""What plugins may ask of Gatepost: DNS, shared state, the clock, the recipient directory, a way to send mail.

These are the only ways out. A plugin that needs a look-up uses `Dns`, so that the configured nameservers, the
cache and the limits hold for it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from gateway.mail.address import NULL_SENDER, Address, Sender
from gateway.mail.session import Session
from gateway.sdk.findings import WhenDown


class DnsStatus(StrEnum):
    """How a look-up ended."""

    OK = "ok"
    NODATA = "nodata"
    NXDOMAIN = "nxdomain"
    FAILED = "failed"
    """No usable answer: timeout, SERVFAIL, REFUSED, garbage. Trouble, never evidence."""


@dataclass(frozen=True, slots=True)
class Mx:
    """One MX record; `host` without the final dot, empty for a null MX (RFC 7505)."""

    preference: int
    host: str


@dataclass(frozen=True, slots=True)
class Tlsa:
    """One TLSA record (RFC 6698 section 2.1): the numbers as they stand there, and the certificate association data."""

    usage: int
    selector: int
    matching: int
    data: bytes

    def __str__(self) -> str:
        return f"{self.usage} {self.selector} {self.matching}"


Record = str | bytes | Mx | Tlsa


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one question.

    `records` by type: A, AAAA as address text; PTR, CNAME, NS as lower-case names without the final dot; TXT as
    octets with the strings joined; MX as `Mx`, sorted by preference then name; TLSA as `Tlsa`. Empty unless `status`
    is OK. `ttl` is in seconds; `problem` says what went wrong when the status is FAILED. `authentic` says that a
    nameserver which is trusted with it (`dns.dnssec`) has validated the answer by DNSSEC. `alias` is the name at the
    end of a chain of CNAMEs, empty when there was none.
    """

    status: DnsStatus
    records: tuple[Record, ...] = ()
    ttl: float = 0.0
    problem: str = ""
    authentic: bool = False
    alias: str = ""


class Dns(Protocol):
    """DNS through the configured nameservers: cached by TTL (0 is honoured), bounded, deduplicated."""

    async def lookup(self, name: str, rdtype: str) -> Answer:
        """Ask for one of A, AAAA, MX, TXT, PTR, CNAME, NS, TLSA. Does not raise for anything the network does."""
        ...


@dataclass(frozen=True, slots=True)
class Taken:
    """What a token bucket answered; `wait` seconds until there are enough tokens, 0 when allowed."""

    allowed: bool
    remaining: float
    wait: float


class StateError(Exception):
    """The state store did not answer. The plugin entry's `on_error` decides what that means."""


class State(Protocol):
    """Small shared state: survives a restart, shared by all workers (and replicas, with Redis).

    Keys are text of at most 512 characters, values at most 64 KiB. Every call may raise `StateError`.
    """

    @property
    def exact(self) -> State:
        """The same store without its stand-in: where replicas share a store that is down, a stand-in of this replica's
        own may answer for it, and this does not. For claims that only one of all may have, such as on a daily report.
        """
        ...

    async def get(self, key: str) -> bytes | None:
        """The value, or None when there is none or its time is over."""
        ...

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        """Store for `ttl` seconds."""
        ...

    async def put_new(self, key: str, value: bytes, ttl: float) -> bytes | None:
        """Store unless there is a value; give the value that was there, None when ours was stored."""
        ...

    async def delete(self, key: str) -> None:
        """Forget the key."""
        ...

    async def take(self, key: str, *, capacity: float, per_second: float, cost: float = 1.0) -> Taken:
        """Take `cost` tokens from the bucket `key`, all or none, in one atomic step.

        A bucket holds at most `capacity` tokens, starts full and refills by `per_second`. A cost of 0 only looks:
        it says what `remaining` is, is always allowed, and is cheaper than to take.
        """
        ...

    async def count(self, key: str, member: str, ttl: float, by: int = 1) -> int:
        """Add `by` to the count of `member` in the tally `key`, in one atomic step; gives the new count.

        The whole tally is forgotten `ttl` seconds after its first count. A member is text of at most 2,048 characters.
        """
        ...

    async def tally(self, key: str, limit: int = 10_000) -> dict[str, int]:
        """The counts of a tally, at most `limit` members, the largest counts first; empty when there is none."""
        ...


class Clock(Protocol):
    """Time, passed in so that tests can own it."""

    def now(self) -> float:
        """Seconds since 1970, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds from a point of no meaning; never goes back."""
        ...


class RecipientRule(StrEnum):
    """How the configuration says that a recipient is checked (`domains.X.recipients`)."""

    ANY = "any"
    LISTED = "listed"
    NOT_LISTED = "not-listed"
    CALLOUT = "callout"
    LDAP = "ldap"
    NOT_OURS = "not-ours"


class CalloutState(StrEnum):
    """What a server said when it was asked for an address: to RCPT, or to a search."""

    EXISTS = "exists"
    UNKNOWN = "unknown"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Callout:
    """A callout's result; `reply` is the server's text for the record.

    `down` says that the server as a whole could not be asked, and not only for this address.
    """

    state: CalloutState
    reply: str
    down: bool = False


@dataclass(frozen=True, slots=True)
class Store:
    """Who is asked for the recipients of a domain of ours: `name` for logs, empty when nobody has to be asked.

    `when_down` is what the domain's configuration says to do while it does not answer, None when it says nothing.
    """

    name: str = ""
    when_down: WhenDown | None = None


class Directory(Protocol):
    """The domains we take mail for and their recipients."""

    async def rule(self, address: Address) -> RecipientRule:
        """What the configuration says about this recipient. A list in a file is read again when it has changed."""
        ...

    def store(self, address: Address) -> Store | None:
        """Who knows this recipient; None when the domain is not ours. No I/O."""
        ...

    async def callout(self, address: Address) -> Callout:
        """Ask that store. Not cached here; does not raise.

        A next hop is asked with ``MAIL FROM:<>`` and RCPT, and no DATA; an LDAP server with a search.
        """
        ...


class Callouts(Protocol):
    """Mail hosts of domains that are not ours."""

    async def ask(self, address: Address, *, sender: Sender = NULL_SENDER, private: bool = False) -> Callout:
        """Ask the mail hosts of the address's domain (MX) with MAIL and RCPT, and no DATA. Not cached; does not raise.

        Hosts in networks that are not public are not connected to without `private`: whoever made the address up chose
        where it leads. UNKNOWN is any permanent refusal of RCPT, whatever its reason; `Callout.reply` has its code.
        """
        ...


class Lines(Protocol):
    """Connections that were not greeted yet."""

    async def early(self, session: Session, seconds: float) -> bool:
        """Whether the client of this session talks before its greeting: True as soon as it does, False after `seconds`.

        False at once for a session that is greeted, or closed.
        """
        ...


class OutboxError(Exception):
    """The message could not be queued."""


class Outbox(Protocol):
    """Mail of Gatepost's own, such as reports: it goes through the queue as other mail does."""

    async def send(self, sender: Sender, recipients: Sequence[Address], content: bytes) -> str:
        """Queue a message, durably; gives its queue id. `content` is the whole message with CRLF line ends.

        It is delivered by the configured routes. No DSN is made for it: where it cannot be delivered it is over, and
        that is logged. Raises `OutboxError`.
        """
        ...


class NoLines:
    """Where nobody is connected: `gatepost check`."""

    async def early(self, session: Session, seconds: float) -> bool:
        return False


class NoCallouts:
    """Where nobody is asked: `gatepost check`."""

    async def ask(self, address: Address, *, sender: Sender = NULL_SENDER, private: bool = False) -> Callout:
        return Callout(CalloutState.UNAVAILABLE, "no callouts here", down=True)


class NoOutbox:
    """Where nothing is queued: `gatepost check`."""

    async def send(self, sender: Sender, recipients: Sequence[Address], content: bytes) -> str:
        raise OutboxError("no queue runs here")


@dataclass(frozen=True, slots=True)
class Services:
    """The bundle a plugin gets as `self.services`."""

    dns: Dns
    state: State
    clock: Clock
    directory: Directory
    authserv_id: str
    hostname: str
    lines: Lines = field(default_factory=NoLines)
    outbox: Outbox = field(default_factory=NoOutbox)
    callouts: Callouts = field(default_factory=NoCallouts)
