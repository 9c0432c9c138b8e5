"""One step per stage: what the client said goes in, the reply comes out.

The intake knows transactions, the pipeline and the spool; bytes and sockets are the server's.

*Promises*: a 250 after the message means that `Spool.commit` has returned. Relay control comes before any policy and no
policy can override it. Our own trouble is always 4xx.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from gateway.mail.envelope import Recipient
from gateway.mail.message import split_header
from gateway.mail.reply import Reply
from gateway.mail.session import Session, transaction_id
from gateway.ops import log, metrics
from gateway.pipeline.decision import PROCEEDED, Decision
from gateway.pipeline.loader import Pipeline
from gateway.pipeline.runner import PipelineTransaction
from gateway.sdk.ending import Outcome
from gateway.sdk.services import Clock
from gateway.sdk.stage import Message, Stage, Transaction
from gateway.sdk.verdict import Action
from gateway.services.tenancy import Tenancy
from gateway.smtp import replies, trace
from gateway.smtp.command import Mail
from gateway.smtp.copies import Copy, Refusal, make, sort, with_bodies
from gateway.smtp.domains import Domains
from gateway.smtp.group import Group
from gateway.smtp.judges import REFUSALS, Judges
from gateway.smtp.ledger import Ledger, outcome_of, told
from gateway.smtp.options import SmtpOptions, Split
from gateway.smtp.relay import admit
from gateway.spool.spool import Draft, Inlet, NewMessage, SpoolError, SpoolFull, State

_log = log.get()


@dataclass(frozen=True, slots=True)
class Desk:
    """All that an intake needs, swapped as a whole by a reload: sessions that have begun keep the old one."""

    options: SmtpOptions
    domains: Domains
    pipelines: Mapping[str, Pipeline]
    spool: Inlet
    clock: Clock
    ring: Callable[[], None]
    config: str = ""
    """The digest of the configuration that all this is from, for the record."""
    tenancy: Tenancy = field(default_factory=Tenancy)
    """The sessions that work with it."""


@dataclass(slots=True)
class _Open:
    """The transaction that is open. `groups` are its recipients by pipeline; the listener's is always among them.

    `begun` is the transaction as it was at MAIL.
    """

    begun: Transaction
    started: float
    groups: dict[str, Group]
    judged: list[tuple[str, str]] = field(default_factory=list)
    taken: int = 0
    draft: Draft | None = None
    storing: bool = False

    @property
    def active(self) -> list[Group]:
        """Groups that have recipients; as long as there are none, all that have judged anything."""
        return [g for g in self.groups.values() if g.txn.recipients] or list(self.groups.values())

    @property
    def txn(self) -> Transaction:
        """The transaction with all recipients accepted so far."""
        groups = self.active
        if len(groups) == 1:
            return groups[0].txn
        return replace(self.begun, recipients=tuple(r for group in groups for r in group.txn.recipients))

    @property
    def size(self) -> int:
        return self.draft.size if self.draft else 0


class Intake:
    """The steps of one session. `hang_up` is set when a verdict says to disconnect after the reply."""

    def __init__(self, desk: Desk, session: Session, pipeline: str) -> None:
        self.desk = desk
        self.session = session
        self.hang_up = False
        self._default = pipeline
        self._judges: dict[str, Judges] = {}
        self._ledger = Ledger(desk.spool, desk.clock, desk.config)
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

    @property
    def smtputf8(self) -> bool:
        """Whether the open transaction asked for SMTPUTF8."""
        return self._open is not None and self._open.begun.parameters.smtputf8

    # Stages

    async def connect(self) -> Reply | None:
        """Judge the connection; a reply refuses it."""
        judges = self._judge(self._default)
        judges.connected = await judges.session.connect(self.session)
        return self._refused(judges.connected, Stage.CONNECT)

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
        return self._refused(judges.helo, Stage.HELO)

    async def mail(self, mail: Mail) -> Reply:
        """Begin a transaction."""
        options = self.desk.options
        if self._count >= options.limits.transactions:
            self.hang_up = True
            return Reply(421, "7.0", "too many transactions in one session")
        if mail.parameters.size > options.limits.message_size:
            return replies.TOO_BIG
        try:
            self.desk.spool.check_room(mail.parameters.size)
        except SpoolError as error:
            return self._trouble(error)
        txn = Transaction(self._next_id(), self.session, mail.sender, mail.parameters)
        judges = self._judge(self._default)
        self._open = _Open(txn, self.desk.clock.now(), {self._default: Group(self._default, judges, txn)})
        decision = await judges.begin(txn).mail(txn)
        if refusal := self._stopped(decision, judges):
            await self._refuse(refusal, decision)
            return refusal.referring(txn.id)
        return replies.SENDER_OK

    async def rcpt(self, recipient: Recipient) -> Reply:
        """Judge one recipient: relay control first, then the domain's pipeline."""
        opened = self._opened()
        options = self.desk.options
        if opened.taken >= options.limits.recipients:
            return replies.TOO_MANY
        admitted = admit(self.desk.domains, options, opened.begun, recipient, self.desk.clock.now())
        if isinstance(admitted, Reply):
            return self._no_recipient(recipient, admitted)
        recipient = admitted
        domain = self.desk.domains.find(recipient.address)
        pipeline = (domain.pipeline if domain else "") or self._default
        group = opened.groups.get(pipeline)
        if group is None or len(opened.groups) > 1:
            others = any(g.txn.recipients for name, g in opened.groups.items() if name != pipeline)
            if others and options.split is Split.DEFER:
                return replies.OF_ITS_OWN
            group = group or await self._join(opened, pipeline)
        transaction = group.judges.transaction
        if transaction is None:
            raise RuntimeError("a group without a transaction")
        decision = group.judges.refusal or await transaction.rcpt(group.txn, recipient)
        if refusal := self._stopped(decision, group.judges):
            return self._no_recipient(recipient, refusal, decision, group)
        # A recipient named twice gets one copy, and both commands count.
        opened.taken += 1
        if not any(recipient.repeats(other) for other in group.txn.recipients):
            group.txn = replace(group.txn, recipients=(*group.txn.recipients, recipient))
        opened.judged.append((str(recipient.address), replies.RECIPIENT_OK_TEXT))
        return replies.RECIPIENT_OK

    async def _join(self, opened: _Open, pipeline: str) -> Group:
        """The group of another pipeline, which catches up with what the session said before."""
        judges = self._judge(pipeline)
        await judges.join(opened.begun)
        group = opened.groups[pipeline] = Group(pipeline, judges, opened.begun)
        return group

    async def data(self) -> Reply | None:
        """Open the draft. A reply refuses it; a refusal ends the transaction only when a verdict gave it."""
        opened = self._opened()
        if not opened.taken:
            return replies.NO_RECIPIENTS
        groups = opened.active
        refused = False
        for group in groups:
            group.decision = await self._transaction(group).data(group.txn)
            group.judges.note(group.decision)
            refused = refused or group.decision.verdict.action in REFUSALS
        if refused and isinstance(found := sort(groups, self.desk.options.split_refused), Refusal):
            self._heed(found.decision)
            await self._refuse(found.reply, found.decision)
            return found.reply.referring(opened.begun.id)
        opened.draft = self.desk.spool.draft(opened.begun.id)
        return None

    def _trouble(self, error: SpoolError) -> Reply:
        """Log the spool's trouble and give the reply for it."""
        full = isinstance(error, SpoolFull)
        _log.error("spool.full" if full else "spool.failed", session=self.session.id, reason=str(error))
        return replies.NO_ROOM if full else replies.SPOOL_TROUBLE

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
            return reply.referring(opened.begun.id)
        return reply

    async def _finish(self, opened: _Open, overflow: bool, stray: bool) -> tuple[Reply, Decision | None]:
        """The reply; a refusal leaves the transaction open for `finish` to end."""
        options, draft = self.desk.options, self.draft
        if overflow:
            return replies.TOO_BIG, None
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
        groups = opened.active
        await self._judge_message(groups, section)
        copies = sort(groups, options.split_refused)
        if isinstance(copies, Refusal):
            self._heed(copies.decision)
            return copies.reply, copies.decision
        return await self._store(opened, section, copies), None

    async def _judge_message(self, groups: list[Group], section: bytes) -> None:
        """Ask each group's pipeline about the message, all at once; a group that DATA refused is not asked again."""
        asked = [g for g in groups if g.decision is None or g.decision.verdict.action not in REFUSALS]
        judging = [g for g in asked if not self.desk.pipelines[g.pipeline].empty]
        for group in asked:
            group.decision = PROCEEDED
        if judging:
            fields, _ = split_header(section)
            message = Message(tuple(fields), self.draft)
            questions = [self._transaction(group).message(group.txn, message) for group in judging]
            decisions = [await questions[0]] if len(questions) == 1 else await asyncio.gather(*questions)
            for group, decision in zip(judging, decisions, strict=True):
                group.decision = decision

    async def _store(self, opened: _Open, section: bytes, copies: list[Copy]) -> Reply:
        """Write trace fields and edits, commit all copies that are kept, answer. Raises `SpoolError`."""
        made = self._number(opened, copies)
        reply = Reply(250, "0.0", f"queued as {opened.begun.id}")
        ids = [txn.id for _, txn in made] if len(made) > 1 else []
        now = self.desk.clock.now()
        thrown_away: list[dict[str, object]] = []
        kept: list[tuple[Copy, NewMessage]] = []
        for copy, txn in made:
            record = self._record_of(opened, copy, txn, reply, ids, section)
            if copy.outcome is Outcome.DISCARDED:
                thrown_away.append(record)
            else:
                kept.append((copy, make(copy, txn, section, now, self.desk.options, record)))
        messages = await with_bodies(kept, self.desk.spool)
        if messages:
            opened.storing = True
            await self.desk.spool.commit(self.draft, *messages)
        else:
            await self.draft.abandon()
        # From here on the message is ours, and nothing that goes wrong may say otherwise.
        try:
            for record in thrown_away:
                self._ledger.note(record)
            if any(message.state is State.QUEUED for message in messages):
                self.desk.ring()
            metrics.MESSAGE_BYTES.observe(opened.size)
            self._open = None
            for copy, txn in made:
                self._ledger.ended(
                    [copy.group], txn, copy.outcome, reply, size=opened.size, reason=copy.reason, entry=copy.entry
                )
            await self._close_transactions()
        except Exception as error:  # noqa: BLE001  (a refusal now would make the client send it twice)
            _log.error("command.failed", session=self.session.id, command="DATA", exc_info=error)
        return reply

    def _number(self, opened: _Open, copies: list[Copy]) -> list[tuple[Copy, Transaction]]:
        """Each copy with a transaction of its own; the first one's has the id that the client knows."""
        if len(copies) == 1:
            return [(copies[0], opened.txn)]
        # What is kept comes first: the client hears the id of something that is there.
        copies = sorted(copies, key=lambda copy: copy.outcome is Outcome.DISCARDED)
        ids = [opened.begun.id, *(self._next_id() for _ in copies[1:])]
        return [(c, replace(opened.begun, id=id, recipients=c.recipients)) for id, c in zip(ids, copies, strict=True)]

    def _record_of(
        self, opened: _Open, copy: Copy, txn: Transaction, reply: Reply, ids: list[str], section: bytes
    ) -> dict[str, object]:
        """The record of one copy. The first one's lists all that was said to RCPT, refusals too."""
        first = txn.id == opened.begun.id
        judged = opened.judged if first else told(copy, opened.judged)
        groups = opened.active if first else [copy.group]
        about = (groups, txn, opened.started, judged, copy.outcome, reply)
        return self._ledger.record(*about, size=opened.size, edits=copy.edits, section=section, copies=ids)

    async def abort(self) -> None:
        """Forget the open transaction, if any (RSET, EHLO, QUIT, connection lost)."""
        opened = self._open
        if opened is None:
            return
        if opened.draft is not None:
            await self._abandon(opened.draft)
        # Cut off within the commit, only the spool knows whether the message is stored: its record must stand.
        if not opened.storing:
            self._note(opened, Outcome.ABORTED, None)
        reason = "cut off while it was stored" if opened.storing else ""
        await self._end(opened, Outcome.ABORTED, None, reason=reason)

    async def close(self) -> None:
        """The session is over."""
        await self.abort()
        for judges in self._judges.values():
            await judges.session.close()

    def client_error(self, reply: Reply) -> None:
        """The client made an error of its own, which those who learn from such things want to hear of."""
        self._ledger.client_error(self.session, self._judges.values(), reply)

    # How verdicts become replies

    def _next_id(self) -> str:
        self._count += 1
        return transaction_id(self.session.id, self._count)

    def _judge(self, pipeline: str) -> Judges:
        judges = self._judges.get(pipeline)
        if judges is None:
            judges = self._judges[pipeline] = Judges(self.desk.pipelines[pipeline].open())
        return judges

    def _transaction(self, group: Group) -> PipelineTransaction:
        if group.judges.transaction is None:
            raise RuntimeError("recipients that nobody judged")
        return group.judges.transaction

    def _stopped(self, decision: Decision, judges: Judges) -> Reply | None:
        """The refusal a decision means, if it is one; discard and quarantine are noted for later."""
        if decision.verdict.action in REFUSALS:
            self._heed(decision)
            return decision.verdict.reply
        judges.note(decision)
        return None

    def _heed(self, decision: Decision) -> None:
        """Hang up after the reply, where the verdict says so."""
        self.hang_up = self.hang_up or decision.verdict.action is Action.DISCONNECT

    def _refused(self, decision: Decision, stage: Stage) -> Reply | None:
        """A refusal at connect or helo."""
        refusal = decision.verdict.reply
        if decision.verdict.action not in REFUSALS or refusal is None:
            return None
        self._heed(decision)
        judges = list(self._judges.values())
        return self._ledger.session_refused(self.session, stage, self._default, judges, decision, refusal)

    def _no_recipient(
        self, recipient: Recipient, refusal: Reply, decision: Decision | None = None, group: Group | None = None
    ) -> Reply:
        opened = self._opened()
        opened.judged.append((str(recipient.address), str(refusal)))
        # Relay control is nobody's verdict; the listener's pipeline is told of it.
        group = group or opened.groups[self._default]
        self._ledger.recipient_refused(opened.txn, recipient, refusal, decision, group)
        self._note(opened, outcome_of(refusal), refusal)
        return refusal.referring(opened.begun.id)

    async def _refuse(self, reply: Reply, decision: Decision | None) -> None:
        """End the open transaction with a refusal."""
        opened = self._opened()
        outcome = outcome_of(reply)
        self._note(opened, outcome, reply)
        if opened.draft is not None:
            await self._abandon(opened.draft)
        reason, entry = (decision.verdict.reason, decision.entry) if decision else ("", "")
        await self._end(opened, outcome, reply, reason=reason, entry=entry)

    async def _abandon(self, draft: Draft) -> None:
        try:
            await draft.abandon()
        except SpoolError as error:
            _log.warning("spool.failed", id=self._opened().begun.id, reason=str(error))

    async def _end(
        self, opened: _Open, outcome: Outcome, reply: Reply | None, *, reason: str = "", entry: str = ""
    ) -> None:
        self._open = None
        self._ledger.ended(opened.active, opened.txn, outcome, reply, size=opened.size, reason=reason, entry=entry)
        await self._close_transactions()

    async def _close_transactions(self) -> None:
        for judges in self._judges.values():
            if judges.transaction is not None:
                await judges.transaction.close()
                judges.transaction = None

    def _note(self, opened: _Open, outcome: Outcome, reply: Reply | None) -> None:
        self._ledger.note(
            self._ledger.record(
                opened.active, opened.txn, opened.started, opened.judged, outcome, reply, size=opened.size
            )
        )

    def _opened(self) -> _Open:
        if self._open is None:
            raise RuntimeError("no transaction is open")
        return self._open
