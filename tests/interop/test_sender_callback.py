"""Sender callback: a real Postfix as the sender's mail host, and hosts that refuse, are dead, hang or babble."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.interop.explained import found
from tests.support.clients import connect, queue_id, reference, transact
from tests.support.forward import MailHost, loopback_address
from tests.support.postfix import Postfix, SmtpSink
from tests.support.servers import Unbound
from tests.support.slapd import Babbler

pytestmark = pytest.mark.slow

RECIPIENT = "anna@example.org"


def mx(domain: str, address: str) -> list[str]:
    """Records of a domain whose mail host is at `address`."""
    return [f"{domain}. 60 IN MX 10 mx.{domain}.", f"mx.{domain}. 60 IN A {address}"]


def settings(directory: Any, unbound: Unbound, *before: Any, **options: Any) -> dict[str, Any]:
    return {
        "domains": {"example.org": {"next_hop": f"maildir:{directory}/mail", "recipients": "any"}},
        "dns": {"nameservers": [unbound.address], "timeout": "2s"},
        "pipeline": [*before, {"sender-callback": {"private": True, "wait": "1s", **options}}],
    }


def callback(gate: Any, id: str) -> dict[str, Any]:
    (finding, *_) = found(gate.cli("explain", id), "SenderCallback")
    return finding


def test_a_sender_that_its_own_postfix_does_not_know_is_refused_at_data(gatepost, running, directory):
    postfix = running(Postfix.store("sender.test", ["ann", "postmaster"]))
    host = running(MailHost(postfix.port))
    unbound = running(Unbound(mx("sender.test", host.address)))
    gate = gatepost(**settings(directory, unbound))
    with connect(gate.port) as client:
        for sender in ("ann@sender.test", "Ann@SENDER.test"):
            known = queue_id(transact(client, sender, [RECIPIENT]))
        for _ in range(2):
            code, text = transact(client, "nobody@sender.test", [RECIPIENT])
            assert (code, text.startswith("5.1.7 sender address cannot be verified (ref ")) == (550, True)
        queue_id(transact(client, "", [RECIPIENT]))
    assert callback(gate, known)["source"] == "cache"
    finding = callback(gate, reference(text))
    assert finding["state"] == "unknown"
    assert "User unknown" in finding["reply"], "the record has what Postfix said"
    postfix.wait_logged("nobody@sender.test")
    assert postfix.log.count("RCPT from") == 1
    assert host.connections <= 2
    assert postfix.mails("ann") == [], "asked, and nothing sent"
    assert gate.metric("gatepost_sender_callbacks_total", state="unknown", source="callout") == 1
    assert gate.metric("gatepost_sender_callbacks_total", state="not-asked") == 1


def test_postfix_that_does_not_take_postmaster_either_is_not_believed(gatepost, running, directory):
    postfix = running(Postfix.store("sender.test", ["ann"]))
    host = running(MailHost(postfix.port))
    gate = gatepost(**settings(directory, running(Unbound(mx("sender.test", host.address)))))
    with connect(gate.port) as client:
        id = queue_id(transact(client, "nobody@sender.test", [RECIPIENT]))
    assert callback(gate, id)["reason"] == "they do not take postmaster either"


@pytest.mark.parametrize(
    "flags",
    [("-r", "rcpt"), ("-f", "mail"), ("-r", "mail"), ("-q", "rcpt"), ("-f", "rcpt", "-B", "550 5.7.1 you are listed")],
    ids=["soft rcpt", "hard mail", "soft mail", "hangs up", "policy"],
)
def test_hosts_that_do_not_say_no_such_mailbox_refuse_nobody(gatepost, running, directory, flags):
    host = running(MailHost(running(SmtpSink(*flags)).port))
    gate = gatepost(**settings(directory, running(Unbound(mx("sender.test", host.address))), confirm=False))
    with connect(gate.port) as client:
        id = queue_id(transact(client, "ann@sender.test", [RECIPIENT]))
    assert callback(gate, id)["state"] == "unavailable"


def test_dead_hung_slow_and_babbling_hosts_refuse_nobody_and_are_left_alone(gatepost, running, directory):
    hung = running(Babbler(b"", address=loopback_address(), port=25))
    garbage = running(Babbler(b"\x00\xff\r\n" * 9, address=loopback_address(), port=25))
    drips = running(Babbler(b"220-mx\r\n", every=0.2, address=loopback_address(), port=25))
    hosts = {"hung": hung, "garbage": garbage, "drips": drips}
    records = [*mx("dead.test", loopback_address()), "null.test. 60 IN MX 0 ."]
    for name, server in hosts.items():
        records += mx(f"{name}.test", server._listener.getsockname()[0])
    gate = gatepost(**settings(directory, running(Unbound(records))))
    with connect(gate.port) as client:
        for name in (*hosts, "dead", "null", "missing"):
            for local in ("ann", "ben"):
                begun = time.monotonic()
                id = queue_id(transact(client, f"{local}@{name}.test", [RECIPIENT]))
                assert time.monotonic() - begun < 4, name
            finding = callback(gate, id)
            assert (finding["state"], finding["source"]) == ("unavailable", "cache"), name
    assert [server.connections for server in hosts.values()] == [1, 1, 1]


def test_no_host_in_a_private_network_is_asked_unless_that_is_wanted(gatepost, running, directory):
    host = running(MailHost(running(SmtpSink("-f", "rcpt")).port))
    records = [*mx("sender.test", host.address), f"literal.test. 60 IN MX 10 {host.address}."]
    gate = gatepost(**settings(directory, running(Unbound(records)), private=False, confirm=False))
    with connect(gate.port) as client:
        for sender in ("ann@sender.test", "ann@literal.test", f"ann@[{host.address}]"):
            queue_id(transact(client, sender, [RECIPIENT]))
    assert host.connections == 0


def test_a_sender_that_spf_calls_forged_is_not_asked_for(gatepost, running, directory):
    host = running(MailHost(running(SmtpSink("-f", "rcpt", "-B", "550 5.1.1 unknown")).port))
    spf = 'sender.test. 60 IN TXT "v=spf1 -all"'
    unbound = running(Unbound([*mx("sender.test", host.address), spf]))
    gate = gatepost(**settings(directory, unbound, {"spf": {}}, confirm=False))
    with connect(gate.port) as client:
        id = queue_id(transact(client, "ann@sender.test", [RECIPIENT]))
    assert callback(gate, id)["reason"] == "forged, by SPF"
    assert host.connections == 0


def test_what_was_refused_before_causes_no_question_and_action_defer_defers(gatepost, running, directory):
    host = running(MailHost(running(SmtpSink("-f", "rcpt", "-B", "550 5.1.1 unknown")).port))
    options = settings(
        directory, running(Unbound(mx("sender.test", host.address))), "recipient", confirm=False, action="defer"
    )
    options["domains"]["example.org"]["recipients"] = {"list": ["anna"]}
    gate = gatepost(**options)
    with connect(gate.port) as client:
        assert transact(client, "ann@sender.test", ["nobody@example.org"])[0] == 550
        assert host.connections == 0
        code, text = transact(client, "ann@sender.test", [RECIPIENT])
    assert (code, text.startswith("4.1.7 ")) == (450, True)
    assert host.connections == 1
