"""The clock is set under load and all of it is killed: no time that it may be is a reason to lose mail."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.crash import scenes
from tests.crash.count import Table
from tests.support.wallclock import DAY, WallClock

pytestmark = pytest.mark.slow

_LOOK = """
import datetime, json, sys, threading, time
for _ in sys.stdin:
    began = time.monotonic()
    time.sleep(0.001), threading.Event().wait(0.001)
    times = time.time(), time.time_ns() / 1e9, datetime.datetime.now().timestamp(), time.mktime(time.localtime())
    print(json.dumps([times, began, time.monotonic()]), flush=True)
"""


def test_a_process_sees_its_clock_jump_in_all_ways_to_ask_and_its_timers_run_on(running):
    clock = running(WallClock())
    argv = [sys.executable, "-c", _LOOK]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, env=clock.environ, text=True) as process:
        assert process.stdin and process.stdout
        last = 0.0
        for offset in (0, -DAY, 10 * DAY):
            clock.set(offset)
            process.stdin.write("\n")
            process.stdin.flush()
            times, began, ended = json.loads(process.stdout.readline())
            assert all(abs(seen - clock.now()) < DAY / 2 for seen in times)
            assert last < began < ended < began + DAY / 2
            last = ended
        process.stdin.close()


def test_nothing_is_lost_when_the_clock_is_set_back_under_load_and_then_beyond_the_time_of_all_mail():
    table = Table()
    result = table.add(scenes.clock("the clock is set back, and on", (-DAY, scenes.OVER)))
    table.tell("clocks")
    assert result.whole
