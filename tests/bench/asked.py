"""``make bench-asked``: what a milter and a policy service cost a message, beside Postfix asking the same ones.

Each gateway runs three times in one run: asking nobody, asking one OpenDKIM as a milter, and asking one postgrey (which
lets everything through) at RCPT. Its filter's processor time counts as the gateway's, and what a filter costs is the
difference to asking nobody. Then Gatepost asks one milter written with pymilter over a socket, and runs the same class
in its own process, in threads and on the event loop. Rounds alternate, and all messages must arrive.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.bench import Gateway, Round, measure
from tests.bench.meter import Meter
from tests.support.gatepost import ROOT, GatepostProcess
from tests.support.postfix import Postfix, SmtpSink
from tests.support.process import Process, binary, free_port, listens

_SIZE = 4096
_HOST_KINDS = ("nobody", "pymilter", "in-process", "on the loop")
_MILTER_FILE = str(ROOT / "tests/bench/counting_milter.py")


def _started(name: str, argv: Sequence[str], port: int, home: Path, meter: Meter, cwd: Path = Path("/")) -> Process:
    process = Process(list(argv), home / f"{name}.log", cwd=cwd, prepare=meter.enter)
    process.wait_ready(lambda: listens(port))
    return process


@contextlib.contextmanager
def nobody(home: Path, meter: Meter) -> Iterator[int]:
    yield 0


@contextlib.contextmanager
def opendkim(home: Path, meter: Meter) -> Iterator[int]:
    """OpenDKIM that verifies, without DNS; gives its port."""
    port = free_port()
    (home / "nobody").write_text("192.0.2.254\n")
    (home / "keys").write_text("")
    settings = {
        "Socket": f"inet:{port}@127.0.0.1",
        "UserID": "opendkim",
        "Background": "no",
        "Syslog": "no",
        "Mode": "v",
        "AuthservID": "mx.test",
        "AlwaysAddARHeader": "yes",
        "InternalHosts": f"{home}/nobody",
        "ExternalIgnoreList": f"{home}/nobody",
        "TestDNSData": f"{home}/keys",
    }
    config = home / "opendkim.conf"
    config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    process = _started("opendkim", [binary("opendkim"), "-f", "-x", str(config)], port, home, meter)
    yield port
    process.stop()


@contextlib.contextmanager
def postgrey(home: Path, meter: Meter) -> Iterator[int]:
    """postgrey that knows the recipients' domain as one that never waits; gives its port."""
    port = free_port()
    database = home / "postgrey"
    database.mkdir()
    shutil.chown(database, "postgrey", "postgrey")
    (home / "clients").write_text("")
    (home / "recipients").write_text("example.test\n")
    argv = [binary("postgrey"), f"--inet=127.0.0.1:{port}", f"--dbdir={database}", f"--pidfile={home}/pid"]
    argv += [f"--whitelist-{kind}={home}/{kind}" for kind in ("clients", "recipients")]
    process = _started("postgrey", argv, port, home, meter)
    yield port
    process.stop()


@contextlib.contextmanager
def counting(home: Path, meter: Meter) -> Iterator[int]:
    """The milter written with pymilter, as a process of its own; gives its port."""
    port = free_port()
    argv = [sys.executable, "-m", "tests.bench.counting_milter", f"inet:{port}@127.0.0.1"]
    process = _started("counting", argv, port, home, meter, ROOT)
    yield port
    process.stop()


Filter = Callable[[Path, Meter], contextlib.AbstractContextManager[int]]
FILTERS: Mapping[str, Filter] = {"nobody": nobody, "milter": opendkim, "policy": postgrey, "pymilter": counting}


def _entries(asked: str, port: int) -> list[dict[str, Any]]:
    """Gatepost's pipeline that asks this filter."""
    match asked:
        case "milter" | "pymilter":
            return [{"milter": {"connect": f"inet:{port}@127.0.0.1"}}]
        case "policy":
            return [{"delegation": {"connect": f"127.0.0.1:{port}"}}]
        case "in-process" | "on the loop":
            threads = {"threads": 0} if asked == "on the loop" else {}
            return [{"milter-host": {"file": _MILTER_FILE, "class": "CountingMilter"} | threads}]
    return []


