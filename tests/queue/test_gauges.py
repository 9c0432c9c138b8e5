"""What metrics show of destinations: states, names, and never more names than there is room for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from prometheus_client import REGISTRY

from gateway.queue import gauges
from gateway.queue.gauges import Gauges, Reach, reach
from gateway.queue.lane import Lane
from gateway.queue.options import OwnOptions, PaceOptions
from gateway.queue.pace import Signal
from gateway.spool.spool import Spool, SpoolError, SpoolOptions, State
from gateway.spool.sqlite import SqliteSpool
from gateway.transport.transport import Destination, Kind
from tests.queue.rig import ManualClock


def lane(name: str, *, mx: bool = False) -> Lane:
    return Lane(Destination(Kind.SMTP, name, 25, mx=mx), OwnOptions(PaceOptions(dead_after=1, dead_for=60.0)), 0.0)


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_a_destination_is_open_then_dead_then_probed() -> None:
    one = lane("a.test")
    assert reach(one, 0.0) is Reach.OPEN
    one.pace.end(one.pace.begin(0.0), Signal.LOST, 0.0)
    assert reach(one, 59.0) is Reach.DEAD
    assert reach(one, 60.0) is Reach.PROBED
    one.pace.end(one.pace.begin(60.0), Signal.GOOD, 60.0)
    assert reach(one, 60.0) is Reach.OPEN


def test_mail_hosts_found_by_mx_share_a_name_and_names_are_bounded(tmp_path: Path) -> None:
    lanes: Mapping[Destination, Lane] = {
        one.destination: one
        for one in (
            *(lane(f"mx{number}.test", mx=True) for number in range(300)),
            *(lane(f"host{number:03}.test") for number in range(gauges.SHOWN + 50)),
        )
    }
    for one in lanes.values():
        one.pace.begin(0.0)
    dead = next(iter(lanes.values()))
    dead.pace.end(dead.pace.begin(0.0), Signal.LOST, 0.0)

    async def main() -> set[str]:
        spool = await SqliteSpool.open(SpoolOptions(str(tmp_path / "spool"), min_free=0))
        board = Gauges(spool, lanes, ManualClock())
        board.show(lanes.values(), 1.0)
        first = set(board._names)
        assert sample("gatepost_destination_attempts", destination="mx") == 300
        assert sample("gatepost_destination_dead", destination="mx") == 1
        assert sample("gatepost_destination_attempts", destination="other") == 51
        assert sample("gatepost_destinations", state="dead") == 1
        assert sample("gatepost_destinations", state="open") == len(lanes) - 1
        # What is gone is shown as nothing, under the name that it has.
        board.show([], 2.0)
        assert sample("gatepost_destination_attempts", destination="mx") == 0
        assert sample("gatepost_destination_attempts", destination="other") == 0
        assert board._names == first
        await spool.close()
        return first

    assert len(asyncio.run(main())) == gauges.SHOWN + 1


class Told:
    """A spool that says what it is told to say."""

    def __init__(self, **oldest: float) -> None:
        self.oldest_ones = {State(name): received for name, received in oldest.items()}
        self.broken = False

    async def counts(self) -> dict[State, int]:
        if self.broken:
            raise SpoolError("the database does not answer")
        return dict.fromkeys(State, 0) | dict.fromkeys(self.oldest_ones, 60_000)

    async def oldest(self) -> dict[State, float]:
        return self.oldest_ones


def ages() -> dict[str, float | None]:
    ages = {state.value: sample("gatepost_queue_oldest_seconds", state=state.value) for state in State}
    return {state: age for state, age in ages.items() if age != 0}


def test_the_age_of_the_oldest_is_shown_by_state_and_is_0_where_there_is_none() -> None:
    clock = ManualClock()
    spool = Told(queued=clock.now() - 7200, quarantine=clock.now() - 90_000)
    board = Gauges(cast(Spool, spool), {}, clock)

    async def main() -> None:
        assert await board.count() == 120_000
        assert ages() == {"queued": 7200, "quarantine": 90_000}
        clock.advance(60)
        spool.oldest_ones = {State.QUEUED: clock.now() - 5}
        await board.count()
        assert ages() == {"queued": 5}
        spool.oldest_ones = {}
        await board.count()
        assert ages() == {}

    asyncio.run(main())


def test_a_clock_that_is_set_back_makes_no_age_negative() -> None:
    clock = ManualClock()
    board = Gauges(cast(Spool, Told(queued=clock.now())), {}, clock)

    async def main() -> None:
        clock.jump(-3600)
        await board.count()
        assert ages() == {}
        clock.jump(7200)
        await board.count()
        assert ages() == {"queued": 3600}

    asyncio.run(main())


def test_mail_grows_old_while_the_spool_does_not_answer() -> None:
    clock = ManualClock()
    spool = Told(queued=clock.now() - 100)
    board = Gauges(cast(Spool, spool), {}, clock)

    async def main() -> None:
        await board.count()
        spool.broken = True
        clock.advance(900)
        assert await board.count() == 0
        assert ages() == {"queued": 1000}
        assert sample("gatepost_queue_messages", state="queued") == 60_000
        await Gauges(cast(Spool, spool), {}, clock).count()
        assert ages() == {}, "of a spool that never answered nothing is known"

    asyncio.run(main())
