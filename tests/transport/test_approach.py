"""The way to a destination, on loopback: several servers, several addresses, and ourselves among them."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gateway.sdk.services import Tlsa
from gateway.sdk.testing import FakeDns
from gateway.transport.approach import Approach, Place, Rules
from gateway.transport.connection import Connection
from gateway.transport.hosts import Exchangers, Located, Unreachable, deferred
from gateway.transport.options import SmtpOptions, Timeouts
from gateway.transport.order import Families
from gateway.transport.own import OwnAddresses
from gateway.transport.rule import CLEAR
from gateway.transport.smtp import SmtpTransport
from gateway.transport.transport import Destination, Fault, Kind, Outcome, Result, Security, Server
from tests.support.process import free_port
from tests.transport.peer import Link, delivery, peer, run, statuses

OWN_NAME = "gate.test"
HERE = {"a.test": ["127.0.0.1"], "b.test": ["127.0.0.1"]}


async def takes(link: Link) -> None:
    await link.greet()
    while True:
        await link.take()


async def refuses(link: Link) -> None:
    await link.say("421 4.3.2 not now")
    await link.end()


@contextmanager
def black_hole(address: str, port: int = 0) -> Iterator[int]:
    """A port that neither takes a connection nor refuses it: its queue is full. Gives the port."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen(0)
        clients = []
        try:
            for _ in range(3):
                client = socket.socket(server.family)
                clients.append(client)
                client.setblocking(False)
                client.connect_ex(server.getsockname()[:2])
            yield server.getsockname()[1]
        finally:
            for client in clients:
                client.close()


def by_mx(port: int, dns: FakeDns, **options: object) -> SmtpTransport:
    destination = Destination(Kind.SMTP, "example.net", port, mx=True, security=Security.NONE)
    return made(destination, dns, **options)


def made(destination: Destination, dns: FakeDns | None = None, **options: object) -> SmtpTransport:
    settings: dict[str, object] = {"timeouts": Timeouts(connect=5.0, quit=1.0), "next_address": 0.05, **options}
    return SmtpTransport(destination, SmtpOptions(OWN_NAME, **settings), dns or FakeDns())  # type: ignore[arg-type]


def several(*hops: Server) -> Destination:
    return Destination(Kind.SMTP, security=Security.NONE, alternatives=hops)


async def once(transport: SmtpTransport) -> Outcome:
    try:
        (outcome,) = await transport.deliver(delivery())
    finally:
        await transport.close()
    return outcome


# Addresses.


@pytest.mark.parametrize("families", [Families.IPV4_FIRST, Families.IPV6_FIRST])
def test_an_address_that_does_not_answer_costs_a_moment_only(families: Families):
    async def main() -> None:
        async with peer(takes) as it:
            with black_hole("::1", it.port), black_hole("127.0.0.9", it.port):
                addresses = {"a.test": ["127.0.0.9", "127.0.0.1"]}
                dns = FakeDns(mx={"example.net": [(10, "a.test")]}, a=addresses, aaaa={"a.test": ["::1"]})
                outcome = await once(by_mx(it.port, dns, families=families))
        assert outcome.result is Result.DELIVERED and it.connections == 1

    run(main())


def test_where_there_is_no_room_for_another_connection_the_first_one_is_waited_for():
    async def main() -> None:
        async with peer(takes) as it:
            with black_hole("127.0.0.9", it.port):
                dns = FakeDns(mx={"example.net": [(10, "a.test")]}, a={"a.test": ["127.0.0.9", "127.0.0.1"]})
                transport = by_mx(it.port, dns, connections=1, timeouts=Timeouts(connect=0.3, quit=1.0))
                started = asyncio.get_running_loop().time()
                outcome = await once(transport)
                assert asyncio.get_running_loop().time() - started >= 0.3
        assert outcome.result is Result.DELIVERED

    run(main())


