"""``make bench-depth``: what a deep queue costs. A worker's memory and start with an empty spool, and with a full one.

The spool is filled with deferred mail, most of it for a destination that does not answer, some of it for a thousand
others. Measured are the resident memory of the worker and the time from the start until a message has its 250 and until
it has left, before and with the backlog; then the dead destination comes back, and memory is watched while it drains.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import smtplib
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.backlog import fill
from tests.support.gatepost import ROOT, GatepostProcess
from tests.support.postfix import SmtpSink
from tests.support.process import free_port, wait_until

_TARGET_MIB = 300.0


def memory(process: GatepostProcess) -> tuple[float, float]:
    """Resident memory of the worker now, and at its highest, in MiB: anonymous pages, and so without shared files."""
    (pid,) = process.workers
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    now, highest = (int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, highest


def first_message(process: GatepostProcess, sink: SmtpSink) -> tuple[float, float]:
    """Seconds until a new message has its 250, and until it has left."""
    before, started = sink.count, time.monotonic()
    with smtplib.SMTP("127.0.0.1", process.port, timeout=60) as client:
        client.sendmail("sender@example.test", ["new@live.test"], "Subject: new\r\n\r\nnew\r\n")
    taken = time.monotonic() - started
    sink.wait_count(before + 1)
    return taken, time.monotonic() - started


def measure(process: GatepostProcess, sink: SmtpSink, started: float, seconds: float) -> dict[str, float]:
    """What a process that was just started costs: `seconds` of watching."""
    ready = time.monotonic() - started
    taken, left = first_message(process, sink)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.5)  # noqa: TID251 - no event loop here
    resident, peak = memory(process)
    late_taken, late_left = first_message(process, sink)
    return {
        "ready_seconds": ready,
        "first_250_seconds": taken,
        "first_delivered_seconds": left,
        "later_250_seconds": late_taken,
        "later_delivered_seconds": late_left,
        "resident_mib": resident,
        "peak_mib": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-depth", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--messages", type=int, default=1_000_000, help="in the queue")
    parser.add_argument("--size", type=int, default=1024, help="octets of each")
    parser.add_argument("--watch", type=float, default=30.0, help="seconds of each part")
    parser.add_argument("--directory", type=Path, default=ROOT / "var/bench-depth", help="where the queue lies")
    parser.add_argument("--json", type=Path, help="write all numbers to this file as well")
    options = parser.parse_args()
    shutil.rmtree(options.directory, ignore_errors=True)
    options.directory.mkdir(parents=True)
    dead = free_port()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, options.directory, ignore_errors=True)
        sink = SmtpSink()
        stack.callback(sink.stop)
        to = {"recipients": "any", "tls": "none"}
        started = time.monotonic()
        gatepost = GatepostProcess(
            {
                "workers": 1,
                "spool": {"path": str(options.directory / "spool")},
                "state": {"path": str(options.directory / "state")},
                "domains": {
                    "live.test": {"next_hop": f"smtp:127.0.0.1:{sink.port}", **to},
                    "dead.test": {"next_hop": f"smtp:127.0.0.1:{dead}", **to},
                },
                "relay_from": ["127.0.0.0/8"],
                "queue": {"dead_for": "5s", "dead_max": "5s"},
            }
        )
        stack.callback(gatepost.stop)
        numbers: dict[str, Any] = {"messages": options.messages}
        numbers["empty"] = measure(gatepost, sink, started, options.watch)
        gatepost.stop()
        began = time.monotonic()
        now = time.time_ns() / 1e9
        fill(
            options.directory / "spool",
            options.messages,
            received=now - 3600,
            domain=lambda n: f"d{n % 1000:03}.test" if n % 10 == 0 else "dead.test",
            lane=lambda name: f"smtp:127.0.0.1:{dead}" if name == "dead.test" else f"mx:{name}",
            due=lambda n: now - 1800 + n % 3600,
            size=options.size,
        )
        print(f"filled with {options.messages} messages in {time.monotonic() - began:.0f} s", flush=True)
        started = time.monotonic()
        gatepost.start()
        numbers["full"] = measure(gatepost, sink, started, options.watch)
        back = SmtpSink(port=dead)
        stack.callback(back.stop)
        wait_until(lambda: back.count > 100, "the destination that was dead gets its mail")
        began, before = time.monotonic(), back.count
        time.sleep(options.watch)  # noqa: TID251 - no event loop here
        numbers["draining"] = dict(zip(("resident_mib", "peak_mib"), memory(gatepost), strict=True))
        numbers["draining"]["rate"] = (back.count - before) / (time.monotonic() - began)
        numbers["draining"]["new_250_seconds"], numbers["draining"]["new_delivered_seconds"] = first_message(
            gatepost, sink
        )
    for part in ("empty", "full", "draining"):
        print(part + ": " + ", ".join(f"{name} {value:.3g}" for name, value in numbers[part].items()))
    grown = max(numbers[part]["peak_mib"] for part in ("full", "draining")) - numbers["empty"]["resident_mib"]
    print(f"memory grew by {grown:.0f} MiB at most; the bound is {_TARGET_MIB:.0f} MiB")
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=2) + "\n")
    sys.exit(grown > _TARGET_MIB)


if __name__ == "__main__":
    main()
