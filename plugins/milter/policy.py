"""The default policy of milters: what the milter said is done, and said to the client in its own words.

*RFCs*: 3463 (X.7.0, X.7.1), 5321 section 3.8 (421), 4.2.1 (several lines).
"""

from __future__ import annotations

import re
from typing import Final

from gateway.sdk import (
    PROCEED,
    MilterAction,
    MilterReply,
    Policy,
    Verdict,
    annotate,
    defer,
    discard,
    disconnect,
    quarantine,
    reject,
)

_LINES: Final = 32
_LINE: Final = 400
_DETAIL: Final = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\Z")
_NO_OBJECTION: Final = (MilterAction.CONTINUE, MilterAction.SKIPPED, MilterAction.ACCEPT)
_CLOSING: Final = 421
"""With this code a milter asks for the connection to be closed."""


def wire_text(text: str, default: str) -> str:
    """A milter's reply text as it may go to the client: no control characters, bounded; `default` for nothing.

    Line feeds stay, and make a reply of several lines.
    """
    lines = text.replace("\r\n", "\n").split("\n")[:_LINES]
    safe = ["".join(c if " " <= c <= "~" else "?" for c in line[:_LINE]).strip() for line in lines]
    return "\n".join(line for line in safe if line) or default


def verdict_of(reply: MilterReply) -> Verdict:
    """What Gatepost does with a milter's answer. That a milter accepts says nothing for the entries after it."""
    if reply.action in _NO_OBJECTION:
        if reply.quarantine:
            return quarantine(f"{reply.milter}: {reply.quarantine}", *reply.edits)
        return annotate(*reply.edits) if reply.edits else PROCEED
    reason = f"{reply.milter}: {reply.action}"
    detail = reply.detail if _DETAIL.match(reply.detail) else ""
    match reply.action:
        case MilterAction.REJECT:
            code = reply.code if 500 <= reply.code <= 599 else 550
            text = wire_text(reply.text, "command rejected")
            return reject(_default(detail, reply, "7.1"), text, code=code, reason=reason)
        case MilterAction.TEMPFAIL:
            text = wire_text(reply.text, "service unavailable, try again later")
            if reply.code == _CLOSING:
                return disconnect(_default(detail, reply, "7.0"), text, reason=reason)
            code = reply.code if 400 <= reply.code <= 499 else 451
            return defer(_default(detail, reply, "7.1"), text, code=code, reason=reason)
        case MilterAction.CONNECTION_FAIL:
            text = wire_text(reply.text, "service unavailable, try again later")
            return disconnect(_default(detail, reply, "7.0"), text, reason=reason)
        case _:
            return discard(reason)


def _default(detail: str, reply: MilterReply, otherwise: str) -> str:
    """The milter's own status; where it gave a code and no status there is none, as behind any MTA."""
    return detail if detail or reply.code else otherwise


class MilterPolicy(Policy):
    """Do what the milter says, at each stage."""

    name = "milter"

    def changes(self) -> bool:
        return bool(getattr(self.options, "edits", True))

    def on_connect(self, reply: MilterReply) -> Verdict:
        return verdict_of(reply)

    def on_helo(self, reply: MilterReply) -> Verdict:
        return verdict_of(reply)

    def on_mail(self, reply: MilterReply) -> Verdict:
        return verdict_of(reply)

    def on_rcpt(self, reply: MilterReply) -> Verdict:
        return verdict_of(reply)

    def on_data(self, reply: MilterReply) -> Verdict:
        return verdict_of(reply)

    def on_message(self, reply: MilterReply) -> Verdict:
        return verdict_of(reply)
