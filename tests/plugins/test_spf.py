"""The spf plugin on the bench, and with the real resolver against a nameserver on loopback."""

from __future__ import annotations

import asyncio
import threading

import dns.resolver
import pytest
import spf as pyspf
from pydantic import ValidationError

from gateway.sdk import PROCEED, Address, MailParameters, Services, Spf, SpfResult, Transaction
from gateway.sdk.testing import (
    Bench,
    FakeDirectory,
    FakeDns,
    FakeState,
    ManualClock,
    make_session,
    make_transaction,
)
from gateway.services.clock import SystemClock
from gateway.services.dns import DnsOptions, Resolver
from gateway.services.tasks import Tasks
from plugins.spf import SpfOptions, SpfPlugin
from tests.contract.dnsserver import DnsServer, Fault

CLIENT = "192.0.2.7"


@pytest.fixture(autouse=True)
def nothing_asks_a_nameserver_behind_our_back(monkeypatch):
    """pyspf's own ways to the DNS must never be taken."""

    def never(*args, **kwargs):
        raise AssertionError("asked outside the resolver")

    monkeypatch.setattr(pyspf, "DNSLookup", never)
    monkeypatch.setattr(dns.resolver, "query", never)
    monkeypatch.setattr(dns.resolver, "resolve", never)


def found(fake: FakeDns, *, sender="ben@sender.test", helo="mail.sender.test", client=CLIENT, **options) -> Spf:
    transaction = make_transaction(make_session(client, helo=helo), sender=sender)
    finding = Bench(dns=fake).find(SpfPlugin, options, transaction=transaction)
    assert isinstance(finding, Spf)
    return finding


def records(**txt: str) -> FakeDns:
    return FakeDns(txt={name.replace("_", "."): [text] for name, text in txt.items()})


@pytest.mark.parametrize(
    ("record", "result"),
    [
        ("v=spf1 ip4:192.0.2.0/24 -all", SpfResult.PASS),
        ("v=spf1 -all", SpfResult.FAIL),
        ("v=spf1 ~all", SpfResult.SOFTFAIL),
        ("v=spf1 ?all", SpfResult.NEUTRAL),
        ("v=spf1 ip4:1.2.3.4", SpfResult.NEUTRAL),
        ("v=spf1 nonsense -all", SpfResult.PERMERROR),
        ("v=spf1 ip4:1.2.3.4.5 -all", SpfResult.PERMERROR),
        ("v=spf10 -all", SpfResult.NONE),
        ("something else", SpfResult.NONE),
    ],
)
def test_records_give_their_results(record, result):
    finding = found(records(sender_test=record))
    assert (finding.result, finding.domain) == (result, "sender.test")


def test_both_identities_are_judged():
    fake = records(sender_test="v=spf1 ip4:192.0.2.7 -all", mail_sender_test="v=spf1 -all")
    finding = found(fake)
    assert (finding.result, finding.helo, finding.helo_domain) == (SpfResult.PASS, SpfResult.FAIL, "mail.sender.test")


def test_the_null_senders_identity_is_postmaster_at_helo():
    fake = FakeDns(
        txt={"mail.sender.test": ["v=spf1 exists:%{l}.%{o}.check.test -all"]},
        a={"postmaster.mail.sender.test.check.test": ["127.0.0.1"]},
    )
    finding = found(fake, sender="")
    assert (finding.result, finding.helo, finding.domain) == (SpfResult.PASS, SpfResult.PASS, "mail.sender.test")


@pytest.mark.parametrize("helo", ["[192.0.2.7]", "localhost", "", "192.0.2.7", "a" * 64 + ".test", "..", "-"])
def test_a_helo_that_is_no_domain_has_no_record(helo):
    assert found(FakeDns(), helo=helo, sender="").helo is SpfResult.NONE


def test_a_domain_without_a_record_costs_one_question_and_no_thread():
    fake = FakeDns()
    before = threading.active_count()
    finding = found(fake, sender="x@nowhere.test", helo="[192.0.2.7]")
    assert finding.result is SpfResult.NONE
    assert fake.asked == [("nowhere.test", "TXT")]
    assert threading.active_count() == before


