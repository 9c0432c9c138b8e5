"""The rdns plugin on the bench, and against a nameserver on loopback."""

from __future__ import annotations

import asyncio
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.sdk import PROCEED, Action, AuthResult, ReverseName, Services, authentication_results
from gateway.sdk.testing import Bench, FakeDirectory, FakeDns, FakeState, ManualClock, make_recipient, make_session
from gateway.services.dns import DnsOptions, Resolver
from plugins.rdns import RdnsOptions, RdnsPlugin, looks_generic
from tests.contract.dnsserver import DnsServer, Fault

CLIENT = make_session("192.0.2.7")
PTR = "7.2.0.192.in-addr.arpa"


def found(dns: FakeDns, session=CLIENT, options=None) -> ReverseName:
    finding = Bench(dns=dns).find(RdnsPlugin, options, session=session)
    assert isinstance(finding, ReverseName)
    return finding


def test_a_name_that_leads_back_is_confirmed():
    dns = FakeDns(ptr={PTR: ["Mail.Sender.example"]}, a={"mail.sender.example": ["192.0.2.9", "192.0.2.7"]})
    names = ("mail.sender.example",)
    assert found(dns) == ReverseName(AuthResult.PASS, "192.0.2.7", "mail.sender.example", names)


def test_an_ipv6_client_is_looked_up_by_nibbles_and_its_names_for_ipv6_addresses():
    pointer = ipaddress.ip_address("2001:db8::1").reverse_pointer
    dns = FakeDns(ptr={pointer: ["six.example"]}, aaaa={"six.example": ["2001:0db8:0:0::1"]})
    assert found(dns, make_session("2001:db8::1")).result is AuthResult.PASS
    assert dns.asked == [(pointer, "PTR"), ("six.example", "AAAA")]


def test_an_ipv4_client_in_ipv6_form_is_looked_up_as_ipv4():
    dns = FakeDns(ptr={PTR: ["a.example"]}, a={"a.example": ["192.0.2.7"]})
    finding = found(dns, make_session("::ffff:192.0.2.7"))
    assert (finding.result, finding.client) == (AuthResult.PASS, "192.0.2.7")


def test_names_that_lead_elsewhere_or_nowhere_are_a_fail():
    dns = FakeDns(ptr={PTR: ["b.example", "a.example"]}, a={"a.example": ["192.0.2.9"]})
    finding = found(dns)
    assert (finding.result, finding.name, finding.names) == (AuthResult.FAIL, "", ("a.example", "b.example"))


def test_one_of_several_names_is_enough_and_the_same_one_is_taken_each_time():
    names = ["c.example", "b.example", "a.example"]
    dns = FakeDns(ptr={PTR: names}, a={"c.example": ["192.0.2.7"], "b.example": ["192.0.2.7"]}, slow={"b.example": 9})
    assert found(dns).name == "b.example"
    assert found(FakeDns(ptr={PTR: names[::-1]}, a={"b.example": ["192.0.2.7"]})).name == "b.example"


def test_a_client_without_a_name_is_a_permerror():
    assert found(FakeDns()) == ReverseName(AuthResult.PERMERROR, "192.0.2.7", problem="no PTR record")
    assert found(FakeDns(a={f"x.{PTR}": ["127.0.0.1"]})).result is AuthResult.PERMERROR


def test_dns_that_does_not_answer_is_a_temperror_and_the_names_are_kept():
    assert found(FakeDns(fails=[PTR])).result is AuthResult.TEMPERROR
    finding = found(FakeDns(ptr={PTR: ["a.example", "b.example"]}, a={"b.example": []}, fails=["a.example"]))
    assert (finding.result, finding.names) == (AuthResult.TEMPERROR, ("a.example", "b.example"))


def test_a_name_that_does_not_answer_does_not_count_when_another_leads_back():
    dns = FakeDns(ptr={PTR: ["a.example", "b.example"]}, a={"b.example": ["192.0.2.7"]}, fails=["a.example"])
    assert found(dns).result is AuthResult.PASS


