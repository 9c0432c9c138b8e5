"""What a policy does about a message that it doubts, as an option: the operator chooses, and the policy says why.

It is a choice of its own for each policy, since one that can hit good mail begins with a mark and not with a refusal.
"""

from __future__ import annotations

from enum import StrEnum

from gateway.mail.edit import Edit
from gateway.sdk.verdict import Action, Verdict, quarantine, reject


class Response(StrEnum):
    """Option type: what is done, from the mildest on."""

    RECORD = "record"
    """Nothing but a reason in the decision record."""
    TAG = "tag"
    """The message goes on, marked."""
    QUARANTINE = "quarantine"
    REJECT = "reject"


def respond(response: Response, reason: str, *edits: Edit, detail: str = "7.1", text: str = "not accepted") -> Verdict:
    """The verdict: `edits` mark what is tagged or set aside, `detail` and `text` are said to who is refused."""
    if response is Response.REJECT:
        return reject(detail, text, reason=reason)
    if response is Response.QUARANTINE:
        return quarantine(reason, *edits)
    return Verdict(Action.PROCEED, reason=reason, edits=edits if response is Response.TAG else ())
