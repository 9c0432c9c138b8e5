"""What every `Dns` must do: the fake that authors test with, and the resolver against a nameserver on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.sdk import Dns, DnsStatus, Mx
from gateway.sdk.testing import FakeDns, ManualClock
from gateway.services.dns import DnsOptions, Resolver
from tests.contract.dnsserver import DnsServer, Fault

CHAIN = 16


@asynccontextmanager
async def fake() -> AsyncIterator[Dns]:
    chain = {f"link{i}.test": f"link{i + 1}.test" for i in range(20)}
    yield FakeDns(
        a={"host.test": ["192.0.2.1", "192.0.2.2"], "end.test": ["192.0.2.9"], "link20.test": ["192.0.2.20"]},
        aaaa={"six.test": ["2001:db8::1"]},
        mx={"mail.test": [(20, "b.test"), (10, "C.test"), (10, "a.test")], "null.test": [(0, ".")]},
        txt={"text.test": ["one", b"\xff\x00two"], "a.deep.test": ["x"]},
        ptr={"1.2.0.192.in-addr.arpa": ["Host.test."]},
        cname={"alias.test": "middle.test", "middle.test": "End.test", "loop.test": "loop.test"} | chain,
        ns={"zone.test": ["ns1.test"]},
        fails={"broken.test"},
        slow={"six.test": 3},
    )


@asynccontextmanager
async def real() -> AsyncIterator[Dns]:
    records = [
        "host.test. 300 IN A 192.0.2.1",
        "host.test. 300 IN A 192.0.2.2",
        "end.test. 300 IN A 192.0.2.9",
        "link20.test. 300 IN A 192.0.2.20",
        "six.test. 300 IN AAAA 2001:db8::1",
        "mail.test. 300 IN MX 20 b.test.",
        "mail.test. 300 IN MX 10 C.test.",
        "mail.test. 300 IN MX 10 a.test.",
        "null.test. 300 IN MX 0 .",
        "text.test. 300 IN TXT one",
        'text.test. 300 IN TXT "\\255\\000" "two"',
        "a.deep.test. 300 IN TXT x",
        "1.2.0.192.in-addr.arpa. 300 IN PTR Host.test.",
        "alias.test. 300 IN CNAME middle.test.",
        "middle.test. 300 IN CNAME End.test.",
        "loop.test. 300 IN CNAME loop.test.",
        "zone.test. 300 IN NS ns1.test.",
        *(f"link{i}.test. 300 IN CNAME link{i + 1}.test." for i in range(20)),
    ]
    async with DnsServer(records, faults={"broken.test": Fault.SERVFAIL}, delays={"six.test": 0.02}) as server:
        resolver = Resolver(DnsOptions((server.address,), 1.0), ManualClock())
        try:
            yield resolver
        finally:
            await resolver.close()


Check = Callable[[Dns], Awaitable[None]]


@pytest.fixture(params=[fake, real])
def on_dns(request: pytest.FixtureRequest) -> Callable[[Check], None]:
    """Runs a coroutine function with a `Dns` of each kind."""

    def run(check: Check) -> None:
        async def with_dns() -> None:
            async with request.param() as dns:
                await check(dns)

        asyncio.run(with_dns())

    return run


def test_addresses_come_as_text(on_dns):
    async def check(dns: Dns) -> None:
        four, six = await dns.lookup("host.test", "A"), await dns.lookup("six.test", "AAAA")
        assert four.status is DnsStatus.OK
        assert sorted(four.records) == ["192.0.2.1", "192.0.2.2"]
        assert six.records == ("2001:db8::1",)
        assert 0 < four.ttl <= 300

    on_dns(check)


def test_mx_come_sorted_in_lower_case_and_without_final_dot(on_dns):
    async def check(dns: Dns) -> None:
        answer = await dns.lookup("mail.test", "MX")
        assert answer.records == (Mx(10, "a.test"), Mx(10, "c.test"), Mx(20, "b.test"))

    on_dns(check)


def test_a_null_mx_has_an_empty_host(on_dns):
    async def check(dns: Dns) -> None:
        assert (await dns.lookup("null.test", "MX")).records == (Mx(0, ""),)

    on_dns(check)


def test_txt_comes_as_octets_with_its_strings_joined(on_dns):
    async def check(dns: Dns) -> None:
        answer = await dns.lookup("text.test", "TXT")
        assert set(answer.records) == {b"one", b"\xff\x00two"}

    on_dns(check)


def test_names_in_answers_are_lower_case_without_final_dot(on_dns):
    async def check(dns: Dns) -> None:
        assert (await dns.lookup("1.2.0.192.in-addr.arpa", "PTR")).records == ("host.test",)
        assert (await dns.lookup("zone.test", "NS")).records == ("ns1.test",)
        assert (await dns.lookup("alias.test", "CNAME")).records == ("middle.test",)

    on_dns(check)


def test_questions_ignore_case_and_a_final_dot(on_dns):
    async def check(dns: Dns) -> None:
        for name in ("HOST.Test", "host.test."):
            assert len((await dns.lookup(name, "A")).records) == 2

    on_dns(check)


def test_cnames_are_followed(on_dns):
    async def check(dns: Dns) -> None:
        answer = await dns.lookup("alias.test", "A")
        assert (answer.status, answer.records) == (DnsStatus.OK, ("192.0.2.9",))

    on_dns(check)


def test_a_chain_of_sixteen_cnames_is_followed_and_one_of_seventeen_is_trouble(on_dns):
    async def check(dns: Dns) -> None:
        assert (await dns.lookup(f"link{20 - CHAIN}.test", "A")).records == ("192.0.2.20",)
        answer = await dns.lookup(f"link{20 - CHAIN - 1}.test", "A")
        assert (answer.status, answer.problem) == (DnsStatus.FAILED, "CNAME chain is too long")

    on_dns(check)


def test_a_cname_loop_is_trouble_and_ends(on_dns):
    async def check(dns: Dns) -> None:
        assert (await dns.lookup("loop.test", "A")).status is DnsStatus.FAILED

    on_dns(check)


def test_a_name_without_records_of_the_type_is_nodata(on_dns):
    async def check(dns: Dns) -> None:
        answer = await dns.lookup("host.test", "AAAA")
        assert (answer.status, answer.records) == (DnsStatus.NODATA, ())

    on_dns(check)


def test_a_name_above_other_names_exists(on_dns):
    async def check(dns: Dns) -> None:
        assert (await dns.lookup("deep.test", "TXT")).status is DnsStatus.NODATA

    on_dns(check)


def test_a_name_that_does_not_exist_is_nxdomain(on_dns):
    async def check(dns: Dns) -> None:
        answer = await dns.lookup("nowhere.test", "A")
        assert (answer.status, answer.records) == (DnsStatus.NXDOMAIN, ())

    on_dns(check)


def test_trouble_is_failed_and_says_why(on_dns):
    async def check(dns: Dns) -> None:
        answer = await dns.lookup("broken.test", "A")
        assert (answer.status, answer.records, answer.problem) == (DnsStatus.FAILED, (), "SERVFAIL")

    on_dns(check)


@pytest.mark.parametrize("name", ["", "@", "a..test", ".test", "x" * 64 + ".test", "a." * 130 + "test", "\u2028.test"])
def test_what_can_be_no_name_does_not_exist(on_dns, name):
    async def check(dns: Dns) -> None:
        assert (await dns.lookup(name, "A")).status is DnsStatus.NXDOMAIN

    on_dns(check)


def test_a_type_that_cannot_be_asked_for_is_the_callers_bug(on_dns):
    async def check(dns: Dns) -> None:
        with pytest.raises(ValueError, match="HINFO"):
            await dns.lookup("host.test", "HINFO")

    on_dns(check)