def test_at_most_ten_names_are_followed():
    names = [f"n{i:02}.example" for i in range(50)]
    dns = FakeDns(ptr={PTR: names}, a={"n10.example": ["192.0.2.7"]})
    finding = found(dns)
    assert (finding.result, len(finding.names), len(dns.asked)) == (AuthResult.FAIL, 10, 11)
    assert finding.problem == "no name leads back, 40 more not looked at"


@pytest.mark.parametrize("stuck", [PTR, "slow.example"])
def test_look_ups_end_when_their_time_is_over_and_what_was_confirmed_by_then_counts(stuck):
    class Stuck(FakeDns):
        async def lookup(self, name, rdtype):
            if name == stuck:
                await asyncio.Event().wait()
            return await super().lookup(name, rdtype)

    dns = Stuck(ptr={PTR: ["good.example", "slow.example"]}, a={"good.example": ["192.0.2.7"]})
    expected = AuthResult.TEMPERROR if stuck == PTR else AuthResult.PASS
    assert found(dns, options={"wait": "20ms"}).result is expected


def test_the_result_stands_in_the_field_as_iprev():
    passed = ReverseName(AuthResult.PASS, "2001:db8::1", "six.example", ("six.example",))
    assert authentication_results("mx.test", [passed]) == 'mx.test;\n\tiprev=pass policy.iprev="2001:db8::1"'


GENERIC = [
    "192-0-2-7.isp.example.net",
    "7.2.0.192.clients.example.net",
    "host192-000-002-007.isp.example.net",
    "ip192x0x2x7.isp.example.net",
    "192000002007.isp.example.net",
    "pC0000207.isp.example.net",
    "dyn-4711.isp.example.net",
    "a.DHCP.isp.example.net",
    "dsl17.example.net",
    "cust.pool.isp.example.net",
]
HONEST = [
    "mail.example.net",
    "dsl.example",
    "mail.dsl.example",
    "mail-2-7.out.example.net",
    "mx192.example.net",
    "a2-7.smtp-out.example.net",
    "mail-lf1-f54.example.net",
    "dynamo.example.net",
    "spooler.example.net",
    "192-0-2-8.isp.example.net",
    "",
    ".",
]


@pytest.mark.parametrize("name", GENERIC)
def test_a_name_that_holds_the_address_or_a_word_is_generic(name):
    assert looks_generic(name, CLIENT.client)


@pytest.mark.parametrize("name", HONEST)
def test_other_names_are_not_generic(name):
    assert not looks_generic(name, CLIENT.client)


@pytest.mark.parametrize(
    ("name", "generic"),
    [
        ("2001-db8-1--5a1b-22ff-fe3c-77.isp.example.net", True),
        ("20010db800010000" + "5a1b22fffe3c0077.isp.example.net", True),
        ("p5a1b22fffe3c0077.isp.example.net", True),
        (".".join(reversed("20010db8000100005a1b22fffe3c0077")) + ".isp.example.net", True),
        ("mail.example.net", False),
        ("n0077.isp.example.net", False),
    ],
)
def test_the_same_for_ipv6(name, generic):
    assert looks_generic(name, ipaddress.ip_address("2001:db8:1::5a1b:22ff:fe3c:77")) is generic


def test_an_address_that_is_nearly_all_zeros_makes_no_name_generic():
    assert not looks_generic("00000000-0000-0000.mail.example.net", ipaddress.ip_address("2001:db8::"))


def test_of_several_names_all_must_be_generic():
    dynamic = {"dyn-1.isp.example.net": ["192.0.2.7"], "mail.example.net": ["192.0.2.7"]}
    assert not found(FakeDns(ptr={PTR: list(dynamic)}, a=dynamic)).generic
    # A name that does not lead back may be anybody's.
    assert found(FakeDns(ptr={PTR: list(dynamic)}, a={"dyn-1.isp.example.net": ["192.0.2.7"]})).generic
    assert found(FakeDns(ptr={PTR: ["dyn-1.isp.example.net"]})).generic


def test_the_words_can_be_chosen():
    dns = FakeDns(ptr={PTR: ["home-1.isp.example.net"]}, a={"home-1.isp.example.net": ["192.0.2.7"]})
    assert not found(dns).generic
    assert found(dns, options={"words": ["Home"]}).generic


