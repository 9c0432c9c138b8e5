"""The power goes, several times, under load: what got 250 was on the disk and not only on its way there.

And this can be seen: a Gatepost that leaves out one sync loses messages here.
"""

from __future__ import annotations

import os
from dataclasses import asdict

import pytest

from tests.crash import scenes
from tests.crash.count import Table
from tests.crash.disk import Disk
from tests.crash.planted import FAULTS
from tests.crash.report import Found
from tests.support import summary

pytestmark = pytest.mark.slow


def test_the_disk_keeps_what_was_synced_and_nothing_else(running):
    disk = running(Disk())
    for name in ("synced", "written"):
        fd = os.open(disk.path / name, os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"x" * 4096)
        if name == "synced":
            os.fsync(fd)
        os.close(fd)
    with disk.failing():
        fd = os.open(disk.path / "synced", os.O_WRONLY)
        os.write(fd, b"y" * 4096)
        with pytest.raises(OSError, match="Input/output error"):
            os.fsync(fd)
        os.close(fd)
    disk.cut_power()
    disk.power_on()
    assert (disk.path / "synced").read_bytes() == b"x" * 4096
    assert not (disk.path / "written").exists()


def test_a_power_cut_loses_nothing_that_was_acknowledged():
    table = Table()
    result = table.add(scenes.power(scenes.When.LOAD, name="the power"))
    table.tell("cut")
    assert result.whole


def test_a_gatepost_that_does_not_sync_large_content_is_found_out():
    fault = FAULTS["content-file"]
    planted, sound = (scenes.play(fault, planted=planted) for planted in (True, False))
    found = Found(fault.name, fault.text, fault.scene.value, planted, int(planted.lost > 0), sound)
    summary.COUNTS.append(("planted", asdict(found)))
    assert planted.lost and sound.whole
