"""``make bench-queue``: a deep queue to look at, and to start with. Gatepost and Debian's Postfix, one after the other.

Both have 100,000 deferred messages: Gatepost in its database, Postfix as queue files, which it made itself when it took
them by SMTP. Measured are the commands that list all of it (text and JSON), Gatepost's for one domain of a hundred, and
a restart: from the command that starts it until a new message has its 250, and until that has left. Each command is a
process of its own, as an operator starts it, and what it prints is counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import smtplib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.backlog import fill
from tests.support.gatepost import PROGRAM, ROOT, GatepostProcess
from tests.support.postfix import Postfix, SmtpSink, smtp_source
from tests.support.process import alive, banner, binary, free_port, wait_until

_DOMAINS = 100


@dataclass(frozen=True)
class Contender:
    """A gateway with a full queue: its commands, by what they are for, and how it is stopped and started."""

    name: str
    port: int
    listings: Mapping[str, Sequence[str]]
    stop: Callable[[], None]
    start: Callable[[], None]


def domain(number: int) -> str:
    return f"d{number % _DOMAINS:02}.dead.test"


@contextlib.contextmanager
def gatepost(directory: Path, sink: SmtpSink, messages: int) -> Iterator[Contender]:
    """Its messages were tried an hour ago, and are due again in an hour."""
    dead = free_port()
    now = time.time_ns() / 1e9
    fill(
        directory / "spool",
        messages,
        received=now - 3600,
        domain=domain,
        lane=lambda _: f"smtp:127.0.0.1:{dead}",
        due=lambda _: now + 3600,
    )
    to = {"recipients": "any", "tls": "none"}
    process = GatepostProcess(
        {
            "spool": {"path": str(directory / "spool")},
            "state": {"path": str(directory / "state")},
            "domains": {"live.test": {"next_hop": f"smtp:127.0.0.1:{sink.port}", **to}},
            "routes": {"default": f"smtp:127.0.0.1:{dead}"},
        },
        # A start from nothing, as an operator's: not a fork of what has made its imports.
        prepare=lambda: None,
    )
    command = [str(PROGRAM), "queue", "list", "--limit", "1000000", "-c", str(process.config)]
    listings = {"all": command, "all, JSON": [*command, "--json"], "one domain": [*command, "--domain", domain(7)]}
    try:
        yield Contender("gatepost", process.port, listings, process.stop, process.start)
    finally:
        process.stop()
        shutil.rmtree(process.directory)


@contextlib.contextmanager
def postfix(directory: Path, sink: SmtpSink, messages: int) -> Iterator[Contender]:
    """Its messages were tried as they came; its own defaults say when it tries again."""
    home = directory / "postfix"
    transport = directory / "transport"
    hops = {"live.test": sink.port, ".dead.test": free_port()}
    transport.write_text("".join(f"{name} smtp:[127.0.0.1]:{port}\n" for name, port in hops.items()))
    server = Postfix(
        {
            "transport_maps": f"texthash:{transport}",
            "smtpd_relay_restrictions": "permit_mynetworks,reject",
            "queue_run_delay": "300s",
            "minimal_backoff_time": "300s",
            "maximal_backoff_time": "4000s",
        },
        home=home,
    )

    def control(what: str) -> None:
        subprocess.run([binary("postfix"), "-c", str(server.etc), what], check=True, capture_output=True, timeout=120)

    def stop() -> None:
        control("stop")
        wait_until(lambda: not alive(server.pid), "Postfix has ended")

    def start() -> None:
        control("start")
        server.pid = wait_until(lambda: int((home / "queue/pid/master.pid").read_text()), "Postfix wrote its pid file")
        wait_until(lambda: banner(server.port), "Postfix greets")

    try:
        each = -(-messages // _DOMAINS)
        for number in range(_DOMAINS):
            smtp_source(server.port, "-s", "20", "-m", str(each), "-l", "4096", "-t", f"user@{domain(number)}")
        deferred = home / "queue/deferred"
        wait_until(lambda: _files(deferred) == each * _DOMAINS, "all messages are deferred", 1800.0)
        command = [binary("postqueue"), "-c", str(server.etc)]
        yield Contender("postfix", server.port, {"all": [*command, "-p"], "all, JSON": [*command, "-j"]}, stop, start)
    finally:
        server.stop()


def _files(folder: Path) -> int:
    return sum(1 for path in folder.rglob("*") if path.is_file())


def listing(command: Sequence[str], expected: int) -> float:
    """Seconds that a command takes. Every message's recipient has to be in what it prints."""
    started = time.monotonic()
    printed = subprocess.run(command, check=True, capture_output=True, timeout=600).stdout
    seconds = time.monotonic() - started
    if printed.count(b".dead.test") < expected:
        sys.exit(f"{command[0]} printed {printed.count(b'.dead.test')} of {expected} messages")
    return seconds


def restart(contender: Contender, sink: SmtpSink) -> tuple[float, float]:
    """Seconds from the command that starts it until a new message has its 250, and until it has left."""
    contender.stop()
    before, started = sink.count, time.monotonic()
    contender.start()
    with smtplib.SMTP("127.0.0.1", contender.port, timeout=60) as client:
        client.sendmail("sender@example.test", ["new@live.test"], "Subject: new\r\n\r\nnew\r\n")
    taken = time.monotonic() - started
    sink.wait_count(before + 1)
    return taken, time.monotonic() - started


def measure(contender: Contender, sink: SmtpSink, messages: int, rounds: int) -> dict[str, float]:
    """Medians, in seconds."""
    numbers = {}
    for name, command in contender.listings.items():
        expected = messages // _DOMAINS if name == "one domain" else messages
        numbers[name] = statistics.median(listing(command, expected) for _ in range(rounds))
    restarts = [restart(contender, sink) for _ in range(rounds)]
    numbers["restart to 250"] = statistics.median(taken for taken, _ in restarts)
    numbers["restart to next hop"] = statistics.median(left for _, left in restarts)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-queue", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--messages", type=int, default=100_000, help=f"in each queue, a multiple of {_DOMAINS}")
    parser.add_argument("--rounds", type=int, default=3, help="of each command")
    parser.add_argument("--directory", type=Path, default=ROOT / "var/bench-queue", help="where both keep their queues")
    parser.add_argument("--json", type=Path, help="write all numbers to this file as well")
    options = parser.parse_args()
    if options.messages % _DOMAINS:
        parser.error(f"--messages must be a multiple of {_DOMAINS}")
    shutil.rmtree(options.directory, ignore_errors=True)
    options.directory.mkdir(parents=True)
    options.directory.chmod(0o755)
    numbers: dict[str, dict[str, float]] = {}
    sink = SmtpSink()
    try:
        for make in (gatepost, postfix):
            with make(options.directory, sink, options.messages) as contender:
                numbers[contender.name] = measure(contender, sink, options.messages, options.rounds)
    finally:
        sink.stop()
        shutil.rmtree(options.directory, ignore_errors=True)
    print(f"{options.messages} messages queued; seconds, medians of {options.rounds}\n")
    print(f"{'':<22}" + "".join(f"{name:>10}" for name in numbers))
    for what in numbers["gatepost"]:
        values = (numbers[name].get(what) for name in numbers)
        print(f"{what:<22}" + "".join(f"{'-' if value is None else f'{value:.2f}':>10}" for value in values))
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
