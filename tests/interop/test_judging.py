"""Refusals in the session, by real DNS and a real mail store, and what `gatepost explain` says of them."""

from __future__ import annotations

import pytest

from tests.interop.explained import found
from tests.interop.settings import behind_proxy
from tests.support.clients import ProxiedClient, connect, queue_id, reference, transact
from tests.support.process import free_port
from tests.support.servers import Dovecot, Unbound

pytestmark = pytest.mark.slow

LISTED, CLEAN = "192.0.2.7", "192.0.2.8"

RECORDS = [
    "7.2.0.192.bl.test. 60 IN A 127.0.0.2",
    '7.2.0.192.bl.test. 60 IN TXT "listed by the test"',
    "8.2.0.192.errors.test. 60 IN A 127.255.255.254",
    "7.2.0.192.errors.test. 60 IN A 127.255.255.254",
    'strict.test. 60 IN TXT "v=spf1 ip4:192.0.2.8 -all"',
    'strict.test. 60 IN TXT "something else"',
    "strict.test. 60 IN MX 10 mx.strict.test.",
    'client.test. 60 IN TXT "v=spf1 ip4:192.0.2.0/24 -all"',
]


def test_a_client_on_a_dns_list_is_refused_and_the_finding_is_explained(gatepost, running, dovecot):
    box = dovecot.mailbox()
    unbound = running(Unbound(RECORDS))
    gate = gatepost(**behind_proxy(dovecot, unbound, [{"dnsbl": {"zones": {"bl.test": 3}, "reject_at": 2}}]))

    with ProxiedClient(gate.port, LISTED) as client:
        client.ehlo()
        code, text = transact(client, "ann@sender.test", [box])
    assert code == 550
    assert text.startswith("5.7.1 ")
    explained = gate.cli("explain", reference(text))
    (finding,) = found(explained, "Dnsbl")
    assert finding["score"] == 3
    assert finding["hits"] == [{"zone": "bl.test", "codes": ["127.0.0.2"], "weight": 3}]

    with ProxiedClient(gate.port, CLEAN) as client:
        client.ehlo()
        id = queue_id(transact(client, "ann@sender.test", [box]))
    dovecot.wait_mails(box)
    (finding,) = found(gate.cli("explain", id), "Dnsbl")
    assert finding["score"] == 0
    assert "Dnsbl" in gate.run("explain", id), "and the tree for people shows it"


def test_the_error_codes_of_a_dns_list_never_count(gatepost, running, dovecot):
    box = dovecot.mailbox()
    unbound = running(Unbound(RECORDS))
    gate = gatepost(**behind_proxy(dovecot, unbound, [{"dnsbl": {"zones": {"errors.test": 3}, "reject_at": 2}}]))
    with ProxiedClient(gate.port, LISTED) as client:
        client.ehlo()
        id = queue_id(transact(client, "ann@sender.test", [box]))
    (finding,) = found(gate.cli("explain", id), "Dnsbl")
    assert finding["failed"] == ["errors.test"]
    assert finding["score"] == 0


def test_a_forged_sender_fails_spf_and_the_true_one_passes(gatepost, running, dovecot):
    box = dovecot.mailbox()
    unbound = running(Unbound(RECORDS))
    gate = gatepost(**behind_proxy(dovecot, unbound, [{"spf": {"reject_fail": True}}]))
    with ProxiedClient(gate.port, LISTED) as client:
        client.ehlo()
        code, text = transact(client, "ann@strict.test", [box])
    assert code == 550
    assert text.startswith("5.7.23 ")
    (finding,) = found(gate.cli("explain", reference(text)), "Spf")
    assert (finding["result"], finding["domain"]) == ("fail", "strict.test")

    with ProxiedClient(gate.port, CLEAN) as client:
        client.ehlo()
        id = queue_id(transact(client, "ann@strict.test", [box]))
    (finding,) = found(gate.cli("explain", id), "Spf")
    assert finding["result"] == "pass"
    (stored,) = dovecot.wait_mails(box)
    flat = b" ".join(stored.split())
    assert b"Authentication-Results: mx.example.org;" in flat
    assert b"spf=pass smtp.mailfrom=strict.test" in flat


def test_a_plugin_whose_dns_is_dead_defers_and_never_accepts_or_refuses_for_good(gatepost, dovecot):
    box = dovecot.mailbox()
    gate = gatepost(**behind_proxy(dovecot, None, [{"spf": {"reject_fail": True, "defer_temperror": True}}]))
    with ProxiedClient(gate.port, CLEAN) as client:
        client.ehlo()
        code, _ = transact(client, "ann@strict.test", [box])
    assert 400 <= code < 500


