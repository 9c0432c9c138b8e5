"""One step per stage: what the client said goes in, the reply comes out.

The intake knows transactions, the pipeline and the spool; bytes and sockets are the server's.

*Promises*: a 250 after the message means that `Spool.commit` has returned. Relay control comes before any policy and no
policy can override it. Our own trouble is always 4xx.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from gateway.mail.address import NULL_SENDER, Address
from gateway.mail.envelope import Envelope, Recipient
from gateway.mail.message import HeaderField, apply_edits, render_field, split_header
from gateway.mail.reply import Reply
from gateway.mail.session import Session, transaction_id
from gateway.ops import log, metrics
from gateway.pipeline.loader import Pipeline
from gateway.pipeline.record import Outcome, Trace, build
from gateway.pipeline.runner import Decision, PipelineSession, PipelineTransaction
from gateway.sdk.services import Clock
from gateway.sdk.stage import Message, Transaction
from gateway.sdk.verdict import Action, Edit
from gateway.smtp import trace
from gateway.smtp.command import Mail
from gateway.smtp.domains import Domains
from gateway.smtp.options import SmtpOptions
from gateway.spool.spool import Draft, NewMessage, Spool, SpoolError, SpoolFull, State

_log = log.get()

NO_ROOM: Final = Reply(452, "3.1", "insufficient storage, try again later")
SPOOL_TROUBLE: Final = Reply(451, "3.0", "cannot store the message now, try again later")
TOO_BIG: Final = Reply(552, "3.4", "message is too big")
SENDER_OK: Final = Reply(250, "1.0", "sender ok")
RECIPIENT_OK: Final = Reply(250, "1.5", "recipient ok")
NO_RECIPIENTS: Final = Reply(503, "5.1", "no valid recipients")


@dataclass(frozen=True, slots=True)
class Desk:
    """All that an intake needs, swapped as a whole by a reload: sessions that have begun keep the old one."""

    options: SmtpOptions
    domains: Domains
    pipelines: Mapping[str, Pipeline]
    spool: Spool
    clock: Clock
    ring: Callable[[], None]


@dataclass(slots=True)
class _Judges:
    """One pipeline's view of this session, and of the transaction when there is one."""

    session: PipelineSession
    transaction: PipelineTransaction | None = None


@dataclass(slots=True)
class _Open:
    """The transaction that is open."""

    txn: Transaction
    started: float
    pipeline: str
    judged: list[tuple[str, str]] = field(default_factory=list)
    discard: str = ""
    quarantine: str = ""
    draft: Draft | None = None


