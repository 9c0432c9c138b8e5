"""What is written down of a visit: the decision record, the log line, and the word to plugins that learn.

Records carry ``mta`` beside what `gateway.pipeline.record` lists: ``queue_id`` as far as the MTA told it, ``through``
(``delegate`` or ``milter``), and ``left_out``, what of the decision the MTA could not be told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from gateway.guest.ruling import Ruling, outcome_of
from gateway.mail.edit import Edit
from gateway.mail.envelope import Recipient
from gateway.mail.reply import Reply
from gateway.mail.session import Session, transaction_id
from gateway.ops import log, metrics
from gateway.pipeline.loader import Pipeline
from gateway.pipeline.record import Trace, build
from gateway.pipeline.runner import PipelineSession
from gateway.sdk.ending import Ending, Outcome
from gateway.sdk.findings import Finding
from gateway.sdk.services import Clock
from gateway.sdk.stage import Stage, Transaction

_log = log.get()
_LEFT_OUT: Final = 100


class Records(Protocol):
    """Where decision records are kept; see `gateway.spool.spool.Spool.note`."""

    def note(self, record: dict[str, Any]) -> None: ...


@dataclass(slots=True)
class Entry:
    """A transaction's entry in the ledger, while it is open."""

    txn: Transaction
    started: float
    queue_id: str = ""
    judged: list[tuple[str, str]] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


class Ledger:
    """Writes down how sessions, recipients and messages end. Nothing here decides anything."""

    def __init__(self, records: Records, clock: Clock, pipeline: Pipeline, through: str, config: str = "") -> None:
        self._records = records
        self._clock = clock
        self._pipeline = pipeline
        self._through = through
        self._config = config

    def session_refused(self, judge: PipelineSession, session: Session, stage: Stage, ruling: Ruling) -> Reply:
        """A refusal at connect or helo, recorded under the session's transaction number 0. Gives the reply with it."""
        reply = _reply(ruling)
        id = transaction_id(session.id, 0)
        record = build(
            session=session,
            id=id,
            started=self._clock.now(),
            traces=judge.traces,
            outcome=outcome_of(ruling),
            reply=str(reply),
            pipeline=self._pipeline.name,
            config=self._config,
        )
        self._records.note({**record, "mta": {"through": self._through}})
        _log.info(
            "session.refused",
            session=session.id,
            client=str(session.client),
            helo=session.helo,
            plugin=ruling.entry,
            reply=str(reply),
            reason=ruling.reason,
        )
        if judge.learns:
            outcome = outcome_of(ruling)
            judge.tell(Ending(outcome, stage, session, reply=reply, entry=ruling.entry, findings=judge.found))
        return reply.referring(id)

    def recipient_refused(
        self, judge: PipelineSession, entry: Entry, recipient: Recipient, ruling: Ruling, found: tuple[Finding, ...]
    ) -> None:
        """One recipient was not taken."""
        reply, txn = _reply(ruling), entry.txn
        _log.info(
            "recipient.refused",
            session=txn.session.id,
            id=txn.id,
            queue_id=entry.queue_id,
            client=str(txn.session.client),
            sender=str(txn.sender),
            recipient=str(recipient.address),
            plugin=ruling.entry,
            reply=str(reply),
            reason=ruling.reason,
        )
        if judge.learns:
            outcome = outcome_of(ruling)
            judge.tell(Ending(outcome, Stage.RCPT, txn.session, txn, recipient, reply, ruling.entry, findings=found))

    def note(
        self, entry: Entry, traces: Sequence[Trace], outcome: Outcome, reply: Reply | None, *, size: int = 0
    ) -> None:
        """Keep the record as it is by now; a later one replaces it."""
        txn = entry.txn
        record = build(
            session=txn.session,
            id=txn.id,
            started=entry.started,
            sender=txn.sender,
            recipients=entry.judged,
            size=size,
            traces=traces,
            outcome=outcome,
            reply=str(reply or ""),
            edits=entry.edits,
            pipeline=self._pipeline.name,
            config=self._config,
        )
        mta: dict[str, Any] = {"through": self._through}
        if entry.queue_id:
            mta["queue_id"] = entry.queue_id
        if entry.left_out:
            mta["left_out"] = entry.left_out[:_LEFT_OUT]
        self._records.note({**record, "mta": mta})

    def ended(
        self,
        judge: PipelineSession,
        entry: Entry,
        outcome: Outcome,
        ruling: Ruling | None,
        found: tuple[Finding, ...],
        *,
        size: int = 0,
    ) -> None:
        """A transaction has ended: count, log, tell."""
        txn = entry.txn
        reply = ruling.reply if ruling else None
        metrics.MESSAGES.labels(outcome.value).inc()
        if outcome is Outcome.ACCEPTED and size:
            metrics.MESSAGE_BYTES.observe(size)
        _log.info(
            f"message.{outcome.value}",
            session=txn.session.id,
            id=txn.id,
            queue_id=entry.queue_id,
            client=str(txn.session.client),
            helo=txn.session.helo,
            sender=str(txn.sender),
            recipients=[str(r.address) for r in txn.recipients],
            size=size,
            reply=str(reply or ""),
            plugin=ruling.entry if ruling else "",
            reason=ruling.reason if ruling else "",
        )
        if entry.left_out:
            _log.warning(
                "guest.left_out", session=txn.session.id, id=txn.id, queue_id=entry.queue_id, edits=entry.left_out
            )
            metrics.GUEST_LEFT_OUT.labels(self._through).inc(len(entry.left_out))
        if judge.learns:
            stage = Stage.MESSAGE if size else Stage.DATA if txn.recipients else Stage.MAIL
            by = ruling.entry if ruling else ""
            judge.tell(Ending(outcome, stage, txn.session, txn, reply=reply, entry=by, size=size, findings=found))


def _reply(ruling: Ruling) -> Reply:
    if ruling.reply is None:
        raise RuntimeError("a refusal without a reply")
    return ruling.reply
