"""DNS lists, senders' domains and the combined score, with rbldnsd, unbound and clients behind a proxy."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import pytest

from tests.interop.explained import found
from tests.support.clients import ProxiedClient, queue_id, reference, transact
from tests.support.gatepost import GatepostProcess, refused_start
from tests.support.process import free_port, wait_until
from tests.support.rbldnsd import TEST_ENTRY, Rbldnsd
from tests.support.servers import Unbound

pytestmark = pytest.mark.slow

LISTED, CLEAN = "192.0.2.7", "192.0.2.8"
HEALTHY = (TEST_ENTRY, LISTED)
KEY = "abcd1234efgh5678ijkl9012mn"

UNBOUND = [
    "good.test. 60 IN MX 10 mx.good.test.",
    "mx.good.test. 60 IN A 192.0.2.1",
    'good.test. 60 IN TXT "v=spf1 ip4:192.0.2.8 -all"',
    "null.test. 60 IN MX 0 .",
    "bogus.test. 60 IN MX 10 local.test.",
    "local.test. 60 IN A 127.0.0.1",
    "2.0.0.127.bl.test. 60 IN A 127.0.0.2",
    "7.2.0.192.bl.test. 60 IN A 127.0.0.2",
    "2.0.0.127.wl.test. 60 IN A 127.0.10.0",
    "7.2.0.192.wl.test. 60 IN A 127.0.5.3",
]


def settings(directory: Any, nameserver: str, *pipeline: Any, **more: Any) -> dict[str, Any]:
    """Mail for example.org goes into a Maildir; clients come with a PROXY header, so that they can be anybody."""
    listener = {
        "address": f"127.0.0.1:{free_port()}",
        "role": "edge",
        "proxy_protocol": {"trusted": ["127.0.0.1/32"]},
    }
    return {
        "domains": {"example.org": {"next_hop": f"maildir:{directory}/mail", "recipients": "any"}},
        "listeners": [listener],
        "dns": {"nameservers": [nameserver], "timeout": "1s"},
        "pipeline": list(pipeline),
        **more,
    }


def send(
    gate: GatepostProcess, client: str, sender: str = "ben@good.test", recipient: str = "anna@example.org"
) -> tuple[int, str]:
    with ProxiedClient(gate.port, client) as smtp:
        smtp.ehlo()
        return transact(smtp, sender, [recipient])


def reverse(address: str) -> str:
    """The address as lists are asked for it."""
    return ip_address(address).reverse_pointer.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")


def record(gate: GatepostProcess, reply: tuple[int, str]) -> Any:
    """What `gatepost explain` says of the mail that got this reply."""
    return gate.cli("explain", queue_id(reply) if reply[0] == 250 else reference(reply[1]))


def test_a_known_lists_codes_are_read_by_its_table_and_explained(gatepost, running, directory):
    lists = running(
        Rbldnsd(
            {
                "zen.test": [TEST_ENTRY, f"{LISTED}:127.0.0.4:exploited"],
                "wl.test": ["127.0.0.2:127.0.10.0:test", f"{CLEAN}:127.0.5.2:medium"],
            }
        )
    )
    zones = {
        "zen.test": {"weight": 3, "table": "zen.spamhaus.org"},
        "wl.test": {"weight": -5, "table": "list.dnswl.org"},
    }
    gate = gatepost(**settings(directory, lists.address, {"dnsbl": {"zones": zones, "reject_at": 3}}))
    reply = send(gate, LISTED)
    assert reply[0] == 550
    (finding,) = found(record(gate, reply), "Dnsbl")
    assert finding["hits"] == [{"zone": "zen.test", "codes": ["127.0.0.4"], "weight": 3}]
    assert finding["meanings"] == ["zen.test 127.0.0.4: exploited host (XBL)"]
    assert finding["tables"] >= "2026-11-26"
    reply = send(gate, CLEAN)
    assert reply[0] == 250
    (finding,) = found(record(gate, reply), "Dnsbl")
    assert (finding["score"], finding["meanings"]) == (-3, ["wl.test 127.0.5.2: medium trust"])
    assert "medium trust" in gate.run("explain", queue_id(reply))
    assert gate.metric("gatepost_dnsbl_hits_total", list="zen.test") == 1


def test_a_list_of_ipv6_networks_refuses_every_address_of_a_64(gatepost, running, directory):
    lists = running(Rbldnsd({"bl.test": [*HEALTHY, "2001:db8:7:7::/64"]}))
    zones = {"bl.test": {"weight": 3, "ipv6": True}}
    options = {"zones": zones, "reject_at": 3, "probe": "1s"}
    gate = gatepost(**settings(directory, lists.address, {"dnsbl": options}))
    probed = "each of the four test entries was asked for twice, and so a second failure in a row would have been seen"
    wait_until(lambda: gate.metric("gatepost_dns_lookups_total", rdtype="A") >= 8, probed)
    for client in ("2001:db8:7:7::1", "2001:db8:7:7:ffff:ffff:ffff:ffff"):
        assert send(gate, client)[0] == 550, client
    for client in ("2001:db8:7:8::1", "2001:db8:7:6:ffff:ffff:ffff:ffff"):
        assert send(gate, client)[0] == 250, client
    assert gate.metric("gatepost_dnsbl_bypassed", list="bl.test") == 0
    assert gate.metric("gatepost_dnsbl_failures_total", list="bl.test") == 0

    # rbldnsd answers for ::FFFF:7F00:1 as for 127.0.0.1.
    lists.change("bl.test", [*HEALTHY, "0/0", "2001:db8:7:7::/64"], probe=reverse("::ffff:7f00:1"), listed=True)
    bypassed = {"list": "bl.test", "family": "ipv6"}
    wait_until(lambda: gate.metric("gatepost_dnsbl_bypassed", **bypassed) == 1, "it is bypassed for IPv6, too")
    assert send(gate, "2001:db8:7:7::1")[0] == 250


def test_a_list_that_begins_to_list_everybody_is_bypassed_and_comes_back_by_itself(gatepost, running, directory):
    lists = running(Rbldnsd({"bl.test": HEALTHY}))
    options = {"zones": {"bl.test": 3}, "reject_at": 3, "probe": "2s"}
    gate = gatepost(**settings(directory, lists.address, {"dnsbl": options}, workers=2))
    assert send(gate, LISTED)[0] == 550
    assert send(gate, CLEAN)[0] == 250

    lists.change("bl.test", ["0/0"], probe="1.0.0.127", listed=True)
    wait_until(lambda: gate.metric("gatepost_dnsbl_bypassed", list="bl.test") == 1, "the list is bypassed")
    # Workers learn of it one after the other.
    wait_until(lambda: all(send(gate, CLEAN)[0] == 250 for _ in range(6)), "nobody is refused because of it")
    reply = send(gate, CLEAN)
    (finding,) = found(record(gate, reply), "Dnsbl")
    assert (finding["score"], finding["failed"]) == (0, ["bl.test"])
    event = next(line for line in gate.log.splitlines() if "dnsbl.bypassed" in line)
    assert "lists everybody" in event

    lists.change("bl.test", HEALTHY, probe="1.0.0.127", listed=False)
    wait_until(lambda: gate.metric("gatepost_dnsbl_bypassed", list="bl.test") == 0, "the list is back")
    wait_until(lambda: all(send(gate, LISTED)[0] == 550 for _ in range(6)), "and counts again")
    assert send(gate, CLEAN)[0] == 250
    assert "dnsbl.restored" in gate.log
    assert gate.log.count("dnsbl.bypassed") == 1, "one of the workers says so"


def test_a_list_that_dies_costs_its_time_only_until_it_is_bypassed(gatepost, running, directory):
    lists = running(Rbldnsd({"bl.test": HEALTHY}))
    options = {"zones": {"bl.test": 3}, "reject_at": 3, "probe": "5s", "wait": "500ms"}
    gate = gatepost(**settings(directory, lists.address, {"dnsbl": options}))
    assert send(gate, LISTED)[0] == 550
    lists._process.kill()
    wait_until(lambda: gate.metric("gatepost_dnsbl_bypassed", list="bl.test") == 1, "the list is bypassed")
    reply = send(gate, LISTED)
    assert reply[0] == 250
    explained = record(gate, reply)
    (finding,) = found(explained, "Dnsbl")
    assert finding["failed"] == ["bl.test"]
    assert "does not answer" in next(line for line in gate.log.splitlines() if "dnsbl.bypassed" in line)


@pytest.mark.parametrize("in_file", [True, False])
def test_the_key_of_a_paid_list_is_seen_nowhere(gatepost, running, directory, in_file):
    zone = "zen.dq.spamhaus.net"
    lists = running(Rbldnsd({f"{KEY}.{zone}": [TEST_ENTRY, f"{LISTED}:127.0.0.2:sbl"]}))
    file = directory / "dqs"
    file.write_text(f"{KEY.upper()}\n")
    zones: dict[str, Any] = {zone: {"weight": 3, "key_file": str(file)}} if in_file else {f"{KEY}.{zone}": 3}
    options = {"zones": zones, "reject_at": 3, "probe": "1s"}
    log = {"level": "debug"}
    gate = gatepost(**settings(directory, lists.address, {"dnsbl": options}, log=log))
    reply = send(gate, LISTED)
    assert reply[0] == 550
    explained = record(gate, reply)
    (finding,) = found(explained, "Dnsbl")
    assert finding["hits"] == [{"zone": zone, "codes": ["127.0.0.2"], "weight": 3}]
    lists.change(f"{KEY}.{zone}", ["0/0"], probe="1.0.0.127", listed=True)
    wait_until(lambda: gate.metric("gatepost_dnsbl_bypassed", list=zone) == 1, "the list is bypassed")
    shown = [
        reply[1],
        json.dumps(explained),
        gate.log,
        gate.http("GET", "/metrics")[1],
        gate.run("explain", reference(reply[1])),
    ]
    shown += [gate.run(command, *json_too) for command in ("check", "pipeline") for json_too in ((), ("--json",))]
    assert KEY not in " ".join(shown).lower()


def test_a_wrong_configuration_says_what_to_do_and_not_the_key(directory):
    zones = {"dnsbl.sorbs.net": 1}
    status, said = refused_start(settings(directory, "127.0.0.1:53", {"dnsbl": {"zones": zones}}))
    assert status == 2
    assert "sorbs.net was shut down (2024-06-05): take it out of zones" in said
    wrong = {f"{KEY}.zen.dq.spamhaus.net": {"weight": "much"}}
    status, said = refused_start(settings(directory, "127.0.0.1:53", {"dnsbl": {"zones": wrong}}))
    assert status == 2
    assert "zen.dq.spamhaus.net: weight: Input should be a valid number" in said
    assert KEY not in said


def test_senders_that_can_get_no_mail_are_refused_and_may_write_to_postmaster(gatepost, running, directory):
    unbound = running(Unbound(UNBOUND))
    gate = gatepost(**settings(directory, unbound.address, {"sender": {}}))
    for sender, code, status, state in (
        ("ben@good.test", 250, "2.0.0", "resolves"),
        ("ben@null.test", 550, "5.7.27", "null-mx"),
        ("ben@nowhere.test", 550, "5.1.8", "missing"),
        ("ben@bogus.test", 550, "5.1.8", "bogus"),
        ("ben@[127.0.0.1]", 550, "5.1.8", "bogus"),
        ("", 250, "2.0.0", "not-asked"),
    ):
        reply = send(gate, CLEAN, sender)
        assert (reply[0], reply[1].split()[0]) == (code, status), sender
        (finding,) = found(record(gate, reply), "SenderDomain")
        assert finding["state"] == state
        assert send(gate, CLEAN, sender, "postmaster@example.org")[0] == 250, sender
    assert gate.metric("gatepost_sender_domains_total", state="null-mx") == 2


def test_a_dead_nameserver_defers_and_refuses_nobody_for_good(gatepost, directory):
    pipeline = [{"dnsbl": {"zones": {"bl.test": 3}, "reject_at": 1}}, {"sender": {}}]
    gate = gatepost(**settings(directory, f"127.0.0.1:{free_port()}", *pipeline))
    code, text = send(gate, LISTED)
    assert (code, text.split()[0]) == (450, "4.4.3")
    relaxed = [{"dnsbl": {"zones": {"bl.test": 3}, "reject_at": 1}}, {"sender": {"unknown": "proceed"}}]
    gate = gatepost(**settings(directory, f"127.0.0.1:{free_port()}", *relaxed))
    reply = send(gate, LISTED)
    assert reply[0] == 250
    (finding,) = found(record(gate, reply), "SenderDomain")
    assert finding["state"] == "unknown"


def test_several_small_doubts_add_up_and_the_record_shows_how(gatepost, running, directory):
    unbound = running(Unbound(UNBOUND))
    alone = {"policy": "none"}
    pipeline = [
        {"dnsbl": {"zones": {"bl.test": 2, "wl.test": {"weight": -1, "table": "list.dnswl.org"}}}, **alone},
        {"sender": {}, **alone},
        {"spf": {}, **alone},
        {"client-score": {"reject_at": 5, "defer_at": 4}},
    ]
    gate = gatepost(**settings(directory, unbound.address, *pipeline))
    # bl.test +2, wl.test -1, SPF fail +3
    code, text = send(gate, LISTED, "ben@good.test")
    assert (code, text.split()[0]) == (450, "4.7.1")
    # bl.test +2, wl.test -1, no such domain +4
    reply = send(gate, LISTED, "ben@nowhere.test")
    assert (reply[0], reply[1].split()[0]) == (550, "5.7.1")
    reason = "score 5: dnsbl bl.test +2, dnsbl wl.test -1, sender_missing +4; without helo, rdns"
    explained = record(gate, reply)
    assert reason in json.dumps(explained)
    assert reason not in reply[1]
    # SPF pass -1.5
    reply = send(gate, CLEAN, "ben@good.test")
    assert reply[0] == 250
    assert "score -1.5: spf_pass -1.5; without helo, rdns" in json.dumps(record(gate, reply))


def test_an_allow_list_overrules_a_block_list_where_the_operator_says_so(gatepost, running, directory):
    unbound = running(Unbound(UNBOUND))
    zones = {"bl.test": 9, "wl.test": {"weight": -5, "table": "list.dnswl.org"}}
    gate = gatepost(**settings(directory, unbound.address, {"dnsbl": {"zones": zones, "reject_at": 3}}))
    assert send(gate, LISTED)[0] == 550
    gate = gatepost(**settings(directory, unbound.address, {"dnsbl": {"zones": zones, "reject_at": 3, "allow_at": -5}}))
    assert send(gate, LISTED)[0] == 250
