"""The helo plugin on the bench, and against a nameserver on loopback."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.sdk import PROCEED, HeloName, Services
from gateway.sdk.testing import Bench, FakeDirectory, FakeDns, FakeState, ManualClock, make_recipient, make_session
from gateway.services.dns import DnsOptions, Resolver
from plugins.helo import HeloOptions, HeloPlugin, HeloProblem
from tests.contract.dnsserver import DnsServer, Fault


def found(helo: str, dns: FakeDns | None = None, options=None, client="192.0.2.7", trusted=False) -> HeloName:
    session = make_session(client, helo=helo, trusted=trusted)
    finding = Bench(dns=dns or FakeDns(a={"known.example": ["192.0.2.7"]})).find(HeloPlugin, options, session=session)
    assert isinstance(finding, HeloName)
    return finding


def test_a_name_that_resolves_has_no_problem():
    for name in ("known.example", "Known.Example.", "KNOWN.EXAMPLE"):
        assert found(name) == HeloName("known.example", (), True)


@pytest.mark.parametrize(
    "dns",
    [
        FakeDns(aaaa={"a.example": ["2001:db8::1"]}),
        FakeDns(mx={"a.example": [(10, "mx.example")]}),
        FakeDns(cname={"a.example": "b.example"}, a={"b.example": ["192.0.2.9"]}),
        FakeDns(a={"a.example": ["203.0.113.1"]}, fails=[]),
    ],
)
def test_an_address_of_either_kind_or_an_mx_makes_it_resolve(dns):
    assert found("a.example", dns) == HeloName("a.example", (), True)


@pytest.mark.parametrize(
    ("helo", "problem"),
    [
        ("192.0.2.7", "bare-address"),
        ("2001:db8::1", "bare-address"),
        ("203.0.113.1", "bare-address"),
        ("[203.0.113.1]", "literal-mismatch"),
        ("[IPv6:2001:db8::1]", "literal-mismatch"),
        ("[]", "not-a-name"),
        ("[192.0.2.7", "not-a-name"),
        ("[2001:db8::1]", "not-a-name"),
        ("[IPv6:192.0.2.7]", "not-a-name"),
        ("[IPv6:fe80::1%eth0]", "not-a-name"),
        ("192.0.2.7.1", "not-a-name"),
        ("192.0.2", "not-a-name"),
        ("300.0.2.7", "not-a-name"),
        ("-a.example", "not-a-name"),
        ("a..example", "not-a-name"),
        (".example", "not-a-name"),
        ("a.example..", "not-a-name"),
        ("a!b.example", "not-a-name"),
        ("b\u00fccher.example", "not-a-name"),
        ("x" * 64 + ".example", "not-a-name"),
        (".".join(["x" * 50] * 6), "not-a-name"),
        ("", "not-a-name"),
        ("localhost", "single-label"),
        ("WIN-4711", "single-label"),
        ("mx.example.org", "our-name"),
        ("MX.EXAMPLE.ORG.", "our-name"),
    ],
)
def test_a_problem_that_can_be_seen_is_not_looked_up(helo, problem):
    dns = FakeDns()
    assert found(helo, dns).problems == (problem,)
    assert found(helo, dns).resolves is None
    assert dns.asked == []


@pytest.mark.parametrize(
    ("helo", "client"),
    [
        ("[192.0.2.7]", "192.0.2.7"),
        ("[192.0.2.7]", "::ffff:192.0.2.7"),
        ("[IPv6:2001:DB8:0::1]", "2001:db8::1"),
        ("[ipv6:::ffff:192.0.2.7]", "192.0.2.7"),
    ],
)
def test_the_clients_own_address_in_brackets_is_as_good_as_a_name(helo, client):
    assert found(helo, FakeDns(), client=client) == HeloName(helo.lower(), ())


def test_underscores_are_let_pass():
    assert found("mail_1.example", FakeDns(a={"mail_1.example": ["192.0.2.7"]})).problems == ()


def test_our_names_are_the_gateways_own_and_those_that_are_named():
    options = {"own_names": ["Example.org.", "example.net"]}
    for name in ("example.org", "example.net", "mx.example.org"):
        assert found(name, options=options).problems == ("our-name",)
    assert found("www.example.org", options=options).problems == ("no-such-name",)
    assert found("www.example.org", options=options | {"subdomains": True}).problems == ("our-name",)
    assert found("notexample.org", options=options | {"subdomains": True}).problems == ("no-such-name",)


def test_a_name_that_does_not_exist_is_asked_for_twice_and_told_from_one_without_records():
    dns = FakeDns()
    assert found("no.example", dns) == HeloName("no.example", ("no-such-name",), False)
    assert dns.asked == [("no.example", "A"), ("no.example", "AAAA")]
    dns = FakeDns(txt={"a.example": ["text"]})
    assert found("a.example", dns) == HeloName("a.example", ("unresolvable",), False)
    assert dns.asked == [("a.example", "A"), ("a.example", "AAAA"), ("a.example", "MX")]


def test_a_null_mx_does_not_make_a_name_resolve():
    assert found("a.example", FakeDns(mx={"a.example": [(0, "")]})).problems == ("unresolvable",)


def test_dns_that_does_not_answer_is_nothing_against_the_name():
    assert found("a.example", FakeDns(fails=["a.example"])) == HeloName("a.example")


def test_look_ups_end_when_their_time_is_over():
    class Stuck(FakeDns):
        async def lookup(self, name, rdtype):
            await asyncio.Event().wait()

    assert found("a.example", Stuck(), {"wait": "20ms"}) == HeloName("a.example")


def test_trusted_clients_are_looked_at_and_not_looked_up():
    dns = FakeDns()
    assert found("no.example", dns, trusted=True) == HeloName("no.example")
    assert found("no.example", dns, {"resolve": False}) == HeloName("no.example")
    assert dns.asked == []


@given(st.text(max_size=300))
def test_whatever_a_client_calls_itself_there_is_a_finding(helo):
    assert set(found(helo).problems) <= set(HeloProblem)


def judge(*problems: str, options=None, recipient="anna@example.org", trusted=False):
    session = make_session("192.0.2.7", trusted=trusted)
    finding = HeloName("a.example", problems)
    return Bench().judge("helo", options, session=session, recipient=make_recipient(recipient), findings=[finding])


@pytest.mark.parametrize("problem", ["bare-address", "literal-mismatch", "our-name"])
def test_what_no_honest_server_says_is_refused(problem):
    verdict = judge(problem)
    assert str(verdict.reply) == "550 5.7.1 host name in HELO is not acceptable"
    assert verdict.reason == f"HELO a.example: {problem}"


@pytest.mark.parametrize("problem", ["not-a-name", "single-label", "no-such-name", "unresolvable"])
def test_what_may_be_carelessness_is_not_refused_unless_told_so(problem):
    assert judge(problem) == PROCEED
    assert str(judge(problem, options={"reject": [problem]}).reply).startswith("550 5.7.1 ")
    verdict = judge(problem, options={"defer": [problem]})
    assert str(verdict.reply) == "450 4.7.1 host name in HELO is not acceptable, try again later"


def test_trusted_clients_pass_and_postmaster_can_be_written_to():
    assert judge() == PROCEED
    assert judge("our-name", trusted=True) == PROCEED
    assert judge("our-name", recipient="POSTMASTER@example.org") == PROCEED
    assert judge("our-name", recipient="postmaster") == PROCEED
    assert judge("our-name", recipient="postmaster", options={"exempt": []}).decisive


def test_what_is_refused_as_the_policy_helo_identity_does_is_refused_here_too():
    for helo in ("mx.example.org", "192.0.2.7"):
        session = make_session("192.0.2.7", helo=helo)
        old = Bench().judge("helo-identity", {"own_names": ["mx.example.org"]}, session=session)
        new = Bench().judge("helo", session=session, findings=[found(helo)])
        assert (old.action, old.reply.code, old.reply.detail) == (new.action, new.reply.code, new.reply.detail)


@pytest.mark.parametrize(
    "options",
    [
        {"reject": ["no-name"]},
        {"reject": ["our-name"], "defer": ["our-name"]},
        {"defer": ["our-name"]},
        {"own_names": ["*.example.org"]},
        {"own_names": ["b\u00fccher.example"]},
        {"wait": 0},
        {"own_name": ["example.org"]},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        HeloOptions.model_validate(options)


NAME = "a.test."
CHAIN = [f"{NAME} 60 IN CNAME c0.test."] + [f"c{i}.test. 60 IN CNAME c{i + 1}.test." for i in range(4)]


@pytest.mark.parametrize(
    ("records", "faults", "expected"),
    [
        ([f"{NAME} 60 IN A 192.0.2.7"], {}, HeloName("a.test", (), True)),
        ([f"{NAME} 60 IN MX 10 mx.test."], {}, HeloName("a.test", (), True)),
        ([*CHAIN, "c4.test. 60 IN AAAA 2001:db8::1"], {}, HeloName("a.test", (), True)),
        ([f"{NAME} 60 IN A 192.0.2.7"], {NAME: Fault.TRUNCATED}, HeloName("a.test", (), True)),
        ([f"{NAME} 60 IN MX 0 ."], {}, HeloName("a.test", ("unresolvable",), False)),
        ([f"{NAME} 60 IN TXT x"], {}, HeloName("a.test", ("unresolvable",), False)),
        (["b.test. 60 IN A 192.0.2.7"], {}, HeloName("a.test", ("no-such-name",), False)),
        ([f"{NAME} 60 IN A 192.0.2.7"], {NAME: Fault.SERVFAIL}, HeloName("a.test")),
        ([f"{NAME} 60 IN A 192.0.2.7"], {NAME: Fault.SILENT}, HeloName("a.test")),
        ([f"{NAME} 60 IN A 192.0.2.7"], {NAME: Fault.TRUNCATED_TCP_GARBAGE}, HeloName("a.test")),
        ([f"{NAME} 60 IN CNAME {NAME}"], {}, HeloName("a.test")),
    ],
)
def test_with_a_real_nameserver_each_fault_has_its_finding(records, faults, expected):
    async def check() -> None:
        clock = ManualClock()
        async with DnsServer(records, faults=faults) as server:
            dns = Resolver(DnsOptions((server.address,), 0.2), clock)
            services = Services(dns, FakeState(clock), clock, FakeDirectory(), "mx.test", "mx.test")
            plugin = HeloPlugin(HeloOptions(), services)
            await plugin.start()
            assert await plugin.named(make_session(helo="a.test")) == expected
            await dns.close()

    asyncio.run(check())
