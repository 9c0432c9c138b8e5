"""Results of TLS, counted by day and domain."""

from __future__ import annotations

import json

import pytest

from gateway.sdk.testing import FakeState, ManualClock
from gateway.transport import tlsresults
from gateway.transport.rule import Applied, Failure
from gateway.transport.tlsresults import DAY, Results, Session, domains_key, policy_key, rows_key
from tests.transport.peer import run

STS = Applied("sts", ("version: STSv1", "mode: enforce"), ("mx.example.net",))
GOOD = Session("example.net", STS)
BAD = Session("example.net", STS, Failure.EXPIRED, "expired", "mx.example.net", "192.0.2.1", "192.0.2.9")


def test_sessions_of_a_day_add_up_over_processes_and_survive_them():
    async def main() -> None:
        clock = ManualClock()
        state = FakeState(clock)
        for _ in range(2):
            results = Results(state, clock)
            for session in (GOOD, GOOD, BAD, Session("example.org", Applied())):
                results.count(session)
            await results.close()
        day = int(clock.now()) // DAY
        assert await state.tally(domains_key(day)) == {"example.net": 6, "example.org": 2}
        rows = {
            json.loads(row)["failure"]: (row, n) for row, n in (await state.tally(rows_key(day, "example.net"))).items()
        }
        assert rows[""][1] == 4 and rows["certificate-expired"][1] == 2
        row = json.loads(rows["certificate-expired"][0])
        assert (row["host"], row["address"], row["local"]) == ("mx.example.net", "192.0.2.1", "192.0.2.9")
        stored = await state.get(policy_key(row["policy"]))
        assert stored and json.loads(stored)["strings"] == ["version: STSv1", "mode: enforce"]

    run(main())


def test_a_session_counts_for_the_day_on_which_it_was():
    async def main() -> None:
        clock = ManualClock()
        state, day = FakeState(clock), int(clock.now()) // DAY
        results = Results(state, clock)
        results.count(GOOD)
        clock.advance(DAY)
        results.count(GOOD)
        await results.close()
        for when in (day, day + 1):
            assert await state.tally(domains_key(when)) == {"example.net": 1}

    run(main())


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch):
    async def main() -> None:
        monkeypatch.setattr(tlsresults, "WAITING", 3)
        clock = ManualClock()
        state = FakeState(clock)
        results = Results(state, clock)
        for number in range(10):
            results.count(Session(f"{number}.example", Applied()))
            results.count(Session("0.example", Applied()))
        await results.close()
        counted = await state.tally(domains_key(int(clock.now()) // DAY))
        assert counted == {"0.example": 11, "1.example": 1, "2.example": 1}

    run(main())


def test_what_a_peer_made_endless_is_cut_to_what_the_store_takes():
    async def main() -> None:
        clock = ManualClock()
        state = FakeState(clock)
        results = Results(state, clock)
        endless = Applied("tlsa", ("x" * 5000,) * 500, ("y" * 5000,) * 500)
        results.count(Session("example.net", endless, Failure.HANDSHAKE, "\u20ac\n" * 5000, "h" * 5000))
        await results.close()
        day = int(clock.now()) // DAY
        assert sum((await state.tally(rows_key(day, "example.net"))).values()) == 1

    run(main())


def test_a_state_store_that_does_not_answer_costs_the_counts_and_nothing_else():
    async def main() -> None:
        clock = ManualClock()
        state = FakeState(clock)
        state.broken = True
        results = Results(state, clock)
        results.count(GOOD)
        await results.close()
        state.broken = False
        assert await state.tally(domains_key(int(clock.now()) // DAY)) == {}

    run(main())
