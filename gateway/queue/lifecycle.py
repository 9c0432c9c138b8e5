"""What becomes of a message after an attempt: who is done, who is tried again, who must be told. Pure.

*Promises*: a message never vanishes unheard. A recipient that failed for good ends in a DSN to a sender whom we owe
one, or in the sender's own wish not to know (NOTIFY), or on hold for the postmaster. The null sender is never told
anything, and neither is a sender who may be forged.

*RFCs*: 3461 section 4.1 (NOTIFY) and 5.2 (who reports what), 5321 section 6.1 (no DSN for the null sender).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from gateway.mail.address import NULL_SENDER
from gateway.mail.envelope import Notify, Recipient
from gateway.mail.reply import clean
from gateway.queue import retry
from gateway.queue.retry import RetryOptions
from gateway.spool.spool import RecipientStatus, Slot, Stored
from gateway.transport.transport import Outcome, Result


class Notice(StrEnum):
    """The kind of a DSN: the gravest thing that it reports."""

    FAILURE = "failure"
    DELAY = "delay"
    SUCCESS = "success"
    DOUBLE = "double"
    """To the postmaster: mail from the null sender, which is a bounce as a rule, could not be delivered."""


class Action(StrEnum):
    """The Action field of RFC 3464 section 2.3.3. *Expanded* is not used: Gatepost keeps no lists."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"


_KIND = {
    Action.FAILED: Notice.FAILURE,
    Action.DELAYED: Notice.DELAY,
    Action.DELIVERED: Notice.SUCCESS,
    Action.RELAYED: Notice.SUCCESS,
}


@dataclass(frozen=True, slots=True)
class Attempted:
    """The outcome for the recipient in slot number `slot`.

    `final` says that the destination is the mail store itself and no further relay. `made` is False when the
    recipient was put off without being tried, which does not count as an attempt; then `due` says until when. `retry`
    are the destination's own options, None for those that hold for all.
    """

    slot: int
    outcome: Outcome
    final: bool = False
    made: bool = True
    due: float = 0.0
    retry: RetryOptions | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """One recipient in a DSN. `reply` is as in `Slot.last`; `replied` says that `host` itself gave it.

    `tried` says that there was an attempt just now; for the others `reply` may be of an earlier one.
    """

    recipient: Recipient
    action: Action
    reply: str
    host: str = ""
    replied: bool = False
    tried: bool = True


@dataclass(frozen=True, slots=True)
class Judgement:
    """What to store and whom to tell. `reports` is empty when no DSN is owed; `hold` is empty for no hold.

    `lost` are the recipients that mail from the null sender, now at its end, did not reach.
    """

    slots: tuple[Slot, ...]
    reports: tuple[Report, ...] = ()
    hold: str = ""
    warned: bool = False
    lost: tuple[Report, ...] = ()

    @property
    def notice(self) -> Notice | None:
        """The kind of DSN that is owed; None for none."""
        kinds = {_KIND[report.action] for report in self.reports}
        return next((kind for kind in Notice if kind in kinds), None)


def wants_failure(recipient: Recipient) -> bool:
    """Whether the sender wants to hear of a failure: NOTIFY holds FAILURE or was not given."""
    return not recipient.notify or Notify.FAILURE in recipient.notify


def wants_delay(recipient: Recipient) -> bool:
    """Whether the sender wants to hear of a delay: NOTIFY holds DELAY or was not given."""
    return not recipient.notify or Notify.DELAY in recipient.notify


def judge(
    message: Stored, attempted: Sequence[Attempted], now: float, options: RetryOptions, random: float
) -> Judgement:
    """The state after `attempted`; recipients not named in it stay as they are.

    `now` is epoch seconds; `random`, in 0..1, spreads the next due time, which all recipients deferred now share.
    """
    slots = list(message.slots)
    for item in attempted:
        slots[item.slot] = _after(slots[item.slot], item, message.received, now, options, random)
    tells = message.owed and message.envelope.sender is not NULL_SENDER
    reports = _endings(slots, attempted) if tells else []
    waiting = any(slot.status.open for slot in slots)
    warned = False
    patience = [item.retry or options for item in attempted] or [options]
    late = any(retry.warning_due(now, message.received, each) for each in patience)
    if tells and waiting and not message.warned and late:
        delays = _delays(slots, attempted)
        warned = bool(delays)
        reports += delays
    hold = "" if waiting or tells else _untold(message, slots)
    lost = _lost(slots, attempted) if hold and message.envelope.sender is NULL_SENDER else ()
    return Judgement(tuple(slots), tuple(reports), hold, warned, lost)