def test_dns_trouble_is_temperror_at_the_first_question_and_at_later_ones():
    assert found(FakeDns(fails={"sender.test"})).result is SpfResult.TEMPERROR
    fake = FakeDns(txt={"sender.test": ["v=spf1 include:broken.test -all"]}, fails={"broken.test"})
    finding = found(fake)
    assert finding.result is SpfResult.TEMPERROR
    assert "SERVFAIL" in finding.problem


def test_an_explanation_is_kept_for_the_record_in_printable_form():
    fake = FakeDns(
        txt={"sender.test": ["v=spf1 -all exp=why.sender.test"], "why.sender.test": [b"No\tto %{i}\r\nX: y"]}
    )
    assert found(fake).explanation == "No?to 192.0.2.7??X: y"
    assert found(records(sender_test="v=spf1 -all")).explanation == ""


def test_ten_mechanisms_that_look_up_are_allowed_and_eleven_are_permerror():
    for count, result in ((10, SpfResult.PASS), (11, SpfResult.PERMERROR)):
        hosts = {f"h{i}.test": ["198.51.100.1"] for i in range(count - 1)} | {f"h{count - 1}.test": [CLIENT]}
        record = "v=spf1 " + " ".join(f"a:{h}" for h in hosts) + " -all"
        assert found(FakeDns(txt={"sender.test": [record]}, a=hosts)).result is result


def test_a_redirect_counts_when_it_is_followed_and_not_when_it_is_only_there():
    hosts = {f"h{i}.test": ["198.51.100.1"] for i in range(9)} | {"h9.test": [CLIENT]}
    ten = "v=spf1 " + " ".join(f"a:{h}" for h in hosts)
    for rest in ("redirect=more.test", "-all redirect=more.test"):
        fake = FakeDns(txt={"sender.test": [f"{ten} {rest}"], "more.test": ["v=spf1 -all"]}, a=hosts)
        assert (found(fake).result, found(fake).lookups) == (SpfResult.PASS, 10)
        stranger = found(fake, client="203.0.113.1")
        assert stranger.result is (SpfResult.FAIL if "-all" in rest else SpfResult.PERMERROR)
    broken = found(records(sender_test="v=spf1 nonsense redirect=more.test"))
    assert (broken.result, broken.lookups) == (SpfResult.PERMERROR, 0)
    nine = ten.removesuffix(" a:h9.test")
    fake = FakeDns(txt={"sender.test": [f"{nine} redirect=more.test"], "more.test": ["v=spf1 mx -all"]}, a=hosts)
    assert found(fake).result is SpfResult.PERMERROR
    chain = {f"r{i}.test": [f"v=spf1 redirect=r{i + 1}.test"] for i in range(10)} | {"r10.test": ["v=spf1 -all"]}
    assert found(FakeDns(txt=chain | {"sender.test": ["v=spf1 include:r0.test +all"]})).result is SpfResult.PERMERROR
    chain["sender.test"] = chain.pop("r0.test")
    assert found(FakeDns(txt=chain)).result is SpfResult.FAIL


def test_a_name_that_is_too_long_loses_labels_from_the_left_until_it_fits():
    inner = ".".join(["x" * 60] * 3)
    names = f"%{{i}}.%{{l}}.{inner}.sender.test"
    fake = FakeDns(txt={"sender.test": [f"v=spf1 exists:{names} -all"]}, a={f"ne.{inner}.sender.test": ["127.0.0.2"]})
    long = "o" * 57 + ".ne"
    assert len(f"{long}.{inner}.sender.test") > 253
    assert found(fake, sender=f"{long}@sender.test", client="2001:db8::7").result is SpfResult.PASS


def test_reverse_names_that_lead_nowhere_are_no_match_and_spare_nobody_a_fail():
    fake = FakeDns(
        txt={"sender.test": ["v=spf1 ptr -all"]},
        ptr={"7.2.0.192.in-addr.arpa": [f"n{i}.nowhere.test" for i in range(5)]},
    )
    assert found(fake).result is SpfResult.FAIL


