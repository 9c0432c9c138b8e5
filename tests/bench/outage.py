"""``make bench-outage``: after an outage, and on a quiet day. Gatepost and Debian's Postfix in one run, alternating.

The outage: while the next hop is down, both take the same mail (50,000 messages of 4 KB); then it is up again, both are
told to flush their queues, and the time counts from that command until the sink has counted the last message. Their
memory is measured at the full depth. Both keep their own defaults, for retries and for 20 deliveries at once.

The quiet day: 50 messages a second, each over a connection of its own, and how long each takes from its final dot to
its 250, and to the sink.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench.bench import Gateway, gatepost, postfix
from tests.bench.clocked import stream
from tests.support.gatepost import ROOT
from tests.support.postfix import SmtpSink, smtp_source
from tests.support.process import wait_until

_TO = "user@example.test"
_POSTFIX = {
    # Postfix's own defaults, in place of the impatient ones of the tests.
    "queue_run_delay": "300s",
    "minimal_backoff_time": "300s",
    "maximal_backoff_time": "4000s",
}
_QUANTILES = (50, 95, 99)


@dataclass
class Contender:
    """A gateway, how much it has queued, and how its operator has it try again."""

    gateway: Gateway
    count: Callable[[], int]
    flush: Callable[[], None]


@dataclass(frozen=True)
class Drained:
    """One outage of one gateway."""

    gateway: str
    messages: int
    accepted_rate: float
    drain_rate: float
    drain_cpu_per_1000: float
    pss_mib: float


@dataclass(frozen=True)
class Quiet:
    """One quiet while of one gateway; milliseconds by percentile."""

    gateway: str
    to_250: dict[str, float]
    to_sink: dict[str, float]


def spool_count(spool: Path) -> int:
    """Messages in all shards."""
    total = 0
    for path in spool.glob("shard-*/spool.db"):
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as database:
            total += database.execute("SELECT count(*) FROM message").fetchone()[0]
    return total


def outage(contender: Contender, messages: int) -> Drained:
    """Take mail while the next hop is down, then let it out."""
    gateway = contender.gateway
    gateway.sink.stop()
    started = time.monotonic()
    smtp_source(gateway.port, "-s", "20", "-m", str(messages), "-l", "4096", "-t", _TO, timeout=1800)
    accepted = time.monotonic() - started
    wait_until(lambda: contender.count() == messages, f"{gateway.name} has {messages} messages", 600)
    memory = gateway.meter.pss()
    gateway.sink = SmtpSink(port=gateway.sink.port)
    cpu, started = gateway.meter.seconds(), time.monotonic()
    contender.flush()
    gateway.sink.wait_count(messages, deadline=1800)
    seconds = time.monotonic() - started
    wait_until(lambda: contender.count() == 0, f"the queue of {gateway.name} is empty", 600)
    cpu = gateway.meter.seconds() - cpu
    if gateway.sink.count != messages:
        sys.exit(f"{gateway.name}: {messages} sent, {gateway.sink.count} arrived")
    rates = (messages / accepted, messages / seconds, cpu / messages * 1000)
    return Drained(gateway.name, messages, *rates, memory / 2**20)


def quiet(contender: Contender, messages: int, rate: float) -> Quiet:
    """A stream of single messages; the sink is one with a clock meanwhile."""
    gateway = contender.gateway
    gateway.sink.stop()
    times = stream(gateway.port, gateway.sink.port, "example.test", rate=rate, messages=messages, size=4096)
    wait_until(lambda: contender.count() == 0, f"the queue of {gateway.name} is empty")
    gateway.sink = SmtpSink(port=gateway.sink.port)
    return Quiet(gateway.name, _percentiles(times.to_taken()), _percentiles(times.to_sink()))


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {f"p{percent}": cuts[percent - 1] * 1000 for percent in _QUANTILES}


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def report(drained: Sequence[Drained], calm: Sequence[Quiet]) -> None:
    """Print the tables."""
    names = ("gatepost", "postfix")
    print("\nAfter an outage; medians. CPU is seconds per 1,000 messages of the drain.\n")
    print(f"{'':<10}{'accepted/s':>12}{'drained/s':>12}{'CPU':>8}{'memory':>12}")
    for name in names:
        mine = [d for d in drained if d.gateway == name]
        if mine:
            rates = (_median([d.accepted_rate for d in mine]), _median([d.drain_rate for d in mine]))
            cost, memory = _median([d.drain_cpu_per_1000 for d in mine]), max(d.pss_mib for d in mine)
            print(f"{name:<10}{rates[0]:>12.0f}{rates[1]:>12.0f}{cost:>8.2f}{memory:>8.0f} MiB")
    pairs = zip(*([d.drain_rate for d in drained if d.gateway == name] for name in names), strict=False)
    if ratios := [ours / theirs for ours, theirs in pairs]:
        print(f"drain rate, Gatepost to Postfix: {_median(ratios):.2f}")
    print("\nOne message at a time; milliseconds from the final dot, medians of the rounds.\n")
    print(f"{'':<10}" + "".join(f"{what + ' p' + str(p):>14}" for what in ("to 250", "to sink") for p in _QUANTILES))
    for name in names:
        mine_calm = [q for q in calm if q.gateway == name]
        if mine_calm:
            shown = [_median([q.to_250[f"p{p}"] for q in mine_calm]) for p in _QUANTILES]
            shown += [_median([q.to_sink[f"p{p}"] for q in mine_calm]) for p in _QUANTILES]
            print(f"{name:<10}" + "".join(f"{value:>14.1f}" for value in shown))


def run(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds; gives what `report` printed as data."""
    drained: list[Drained] = []
    calm: list[Quiet] = []
    with contextlib.ExitStack() as stack:
        contenders: list[Contender] = []
        if options.only != "postfix":
            ours = stack.enter_context(gatepost(directory, options.workers))
            spool = directory / ours.name / "spool"
            contenders.append(Contender(ours, lambda: spool_count(spool), lambda: _run(ours.flush)))
        if options.only != "gatepost":
            theirs = stack.enter_context(postfix(directory, **_POSTFIX))
            contenders.append(Contender(theirs, theirs.queued, lambda: _run(theirs.flush)))
        for contender in contenders:
            stack.callback(_stop_sink, contender)
        for number in range(options.rounds):
            order = contenders if number % 2 == 0 else contenders[::-1]
            for contender in order:
                with contextlib.ExitStack() as rest:
                    for other in contenders:
                        rest.enter_context(other.gateway.meter.resting())
                    calm.append(quiet(contender, round(options.seconds * options.rate), options.rate))
                print(f"round {number + 1}  quiet   {calm[-1]}", flush=True)
            for contender in order:
                drained.append(outage(contender, options.backlog))
                print(f"round {number + 1}  outage  {drained[-1]}", flush=True)
    report(drained, calm)
    return {"outage": [asdict(d) for d in drained], "quiet": [asdict(q) for q in calm]}


def _stop_sink(contender: Contender) -> None:
    contender.gateway.sink.stop()


def _run(argv: Sequence[str]) -> None:
    subprocess.run(argv, stdin=subprocess.DEVNULL, check=True, capture_output=True, timeout=600)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-outage", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--backlog", type=int, default=50_000, help="messages taken while the next hop is down")
    parser.add_argument("--seconds", type=float, default=30.0, help="of the quiet day")
    parser.add_argument("--rate", type=float, default=50.0, help="messages a second then")
    parser.add_argument("--rounds", type=int, default=2, help="alternating rounds")
    parser.add_argument("--workers", type=int, default=2, help="Gatepost's worker processes")
    parser.add_argument(
        "--directory", type=Path, default=ROOT / "var/bench-outage", help="where both keep their queues"
    )
    parser.add_argument("--only", choices=["gatepost", "postfix"], help="one of the two, without a comparison")
    parser.add_argument("--json", type=Path, help="write all numbers to this file as well")
    options = parser.parse_args()
    shutil.rmtree(options.directory, ignore_errors=True)
    options.directory.mkdir(parents=True)
    options.directory.chmod(0o755)
    numbers = run(options.directory, options)
    shutil.rmtree(options.directory, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
