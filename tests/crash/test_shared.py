"""Gateways that share a spool in PostgreSQL die, or the database does: nothing that got 250 may be missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.spool.spool import Step
from tests.crash import shared
from tests.crash.count import Table

pytestmark = [pytest.mark.slow, pytest.mark.first]


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """The results of all tests here, printed after the last."""
    table = Table()
    yield table
    table.tell("shared", "on PostgreSQL:\n")


def test_what_a_killed_gateway_had_accepted_the_other_delivers(table):
    assert table.add(shared.gateway()).whole


def test_a_killed_database_costs_nothing_that_was_acknowledged(table):
    assert table.add(shared.database()).whole


def test_a_worker_killed_before_it_could_note_a_delivery_loses_nothing(table):
    assert table.add(shared.step(Step.SETTLE_BEGUN)).whole