def test_two_void_lookups_are_allowed_and_three_are_permerror_unless_told_otherwise():
    fake = records(sender_test="v=spf1 a:v1.test a:v2.test a:v3.test ip4:192.0.2.7 -all")
    finding = found(fake)
    assert finding.result is SpfResult.PERMERROR
    assert "Void lookup limit of 2" in finding.problem
    assert found(fake, void_limit=3).result is SpfResult.PASS


def test_the_finding_says_how_many_lookups_each_identity_cost_and_how_many_were_void():
    fake = FakeDns(
        txt={
            "sender.test": ["v=spf1 a:four.test include:more.test -all"],
            "more.test": ["v=spf1 mx ip6:2001:db8::/32 -all"],
            "mail.sender.test": ["v=spf1 exists:a.test exists:b.test exists:c.test -all"],
        },
        a={"four.test": ["192.0.2.1"]},
        mx={"more.test": [(10, "four.test")]},
    )
    finding = found(fake, client="2001:db8::7")
    assert (finding.result, finding.lookups, finding.void_lookups) == (SpfResult.PASS, 3, 2)
    assert (finding.helo, finding.helo_lookups, finding.helo_void_lookups) == (SpfResult.PERMERROR, 3, 3)
    null = found(fake, client="2001:db8::7", sender="")
    assert (null.lookups, null.void_lookups, null.helo_lookups, null.helo_void_lookups) == (3, 3, 3, 3)
    assert found(FakeDns()).lookups == 0


def test_an_ipv6_client_makes_void_lookups_of_ipv4_hosts_and_the_record_names_them():
    fake = FakeDns(
        txt={"sender.test": ["v=spf1 a:h1.test a:h2.test a:h3.test ip6:2001:db8::/32 -all"]},
        a={f"h{i}.test": ["198.51.100.1"] for i in range(1, 4)},
    )
    finding = found(fake, client="2001:db8::7")
    assert (finding.result, finding.void_lookups) == (SpfResult.PERMERROR, 3)
    assert finding.problem == (
        "SPF Permanent Error: Void lookup limit of 2 exceeded: AAAA h1.test, AAAA h2.test, AAAA h3.test"
    )
    assert found(fake, client="2001:db8::7", void_limit=3).result is SpfResult.PASS
    assert found(fake, client="198.51.100.1").void_lookups == 0


def test_explanations_are_looked_up_for_a_fail_only_and_never_for_included_records():
    def asked(client: str) -> bool:
        fake = FakeDns(
            txt={
                "sender.test": ["v=spf1 ip4:192.0.2.7 include:more.test -all exp=why.test"],
                "more.test": ["v=spf1 ip4:192.0.2.8 -all exp=never.test"],
                "why.test": ["because"],
                "never.test": ["not asked for"],
            }
        )
        finding = found(fake, client=client)
        assert finding.explanation == ("because" if finding.result is SpfResult.FAIL else "")
        assert ("never.test", "TXT") not in fake.asked
        return ("why.test", "TXT") in fake.asked

    assert not asked("192.0.2.7")
    assert not asked("192.0.2.8")
    assert asked("192.0.2.9")


def test_an_explanation_whose_nameserver_does_not_answer_changes_nothing():
    fake = FakeDns(txt={"sender.test": ["v=spf1 -all exp=why.test"]}, fails={"why.test"})
    finding = found(fake)
    assert (finding.result, finding.explanation, finding.problem) == (SpfResult.FAIL, "", "")


def test_a_redirect_leaves_the_explanation_behind_and_takes_its_targets():
    fake = records(
        sender_test="v=spf1 redirect=next.test exp=left.test",
        left_test="left behind",
        next_test="v=spf1 -all exp=why.%{d}",
        why_next_test="by order of %{d}, not %{o}",
    )
    assert found(fake).explanation == "by order of next.test, not sender.test"


def test_a_sender_without_a_local_part_has_that_of_postmaster():
    fake = records(sender_test="v=spf1 -all exp=why.test", why_test="%{l} may not")
    sender = Address("", "sender.test")
    session = make_session(CLIENT, helo="[192.0.2.7]")
    finding = Bench(dns=fake).find(SpfPlugin, transaction=Transaction("t", session, sender, MailParameters()))
    assert finding.explanation == "postmaster may not"


