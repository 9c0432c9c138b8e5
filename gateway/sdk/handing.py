"""Findings of plugins that hand a message to somebody else's filter: milters and policy servers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gateway.mail.edit import Edit
from gateway.sdk.findings import Finding


class MilterAction(StrEnum):
    """What a milter wants, at one stage."""

    CONTINUE = "continue"
    ACCEPT = "accept"
    """It has no objection and wants to hear no more of this message (of this session, at connect and helo)."""
    REJECT = "reject"
    TEMPFAIL = "tempfail"
    DISCARD = "discard"
    CONNECTION_FAIL = "connection-fail"
    """The connection is to be ended with 421."""
    SKIPPED = "skipped"
    """It was not asked: it does not want this stage, or had accepted before."""


@dataclass(frozen=True, slots=True)
class MilterReply(Finding):
    """What a milter answered. `milter` names it; `code`, `detail` and `text` are of a reply of its own (0 and empty for
    none), lines of `text` separated by line feeds; `quarantine` is its reason to set the message aside, or empty.

    `edits` are its modifications in the order in which it made them.
    """

    action: MilterAction
    milter: str
    code: int = 0
    detail: str = ""
    text: str = ""
    quarantine: str = ""
    edits: tuple[Edit, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As others, without what is empty: a milter answers at each stage, and mostly with a word."""
        if self.code or self.detail or self.text or self.quarantine or self.edits or len(self.milter) > 64:
            return self.to_short_json()
        return {"action": self.action.value, "milter": self.milter}

    def idle(self) -> bool:
        return self.action is MilterAction.SKIPPED


@dataclass(frozen=True, slots=True)
class DelegatedAction(Finding):
    """What a policy server answered (access(5)): `action` in upper case (``DUNNO``, ``DEFER_IF_PERMIT``, ``450``, ...).

    `code` and `detail` are of the reply it wants, 0 and empty where it leaves that open; `text` is what stood behind.
    `edits` are what PREPEND, BCC, REDIRECT and FILTER ask for.
    """

    action: str
    service: str
    code: int = 0
    detail: str = ""
    text: str = ""
    edits: tuple[Edit, ...] = ()
