"""Routes, several next hops and our own addresses in the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.app.outbound import delivery_options, make_router
from gateway.mail.address import NULL_SENDER, parse_mailbox
from gateway.transport.order import Families
from gateway.transport.transport import Kind, Security, Server
from tests.test_config import LISTEN, good, problems

DOMAIN = "domains:\n  a.example:\n    next_hop:"


def test_a_list_of_next_hops_is_asked_in_its_order(tmp_path: Path) -> None:
    config = good(tmp_path, LISTEN + DOMAIN + " ['lmtp:one.test', 'lmtp:[::1]:2424', 'lmtp:unix:./lmtp']")
    found = config.domains["a.example"].destination
    assert found.kind is Kind.LMTP and found.servers == (
        Server("one.test", 24, priority=1),
        Server("::1", 2424, priority=2),
        Server(path=str(tmp_path / "lmtp"), priority=3),
    )
    assert config.domains["a.example"].check == "callout"


def test_next_hops_have_priorities_and_weights(tmp_path: Path) -> None:
    config = good(
        tmp_path,
        LISTEN
        + "routes:\n  default:\n    tls: require\n    next_hop:\n"
        + "      - {hop: 'smtp:one.test', priority: 10, weight: 3}\n"
        + "      - {hop: 'smtp:two.test', priority: 10}\n"
        + "      - {hop: 'smtp:three.test:26', priority: 20}\n",
    )
    found = config.routes.default.destination
    assert found.security is Security.REQUIRE
    assert [(h.host, h.priority, h.weight) for h in found.servers] == [
        ("one.test", 10, 3),
        ("two.test", 10, 1),
        ("three.test", 20, 1),
    ]


@pytest.mark.parametrize(
    ("hops", "says"),
    [
        ("[]", "next_hop: must have at least one entry"),
        ("['smtp:a.test', 'smtp:b..test']", "next_hop[1]: 'smtp:b..test': 'b..test' is neither a host name"),
        ("['smtp:a.test', {hop: 'smtp:b.test', wieght: 2}]", "next_hop[1].wieght: unknown key"),
        ("['smtp:a.test', {hop: 'smtp:b.test', weight: 2}]", "next_hop[1].weight: means nothing: no other next hop"),
        ("['smtp:a.test', {hop: 'smtp:b.test', priority: 0}]", "next_hop[1].priority: must be greater than or"),
        ("['smtp:a.test', {weight: 1}]", "next_hop[1].hop: this key is required"),
        ("['smtp:a.test', 5]", "next_hop[1]: must be"),
        ("['smtp:a.test', 'lmtp:b.test']", "next_hop: all next hops of a list are smtp, or all are lmtp"),
        ("['smtp:a.test', mx]", "next_hop: mx cannot stand beside other next hops"),
        ("['maildir:./m', 'maildir:./n']", "cannot stand beside other next hops"),
        ("['smtp:a.test', 'smtp:a.test:25']", "next_hop: a next hop stands in the list twice"),
        ("[" + ", ".join(f"'smtp:h{i}.test'" for i in range(21)) + "]", "next_hop: "),
        ("5", "next_hop: expected a next hop"),
        ("{hop: 'smtp:a.test'}", "next_hop: expected a next hop"),
    ],
)
def test_what_is_wrong_with_a_list_of_next_hops_is_named(tmp_path: Path, hops: str, says: str) -> None:
    found = problems(tmp_path, LISTEN + DOMAIN + " " + hops)
    assert len(found) == 1 and found[0].startswith("gatepost.yaml:4: domains.a.example.") and says in found[0], found


def test_dane_needs_the_names_of_all_next_hops(tmp_path: Path) -> None:
    text = LISTEN + DOMAIN + " ['smtp:a.test', 'smtp:192.0.2.1']\n    tls: dane"
    (found,) = problems(tmp_path, text)
    assert "tls: an address has no TLSA records" in found


ROUTES = """
domains: {own.example: {next_hop: discard}}
transports: {box: {maildir: {path: ./box}}}
routes:
  domains:
    partner.example: "smtp:relay.test"
    .BÜCHER.example: {next_hop: ["smtp:a.test", "smtp:b.test"], tls: require}
  senders:
    Ann@own.example: transport:box
    own.example: {next_hop: "smtp:smart.test:587"}
    "<>": mx
    anna@bücher.example: discard