def test_eleven_mx_are_permerror():
    hosts = [(i, f"m{i}.test") for i in range(11)]
    fake = FakeDns(txt={"sender.test": ["v=spf1 mx -all"]}, mx={"sender.test": hosts})
    assert found(fake).result is SpfResult.PERMERROR


def test_an_include_of_itself_ends():
    assert found(records(sender_test="v=spf1 include:other.test", other_test="v=spf1 include:sender.test")).result is (
        SpfResult.PERMERROR
    )


def test_two_records_are_permerror():
    fake = FakeDns(txt={"sender.test": ["v=spf1 -all", "v=spf1 +all"]})
    assert found(fake).result is SpfResult.PERMERROR


def test_trouble_with_reverse_names_is_no_match_and_no_error():
    fake = FakeDns(txt={"sender.test": ["v=spf1 ptr ip4:192.0.2.7 -all"]}, fails={"7.2.0.192.in-addr.arpa"})
    assert found(fake).result is SpfResult.PASS
    fake = FakeDns(
        txt={"sender.test": ["v=spf1 ptr -all"]},
        ptr={"7.2.0.192.in-addr.arpa": ["bad.sender.test", "good.sender.test"]},
        a={"good.sender.test": [CLIENT]},
        fails={"bad.sender.test"},
    )
    assert found(fake).result is SpfResult.PASS


def test_ipv6_clients_are_judged_by_their_addresses():
    fake = FakeDns(txt={"sender.test": ["v=spf1 a:h.test ip6:2001:db8:1::/48 -all"]}, aaaa={"h.test": ["2001:db8::7"]})
    for client, result in (("2001:db8::7", "pass"), ("2001:db8:1::9", "pass"), ("2001:db8:2::9", "fail")):
        assert found(fake, client=client).result == result


def test_an_at_sign_in_a_quoted_local_part_does_not_change_the_domain():
    fake = records(sender_test="v=spf1 -all", trusted_test="v=spf1 +all")
    session = make_session(CLIENT, helo="[192.0.2.7]")
    sender = Address("x@trusted.test", "sender.test")
    finding = Bench(dns=fake).find(SpfPlugin, transaction=Transaction("t", session, sender, MailParameters()))
    assert (finding.result, finding.domain) == (SpfResult.FAIL, "sender.test")


def test_u_labels_are_looked_up_as_a_labels():
    fake = FakeDns(txt={"xn--bcher-kva.test": ["v=spf1 +all"]})
    finding = found(fake, sender="ben@B\u00fccher.test")
    assert (finding.result, finding.domain) == (SpfResult.PASS, "xn--bcher-kva.test")


@pytest.mark.parametrize(
    "record",
    [
        "v=spf1 a:%{d" + "9" * 5000 + "} -all",
        "v=spf1 exists:%{l" + "0" * 100 + "r}.x.test -all",
        "v=spf1 ip4:0.0.0.0/99999999999999999999 -all",
        "v=spf1 include:" + "a." * 500 + "test -all",
        "v=spf1 redirect=" + "%{d}." * 60 + " exp=%{d}",
        "v=spf1 \udc80\udcff a:\x00.test -all".encode("utf-8", "surrogateescape"),
        "v=spf1 mx:[::1] ip6:::::: -all",
        "v=spf1 " + "x=%{d}%{l}%{s} " * 300,
    ],
)
def test_hostile_records_give_a_result_and_no_exception(record):
    fake = FakeDns(txt={"sender.test": [record]})
    assert isinstance(found(fake).result, SpfResult)


def test_a_record_too_long_to_be_honest_is_permerror():
    record = "v=spf1 " + "ip4:198.51.100.1 " * 2000
    finding = found(records(sender_test=record))
    assert finding.result is SpfResult.PERMERROR
    assert "longer than" in finding.problem


