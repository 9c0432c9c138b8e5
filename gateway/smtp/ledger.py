"""What the front door writes down of each end: the decision record, the log line, and the word to those who learn.

One ledger per session. Nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gateway.mail.edit import Edit
from gateway.mail.envelope import Recipient
from gateway.mail.reply import Reply
from gateway.mail.session import Session, transaction_id
from gateway.ops import log, metrics
from gateway.pipeline.decision import Decision
from gateway.pipeline.record import Trace, build
from gateway.sdk.ending import Ending, Outcome
from gateway.sdk.services import Clock
from gateway.sdk.stage import Stage, Transaction
from gateway.smtp.copies import Copy
from gateway.smtp.group import Group
from gateway.smtp.judges import Judges
from gateway.spool.spool import Inlet

_log = log.get()


def outcome_of(refusal: Reply) -> Outcome:
    """How something that was refused has ended."""
    return Outcome.DEFERRED if refusal.temporary else Outcome.REJECTED


class Ledger:
    """Writes down how a session, its recipients and its messages end."""

    def __init__(self, spool: Inlet, clock: Clock, config: str = "") -> None:
        self._spool = spool
        self._clock = clock
        self._config = config

    def session_refused(
        self, session: Session, stage: Stage, pipeline: str, judges: Sequence[Judges], decision: Decision, reply: Reply
    ) -> Reply:
        """A refusal at connect or helo, recorded under the session's transaction number 0. Gives the reply with it."""
        id = transaction_id(session.id, 0)
        self._spool.note(
            build(
                session=session,
                id=id,
                started=self._clock.now(),
                traces=[t for j in judges for t in j.session.traces],
                outcome=outcome_of(reply),
                reply=str(reply),
                pipeline=pipeline,
                config=self._config,
            )
        )
        _log.info(
            "session.refused",
            session=session.id,
            client=str(session.client),
            helo=session.helo,
            plugin=decision.entry,
            reply=str(reply),
            reason=decision.verdict.reason,
        )
        for judge in judges:
            if judge.session.learns:
                found = judge.session.found
                judge.session.tell(
                    Ending(outcome_of(reply), stage, session, reply=reply, entry=decision.entry, findings=found)
                )
        return reply.referring(id)

    def client_error(self, session: Session, judges: Iterable[Judges], reply: Reply) -> None:
        """The client made an error of its own: bad syntax, an unknown command."""
        for judge in judges:
            if judge.session.learns:
                judge.session.tell(Ending(outcome_of(reply), None, session, reply=reply, findings=judge.session.found))

    def recipient_refused(
        self, txn: Transaction, recipient: Recipient, reply: Reply, decision: Decision | None, group: Group
    ) -> None:
        """One recipient was not taken. `group` is that of the pipeline which hears of it."""
        entry = decision.entry if decision else ""
        _log.info(
            "recipient.refused",
            session=txn.session.id,
            id=txn.id,
            client=str(txn.session.client),
            sender=str(txn.sender),
            recipient=str(recipient.address),
            plugin=entry,
            reply=str(reply),
            reason=decision.verdict.reason if decision else "",
        )
        if group.judges.session.learns:
            found = (*group.found, *(decision.found if decision else ()))
            group.judges.session.tell(
                Ending(outcome_of(reply), Stage.RCPT, txn.session, txn, recipient, reply, entry, findings=found)
            )

    def record(
        self,
        groups: Sequence[Group],
        txn: Transaction,
        started: float,
        judged: Sequence[tuple[str, str]],
        outcome: Outcome,
        reply: Reply | None,
        *,
        size: int = 0,
        edits: Sequence[Edit] = (),
        section: bytes = b"",
        copies: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The decision record of a transaction, or of one copy; several pipelines' traces stand one after the other."""
        return build(
            session=txn.session,
            id=txn.id,
            started=started,
            sender=txn.sender,
            recipients=judged,
            size=size,
            traces=_traces(groups),
            outcome=outcome,
            reply=str(reply or ""),
            edits=edits,
            section=section,
            pipeline=", ".join(group.pipeline for group in groups),
            copies=copies,
            config=self._config,
        )

    def note(self, record: dict[str, Any]) -> None:
        """Keep a record that no message carries."""
        self._spool.note(record)

    def ended(
        self,
        groups: Sequence[Group],
        txn: Transaction,
        outcome: Outcome,
        reply: Reply | None,
        *,
        size: int = 0,
        reason: str = "",
        entry: str = "",
    ) -> None:
        """A transaction, or one copy of its message, has ended: count, log, tell."""
        metrics.MESSAGES.labels(outcome.value).inc()
        _log.info(
            f"message.{outcome.value}",
            session=txn.session.id,
            id=txn.id,
            client=str(txn.session.client),
            helo=txn.session.helo,
            sender=str(txn.sender),
            recipients=[str(r.address) for r in txn.recipients],
            size=size,
            reply=str(reply or ""),
            plugin=entry,
            reason=reason,
        )
        for group in groups:
            if group.judges.session.learns:
                group.judges.session.tell(
                    Ending(
                        outcome,
                        Stage.MESSAGE if size else Stage.DATA if txn.recipients else Stage.MAIL,
                        txn.session,
                        txn,
                        reply=reply,
                        entry=entry,
                        size=size,
                        findings=group.found,
                    )
                )


def told(copy: Copy, judged: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """What a copy's record says of its recipients: the replies they got at RCPT."""
    whom = {str(r.address) for r in copy.recipients}
    return [(address, reply) for address, reply in judged if address in whom]


def _traces(groups: Sequence[Group]) -> list[Trace]:
    """All traces, each once: groups of one listener share none, but a transaction may have been judged by several."""
    return [trace for group in groups for trace in group.traces]
