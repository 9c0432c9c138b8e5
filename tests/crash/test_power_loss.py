"""The power goes, several times, under load: what got 250 was on the disk and not only on its way there.

The next hop is down all the while, so that every message is in the spool through all the cuts that follow it.
"""

from __future__ import annotations

import asyncio
import shutil
from typing import Any

import pytest

from tests.crash.count import Load, Table, Victim
from tests.crash.disk import Disk
from tests.support import summary
from tests.support.process import free_port, wait_until

pytestmark = pytest.mark.slow
_CUTS = 3
_DOWN = f"smtp:127.0.0.1:{free_port()}"


def _domains(next_hop: str) -> dict[str, Any]:
    return {"example.com": {"next_hop": next_hop, "recipients": "any"}}


def test_a_power_cut_loses_nothing_that_was_acknowledged(running):
    table = Table()
    disk = running(Disk())
    gatepost = Victim({"spool": {"path": str(disk.path / "spool"), "min_free": "1MiB"}, "domains": _domains(_DOWN)})
    try:
        with Load(gatepost.port).running() as load:
            for _ in range(_CUTS):
                load.reaches(len(load.acknowledged) + 60)
                disk.cut_power()
                gatepost.kill_tree()
                disk.power_on()
                gatepost.start()
            load.reaches(len(load.acknowledged) + 60)
        gatepost.kill_tree()
        gatepost.configure(domains=_domains("maildir:./mail"))
        gatepost.start()
        wait_until(lambda: asyncio.run(gatepost.waiting()) == 0, "the queue is empty")
        gatepost.stop()
        result = table.add("the power", _CUTS, load, gatepost.maildir())
        summary.add(str(table))
        assert result.lost == 0
    finally:
        gatepost.kill()
        shutil.rmtree(gatepost.directory, ignore_errors=True)