def test_a_shadowed_entry_is_recorded_and_refuses_nobody(gatepost, running, dovecot):
    box = dovecot.mailbox()
    unbound = running(Unbound(RECORDS))
    pipeline = [{"dnsbl": {"zones": {"bl.test": 3}, "reject_at": 2}, "shadow": True}]
    gate = gatepost(**behind_proxy(dovecot, unbound, pipeline))
    with ProxiedClient(gate.port, LISTED) as client:
        client.ehlo()
        id = queue_id(transact(client, "ann@sender.test", [box]))
    (finding,) = found(gate.cli("explain", id), "Dnsbl")
    assert finding["score"] == 3


def test_a_rate_limit_defers_the_message_that_is_too_many(gatepost, dovecot):
    box = dovecot.mailbox()
    gate = gatepost(
        domains={Dovecot.DOMAIN: {"next_hop": f"lmtp:127.0.0.1:{dovecot.lmtp_port}", "recipients": "any"}},
        pipeline=[{"ratelimit": {"rate": "3/1h"}}],
    )
    with connect(gate.port) as client:
        for _ in range(3):
            queue_id(transact(client, "ann@sender.test", [box]))
        code, text = transact(client, "ann@sender.test", [box])
    assert code == 451
    assert text.startswith("4.7.1 ")


def test_a_callout_refuses_what_the_store_does_not_know(gatepost, dovecot):
    box = dovecot.mailbox()
    gate = gatepost(
        domains={
            Dovecot.DOMAIN: {
                "next_hop": f"lmtp:127.0.0.1:{dovecot.lmtp_port}",
                "recipients": {"verify": "callout"},
            }
        }
    )
    with connect(gate.port) as client:
        for _ in range(2):  # the second time from memory
            code, text = transact(client, "ann@sender.test", [f"nobody@{Dovecot.DOMAIN}"])
            assert code == 550
            assert text.startswith("5.1.1 ")
            assert "127.0.0.1" not in text
            assert "User doesn't exist" not in text, "the store's words stay inside"
        queue_id(transact(client, "ann@sender.test", [box]))
    (status, *_) = found(gate.cli("explain", reference(text)), "RecipientStatus")
    assert status["state"] == "unknown"
    dovecot.wait_mails(box)


def test_a_callout_to_a_store_that_is_down_defers(gatepost):
    gate = gatepost(
        domains={"example.test": {"next_hop": f"lmtp:127.0.0.1:{free_port()}", "recipients": {"verify": "callout"}}}
    )
    with connect(gate.port) as client:
        code, text = transact(client, "ann@sender.test", ["ben@example.test"])
    assert code == 451
    assert text.startswith("4.")


def test_a_listed_recipient_is_taken_whatever_its_case_and_others_are_not(gatepost, directory):
    gate = gatepost(
        domains={"example.org": {"next_hop": f"maildir:{directory}/mail", "recipients": {"list": ["anna"]}}}
    )
    with connect(gate.port) as client:
        code, text = transact(client, "ann@sender.test", ["carl@example.org"])
        assert code == 550
        assert text.startswith("5.1.1 ")
        queue_id(transact(client, "ann@sender.test", ["Anna@EXAMPLE.org"]))
        queue_id(transact(client, "ann@sender.test", ["postmaster"]))
    gate.wait_empty()


def test_a_stranger_may_not_relay(gatepost, directory):
    gate = gatepost(domains={"example.org": {"next_hop": f"maildir:{directory}/mail", "recipients": "any"}})
    with connect(gate.port) as client:
        for recipient in ("ben@elsewhere.test", "ben%elsewhere.test@elsewhere.test", "@example.org:ben@elsewhere.test"):
            code, text = transact(client, "anna@example.org", [recipient])
            assert code == 550, recipient
            assert text.startswith("5.7.1 "), recipient
    assert gate.queue() == []


def test_two_domains_with_pipelines_of_their_own_are_served_in_two_transactions(gatepost, directory):
    store = {"next_hop": f"maildir:{directory}/mail", "recipients": "any"}
    gate = gatepost(
        domains={"strict.example": {**store}, "relaxed.example": {**store, "pipeline": "relaxed"}},
        pipeline=[{"ratelimit": {"rate": "1/1h"}}],
        pipelines={"relaxed": []},
    )
    with connect(gate.port) as client:
        client.docmd("MAIL", "FROM:<ann@sender.test>")
        assert client.docmd("RCPT", "TO:<ben@relaxed.example>")[0] == 250
        code, text = client.docmd("RCPT", "TO:<ben@strict.example>")
        assert code == 452
        assert text.startswith(b"4.5.3 ")
        assert client.data(b"Subject: to the first\r\n\r\nHello.\r\n")[0] == 250
    gate.wait_empty()
