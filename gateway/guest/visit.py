"""A visit: a foreign MTA's session, walked through the pipeline stage by stage.

The MTA speaks to the client, takes or refuses, and keeps what it took; here is only asked, and written down. Relay
control is the MTA's: nothing here looks at `domains` or asks whether we would relay.

*Promises*: every transaction that began is ended, once, and has a record that `gatepost explain` finds by the reference
in a refusal, by its id or by its session's. What runs for a session ends with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from gateway.guest.ledger import Entry, Ledger, Records
from gateway.guest.ruling import Ruling, SplitRefused, carry, of, outcome_of, settle
from gateway.mail.address import Sender
from gateway.mail.edit import Edit
from gateway.mail.envelope import MailParameters, Recipient
from gateway.mail.reply import Reply
from gateway.mail.session import IPAddress, Session, transaction_id
from gateway.pipeline.decision import Decision
from gateway.pipeline.loader import Pipeline
from gateway.pipeline.runner import PipelineTransaction
from gateway.sdk.ending import Outcome
from gateway.sdk.services import Clock
from gateway.sdk.stage import Message, Stage, Transaction
from gateway.sdk.verdict import Action
from gateway.services.tenancy import Tenancy

RECIPIENTS: Final = 1000
"""Recipients of one transaction that are judged; those after them are deferred."""

LET_THROUGH: Final = "let through"
"""Stands in the record where the front door has the reply to RCPT."""

TOO_MANY: Final = Ruling(Action.DEFER, Reply(452, "5.3", "too many recipients, send the rest in another transaction"))


@dataclass(frozen=True, slots=True)
class Host:
    """What visits work with; a reload replaces it as a whole, and visits that have begun keep the old one.

    `trusted` says whether a client may relay (`relay_from`).
    """

    pipeline: Pipeline
    records: Records
    clock: Clock
    trusted: Callable[[IPAddress], bool]
    split_refused: SplitRefused = SplitRefused.QUARANTINE
    config: str = ""
    """The digest of the configuration that all this is from, for the record."""
    tenancy: Tenancy = field(default_factory=Tenancy)
    """The visits that work with it."""


class Visit:
    """One session of the MTA's. Methods are called in SMTP order, one at a time."""

    def __init__(self, host: Host, session: Session, through: str) -> None:
        self.host = host
        self.session = session
        self._judge = host.pipeline.open()
        self._ledger = Ledger(host.records, host.clock, host.pipeline, through, host.config)
        self._connected: Decision | None = None
        self._helo: Decision | None = None
        self._transaction: PipelineTransaction | None = None
        self._entry: Entry | None = None
        self._standing: Ruling | None = None
        self._last: Ruling | None = None
        self._discard = ""
        self._quarantine = ""
        self._count = 0
        self._closed = False
        host.tenancy.enter()

    @property
    def in_transaction(self) -> bool:
        return self._entry is not None

    @property
    def sender(self) -> Sender:
        """That of the open transaction."""
        return self._opened()[0].txn.sender

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        """Those of the open transaction that were let through."""
        return self._entry.txn.recipients if self._entry else ()

    @property
    def connected(self) -> bool:
        """Whether the connection was judged."""
        return self._connected is not None

    @property
    def greeted(self) -> bool:
        """Whether the session's HELO name was judged."""
        return self._helo is not None

    @property
    def discard(self) -> str:
        """Why the open transaction's message is to be thrown away, or empty."""
        return self._discard

    @property
    def quarantine(self) -> str:
        """Why the open transaction's message is to be set aside, or empty."""
        return self._quarantine

    # Stages

    async def connect(self, *, tell: bool = True) -> Ruling:
        """Judge the connection. With `tell` a refusal is the answer to it, else it stands for what follows."""
        self._connected = await self._judge.connect(self.session)
        return self._of_session(self._connected, Stage.CONNECT, tell)

    async def helo(self, session: Session, *, tell: bool = True) -> Ruling:
        """Judge the name the client gave; `session` has it, and replaces ours. Ends an open transaction."""
        await self.abort()
        self.session = session
        self._helo = await self._judge.helo(session)
        return self._of_session(self._helo, Stage.HELO, tell)

    async def mail(
        self, sender: Sender, parameters: MailParameters, *, queue_id: str = "", tell: bool = True
    ) -> Ruling:
        """Begin a transaction; an open one is over.

        With `tell` a refusal ends it, else it stands for all recipients.
        """
        await self.abort()
        self._count += 1
        txn = Transaction(transaction_id(self.session.id, self._count), self.session, sender, parameters)
        self._entry = Entry(txn, self.host.clock.now(), queue_id)
        self._standing = self._last = None
        self._discard = self._quarantine = ""
        self._transaction = self._judge.begin(txn)
        said = [of(decision) for decision in (self._connected, self._helo) if decision is not None]
        ruling = next((earlier for earlier in said if earlier.refused), None)
        if ruling is None:
            ruling = of(await self._transaction.mail(txn))
            for one in (*said, ruling):
                self._note(one)
        if not ruling.refused:
            # What was asked for at connect and HELO is for each of the session's messages.
            return replace(ruling, edits=(*self._judge.edits, *ruling.edits))
        if tell:
            return await self.refuse(ruling)
        self._standing = ruling
        return self._referring(ruling)

    async def rcpt(self, recipient: Recipient) -> Ruling:
        """Judge one recipient."""
        entry, transaction = self._opened()
        ruling, found = self._standing, transaction.found
        if ruling is None and len(entry.judged) >= RECIPIENTS:
            return self._referring(TOO_MANY)
        if ruling is None:
            decision = await transaction.rcpt(entry.txn, recipient)
            ruling, found = of(decision), (*found, *decision.found)
        if ruling.refused:
            self._last = ruling
            if len(entry.judged) < RECIPIENTS:
                entry.judged.append((str(recipient.address), str(ruling.reply)))
            self._ledger.recipient_refused(self._judge, entry, recipient, ruling, found)
            self._ledger.note(entry, transaction.traces, outcome_of(ruling), ruling.reply)
            return self._referring(ruling)
        self._note(ruling)
        entry.judged.append((str(recipient.address), LET_THROUGH))
        if recipient not in entry.txn.recipients:
            entry.txn = replace(entry.txn, recipients=(*entry.txn.recipients, recipient))
        return ruling

    async def data(self) -> Ruling:
        """Judge the transaction before its content; a refusal ends it."""
        entry, transaction = self._opened()
        if self._standing is not None:
            return await self.refuse(self._standing)
        ruling = of(await transaction.data(entry.txn))
        if ruling.refused:
            return await self.refuse(ruling)
        self._note(ruling)
        return ruling

    async def message(self, message: Message) -> Ruling:
        """Judge the whole message. A refusal ends the transaction; else `end` does, when the MTA was told of it all."""
        entry, transaction = self._opened()
        decision = await transaction.message(entry.txn, message)
        ruling = carry(settle(decision, entry.txn.recipients, self.host.split_refused), self._discard, self._quarantine)
        entry.left_out += ruling.left_out
        if ruling.refused:
            return await self.refuse(ruling, size=message.content.size)
        return ruling

    # Ends

    async def refuse(self, ruling: Ruling, *, size: int = 0) -> Ruling:
        """End the open transaction with a refusal; gives it with the reference."""
        told = self._referring(ruling)
        await self._end(outcome_of(ruling), ruling, size)
        return told

    async def end(self, ruling: Ruling | None = None, *, size: int = 0) -> None:
        """The MTA was told all there is to tell. Without a `ruling`, what was said of the recipients is the outcome."""
        if self._entry is None:
            return
        if ruling is None and not self._entry.txn.recipients and self._last is not None:
            ruling = self._last
        ruling = carry(ruling or Ruling(Action.PROCEED), self._discard, self._quarantine)
        nothing = ruling.action is Action.PROCEED and not self._entry.txn.recipients and not size
        await self._end(Outcome.ABORTED if nothing else outcome_of(ruling), ruling, size)

    async def abort(self, outcome: Outcome = Outcome.ABORTED) -> None:
        """Forget the open transaction, if any: RSET, a new HELO, connection lost."""
        if self._entry is not None:
            await self._end(outcome, None, 0)

    async def close(self) -> None:
        """The session is over."""
        if self._closed:
            return
        self._closed = True
        try:
            await self.abort(Outcome.DISCONNECTED)
            await self._judge.close()
        finally:
            self.host.tenancy.leave()

    # For the record

    def name(self, queue_id: str) -> None:
        """The MTA's own id of the open transaction, which it may learn late."""
        if self._entry is not None and queue_id:
            self._entry.queue_id = queue_id

    def made(self, *edits: Edit) -> None:
        """Edits that the MTA was told to make."""
        if self._entry is not None:
            self._entry.edits += edits

    def left_out(self, *what: str) -> None:
        """Something of the decision that the MTA cannot be told: it is logged and recorded."""
        if self._entry is not None:
            self._entry.left_out += what

    # Inside

    def _of_session(self, decision: Decision, stage: Stage, tell: bool) -> Ruling:
        ruling = of(decision)
        if not ruling.refused or not tell:
            return ruling
        return replace(ruling, reply=self._ledger.session_refused(self._judge, self.session, stage, ruling))

    def _note(self, ruling: Ruling) -> None:
        """Remember what is carried out at the end."""
        if ruling.action is Action.DISCARD:
            self._discard = ruling.reason or "discarded"
        elif ruling.action is Action.QUARANTINE:
            self._quarantine = ruling.reason or "quarantined"

    def _referring(self, ruling: Ruling) -> Ruling:
        entry, _ = self._opened()
        return replace(ruling, reply=ruling.reply.referring(entry.txn.id)) if ruling.reply else ruling

    async def _end(self, outcome: Outcome, ruling: Ruling | None, size: int) -> None:
        entry, transaction = self._opened()
        self._entry = self._transaction = None
        try:
            reply = ruling.reply if ruling else None
            self._ledger.note(entry, transaction.traces, outcome, reply, size=size)
            self._ledger.ended(self._judge, entry, outcome, ruling, transaction.found, size=size)
        finally:
            await transaction.close()

    def _opened(self) -> tuple[Entry, PipelineTransaction]:
        if self._entry is None or self._transaction is None:
            raise RuntimeError("no transaction is open")
        return self._entry, self._transaction