def test_hosts_that_are_as_good_as_each_other_are_tried_beside_each_other_and_worse_ones_are_not():
    async def main() -> None:
        async with peer(takes) as it:
            with black_hole("127.0.0.9", it.port):
                hosts = {"dead.test": ["127.0.0.9"], "alive.test": ["127.0.0.1"]}
                equal = FakeDns(mx={"example.net": [(10, "dead.test"), (10, "alive.test")]}, a=hosts)
                for _ in range(3):
                    assert (await once(by_mx(it.port, equal))).host == "alive.test"
                worse = FakeDns(mx={"example.net": [(10, "dead.test"), (20, "alive.test")]}, a=hosts)
                transport = by_mx(it.port, worse, timeouts=Timeouts(connect=0.5, quit=1.0))
                started = asyncio.get_running_loop().time()
                assert (await once(transport)).host == "alive.test"
                assert asyncio.get_running_loop().time() - started >= 0.5

    run(main())


@pytest.mark.parametrize("strict", ["dead.test", "alive.test"])
def test_the_rules_for_tls_are_those_of_the_host_that_answered(strict: str):
    async def main() -> None:
        async with peer(takes) as it:
            with black_hole("127.0.0.9", it.port):
                dns = FakeDns(
                    mx={"example.net": [(10, "dead.test"), (10, "alive.test")]},
                    a={"dead.test": ["127.0.0.9"], "alive.test": ["127.0.0.1"]},
                    tlsa={f"_{it.port}._tcp.{strict}": [Tlsa(3, 1, 1, b"x" * 32)]},
                    authentic=["example.net", strict],
                )
                destination = Destination(Kind.SMTP, "example.net", it.port, mx=True, security=Security.DANE)
                outcome = await once(made(destination, dns, timeouts=Timeouts(connect=0.3, quit=1.0)))
        if strict == "dead.test":
            assert outcome.result is Result.DELIVERED and outcome.tls_policy == "opportunistic"
        else:
            assert outcome.result is Result.DEFERRED and not it.count("MAIL"), "not a word without TLS"

    run(main())


def test_a_host_without_an_address_of_the_wanted_family_is_passed_over():
    async def main() -> None:
        async with peer(takes) as it:
            dns = FakeDns(
                mx={"example.net": [(10, "four.test"), (20, "six.test")]},
                a={"four.test": ["127.0.0.1"]},
                aaaa={"six.test": ["::1"]},
            )
            assert statuses([await once(by_mx(it.port, dns, families=Families.IPV6))]) == ["deferred 4.4.1"]
        assert not it.connections

    run(main())


def test_a_host_with_very_many_addresses_leaves_some_of_the_attempt_for_the_others():
    async def main() -> None:
        async with peer(takes) as it:
            many = [f"127.0.2.{i}" for i in range(1, 30)]
            dns = FakeDns(
                mx={"example.net": [(10, "many.test"), (20, "one.test")]},
                a={"many.test": many, "one.test": ["127.0.0.1"]},
            )
            assert (await once(by_mx(it.port, dns))).host == "one.test"

    run(main())


def test_while_the_rules_are_looked_up_no_other_address_is_tried():
    async def main() -> None:
        dialled: list[str] = []

        class Nobody:
            async def dial(self, place: Place, rules: Rules) -> Connection | Unreachable:
                dialled.append(place.address)
                if len(dialled) == 1:
                    for _ in range(20):
                        await asyncio.sleep(0)
                    assert len(dialled) == 1, "the others came along"
                return deferred("4.1", "no")

            async def greet(self, place: Place, rules: Rules, connection: Connection) -> Connection | Unreachable:
                raise AssertionError

            def has_room(self) -> bool:
                return True

        async def slowly(hop: Server, located: Located, found: Exchangers) -> Rules:
            await asyncio.sleep(0.25)
            return (CLEAR,)

        options = SmtpOptions(OWN_NAME, next_address=0.1)
        dns = FakeDns(a={"a.test": [f"192.0.2.{i}" for i in range(1, 6)]})
        destination = Destination(Kind.SMTP, "a.test", 25)
        approach = Approach(destination, options, dns, random.Random(1))
        found = await approach.find()
        assert isinstance(found, Exchangers)
        assert isinstance(await approach.connect(slowly, Nobody(), found), Unreachable)
        assert len(dialled) == 5

    run(main())


