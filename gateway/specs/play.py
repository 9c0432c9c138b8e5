"""One transaction walked through a pipeline, with findings given: no network, no clock, nothing kept.

The stages come as at the front door. A refusal ends it; accept ends its stage only; quarantine and discard are carried
out at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from gateway.mail.edit import edit_json
from gateway.mail.envelope import Recipient
from gateway.mail.reply import Reply
from gateway.pipeline.asking import failed
from gateway.pipeline.decision import Decision
from gateway.pipeline.loader import Pipeline
from gateway.pipeline.lookup import Absent
from gateway.pipeline.runner import PipelineTransaction
from gateway.sdk.findings import Finding
from gateway.sdk.stage import Message, Stage, Transaction
from gateway.sdk.verdict import Action, Verdict

_REFUSALS: Final = frozenset({Action.REJECT, Action.DEFER, Action.DISCONNECT})
_RANKS: Final = {Action.PROCEED: 0, Action.ACCEPT: 1, Action.QUARANTINE: 2, Action.DISCARD: 3}


@dataclass(frozen=True, slots=True)
class Scene:
    """Who sends what to whom, and what is found. `transaction` is without recipients."""

    transaction: Transaction
    recipients: tuple[Recipient, ...]
    message: Message
    findings: Mapping[type[Finding], Finding | Absent]


@dataclass(frozen=True, slots=True)
class Came:
    """What came of it, for all or, as one of `parts`, for some recipients. `stage` is None where nobody decided.

    `recipients` are those that were taken. `by` is the entry that decided. `faults` are policies that failed.
    """

    action: Action
    stage: Stage | None = None
    by: str = ""
    reply: Reply | None = None
    reason: str = ""
    edits: tuple[dict[str, Any], ...] = ()
    recipients: tuple[str, ...] = ()
    parts: tuple[Came, ...] = ()
    faults: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"action": self.action.value}
        if self.stage is not None:
            out |= {"stage": self.stage.value, "by": self.by}
        if self.reply is not None:
            out |= {"code": self.reply.code, "status": self.reply.status, "text": self.reply.text}
        if self.reason:
            out["reason"] = self.reason
        out |= {"edits": list(self.edits), "recipients": list(self.recipients)}
        if self.parts:
            out["parts"] = [part.to_json() for part in self.parts]
        return out


async def play(pipeline: Pipeline, scene: Scene) -> Came:
    """Walk it through all stages. What is found is fixed for the pipeline; its plugins need not be started."""
    pipeline.fix(scene.findings)
    return await _Walk(pipeline, scene).run()


class _Walk:
    def __init__(self, pipeline: Pipeline, scene: Scene) -> None:
        self._scene = scene
        self._session = pipeline.open()
        self._best: tuple[Verdict, Stage, str] | None = None

    async def run(self) -> Came:
        session = self._scene.transaction.session
        try:
            # Nothing is known of the client's own words before it said them.
            before = replace(session, helo="", esmtp=False, tls=None)
            if came := self._refusal(Stage.CONNECT, await self._session.connect(before)):
                return self._told(came)
            if came := self._refusal(Stage.HELO, await self._session.helo(session)):
                return self._told(came)
            transaction = self._session.begin(self._scene.transaction)
            try:
                return self._told(await self._transaction(transaction), transaction)
            finally:
                await transaction.close()
        finally:
            await self._session.close()

    async def _transaction(self, transaction: PipelineTransaction) -> Came:
        txn = self._scene.transaction
        if came := self._refusal(Stage.MAIL, await transaction.mail(txn)):
            return came
        refused: Came | None = None
        for recipient in self._scene.recipients:
            came = self._refusal(Stage.RCPT, await transaction.rcpt(txn, recipient))
            if came and came.action is Action.DISCONNECT:
                return came
            refused = came or refused
            if came is None and recipient not in txn.recipients:
                txn = replace(txn, recipients=(*txn.recipients, recipient))
        if not txn.recipients and refused is not None:
            return refused
        taken = tuple(str(recipient.address) for recipient in txn.recipients)
        if came := self._refusal(Stage.DATA, await transaction.data(txn)):
            return replace(came, recipients=taken)
        decision = await transaction.message(txn, self._scene.message)
        if came := self._refusal(Stage.MESSAGE, decision):
            return replace(came, recipients=taken)
        return replace(self._end(decision), recipients=taken, parts=tuple(_parts(decision)))

    def _refusal(self, stage: Stage, decision: Decision) -> Came | None:
        """How it ends, if this refuses. What else was decided is kept."""
        verdict = decision.verdict
        if verdict.action in _REFUSALS:
            # Where verdicts named recipients, the rest was not refused alone.
            parts = tuple(_parts(decision)) if stage is Stage.MESSAGE else ()
            return Came(verdict.action, stage, decision.entry, verdict.reply, verdict.reason, parts=parts)
        best = self._best[0].action if self._best else Action.PROCEED
        if _RANKS[verdict.action] > _RANKS[best]:
            self._best = verdict, stage, decision.entry
        return None

    def _end(self, decision: Decision) -> Came:
        if self._best is None:
            return Came(Action.PROCEED, edits=_edits(decision))
        verdict, stage, by = self._best
        # Of what is thrown away, nothing is changed.
        edits = () if verdict.action is Action.DISCARD else _edits(decision)
        return Came(verdict.action, stage, by, None, verdict.reason, edits)

    def _told(self, came: Came, transaction: PipelineTransaction | None = None) -> Came:
        """With what the policies said: of one that fails it is the fault, and where nobody decided, all reasons."""
        traces = transaction.traces if transaction else self._session.traces
        notes = [note for trace in traces for note in trace.verdicts if "policy" in note]
        faults = [
            f"{note['stage']}: {note['reason']}"
            for note in notes
            if str(note.get("reason", "")).startswith(failed(note["policy"]))
        ]
        if came.stage is None:
            said = [note["reason"] for note in notes if note.get("reason") and not note["shadow"]]
            came = replace(came, reason="; ".join(dict.fromkeys(said)))
        return replace(came, faults=tuple(dict.fromkeys(faults)))


def _edits(decision: Decision) -> tuple[dict[str, Any], ...]:
    return tuple(edit_json(edit) for edit in decision.edits)


def _parts(decision: Decision) -> list[Came]:
    return [
        Came(
            part.verdict.action,
            Stage.MESSAGE,
            part.entry,
            part.verdict.reply,
            part.verdict.reason,
            tuple(edit_json(edit) for edit in part.edits),
            tuple(str(recipient.address) for recipient in part.recipients),
        )
        for part in decision.parts
    ]


class OfflineLoop(asyncio.SelectorEventLoop):
    """An event loop that leads nowhere: whoever dials or asks hears that there is no network."""

    async def create_connection(self, *_: Any, **__: Any) -> Any:
        raise _offline()

    async def create_unix_connection(self, *_: Any, **__: Any) -> Any:
        raise _offline()

    async def create_datagram_endpoint(self, *_: Any, **__: Any) -> Any:
        raise _offline()

    async def getaddrinfo(self, *_: Any, **__: Any) -> Any:
        raise _offline()

    async def sock_connect(self, *_: Any, **__: Any) -> Any:
        raise _offline()


def _offline() -> OSError:
    return OSError("a spec has no network")
