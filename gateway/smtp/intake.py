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
from gateway.mail.message import render_field, split_header
from gateway.mail.reply import Reply
from gateway.mail.session import Session, transaction_id
from gateway.ops import log, metrics
from gateway.pipeline.loader import Pipeline
from gateway.pipeline.record import Outcome, Trace, build
from gateway.pipeline.runner import Decision
from gateway.sdk.authentication import Spf, SpfResult, authentication_results
from gateway.sdk.findings import Finding
from gateway.sdk.services import Clock
from gateway.sdk.stage import Message, Transaction
from gateway.sdk.verdict import Action, Edit
from gateway.smtp import trace
from gateway.smtp.command import Mail
from gateway.smtp.domains import Domains
from gateway.smtp.judges import REFUSALS, Judges
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
class _Open:
    """The transaction that is open."""

    txn: Transaction
    started: float
    pipeline: str
    judged: list[tuple[str, str]] = field(default_factory=list)
    taken: int = 0
    draft: Draft | None = None
    storing: bool = False


class Intake:
    """The steps of one session. `hang_up` is set when a verdict says to disconnect after the reply."""

    def __init__(self, desk: Desk, session: Session, pipeline: str) -> None:
        self.desk = desk
        self.session = session
        self.hang_up = False
        self._default = pipeline
        self._judges: dict[str, Judges] = {}
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
        judges.connected = await judges.session.connect(self.session)
        return self._refused(judges.connected)

    async def renew(self, session: Session) -> None:
        """The session goes on as `session`: another name, or TLS. Ends the open transaction."""
        await self.abort()
        self.session = session
        for judges in self._judges.values():
            judges.helo = None

    async def helo(self, session: Session) -> Reply | None:
        """Judge the name the client gave; `session` has it, and replaces ours. A reply refuses it."""
        await self.renew(session)
        judges = self._judge(self._default)
        judges.helo = await judges.session.helo(session)
        return self._refused(judges.helo)

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
        decision = await judges.begin(txn).mail(txn)
        if refusal := self._stopped(decision, judges):
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
        if opened.taken >= options.limits.recipients:
            return Reply(452, "5.3", "too many recipients, send the rest in another transaction")
        domain = self.desk.domains.find(recipient.address)
        if domain is None and not self.session.trusted:
            return self._no_recipient(recipient, Reply(550, "7.1", "relaying denied"))
        pipeline = (domain.pipeline if domain else "") or self._default
        if opened.txn.recipients and pipeline != opened.pipeline:
            return Reply(452, "5.3", "recipient needs a transaction of its own, send it again")
        opened.pipeline = pipeline
        judges = self._judge(pipeline)
        transaction = judges.transaction or await judges.join(opened.txn)
        decision = judges.refusal or await transaction.rcpt(opened.txn, recipient)
        if refusal := self._stopped(decision, judges):
            return self._no_recipient(recipient, refusal, decision)
        # A recipient named twice gets one copy, and both commands count.
        opened.taken += 1
        if recipient not in opened.txn.recipients:
            opened.txn = replace(opened.txn, recipients=(*opened.txn.recipients, recipient))
        opened.judged.append((str(recipient.address), str(RECIPIENT_OK)))
        return RECIPIENT_OK

    async def data(self) -> Reply | None:
        """Open the draft. A reply refuses it; a refusal ends the transaction only when a verdict gave it."""
        opened = self._opened()
        if not opened.txn.recipients:
            return NO_RECIPIENTS
        judges = self._judge(opened.pipeline)
        if judges.transaction is None:
            raise RuntimeError("recipients that nobody judged")
        decision = await judges.transaction.data(opened.txn)
        if refusal := self._stopped(decision, judges):
            await self._refuse(refusal, decision)
            return refusal.referring(opened.txn.id)
        opened.draft = self.desk.spool.draft(opened.txn.id)
        return None

    @property
    def smtputf8(self) -> bool:
        """Whether the open transaction asked for SMTPUTF8."""
        return self._open is not None and self._open.txn.parameters.smtputf8

    def _trouble(self, error: SpoolError) -> Reply:
        """Log the spool's trouble and give the reply for it."""
        full = isinstance(error, SpoolFull)
        _log.error("spool.full" if full else "spool.failed", session=self.session.id, reason=str(error))
        return NO_ROOM if full else SPOOL_TROUBLE

    async def finish(self, *, overflow: bool = False, stray: bool = False, failed: SpoolError | None = None) -> Reply:
        """Judge and store the message whose last octet has come, or could not be kept. Ends the transaction."""
        opened = self._opened()
        try:
            if failed is not None:
                raise failed
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
        if trace.loops(section, options.hostname, options.limits.received_hops):
            return Reply(554, "4.6", "too many hops, this looks like a loop"), None
        judges = self._judge(opened.pipeline)
        edits: tuple[Edit, ...] = ()
        decision: Decision | None = None
        if judges.transaction is not None and not self.desk.pipelines[opened.pipeline].empty:
            fields, _ = split_header(section)
            decision = await judges.transaction.message(opened.txn, Message(tuple(fields), draft))
            if refusal := self._stopped(decision, judges):
                return refusal, decision
            edits = decision.edits
        return await self._store(opened, judges, section, edits), decision

    async def _store(self, opened: _Open, judges: Judges, section: bytes, edits: tuple[Edit, ...]) -> Reply:
        """Write trace fields and edits, commit, answer. Raises `SpoolError`."""
        now = self.desk.clock.now()
        txn, draft, options = opened.txn, self.draft, self.desk.options
        reply = Reply(250, "0.0", f"queued as {txn.id}")
        if judges.discard:
            self._record(opened, Outcome.DISCARDED, reply, edits)
            await draft.abandon()
            await self._end(opened, Outcome.DISCARDED, reply, judges.discard)
            return reply
        try:
            head, skip = trace.rewrite(section, options.authserv_id, edits)
        except ValueError as error:
            raise SpoolError(f"an edit cannot be made: {error}") from error
        top = trace.received(
            txn.session, options.hostname, txn.id, txn.recipients, now, smtputf8=txn.parameters.smtputf8
        )
        results = authentication_results(options.authserv_id, self._found(opened.pipeline))
        if results:
            top = render_field("Authentication-Results", results) + top
        quarantined = bool(judges.quarantine)
        outcome = Outcome.QUARANTINED if quarantined else Outcome.ACCEPTED
        message = NewMessage(
            txn.id,
            Envelope(txn.sender, txn.recipients, txn.parameters),
            now,
            top + head,
            skip,
            State.QUARANTINE if quarantined else State.QUEUED,
            owed=self._owed(opened),
            trusted=self.session.trusted,
            reason=judges.quarantine,
            record=self._build(opened, outcome, reply, edits),
        )
        opened.storing = True
        await self.desk.spool.commit(draft, message)
        # From here on the message is ours, and nothing that goes wrong may say otherwise.
        if not quarantined:
            self.desk.ring()
        try:
            metrics.MESSAGE_BYTES.observe(draft.size)
            await self._end(opened, outcome, reply, judges.quarantine)
        except Exception as error:  # noqa: BLE001  (a refusal now would make the client send it twice)
            _log.error("command.failed", session=self.session.id, command="DATA", exc_info=error)
        return reply

    def _owed(self, opened: _Open) -> bool:
        """Whether the sender is owed a DSN: it is one of our clients, or SPF proved its domain."""
        if opened.txn.sender is NULL_SENDER or not self.desk.options.bounces:
            return False
        if self.session.trusted:
            return True
        sender = opened.txn.sender
        return isinstance(sender, Address) and any(
            isinstance(f, Spf) and f.result is SpfResult.PASS and f.domain == sender.ascii_domain
            for f in self._found(opened.pipeline)
        )

    async def abort(self) -> None:
        """Forget the open transaction, if any (RSET, EHLO, QUIT, connection lost)."""
        opened = self._open
        if opened is None:
            return
        if opened.draft is not None:
            await self._abandon(opened.draft)
        if not opened.storing:
            self._record(opened, Outcome.ABORTED, None, ())
        # Cut off within the commit, only the spool knows whether the message is stored: its record must stand.
        await self._end(opened, Outcome.ABORTED, None, "cut off while it was stored" if opened.storing else "")

    async def close(self) -> None:
        """The session is over."""
        await self.abort()
        for judges in self._judges.values():
            await judges.session.close()

    # How verdicts become replies

    def _judge(self, pipeline: str) -> Judges:
        judges = self._judges.get(pipeline)
        if judges is None:
            judges = self._judges[pipeline] = Judges(self.desk.pipelines[pipeline].open())
        return judges

    def _stopped(self, decision: Decision, judges: Judges) -> Reply | None:
        """The refusal a decision means, if it is one; discard and quarantine are noted for later."""
        if decision.verdict.action in REFUSALS:
            self.hang_up = self.hang_up or decision.verdict.action is Action.DISCONNECT
            return decision.verdict.reply
        judges.note(decision)
        return None

    def _refused(self, decision: Decision) -> Reply | None:
        """A refusal at connect or helo, recorded under the session's transaction number 0."""
        verdict = decision.verdict
        refusal = verdict.reply
        if verdict.action not in REFUSALS or refusal is None:
            return None
        self.hang_up = self.hang_up or verdict.action is Action.DISCONNECT
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

    def _found(self, pipeline: str) -> tuple[Finding, ...]:
        judges = self._judge(pipeline)
        return judges.transaction.found if judges.transaction is not None else judges.session.found

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
