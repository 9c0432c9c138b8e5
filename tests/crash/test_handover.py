"""Three gateways under load: restarted one after the other, scaled down to one, and killed in the middle of it.

Each message is for two mailboxes: one that is always there, and one that is away until the end. So there is mail left
to hand over whenever a gateway goes, and half of each message is delivered already.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.spool.spool import SpoolOptions, State
from gateway.spool.sqlite import open_all
from tests.crash.count import Load, Result, Table, Victim, count, number_of, numbers_in
from tests.support import summary
from tests.support.postfix import SmtpSink
from tests.support.process import free_port, new_directory, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.first]

TOKEN = "a-token-of-sixteen-or-more"
BOTH = ("ben@example.com", "col@example.net")
_ENOUGH = 30


class Fleet:
    """The gateways, the load on each, and where their mail goes."""

    def __init__(self) -> None:
        self.directory = new_directory("fleet")
        self.mail = self.directory / "mail"
        self.away = free_port()
        ports = [free_port() for _ in range(3)]
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        self.gateways: list[Victim] = []
        for number, port in enumerate(ports):
            self.gateways.append(Victim({**self._options(), **self._of(number, port)}))
        numbers = itertools.count()
        self.loads = [Load(gateway.port, BOTH, numbers=numbers, threads=2, pause=0.15) for gateway in self.gateways]
        self.killed = 0
        self.looks = 0

    def _options(self) -> dict[str, Any]:
        return {
            "workers": 1,
            "domains": {
                "example.com": {"next_hop": f"maildir:{self.mail}", "recipients": "any"},
                "example.net": {"next_hop": f"smtp:127.0.0.1:{self.away}", "recipients": "any", "tls": "none"},
            },
            "queue": {"connection_idle": "1s", "dead_for": "1s", "dead_max": "1s"},
            "timeouts": {"drain": "5s"},
        }

    def _of(self, number: int, port: int) -> dict[str, Any]:
        admin = {"address": f"127.0.0.1:{free_port()}", "handover": f"127.0.0.1:{port}", "token": TOKEN}
        return {"hostname": f"gp-{number}.example.org", "admin": admin, "evacuate": {"peers": self.urls}}

    @property
    def acknowledged(self) -> int:
        return sum(len(load.acknowledged) for load in self.loads)

    def goes_on(self) -> None:
        """Wait until so many more messages were acknowledged."""
        wanted = self.acknowledged + _ENOUGH
        wait_until(lambda: self.acknowledged >= wanted, f"{wanted} messages are acknowledged")

    def look(self) -> None:
        """No message is two gateways' for certain, at whatever moment one looks."""
        # Nothing moves at the moments when this is called.
        self.looks += 1
        seen: Counter[str] = Counter()
        for gateway in self.gateways:
            seen.update(asyncio.run(_certain(gateway)))
        assert max(seen.values(), default=0) <= 1, [id for id, n in seen.items() if n > 1]

    def kill(self, gateway: Victim) -> None:
        gateway.kill_tree()
        self.killed += 1
        self.look()

    def restart(self, gateway: Victim) -> None:
        gateway.stop()
        self.look()
        gateway.start()

    def stop(self) -> None:
        for load in self.loads:
            load.end()
        for gateway in self.gateways:
            if gateway.process.status is None:
                gateway.kill()
            shutil.rmtree(gateway.directory, ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)


async def _certain(gateway: Victim) -> list[str]:
    spool = await open_all(SpoolOptions(gateway.options["spool"]["path"]))
    try:
        return [message.id for message in await spool.list(limit=100_000) if message.state is not State.LEAVING]
    finally:
        await spool.close()


def left(gateway: Victim) -> int:
    counts = gateway.counts()
    assert counts is not None
    return sum(counts.values())


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    try:
        yield fleet
    finally:
        for gateway in fleet.gateways:
            print(f"--- {gateway.options['hostname']}\n{gateway.log[-5000:]}")
        fleet.stop()


def test_a_rolling_restart_a_scale_down_from_three_to_one_and_a_kill_lose_nothing(fleet: Fleet) -> None:
    a, b, c = fleet.gateways
    for load in fleet.loads:
        load.begin()
    fleet.goes_on()
    # A rolling restart: each finds its own mail again.
    for gateway in fleet.gateways:
        fleet.restart(gateway)
        fleet.goes_on()

    # The first to go is stopped, and its spool evacuated by hand.
    fleet.loads[0].end()
    a.stop()
    assert left(a)
    done = a.cli("queue", "evacuate", "--to", fleet.urls[1], "--wait", "20")
    assert done["handed_over"] and not done["left"] and not left(a)
    fleet.look()

    # The second hands over at its end, by its configuration, while the last one is killed and comes back.
    fleet.goes_on()
    fleet.loads[1].end()
    b.configure(evacuate={"peers": fleet.urls, "when": "drain", "time": "20s"})
    b.run("reload")
    b.process.signal(15)
    wait_until(lambda: "evacuation.begun" in b.log and "handover.done" in b.log, "the evacuation has begun")
    fleet.kill(c)
    c.start()
    assert b.process.wait() == 0
    fleet.look()
    if left(b):
        # What it had no time for stays, and whose it is can be found out.
        b.cli("queue", "evacuate", "--to", fleet.urls[2], "--wait", "30")
    assert not left(b)

    fleet.goes_on()
    fleet.loads[2].end()
    sink = SmtpSink(dump=True, port=fleet.away)
    try:
        c.wait_empty()
        c.stop()
        fleet.look()
        swallowed = [number for text in sink.messages() if (number := number_of(text)) is not None]
    finally:
        sink.stop()
    result = _count(fleet, [numbers_in(fleet.mail), swallowed])
    table = Table()
    table.add(result)
    summary.add(f"{table}\n{'':<50}of each message, one owner at most in {fleet.looks} looks")
    assert result.whole and result.acknowledged > 300
    # Only a kill between a delivery and its settlement explains a second one.
    assert result.duplicated <= fleet.killed * 20


def _count(fleet: Fleet, boxes: list[list[int | None]]) -> Result:
    whole = fleet.loads[0]
    whole.acknowledged.update(*(load.acknowledged for load in fleet.loads[1:]))
    return count("three gateways: rolled, scaled down, killed", fleet.killed, whole, boxes)
