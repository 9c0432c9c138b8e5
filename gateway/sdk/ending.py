"""How something ended: what plugins that learn from outcomes are told, after the client has its reply.

A greylist learns which clients delivered, a rate limit counts unknown recipients, DMARC reports count what was done.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from gateway.mail.envelope import Recipient
from gateway.mail.reply import Reply
from gateway.mail.session import Session
from gateway.sdk.findings import Finding
from gateway.sdk.stage import Stage, Transaction

_F = TypeVar("_F", bound=Finding)


class Outcome(StrEnum):
    """How a transaction ended."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    DEFERRED = "deferred"
    DISCARDED = "discarded"
    QUARANTINED = "quarantined"
    ABORTED = "aborted"
    """The client gave it up: RSET, a new HELO, QUIT."""
    DISCONNECTED = "disconnected"
    """The connection was lost, or a policy cut it."""


@dataclass(frozen=True, slots=True)
class Ending:
    """One end that the client was told of, or caused.

    `stage` is where it came to it: `connect` or `helo` for a session that was refused (then there is no
    `transaction`), `rcpt` for one recipient that was refused, `message` (or an earlier stage) for a whole transaction.
    An error of the client's own (a syntax error, an unknown command) comes with `stage` None. `entry` is the pipeline
    entry whose verdict decided, empty where relay control, a limit or the protocol did. `findings` are all that were
    there by then.
    """

    outcome: Outcome
    stage: Stage | None
    session: Session
    transaction: Transaction | None = None
    recipient: Recipient | None = None
    reply: Reply | None = None
    entry: str = ""
    size: int = 0
    findings: tuple[Finding, ...] = ()

    def finding(self, kind: type[_F]) -> _F | None:
        """The first finding of this kind, None when there is none."""
        return next((f for f in self.findings if isinstance(f, kind)), None)