@given(st.text(max_size=400), st.ip_addresses())
def test_whatever_a_name_is_the_guess_ends(name, client):
    assert looks_generic(name, client) in (True, False)


@given(st.lists(st.text(max_size=300), max_size=20))
def test_whatever_names_the_dns_gives_there_is_a_result(names):
    class Hostile(FakeDns):
        async def lookup(self, name, rdtype):
            answer = await super().lookup(name, rdtype)
            return answer if rdtype != "PTR" else type(answer)(answer.status.OK, tuple(names))

    finding = found(Hostile())
    assert finding.result in (AuthResult.FAIL, AuthResult.PERMERROR)
    assert len(finding.names) <= 10
    assert "\n" not in authentication_results("mx.test", [finding]).replace("\n\t", "")


NOBODY = ReverseName(AuthResult.PERMERROR, "192.0.2.7", problem="no PTR record")
STRANGE = ReverseName(AuthResult.FAIL, "192.0.2.7", names=("a.example",))
TROUBLE = ReverseName(AuthResult.TEMPERROR, "192.0.2.7", problem="no answer to PTR")
DYNAMIC = ReverseName(AuthResult.PASS, "192.0.2.7", "dyn.a.example", ("dyn.a.example",), generic=True)
STRANGE_DYNAMIC = ReverseName(AuthResult.FAIL, "192.0.2.7", names=("dyn.a.example",), generic=True)
EVERYTHING = {"nameless": "reject", "mismatch": "reject", "generic": "reject"}


def judge(finding, options=None, recipient="anna@example.org", trusted=False):
    session = make_session("192.0.2.7", trusted=trusted)
    return Bench().judge("rdns", options, session=session, recipient=make_recipient(recipient), findings=[finding])


@pytest.mark.parametrize("finding", [NOBODY, STRANGE, TROUBLE, DYNAMIC, STRANGE_DYNAMIC])
def test_nobody_is_refused_by_default(finding):
    assert judge(finding) == PROCEED


@pytest.mark.parametrize(("option", "finding"), [("nameless", NOBODY), ("mismatch", STRANGE), ("generic", DYNAMIC)])
def test_each_case_can_be_rejected_or_deferred(option, finding):
    assert str(judge(finding, {option: "reject"}).reply) == "550 5.7.25 host name is not acceptable"
    verdict = judge(finding, {option: "defer"})
    assert str(verdict.reply) == "450 4.7.25 host name is not acceptable, try again later"
    for other in {"nameless", "mismatch", "generic"} - {option}:
        assert judge(finding, {other: "reject"}) == PROCEED


def test_of_two_reactions_the_harder_one_holds():
    assert judge(STRANGE_DYNAMIC, {"mismatch": "defer", "generic": "reject"}).action is Action.REJECT
    assert judge(STRANGE_DYNAMIC, {"mismatch": "reject", "generic": "defer"}).action is Action.REJECT


def test_trouble_with_dns_is_never_a_refusal_for_good():
    for finding in (TROUBLE, ReverseName(AuthResult.TEMPERROR, "192.0.2.7", "", ("dyn.a.example",), generic=True)):
        assert judge(finding, EVERYTHING) == PROCEED
        verdict = judge(finding, EVERYTHING | {"defer_temperror": True})
        assert str(verdict.reply) == "450 4.7.25 cannot look up your host name now"


@pytest.mark.parametrize("finding", [NOBODY, STRANGE, DYNAMIC])
def test_trusted_clients_pass_and_postmaster_can_be_written_to(finding):
    assert judge(finding, EVERYTHING).decisive
    assert judge(finding, EVERYTHING, trusted=True) == PROCEED
    assert judge(finding, EVERYTHING, "Postmaster@example.org") == PROCEED
    assert judge(finding, EVERYTHING | {"exempt": []}, "postmaster@example.org").decisive


