"""kill -9 at every durable step, under load, and then the count: nothing that got 250 may be missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.spool.spool import Step
from tests.crash import scenes
from tests.crash.count import Table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """The results of all tests here, printed after the last."""
    table = Table()
    yield table
    table.tell("killed")


@pytest.mark.parametrize("step", scenes.STEPS)
def test_a_worker_killed_at_any_durable_step_loses_nothing(table, step):
    assert table.add(scenes.step(step)).whole


def test_a_worker_killed_while_it_recovers_loses_nothing(table):
    assert table.add(scenes.recovery()).whole


@pytest.mark.parametrize("step", scenes.HOP_STEPS)
def test_nothing_is_lost_on_the_way_to_an_smtp_next_hop_whose_connections_are_reused(table, step):
    assert table.add(scenes.next_hop(step)).whole


def test_the_sender_is_told_of_every_message_that_bounces(table):
    assert table.add(scenes.bounced(Step.SETTLE_DONE)).whole


@pytest.mark.parametrize("workers", scenes.WORKERS)
def test_all_of_it_killed_and_started_with_another_number_of_workers_loses_nothing(table, workers):
    assert table.add(scenes.all_processes(workers)).whole


@pytest.mark.parametrize(("call", "when"), scenes.CALLS)
def test_a_worker_killed_inside_a_system_call_loses_nothing(table, call, when):
    assert table.add(scenes.system_call(call, when)).whole
