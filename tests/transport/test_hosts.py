"""MX records and addresses of next hops."""

from __future__ import annotations

import random
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sdk.testing import FakeDns
from gateway.transport import hosts
from gateway.transport.hosts import Unreachable
from gateway.transport.options import SmtpOptions
from gateway.transport.smtp import SmtpTransport
from gateway.transport.transport import Destination, Fault, Kind, Outcome, Result, Security
from tests.support.process import free_port
from tests.transport.peer import Link, delivery, peer, run, statuses

OWN = "gate.test"
T = TypeVar("T")


def mx(dns: FakeDns, domain: str = "example.net", seed: int = 1) -> list[str] | Unreachable:
    found = run(hosts.exchangers(domain, dns, OWN, random.Random(seed)))
    return found if isinstance(found, Unreachable) else found.names


def problem(found: list[str] | Unreachable) -> str:
    assert isinstance(found, Unreachable)
    return f"{found.result} {found.reply.code} {found.reply.status}"


def test_exchangers_come_by_preference():
    dns = FakeDns(mx={"example.net": [(20, "b.test"), (10, "a.test"), (30, "c.test")]})
    assert mx(dns) == ["a.test", "b.test", "c.test"]


def test_equal_preferences_are_tried_in_an_order_that_chance_picks():
    dns = FakeDns(mx={"example.net": [(10, "a.test"), (10, "b.test"), (5, "first.test")]})
    orders = [mx(dns, seed=seed) for seed in range(20)]
    assert ["first.test", "a.test", "b.test"] in orders and ["first.test", "b.test", "a.test"] in orders
    assert mx(dns, seed=3) == mx(dns, seed=3)


def test_a_domain_without_mx_is_its_own_exchanger():
    assert mx(FakeDns(a={"example.net": ["192.0.2.1"]})) == ["example.net"]


def test_a_null_mx_is_refused_with_5_1_10():
    assert problem(mx(FakeDns(mx={"example.net": [(0, "")]}))) == "failed 556 5.1.10"


def test_a_domain_that_does_not_exist_is_refused_with_5_1_2():
    assert problem(mx(FakeDns())) == "failed 550 5.1.2"


def test_trouble_with_dns_is_temporary():
    found = mx(FakeDns(fails=["example.net"]))
    assert problem(found) == "deferred 451 4.4.3"
    assert isinstance(found, Unreachable) and found.fault is Fault.CONNECT


def test_hosts_as_good_as_or_worse_than_ourselves_are_left_out():
    dns = FakeDns(mx={"example.net": [(5, "a.test"), (10, "GATE.test"), (10, "b.test"), (20, "c.test")]})
    assert mx(dns) == ["a.test"]


def test_a_domain_whose_best_exchanger_is_ourselves_is_a_loop():
    assert problem(mx(FakeDns(mx={"example.net": [(10, OWN), (20, "b.test")]}))) == "failed 550 5.4.6"
    assert problem(mx(FakeDns(a={OWN: ["192.0.2.1"]}), domain=OWN)) == "failed 550 5.4.6"


@pytest.mark.parametrize(
    "name", ["192.0.2.1", "2001:db8::1", "127.1", "localhost", "a.localhost", "a b.test", "-.test"]
)
def test_what_cannot_be_the_name_of_a_mail_host_is_left_out(name: str):
    assert mx(FakeDns(mx={"example.net": [(0, name), (10, "a.test")]})) == ["a.test"]
    assert problem(mx(FakeDns(mx={"example.net": [(0, name)]}))) == "failed 550 5.4.4"


def test_a_null_mx_beside_others_counts_for_nothing():
    assert mx(FakeDns(mx={"example.net": [(0, ""), (10, "a.test")]})) == ["a.test"]


def test_a_host_that_stands_twice_is_tried_once_at_its_best():
    assert mx(FakeDns(mx={"example.net": [(20, "a.test"), (10, "b.test"), (10, "A.test")]}), seed=2) == [
        "b.test",
        "a.test",
    ]