@pytest.mark.parametrize(
    "options",
    [{"nameless": True}, {"generic": "drop"}, {"wait": 0}, {"wait": 5}, {"words": ["no-word"]}, {"words": [""]}],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        RdnsOptions.model_validate(options)


CHAIN = [f"{PTR}. 60 IN CNAME c0.test."] + [f"c{i}.test. 60 IN CNAME c{i + 1}.test." for i in range(4)]
BIG = [f"{PTR}. 60 IN PTR host-with-a-long-name-number-{i:02}.sender.test." for i in range(40)]


@pytest.mark.parametrize(
    ("records", "faults", "result"),
    [
        ([f"{PTR}. 60 IN PTR a.test.", "a.test. 60 IN A 192.0.2.7"], {}, "pass"),
        (
            [*CHAIN, "c4.test. 60 IN PTR a.test.", "a.test. 60 IN CNAME b.test.", "b.test. 60 IN A 192.0.2.7"],
            {},
            "pass",
        ),
        ([f"{PTR}. 60 IN PTR a.test.", "a.test. 60 IN A 192.0.2.7"], {f"{PTR}.": Fault.TRUNCATED}, "pass"),
        (
            [*BIG, "host-with-a-long-name-number-03.sender.test. 60 IN A 192.0.2.7"],
            {f"{PTR}.": Fault.TRUNCATED},
            "pass",
        ),
        ([f"{PTR}. 60 IN PTR a.test.", "a.test. 60 IN A 192.0.2.7"], {f"{PTR}.": Fault.SERVFAIL}, "temperror"),
        ([f"{PTR}. 60 IN PTR a.test.", "a.test. 60 IN A 192.0.2.7"], {f"{PTR}.": Fault.SILENT}, "temperror"),
        ([f"{PTR}. 60 IN PTR a.test.", "a.test. 60 IN A 192.0.2.7"], {"a.test.": Fault.SERVFAIL}, "temperror"),
        ([f"{PTR}. 60 IN PTR a.test.", "a.test. 60 IN A 192.0.2.7"], {"a.test.": Fault.SILENT}, "temperror"),
        ([f"{PTR}. 60 IN PTR a.test.", "a.test. 60 IN A 192.0.2.7"], {"a.test.": Fault.ONLY_FORGED}, "temperror"),
        ([f"{PTR}. 60 IN PTR a.test.", "a.test. 60 IN A 192.0.2.7"], {"a.test.": Fault.WRONG_ID}, "pass"),
        ([f"{PTR}. 60 IN PTR a.test.", "a.test. 60 IN A 203.0.113.1"], {}, "fail"),
        (["a.test. 60 IN A 192.0.2.7"], {}, "permerror"),
    ],
)
def test_with_a_real_nameserver_each_fault_has_its_result(records, faults, result):
    async def check() -> None:
        clock = ManualClock()
        async with DnsServer(records, faults=faults) as server:
            dns = Resolver(DnsOptions((server.address,), 0.2), clock)
            services = Services(dns, FakeState(clock), clock, FakeDirectory(), "mx.test", "mx.test")
            assert (await RdnsPlugin(RdnsOptions(), services).confirmed(CLIENT)).result == result
            await dns.close()

    asyncio.run(check())


def test_with_a_real_nameserver_ten_names_cost_the_time_of_one():
    names = [f"n{i}.test." for i in range(10)]
    records = [f"{PTR}. 60 IN PTR {name}" for name in names] + [f"{name} 0 IN A 192.0.2.7" for name in names]

    async def check() -> None:
        clock = ManualClock()
        async with DnsServer(records, delays=dict.fromkeys(names, 0.05)) as server:
            dns = Resolver(DnsOptions((server.address,), 2.0), clock)
            services = Services(dns, FakeState(clock), clock, FakeDirectory(), "mx.test", "mx.test")
            plugin = RdnsPlugin(RdnsOptions(), services)
            took = []
            for _ in range(5):
                started = asyncio.get_running_loop().time()
                assert (await plugin.confirmed(CLIENT)).result is AuthResult.PASS
                took.append(asyncio.get_running_loop().time() - started)
            # The best of five, so that a busy machine does not fail it; one after the other would be 500 ms.
            assert 0.05 <= min(took) < 0.3
            await dns.close()

    asyncio.run(check())
