"""The spool's interface: drafts, commits, claims, settlements, records.

*Promises*: `Spool.commit` returns only when content, envelope and decision record are synced; nothing else counts
as accepted. A settlement that leaves nothing to do and the DSN it owes are one atomic step. What cannot be read is
set aside as `State.CORRUPT`, never deleted.

*Fails by*: `SpoolFull` (no room: answer 452 4.3.1) and `SpoolError` (anything else of the disk: answer 451 4.3.0).
After either, nothing of the failed step is stored.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol

from gateway.mail.envelope import Envelope, Recipient
from gateway.mail.message import Content
from gateway.spool.postgres.options import PostgresOptions


class SpoolError(Exception):
    """The disk or the database under the spool failed."""


class SpoolFull(SpoolError):
    """There is no room for it: disk full, or less free than `spool.min_free`."""


class State(StrEnum):
    """State of a message in the spool."""

    QUEUED = "queued"
    """Due now or later."""
    HOLD = "hold"
    """Set aside by the postmaster, or undeliverable with nobody to tell; stays until released or dropped."""
    QUARANTINE = "quarantine"
    """Set aside by a policy."""
    CORRUPT = "corrupt"
    """Content missing or not what was stored."""
    LEAVING = "leaving"
    """Offered to another gateway, which may own it by now: see `gateway.spool.handover`."""


SET_ASIDE: Final = (State.HOLD, State.QUARANTINE)
"""States that a message stays in until somebody releases it."""
OURS: Final = tuple(state for state in State if state is not State.LEAVING)
"""States in which the message is certainly ours."""
RETURNED: Final = "returned"
"""How the `reason` of a queued message begins whose sender is to get it back: nobody is tried any more."""


class RecipientStatus(StrEnum):
    """State of one recipient of a queued message."""

    PENDING = "pending"
    DEFERRED = "deferred"
    DELIVERED = "delivered"
    FAILED = "failed"
    EXPIRED = "expired"

    @property
    def open(self) -> bool:
        return self in _OPEN


_OPEN: Final = (RecipientStatus.PENDING, RecipientStatus.DEFERRED)


@dataclass(frozen=True, slots=True)
class Slot:
    """One recipient and where its delivery stands. `due` is epoch seconds; `last` the latest reply or problem."""

    recipient: Recipient
    status: RecipientStatus = RecipientStatus.PENDING
    due: float = 0.0
    attempts: int = 0
    last: str = ""


@dataclass(frozen=True, slots=True)
class NewMessage:
    """What `commit` stores besides the draft's content.

    `head` replaces the first `skip` octets of the draft: Gatepost's trace fields and, where something was edited,
    the whole header section. `owed` says that a DSN is owed to the sender when delivery fails (never for the null
    sender; not for strangers, who may be forged). `record` is the decision record; None when records are off.
    """

    id: str
    envelope: Envelope
    received: float
    head: bytes
    skip: int = 0
    state: State = State.QUEUED
    owed: bool = False
    trusted: bool = False
    reason: str = ""
    record: dict[str, Any] | None = None
    content: Draft | None = None
    """A draft of its own (`Spool.draft` with `edited`) in place of the one that is committed."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A message as the spool has it. `envelope.recipients` are those of `slots`, in the same order."""

    id: str
    state: State
    envelope: Envelope
    slots: tuple[Slot, ...]
    received: float
    size: int
    owed: bool
    trusted: bool
    warned: bool = False
    reason: str = ""
    """Why it is on hold, in quarantine, corrupt or, where it begins with `RETURNED`, given up by the postmaster."""

    @property
    def returned(self) -> bool:
        """Whether it goes back to its sender and no further."""
        return self.state is State.QUEUED and self.reason.startswith(RETURNED)

    @property
    def due(self) -> float:
        """When the next recipient is due; infinity when none is open."""
        return min((s.due for s in self.slots if s.status.open), default=float("inf"))