def _settings(asked: str, port: int) -> dict[str, str]:
    """Postfix's settings that ask this filter."""
    if asked == "milter":
        return {"smtpd_milters": f"inet:127.0.0.1:{port}", "milter_default_action": "tempfail"}
    if asked == "policy":
        check = f"check_policy_service inet:127.0.0.1:{port}, permit_mynetworks, reject"
        return {"smtpd_recipient_restrictions": check}
    return {}


@contextlib.contextmanager
def gatepost(asked: str, directory: Path, workers: int) -> Iterator[Gateway]:
    meter, sink = Meter(f"gatepost-{asked}"), SmtpSink()
    home = directory / f"gatepost-{asked}"
    home.mkdir()
    home.chmod(0o755)
    with FILTERS.get(asked, nobody)(home, meter) as port:
        process = GatepostProcess(
            {
                "workers": workers,
                "spool": {"path": str(home / "spool")},
                "state": {"path": str(home / "state")},
                "domains": {
                    "example.test": {"next_hop": f"smtp:127.0.0.1:{sink.port}", "recipients": "any", "tls": "none"}
                },
                "pipeline": _entries(asked, port),
            },
            prepare=meter.enter,
        )
        meter.watch(process.process.pid)
        try:
            yield Gateway(f"gatepost {asked}", process.port, sink, meter, lambda: len(process.queue()))
        finally:
            process.stop()
            sink.stop()
            shutil.rmtree(process.directory)
    meter.close()


@contextlib.contextmanager
def postfix(asked: str, directory: Path) -> Iterator[Gateway]:
    meter, sink = Meter(f"postfix-{asked}"), SmtpSink()
    home = directory / f"postfix-{asked}"
    home.mkdir()
    home.chmod(0o755)
    with FILTERS[asked](home, meter) as port:
        server = Postfix(
            {
                "relayhost": f"[127.0.0.1]:{sink.port}",
                "relay_domains": "example.test",
                "smtpd_relay_restrictions": "permit_mynetworks,reject",
                "smtp_tls_security_level": "none",
                **_settings(asked, port),
            },
            home=home / "postfix",
            prefix=meter.shell,
        )
        meter.watch(server.pid)
        try:
            yield Gateway(f"postfix {asked}", server.port, sink, meter, server.queue_length)
        finally:
            server.stop()
            sink.stop()
    meter.close()


def prove_filter(gateway: Gateway, asked: str) -> None:
    """What came through must show that the milter was asked; the sink is then exchanged for a lighter one."""
    fields = {"milter": "Authentication-Results: mx.test"} | dict.fromkeys(_HOST_KINDS[1:], "X-Counted:")
    gateway.sink.stop()
    gateway.sink = SmtpSink(port=gateway.sink.port, dump=True)
    measure(gateway, 20, _SIZE, reuse=True)
    texts = gateway.sink.messages()
    if asked in fields and not all(fields[asked] in text for text in texts):
        sys.exit(f"{gateway.name}: there are messages without {fields[asked]}")
    gateway.sink.stop()
    gateway.sink = SmtpSink(port=gateway.sink.port)


def _rounds(gateways: Sequence[Gateway], messages: int, count: int) -> list[Round]:
    rounds: list[Round] = []
    for reuse in (False, True):
        for number in range(count):
            for gateway in gateways if number % 2 == 0 else list(reversed(gateways)):
                rounds.append(measure(gateway, messages, _SIZE, reuse))
                last = rounds[-1]
                print(f"round {number + 1}  {'reused' if reuse else 'one a message':<13}  {gateway.name:<20}"
                      f" {last.rate:6.0f}/s  CPU {last.cpu_per_1000:5.2f} s per 1,000", flush=True)  # fmt: skip
    return rounds


def _median(rounds: Sequence[Round], name: str, reuse: bool, field: str) -> float:
    return statistics.median(float(getattr(r, field)) for r in rounds if (r.gateway, r.reuse) == (name, reuse))


