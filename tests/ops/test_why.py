"""Why a message is still here: one answer for every state it can be in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.mail.address import Address
from gateway.mail.envelope import Envelope, Recipient
from gateway.ops.operations import Suspension
from gateway.ops.why import Scene, reasons
from gateway.spool.spool import RecipientStatus, Slot, State, Stored

NOW = 1.7e9
BEN = Recipient(Address("ben", "example.org"))
SCENE = Scene(NOW, 432000.0, 86400.0, lambda local, domain, own, *_: own or f"mx:{domain}", {}, attended=True)
NEW = Slot(BEN, due=NOW - 5)
LATER = Slot(BEN, RecipientStatus.DEFERRED, NOW + 60, 2, "451 4.4.1 no")


def stored(*slots: Slot, state: State = State.QUEUED, reason: str = "") -> Stored:
    envelope = Envelope(Address("ann", "sender.test"), tuple(slot.recipient for slot in slots))
    return Stored("Q1", state, envelope, slots, NOW - 100, 10, True, False, reason=reason)


@pytest.mark.parametrize(
    ("message", "scene", "expected"),
    [
        (stored(NEW), SCENE, [("new", "to mx:example.org, not tried yet, due now", NOW - 5)]),
        (stored(LATER), SCENE, [("deferred", "to mx:example.org, 2 attempts: 451 4.4.1 no; tried again", NOW + 60)]),
        (
            stored(replace(LATER, due=NOW + 432000, attempts=1)),
            SCENE,
            [("deferred", "1 attempt: 451 4.4.1 no; tried again; then it is given up", NOW + 432000)],
        ),
        (stored(replace(LATER, due=0)), SCENE, [("due", "2 attempts: 451 4.4.1 no; due now", 0.0)]),
        (
            stored(NEW),
            replace(SCENE, claimed=True),
            [("claimed", "a worker has it in hand", None), ("new", "", NOW - 5)],
        ),
        (stored(NEW), replace(SCENE, attended=False), [("unattended", "no Gatepost", None), ("new", "", NOW - 5)]),
        (
            stored(LATER),
            replace(SCENE, suspended={"mx:example.org": Suspension("mx:example.org", "anna", NOW, "moving")}),
            [("suspended", "mx:example.org is suspended by anna (moving)", NOW + 60)],
        ),
        (
            stored(NEW, reason="returned: closed"),
            SCENE,
            [("returned", "its sender gets a bounce", None), ("new", "", NOW - 5)],
        ),
        (stored(NEW, state=State.HOLD, reason="legal"), SCENE, [("hold", "on hold: legal", None)]),
        (stored(NEW, state=State.HOLD), SCENE, [("hold", "no reason given", None)]),
        (
            stored(NEW, state=State.QUARANTINE, reason="virus"),
            SCENE,
            [("quarantine", "virus; then", NOW - 100 + 86400)],
        ),
        (stored(NEW, state=State.QUARANTINE), replace(SCENE, keep=0.0), [("quarantine", "until released", None)]),
        (stored(NEW, state=State.CORRUPT, reason="gone"), SCENE, [("corrupt", "gone; it can only be dropped", None)]),
        (stored(Slot(BEN, RecipientStatus.DELIVERED), NEW), SCENE, [("new", "", NOW - 5)]),
    ],
)
def test_each_state_has_its_reason(message, scene, expected):
    found = reasons(message, scene)
    assert [(one.code, one.until) for one in found] == [(code, until) for code, _, until in expected]
    assert all(text in one.text for one, (_, text, _) in zip(found, expected, strict=True))
