"""``make bench-postgres``: what a queue in PostgreSQL costs, beside one in SQLite.

smtp-source (20 sessions) -> Gatepost -> smtp-sink, as in ``make bench``. One Gatepost keeps its mail in shards of its
own, the other in a PostgreSQL on the same machine and disk, whose processor time counts as the gateway's. Both sync
before they answer 250. Rounds alternate, and all messages must arrive.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.bench import Gateway, Round, gatepost, measure, prove_exactly_once
from tests.bench.meter import Meter
from tests.support.gatepost import ROOT, GatepostProcess
from tests.support.postfix import SmtpSink
from tests.support.postgres_server import PostgresServer

_NAMES = ("sqlite", "postgres")


@contextlib.contextmanager
def with_postgres(directory: Path, workers: int) -> Iterator[Gateway]:
    """Gatepost with its queue in a PostgreSQL of its own."""
    with contextlib.ExitStack() as stack:
        meter = Meter(_NAMES[1])
        stack.callback(meter.close)
        server = PostgresServer("shared_buffers=128MB", prepare=meter.enter)
        stack.callback(server.stop)
        meter.watch(server.pid)
        sink = SmtpSink(dump=True)
        to = {"next_hop": f"smtp:127.0.0.1:{sink.port}", "recipients": "any", "tls": "none"}
        process = GatepostProcess(
            {
                "workers": workers,
                "spool": {"path": str(directory / "spool"), "postgres": server.url},
                "state": {"path": str(directory / "state")},
                "domains": {"example.test": to},
                "pipeline": [],
            },
            prepare=meter.enter,
        )
        stack.callback(shutil.rmtree, process.directory)
        stack.callback(process.stop)
        meter.watch(process.process.pid)
        yield Gateway(_NAMES[1], process.port, sink, meter, lambda: server.query("SELECT count(*) FROM message")[0][0])


def report(rounds: Sequence[Round], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Print medians; gives the same as data."""
    print("\nMedians. Rates are end to end, messages per second; CPU is seconds per 1,000, the server's included.\n")
    print(f"{'size':>7}  {'connections':<14}{'SQLite':>10}{'PostgreSQL':>12}{'ratio':>8}{'CPU':>9}{'PostgreSQL':>12}")
    lines: list[dict[str, Any]] = []
    for size in sizes:
        for reuse in (False, True):
            of = {name: [r for r in rounds if (r.gateway, r.size, r.reuse) == (name, size, reuse)] for name in _NAMES}
            ratio = statistics.median(b.rate / a.rate for a, b in zip(*of.values(), strict=True))
            rate, cpu = (
                {name: statistics.median(getattr(r, field) for r in mine) for name, mine in of.items()}
                for field in ("rate", "cpu_per_1000")
            )
            kind = "reused" if reuse else "one a message"
            print(
                f"{size:>7}  {kind:<14}{rate['sqlite']:>10.0f}{rate['postgres']:>12.0f}"
                f"{ratio:>8.2f}{cpu['sqlite']:>9.2f}{cpu['postgres']:>12.2f}"
            )
            lines.append({"size": size, "reuse": reuse, "rate": rate, "ratio": ratio, "cpu_per_1000": cpu})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-postgres", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--messages", type=int, default=2000, help="per round at 4 KB; larger sizes get fewer")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of each kind")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 65536], help="octets of content")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of each")
    parser.add_argument("--directory", type=Path, default=ROOT / "var/bench-postgres", help="where the SQLite queue is")
    parser.add_argument("--json", type=Path, help="write all numbers to this file as well")
    options = parser.parse_args()
    shutil.rmtree(options.directory, ignore_errors=True)
    options.directory.mkdir(parents=True)
    options.directory.chmod(0o755)
    rounds: list[Round] = []
    with contextlib.ExitStack() as stack:
        gateways = [
            stack.enter_context(gatepost(options.directory, options.workers, _NAMES[0])),
            stack.enter_context(with_postgres(options.directory, options.workers)),
        ]
        for gateway in gateways:
            stack.callback(_stop_sink, gateway)
            prove_exactly_once(gateway, 500)
        for size in options.sizes:
            messages = max(200, options.messages // max(1, round((size / 4096) ** 0.5)))
            for reuse in (False, True):
                for number in range(options.rounds):
                    for gateway in gateways if number % 2 == 0 else reversed(gateways):
                        rounds.append(measure(gateway, messages, size, reuse))
                        last = rounds[-1]
                        print(
                            f"round {number + 1}  {size:>6} octets  {'reused' if reuse else 'one a message':<13}  "
                            f"{gateway.name:<8} {last.rate:7.0f}/s  CPU {last.cpu_per_1000:5.2f} s per 1,000",
                            flush=True,
                        )
    lines = report(rounds, options.sizes)
    shutil.rmtree(options.directory, ignore_errors=True)
    if options.json:
        numbers = {"medians": lines, "rounds": [asdict(r) for r in rounds]}
        options.json.write_text(json.dumps(numbers, indent=2) + "\n")


def _stop_sink(gateway: Gateway) -> None:
    # The sink of now: the first one has been replaced.
    gateway.sink.stop()


if __name__ == "__main__":
    main()
