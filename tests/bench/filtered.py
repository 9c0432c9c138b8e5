"""``make bench-filtered``: Gatepost with its plugins, and Postfix with its ring of filters, side by side in one run.

Both ask three DNS lists, greylist, and check SPF, DKIM and DMARC of the same signed message, by the same name server;
both have let the sender through their greylist before the clock starts. Two scenarios:

- throughput: 20 sessions, answers of the DNS at once and for 300 seconds;
- latency: one session after the other, each of another sender domain, every answer 50 ms late and good for no second
  question (TTL 0); what counts is the time from connect to the 250 after the final dot.

It runs in a network and mount namespace of its own, where it has port 53 and resolv.conf to itself. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import smtplib
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dkim

from tests.bench.bench import Gateway, Round, measure
from tests.bench.filters import DELAY, LISTS, FilteredPostfix
from tests.bench.meter import Meter
from tests.bench.zone import CLIENT, SENDERS
from tests.support.dkimkeys import KeyPair, rsa
from tests.support.gatepost import ROOT, GatepostProcess
from tests.support.postfix import SmtpSink
from tests.support.process import Process, binary, free_port, wait_until

_INSIDE = "GATEPOST_BENCH_NAMESPACE"
_TO = "user@example.test"
_CONTENT = 4096

PIPELINE = [
    {"dnsbl": {"zones": dict.fromkeys(LISTS, 1)}},
    {"greylist": {"delay": f"{DELAY}s", "when": "always"}},
    {"spf": {"reject_fail": True}},
    {"dkim": {}},
    {"dmarc": {}},
]


def enter_namespace() -> None:
    """Start over in namespaces of our own, with a loopback that has the client's address, and a resolv.conf."""
    script = (
        f"set -e; ip link set lo up; ip addr add {CLIENT}/32 dev lo; conf=$(mktemp)"
        "; printf 'nameserver 127.0.0.1\\noptions timeout:5\\n' > $conf; chmod 644 $conf"
        '; mount --bind $conf /etc/resolv.conf; exec "$@"'
    )
    argv = [binary("unshare"), "-n", "-m", "sh", "-c", script, "sh", sys.executable, "-m", "tests.bench.filtered"]
    os.execvpe(argv[0], [*argv, *sys.argv[1:]], {**os.environ, _INSIDE: "1"})


def signed(key: KeyPair, domain: str) -> bytes:
    """A message of about 4 KB that passes all checks."""
    body = b"".join(b"Line %04d of a message that says nothing much, but says it at length.\r\n" % n for n in range(50))
    message = (
        f"From: Ann <ann@{domain}>\r\nTo: {_TO}\r\nSubject: benchmark\r\nDate: Sun, 01 Nov 2026 10:00:00 +0000\r\n"
        f"Message-ID: <1@{domain}>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\n"
    ).encode() + body
    fields = [b"from", b"to", b"subject", b"date", b"message-id"]
    signature: bytes = dkim.sign(message, b"s", domain.encode(), key.traditional, include_headers=fields)
    return signature + message


@contextlib.contextmanager
def name_server(key: KeyPair, delay: float, ttl: int, home: Path) -> Iterator[None]:
    argv = [sys.executable, "-m", "tests.bench.zone", "--key", key.record, "--delay", str(delay), "--ttl", str(ttl)]
    process = Process(argv, home / "zone.log", cwd=ROOT)
    process.wait_ready(_answers)
    try:
        yield
    finally:
        process.stop()