def due_now(message: Stored, now: float) -> list[int]:
    """Numbers of the recipients to attempt. A claim says that something is due, so it is never none of the open."""
    open = [n for n, slot in enumerate(message.slots) if slot.status.open]
    return [n for n in open if message.slots[n].due <= now] or open


def deadline(message: Stored, warned: bool, now: float, options: RetryOptions) -> float:
    """When a message that waits must be looked at even if its destination is dead: its sender is to hear of it."""
    times = [message.received + options.give_up]
    if message.owed and not (message.warned or warned) and options.warn_after:
        times.append(message.received + options.warn_after)
    # What is past was looked at just now. Where that told nobody, it is a while until the next look.
    return min((time for time in times if time > now), default=now + options.first)


def _after(slot: Slot, item: Attempted, received: float, now: float, options: RetryOptions, random: float) -> Slot:
    outcome = item.outcome
    options = item.retry or options
    attempts = slot.attempts + item.made
    last = clean(str(outcome.reply))
    due = 0.0
    if outcome.result is Result.DELIVERED:
        status = RecipientStatus.DELIVERED
    elif outcome.result is Result.FAILED:
        status = RecipientStatus.FAILED
    elif retry.is_over(now, received, options):
        status = RecipientStatus.EXPIRED
    else:
        status = RecipientStatus.DEFERRED
        due = item.due or retry.next_due(now, attempts, received, options, random, outcome.retry_after)
    return Slot(slot.recipient, status, due, attempts, last)


def _endings(slots: Sequence[Slot], attempted: Sequence[Attempted]) -> list[Report]:
    """What to report of recipients that came to an end now."""
    out: list[Report] = []
    for item in attempted:
        slot, outcome = slots[item.slot], item.outcome
        recipient = slot.recipient
        if slot.status in (RecipientStatus.FAILED, RecipientStatus.EXPIRED):
            if wants_failure(recipient):
                out.append(_report(recipient, Action.FAILED, item))
        elif slot.status is RecipientStatus.DELIVERED and Notify.SUCCESS in recipient.notify and not outcome.dsn_passed:
            out.append(_report(recipient, Action.DELIVERED if item.final else Action.RELAYED, item))
    return out


def _delays(slots: Sequence[Slot], attempted: Sequence[Attempted]) -> list[Report]:
    """What to report of recipients that still wait, whether or not they were tried just now."""
    now = {item.slot: item for item in attempted}
    out: list[Report] = []
    for number, slot in enumerate(slots):
        if slot.status is RecipientStatus.DEFERRED and wants_delay(slot.recipient):
            if number in now:
                out.append(_report(slot.recipient, Action.DELAYED, now[number]))
            else:
                out.append(Report(slot.recipient, Action.DELAYED, slot.last, tried=False))
    return out


def _lost(slots: Sequence[Slot], attempted: Sequence[Attempted]) -> tuple[Report, ...]:
    """The recipients that a bounce did not reach, of earlier attempts too."""
    now = {item.slot: item for item in attempted}
    return tuple(
        _report(slot.recipient, Action.FAILED, now[number])
        if number in now
        else Report(slot.recipient, Action.FAILED, slot.last, tried=False)
        for number, slot in enumerate(slots)
        if slot.status in (RecipientStatus.FAILED, RecipientStatus.EXPIRED) and wants_failure(slot.recipient)
    )


def _report(recipient: Recipient, action: Action, item: Attempted) -> Report:
    outcome = item.outcome
    return Report(recipient, action, clean(str(outcome.reply)), outcome.host, outcome.replied, item.made)


def _untold(message: Stored, slots: Sequence[Slot]) -> str:
    """Why a message that has come to its end stays on hold: a failure that nobody was or will be told of."""
    for slot in slots:
        if slot.status in (RecipientStatus.FAILED, RecipientStatus.EXPIRED) and wants_failure(slot.recipient):
            if message.envelope.sender is NULL_SENDER:
                return f"undeliverable bounce: {slot.last}"
            return f"undeliverable: {slot.last}, sender not proved, no bounce sent"
    return ""
