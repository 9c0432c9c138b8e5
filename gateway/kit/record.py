"""A decision record for tests to look at: its JSON, and findings, verdicts, edits and replies made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from gateway.mail.edit import Edit
from gateway.mail.reply import Reply
from gateway.pipeline.past import Past
from gateway.pipeline.recall import recall, recall_edits, recall_reply, recall_verdict
from gateway.sdk.ending import Outcome
from gateway.sdk.findings import Finding
from gateway.sdk.stage import Stage
from gateway.sdk.verdict import PROCEED, Action, Verdict

__all__ = [
    "DecisionRecord",
    "Said",
]

_F = TypeVar("_F", bound=Finding)

_CARRIED_OUT: Final = {
    Outcome.ACCEPTED: Action.ACCEPT,
    Outcome.DISCARDED: Action.DISCARD,
    Outcome.QUARANTINED: Action.QUARANTINE,
}


@dataclass(frozen=True, slots=True)
class Said:
    """One entry's verdict at one stage. `policy` is ``on_error`` where a fault spoke instead of the policy.

    `recipient` is set at `rcpt`. What a shadow entry said was not applied.
    """

    stage: Stage
    entry: str
    policy: str
    version: str
    verdict: Verdict
    shadow: bool = False
    recipient: str = ""


class DecisionRecord:
    """One decision record. `json` is all of it, as `gatepost explain --json` shows it (`gateway.pipeline.record`)."""

    def __init__(self, json: Mapping[str, Any]) -> None:
        self.json = json

    def __repr__(self) -> str:
        return f"<DecisionRecord {self.id}: {self.outcome}, {self.reply}>"

    @property
    def id(self) -> str:
        """The queue id, and the reference in a refusal."""
        return str(self.json["id"])

    @property
    def outcome(self) -> Outcome:
        """How it ended; refused, where the client gave up because no recipient was taken."""
        return Outcome(Past(self.json, lambda client: False).outcome)

    @property
    def reply(self) -> Reply | None:
        """The reply that ended it, without its reference; None where the client ended it without one."""
        text = self.json["reply"]
        if not text and self.outcome in (Outcome.REJECTED, Outcome.DEFERRED):
            text = self.json["recipients"][-1]["reply"]
        return recall_reply(text) if text else None

    @property
    def recipients(self) -> dict[str, Reply]:
        """What was said to RCPT, by address."""
        return {told["address"]: recall_reply(told["reply"]) for told in self.json["recipients"]}

    @property
    def said(self) -> tuple[Said, ...]:
        """All verdicts in the order in which they were given, those of shadow entries too."""
        return tuple(_said(note) for note in self.json["verdicts"] if "action" in note)

    @property
    def decided(self) -> Said | None:
        """Who decided; None where nobody did, but a limit, relay control, or that nobody had an objection."""
        applied = [said for said in self.said if not said.shadow and said.verdict.action is not Action.PROCEED]
        outcome, reply = self.outcome, self.reply
        wanted = _CARRIED_OUT.get(outcome)
        if wanted is Action.ACCEPT:
            found = [s for s in applied if s.verdict.action is wanted and s.stage is Stage.MESSAGE]
        elif wanted:
            # What refuses a message for some of its recipients becomes quarantine or discard of their copy.
            found = [s for s in applied if s.verdict.action is wanted] or [
                s for s in applied if s.stage is Stage.MESSAGE
            ]
        else:
            found = [s for s in applied if s.verdict.reply is not None and s.verdict.reply == reply]
        return found[-1] if found else None

    @property
    def verdict(self) -> Verdict:
        """The verdict that decided; `PROCEED` where nobody's did."""
        return self.decided.verdict if self.decided else PROCEED

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What was changed in the message, in order; but for a new body, of which the record knows the size alone."""
        return recall_edits(self.json["edits"])

    def found(self, kind: type[_F]) -> _F | None:
        """The last finding of this kind; None where nothing was found. What was long is cut, as in every record."""
        notes = [n for n in self.json["findings"] if n.get("finding") == kind.__name__ and "value" in n]
        found = recall(kind, notes[-1]["value"]) if notes else None
        assert found is None or isinstance(found, kind)
        return found

    def faults(self) -> dict[str, str]:
        """What went wrong: the kind of fault (``error``, ``timeout``, ...) and its detail, by entry."""
        faults = [note for note in self.json["findings"] if "fault" in note]
        return {note["plugin"]: f"{note['fault']}: {note.get('detail', '')}" for note in faults}


def _said(note: Mapping[str, Any]) -> Said:
    return Said(
        Stage(note["stage"]),
        note["plugin"],
        note["policy"],
        note["version"],
        recall_verdict(note),
        note["shadow"],
        note.get("recipient", ""),
    )
