"""Where mail goes by a real DNS (knot behind unbound), to Postfix, smtp-sink and addresses that do not answer."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner

from gateway.cli import main
from gateway.services.clock import SystemClock
from gateway.services.dns import DnsOptions, Resolver
from gateway.services.dns_options import Dnssec
from gateway.transport.options import SmtpOptions, Timeouts
from gateway.transport.order import Families
from gateway.transport.own import OwnAddresses
from gateway.transport.smtp import SmtpTransport
from gateway.transport.transport import Destination, Kind, Outcome, Security, Server
from tests.contract.dnsserver import DnsServer, Fault
from tests.support.clients import connect, transact
from tests.support.gatepost import GatepostProcess, configuration, write_configuration
from tests.support.postfix import Postfix, SmtpSink
from tests.support.process import free_port
from tests.support.signed import BOGUS, PLAIN, SIGNED, SignedZones
from tests.transport.peer import delivery
from tests.transport.test_approach import black_hole

pytestmark = pytest.mark.slow

HOLE, DEAD, STORE = "127.0.0.9", "127.0.0.8", "127.0.0.1"
OWN = "192.0.2.1"
ZONE = [
    f"store 60 A {STORE}",
    f"hole 60 A {HOLE}",
    f"dead 60 A {DEAD}",
    f"us 60 A {OWN}",
    f"wide 60 A {STORE}",
    "wide 60 AAAA ::1",
    "alias 60 CNAME store",
    "xn--bcher-kva 60 MX 10 alias",
    "null 60 MX 0 .",
    f"implicit 60 A {STORE}",
    "cname 60 MX 10 alias",
    "literal 60 MX 10 127.0.0.1.",
    "literal 60 MX 20 store",
    "garbage 60 MX 10 127.0.0.1.",
    "garbage 60 MX 10 localhost.",
    "nowhere 60 MX 10 missing",
    "txt 60 TXT nothing",
    "fallback 60 MX 10 dead",
    f"fallback 60 MX 20 ee.{BOGUS}.",
    "fallback 60 MX 30 store",
    f"bogus 60 MX 10 ee.{BOGUS}.",
    "equal 60 MX 10 hole",
    "equal 60 MX 10 store",
    "six 60 MX 10 wide",
    "loop 60 MX 10 us",
    "loop 60 MX 20 store",
    "backup 60 MX 10 store",
    "backup 60 MX 20 us",
    "backup 60 MX 30 dead",
    *[f"many 60 MX {number % 7} h{number}" for number in range(200)],
    *[f"h{number} 60 A {DEAD}" for number in range(200)],
]


@dataclass
class World:
    """A Postfix at port `port` of `STORE`, and the same port of `HOLE` and ::1, where nobody ever answers."""

    zones: SignedZones
    postfix: Postfix

    @property
    def port(self) -> int:
        return self.postfix.port


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    postfix = Postfix({"relay_domains": "static:all", "relay_transport": "discard", "default_transport": "discard"})
    try:
        zones = SignedZones({PLAIN: ZONE, BOGUS: [f"ee 60 A {STORE}"], SIGNED: []})
    except BaseException:
        postfix.stop()
        raise
    with black_hole("::1", postfix.port), black_hole(HOLE, postfix.port):
        yield World(zones, postfix)
    zones.stop()
    postfix.stop()


def attempt(
    world: World,
    destination: Destination,
    nameserver: tuple[str, int] | None = None,
    timeout: float = 5.0,
    **more: Any,
) -> Outcome:
    """One delivery over real DNS."""

    async def play() -> Outcome:
        options = DnsOptions((nameserver or ("127.0.0.1", world.zones.port),), timeout, Dnssec.LOOPBACK)
        resolver = Resolver(options, SystemClock())
        smtp = SmtpOptions("gate.test", Timeouts(connect=1.0, hello=30.0), own=OwnAddresses(frozenset({OWN})), **more)
        transport = SmtpTransport(destination, smtp, resolver, random.Random(1))
        (outcome,) = await transport.deliver(delivery("anna@store.test"))
        await transport.close()
        await resolver.close()
        return outcome

    return asyncio.run(play())


def by_mx(world: World, name: str, **more: Any) -> Outcome:
    destination = Destination(Kind.SMTP, f"{name}.{PLAIN}", world.port, mx=True, security=Security.NONE)
    return attempt(world, destination, **more)


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("implicit", "implicit"),
        ("cname", "alias"),
        ("literal", "store"),
        ("fallback", "store"),
        ("equal", "store"),
        ("backup", "store"),
        ("xn--bcher-kva", "alias"),
    ],
)
def test_mail_by_mx_arrives_at_the_best_host_that_works(world: World, name: str, host: str):
    outcome = by_mx(world, name)
    assert (outcome.result.value, outcome.host) == ("delivered", f"{host}.{PLAIN}"), outcome


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("null", "failed 556 5.1.10"),
        ("no-such-domain", "failed 550 5.1.2"),
        ("txt", "failed 550 5.1.2"),
        ("nowhere", "failed 550 5.1.2"),
        ("garbage", "failed 550 5.4.4"),
        ("loop", "failed 550 5.4.6"),
        ("bogus", "deferred 451 4.4.3"),
        ("many", "deferred 451 4.4.1"),
    ],
)
def test_mail_by_mx_that_cannot_go_is_told_why(world: World, name: str, said: str):
    outcome = by_mx(world, name)
    assert f"{outcome.result} {outcome.reply.code} {outcome.reply.status}" == said, outcome


def test_a_nameserver_that_says_servfail_or_nothing_at_all_puts_the_mail_off(world: World):
    async def main() -> list[Outcome]:
        async with DnsServer(faults={"silent.test.": Fault.SILENT, "ill.test.": Fault.SERVFAIL}) as server:
            return [
                await asyncio.to_thread(
                    attempt, world, Destination(Kind.SMTP, name, world.port, mx=True), server.address, 0.5
                )
                for name in ("silent.test", "ill.test")
            ]

    for outcome in asyncio.run(main()):
        assert (outcome.result.value, outcome.reply.status) == ("deferred", "4.4.3")


@pytest.mark.parametrize("families", [Families.IPV6_FIRST, Families.IPV4_FIRST])
def test_ipv6_that_leads_nowhere_costs_a_moment(world: World, families: Families):
    outcome = by_mx(world, "six", families=families)
    assert (outcome.result.value, outcome.host) == ("delivered", f"wide.{PLAIN}")


def test_where_ipv6_alone_may_be_used_the_mail_waits_for_it(world: World):
    outcome = by_mx(world, "six", families=Families.IPV6)
    assert (outcome.result.value, outcome.reply.status) == ("deferred", "4.4.1")


def test_the_next_hop_that_works_takes_over_from_one_that_is_dead_and_one_that_does_not_answer(world: World):
    hops = tuple(
        Server(f"{name}.{PLAIN}", world.port, priority=p) for p, name in enumerate(("dead", "hole", "store"), 1)
    )
    outcome = attempt(world, Destination(Kind.SMTP, security=Security.NONE, alternatives=hops))
    assert (outcome.result.value, outcome.host) == ("delivered", f"store.{PLAIN}")


# The whole gateway.


def test_mail_goes_by_recipient_then_by_sender_and_bounces_go_the_null_senders_way(running, tmp_path: Path):
    partner, smart, bounces = (running(SmtpSink(dump=True)) for _ in range(3))
    refusing = running(SmtpSink("-f", "RCPT", "-B", "550 5.1.1 no such user"))

    def hop(port: int) -> dict[str, str]:
        return {"next_hop": f"smtp:127.0.0.1:{port}", "tls": "none"}

    gate = GatepostProcess(
        {
            "relay_from": ["127.0.0.0/8"],
            "routes": {
                "address_literals": True,
                "default": hop(refusing.port),
                "domains": {
                    "partner.test": {"next_hop": [f"smtp:127.0.0.1:{p}" for p in (free_port(), partner.port)]},
                },
                "senders": {"ann@example.org": hop(smart.port), "<>": hop(bounces.port)},
            },
        }
    )
    try:
        with connect(gate.port) as client:
            transact(client, "ann@example.org", ["x@partner.test"])
            transact(client, "Ann@Example.org", ["y@elsewhere.test"])
            transact(client, "ben@example.org", ["z@elsewhere.test"])
            code, text = client.docmd("MAIL FROM:<ann@example.org>")
            assert code == 250, text
            assert client.docmd("RCPT TO:<x@[IPv6:2001:db8::1]>")[0] == 250
        for sink in (partner, smart, bounces):
            sink.wait_count(1)
        gate.wait_empty()
        told = {
            name: [line for line in sink.messages()[0].splitlines() if line.startswith("X-")]
            for name, sink in (("partner", partner), ("smart", smart), ("bounces", bounces))
        }
        assert "<x@partner.test>" in str(told["partner"])
        assert "<y@elsewhere.test>" in str(told["smart"])
        assert "<ben@example.org>" in str(told["bounces"]) and "<>" in str(told["bounces"])
    finally:
        gate.stop()
        shutil.rmtree(gate.directory, ignore_errors=True)


# `gatepost route`.


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The command sets up logging, as a process of its own may."""
    yield
    structlog.reset_defaults()


