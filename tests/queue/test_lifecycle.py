"""What becomes of a message after an attempt."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.mail.address import NULL_SENDER
from gateway.mail.envelope import Notify
from gateway.mail.reply import Reply
from gateway.queue.lifecycle import Action, Attempted, Judgement, Notice, judge
from gateway.queue.retry import RetryOptions
from gateway.spool.spool import RecipientStatus, Slot, Stored
from gateway.transport.transport import Outcome, Result
from tests.queue.rig import DEFERRED, DELIVERED, FAILED, START, UNREACHED, recipient, stored

RETRY = RetryOptions(jitter=0.1)
DAY = 86400.0


def after(
    message: Stored, *outcomes: Outcome, later: float = 10.0, final: bool = False, random: float = 0.5
) -> Judgement:
    attempted = [Attempted(n, outcome, final) for n, outcome in enumerate(outcomes)]
    return judge(message, attempted, START + later, RETRY, random)


def carry(message: Stored, judgement: Judgement) -> Stored:
    """The message as the next claim gives it."""
    return replace(message, slots=judgement.slots, warned=message.warned or judgement.warned)


def test_a_delivered_message_is_done_and_nobody_is_told() -> None:
    result = after(stored(), DELIVERED)
    assert result == Judgement(
        (Slot(recipient("anna@example.org"), RecipientStatus.DELIVERED, 0.0, 1, "250 2.0.0 taken"),)
    )
    assert result.notice is None


def test_a_deferred_recipient_is_due_again_after_the_pause() -> None:
    slot = after(stored(), DEFERRED).slots[0]
    assert (slot.status, slot.due, slot.attempts) == (RecipientStatus.DEFERRED, START + 10 + 300, 1)
    assert slot.last == "450 4.2.0 busy"


def test_a_deferred_recipient_is_not_due_before_the_next_hop_wants_it() -> None:
    slot = after(stored(), replace(DEFERRED, retry_after=7200.0)).slots[0]
    assert (slot.status, slot.due) == (RecipientStatus.DEFERRED, START + 10 + 7200)


def test_pauses_grow_with_each_attempt_and_stay_within_the_jitter() -> None:
    message, now, previous = stored(), START, 0.0
    for expected in (300, 600, 1200, 2400, 3600, 3600):
        low = judge(message, [Attempted(0, DEFERRED)], now, RETRY, 0.0).slots[0].due - now
        high = judge(message, [Attempted(0, DEFERRED)], now, RETRY, 1.0).slots[0].due - now
        assert low == pytest.approx(expected * 0.9) and high == pytest.approx(expected * 1.1)
        assert high >= previous
        result = judge(message, [Attempted(0, DEFERRED)], now, RETRY, 0.5)
        message, now, previous = carry(message, result), result.slots[0].due, high


def test_being_put_off_is_no_attempt() -> None:
    message = replace(stored(), slots=(Slot(recipient("anna@example.org"), RecipientStatus.DEFERRED, START, 3, "x"),))
    slot = judge(message, [Attempted(0, UNREACHED, made=False)], START, RETRY, 0.5).slots[0]
    assert (slot.attempts, slot.due) == (3, START + 1200)


def test_an_owed_failure_is_reported_and_the_message_is_not_held() -> None:
    result = after(stored(owed=True), FAILED)
    assert result.notice is Notice.FAILURE and result.hold == ""
    (report,) = result.reports
    assert (report.action, report.reply, report.host, report.replied) == (
        Action.FAILED, "550 5.1.1 no such user", "store.example.org", True,
    )  # fmt: skip


def test_a_strangers_failure_is_held_and_not_bounced() -> None:
    result = after(stored(owed=False), FAILED)
    assert result.reports == ()
    assert result.hold == "undeliverable: 550 5.1.1 no such user, sender not proved, no bounce sent"
    assert result.slots[0].status is RecipientStatus.FAILED


@pytest.mark.parametrize("owed", [True, False])
def test_the_null_sender_is_never_told_and_its_message_is_held(owed: bool) -> None:
    result = after(stored(sender=NULL_SENDER, owed=owed), FAILED)
    assert result.reports == ()
    assert result.hold == "undeliverable bounce: 550 5.1.1 no such user"


@pytest.mark.parametrize("owed", [True, False])
@pytest.mark.parametrize("notify", [(Notify.NEVER,), (Notify.SUCCESS,), (Notify.DELAY,)])
def test_a_sender_who_does_not_want_to_know_of_failures_is_not_told_and_nothing_is_held(
    owed: bool, notify: tuple[Notify, ...]
) -> None:
    result = after(stored(recipient("anna@example.org", *notify), owed=owed), FAILED)
    assert result.reports == () and result.hold == ""


def test_notify_failure_is_honoured() -> None:
    assert after(stored(recipient("anna@example.org", Notify.FAILURE)), FAILED).notice is Notice.FAILURE


def test_a_message_is_expired_when_its_time_is_over() -> None:
    before = after(stored(), DEFERRED, later=5 * DAY - 1)
    assert before.slots[0].status is RecipientStatus.DEFERRED
    result = after(stored(warned=True), DEFERRED, later=5 * DAY)
    assert result.slots[0].status is RecipientStatus.EXPIRED
    assert [r.action for r in result.reports] == [Action.FAILED]


def test_a_strangers_expired_message_is_held() -> None:
    result = after(stored(owed=False), DEFERRED, later=5 * DAY)
    assert result.hold.startswith("undeliverable: 450 4.2.0 busy")


def test_a_delivery_at_the_last_moment_counts() -> None:
    assert after(stored(), DELIVERED, later=9 * DAY).slots[0].status is RecipientStatus.DELIVERED


def test_a_delay_is_reported_once() -> None:
    message = stored()
    early = after(message, DEFERRED, later=4 * 3600 - 1)
    assert early.reports == () and not early.warned
    first = after(message, DEFERRED, later=4 * 3600)
    assert first.notice is Notice.DELAY and first.warned
    second = after(carry(message, first), DEFERRED, later=5 * 3600)
    assert second.reports == ()


def test_a_delay_report_names_waiting_recipients_that_were_not_tried_now() -> None:
    message = stored(recipient("anna@example.org"), recipient("carl@example.com"))
    waiting = Slot(message.slots[1].recipient, RecipientStatus.DEFERRED, START + 9e5, 2, "451 4.4.1 refused")
    result = after(replace(message, slots=(message.slots[0], waiting)), DEFERRED, later=4 * 3600)
    assert [(r.recipient.address.local, r.tried, r.reply) for r in result.reports] == [
        ("anna", True, "450 4.2.0 busy"),
        ("carl", False, "451 4.4.1 refused"),
    ]


@pytest.mark.parametrize("notify", [(Notify.NEVER,), (Notify.FAILURE,), (Notify.SUCCESS,)])
def test_a_delay_is_not_reported_to_those_who_did_not_ask(notify: tuple[Notify, ...]) -> None:
    result = after(stored(recipient("anna@example.org", *notify)), DEFERRED, later=5 * 3600)
    assert result.reports == () and not result.warned


@pytest.mark.parametrize("change", [{"owed": False}, {"sender": NULL_SENDER}])
def test_strangers_and_the_null_sender_get_no_delay_report(change: dict[str, object]) -> None:
    assert after(stored(**change), DEFERRED, later=5 * 3600).reports == ()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("final", "passed", "action"),
    [(False, False, Action.RELAYED), (True, False, Action.DELIVERED), (False, True, None), (True, True, None)],
)
def test_success_is_reported_where_the_next_hop_will_not_do_it(
    final: bool, passed: bool, action: Action | None
) -> None:
    message = stored(recipient("anna@example.org", Notify.SUCCESS))
    result = after(message, replace(DELIVERED, dsn_passed=passed), final=final)
    assert [r.action for r in result.reports] == ([action] if action else [])
    assert result.notice is (Notice.SUCCESS if action else None)


def test_a_stranger_gets_no_success_report() -> None:
    assert after(stored(recipient("anna@example.org", Notify.SUCCESS), owed=False), DELIVERED).reports == ()


def test_success_without_being_asked_is_not_reported() -> None:
    assert after(stored(recipient("anna@example.org", Notify.FAILURE)), DELIVERED).reports == ()


def test_recipients_keep_their_own_outcomes() -> None:
    three = [recipient(f"{name}@example.org") for name in ("anna", "ben", "carl")]
    result = after(stored(*three), DELIVERED, FAILED, DEFERRED)
    assert [s.status.value for s in result.slots] == ["delivered", "failed", "deferred"]
    assert [r.recipient.address.local for r in result.reports] == ["ben"]
    assert result.hold == ""


def test_an_earlier_failure_of_a_strangers_message_is_remembered_to_the_end() -> None:
    message = stored(recipient("anna@example.org"), recipient("ben@example.org"), owed=False)
    first = after(message, FAILED, DEFERRED)
    assert first.hold == "" and first.reports == ()
    second = judge(carry(message, first), [Attempted(1, DELIVERED)], START + 400, RETRY, 0.5)
    assert second.hold.startswith("undeliverable: 550 5.1.1 no such user")


def test_a_failure_is_reported_in_one_settlement_only() -> None:
    message = stored(recipient("anna@example.org"), recipient("ben@example.org"))
    first = after(message, FAILED, DEFERRED)
    second = judge(carry(message, first), [Attempted(1, DELIVERED)], START + 400, RETRY, 0.5)
    assert len(first.reports) == 1 and second.reports == () and second.hold == ""


def test_a_report_of_several_kinds_is_named_after_the_gravest() -> None:
    message = stored(recipient("a@example.org", Notify.SUCCESS), recipient("b@example.org"), recipient("c@example.org"))
    result = after(message, DELIVERED, FAILED, DEFERRED, later=5 * 3600)
    assert {r.action for r in result.reports} == {Action.RELAYED, Action.FAILED, Action.DELAYED}
    assert result.notice is Notice.FAILURE and result.warned


def test_a_reply_with_line_ends_is_stored_as_one_line() -> None:
    outcome = Outcome(Result.DEFERRED, Reply(450, "", "a\r\nb\x00c"))
    assert after(stored(), outcome).slots[0].last == "450 a??b?c"