# Ourselves.


def test_a_best_mail_host_at_our_own_address_is_a_loop():
    dns = FakeDns(mx={"example.net": [(10, "alias.test"), (20, "b.test")]}, a={"alias.test": ["192.0.2.1"]})
    own = OwnAddresses(frozenset({"192.0.2.1"}))
    outcome = run(once(by_mx(free_port(), dns, own=own)))
    assert str(outcome.reply).startswith("550 5.4.6 mail for example.net loops back to us")
    assert outcome.result is Result.FAILED and not outcome.replied


def test_a_domain_without_mx_that_is_our_own_address_is_a_loop():
    own = OwnAddresses(frozenset({"192.0.2.1"}))
    outcome = run(once(by_mx(free_port(), FakeDns(a={"example.net": ["192.0.2.1"]}), own=own)))
    assert outcome.reply.status == "5.4.6"


def test_hosts_as_good_as_our_own_address_or_worse_are_not_tried():
    async def main() -> None:
        async with peer(takes) as it:
            mx = [(10, "dead.test"), (20, "alias.test"), (20, "equal.test"), (30, "worse.test")]
            here = {name: ["127.0.0.1"] for name in ("equal.test", "worse.test")}
            dns = FakeDns(mx={"example.net": mx}, a={"dead.test": ["127.0.0.9"], "alias.test": ["192.0.2.1"], **here})
            outcome = await once(by_mx(it.port, dns, own=OwnAddresses(frozenset({"192.0.2.1"}))))
        assert statuses([outcome]) == ["deferred 4.4.1"] and not it.connections

    run(main())


def test_a_backup_delivers_to_the_better_host():
    async def main() -> None:
        async with peer(takes) as it:
            dns = FakeDns(
                mx={"example.net": [(10, "best.test"), (20, "alias.test")]},
                a={"best.test": ["127.0.0.1"], "alias.test": ["192.0.2.1"]},
            )
            assert (await once(by_mx(it.port, dns, own=OwnAddresses(frozenset({"192.0.2.1"}))))).host == "best.test"

    run(main())


@pytest.mark.parametrize("literal", ["192.0.2.1", "0.0.0.0"])
def test_an_address_literal_that_is_ourselves_is_a_loop(literal: str):
    destination = Destination(Kind.SMTP, literal, free_port(), literal=True)
    outcome = run(once(made(destination, own=OwnAddresses(frozenset({"192.0.2.1"})))))
    assert outcome.reply.status == "5.4.6" and outcome.result is Result.FAILED


def test_a_next_hop_that_the_configuration_names_is_no_loop():
    async def main() -> None:
        async with peer(takes) as it:
            destination = Destination(Kind.SMTP, "127.0.0.1", it.port, security=Security.NONE)
            outcome = await once(made(destination, own=OwnAddresses(frozenset({"127.0.0.1"}))))
        assert outcome.result is Result.DELIVERED

    run(main())


# Several next hops.


def test_the_second_next_hop_takes_over_and_the_first_is_left_alone_for_a_while():
    async def main() -> None:
        async with peer(takes) as it:
            dead, alive = Server("127.0.0.1", free_port(), priority=1), Server("127.0.0.1", it.port, priority=2)
            transport = made(several(dead, alive))
            for _ in range(3):
                (outcome,) = await transport.deliver(delivery())
                assert outcome.result is Result.DELIVERED
            assert it.connections == 1, "a kept connection to the one whose turn it is"
            rotation = transport._approach._rotation
            assert rotation is not None and rotation.order() == ((alive,), (dead,))
            await transport.close()

    run(main())


