"""Asking a policy, and what a fault means in its place. No I/O: the same for mail as it comes and for records of it."""

from __future__ import annotations

from typing import Any, Final

from gateway.mail.edit import EDITS
from gateway.mail.session import Session
from gateway.ops import log
from gateway.pipeline.decision import Said
from gateway.pipeline.hidden import NotTold
from gateway.pipeline.lookup import Fault
from gateway.pipeline.plan import Entry, OnError
from gateway.sdk.stage import Stage, Transaction
from gateway.sdk.verdict import Action, Verdict, defer, reject

ON_ERROR: Final = "on_error"
"""Stands for the policy where a fault decided."""

_log = log.get()


def on_error(fault: Fault, asker: Entry, session: Session, txn: Transaction | None) -> Said:
    """What the owner of the entry at fault wants. A shadow entry cannot make others defer or reject.

    `asker` is the entry as it counts here.
    """
    owner = fault.entry.applied(session, txn)
    wanted = OnError.DEFER if fault.halfway else owner.on_error
    if owner.shadow and not asker.shadow:
        wanted = OnError.PROCEED
    reason = str(fault)
    match wanted:
        case OnError.PROCEED:
            verdict = Verdict(Action.PROCEED, reason=reason)
        case OnError.DEFER:
            verdict = defer("3.0", "try again later", reason=reason)
        case OnError.REJECT:
            verdict = reject("3.0", "cannot be taken", code=554, reason=reason)
    return Said(verdict, owner, ON_ERROR, "", asker.shadow)


def ask(stage: Stage, entry: Entry, method: Any, arguments: list[Any]) -> Said:
    """Ask the policy. A policy that raises, or answers what it must not, is our bug: defer.

    Raises `gateway.pipeline.hidden.NotTold`, of a record.
    """
    try:
        return answer(stage, entry, method, arguments)
    except NotTold:
        # It was asked of a record, which does not tell what it looks at.
        raise
    except Exception as error:  # noqa: BLE001 - a policy's bug may be anything; it is logged, recorded and defers
        _log.error("policy.failed", plugin=entry.name, stage=stage.value, exc_info=error)
        reason = f"{failed(entry.policy_name)}{type(error).__name__}: {error}"
        verdict = defer("3.0", "try again later", reason=reason[:300])
    return _said(verdict, entry)


def answer(stage: Stage, entry: Entry, method: Any, arguments: list[Any]) -> Said:
    """The policy's answer. Raises whatever the policy raises, and TypeError or ValueError for no proper answer."""
    verdict = method(*arguments)
    _check(verdict, stage)
    return _said(verdict, entry)


def _said(verdict: Verdict, entry: Entry) -> Said:
    version = entry.policy.version if entry.policy else ""
    return Said(verdict, entry, entry.policy_name, version, entry.shadow)


def failed(policy: str) -> str:
    """How the reason begins where a policy failed."""
    return f"policy {policy} failed: "


def _check(verdict: object, stage: Stage) -> None:
    if not isinstance(verdict, Verdict):
        raise TypeError(f"answered {type(verdict).__name__} instead of a verdict")
    for edit in verdict.edits:
        if not isinstance(edit, EDITS):
            raise TypeError(f"{type(edit).__name__} is no edit")
    if verdict.recipients and stage is not Stage.MESSAGE:
        raise ValueError(f"names recipients at stage {stage}, where there is no copy for each")
