"""Who knows an address: domains of ours, and mail hosts of strangers."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

import pytest

from gateway.app.directory import Directory, MailHosts, PublicDns
from gateway.app.wiring import make_parts
from gateway.config import load
from gateway.config.recipients import LIST_OCTETS, parse_list
from gateway.mail.address import Address, parse_mailbox
from gateway.sdk.fakes import FakeDns, ManualClock
from gateway.sdk.files import CHECK_SECONDS, WatchedFile, read_file
from gateway.sdk.services import CalloutState, DnsStatus, Mx, RecipientRule, Store, WhenDown
from gateway.services.clock import SystemClock
from gateway.services.state import SqliteState
from gateway.services.tasks import Tasks

PRIVATE = ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1"]
PRIVATE6 = ["::1", "fe80::1", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "ff02::1", "::"]


@pytest.mark.parametrize(("rdtype", "records"), [("A", [a]) for a in PRIVATE] + [("AAAA", [a]) for a in PRIVATE6])
def test_an_address_that_is_not_public_is_none(rdtype, records):
    dns = FakeDns(**{rdtype.lower(): {"mx.sender.example": records}})
    answer = asyncio.run(PublicDns(dns).lookup("mx.sender.example", rdtype))
    assert (answer.status, answer.records) == (DnsStatus.NODATA, ())


def test_public_addresses_and_names_pass():
    dns = FakeDns(
        a={"mx.sender.example": ["198.41.0.4", "10.0.0.1"]},
        aaaa={"mx.sender.example": ["2001:500:200::b"]},
        mx={
            "sender.example": [(10, "mx.sender.example"), (20, "10.0.0.1")],
            "literal.example": [(10, "127.0.0.1")],
            "null.example": [(0, "")],
        },
    )
    public = PublicDns(dns)

    def ask(name: str, rdtype: str):
        return asyncio.run(public.lookup(name, rdtype))

    assert ask("mx.sender.example", "A").records == ("198.41.0.4",)
    assert ask("mx.sender.example", "AAAA").records == ("2001:500:200::b",)
    assert ask("sender.example", "MX").records == (Mx(10, "mx.sender.example"),)
    assert ask("literal.example", "MX").status is DnsStatus.FAILED, "and the domain's own address is not tried instead"
    assert ask("null.example", "MX").records == (Mx(0, ""),)
    assert ask("missing.example", "MX").status is DnsStatus.NXDOMAIN


@pytest.mark.parametrize("domain", ["[127.0.0.1]", "private.example", "null.example", "missing.example"])
def test_hosts_that_may_not_or_cannot_be_asked_are_unavailable(domain):
    dns = FakeDns(a={"private.example": ["127.0.0.1"]}, mx={"null.example": [(0, "")]})

    async def main():
        hosts = MailHosts("mx.example.org", dns, ManualClock())
        answer = await hosts.ask(parse_mailbox(f"ann@{domain}"))
        await hosts.close()
        return answer

    assert asyncio.run(main()).state is CalloutState.UNAVAILABLE


CONFIG = """
listeners: [{address: "127.0.0.1:2525"}]
dns: {nameservers: ["127.0.0.1:9"]}
domains:
  list.example: {next_hop: discard, recipients: {list: [anna], subaddress: +}}
  file.example: {next_hop: discard, recipients: {list_file: people}}
  callout.example: {next_hop: "lmtp:127.0.0.1:24", recipients: {verify: callout, when_down: accept}}
  default.example: {next_hop: "smtp:127.0.0.1:25"}
  any.example: {next_hop: discard, recipients: any}
  ldap.example: {next_hop: discard, recipients: {when_down: defer, ldap: {uri: "ldap://ldap.example", base: "dc=x"}}}
  .ldap.example: {next_hop: discard, recipients: {ldap: {uri: "ldap://ldap.example", base: "dc=x"}}}