def written(world: World, folder: Path, **options: Any) -> Path:
    """A configuration file of a gateway that listens at no address of the zone."""
    own = {"listeners": [{"address": "127.0.0.77:2525"}], "own_addresses": [OWN]}
    settings = {"dns": {"nameservers": [world.zones.address], "timeout": "3s"}, **own, **options}
    return write_configuration(folder, configuration(folder, settings))


def route(world: World, folder: Path, *arguments: str, status: int = 0, **options: Any) -> Any:
    """What ``gatepost route --json`` prints."""
    (folder / "state").mkdir(exist_ok=True)
    file = written(world, folder, **options)
    ran = CliRunner().invoke(main, ["route", *arguments, "-c", str(file), "--json"])
    assert ran.exit_code == status, ran.output
    assert list((folder / "state").iterdir()) == [], "it must leave nothing behind"
    return json.loads(ran.stdout)


def test_the_way_by_mx_is_printed_with_addresses_and_tls(world: World, tmp_path: Path):
    told = route(world, tmp_path, f"anna@fallback.{PLAIN}", "--sender", "ben@example.org")
    assert (told["taken_from"], told["route"], told["transport"]) == ("nobody", "routes.default", "smtp")
    assert told["destination"] == f"mx:fallback.{PLAIN}" and told["sender"] == "ben@example.org"
    assert [(s["priority"], s["host"], s["addresses"]) for s in told["servers"]] == [
        (10, f"dead.{PLAIN}", [DEAD]),
        (20, f"ee.{BOGUS}", []),
        (30, f"store.{PLAIN}", [STORE]),
    ]
    assert "SERVFAIL" in told["servers"][1]["problem"]
    assert [rule["policy"] for rule in told["servers"][0]["tls"]] == ["opportunistic", "opportunistic"]
    assert [rule["level"] for rule in told["servers"][0]["tls"]] == ["may", "none"]


