"""``make bench``: Gatepost and Debian's Postfix side by side, in one run, on one disk, with the same load.

smtp-source (20 sessions) -> gateway -> smtp-sink. Both gateways answer 250 only when the message is synced to disk,
and both run during the whole benchmark; rounds alternate between them, so that a machine that changes its speed
changes it for both. A round's rate is end to end: from the start of the load until the sink has counted the last
message. Before the rounds, numbered messages prove that each gateway delivers every one exactly once; after each round
the sink's counter must equal the number sent, and both queues must be empty.

Compare the ratios; the rates belong to the machine.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench.meter import Meter
from tests.support.gatepost import PROGRAM, ROOT, GatepostProcess
from tests.support.postfix import Postfix, SmtpSink, smtp_source
from tests.support.process import binary, free_port, wait_until

_TO = "user@example.test"


@dataclass
class Gateway:
    """One of the two, with its own sink and meter."""

    name: str
    port: int
    sink: SmtpSink
    meter: Meter
    queued: Callable[[], int]
    flush: Sequence[str] = ()
    """The command by which an operator has it try all its mail again."""


@dataclass(frozen=True)
class Round:
    """What one round of one gateway measured."""

    gateway: str
    size: int
    reuse: bool
    messages: int
    rate: float
    accepted_rate: float
    cpu_per_1000: float


@contextlib.contextmanager
def gatepost(directory: Path, workers: int, name: str = "gatepost", *, record: bool = True) -> Iterator[Gateway]:
    meter = Meter(name.replace(" ", "-"))
    port = free_port()
    sink = SmtpSink(port=port, dump=True)
    process = GatepostProcess(
        {
            "workers": workers,
            "spool": {"path": str(directory / name / "spool"), "record": record},
            "state": {"path": str(directory / name / "state")},
            "domains": {"example.test": {"next_hop": f"smtp:127.0.0.1:{port}", "recipients": "any", "tls": "none"}},
            "pipeline": [],
        },
        prepare=meter.enter,
    )
    meter.watch(process.process.pid)
    try:
        flush = (str(PROGRAM), "queue", "flush", "-c", str(process.config))
        yield Gateway(name, process.port, sink, meter, lambda: len(process.queue()), flush)
    finally:
        process.stop()
        shutil.rmtree(process.directory)
        meter.close()


@contextlib.contextmanager
def postfix(directory: Path, **settings: str) -> Iterator[Gateway]:
    meter = Meter("postfix")
    port = free_port()
    sink = SmtpSink(port=port, dump=True)
    home = directory / "postfix"
    home.mkdir()
    server = Postfix(
        {
            "relayhost": f"[127.0.0.1]:{port}",
            "relay_domains": "example.test",
            "smtpd_relay_restrictions": "permit_mynetworks,reject",
            "smtp_tls_security_level": "none",
            **settings,
        },
        home=home,
        prefix=meter.shell,
    )
    meter.watch(server.pid)
    try:
        flush = (binary("postqueue"), "-c", str(server.etc), "-f")
        yield Gateway("postfix", server.port, sink, meter, server.queue_length, flush)
    finally:
        server.stop()
        meter.close()


def prove_exactly_once(gateway: Gateway, messages: int) -> None:
    """Numbered recipients through the gateway: each number must come out once. Then a lighter sink takes over."""
    smtp_source(gateway.port, "-s", "20", "-m", str(messages), "-N", "-l", "4096", "-t", _TO)
    gateway.sink.wait_count(messages)
    wait_until(lambda: gateway.queued() == 0, f"the queue of {gateway.name} is empty")
    numbers = collections.Counter(
        match[1]
        for text in gateway.sink.messages()
        for match in re.finditer(rf"^X-Rcpt-Args: <(\d+){_TO}>", text, re.MULTILINE)
    )
    doubled = sum(count - 1 for count in numbers.values())
    if len(numbers) != messages or doubled:
        sys.exit(f"{gateway.name}: {messages} sent, {messages - len(numbers)} lost, {doubled} doubled")
    gateway.sink.stop()
    gateway.sink = SmtpSink(port=gateway.sink.port)


def _stop_sink(gateway: Gateway) -> None:
    # The sink of now: the first one has been replaced.
    gateway.sink.stop()


def measure(
    gateway: Gateway,
    messages: int,
    size: int,
    reuse: bool,
    *,
    address: str = "127.0.0.1",
    flags: Sequence[str] | None = None,
) -> Round:
    """One round; `flags` tell smtp-source what to send, by default its own text of `size` octets."""
    before = gateway.sink.count
    cpu = gateway.meter.seconds()
    start = time.monotonic()
    what = ["-l", str(size)] if flags is None else list(flags)
    load = ["-s", "20", "-m", str(messages), *what, "-t", _TO] + (["-d"] if reuse else [])
    smtp_source(gateway.port, *load, timeout=600, address=address)
    accepted = time.monotonic() - start
    gateway.sink.wait_count(before + messages, deadline=600)
    seconds = time.monotonic() - start
    wait_until(lambda: gateway.queued() == 0, f"the queue of {gateway.name} is empty")
    cpu = gateway.meter.seconds() - cpu
    counted = gateway.sink.count - before
    if counted != messages:
        sys.exit(f"{gateway.name}: {messages} sent, {counted} arrived")
    return Round(gateway.name, size, reuse, messages, messages / seconds, messages / accepted, cpu / messages * 1000)


def _median(rounds: list[Round], gateway: str, size: int, reuse: bool, field: str) -> float:
    return statistics.median(
        float(getattr(r, field)) for r in rounds if (r.gateway, r.size, r.reuse) == (gateway, size, reuse)
    )


def report(rounds: list[Round], sizes: list[int], memory: dict[str, int], measured: str) -> dict[str, Any]:
    """Print the table; gives the same as data."""
    print(f"\nMedians. Rates are end to end, messages per second; CPU is seconds per 1,000 messages ({measured}).\n")
    print(f"{'size':>7}  {'connections':<14}{'Gatepost':>10}{'Postfix':>10}{'ratio':>8}{'CPU':>9}{'Postfix':>9}")
    lines: list[dict[str, Any]] = []
    for size in sizes:
        for reuse in (False, True):
            ours, theirs = (_median(rounds, name, size, reuse, "rate") for name in ("gatepost", "postfix"))
            pairs = zip(*([r.rate for r in rounds if (r.gateway, r.size, r.reuse) == (name, size, reuse)]
                          for name in ("gatepost", "postfix")), strict=True)  # fmt: skip
            ratio = statistics.median(a / b for a, b in pairs)
            cpu = {name: _median(rounds, name, size, reuse, "cpu_per_1000") for name in ("gatepost", "postfix")}
            kind = "reused" if reuse else "one a message"
            print(
                f"{size:>7}  {kind:<14}{ours:>10.0f}{theirs:>10.0f}{ratio:>8.2f}"
                f"{cpu['gatepost']:>9.2f}{cpu['postfix']:>9.2f}"
            )
            lines.append(
                {"size": size, "reuse": reuse, "gatepost": ours, "postfix": theirs, "ratio": ratio, "cpu_per_1000": cpu}
            )
    megabytes = {name: octets / 2**20 for name, octets in memory.items()}
    print("\nPeak memory (PSS): " + ", ".join(f"{name} {value:.0f} MiB" for name, value in megabytes.items()))
    return {
        "medians": lines,
        "peak_pss_mib": megabytes,
        "cpu_measured_by": measured,
        "rounds": [asdict(r) for r in rounds],
    }


def record_cost(directory: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What the decision record costs: Gatepost with it and without it, alternating, at the smallest size."""
    names = ("gatepost", "without record")
    size = min(options.sizes)
    lines: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(gatepost(directory / "record", options.workers, name, record=name == names[0]))
            for name in names
        ]
        for gateway in both:
            stack.callback(_stop_sink, gateway)
            prove_exactly_once(gateway, 500)
        print("\nThe decision record, kept and not kept:\n")
        for reuse in (False, True):
            rounds = [
                measure(gateway, options.messages, size, reuse)
                for number in range(options.rounds)
                for gateway in (both if number % 2 == 0 else reversed(both))
            ]
            rates = {name: [r.rate for r in rounds if r.gateway == name] for name in names}
            ratio = statistics.median(a / b for a, b in zip(*rates.values(), strict=True))
            medians = {name: statistics.median(values) for name, values in rates.items()}
            cpu = {name: _median(rounds, name, size, reuse, "cpu_per_1000") for name in names}
            kind = "reused" if reuse else "one a message"
            print(
                f"{size:>7}  {kind:<14}kept {medians[names[0]]:.0f}/s, not kept {medians[names[1]]:.0f}/s,"
                f" ratio {ratio:.2f}; CPU {cpu[names[0]]:.2f} and {cpu[names[1]]:.2f} s per 1,000"
            )
            lines.append({"size": size, "reuse": reuse, "rates": medians, "ratio": ratio, "cpu_per_1000": cpu})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--messages", type=int, default=3000, help="per round at 4 KB; larger sizes get fewer")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of each kind")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 65536], help="octets of content")
    parser.add_argument("--workers", type=int, default=2, help="Gatepost's worker processes")
    parser.add_argument("--directory", type=Path, default=ROOT / "var/bench", help="where both keep their queues")
    parser.add_argument("--only", choices=["gatepost", "postfix"], help="one of the two, without a comparison")
    parser.add_argument("--json", type=Path, help="write all numbers to this file as well")
    options = parser.parse_args()

    shutil.rmtree(options.directory, ignore_errors=True)
    options.directory.mkdir(parents=True)
    options.directory.chmod(0o755)
    rounds: list[Round] = []
    with contextlib.ExitStack() as stack:
        gateways: list[Gateway] = []
        if options.only != "postfix":
            gateways.append(stack.enter_context(gatepost(options.directory, options.workers)))
        if options.only != "gatepost":
            gateways.append(stack.enter_context(postfix(options.directory)))
        for gateway in gateways:
            stack.callback(_stop_sink, gateway)
            prove_exactly_once(gateway, 500)
            print(f"{gateway.name}: 500 numbered messages, each delivered exactly once")
        for size in options.sizes:
            messages = max(200, options.messages // max(1, round((size / 4096) ** 0.5)))
            for reuse in (False, True):
                for number in range(options.rounds):
                    # Who goes first alternates too.
                    for gateway in gateways if number % 2 == 0 else reversed(gateways):
                        rounds.append(measure(gateway, messages, size, reuse))
                        last = rounds[-1]
                        print(
                            f"round {number + 1}  {size:>6} octets  {'reused' if reuse else 'one a message':<13}  "
                            f"{gateway.name:<8} {last.rate:7.0f}/s  CPU {last.cpu_per_1000:5.2f} s per 1,000",
                            flush=True,
                        )
        memory = {gateway.name: gateway.meter.peak_pss for gateway in gateways}
        measured = gateways[0].meter.kind
    if options.only == "postfix":
        shutil.rmtree(options.directory, ignore_errors=True)
        return
    numbers: dict[str, Any] = {} if options.only else report(rounds, options.sizes, memory, measured)
    numbers["record"] = record_cost(options.directory, options)
    shutil.rmtree(options.directory, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
