"""What metrics show of destinations: states, names, and never more names than there is room for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import REGISTRY

from gateway.queue import gauges
from gateway.queue.gauges import Gauges, Reach, reach
from gateway.queue.lane import Lane
from gateway.queue.options import OwnOptions, PaceOptions
from gateway.queue.pace import Signal
from gateway.spool.spool import SpoolOptions
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
