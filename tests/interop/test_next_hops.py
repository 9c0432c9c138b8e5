"""What the next hop says decides what becomes of each recipient, and who hears of it."""

from __future__ import annotations

import email
import json
import re
from email.message import Message

import pytest

from tests.support.clients import MESSAGE, connect, queue_id, transact
from tests.support.postfix import Postfix, SmtpSink
from tests.support.process import wait_until
from tests.support.servers import Dovecot

pytestmark = pytest.mark.slow

ANYBODY = ["127.0.0.0/8"]


def report(stored: bytes) -> tuple[Message, str]:
    """The parsed DSN and the text of its machine-readable part."""
    dsn = email.message_from_bytes(stored)
    assert dsn.get_content_type() == "multipart/report"
    assert dsn.get_param("report-type") == "delivery-status"
    assert "auto-replied" in dsn["Auto-Submitted"]
    parts = dsn.get_payload()
    assert isinstance(parts, list)
    assert parts[1].get_content_type() == "message/delivery-status"
    return dsn, parts[1].as_string()


def domains(dovecot: Dovecot, next_hop: int) -> dict[str, object]:
    return {
        Dovecot.DOMAIN: {"next_hop": f"lmtp:127.0.0.1:{dovecot.lmtp_port}", "recipients": "any"},
        "store.test": {"next_hop": f"smtp:127.0.0.1:{next_hop}", "recipients": "any", "tls": "none"},
    }


def test_one_unknown_user_at_a_postfix_store_bounces_and_the_other_gets_the_mail(gatepost, running, dovecot):
    sender = dovecot.mailbox()
    store = running(Postfix.store("store.test", ["ben"]))
    gate = gatepost(domains=domains(dovecot, store.port), relay_from=ANYBODY)
    with connect(gate.port) as client:
        id = queue_id(transact(client, sender, ["ben@store.test", "nobody@store.test"]))

    (delivered,) = wait_until(lambda: store.mails("ben"), "the Postfix store has it")
    assert delivered.endswith(MESSAGE.replace(b"\r\n", b"\n"))
    (bounce,) = dovecot.wait_mails(sender)
    assert b"Return-Path: <>" in bounce
    _, status = report(bounce)
    assert re.search(r"Final-Recipient: *rfc822; *nobody@store\.test", status, re.IGNORECASE)
    assert re.search(r"^Action: *failed", status, re.IGNORECASE | re.MULTILINE)
    assert re.search(r"^Status: *5\.1\.1", status, re.IGNORECASE | re.MULTILINE)
    assert re.search(r"^Diagnostic-Code: *smtp; *550", status, re.IGNORECASE | re.MULTILINE)
    assert "ben@store.test" not in status
    gate.wait_empty()
    told = json.dumps(gate.cli("explain", id))
    assert "nobody@store.test" in told
    assert "5.1.1" in told


def test_a_stranger_gets_no_bounce_and_the_message_is_held(gatepost, running, dovecot):
    forged = dovecot.mailbox()
    sink = running(SmtpSink("-f", "RCPT", "-B", "550 5.1.1 no such user"))
    gate = gatepost(domains=domains(dovecot, sink.port))
    with connect(gate.port) as client:
        id = queue_id(transact(client, forged, ["ben@store.test"]))

    (held,) = wait_until(lambda: [m for m in gate.queue() if m["state"] == "hold"], "the message is on hold")
    assert held["id"] == id
    assert dovecot.mails(forged) == []
    assert gate.metric("gatepost_dsns_total") == 0


def test_a_message_from_the_null_sender_is_never_bounced(gatepost, running, dovecot):
    sink = running(SmtpSink("-f", "RCPT", "-B", "550 5.1.1 no such user"))
    gate = gatepost(domains=domains(dovecot, sink.port), relay_from=ANYBODY)
    with connect(gate.port) as client:
        queue_id(transact(client, "", ["ben@store.test"]))

    # The postmaster of the first domain is told once; here he has no mailbox, and that is the end of it.
    wait_until(lambda: gate.metric("gatepost_double_bounces_total") == 2, "both attempts have failed")
    assert gate.metric("gatepost_dsns_total") == gate.metric("gatepost_dsns_total", kind="double") == 1
    (held,) = gate.queue()
    assert (held["state"], held["recipients"][0]["address"]) == ("hold", f"postmaster@{Dovecot.DOMAIN}")


