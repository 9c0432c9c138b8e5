"""The board: rows that workers write and everybody reads, across processes."""

from __future__ import annotations

import os
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.session import IPAddress
from gateway.ops.board import BUCKETS, WORKERS_MAX, Board, WorkerState, bucket

ANNA = ip_address("192.0.2.1")
BEN = ip_address("198.51.100.7")


def in_child(work: object) -> None:
    """Run `work` in a forked process and wait for its good end."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()  # type: ignore[operator]
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_new_board_has_workers_that_start_and_nothing_open() -> None:
    board = Board.create(3, 100.0)
    assert [slot.state for slot in board.slots] == [WorkerState.STARTING] * 3
    assert [slot.heartbeat for slot in board.slots] == [100.0] * 3
    assert board.sessions() == 0 and board.sessions_of(ANNA) == 0
    board.close()


def test_what_a_forked_worker_writes_is_seen_by_the_supervisor() -> None:
    board = Board.create(2, 100.0)

    def work() -> None:
        slot = board.slot(1)
        slot.begin(101.0)
        slot.set_state(WorkerState.READY)
        slot.set_spool_ok(False)
        slot.beat(102.5)
        slot.session_opened(ANNA)

    in_child(work)
    slot = board.slot(1)
    assert slot.state is WorkerState.READY and not slot.spool_ok
    assert slot.heartbeat == 102.5 and slot.pid not in (0, os.getpid())
    assert (board.sessions(), board.sessions_of(ANNA), board.sessions_of(BEN)) == (1, 1, 0)
    assert board.slot(0).sessions == 0


def test_one_clients_sessions_are_summed_over_all_workers() -> None:
    board = Board.create(4, 0.0)
    for i in range(4):
        in_child(lambda i=i: [board.slot(i).session_opened(ANNA) for _ in range(i + 1)])
    assert board.sessions_of(ANNA) == board.sessions() == 10
    in_child(lambda: board.slot(3).session_closed(ANNA))
    assert board.sessions_of(ANNA) == 9


def test_the_sessions_of_a_dead_worker_do_not_count_on() -> None:
    board = Board.create(2, 0.0)
    in_child(lambda: [board.slot(0).session_opened(ANNA) for _ in range(5)])
    board.slot(1).session_opened(ANNA)
    board.slot(0).set_state(WorkerState.READY)
    board.clear(0, 7.0)
    assert board.sessions_of(ANNA) == board.sessions() == 1
    slot = board.slot(0)
    assert (slot.state, slot.pid, slot.heartbeat, slot.spool_ok) == (WorkerState.STARTING, 0, 7.0, True)


def test_a_close_without_an_open_leaves_the_counters_at_nothing() -> None:
    board = Board.create(1, 0.0)
    board.slot(0).session_closed(ANNA)
    assert board.sessions() == board.sessions_of(ANNA) == 0


def test_a_counter_stays_at_its_highest_value() -> None:
    board = Board.create(1, 0.0)
    for _ in range(65_540):
        board.slot(0).session_opened(ANNA)
    assert board.sessions_of(ANNA) == 65_535


def test_ipv6_clients_are_counted_by_their_64_and_mapped_ones_as_ipv4() -> None:
    key = b"k" * 16
    assert bucket(ip_address("2001:db8::1"), key) == bucket(ip_address("2001:db8::ffff:1"), key)
    assert bucket(ip_address("2001:db8::1"), key) != bucket(ip_address("2001:db8:0:1::1"), key)
    assert bucket(ip_address("::ffff:192.0.2.1"), key) == bucket(ANNA, key)


def test_every_start_has_its_own_key() -> None:
    addresses = [ip_address(n) for n in range(1 << 24, (1 << 24) + 50)]
    first, second = ([bucket(address, key) for address in addresses] for key in (b"a" * 16, b"b" * 16))
    assert first != second


@pytest.mark.parametrize("workers", [0, WORKERS_MAX + 1])
def test_a_board_of_a_size_that_is_not_kept_is_refused(workers: int) -> None:
    with pytest.raises(ValueError, match="1 to 64 rows"):
        Board.create(workers, 0.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.ip_addresses()), max_size=40))
def test_a_client_is_never_counted_too_low(opened: list[tuple[int, IPAddress]]) -> None:
    board = Board.create(3, 0.0)
    for i, client in opened:
        board.slot(i).session_opened(client)
    for client in {client for _, client in opened}:
        assert board.sessions_of(client) >= sum(1 for _, other in opened if other == client)
        assert 0 <= bucket(client, b"x" * 16) < BUCKETS
    for i, client in opened:
        board.slot(i).session_closed(client)
    assert board.sessions() == 0 and all(board.sessions_of(client) == 0 for _, client in opened)
    board.close()