def test_when_the_time_is_over_it_is_temperror():
    class Slow(FakeDns):
        """Every answer takes seven seconds of the bench's clock."""

        clock: ManualClock

        async def lookup(self, name, rdtype):
            self.clock.advance(7)
            return await super().lookup(name, rdtype)

    fake = Slow(
        txt={"sender.test": ["v=spf1 a:h1.test a:h2.test a:h3.test a:h4.test ip4:192.0.2.7 -all"]},
        a={f"h{i}.test": ["198.51.100.1"] for i in range(1, 5)},
    )
    bench = Bench(dns=fake)
    fake.clock = bench.clock
    session = make_session(CLIENT, helo="[192.0.2.7]")
    finding = bench.find(SpfPlugin, transaction=make_transaction(session, sender="ben@sender.test"))
    assert (finding.result, finding.problem) == (SpfResult.TEMPERROR, "SPF Temporary Error: time is over")


def test_trusted_and_skipped_clients_are_not_checked():
    fake = records(sender_test="v=spf1 -all")
    trusted = make_transaction(make_session(CLIENT, trusted=True), sender="ben@sender.test")
    bench = Bench(dns=fake)
    assert bench.find(SpfPlugin, transaction=trusted).result is SpfResult.NONE
    assert bench.find(SpfPlugin, {"skip_trusted": False}, transaction=trusted).result is SpfResult.FAIL
    assert found(fake, skip=["192.0.2.0/24", "2001:db8::/32"]).result is SpfResult.NONE


def test_a_cancelled_check_asks_nothing_more():
    async def check() -> None:
        stuck = asyncio.Event()

        class Stuck(FakeDns):
            async def lookup(self, name, rdtype):
                if name == "stuck.test":
                    stuck.set()
                    await asyncio.Event().wait()
                return await super().lookup(name, rdtype)

        clock = SystemClock()
        fake = Stuck(txt={"sender.test": ["v=spf1 a:stuck.test a:later.test -all"]})
        services = Services(fake, FakeState(clock), clock, FakeDirectory(), "mx.test", "mx.test")
        plugin = SpfPlugin(SpfOptions(), services)
        await plugin.start()
        transaction = make_transaction(make_session(CLIENT, helo="[192.0.2.7]"), sender="ben@sender.test")
        task = Tasks().start(plugin.check(transaction), name="check")
        await stuck.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await plugin.close()
        assert ("later.test", "A") not in fake.asked

    asyncio.run(check())


def test_senders_whose_nameservers_are_slow_make_nobody_else_wait():
    strangers = 200

    async def check() -> None:
        opened = asyncio.Event()
        waiting = 0

        class Slow(FakeDns):
            """Keeps back what is asked below slow.test until it is opened."""

            async def lookup(self, name, rdtype):
                nonlocal waiting
                if name.endswith(".slow.test"):
                    waiting += 1
                    await opened.wait()
                return await super().lookup(name, rdtype)

        clock = ManualClock()
        fake = Slow(
            txt={
                "stranger.test": ["v=spf1 " + " ".join(f"exists:{i}.%{{l}}.slow.test" for i in range(10)) + " -all"],
                "sender.test": ["v=spf1 include:more.test mx -all exp=why.test"],
                "more.test": ["v=spf1 a:h1.test a:h2.test -all"],
                "why.test": ["not %{i}"],
            },
            a={
                "h1.test": ["198.51.100.1"],
                "h2.test": ["198.51.100.2"],
                "mx.sender.test": ["198.51.100.3"],
                "9.u0.slow.test": ["127.0.0.2"],
            },
            mx={"sender.test": [(10, "mx.sender.test")]},
        )
        services = Services(fake, FakeState(clock), clock, FakeDirectory(), "mx.test", "mx.test")
        plugin = SpfPlugin(SpfOptions(void_limit=20), services)
        await plugin.start()
        session = make_session(CLIENT, helo="[192.0.2.7]")
        tasks = Tasks()
        slow = [
            tasks.start(plugin.check(make_transaction(session, sender=f"u{i}@stranger.test")), name="slow")
            for i in range(strangers)
        ]
        while waiting < strangers:
            await asyncio.sleep(0)
        threads = threading.active_count()
        innocent = tasks.start(plugin.check(make_transaction(session, sender="ben@sender.test")), name="innocent")
        for _ in range(1_000):
            if innocent.done():
                break
            await asyncio.sleep(0)
        assert innocent.done()
        finding = await innocent
        assert (finding.result, finding.lookups, finding.explanation) == (SpfResult.FAIL, 4, "not 192.0.2.7")
        assert not any(task.done() for task in slow)
        assert threading.active_count() == threads
        opened.set()
        findings = await asyncio.gather(*slow)
        assert [f.result for f in findings] == [SpfResult.PASS] + [SpfResult.FAIL] * (strangers - 1)
        assert {(f.lookups, f.void_lookups) for f in findings} == {(10, 9), (10, 10)}
        await plugin.close()

    asyncio.run(check())


