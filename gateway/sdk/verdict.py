"""Verdicts: what a policy answers. A closed list, and the functions that make them.

Wire text is what the client sees: keep it bland. `reason` is for the decision record and the log only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from gateway.mail.edit import Edit, edit_json
from gateway.mail.envelope import Recipient
from gateway.mail.reply import Reply

__all__ = [
    "PROCEED",
    "Action",
    "Verdict",
    "When",
    "accept",
    "annotate",
    "defer",
    "discard",
    "disconnect",
    "quarantine",
    "reject",
]


class Action(StrEnum):
    """All a verdict can be. Every action but `PROCEED` is decisive: no later policy of the stage is asked."""

    PROCEED = "proceed"
    ACCEPT = "accept"
    REJECT = "reject"
    DEFER = "defer"
    DISCARD = "discard"
    QUARANTINE = "quarantine"
    DISCONNECT = "disconnect"


class When(StrEnum):
    """When a defer holds (access(5) of Postfix: DEFER_IF_PERMIT, DEFER_IF_REJECT)."""

    ALWAYS = "always"
    IF_PERMIT = "if-permit"
    """Unless a later entry of the stage refuses."""
    IF_REJECT = "if-reject"
    """If a later entry of the stage rejects: then this is said instead."""


_CODES: Final = {
    Action.REJECT: range(500, 600),
    Action.DEFER: range(400, 500),
    Action.DISCONNECT: range(400, 600),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A policy's answer. `reply` is set for reject, defer and disconnect only, `when` is for defer only.

    `edits` of stages before `message` are kept until then and come first. `recipients`, at stage `message` only, are
    those that it is for; none means all that are left (see `only`). Raises ValueError for a reply that contradicts the
    action, or is missing.
    """

    action: Action
    reply: Reply | None = None
    reason: str = ""
    edits: tuple[Edit, ...] = field(default=())
    recipients: tuple[Recipient, ...] = field(default=())
    when: When = When.ALWAYS

    def __post_init__(self) -> None:
        codes = _CODES.get(self.action)
        if codes is None:
            if self.reply is not None:
                raise ValueError(f"{self.action} has no reply of its own")
        elif self.reply is None or self.reply.code not in codes:
            raise ValueError(f"{self.action} needs a reply from {codes[0]} to {codes[-1]}")
        if self.when is not When.ALWAYS and (self.action is not Action.DEFER or self.recipients):
            raise ValueError("only a defer for everybody waits for what others say")

    @property
    def decisive(self) -> bool:
        return self.action is not Action.PROCEED and self.when is When.ALWAYS

    def only(self, recipients: Iterable[Recipient]) -> Verdict:
        """The same for these recipients of the message, each of whom gets a copy of its own kind; the others go on.

        Since the client hears one reply for the whole message, a reject that names recipients while others are taken
        becomes quarantine or discard (`split_refused`), and a defer defers the message. Raises ValueError for nobody.
        """
        named = tuple(dict.fromkeys(recipients))
        if not named:
            raise ValueError("a verdict for nobody")
        return replace(self, recipients=named)

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"action": self.action.value}
        if self.reply:
            out["reply"] = str(self.reply)
        if self.reason:
            out["reason"] = self.reason
        if self.edits:
            out["edits"] = [edit_json(e) for e in self.edits]
        if self.recipients:
            out["recipients"] = [str(r.address) for r in self.recipients]
        if self.when is not When.ALWAYS:
            out["when"] = self.when.value
        return out


PROCEED: Final = Verdict(Action.PROCEED)


def annotate(*edits: Edit) -> Verdict:
    """Proceed, with edits to the message. All edits of a message are applied, or none."""
    return Verdict(Action.PROCEED, edits=edits)


def accept(reason: str = "", *edits: Edit) -> Verdict:
    """Take it at this stage and ask no later policy of this stage. Relay control is not overridden by it."""
    return Verdict(Action.ACCEPT, reason=reason, edits=edits)


def reject(detail: str, text: str, *, code: int = 550, reason: str = "") -> Verdict:
    """Refuse for good. `detail` is the enhanced status without class (``"7.1"``); raises ValueError unless 5xx."""
    return Verdict(Action.REJECT, Reply(code, detail, text), reason)


def defer(detail: str, text: str, *, code: int = 451, reason: str = "", when: When = When.ALWAYS) -> Verdict:
    """Refuse for now; `when` makes that wait for what later entries of the stage say. Raises ValueError unless 4xx."""
    return Verdict(Action.DEFER, Reply(code, detail, text), reason, when=when)


def discard(reason: str) -> Verdict:
    """Answer 250 and throw the message away. The record keeps why."""
    return Verdict(Action.DISCARD, reason=reason)


def quarantine(reason: str, *edits: Edit) -> Verdict:
    """Answer 250 and set the message aside in the spool; it is not delivered until somebody releases it."""
    return Verdict(Action.QUARANTINE, reason=reason, edits=edits)


def disconnect(detail: str, text: str, *, code: int = 421, reason: str = "") -> Verdict:
    """Answer with `code` and close the connection. Raises ValueError unless the code is 4xx or 5xx."""
    return Verdict(Action.DISCONNECT, Reply(code, detail, text), reason)