def test_trouble_of_our_own_does_not_make_a_next_hop_rest():
    async def main() -> None:
        hops = (Server("a.test", 25, priority=1), Server("b.test", 25, priority=2))
        transport = made(
            Destination(Kind.SMTP, security=Security.VERIFY, tls_ca="/no/ca.pem", alternatives=hops), FakeDns(a=HERE)
        )
        (outcome,) = await transport.deliver(delivery())
        assert outcome.fault is Fault.OURS and "tls_ca cannot be used" in outcome.reply.text
        rotation = transport._approach._rotation
        assert rotation is not None and rotation.order() == ((hops[0],), (hops[1],))
        await transport.close()

    run(main())


def test_a_next_hop_that_greets_with_421_is_passed_over():
    async def main() -> None:
        async with peer(refuses) as busy, peer(takes) as it:
            hops = [Server("127.0.0.1", busy.port, priority=1), Server("127.0.0.1", it.port, priority=2)]
            assert (await once(made(several(*hops)))).result is Result.DELIVERED
            assert busy.connections == it.connections == 1

    run(main())


def test_what_a_next_hop_says_to_a_transaction_is_the_answer():
    async def full(link: Link) -> None:
        await link.greet()
        await link.hear("MAIL", "RCPT", "DATA")
        await link.say("250 ok", "452 4.2.2 full", "503 no")
        await link.end()

    async def main() -> None:
        async with peer(full) as first, peer(takes) as it:
            hops = [Server("127.0.0.1", first.port, priority=1), Server("127.0.0.1", it.port, priority=2)]
            assert statuses([await once(made(several(*hops)))]) == ["deferred 4.2.2"]
            assert not it.connections

    run(main())


def test_next_hops_of_one_priority_share_the_mail():
    async def main() -> None:
        async with peer(takes) as one, peer(takes) as other:
            hops = several(Server("127.0.0.1", one.port), Server("127.0.0.1", other.port))
            # A slow connect on a busy machine must not send mail to the other one.
            transport = made(hops, next_address=5.0)
            for _ in range(60):
                (outcome,) = await transport.deliver(delivery())
                assert outcome.result is Result.DELIVERED
            assert one.connections == other.connections == 1
            assert one.count("MAIL") > 10 < other.count("MAIL")
            await transport.close()

    run(main())


def test_kept_connections_to_other_next_hops_make_room():
    async def main() -> None:
        async with peer(takes) as one, peer(takes) as other:
            transport = made(several(Server("127.0.0.1", one.port), Server("127.0.0.1", other.port)), connections=1)
            # Which one is taken is left to chance: so often that one change at most is out of the question.
            for _ in range(50):
                await transport.deliver(delivery())
            assert len(transport._idle) == 1 and one.connections + other.connections > 2
            await transport.close()

    run(main())


def test_when_no_next_hop_can_be_reached_the_mail_waits():
    hops = [Server("127.0.0.1", free_port(), priority=priority) for priority in (1, 2)]
    outcome = run(once(made(several(*hops))))
    assert statuses([outcome]) == ["deferred 4.4.1"] and outcome.fault is Fault.CONNECT


def test_a_next_hop_may_be_a_unix_socket(tmp_path_factory: pytest.TempPathFactory):
    path = str(tmp_path_factory.mktemp("s") / "lmtp")
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 store LMTP\r\n")
        heard.append(await reader.readline())
        writer.close()

    async def main() -> None:
        server = await asyncio.start_unix_server(serve, path)
        hops = (Server("127.0.0.1", free_port(), priority=1), Server(path=path, priority=2))
        outcome = await once(made(Destination(Kind.LMTP, security=Security.NONE, alternatives=hops)))
        assert statuses([outcome]) == ["deferred 4.4.2"]
        assert heard == [b"LHLO gate.test\r\n"]
        server.close()
        await server.wait_closed()

    run(main())