def test_the_way_of_a_domain_of_ours_needs_no_dns(world: World, tmp_path: Path):
    domains = {"example.org": {"next_hop": "maildir:./mail", "recipients": "any"}}
    told = route(world, tmp_path, "anna@EXAMPLE.org", domains=domains)
    assert (told["taken_from"], told["route"], told["transport"]) == ("everybody", "domains.example.org", "maildir")
    assert told["servers"] == [] and told["tls"] is None and told["refusal"] is None


def test_a_backup_sees_the_hosts_before_itself_only(world: World, tmp_path: Path):
    told = route(world, tmp_path, f"anna@backup.{PLAIN}", relay_from=["127.0.0.0/8"])
    assert [server["host"] for server in told["servers"]] == [f"store.{PLAIN}"]
    assert told["taken_from"] == "relay_from"


@pytest.mark.parametrize(
    ("address", "reply"),
    [
        (f"anna@loop.{PLAIN}", "550 5.4.6 mail for"),
        (f"anna@null.{PLAIN}", "556 5.1.10 the domain"),
        ("anna@[192.0.2.7]", "550 5.1.2 mail to address literals is off"),
    ],
)
def test_a_way_that_is_none_ends_with_status_1(world: World, tmp_path: Path, address: str, reply: str):
    refusal = route(world, tmp_path, address, status=1)["refusal"]
    assert refusal["result"] == "failed" and refusal["reply"].startswith(reply)


def test_names_in_any_script_and_senders_are_looked_up(world: World, tmp_path: Path):
    routes = {
        "domains": {f"bücher.{PLAIN}": {"next_hop": ["lmtp:unix:./lmtp", f"lmtp:wide.{PLAIN}"]}},
        "senders": {"<>": "discard", "example.org": {"next_hop": "mx", "tls": "dane-only"}},
        "addresses": "ipv6-first",
    }
    told = route(world, tmp_path, f"anna@BÜCHER.{PLAIN}", routes=routes)
    assert told["route"] == f"routes.domains.xn--bcher-kva.{PLAIN}" and told["transport"] == "lmtp"
    assert told["servers"][0]["path"].endswith("/lmtp") and told["servers"][1]["addresses"] == ["::1", STORE]
    assert route(world, tmp_path, f"anna@cname.{PLAIN}", routes=routes)["route"] == "routes.senders.<>"
    strict = route(world, tmp_path, f"anna@cname.{PLAIN}", "--sender", "x@example.org", routes=routes, status=1)
    assert strict["tls"] == "dane-only" and "no TLSA record" in strict["servers"][0]["problem"]
    assert strict["refusal"]["result"] == "deferred"


def test_the_way_is_printed_for_people_and_wrong_usage_ends_with_status_2(world: World, tmp_path: Path):
    file = written(world, tmp_path)
    ran = CliRunner().invoke(main, ["route", f"anna@backup.{PLAIN}", "-c", str(file)])
    assert ran.exit_code == 0 and f"store.{PLAIN}:25" in ran.stdout, ran.output
    assert "taken from  nobody" in ran.stdout and "opportunistic (may), else opportunistic (none)" in ran.stdout
    ran = CliRunner().invoke(main, ["route", f"anna@loop.{PLAIN}", "-c", str(file)])
    assert ran.exit_code == 1 and f"failed      550 5.4.6 mail for loop.{PLAIN} loops back to us" in ran.stdout
    ran = CliRunner().invoke(main, ["route", "anna@a\x1b[2J.test", "-c", str(file)])
    assert ran.exit_code == 2 and "\x1b" not in ran.output and "malformed" in ran.output