def at_once(finding: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives that never waits: an event loop for each example would take most of the time."""
    try:
        finding.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


RECORDS = st.lists(
    st.tuples(st.integers(0, 65535), st.sampled_from(["", "a.test", "b.test", OWN, "127.0.0.1"])), min_size=1
)


@given(RECORDS, st.integers())
def test_whatever_mx_records_say_hosts_come_by_preference_and_none_is_as_bad_as_we_are(
    records: list[tuple[int, str]], seed: int
):
    found = at_once(hosts.exchangers("example.net", FakeDns(mx={"example.net": records}), OWN, random.Random(seed)))
    best = {name: min(p for p, n in records if n == name) for _, name in records}
    wanted = {name for name in ("a.test", "b.test") if name in best and best[name] < best.get(OWN, 65536)}
    if isinstance(found, Unreachable):
        assert not wanted and found.result is Result.FAILED
        return
    assert set(found.names) == wanted and len(found.names) == len(wanted)
    assert [[best[hop.host] for hop in group] for group in found.groups] == [
        [hop.priority] * len(group) for group, hop in ((g, g[0]) for g in found.groups)
    ]
    priorities = [group[0].priority for group in found.groups]
    assert priorities == sorted(set(priorities))


def addresses(host: str, dns: FakeDns, *, configured: bool = False) -> list[str] | Unreachable:
    return run(hosts.addresses(host, dns, configured=configured))


def test_addresses_of_both_families_ipv4_first():
    dns = FakeDns(a={"a.test": ["192.0.2.1", "192.0.2.2"]}, aaaa={"a.test": ["2001:db8::1"]})
    assert addresses("a.test", dns) == ["192.0.2.1", "192.0.2.2", "2001:db8::1"]


@pytest.mark.parametrize("literal", ["192.0.2.1", "2001:db8::1"])
def test_a_literal_is_its_own_address(literal: str):
    dns = FakeDns()
    assert addresses(literal, dns) == [literal] and not dns.asked


def test_a_missing_name_is_for_good_in_an_mx_and_temporary_in_the_configuration():
    assert problem(addresses("a.test", FakeDns())) == "failed 550 5.1.2"
    assert problem(addresses("a.test", FakeDns(), configured=True)) == "deferred 451 4.4.3"
    assert problem(addresses("a.test", FakeDns(fails=["a.test"]))) == "deferred 451 4.4.3"


def test_localhost_needs_no_dns():
    dns = FakeDns()
    found = addresses("localhost", dns, configured=True)
    assert isinstance(found, list) and found[0] == "127.0.0.1" and not dns.asked


def test_the_hosts_file_is_asked_first_for_configured_names_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "hosts"
    file.write_text("# nothing\n2001:db8::7 store.test\n192.0.2.7  Store.test alias.test # comment\nnonsense here\n\n")
    monkeypatch.setattr("gateway.sdk.hosts.HOSTS_FILE", str(file))
    dns = FakeDns(a={"store.test": ["192.0.2.1"], "other.test": ["192.0.2.2"]})
    assert addresses("store.test", dns, configured=True) == ["192.0.2.7", "2001:db8::7"]
    assert addresses("alias.test", dns, configured=True) == ["192.0.2.7"]
    assert addresses("other.test", dns, configured=True) == ["192.0.2.2"]
    assert addresses("store.test", dns) == ["192.0.2.1"]


def test_a_missing_hosts_file_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gateway.sdk.hosts.HOSTS_FILE", str(tmp_path / "none"))
    assert addresses("a.test", FakeDns(a={"a.test": ["192.0.2.1"]}), configured=True) == ["192.0.2.1"]


# Delivery by MX, on loopback addresses.


def by_mx(dns: FakeDns, port: int, **options: int) -> SmtpTransport:
    destination = Destination(Kind.SMTP, "example.net", port, mx=True, security=Security.NONE)
    return SmtpTransport(destination, SmtpOptions(OWN, **options), dns, random.Random(1))


def deliver(dns: FakeDns, port: int, **options: int) -> Outcome:
    async def main() -> Outcome:
        t = by_mx(dns, port, **options)
        (outcome,) = await t.deliver(delivery())
        await t.close()
        return outcome

    return run(main())


def test_the_next_exchanger_is_tried_when_one_refuses_the_connection():
    async def takes(link: Link) -> None:
        await link.greet()
        await link.take()
        await link.end()

    async def main() -> None:
        async with peer(takes) as it:
            dns = FakeDns(
                mx={"example.net": [(10, "missing.test"), (20, "dead.test"), (30, "alive.test")]},
                a={"dead.test": ["127.0.0.9"], "alive.test": ["127.0.0.1"]},
            )
            t = by_mx(dns, it.port)
            (outcome,) = await t.deliver(delivery())
            await t.close()
        assert outcome.result is Result.DELIVERED and outcome.host == "alive.test"

    run(main())


async def refuses(link: Link) -> None:
    await link.say("554 5.7.1 no mail here")
    await link.end()


def test_exchangers_that_all_refuse_for_good_fail_the_mail():
    async def main() -> None:
        async with peer(refuses) as it:
            dns = FakeDns(mx={"example.net": [(10, "a.test")]}, a={"a.test": ["127.0.0.1"]})
            t = by_mx(dns, it.port)
            (outcome,) = await t.deliver(delivery())
            assert statuses([outcome]) == ["failed 5.7.1"] and outcome.replied and outcome.host == "a.test"
            await t.close()

    run(main())


def test_one_exchanger_that_could_not_be_asked_keeps_the_mail_alive():
    async def main() -> None:
        async with peer(refuses) as it:
            dns = FakeDns(
                mx={"example.net": [(10, "dead.test"), (20, "a.test")]},
                a={"dead.test": ["127.0.0.9"], "a.test": ["127.0.0.1"]},
            )
            t = by_mx(dns, it.port)
            assert statuses(await t.deliver(delivery())) == ["deferred 4.4.1"]
            await t.close()

    run(main())


def test_a_null_mx_fails_the_delivery():
    outcome = deliver(FakeDns(mx={"example.net": [(0, "")]}), free_port())
    assert str(outcome.reply).startswith("556 5.1.10") and outcome.result is Result.FAILED
    assert not outcome.replied and outcome.fault is Fault.PEER


def test_no_more_addresses_are_tried_than_allowed():
    many = {f"h{i}.test": [f"127.0.1.{i}"] for i in range(1, 9)}
    dns = FakeDns(mx={"example.net": [(i, f"h{i}.test") for i in range(1, 9)]}, a=many)
    outcome = deliver(dns, free_port(), max_addresses=3)
    assert outcome.result is Result.DEFERRED and outcome.reply.status == "4.4.1"
    assert {name for name, rdtype in dns.asked if rdtype == "A"} == {"h1.test", "h2.test", "h3.test"}
