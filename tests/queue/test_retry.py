"""When to try again."""

from __future__ import annotations

import pytest

from gateway.queue.retry import RetryOptions, is_over, next_due, pause, warning_due

DAY = 86400.0


def test_the_pause_doubles_from_first_to_max() -> None:
    options = RetryOptions(jitter=0.0)
    assert [pause(n, options, 0.5) for n in range(1, 7)] == [300, 600, 1200, 2400, 3600, 3600]


@pytest.mark.parametrize("attempts", [1, 2, 4, 5, 50])
def test_jitter_stays_within_its_part_of_the_pause_and_reaches_both_ends(attempts: int) -> None:
    options = RetryOptions(jitter=0.1)
    plain = pause(attempts, RetryOptions(jitter=0.0), 0.5)
    assert pause(attempts, options, 0.0) == pytest.approx(plain * 0.9)
    assert pause(attempts, options, 1.0) == pytest.approx(plain * 1.1)
    assert pause(attempts, options, 0.5) == pytest.approx(plain)


def test_a_million_attempts_do_not_overflow() -> None:
    assert pause(10**6, RetryOptions(jitter=0.0), 0.5) == 3600.0


def test_a_first_pause_longer_than_max_is_kept() -> None:
    assert pause(3, RetryOptions(first=7200.0, max=3600.0, jitter=0.0), 0.5) == 7200.0


def test_the_last_attempt_comes_when_the_time_is_over_and_not_a_pause_later() -> None:
    options = RetryOptions(jitter=0.0)
    assert next_due(5 * DAY - 60, 90, 0.0, options, 0.5) == 5 * DAY
    assert next_due(DAY, 90, 0.0, options, 0.5) == DAY + 3600


def test_past_its_time_a_message_is_still_given_a_due_time_ahead() -> None:
    assert next_due(6 * DAY, 1, 0.0, RetryOptions(jitter=0.0), 0.5) == 6 * DAY + 300


def test_a_message_is_over_after_give_up_and_not_before() -> None:
    assert not is_over(100 + 5 * DAY - 1, 100, RetryOptions())
    assert is_over(100 + 5 * DAY, 100, RetryOptions())


def test_a_warning_is_due_after_warn_after_and_never_when_it_is_zero() -> None:
    assert not warning_due(14399, 0, RetryOptions())
    assert warning_due(14400, 0, RetryOptions())
    assert not warning_due(4 * DAY, 0, RetryOptions(warn_after=0))


def test_a_next_hop_that_wants_to_be_left_alone_is_but_not_beyond_the_end() -> None:
    options = RetryOptions(jitter=0.0)
    assert next_due(1000.0, 1, 0.0, options, 0.5, 10.0) == 1300.0
    assert next_due(1000.0, 1, 0.0, options, 0.5, 7200.0) == 8200.0
    assert next_due(5 * DAY - 60, 1, 0.0, options, 0.5, 7200.0) == 5 * DAY