def test_a_check_whose_answers_are_all_there_lets_others_have_their_turns():
    async def check() -> None:
        fake = FakeDns(
            txt={"sender.test": ["v=spf1 " + " ".join(f"a:h{i}.test" for i in range(10)) + " -all"]},
            a={f"h{i}.test": ["198.51.100.1"] for i in range(10)},
        )
        clock = ManualClock()
        services = Services(fake, FakeState(clock), clock, FakeDirectory(), "mx.test", "mx.test")
        session = make_session(CLIENT, helo="[192.0.2.7]")
        transaction = make_transaction(session, sender="ben@sender.test")
        task = Tasks().start(SpfPlugin(SpfOptions(), services).check(transaction), name="check")
        turns = 0
        while not task.done():
            turns += 1
            await asyncio.sleep(0)
        assert (await task).result is SpfResult.FAIL
        assert turns >= 10

    asyncio.run(check())


def test_each_question_of_a_check_is_asked_once_and_in_the_order_of_the_record():
    fake = FakeDns(
        txt={"sender.test": ["v=spf1 a:h1.test mx include:more.test -all"], "more.test": ["v=spf1 a:h3.test -all"]},
        a={"h1.test": ["198.51.100.1"], "m.test": ["198.51.100.2"], "h3.test": [CLIENT], "n.test": ["198.51.100.4"]},
        mx={"sender.test": [(10, "m.test"), (20, "n.test")]},
    )
    assert found(fake, helo="[192.0.2.7]").result is SpfResult.PASS
    names = ["sender.test", "h1.test", "sender.test", "m.test", "n.test", "more.test", "h3.test"]
    assert [name for name, _ in fake.asked] == names


@pytest.mark.parametrize(
    ("term", "result"),
    [
        (f"exists:{'a' * 395}.test", SpfResult.FAIL),
        (f"exists:{'a' * 396}.test", SpfResult.PERMERROR),
        (f"a:x.{'a' * 10_000}!.test", SpfResult.PERMERROR),
        ("x=" + "." * 396 + "%{d}", SpfResult.FAIL),
        ("x=" + "." * 15_000 + "%{d}", SpfResult.PERMERROR),
        ("x=" + "%{" * 7_000, SpfResult.PERMERROR),
        ("redirect=" + "a." * 5_000 + "test", SpfResult.PERMERROR),
    ],
)
def test_a_term_too_long_to_be_honest_is_permerror_and_never_reaches_the_patterns_that_it_would_keep_busy(term, result):
    finding = found(records(sender_test=f"v=spf1 {term} -all"))
    assert finding.result is result
    assert "too long" in finding.problem or result is SpfResult.FAIL


def test_an_explanation_too_long_to_be_honest_is_none():
    def explained(words: str) -> str:
        finding = found(records(sender_test="v=spf1 -all exp=why.test", why_test=words))
        assert finding.result is SpfResult.FAIL
        return finding.explanation

    assert explained("." * 994 + "%{d}").startswith("....")
    assert explained("." * 60_000 + "%{d}") == ""


def test_the_option_that_bounded_threads_is_still_taken_and_whoever_sets_it_is_told():
    with pytest.warns(DeprecationWarning, match=r"threads is deprecated .* nothing comes in its place"):
        assert SpfOptions.model_validate({"threads": 16}) == SpfOptions()


