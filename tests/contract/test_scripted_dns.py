"""The tests' own nameserver in its thread, asked by the real resolver: it does as it is told, while it runs."""

from __future__ import annotations

import asyncio

import pytest

from gateway.sdk import Answer, DnsStatus
from gateway.services.clock import SystemClock
from gateway.services.dns import DnsOptions, Resolver
from tests.contract.dnsserver import Fault
from tests.support.scripted_dns import ScriptedDns

RECORDS = [
    "host.test. 0 IN A 192.0.2.1",
    "alias.test. 0 IN CNAME middle.test.",
    "middle.test. 0 IN CNAME host.test.",
    'host.test. 0 IN TXT "text"',
]


@pytest.fixture
def server(running) -> ScriptedDns:
    return running(ScriptedDns(RECORDS))


def ask(server: ScriptedDns, name: str = "host.test", rdtype: str = "A", timeout: float = 1.0) -> Answer:
    """Each time by a resolver that remembers nothing."""
    host, _, port = server.address.rpartition(":")

    async def lookup() -> Answer:
        resolver = Resolver(DnsOptions(((host, int(port)),), timeout), SystemClock())
        try:
            return await resolver.lookup(name, rdtype)
        finally:
            await resolver.close()

    return asyncio.run(lookup())


def test_records_are_served_counted_and_changed(server):
    assert ask(server).records == ("192.0.2.1",)
    assert ask(server, "alias.test").records == ("192.0.2.1",)
    assert (server.count(), server.count("host.test"), server.count("host.test", "TXT")) == (2, 1, 0)
    server.change("host.test. 0 IN A 192.0.2.2")
    assert ask(server).records == ("192.0.2.2",)
    server.serve(["other.test. 0 IN A 192.0.2.3"])
    assert ask(server).status is DnsStatus.NXDOMAIN
    assert server.asked[-1] == ("host.test", "A")


@pytest.mark.parametrize(
    ("fault", "problem"),
    [(Fault.SERVFAIL, "SERVFAIL"), (Fault.SILENT, "timeout"), (Fault.CUT, "timeout"), (Fault.REFUSED, "REFUSED")],
)
def test_one_type_of_a_name_suffers_and_nothing_else(server, fault, problem):
    server.misbehave("host.test", fault, "TXT")
    assert ask(server, "host.test", "TXT").problem == problem
    assert ask(server).records == ("192.0.2.1",)
    server.misbehave("host.test", None, "TXT")
    assert ask(server, "host.test", "TXT").records == (b"text",)


def test_a_name_does_not_exist_for_as_long_as_it_is_told(server):
    server.misbehave("host.test", Fault.NXDOMAIN)
    assert ask(server).status is DnsStatus.NXDOMAIN
    server.misbehave("host.test", None)
    assert ask(server).status is DnsStatus.OK


def test_everything_suffers_except_what_is_told_otherwise(server):
    server.everything(Fault.SERVFAIL)
    server.misbehave("middle.test", Fault.TRUNCATED)
    assert ask(server).status is DnsStatus.FAILED
    assert ask(server, "middle.test").status is DnsStatus.OK
    server.everything(seconds=5)
    server.keep_back("host.test", 0.01)
    assert ask(server, "middle.test").problem == "timeout"
    assert ask(server).status is DnsStatus.OK
    server.everything()
    assert ask(server, "alias.test").status is DnsStatus.OK


def test_a_stopped_server_is_gone_and_comes_back_on_its_port(server):
    address = server.address
    server.stop()
    assert ask(server).status is DnsStatus.FAILED
    server.change("host.test. 0 IN A 192.0.2.9")
    server.start()
    assert server.address == address
    assert ask(server).records == ("192.0.2.9",)
