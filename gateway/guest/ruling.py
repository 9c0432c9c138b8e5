"""Rulings: what a stage came to, as a foreign MTA is to be told of it.

The MTA hears one answer for a whole message, and has no copies: what verdicts at `message` say of single recipients is
made one ruling here. A deferral of some defers all, as at the front door, since nothing is lost by that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from gateway.mail.edit import Edit
from gateway.mail.envelope import Recipient
from gateway.mail.reply import Reply
from gateway.pipeline.decision import Decision, Part
from gateway.sdk.ending import Outcome
from gateway.sdk.verdict import Action, When

REFUSALS: Final = frozenset({Action.REJECT, Action.DEFER, Action.DISCONNECT})
"""Actions with a reply, which end what was asked about."""


class SplitRefused(StrEnum):
    """What becomes of recipients who are refused after DATA while others of the message are taken."""

    QUARANTINE = "quarantine"
    """The whole message is set aside: the MTA cannot set a copy aside."""
    DISCARD = "discard"
    """They are taken off the message."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the MTA is told. `reply`, with the reference, is there for refusals only.

    `edits` are to be made, in this order. `dropped` are recipients to be taken off the message; `left_out` says in
    words what of the decision this MTA cannot be told. `entry` is the pipeline entry that decided.
    """

    action: Action
    reply: Reply | None = None
    reason: str = ""
    entry: str = ""
    edits: tuple[Edit, ...] = ()
    dropped: tuple[Recipient, ...] = ()
    left_out: tuple[str, ...] = field(default=())
    when: When = When.ALWAYS

    @property
    def refused(self) -> bool:
        return self.action in REFUSALS


def of(decision: Decision) -> Ruling:
    """The ruling of a decision that is about everybody."""
    verdict = decision.verdict
    return Ruling(verdict.action, verdict.reply, verdict.reason, decision.entry, decision.edits, when=verdict.when)


def settle(decision: Decision, recipients: Sequence[Recipient], refused: SplitRefused) -> Ruling:
    """One ruling for a message of whose recipients verdicts may have said different things."""
    parts = _parts(decision, recipients)
    if len(parts) == 1:
        part = parts[0]
        return Ruling(part.verdict.action, part.verdict.reply, part.verdict.reason, part.entry, part.edits)
    for part in parts:
        if part.verdict.action in (Action.DEFER, Action.DISCONNECT):
            return Ruling(part.verdict.action, part.verdict.reply, part.verdict.reason, part.entry)
    if all(part.verdict.action is Action.REJECT for part in parts):
        return Ruling(Action.REJECT, parts[0].verdict.reply, parts[0].verdict.reason, parts[0].entry)
    return _together(parts, refused)


def _parts(decision: Decision, recipients: Sequence[Recipient]) -> list[Part]:
    """What was decided, by recipients. Those of whom nothing special was said come first."""
    named = {recipient for part in decision.parts for recipient in part.recipients}
    others = tuple(r for r in recipients if r not in named)
    general = [Part(others, decision.verdict, decision.entry, decision.edits)] if others or not named else []
    return [*general, *decision.parts]


def _together(parts: Sequence[Part], refused: SplitRefused) -> Ruling:
    """A message that some recipients get and others do not."""
    gone = [p for p in parts if p.verdict.action is Action.DISCARD]
    rejected = [p for p in parts if p.verdict.action is Action.REJECT]
    kept = [p for p in parts if p not in gone and p not in rejected]
    if refused is SplitRefused.DISCARD:
        gone, rejected = gone + rejected, []
    aside = next((p for p in kept if p.verdict.action is Action.QUARANTINE), None) or next(iter(rejected), None)
    dropped = tuple(r for p in gone for r in p.recipients)
    if not kept and aside is None:
        return Ruling(Action.DISCARD, reason=gone[0].verdict.reason, entry=gone[0].entry)
    # Edits of which all that is kept has the same are made; others would reach people they are not for.
    alike = kept[0].edits if kept and all(p.edits == kept[0].edits for p in kept) else ()
    left_out = () if not kept or all(p.edits == alike for p in kept) else ("edits that are for some recipients only",)
    if aside is not None:
        why = f"refused ({aside.verdict.reply}) for some" if aside.verdict.reply else aside.verdict.reason
        return Ruling(Action.QUARANTINE, None, why or "quarantined", aside.entry, alike, dropped, left_out)
    return Ruling(Action.PROCEED, None, "", kept[0].entry, alike, dropped, left_out)


def carry(ruling: Ruling, discard: str, quarantine: str) -> Ruling:
    """The ruling of the end, with what earlier stages wanted done with the message."""
    if ruling.refused:
        return ruling
    if discard:
        return replace(ruling, action=Action.DISCARD, reason=discard, edits=())
    if quarantine and ruling.action is not Action.DISCARD:
        return replace(ruling, action=Action.QUARANTINE, reason=quarantine)
    return ruling


_OUTCOMES: Final = {Action.DISCARD: Outcome.DISCARDED, Action.QUARANTINE: Outcome.QUARANTINED}


def outcome_of(ruling: Ruling) -> Outcome:
    """How something that ended with this ruling has ended."""
    if ruling.reply is not None:
        return Outcome.DEFERRED if ruling.reply.temporary else Outcome.REJECTED
    return _OUTCOMES.get(ruling.action, Outcome.ACCEPTED)