def test_with_the_real_resolver_the_whole_way_works():
    zone = [
        'sender.test. 60 IN TXT "v=spf1 include:_spf.sender.test -all"',
        'sender.test. 60 IN TXT "unrelated"',
        "_spf.sender.test. 60 IN CNAME pool.test.",
        'pool.test. 60 IN TXT "v=spf1 mx:" "sender.test ?include:tc.test ~all"',
        "sender.test. 60 IN MX 10 MX.sender.test.",
        "mx.sender.test. 60 IN A 192.0.2.7",
        'tc.test. 60 IN TXT "v=spf1 ip4:192.0.2.8 -all"',
        'lost.test. 60 IN TXT "v=spf1 a:silent.test -all"',
    ]
    faults = {"tc.test.": Fault.TRUNCATED, "silent.test.": Fault.SILENT, "broken.test.": Fault.SERVFAIL}

    async def check() -> None:
        clock = SystemClock()
        async with DnsServer(zone, faults=faults) as server:
            resolver = Resolver(DnsOptions((server.address,), 0.3), clock)
            services = Services(resolver, FakeState(clock), clock, FakeDirectory(), "mx.test", "mx.test")
            plugin = SpfPlugin(SpfOptions(), services)
            await plugin.start()

            async def result(client: str, sender: str) -> str:
                transaction = make_transaction(make_session(client, helo="[192.0.2.7]"), sender=sender)
                return (await plugin.check(transaction)).result.value

            assert await result("192.0.2.7", "ben@sender.test") == "pass"
            assert await result("192.0.2.8", "ben@sender.test") == "fail"
            assert ("tc.test", "TXT", "tcp") in server.asked
            assert await result("192.0.2.7", "ben@lost.test") == "temperror"
            assert await result("192.0.2.7", "ben@broken.test") == "temperror"
            assert await result("192.0.2.7", "ben@nowhere.test") == "none"
            await plugin.close()
            await resolver.close()

    asyncio.run(check())


def test_a_fail_that_trouble_with_reverse_names_had_a_part_in_is_not_refused_for_good():
    fake = FakeDns(txt={"sender.test": ["v=spf1 ptr -all"]}, fails={"7.2.0.192.in-addr.arpa"})
    finding = found(fake, helo="sender.test")
    assert (finding.result, finding.helo) == (SpfResult.FAIL, SpfResult.FAIL)
    assert finding.problem == finding.helo_problem == "no reverse names: DNS: SERVFAIL"
    for option in ("reject_fail", "reject_helo_fail"):
        verdict = Bench().judge("spf", {option: True}, findings=[finding])
        assert (verdict.reply.code, verdict.reply.status, verdict.reason) == (451, "4.7.24", finding.problem)
    unverified = FakeDns(
        txt={"sender.test": ["v=spf1 ptr -all"]},
        ptr={"7.2.0.192.in-addr.arpa": ["bad.sender.test"]},
        fails={"bad.sender.test"},
    )
    assert found(unverified).problem == "reverse name bad.sender.test not verified: DNS: SERVFAIL"
    nameless = found(FakeDns(txt={"sender.test": ["v=spf1 ptr -all"]}))
    assert (nameless.result, nameless.problem) == (SpfResult.FAIL, "")


def judge(result: str, helo: str = "none", **options):
    return Bench().judge("spf", options, findings=[Spf(SpfResult(result), "d.test", SpfResult(helo), "h.test")])


@pytest.mark.parametrize("result", list(SpfResult))
def test_by_default_nothing_is_refused(result):
    assert judge(result, "fail") == PROCEED


def test_fail_is_refused_with_5_7_23_when_asked_for():
    assert judge("fail", reject_fail=True).reply.code == 550
    assert judge("fail", reject_fail=True).reply.status == "5.7.23"
    assert judge("none", "fail", reject_helo_fail=True).reply.status == "5.7.23"
    assert judge("softfail", reject_fail=True) == PROCEED


def test_errors_give_4_7_24_and_5_7_24_when_asked_for():
    assert (
        judge("temperror", defer_temperror=True).reply.code,
        judge("temperror", defer_temperror=True).reply.status,
    ) == (
        451,
        "4.7.24",
    )
    assert judge("permerror", reject_permerror=True).reply.status == "5.7.24"
    assert judge("temperror", reject_fail=True, reject_permerror=True) == PROCEED


@pytest.mark.parametrize("options", [{"skip": ["300.0.0.0/8"]}, {"timeout": 20}, {"void_limit": -1}, {"reject": True}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        SpfOptions.model_validate(options)
