"""The queue as JSON: the one form that the command line and the admin API share.

This room lies below the spool, so it says by protocols what it needs to see of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from gateway.mail.envelope import Envelope, Recipient
from gateway.ops.deciding import decided


class SlotView(Protocol):
    """See `gateway.spool.spool.Slot`."""

    @property
    def recipient(self) -> Recipient: ...
    @property
    def status(self) -> str: ...
    @property
    def due(self) -> float: ...
    @property
    def attempts(self) -> int: ...
    @property
    def last(self) -> str: ...


class StoredView(Protocol):
    """See `gateway.spool.spool.Stored`."""

    @property
    def id(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def envelope(self) -> Envelope: ...
    @property
    def slots(self) -> Sequence[SlotView]: ...
    @property
    def received(self) -> float: ...
    @property
    def size(self) -> int: ...
    @property
    def owed(self) -> bool: ...
    @property
    def trusted(self) -> bool: ...
    @property
    def warned(self) -> bool: ...
    @property
    def reason(self) -> str: ...


class ExplainedView(Protocol):
    """See `gateway.spool.spool.Explained`."""

    @property
    def record(self) -> dict[str, Any]: ...
    @property
    def attempts(self) -> Sequence[dict[str, Any]]: ...
    @property
    def stored(self) -> StoredView | None: ...


def slot_json(slot: SlotView) -> dict[str, Any]:
    """A recipient and where its delivery stands; `due` is epoch seconds."""
    out: dict[str, Any] = {
        "address": str(slot.recipient.address),
        "status": str(slot.status),
        "due": round(slot.due, 3),
        "attempts": slot.attempts,
        "last": slot.last,
    }
    if slot.recipient.notify:
        out["notify"] = sorted(slot.recipient.notify)
    if slot.recipient.orcpt:
        out["orcpt"] = slot.recipient.orcpt
    return out


def stored_json(stored: StoredView) -> dict[str, Any]:
    """A message in the spool; `received` is epoch seconds, `size` octets, the null sender an empty text."""
    parameters = stored.envelope.parameters
    return {
        "id": stored.id,
        "state": str(stored.state),
        "reason": stored.reason,
        "received": round(stored.received, 3),
        "size": stored.size,
        "sender": str(stored.envelope.sender),
        "body": parameters.body.value,
        "smtputf8": parameters.smtputf8,
        "ret": parameters.ret.value if parameters.ret else None,
        "envid": parameters.envid,
        "next_hop": stored.envelope.next_hop,
        "priority": stored.envelope.priority.value,
        "owed": stored.owed,
        "trusted": stored.trusted,
        "warned": stored.warned,
        "recipients": [slot_json(slot) for slot in stored.slots],
    }


def explained_json(explained: ExplainedView) -> dict[str, Any]:
    """A decision record, who decided, the attempts since, and the message as it is now (None once it has left)."""
    return {
        "record": explained.record,
        "decided": decided(explained.record),
        "attempts": list(explained.attempts),
        "stored": stored_json(explained.stored) if explained.stored else None,
    }