def test_a_next_hop_that_defers_after_the_dot_is_tried_again_until_it_takes_the_mail(gatepost, running, dovecot):
    sink = running(SmtpSink("-r", ".", "-b", "452 4.3.1 full"))
    gate = gatepost(domains=domains(dovecot, sink.port), retry={"first": "1s", "max": "1s"}, relay_from=ANYBODY)
    with connect(gate.port) as client:
        queue_id(transact(client, "ann@sender.test", ["ben@store.test"]))
    wait_until(lambda: gate.metric("gatepost_attempts_total", outcome="deferred") >= 2, "it was deferred twice")
    assert "452" in json.dumps(gate.queue())
    sink.stop()

    willing = running(SmtpSink(dump=True, port=sink.port))
    willing.wait_count(1)
    gate.wait_empty()
    assert len(willing.messages()) == 1


def test_a_next_hop_that_closes_without_a_word_after_the_dot_is_tried_again(gatepost, running, dovecot):
    rude = running(SmtpSink("-q", "."))
    gate = gatepost(domains=domains(dovecot, rude.port), retry={"first": "1s", "max": "1s"})
    with connect(gate.port) as client:
        queue_id(transact(client, "ann@sender.test", ["ben@store.test"]))
    wait_until(lambda: gate.metric("gatepost_attempts_total", outcome="deferred") >= 1, "it was deferred")
    rude.stop()

    polite = running(SmtpSink(dump=True, port=rude.port))
    polite.wait_count(1)
    gate.wait_empty()


def test_a_dead_next_hop_defers_and_its_return_delivers(gatepost, dovecot):
    box = dovecot.mailbox()
    gate = gatepost(domains=domains(dovecot, 9), retry={"first": "1s", "max": "2s"})
    with dovecot.stopped(), connect(gate.port) as client:
        queue_id(transact(client, "ann@sender.test", [box]))
        wait_until(lambda: gate.metric("gatepost_attempts_total", outcome="deferred") >= 1, "it was deferred")
    (stored,) = dovecot.wait_mails(box)
    assert stored.endswith(MESSAGE)
    gate.wait_empty()


def test_mail_that_expires_is_bounced_to_a_relay_client(gatepost, dovecot):
    sender = dovecot.mailbox()
    gate = gatepost(
        domains=domains(dovecot, 9), relay_from=ANYBODY, retry={"first": "1s", "max": "1s", "give_up": "3s"}
    )
    with connect(gate.port) as client:
        queue_id(transact(client, sender, ["ben@store.test"]))

    (bounce,) = dovecot.wait_mails(sender)
    _, status = report(bounce)
    assert re.search(r"^Action: *failed", status, re.IGNORECASE | re.MULTILINE)
    gate.wait_empty()


def test_a_certificate_that_does_not_verify_defers_where_verification_is_asked(gatepost, running, certificate):
    sink = running(SmtpSink())
    gate = gatepost(
        domains={
            "store.test": {
                "next_hop": f"smtp:127.0.0.1:{sink.port}",
                "recipients": "any",
                "tls": "verify",
                "tls_ca": str(certificate.certificate),
            }
        }
    )
    with connect(gate.port) as client:
        id = queue_id(transact(client, "ann@sender.test", ["ben@store.test"]))
    wait_until(lambda: gate.metric("gatepost_attempts_total", outcome="deferred") >= 1, "it was deferred")
    assert sink.count == 0
    assert "TLS" in json.dumps(gate.cli("explain", id)).upper()


def test_postfix_as_tls_store_is_reached_with_a_verified_certificate(gatepost, running, certificate):
    sink = running(SmtpSink(dump=True))
    store = running(
        Postfix.relay(
            sink.port,
            smtpd_tls_security_level="encrypt",
            smtpd_tls_cert_file=str(certificate.certificate),
            smtpd_tls_key_file=str(certificate.key),
            smtpd_tls_loglevel="1",
        )
    )
    gate = gatepost(
        domains={
            "store.test": {
                "next_hop": f"smtp:localhost:{store.port}",
                "recipients": "any",
                "tls": "verify",
                "tls_ca": str(certificate.certificate),
            }
        }
    )
    with connect(gate.port) as client:
        queue_id(transact(client, "ann@sender.test", ["ben@store.test"]))
    sink.wait_count(1)
    store.wait_logged(r"TLS connection established from localhost\[127\.0\.0\.1\]: TLSv1\.[23]")
    gate.wait_empty()