def _answers() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.sendto(b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\6client\5bench\0\0\1\0\1", ("127.0.0.1", 53))
        return sock.recv(512)[:2] == b"\x12\x34"


@contextlib.contextmanager
def gatepost(directory: Path, workers: int) -> Iterator[Gateway]:
    meter = Meter("gatepost")
    sink = SmtpSink()
    process = GatepostProcess(
        {
            "workers": workers,
            "listeners": [{"address": f"{CLIENT}:{free_port(CLIENT)}", "role": "edge"}],
            "spool": {"path": str(directory / "spool")},
            "state": {"path": str(directory / "state")},
            "dns": {"nameservers": ["127.0.0.1:53"]},
            "domains": {
                "example.test": {"next_hop": f"smtp:127.0.0.1:{sink.port}", "recipients": "any", "tls": "none"}
            },
            "pipeline": PIPELINE,
        },
        prepare=meter.enter,
    )
    meter.watch(process.process.pid)
    try:
        yield Gateway("gatepost", process.port, sink, meter, lambda: len(process.queue()))
    finally:
        process.stop()
        sink.stop()
        shutil.rmtree(process.directory)
        meter.close()


@contextlib.contextmanager
def postfix(directory: Path) -> Iterator[Gateway]:
    meter = Meter("postfix")
    sink = SmtpSink()
    home = directory / "filtered"
    home.mkdir()
    settings = {
        "relayhost": f"[127.0.0.1]:{sink.port}",
        "relay_domains": "example.test",
        "smtp_tls_security_level": "none",
    }
    server = FilteredPostfix(home, settings, meter.enter, meter.shell)
    meter.watch(server.postfix.pid)
    try:
        yield Gateway("postfix", server.postfix.port, sink, meter, server.postfix.queue_length)
    finally:
        server.stop()
        sink.stop()
        meter.close()


def introduce(gateway: Gateway, senders: list[tuple[str, bytes]]) -> None:
    """Let the senders be greylisted, then through; each must be deferred the first time, and accepted the second."""
    for attempt in (1, 2):
        for domain, message in senders:
            code = send(gateway.port, domain, message)[0]
            expected = range(400, 500) if attempt == 1 else range(250, 251)
            # Who has let enough of a client's mail through may let it all through, before the delay is over.
            if code not in expected and not (attempt == 1 and code == 250):
                sys.exit(f"{gateway.name}: attempt {attempt} of {domain} got {code}")
        time.sleep(DELAY + 1)  # noqa: TID251 - no event loop here
    gateway.sink.wait_count(1)
    wait_until(lambda: gateway.queued() == 0, f"the queue of {gateway.name} is empty")


def prove_filters(gateway: Gateway, domain: str, content: bytes) -> None:
    """A signed message that was changed, from a sender who proves nothing, must be refused for good by DMARC."""
    forged = content.replace(b"nothing much", b"quite a lot!")
    codes = []
    for _ in range(2):
        codes.append(send(gateway.port, "elsewhere.bench", forged)[0])
        time.sleep(DELAY + 1)  # noqa: TID251 - no event loop here
    if codes[-1] // 100 != 5:
        sys.exit(f"{gateway.name}: a forged message got {codes}, so its filters do not work")


def send(port: int, domain: str, message: bytes) -> tuple[int, float]:
    """The last reply's code, and the seconds from before the connection until it came."""
    began = time.perf_counter()
    client = smtplib.SMTP(CLIENT, port, local_hostname="client.bench", timeout=60, source_address=(CLIENT, 0))
    try:
        client.ehlo()
        for command in (f"MAIL FROM:<ann@{domain}>", f"RCPT TO:<{_TO}>"):
            code, _ = client.docmd(command)
            if code != 250:
                return code, time.perf_counter() - began
        code, _ = client.data(message)
        return code, time.perf_counter() - began
    finally:
        client.close()


@dataclass(frozen=True)
class Latency:
    """Seconds from connect to 250."""

    gateway: str
    seconds: list[float]


def throughput(gateways: list[Gateway], key: KeyPair, directory: Path, messages: int, count: int) -> list[Round]:
    domain = f"d0.{SENDERS}"
    content = signed(key, domain)
    path = directory / "message"
    path.write_bytes(content.replace(b"\r\n", b"\n"))
    for gateway in gateways:
        introduce(gateway, [(domain, content)] * 6)
        prove_filters(gateway, domain, content)
    rounds: list[Round] = []
    for reuse in (False, True):
        for number in range(count):
            for gateway in gateways if number % 2 == 0 else reversed(gateways):
                flags = ("-f", f"ann@{domain}", "-F", str(path))
                rounds.append(measure(gateway, messages, len(content), reuse, address=CLIENT, flags=flags))
                last = rounds[-1]
                kind = "reused" if reuse else "one a message"
                print(f"round {number + 1}  {kind:<13}  {gateway.name:<8} {last.rate:6.0f}/s"
                      f"  CPU {last.cpu_per_1000:5.2f} s per 1,000", flush=True)  # fmt: skip
    return rounds


def latency(gateways: list[Gateway], key: KeyPair, count: int) -> list[Latency]:
    senders = [(f"d{n}.{SENDERS}", signed(key, f"d{n}.{SENDERS}")) for n in range(1, count + 1)]
    for gateway in gateways:
        introduce(gateway, senders)
    seconds: dict[str, list[float]] = {gateway.name: [] for gateway in gateways}
    for number, (domain, message) in enumerate(senders):
        for gateway in gateways if number % 2 == 0 else reversed(gateways):
            code, took = send(gateway.port, domain, message)
            if code != 250:
                sys.exit(f"{gateway.name}: {domain} got {code}")
            seconds[gateway.name].append(took)
    return [Latency(name, values) for name, values in seconds.items()]


def report(rounds: list[Round], late: list[Latency], directory: Path) -> None:
    """Print the medians and the ratios."""
    print("\nMedians. Rates are end to end; CPU is seconds per 1,000 messages, filters included.\n")
    print(f"{'connections':<16}{'Gatepost':>10}{'Postfix':>10}{'ratio':>8}{'CPU':>9}{'Postfix':>9}")
    numbers: list[dict[str, object]] = []
    for reuse in (False, True):
        by = {name: [r for r in rounds if (r.gateway, r.reuse) == (name, reuse)] for name in ("gatepost", "postfix")}
        if not all(by.values()):
            continue
        rate = {name: statistics.median(r.rate for r in of) for name, of in by.items()}
        cpu = {name: statistics.median(r.cpu_per_1000 for r in of) for name, of in by.items()}
        pairs = zip(by["gatepost"], by["postfix"], strict=True)
        ratio = statistics.median(a.rate / b.rate for a, b in pairs)
        print(f"{'reused' if reuse else 'one a message':<16}{rate['gatepost']:>10.0f}{rate['postfix']:>10.0f}"
              f"{ratio:>8.2f}{cpu['gatepost']:>9.2f}{cpu['postfix']:>9.2f}")  # fmt: skip
        numbers.append({"reuse": reuse, "rate": rate, "cpu_per_1000": cpu, "ratio": ratio})
    median = {entry.gateway: statistics.median(entry.seconds) * 1000 for entry in late}
    if len(median) == 2:
        share = median["gatepost"] / median["postfix"]
        print(f"\nEvery DNS answer 50 ms late, connect to 250: Gatepost {median['gatepost']:.0f} ms,"
              f" Postfix {median['postfix']:.0f} ms, that is {share:.0%}")  # fmt: skip
    (directory / "filtered.json").write_text(json.dumps({"throughput": numbers, "latency_ms": median}, indent=2) + "\n")


def main() -> None:
    if _INSIDE not in os.environ:
        enter_namespace()
    parser = argparse.ArgumentParser(prog="make bench-filtered", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--messages", type=int, default=1000, help="per round")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of each kind")
    parser.add_argument("--late", type=int, default=40, help="messages of the scenario with late answers")
    parser.add_argument("--workers", type=int, default=2, help="Gatepost's worker processes")
    parser.add_argument("--directory", type=Path, default=ROOT / "var/bench", help="where both keep their queues")
    parser.add_argument("--only", choices=["gatepost", "postfix"], help="one of the two, without a comparison")
    options = parser.parse_args()
    shutil.rmtree(options.directory, ignore_errors=True)
    options.directory.mkdir(parents=True)
    options.directory.chmod(0o755)
    key, home = rsa(2048), options.directory
    rounds: list[Round] = []
    late: list[Latency] = []
    with contextlib.ExitStack() as stack:
        with name_server(key, 0.0, 300, home):
            gateways: list[Gateway] = []
            if options.only != "postfix":
                gateways.append(stack.enter_context(gatepost(home, options.workers)))
            if options.only != "gatepost":
                gateways.append(stack.enter_context(postfix(home)))
            if options.rounds:
                rounds = throughput(gateways, key, home, options.messages, options.rounds)
        if options.late:
            with name_server(key, 0.05, 0, home):
                late = latency(gateways, key, options.late)
    report(rounds, late, options.directory)


if __name__ == "__main__":
    main()
