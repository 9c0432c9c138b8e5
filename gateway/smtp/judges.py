"""One pipeline's view of a session: what it decided of it, and of the transaction that is open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gateway.pipeline.decision import Decision
from gateway.pipeline.runner import PipelineSession, PipelineTransaction
from gateway.sdk.stage import Transaction
from gateway.sdk.verdict import Action

REFUSALS: Final = frozenset({Action.REJECT, Action.DEFER, Action.DISCONNECT})
"""Verdicts whose reply the client gets at once; discard and quarantine are carried out when the message is there."""


@dataclass(slots=True)
class Judges:
    """One pipeline's view of this session, and of the transaction when there is one.

    `connected` and `helo` are what it decided of the session, None before it was asked. `refusal` stands for every
    recipient of the transaction; `discard` and `quarantine` are reasons to do so with its message.
    """

    session: PipelineSession
    connected: Decision | None = None
    helo: Decision | None = None
    transaction: PipelineTransaction | None = None
    refusal: Decision | None = None
    discard: str = ""
    quarantine: str = ""

    def begin(self, txn: Transaction) -> PipelineTransaction:
        """A transaction begins; what was decided of the session goes for it too."""
        self.refusal, self.discard, self.quarantine = None, "", ""
        for decision in (self.connected, self.helo):
            if decision is not None:
                self.note(decision)
        self.transaction = self.session.begin(txn)
        return self.transaction

    def note(self, decision: Decision) -> None:
        """Remember a verdict that is carried out at the end."""
        verdict = decision.verdict
        if verdict.action is Action.DISCARD:
            self.discard = verdict.reason or "discarded"
        elif verdict.action is Action.QUARANTINE:
            self.quarantine = verdict.reason or "quarantined"

    async def join(self, txn: Transaction) -> PipelineTransaction:
        """Catch up: this is not the listener's pipeline, and its first recipient has come.

        What it refuses of session and sender it refuses of each of its recipients.
        """
        if self.connected is None:
            self.connected = await self.session.connect(txn.session)
        if self.helo is None:
            self.helo = await self.session.helo(txn.session)
        transaction = self.begin(txn)
        decision = next((d for d in (self.connected, self.helo) if d.verdict.action in REFUSALS), None)
        if decision is None:
            decision = await transaction.mail(txn)
            self.note(decision)
        if decision.verdict.action in REFUSALS:
            self.refusal = decision
        return transaction