@dataclass(frozen=True, slots=True)
class Claimed:
    """A message handed to the scheduler, which alone works on it until it settles it.

    `lane` is what it was filed under, empty for nothing; None for mail that came in a moment ago, from memory.
    """

    message: Stored
    content: Content
    lane: str | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """How much mail a claim may take from the disk: `total`, of that `unfiled` from no lane and `filed` from lanes.

    Of each priority of a lane at most `share`, or what `lanes` says of it (high, normal, low). Lanes that are not
    `proven`, since nothing got through there lately, may have `suspect` together, so that many of those that hang do
    not take all places. The `hungry` ones, which work faster than rounds come by, may have half of `filed` before the
    round. `again` says that there may be room now where there was none before.
    """

    total: int
    unfiled: int
    filed: int
    share: int
    suspect: int = 1_000_000
    lanes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    proven: frozenset[str] = frozenset()
    hungry: Sequence[str] = ()
    again: bool = True

    def of(self, lane: str, rank: int) -> int:
        """How much of a lane's priority number `rank`."""
        known = self.lanes.get(lane)
        return self.share if known is None else known[rank]


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt for one recipient, kept with the decision record.

    `tls` is version and cipher, `tls_policy` the rule for TLS that applied, `tls_peer` how the next hop was
    authenticated.
    """

    time: float
    recipient: str
    outcome: str
    reply: str
    host: str = ""
    seconds: float = 0.0
    tls: str = ""
    tls_policy: str = ""
    tls_peer: str = ""

    def to_json(self) -> dict[str, Any]:
        """As it is kept; what was said of TLS, where there was anything to say."""
        out: dict[str, Any] = {
            "time": round(self.time, 3),
            "recipient": self.recipient,
            "outcome": self.outcome,
            "reply": self.reply,
            "host": self.host,
            "seconds": round(self.seconds, 4),
        }
        if self.tls_policy:
            out["tls"] = {"policy": self.tls_policy, "session": self.tls, "peer": self.tls_peer}
        return out


@dataclass(frozen=True, slots=True)
class NewDsn:
    """A DSN to be queued in the same atomic step as the settlement that owes it: the whole message, in octets."""

    message: NewMessage
    content: bytes


@dataclass(frozen=True, slots=True)
class Settlement:
    """The result of working on a claimed message.

    `slots` replaces the message's slots. With no open slot left the message is removed, unless `hold` gives a reason to
    keep it on hold instead. `dsns` are committed first, in the same step.

    `lane` is the destination that all open recipients go to, empty where there are several or none is known: claims are
    shared out by it. At `deadline`, epoch seconds, the message is claimed whatever its lane's room is.
    """

    id: str
    slots: tuple[Slot, ...]
    attempts: tuple[AttemptRecord, ...] = ()
    dsns: tuple[NewDsn, ...] = ()
    hold: str = ""
    warned: bool = False
    lane: str = ""
    deadline: float = 1e18


@dataclass(frozen=True, slots=True)
class Explained:
    """What `gatepost explain` shows: the record and the attempts made since. `stored` is None once it has left."""

    record: dict[str, Any]
    attempts: tuple[dict[str, Any], ...] = ()
    stored: Stored | None = None


class Draft(Protocol):
    """A message while it arrives: in memory up to 256 KiB, beyond that in a file of the spool."""

    @property
    def size(self) -> int:
        """Octets written so far."""

    @property
    def head(self) -> bytes:
        """The first octets, at most 256 KiB: enough to hold any header section that is accepted."""

    @property
    def eight_bit(self) -> bool:
        """Whether any octet written is over 127."""

    async def write(self, data: bytes) -> None:
        """Append. Raises `SpoolFull` or `SpoolError`."""

    def blocks(self) -> AsyncIterator[bytes]:
        """What was written, for filters; see `gateway.mail.message.Content`."""

    async def abandon(self) -> None:
        """Forget it; after `commit` this does nothing."""


class Inlet(Protocol):
    """What the front door needs of a spool."""

    def check_room(self, size: int) -> None:
        """Raise `SpoolFull` when `size` more octets would leave less than `min_free`. Cheap enough for every MAIL."""

    def draft(self, id: str, *, edited: bool = False) -> Draft:
        """Begin a message; with `edited` the content that it gets in place of its draft's."""

    async def commit(self, draft: Draft, message: NewMessage, *copies: NewMessage) -> None:
        """Make it durable. When this returns we are responsible for the message.

        `copies` are further messages of the same content (or of `NewMessage.content`), for other recipients; all are
        stored, or none.
        """

    def note(self, record: dict[str, Any]) -> None:
        """Keep a decision record (keys `id` and `time`); written soon, not waited for. Same id replaces."""


