"""Why a message is still here, and when it goes next: the answer of ``gatepost queue why`` and of the API."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.mail.address import Address
from gateway.ops.operations import Suspension
from gateway.ops.view import SlotView, StoredView

_OPEN = ("pending", "deferred")


@dataclass(frozen=True, slots=True)
class Scene:
    """What there is to know besides the message. `now` is epoch seconds, `give_up` and `keep` seconds.

    `hop` says where a recipient's mail goes; `attended` whether gateways work on the spool; `claimed` whether one has
    the message in hand. `keep` is that of quarantine, 0 for ever.
    """

    now: float
    give_up: float
    keep: float
    hop: Callable[[str, str, str, str, str], str]
    suspended: Mapping[str, Suspension]
    attended: bool
    claimed: bool = False


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason. `code` is for programs; `until` the epoch seconds when something happens, None for no such time."""

    code: str
    text: str
    recipient: str = ""
    until: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {"code": self.code, "recipient": self.recipient, "text": self.text, "until": self.until}


def reasons(message: StoredView, scene: Scene) -> list[Reason]:
    """Why it is still here: of the message as a whole first, then of each recipient that has not got it."""
    state = str(message.state)
    if state == "corrupt":
        return [Reason("corrupt", f"{message.reason}; it can only be dropped")]
    if state == "leaving":
        return [Reason("leaving", f"{message.reason}, which has not said yet whether it took it")]
    if state == "hold":
        return [Reason("hold", f"on hold: {message.reason or 'no reason given'}; until released or dropped")]
    if state == "quarantine":
        end = message.received + scene.keep if scene.keep else None
        then = "then it is dropped" if end is not None else "it stays until released or dropped"
        return [Reason("quarantine", f"in quarantine: {message.reason or 'no reason given'}; {then}", until=end)]
    out = []
    if not scene.attended:
        out.append(Reason("unattended", "no Gatepost is running on this spool"))
    if message.reason:
        out.append(Reason("returned", f"{message.reason}; its sender gets a bounce at the next look"))
    if scene.claimed:
        out.append(Reason("claimed", "a worker has it in hand: it is being delivered, or waits for its turn"))
    return out + [_of(slot, message, scene) for slot in message.slots if str(slot.status) in _OPEN]


def _of(slot: SlotView, message: StoredView, scene: Scene) -> Reason:
    address = slot.recipient.address
    sender = message.envelope.sender
    of_sender = (sender.local, sender.domain) if isinstance(sender, Address) else ("", "")
    hop = scene.hop(address.local, address.domain, message.envelope.next_hop, *of_sender)
    end = message.received + scene.give_up
    suspension = scene.suspended.get(hop)
    if suspension is not None:
        why = f" ({suspension.reason})" if suspension.reason else ""
        text = f"{hop} is suspended by {suspension.by}{why}"
        return Reason("suspended", text, str(address), slot.due if slot.due > scene.now else None)
    tried = f"{slot.attempts} {'attempt' if slot.attempts == 1 else 'attempts'}"
    said = f": {slot.last}" if slot.last else ""
    if slot.due > scene.now:
        given_up = "; then it is given up" if slot.due >= end else ""
        return Reason("deferred", f"to {hop}, {tried}{said}; tried again{given_up}", str(address), slot.due)
    if not slot.last:
        return Reason("new", f"to {hop}, not tried yet, due now", str(address), slot.due)
    return Reason("due", f"to {hop}, {tried}{said}; due now", str(address), slot.due)