def report(rounds: Sequence[Round], asked: Sequence[str]) -> list[dict[str, Any]]:
    """Print rates, and what each filter costs each gateway; gives the same as data."""
    print("\nMedians. Rates are end to end; CPU is seconds per 1,000 messages, the filter's included; in brackets what")
    print("is more than without a filter.\n")
    print(f"{'connections':<14} {'asked':<8} {'Gatepost':>9} {'Postfix':>9} {'ratio':>7} {'CPU':>14} {'Postfix':>14}")
    out: list[dict[str, Any]] = []
    for reuse in (False, True):
        bare = {g: _median(rounds, f"{g} nobody", reuse, "cpu_per_1000") for g in ("gatepost", "postfix")}
        for kind in asked:
            rate = {g: _median(rounds, f"{g} {kind}", reuse, "rate") for g in bare}
            cpu = {g: _median(rounds, f"{g} {kind}", reuse, "cpu_per_1000") for g in bare}
            both = ([r.rate for r in rounds if (r.gateway, r.reuse) == (f"{g} {kind}", reuse)] for g in bare)
            ratio = statistics.median(a / b for a, b in zip(*both, strict=True))
            cost = {g: cpu[g] - bare[g] for g in bare}
            shown = {g: f"{cpu[g]:.2f} ({cost[g]:+.2f})" for g in bare}
            print(f"{'reused' if reuse else 'one a message':<14} {kind:<8} {rate['gatepost']:>9.0f}"
                  f" {rate['postfix']:>9.0f} {ratio:>7.2f} {shown['gatepost']:>14} {shown['postfix']:>14}")  # fmt: skip
            out.append({"reuse": reuse, "asked": kind, "rate": rate, "ratio": ratio, "cpu": cpu, "cost": cost})
    return out


def report_host(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """Print what the same milter costs over a socket and in our own process."""
    print("\nThe same pymilter class over a socket and in Gatepost's own process, CPU seconds per 1,000 messages:\n")
    out: list[dict[str, Any]] = []
    for reuse in (False, True):
        cpu = {k: _median(rounds, f"gatepost {k}", reuse, "cpu_per_1000") for k in _HOST_KINDS}
        cost = {kind: cpu[kind] - cpu["nobody"] for kind in _HOST_KINDS[1:]}
        times = {kind: cost["pymilter"] / cost[kind] for kind in cost}
        print(f"{'reused' if reuse else 'one a message':<14} socket {cost['pymilter']:.2f},"
              f" in-process {cost['in-process']:.2f} ({times['in-process']:.1f} times less),"
              f" on the event loop {cost['on the loop']:.2f} ({times['on the loop']:.1f} times less)")  # fmt: skip
        out.append({"reuse": reuse, "cpu": cpu, "cost": cost})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-asked", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--messages", type=int, default=2000, help="per round")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of each kind")
    parser.add_argument("--workers", type=int, default=2, help="Gatepost's worker processes")
    parser.add_argument("--only", choices=["postfix", "host"], help="one of the two comparisons")
    parser.add_argument("--directory", type=Path, default=ROOT / "var/bench", help="where both keep their queues")
    options = parser.parse_args()
    shutil.rmtree(options.directory, ignore_errors=True)
    options.directory.mkdir(parents=True)
    options.directory.chmod(0o755)
    numbers: dict[str, Any] = {}
    asked = ("nobody", "milter", "policy")
    for name, kinds in (("postfix", asked), ("host", _HOST_KINDS)):
        if options.only not in (None, name):
            continue
        directory = options.directory / name
        directory.mkdir()
        with contextlib.ExitStack() as stack:
            gateways = []
            for kind in kinds:
                gateways.append(stack.enter_context(gatepost(kind, directory, options.workers)))
                if name == "postfix":
                    gateways.append(stack.enter_context(postfix(kind, directory)))
                for gateway in gateways[-1 - (name == "postfix") :]:
                    prove_filter(gateway, kind)
            rounds = _rounds(gateways, options.messages, options.rounds)
        numbers[name] = report(rounds, asked) if name == "postfix" else report_host(rounds)
    (options.directory / "asked.json").write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