class Spool(Inlet, Protocol):
    """Where accepted mail lives. One instance per worker."""

    async def claim(self, now: float, limit: int, room: Room | None = None) -> Sequence[Claimed]:
        """At most `limit` queued messages with a recipient due by `now`, each handed out once until settled.

        `room` says how much of that may come from the disk, and whose; without it, what is due first.
        """

    def changed(self) -> bool:
        """Whether an operator changed something since this was asked last."""

    def attend(self, ring: Callable[[], None]) -> None:
        """Have `ring` called, on the event loop, soon after an operator changed something."""

    async def next_due(self, now: float) -> float | None:
        """When the earliest unclaimed message is due, epoch seconds; None when there is none.

        What the last claim had no room for does not count.
        """

    async def settle(self, settlement: Settlement) -> None:
        """Store the result of work on a claimed message and let go of it."""

    # For the operator; also used by the command line on a spool whose gateway is not running.

    async def list(self, *, state: State | None = None, limit: int = 1000, after: str = "") -> Sequence[Stored]:
        """Messages by id, rising, beginning after `after`."""

    async def show(self, id: str) -> Claimed | None:
        """One message with its content, not claimed."""

    async def counts(self) -> dict[State, int]:
        """Messages per state."""

    async def oldest(self) -> dict[State, float]:
        """When the oldest message of each state came, epoch seconds; no entry for a state that has none.

        Of queued mail, what this instance and nobody have in hand: of several instances the least counts. Look-ups, not
        a scan.
        """

    async def hold(self, ids: Sequence[str], reason: str) -> int:
        """Set queued messages aside until they are released."""

    async def release(
        self,
        ids: Sequence[str],
        *,
        by: str = "",
        to: Sequence[Recipient] = (),
        states: Collection[State] = SET_ASIDE,
    ) -> int:
        """Queue messages in one of `states` again, due now; failed and expired recipients are tried again.

        `to` are other recipients in place of those it has; such a message goes where the routes lead, even if it had
        a next hop of its own. `by` says who wants it so: it is kept with the attempts as ``released``, with the state
        that the message was in and the reason.
        """

    async def drop(self, ids: Sequence[str], *, by: str = "", states: Collection[State] = OURS) -> int:
        """Remove messages in one of `states` for good, without a DSN; `by` is kept as ``dropped``."""

    async def expire(self, state: State, before: float, limit: int, *, by: str = "") -> Sequence[Stored]:
        """Remove at most `limit` messages in this state that came before this time, as `drop` does: these were they.

        `by` is kept as ``expired``.
        """

    async def explain(self, id: str) -> Sequence[Explained]:
        """By queue id or transaction id (one), or by session id (all of its transactions)."""

    async def attempts(self, first: str, last: str) -> dict[str, Sequence[dict[str, Any]]]:
        """The attempts of all ids from `first` to `last`, by id, in the order in which they were made."""

    async def records(
        self, *, after: str = "", before: str = "", limit: int = 1000, newest: bool = False
    ) -> Sequence[dict[str, Any]]:
        """Decision records with ids between these, at most `limit`: the first ones, rising, or the last ones, falling.

        Ids rise with time: `gateway.mail.session.ids_from` makes a bound of a moment.
        """

    async def record_texts(
        self, *, after: str = "", before: str = "", limit: int = 1000, newest: bool = False
    ) -> Sequence[tuple[str, bytes]]:
        """Those with their ids, as they are stored: JSON, unless the row is damaged."""

    async def close(self) -> None:
        """Finish what was begun and close the files."""


class Step(StrEnum):
    """The durable steps, in the order of docs/spool.md. Crash tests stop the process at each of them."""

    FILE_WRITTEN = "file-written"
    FILE_SYNCED = "file-synced"
    DIRECTORY_SYNCED = "directory-synced"
    COMMIT_BEGUN = "commit-begun"
    COMMIT_DONE = "commit-done"
    CLAIM_DONE = "claim-done"
    SETTLE_BEGUN = "settle-begun"
    SETTLE_DONE = "settle-done"
    FILE_REMOVED = "file-removed"
    RECOVERY_BEGUN = "recovery-begun"
    RECOVERY_DONE = "recovery-done"
    LEAVE_DONE = "leave-done"
    TAKE_BEGUN = "take-begun"
    TAKE_DONE = "take-done"
    LEFT_BEGUN = "left-begun"
    LEFT_DONE = "left-done"


HANDOVER_STEPS: Final = (Step.LEAVE_DONE, Step.TAKE_BEGUN, Step.TAKE_DONE, Step.LEFT_BEGUN, Step.LEFT_DONE)
"""Those of messages that go from one gateway to another."""


@dataclass(frozen=True, slots=True)
class SpoolOptions:
    """See `spool:` in gatepost.example.yaml."""

    path: str
    min_free: int = 100 << 20
    keep_records: float = 7 * 86400.0
    record: bool = True
    keep_octets: int = 0
    """Of records and attempts, all shards together; 0 is no bound."""
    redact: bool = False
    key_file: str = ""
    """With `redact`: where the key is."""
    postgres: PostgresOptions | None = None
    """The database that holds the mail instead of `path`."""