class Intake:
    """The steps of one session. `hang_up` is set when a verdict says to disconnect after the reply."""

    def __init__(self, desk: Desk, session: Session, pipeline: str) -> None:
        self.desk = desk
        self.session = session
        self.hang_up = False
        self._default = pipeline
        self._judges: dict[str, _Judges] = {}
        self._open: _Open | None = None
        self._count = 0

    @property
    def in_transaction(self) -> bool:
        return self._open is not None

    @property
    def draft(self) -> Draft:
        """The draft that `data` opened."""
        if self._open is None or self._open.draft is None:
            raise RuntimeError("no draft is open")
        return self._open.draft

    # Stages

    async def connect(self) -> Reply | None:
        """Judge the connection; a reply refuses it."""
        judges = self._judge(self._default)
        return await self._refused(await judges.session.connect(self.session))

    async def helo(self, session: Session) -> Reply | None:
        """Judge the name the client gave; `session` has it, and replaces ours. A reply refuses it."""
        await self.abort()
        self.session = session
        return await self._refused(await self._judge(self._default).session.helo(session))

    async def mail(self, mail: Mail) -> Reply:
        """Begin a transaction."""
        options = self.desk.options
        if self._count >= options.limits.transactions:
            self.hang_up = True
            return Reply(421, "7.0", "too many transactions in one session")
        if mail.parameters.size > options.limits.message_size:
            return TOO_BIG
        try:
            self.desk.spool.check_room(mail.parameters.size)
        except SpoolError as error:
            return self._trouble(error)
        self._count += 1
        txn = Transaction(transaction_id(self.session.id, self._count), self.session, mail.sender, mail.parameters)
        self._open = _Open(txn, self.desk.clock.now(), self._default)
        judges = self._judge(self._default)
        judges.transaction = judges.session.begin(txn)
        decision = await judges.transaction.mail(txn)
        if refusal := self._stopped(decision):
            await self._refuse(refusal, decision)
            return refusal.referring(txn.id)
        return SENDER_OK

    async def rcpt(self, recipient: Recipient) -> Reply:
        """Judge one recipient: relay control first, then the domain's pipeline."""
        opened = self._opened()
        options = self.desk.options
        if not recipient.address.domain:
            postmaster = self.desk.domains.postmaster(options.hostname)
            if postmaster is None:
                return self._no_recipient(recipient, Reply(550, "1.1", "no such recipient here"))
            recipient = replace(recipient, address=postmaster)
        if len(opened.txn.recipients) >= options.limits.recipients:
            return Reply(452, "5.3", "too many recipients, send the rest in another transaction")
        domain = self.desk.domains.find(recipient.address)
        if domain is None and not self.session.trusted:
            return self._no_recipient(recipient, Reply(550, "7.1", "relaying denied"))
        pipeline = (domain.pipeline if domain else "") or self._default
        if opened.txn.recipients and pipeline != opened.pipeline:
            return Reply(452, "5.3", "recipient needs a transaction of its own, send it again")
        decision = await self._join(pipeline)
        judges = self._judge(pipeline)
        if decision is None and judges.transaction is not None:
            decision = await judges.transaction.rcpt(opened.txn, recipient)
        if decision is not None and (refusal := self._stopped(decision)):
            return self._no_recipient(recipient, refusal, decision)
        if recipient not in opened.txn.recipients:
            opened.txn = replace(opened.txn, recipients=(*opened.txn.recipients, recipient))
        opened.judged.append((str(recipient.address), str(RECIPIENT_OK)))
        return RECIPIENT_OK

    async def data(self) -> Reply | None:
        """Open the draft. A reply refuses it; a refusal ends the transaction only when a verdict gave it."""
        opened = self._opened()
        if not opened.txn.recipients:
            return NO_RECIPIENTS
        transaction = self._judge(opened.pipeline).transaction
        if transaction is not None:
            decision = await transaction.data(opened.txn)
            if refusal := self._stopped(decision):
                await self._refuse(refusal, decision)
                return refusal.referring(opened.txn.id)
        opened.draft = self.desk.spool.draft(opened.txn.id)
        return None

    @property
    def smtputf8(self) -> bool:
        """Whether the open transaction asked for SMTPUTF8."""
        return self._open is not None and self._open.txn.parameters.smtputf8

    async def fail(self, error: SpoolError) -> Reply:
        """End the transaction because its content could not be kept."""
        reply = self._trouble(error)
        await self._refuse(reply, None)
        return reply.referring(self.session.id)

    def _trouble(self, error: SpoolError) -> Reply:
        """Log the spool's trouble and give the reply for it."""
        full = isinstance(error, SpoolFull)
        _log.error("spool.full" if full else "spool.failed", session=self.session.id, reason=str(error))
        return NO_ROOM if full else SPOOL_TROUBLE

    async def finish(self, *, overflow: bool = False, stray: bool = False) -> Reply:
        """Judge and store the message whose last octet has come. Ends the transaction."""
        opened = self._opened()
        try:
            reply, decision = await self._finish(opened, overflow, stray)
        except SpoolError as error:
            reply, decision = self._trouble(error), None
        if self._open is not None:
            await self._refuse(reply, decision)
            return reply.referring(opened.txn.id)
        return reply

    async def _finish(self, opened: _Open, overflow: bool, stray: bool) -> tuple[Reply, Decision | None]:
        """The reply; a refusal leaves the transaction open for `finish` to end."""
        options, draft = self.desk.options, self.draft
        if overflow:
            return TOO_BIG, None
        if stray:
            return Reply(550, "5.2", "message holds a bare CR or LF"), None
        head = draft.head
        end = trace.header_end(head)
        if end < 0:
            if len(head) < draft.size or len(head) > options.limits.header_size:
                return Reply(552, "3.4", "header section is too big"), None
            end = len(head)
        elif end > options.limits.header_size:
            return Reply(552, "3.4", "header section is too big"), None
        section = head[:end]
        hops = trace.hops(section)
        fields: list[HeaderField] | None = None
        if hops > options.limits.received_hops:
            return Reply(554, "4.6", "too many hops, this looks like a loop"), None
        if hops > trace.OWN_HOPS:
            fields, _ = split_header(section)
            if trace.own_hops(fields, options.hostname) > trace.OWN_HOPS:
                return Reply(554, "4.6", "message has been here too often, this looks like a loop"), None
        judges = self._judge(opened.pipeline)
        edits: tuple[Edit, ...] = ()
        decision: Decision | None = None
        if judges.transaction is not None and not self.desk.pipelines[opened.pipeline].empty:
            fields, end = split_header(section)
            decision = await judges.transaction.message(opened.txn, Message(tuple(fields), draft))
            if refusal := self._stopped(decision):
                return refusal, decision
            edits = decision.edits
        return await self._store(opened, section, end, fields, edits), decision

    async def _store(
        self, opened: _Open, section: bytes, end: int, fields: list[HeaderField] | None, edits: tuple[Edit, ...]
    ) -> Reply:
        """Write trace fields and edits, commit, answer. Raises `SpoolError`."""
        now = self.desk.clock.now()
        txn, draft, options = opened.txn, self.draft, self.desk.options
        if opened.discard:
            outcome, reply = Outcome.DISCARDED, Reply(250, "0.0", f"queued as {txn.id}")
            self._record(opened, outcome, reply, edits)
            await draft.abandon()
            await self._end(opened, outcome, reply, opened.discard)
            return reply
        results = trace.authentication_results(options.authserv_id, self._findings(opened.pipeline))
        head, skip = b"", 0
        if edits or trace.may_hold_results(section):
            if fields is None:
                fields, end = split_header(section)
            kept = [f for f in fields if not trace.is_own_results(f, options.authserv_id)]
            try:
                kept = apply_edits(kept, edits)
            except ValueError as error:
                raise SpoolError(f"an edit cannot be made: {error}") from error
            head, skip = b"".join(f.raw for f in kept), end
        top = trace.received(
            txn.session, options.hostname, txn.id, txn.recipients, now, smtputf8=txn.parameters.smtputf8
        )
        if results:
            top = render_field("Authentication-Results", results) + top
        state = State.QUARANTINE if opened.quarantine else State.QUEUED
        outcome = Outcome.QUARANTINED if opened.quarantine else Outcome.ACCEPTED
        reply = Reply(250, "0.0", f"queued as {txn.id}")
        message = NewMessage(
            txn.id,
            Envelope(txn.sender, txn.recipients, txn.parameters),
            now,
            top + head,
            skip,
            state,
            owed=self._owed(opened),
            trusted=self.session.trusted,
            reason=opened.quarantine,
            record=self._build(opened, outcome, reply, edits),
        )
        await self.desk.spool.commit(draft, message)
        # From here on the message is ours.
        await self._end(opened, outcome, reply, opened.quarantine)
        metrics.MESSAGE_BYTES.observe(draft.size)
        if state is State.QUEUED:
            self.desk.ring()
        return reply

    def _owed(self, opened: _Open) -> bool:
        """Whether the sender is owed a DSN: it is one of our clients, or SPF proved its domain."""
        if opened.txn.sender is NULL_SENDER or not self.desk.options.bounces:
            return False
        if self.session.trusted:
            return True
        sender = opened.txn.sender
        return isinstance(sender, Address) and any(
            f.get("finding") == "Spf"
            and isinstance(value := f.get("value"), dict)
            and value.get("result") == "pass"
            and value.get("domain") == sender.ascii_domain
            for f in self._findings(opened.pipeline)
        )

    async def abort(self) -> None:
        """Forget the open transaction, if any (RSET, EHLO, QUIT, connection lost)."""
        opened = self._open
        if opened is None:
            return
        if opened.draft is not None:
            await self._abandon(opened.draft)
        self._record(opened, Outcome.ABORTED, None, ())
        await self._end(opened, Outcome.ABORTED, None, "")

    async def close(self) -> None:
        """The session is over."""
        await self.abort()
        for judges in self._judges.values():
            await judges.session.close()

    # How verdicts become replies

    def _judge(self, pipeline: str) -> _Judges:
        judges = self._judges.get(pipeline)
        if judges is None:
            judges = self._judges[pipeline] = _Judges(self.desk.pipelines[pipeline].open())
        return judges

    async def _join(self, pipeline: str) -> Decision | None:
        """Make `pipeline` the transaction's; a decision when it refuses what came before RCPT."""
        opened = self._opened()
        if pipeline == opened.pipeline:
            return None
        opened.pipeline = pipeline
        judges = self._judge(pipeline)
        if judges.transaction is not None:
            return None
        for decision in (await judges.session.connect(self.session), await judges.session.helo(self.session)):
            if decision.verdict.decisive and self._is_refusal(decision):
                return decision
        judges.transaction = judges.session.begin(opened.txn)
        decision = await judges.transaction.mail(opened.txn)
        return decision if self._is_refusal(decision) else None

    @staticmethod
    def _is_refusal(decision: Decision) -> bool:
        return decision.verdict.action in (Action.REJECT, Action.DEFER, Action.DISCONNECT)

    def _stopped(self, decision: Decision) -> Reply | None:
        """The refusal a decision means, if it is one; discard and quarantine are noted for later."""
        verdict = decision.verdict
        match verdict.action:
            case Action.REJECT | Action.DEFER:
                return verdict.reply
            case Action.DISCONNECT:
                self.hang_up = True
                return verdict.reply
            case Action.DISCARD if self._open:
                self._open.discard = verdict.reason or "discarded"
            case Action.QUARANTINE if self._open:
                self._open.quarantine = verdict.reason or "quarantined"
        return None

    async def _refused(self, decision: Decision) -> Reply | None:
        """A refusal at connect or helo, recorded under the session's transaction number 0."""
        refusal = self._stopped(decision)
        if refusal is None:
            return None
        id = transaction_id(self.session.id, 0)
        outcome = Outcome.DEFERRED if refusal.temporary else Outcome.REJECTED
        traces = [t for judges in self._judges.values() for t in judges.session.traces]
        self.desk.spool.note(
            build(
                session=self.session,
                id=id,
                started=self.desk.clock.now(),
                sender=None,
                recipients=(),
                size=0,
                traces=traces,
                outcome=outcome,
                reply=str(refusal),
                edits=(),
                pipeline=self._default,
            )
        )
        _log.info(
            "session.refused",
            session=self.session.id,
            client=str(self.session.client),
            helo=self.session.helo,
            plugin=decision.entry,
            reply=str(refusal),
            reason=decision.verdict.reason,
        )
        return refusal.referring(id)

    def _no_recipient(self, recipient: Recipient, refusal: Reply, decision: Decision | None = None) -> Reply:
        opened = self._opened()
        opened.judged.append((str(recipient.address), str(refusal)))
        _log.info(
            "recipient.refused",
            session=self.session.id,
            id=opened.txn.id,
            client=str(self.session.client),
            sender=str(opened.txn.sender),
            recipient=str(recipient.address),
            plugin=decision.entry if decision else "",
            reply=str(refusal),
            reason=decision.verdict.reason if decision else "",
        )
        self._record(opened, Outcome.DEFERRED if refusal.temporary else Outcome.REJECTED, refusal, ())
        return refusal.referring(opened.txn.id)

    async def _refuse(self, reply: Reply, decision: Decision | None) -> None:
        """End the open transaction with a refusal."""
        opened = self._opened()
        outcome = Outcome.DEFERRED if reply.temporary else Outcome.REJECTED
        self._record(opened, outcome, reply, ())
        if opened.draft is not None:
            await self._abandon(opened.draft)
        await self._end(
            opened, outcome, reply, decision.verdict.reason if decision else "", decision.entry if decision else ""
        )

    async def _abandon(self, draft: Draft) -> None:
        try:
            await draft.abandon()
        except SpoolError as error:
            _log.warning("spool.failed", id=self._opened().txn.id, reason=str(error))

    async def _end(self, opened: _Open, outcome: Outcome, reply: Reply | None, reason: str, plugin: str = "") -> None:
        self._open = None
        metrics.MESSAGES.labels(outcome.value).inc()
        for judges in self._judges.values():
            if judges.transaction is not None:
                await judges.transaction.close()
                judges.transaction = None
        _log.info(
            f"message.{outcome.value}",
            session=self.session.id,
            id=opened.txn.id,
            client=str(self.session.client),
            helo=self.session.helo,
            sender=str(opened.txn.sender),
            recipients=[str(r.address) for r in opened.txn.recipients],
            size=opened.draft.size if opened.draft else 0,
            reply=str(reply or ""),
            plugin=plugin,
            reason=reason,
        )

    def _findings(self, pipeline: str) -> list[dict[str, Any]]:
        return [finding for t in self._traces(pipeline) for finding in t.findings]

    def _traces(self, pipeline: str) -> tuple[Trace, ...]:
        judges = self._judge(pipeline)
        return judges.transaction.traces if judges.transaction is not None else judges.session.traces

    def _build(self, opened: _Open, outcome: Outcome, reply: Reply | None, edits: tuple[Edit, ...]) -> dict[str, Any]:
        return build(
            session=self.session,
            id=opened.txn.id,
            started=opened.started,
            sender=opened.txn.sender,
            recipients=opened.judged,
            size=opened.draft.size if opened.draft else 0,
            traces=self._traces(opened.pipeline),
            outcome=outcome,
            reply=str(reply or ""),
            edits=edits,
            pipeline=opened.pipeline,
        )

    def _record(self, opened: _Open, outcome: Outcome, reply: Reply | None, edits: tuple[Edit, ...]) -> None:
        self.desk.spool.note(self._build(opened, outcome, reply, edits))

    def _opened(self) -> _Open:
        if self._open is None:
            raise RuntimeError("no transaction is open")
        return self._open
