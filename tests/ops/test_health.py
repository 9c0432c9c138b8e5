"""What the three probes say for every state of the workers."""

from __future__ import annotations

from gateway.ops.board import Board, WorkerState
from gateway.ops.health import live, ready, started


def board_with(*states: WorkerState, now: float = 100.0) -> Board:
    board = Board.create(len(states), now)
    for slot, state in zip(board.slots, states, strict=True):
        slot.set_state(state)
    return board


def test_a_worker_that_was_silent_for_ten_seconds_is_not_live() -> None:
    board = board_with(WorkerState.READY, WorkerState.READY)
    board.slot(0).beat(105.0)
    assert live(board, 109.9).ok
    health = live(board, 110.0)
    assert not health.ok and health.why == ("worker 1: silent for 10 s",)


def test_a_worker_that_ended_as_told_needs_no_heartbeat() -> None:
    assert live(board_with(WorkerState.STOPPED), 1000.0).ok


def test_one_worker_that_takes_mail_is_enough_to_be_ready() -> None:
    board = board_with(WorkerState.READY, WorkerState.RECOVERING)
    health = ready(board, 101.0)
    assert health.ok and health.why == ("worker 1: recovering",)


def test_nobody_is_ready_while_draining() -> None:
    health = ready(board_with(WorkerState.DRAINING, WorkerState.DRAINING), 101.0)
    assert not health.ok and health.why == ("worker 0: draining", "worker 1: draining")


def test_a_worker_whose_spool_fails_or_that_is_stuck_is_not_ready() -> None:
    board = board_with(WorkerState.READY, WorkerState.READY)
    board.slot(0).set_spool_ok(False)
    board.slot(0).beat(119.0)
    health = ready(board, 120.0)
    assert not health.ok
    assert health.why == ("worker 0: spool does not work", "worker 1: silent for 20 s")


def test_start_is_over_when_every_worker_has_read_its_spool() -> None:
    board = board_with(WorkerState.READY, WorkerState.RECOVERING)
    assert not started(board, 100.0).ok
    board.slot(1).set_state(WorkerState.READY)
    assert started(board, 100.0).ok


def test_the_answer_shows_each_worker() -> None:
    board = board_with(WorkerState.READY)
    board.slot(0).set_config(3, "00123456789a")
    worker = {"worker": 0, "pid": 0, "state": "ready", "silent": 1.5, "sessions": 0, "spool": "ok"}
    assert ready(board, 101.5).to_json() == {
        "ok": True,
        "why": [],
        "workers": [{**worker, "generation": 3, "config": "00123456789a"}],
    }