"""


@pytest.fixture
def parts(tmp_path: Path):
    (tmp_path / "people").write_text("ben\n")
    (tmp_path / "gatepost.yaml").write_text(CONFIG)
    clock = SystemClock()
    return make_parts(load(str(tmp_path / "gatepost.yaml")), SqliteState(tmp_path, clock), clock)


@pytest.mark.parametrize(
    ("address", "rule", "store"),
    [
        ("anna+x@list.example", RecipientRule.LISTED, Store()),
        ("ben@list.example", RecipientRule.NOT_LISTED, Store()),
        ("ben@file.example", RecipientRule.LISTED, Store()),
        ("x@callout.example", RecipientRule.CALLOUT, Store("lmtp:127.0.0.1:24", WhenDown.ACCEPT)),
        ("x@default.example", RecipientRule.CALLOUT, Store("smtp:127.0.0.1:25")),
        ("x@any.example", RecipientRule.ANY, Store()),
        ("x@ldap.example", RecipientRule.LDAP, Store("ldap://ldap.example:389", WhenDown.DEFER)),
        ("x@a.ldap.example", RecipientRule.LDAP, Store("ldap://ldap.example:389")),
        ("x@elsewhere.example", RecipientRule.NOT_OURS, None),
    ],
)
def test_the_configuration_says_who_knows_a_recipient(parts, address, rule, store):
    directory = _directory_of(parts)
    assert asyncio.run(directory.rule(parse_mailbox(address))) is rule
    assert directory.store(parse_mailbox(address)) == store


def _directory_of(parts) -> Directory:
    """The one that plugins were given."""
    entry = next(entry for entry in parts.pipelines["default"].entries if entry.plugin is not None)
    return entry.plugin.services.directory


def test_domains_with_the_same_directory_share_its_connections(parts):
    assert len(parts.ldap) == 1


def test_a_list_of_200000_is_read_again_without_stopping_the_event_loop(tmp_path: Path):
    path = tmp_path / "people"
    path.write_text("".join(f"first.last{n}\n" for n in range(200_000)))
    read = read_file(str(path), parse_list, limit=LIST_OCTETS)
    assert len(read.value) == 200_000
    new = tmp_path / "new"
    new.write_text("".join(f"First.Last{n}\n" for n in range(200_001)))
    new.rename(path)

    async def main() -> tuple[int, list[float]]:
        clock, gaps = ManualClock(), [time.monotonic()]
        watched = WatchedFile(str(path), parse_list, clock, limit=LIST_OCTETS, read=read)
        clock.advance(CHECK_SECONDS)
        reading = Tasks().start(watched.current(), name="read")
        while not reading.done():
            await asyncio.sleep(0)
            gaps.append(time.monotonic())
        return len(await reading), gaps

    count, gaps = asyncio.run(main())
    assert count == 200_001
    total = gaps[-1] - gaps[0]
    longest = max(b - a for a, b in itertools.pairwise(gaps))
    assert len(gaps) > 5
    assert longest < max(0.1, total / 2), "read in a thread, and that lets others go on"


def test_a_subaddress_is_looked_up_without_its_tag_too(parts):
    domain = parts.domains.find(Address("x", "list.example"))
    assert domain is not None
    assert [str(a) for a in domain.spellings(Address("Anna+x+y", "list.example"))] == [
        "Anna+x+y@list.example",
        "Anna@list.example",
    ]


def test_a_domain_forwards_whose_server_may_know_recipients_that_we_do_not_know_by_name(tmp_path: Path):
    hops = {
        "a.example": "next_hop: 'smtp:store.example'",
        "b.example": "next_hop: mx, recipients: any",
        "c.example": "next_hop: 'smtp:store.example', recipients: {list: [anna], subaddress: '+'}",
        "d.example": "next_hop: 'smtp:store.example', recipients: {list: [anna]}",
        "e.example": "next_hop: 'lmtp:store.example'",
        "f.example": "next_hop: 'maildir:./mail'",
        "g.example": "next_hop: 'transport:mail'",
        "h.example": "next_hop: 'transport:sendmail'",
    }
    path = tmp_path / "gatepost.yaml"
    path.write_text(
        "listeners: [{address: '127.0.0.1:0'}]\n"
        "transports: {mail: {maildir: {path: ./mail}}, sendmail: {pipe: {command: [/bin/true]}}}\n"
        "domains:\n" + "".join(f"  {name}: {{{hop}}}\n" for name, hop in hops.items())
    )
    clock = SystemClock()
    domains = make_parts(load(str(path)), SqliteState(tmp_path / "state", clock), clock).domains
    found = {name: domains.find(Address("x", name)) for name in hops}
    assert {name for name, domain in found.items() if domain and domain.forwards} == {
        "a.example",
        "b.example",
        "c.example",
        "h.example",
    }
