"""NOTIFY against what happened, as a table: every combination, to next hops with and without DSN (RFC 3461)."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import pytest

from gateway.mail.address import NULL_SENDER
from gateway.mail.envelope import Notify
from gateway.queue.lifecycle import Action, Attempted, judge
from gateway.queue.retry import RetryOptions
from gateway.spool.spool import Stored
from gateway.transport.transport import Outcome
from tests.queue.rig import DEFERRED, DELIVERED, FAILED, START, recipient, stored

OPTIONS = RetryOptions(jitter=0.0)
SOON, LATE, OVER = START + 60, START + OPTIONS.warn_after, START + OPTIONS.give_up

WISHES = [
    (),
    (Notify.NEVER,),
    *(c for n in (1, 2, 3) for c in combinations((Notify.SUCCESS, Notify.FAILURE, Notify.DELAY), n)),
]
# What happened: the outcome, when, and whether the destination is a mail store.
EVENTS: dict[str, tuple[Outcome, float, bool]] = {
    "delivered to the store": (DELIVERED, SOON, True),
    "relayed": (DELIVERED, SOON, False),
    "refused": (FAILED, SOON, False),
    "deferred": (DEFERRED, SOON, False),
    "deferred for long": (DEFERRED, LATE, False),
    "given up": (DEFERRED, OVER, False),
}


def expected(event: str, wish: tuple[Notify, ...], *, dsn: bool) -> Action | None:
    """RFC 3461 section 4.1 and 5.2, in words of its own: what the sender of one recipient hears."""
    said = wish or (Notify.FAILURE, Notify.DELAY)
    match event:
        case "refused" | "given up":
            return Action.FAILED if Notify.FAILURE in said else None
        case "deferred for long":
            return Action.DELAYED if Notify.DELAY in said else None
        case "delivered to the store" | "relayed":
            # A next hop that offers DSN was passed the wish, and answers for it.
            heard = Notify.SUCCESS in said and not dsn
            return (Action.RELAYED if event == "relayed" else Action.DELIVERED) if heard else None
    return None


def told(message: Stored, event: str, *, dsn: bool) -> list[Action]:
    outcome, now, final = EVENTS[event]
    judgement = judge(message, [Attempted(0, replace(outcome, dsn_passed=dsn), final)], now, OPTIONS, 0.5)
    return [report.action for report in judgement.reports]


@pytest.mark.parametrize(("event", "wish", "dsn"), list(product(EVENTS, WISHES, (False, True))))
def test_the_sender_hears_what_it_asked_for_and_nothing_else(event: str, wish: tuple[Notify, ...], dsn: bool) -> None:
    action = expected(event, wish, dsn=dsn)
    anna = recipient("anna@example.org", *wish)
    assert told(stored(anna), event, dsn=dsn) == ([] if action is None else [action])
    # One that may be forged, and the null sender, hear nothing, whatever they asked for.
    assert told(stored(anna, owed=False), event, dsn=dsn) == []
    assert told(stored(anna, sender=NULL_SENDER, owed=False), event, dsn=dsn) == []
    assert told(stored(anna, sender=NULL_SENDER, owed=True), event, dsn=dsn) == []


@pytest.mark.parametrize(("event", "wish"), list(product(("refused", "given up"), WISHES)))
def test_a_failure_that_nobody_hears_of_is_held_unless_that_is_what_they_wanted(
    event: str, wish: tuple[Notify, ...]
) -> None:
    outcome, now, _ = EVENTS[event]
    anna = recipient("anna@example.org", *wish)
    wanted = not wish or Notify.FAILURE in wish
    for message in (stored(anna, owed=False), stored(anna, sender=NULL_SENDER)):
        judgement = judge(message, [Attempted(0, outcome)], now, OPTIONS, 0.5)
        assert bool(judgement.hold) is wanted
        assert bool(judgement.lost) is (wanted and message.envelope.sender is NULL_SENDER)
    judgement = judge(stored(anna), [Attempted(0, outcome)], now, OPTIONS, 0.5)
    assert not judgement.hold and not judgement.lost


def test_each_recipient_is_told_of_by_its_own_wish() -> None:
    wishes = [recipient(f"r{n}@example.org", *wish) for n, wish in enumerate(WISHES)]
    message = stored(*wishes)
    judgement = judge(message, [Attempted(n, FAILED) for n in range(len(wishes))], SOON, OPTIONS, 0.5)
    assert {r.recipient for r in judgement.reports} == {r for r in wishes if not r.notify or Notify.FAILURE in r.notify}
