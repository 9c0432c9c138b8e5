"""The sender plugin on the bench, and against a nameserver on loopback that misbehaves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from pydantic import ValidationError

from gateway.sdk import PROCEED, Action, DomainState, SenderDomain, Services
from gateway.sdk.testing import (
    Bench,
    FakeDirectory,
    FakeDns,
    FakeState,
    ManualClock,
    make_recipient,
    make_session,
    make_transaction,
)
from gateway.services.dns import DnsOptions, Resolver
from plugins.sender import HOSTS, SenderOptions, SenderPlugin
from tests.contract.dnsserver import DnsServer, Fault

MAIL = "sender.example"


def look(
    dns: FakeDns, options: dict[str, Any] | None = None, sender: str = f"ben@{MAIL}", **session: Any
) -> SenderDomain:
    transaction = make_transaction(make_session(**session), sender=sender)
    finding = Bench(dns=dns).find(SenderPlugin, options, transaction=transaction)
    assert isinstance(finding, SenderDomain)
    return finding


def test_a_domain_with_a_mail_host_resolves():
    dns = FakeDns(mx={MAIL: [(20, "b.example"), (10, "a.example")]}, a={"b.example": ["192.0.2.1"]})
    assert look(dns) == SenderDomain(MAIL, DomainState.RESOLVES, ("a.example", "b.example"))


@pytest.mark.parametrize("records", [{"a": {MAIL: ["192.0.2.1"]}}, {"aaaa": {MAIL: ["2001:db8::1"]}}])
def test_without_mx_its_own_addresses_count(records):
    assert look(FakeDns(**records)).state is DomainState.RESOLVES


def test_with_mx_its_own_addresses_do_not_count():
    dns = FakeDns(mx={MAIL: [(10, "gone.example")]}, a={MAIL: ["192.0.2.1"]})
    assert look(dns) == SenderDomain(MAIL, DomainState.NONE, ("gone.example",), "its mail hosts have no addresses")


def test_a_null_mx_says_that_it_takes_no_mail():
    assert look(FakeDns(mx={MAIL: [(0, "")]}, a={MAIL: ["192.0.2.1"]})).state is DomainState.NULL_MX


def test_a_null_mx_beside_others_is_no_null_mx():
    dns = FakeDns(mx={MAIL: [(0, ""), (10, "a.example")]}, a={"a.example": ["192.0.2.1"]})
    assert look(dns) == SenderDomain(MAIL, DomainState.RESOLVES, ("a.example",))


def test_a_domain_that_does_not_exist_is_missing_and_one_without_records_has_none():
    assert look(FakeDns()).state is DomainState.MISSING
    assert look(FakeDns(txt={MAIL: ["v=spf1 -all"]})).state is DomainState.NONE


@pytest.mark.parametrize(
    "address",
    "127.0.0.1 10.1.2.3 192.168.1.1 172.31.255.255 100.64.0.1 169.254.1.1 0.0.0.0 224.0.0.1 255.255.255.255"
    " ::1 :: fe80::1 fd00::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1".split(),
)
def test_mail_hosts_that_nobody_can_reach_are_bogus(address):
    records: dict[str, Any] = {"aaaa" if ":" in address else "a": {"mx.example": [address]}}
    finding = look(FakeDns(mx={MAIL: [(10, "mx.example")]}, **records))
    assert finding.state is DomainState.BOGUS
    assert look(FakeDns(**{kind: {MAIL: [address]} for kind in records})).state is DomainState.BOGUS


def test_one_mail_host_that_can_be_reached_is_enough():
    hosts = {"a.example": ["127.0.0.1"], "b.example": ["10.0.0.1", "192.0.2.1"]}
    assert look(FakeDns(mx={MAIL: [(10, "a.example"), (20, "b.example")]}, a=hosts)).state is DomainState.RESOLVES


def test_networks_of_ones_own_are_never_bogus():
    dns = FakeDns(a={MAIL: ["10.1.2.3"]})
    assert look(dns).state is DomainState.BOGUS
    assert look(dns, {"own_networks": ["10.0.0.0/8"]}).state is DomainState.RESOLVES


def test_an_address_literal_is_judged_by_its_address():
    dns = FakeDns()
    assert look(dns, sender="ben@[192.0.2.1]").state is DomainState.RESOLVES
    assert look(dns, sender="ben@[127.0.0.1]").state is DomainState.BOGUS
    assert look(dns, sender="ben@[IPv6:2001:db8::1]").state is DomainState.RESOLVES
    assert look(dns, sender="ben@[IPv6:::1]").state is DomainState.BOGUS
    assert dns.asked == []


def test_a_domain_is_asked_for_in_a_labels():
    dns = FakeDns(a={"xn--bcher-kva.example": ["192.0.2.1"]})
    assert look(dns, sender="ben@BÜCHER.example") == SenderDomain("xn--bcher-kva.example", DomainState.RESOLVES)


def test_the_null_sender_and_trusted_clients_are_not_asked_for():
    dns = FakeDns()
    assert look(dns, sender="") == SenderDomain("", DomainState.NOT_ASKED)
    assert look(dns, trusted=True) == SenderDomain(MAIL, DomainState.NOT_ASKED)
    assert dns.asked == []
    assert look(dns, {"skip_trusted": False}, trusted=True).state is DomainState.MISSING


def test_domains_that_are_skipped_are_not_asked_for_with_all_below_them():
    dns = FakeDns()
    for sender in ("ben@intern.example", "ben@a.b.Intern.example"):
        assert look(dns, {"skip": ["INTERN.example."]}, sender=sender).state is DomainState.NOT_ASKED
    assert dns.asked == []
    assert look(dns, {"skip": ["intern.example"]}, sender="ben@notintern.example").state is DomainState.MISSING


@pytest.mark.parametrize(
    ("dns", "state"),
    [
        (FakeDns(fails=[MAIL]), DomainState.UNKNOWN),
        (FakeDns(mx={MAIL: [(10, "a.example")]}, fails=["a.example"]), DomainState.UNKNOWN),
        (FakeDns(mx={MAIL: [(10, "a.example"), (20, "b.example")]}, fails=["a.example"]), DomainState.UNKNOWN),
        (
            FakeDns(
                mx={MAIL: [(10, "a.example"), (20, "b.example")]}, a={"b.example": ["127.0.0.1"]}, fails=["a.example"]
            ),
            DomainState.UNKNOWN,
        ),
        (
            FakeDns(
                mx={MAIL: [(10, "a.example"), (20, "b.example")]}, a={"b.example": ["192.0.2.1"]}, fails=["a.example"]
            ),
            DomainState.RESOLVES,
        ),
    ],
)
def test_trouble_is_unknown_and_never_evidence(dns, state):
    assert look(dns).state is state


def test_look_ups_that_take_too_long_leave_it_unknown():
    class Stuck(FakeDns):
        async def lookup(self, name, rdtype):
            await asyncio.Event().wait()

    assert look(Stuck(), {"timeout": "20ms"}) == SenderDomain(MAIL, DomainState.UNKNOWN, (), "no answer in time")


def test_a_domain_with_very_many_mail_hosts_costs_no_more_than_ten_of_them():
    hosts = [f"mx{i}.example" for i in range(500)]
    dns = FakeDns(mx={MAIL: [(i, host) for i, host in enumerate(hosts)]}, a={host: ["127.0.0.1"] for host in hosts})
    finding = look(dns)
    assert (finding.state, finding.hosts) == (DomainState.BOGUS, tuple(hosts[:HOSTS]))
    assert len(dns.asked) == 1 + 2 * HOSTS
    assert len(finding.problem) < 200


def test_what_was_found_is_counted():
    def count() -> float:
        return REGISTRY.get_sample_value("gatepost_sender_domains_total", {"state": "missing"}) or 0.0

    before = count()
    look(FakeDns())
    assert count() == before + 1


def judge(state: DomainState, options: dict[str, Any] | None = None, recipient: str = "anna@example.org"):
    finding = SenderDomain(MAIL, state, (), "as found")
    return Bench().judge("sender", options, recipient=make_recipient(recipient), findings=[finding])


@pytest.mark.parametrize(
    ("state", "reply"),
    [
        (DomainState.NULL_MX, "550 5.7.27 sender's domain takes no mail"),
        (DomainState.MISSING, "550 5.1.8 sender's domain does not exist"),
        (DomainState.NONE, "550 5.1.8 sender's domain has no mail host"),
        (DomainState.BOGUS, "550 5.1.8 sender's domain has no mail host that can be reached"),
        (DomainState.UNKNOWN, "450 4.4.3 sender's domain cannot be checked now, try again later"),
    ],
)
def test_what_can_get_no_mail_is_refused_and_what_is_unknown_deferred(state, reply):
    verdict = judge(state)
    assert str(verdict.reply) == reply
    assert verdict.reason == f"{MAIL}: as found"
    assert MAIL not in str(verdict.reply)


@pytest.mark.parametrize("state", [DomainState.RESOLVES, DomainState.NOT_ASKED])
def test_other_senders_proceed(state):
    assert judge(state) == PROCEED


@pytest.mark.parametrize(
    ("option", "state", "detail"),
    [
        ("null_mx", DomainState.NULL_MX, "4.7.27"),
        ("missing", DomainState.MISSING, "4.1.8"),
        ("missing", DomainState.NONE, "4.1.8"),
        ("bogus", DomainState.BOGUS, "4.1.8"),
    ],
)
def test_each_may_be_deferred_or_let_through(option, state, detail):
    verdict = judge(state, {option: "defer"})
    assert (verdict.action, verdict.reply.code, verdict.reply.status) == (Action.DEFER, 450, detail)
    assert judge(state, {option: "proceed"}) == PROCEED


def test_what_is_unknown_may_be_let_through_and_never_refused_for_good():
    assert judge(DomainState.UNKNOWN, {"unknown": "proceed"}) == PROCEED
    with pytest.raises(ValidationError):
        SenderOptions.model_validate({"unknown": "reject"})


@pytest.mark.parametrize("address", ["postmaster@example.org", "Postmaster", "POSTMASTER@example.net"])
@pytest.mark.parametrize("state", list(DomainState))
def test_any_sender_may_write_to_postmaster(state, address):
    assert judge(state, {}, address) == PROCEED


@settings(max_examples=80)
@given(
    mx=st.none()
    | st.lists(st.tuples(st.integers(0, 65535), st.sampled_from(["", "a.test", "b.test", "c.test"])), max_size=4),
    addresses=st.dictionaries(
        st.sampled_from(["a.test", "b.test", MAIL]),
        st.lists(st.ip_addresses(v=4).map(str), min_size=1, max_size=3),
    ),
    fails=st.sets(st.sampled_from(["a.test", "b.test", MAIL])),
)
def test_whatever_the_dns_says_there_is_one_finding_and_failures_refuse_nobody_for_good(mx, addresses, fails):
    dns = FakeDns(mx={MAIL: mx} if mx else {}, a=addresses, fails=fails)
    finding = look(dns)
    verdict = Bench().judge("sender", findings=[finding])
    if MAIL in fails:
        assert finding.state is DomainState.UNKNOWN
    if verdict.action is Action.REJECT and finding.hosts:
        assert not fails & set(finding.hosts)


RECORDS = [
    "good.test. 60 IN MX 10 mx.good.test.",
    "mx.good.test. 60 IN A 192.0.2.1",
    "null.test. 60 IN MX 0 .",
    "chain.test. 60 IN CNAME c1.test.",
    "c1.test. 60 IN CNAME c2.test.",
    "c2.test. 60 IN MX 10 mx.good.test.",
    "loop.test. 60 IN CNAME loop2.test.",
    "loop2.test. 60 IN CNAME loop.test.",
    "bogus.test. 60 IN MX 10 local.test.",
    "local.test. 60 IN A 127.0.0.1",
    "plain.test. 60 IN AAAA 2001:db8::1",
    "servfail.test. 60 IN MX 10 mx.good.test.",
    "silent.test. 60 IN MX 10 mx.good.test.",
    "truncated.test. 60 IN MX 10 mx.good.test.",
    "half.test. 60 IN MX 10 deaf.test.",
    "half.test. 60 IN MX 20 mx.good.test.",
    "slow.test. 60 IN MX 10 s0.test.",
    *(f"slow.test. 60 IN MX 10 s{i}.test." for i in range(5)),
    *(f"s{i}.test. 60 IN A 127.0.0.1" for i in range(4)),
    "s4.test. 60 IN A 192.0.2.1",
]


def with_nameserver(expected: dict[str, DomainState], **server: Any) -> list[float]:
    """Look for each domain through the real resolver; gives how long each took."""

    async def check() -> list[float]:
        clock = ManualClock()
        took = []
        async with DnsServer(RECORDS, **server) as nameserver:
            dns = Resolver(DnsOptions((nameserver.address,), 0.3), clock)
            services = Services(dns, FakeState(clock), clock, FakeDirectory(), "mx.test", "mx.test")
            plugin = SenderPlugin(SenderOptions(), services)
            await plugin.start()
            for domain, state in expected.items():
                started = asyncio.get_running_loop().time()
                finding = await plugin.domain(make_transaction(sender=f"ben@{domain}"))
                took.append(asyncio.get_running_loop().time() - started)
                assert finding.state is state, domain
            await plugin.close()
            await dns.close()
        return took

    return asyncio.run(check())


def test_with_a_real_nameserver_each_state_is_found_and_trouble_is_unknown():
    faults = {
        "servfail.test.": Fault.SERVFAIL,
        "silent.test.": Fault.SILENT,
        "truncated.test.": Fault.TRUNCATED,
        "deaf.test.": Fault.REFUSED,
    }
    expected = {
        "good.test": DomainState.RESOLVES,
        "null.test": DomainState.NULL_MX,
        "chain.test": DomainState.RESOLVES,
        "loop.test": DomainState.UNKNOWN,
        "bogus.test": DomainState.BOGUS,
        "plain.test": DomainState.RESOLVES,
        "servfail.test": DomainState.UNKNOWN,
        "silent.test": DomainState.UNKNOWN,
        "truncated.test": DomainState.RESOLVES,
        "half.test": DomainState.RESOLVES,
        "nowhere.test": DomainState.MISSING,
        "ns.good.test": DomainState.MISSING,
    }
    with_nameserver(expected, faults=faults)


def test_with_a_slow_nameserver_all_mail_hosts_are_asked_at_once():
    delays = {"slow.test.": 0.05, **{f"s{i}.test.": 0.05 for i in range(5)}}
    best = min(with_nameserver({"slow.test": DomainState.RESOLVES}, delays=delays)[0] for _ in range(5))
    # Two rounds of 50 ms; one after the other would be 550 ms.
    assert 0.1 <= best < 0.25