"""


def test_routes_by_domain_and_by_sender_are_read(tmp_path: Path) -> None:
    router = make_router(good(tmp_path, LISTEN + ROUTES))

    def key(recipient: str, sender: str) -> str:
        whose = parse_mailbox(sender, utf8=True) if sender else NULL_SENDER
        return router.find(parse_mailbox(recipient, utf8=True), sender=whose).key

    assert key("x@own.example", "ann@own.example") == "domains.own.example"
    assert key("x@partner.example", "ann@own.example") == "routes.domains.partner.example"
    assert key("x@www.bücher.example", "") == "routes.domains..xn--bcher-kva.example"
    assert key("x@other.test", "ANN@OWN.example") == "routes.senders.ann@own.example"
    assert key("x@other.test", "ben@own.example") == "routes.senders.own.example"
    assert key("x@other.test", "anna@xn--bcher-kva.example") == "routes.senders.anna@xn--bcher-kva.example"
    assert key("x@other.test", "") == "routes.senders.<>"
    assert key("x@other.test", "x@other.test") == "routes.default"
    assert router.resolve(parse_mailbox("x@other.test"), sender=parse_mailbox("ann@own.example")).name == "box"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("routes: {domains: {a.example: 'transport:ldb'}}", "routes.domains.a.example: there is no transport 'ldb'"),
        ("routes: {senders: {'<>': {next_hop: 'transport:x'}}}", "routes.senders.<>.next_hop: there is no transport"),
        ("routes: {domains: {own.example: discard}}", "routes.domains.own.example: is a domain of ours"),
        ("routes: {domains: {A.example: mx, a.example: mx}}", "routes.domains.a.example: is the same domain as A.exam"),
        ("routes: {senders: {x@A.example: mx, X@a.example: mx}}", "X@a.example: is the same sender as x@A.example"),
        ("routes: {senders: {'': mx}}", "domain is empty"),
        ("routes: {senders: {'a b@c.example': mx}}", "expected an address, a domain or <>: local part is malformed"),
        ("routes: {domains: {'<>': mx}}", "domain is malformed"),
        ("routes: {addresses: ipv5}", "routes.addresses: must be 'ipv4-first', 'ipv6-first', 'ipv4' or 'ipv6'"),
        ("routes: {next_address_after: 0s}", "routes.next_address_after: must be greater than"),
        ("routes: {max_addresses: 1000}", "routes.max_addresses: must be less than or equal to 100"),
        ("own_addresses: [mx.example.org]", "own_addresses[0]: expected an IP address"),
        ("own_addresses: ['fe80::1%eth0']", "own_addresses[0]: expected an IP address"),
    ],
)
def test_what_is_wrong_with_routes_is_named(tmp_path: Path, text: str, says: str) -> None:
    found = problems(tmp_path, LISTEN + "domains: {own.example: {next_hop: discard}}\n" + text)
    assert len(found) == 1 and found[0].startswith("gatepost.yaml:3: ") and says in found[0], found


def test_how_next_hops_are_reached_comes_from_the_configuration(tmp_path: Path) -> None:
    text = """
listeners: [{address: "192.0.2.1:25"}, {address: "0.0.0.0:2525"}, {address: "[2001:db8::1]:25"}]
own_addresses: ["2001:DB8:0::2", "198.51.100.7"]
routes: {addresses: ipv6-first, next_address_after: 1s, max_addresses: 5}
queue: {destination_concurrency: 7}
"""
    options = delivery_options(good(tmp_path, text))
    assert (options.families, options.next_address, options.max_addresses) == (Families.IPV6_FIRST, 1.0, 5)
    assert options.connections == 7
    assert options.own.addresses == {"192.0.2.1", "2001:db8::1", "2001:db8::2", "198.51.100.7"}
    assert options.own.everywhere == {4}
