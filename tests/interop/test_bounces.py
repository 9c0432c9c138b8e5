"""Who hears what, with real next hops: Postfix with and without DSN, Dovecot's LMTP, smtp-sink, postsrsd."""

from __future__ import annotations

import email
import email.policy
import quopri
import re
import signal
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from gateway.mail.address import parse_mailbox
from gateway.mail.srs import Srs
from gateway.services.clock import SystemClock
from tests.support.clients import MESSAGE, connect, queue_id, transact
from tests.support.dkimkeys import rsa
from tests.support.postfix import Postfix, SmtpSink
from tests.support.postsrsd import Postsrsd, mail_srs
from tests.support.process import wait_until
from tests.support.servers import Dovecot, Unbound

pytestmark = pytest.mark.slow

ANYBODY = ["127.0.0.0/8"]
SECRET = "a secret of some length"


def hop(port: int, kind: str = "smtp") -> dict[str, Any]:
    return {"next_hop": f"{kind}:127.0.0.1:{port}", "recipients": "any"}


def domains(dovecot: Dovecot, next_hop: int) -> dict[str, Any]:
    return {Dovecot.DOMAIN: hop(dovecot.lmtp_port, "lmtp"), "store.test": hop(next_hop)}


def secrets(directory: Path, *lines: str) -> str:
    path = directory / "srs.secrets"
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o600)
    return str(path)


def read(stored: bytes) -> tuple[EmailMessage, list[EmailMessage]]:
    """A DSN without any defect in it, and its parts."""
    dsn = email.message_from_bytes(stored, policy=email.policy.SMTP)
    assert isinstance(dsn, EmailMessage) and dsn.get_content_type() == "multipart/report"
    parts = list(dsn.iter_parts())
    assert not any(part.defects for part in dsn.walk())
    return dsn, parts  # type: ignore[return-value]


def status(stored: bytes) -> str:
    return read(stored)[1][1].as_string()


@pytest.fixture(scope="module")
def able(dovecot: Dovecot) -> Iterator[Postfix]:
    """A store that offers DSN and refuses what is malformed as MIME; its own reports go to Dovecot."""
    strict = {"strict_mime_encoding_domain": "yes", "strict_7bit_headers": "yes", "strict_8bitmime_body": "yes"}
    store = Postfix.store(
        "store.test", ["ann", "ben"], default_transport=f"lmtp:127.0.0.1:{dovecot.lmtp_port}", **strict
    )
    yield store
    store.stop()


@pytest.fixture(scope="module")
def plain() -> Iterator[Postfix]:
    """A store that offers neither DSN nor SMTPUTF8."""
    store = Postfix.store("store.test", ["ben"], smtputf8_enable="no", smtpd_discard_ehlo_keywords="dsn")
    yield store
    store.stop()


@pytest.mark.parametrize("dsn", [True, False])
def test_success_is_reported_by_the_next_hop_where_it_can_and_by_us_where_it_cannot(
    gatepost, dovecot, able, plain, dsn
):
    sender = dovecot.mailbox()
    store = able if dsn else plain
    gate = gatepost(domains=domains(dovecot, store.port), relay_from=ANYBODY)
    with connect(gate.port) as client:
        assert client.docmd("MAIL", f"FROM:<{sender}> RET=HDRS ENVID=QQ+2B314159")[0] == 250
        wish = "NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;Ben+2Bx@store.test"
        assert client.docmd("RCPT", f"TO:<ben@store.test> {wish}")[0] == 250
        assert client.docmd("RCPT", "TO:<nobody@store.test> NOTIFY=NEVER")[0] == 250
        assert client.data(MESSAGE)[0] == 250

    (report,) = dovecot.wait_mails(sender)
    text = status(report)
    assert "Original-Envelope-Id: QQ+314159" in text
    assert re.search(r"Original-Recipient: *rfc822; *Ben\+x@store\.test", text)
    assert re.search(r"Action: *(\w+)", text)[1] == ("delivered" if dsn else "relayed")
    assert re.search(r"Reporting-MTA: dns; *(\S+)", text)[1] == ("postfix.test" if dsn else "mx.example.org")
    assert "nobody" not in text, "of a failure with NOTIFY=NEVER nobody is told"
    gate.wait_empty()
    assert gate.metric("gatepost_dsns_total") == (0 if dsn else 1)
    assert len(dovecot.mails(sender)) == 1


def test_a_user_whom_dovecot_does_not_know_makes_a_dsn_that_a_strict_postfix_takes(gatepost, dovecot, able):
    gate = gatepost(domains=domains(dovecot, able.port), relay_from=ANYBODY)
    mime = b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
    content = mime + MESSAGE.replace(b"Hello.", "Schöne Grüße".encode())
    odd = content.replace(b"A test", "Grüße".encode("latin-1"))
    unknown = [f"unknown@{Dovecot.DOMAIN}"]
    with connect(gate.port) as client:
        for what, wish in ((odd, ""), (odd, " RET=FULL"), (content, " RET=FULL")):
            queue_id(transact(client, "ann@store.test", unknown, what, parameters=f"{wish} ENVID=X1 BODY=8BITMIME"))

    wait_until(lambda: len(able.mails("ann")) == 3, "all DSNs are in the mailbox")
    kinds = []
    for mail in able.mails("ann"):
        dsn, parts = read(mail)
        assert dsn["Auto-Submitted"] == "auto-replied"
        assert re.search(r"Final-Recipient: *rfc822; *unknown@", parts[1].as_string())
        assert "Status: 5.1.1" in parts[1].as_string()
        kinds.append(parts[2].get_content_type())
    # A header with 8-bit octets may not stand in message/rfc822, so that one is returned as text.
    assert sorted(kinds) == ["message/rfc822", "text/rfc822-headers", "text/rfc822-headers"]
    gate.wait_empty()


def test_a_bounce_that_is_refused_goes_to_the_postmaster_once(gatepost, running, dovecot):
    postmaster = dovecot.mailbox()
    refusing = running(SmtpSink("-f", "RCPT", "-B", "550 5.1.1 no such user"))
    gate = gatepost(
        domains=domains(dovecot, refusing.port),
        relay_from=ANYBODY,
        bounces={"postmaster": postmaster, "double": "postmaster"},
    )
    with connect(gate.port) as client:
        queue_id(transact(client, "forged@store.test", ["ben@store.test"]))

    (report,) = dovecot.wait_mails(postmaster)
    dsn, parts = read(report)
    assert dsn["Subject"] == "Bounce could not be delivered"
    assert re.search(r"Final-Recipient: *rfc822; *forged@store\.test", parts[1].as_string())
    assert b"Final-Recipient: rfc822; ben@store.test" in parts[2].as_bytes(), "the whole bounce is in it"
    gate.wait_empty()
    assert gate.metric("gatepost_double_bounces_total", outcome="postmaster") == 1
    assert "bounce.undeliverable" in gate.log


def test_utf8_mail_that_the_next_hop_cannot_take_is_reported_in_seven_bits_and_nothing_loops(gatepost, dovecot, plain):
    sender = dovecot.mailbox()
    gate = gatepost(domains=domains(dovecot, plain.port), relay_from=ANYBODY, bounces={"double": "hold"})
    with connect(gate.port) as client:
        client.command_encoding = "utf-8"
        assert client.docmd("MAIL", f"FROM:<{sender}> SMTPUTF8 BODY=8BITMIME")[0] == 250
        assert client.docmd("RCPT", "TO:<bén@store.test> ORCPT=utf-8;b\\x{E9}n@store.test")[0] == 250
        assert client.data(MESSAGE.replace(b"A test", "Prüfung".encode()))[0] == 250

    (report,) = dovecot.wait_mails(sender)
    dsn, parts = read(report)
    assert report.isascii() and dsn.get_param("report-type") == "global-delivery-status"
    assert [p.get_content_type() for p in parts[1:]] == ["message/global-delivery-status", "message/global-headers"]
    text = quopri.decodestring(parts[1].as_bytes()).decode()
    assert "Final-Recipient: utf-8; bén@store.test" in text and "Original-Recipient: utf-8; bén@store.test" in text
    assert "Status: 5.6.7" in text
    gate.wait_empty()

    # A sender whose address needs SMTPUTF8 cannot be told through the same host.
    with connect(gate.port) as client:
        client.command_encoding = "utf-8"
        assert client.docmd("MAIL", "FROM:<bén@store.test> SMTPUTF8")[0] == 250
        assert client.docmd("RCPT", f"TO:<unknown@{Dovecot.DOMAIN}>")[0] == 250
        assert client.data(MESSAGE)[0] == 250
    (held,) = wait_until(lambda: [m for m in gate.queue() if m["state"] == "hold"], "the bounce is on hold")
    assert "5.6.7" in held["recipients"][0]["last"]
    assert len(gate.queue()) == 1


# --- return paths -----------------------------------------------------------------------------------------------------


def envelopes(sink: SmtpSink) -> list[tuple[str, list[str]]]:
    """MAIL and RCPT arguments of each message in a sink."""
    return [
        (re.search(r"(?m)^X-Mail-Args: (.*)$", text)[1].strip(), re.findall(r"(?m)^X-Rcpt-Args: (.*)$", text))  # type: ignore[index]
        for text in sink.messages()
    ]


def test_verp_names_each_recipient_and_what_is_bounced_there_says_who_it_was(gatepost, running, plain):
    owner, domain = "list", "lists.test"
    # The list's own domain delivers subaddresses to the list's mailbox.
    sink = running(SmtpSink(dump=True))
    gate = gatepost(
        domains={domain: hop(sink.port), "store.test": hop(plain.port)},
        relay_from=ANYBODY,
        verp={"senders": ["@lists.test"]},
    )
    with connect(gate.port) as client:
        assert client.docmd("MAIL", f"FROM:<{owner}@{domain}> ENVID=L1")[0] == 250
        for user in ("ben", "gone", "lost"):
            assert client.docmd("RCPT", f"TO:<{user}@store.test> NOTIFY=FAILURE")[0] == 250
        assert client.data(MESSAGE)[0] == 250
    sink.wait_count(2)
    gate.wait_empty()
    path = f"Return-Path: <{owner}+ben=store.test@{domain}>".encode()
    wait_until(lambda: [m for m in plain.mails("ben") if path in m], "the store has it")
    told = sorted(envelopes(sink))
    assert all(mail.startswith("<>") for mail, _ in told)
    assert sorted(rcpt for _, rcpt in told) == [
        [f"<{owner}+gone=store.test@{domain}>"],
        [f"<{owner}+lost=store.test@{domain}>"],
    ]


def test_forwarded_mail_and_its_bounce_go_through_srs_as_postsrsd_and_mail_srs_do_it(gatepost, running, directory):
    postsrsd = running(Postsrsd("srs.example.org", SECRET))
    sink = running(SmtpSink(dump=True))
    gate = gatepost(
        domains={"example.org": {"next_hop": f"smtp:127.0.0.1:{sink.port}", "recipients": "any"}},
        routes={"default": f"smtp:127.0.0.1:{sink.port}"},
        relay_from=["127.0.0.2/32"],
        srs={"domain": "srs.example.org", "secrets_file": secrets(directory, SECRET), "hash_length": 4},
    )
    sent = {"Ben.K@example.net": "", "SRS0=abcd=JP=example.net=ben@a.test": ""}
    with connect(gate.port, "127.0.0.2") as client:
        for number, sender in enumerate(sent):
            queue_id(transact(client, sender, [f"eve{number}@abroad.test"]))
    sink.wait_count(2)
    for mail, (rcpt,) in envelopes(sink):
        sender = list(sent)[int(rcpt[4])]
        sent[sender] = mail.split()[0].strip("<>")
    # The same address as the others make, and each reads the other's.
    for sender, ours in sent.items():
        assert postsrsd.forward(sender).lower() == ours.lower()
        assert mail_srs(SECRET, "--alias", "srs.example.org", sender).lower() == ours.lower()
        assert postsrsd.reverse(ours).lower() == sender.lower()
        assert mail_srs(SECRET, "--reverse", ours).lower() == sender.lower()

    bounced = {ours: sender for sender, ours in sent.items()} | {postsrsd.forward("ida@example.com"): "ida@example.com"}
    with connect(gate.port) as client:
        for address in bounced:
            queue_id(transact(client, "", [address]))
            assert transact(client, "eve@abroad.test", [address])[0] == 550
            assert transact(client, "", [address.replace("@", "x@")])[0] == 550
        assert transact(client, "", ["ida@example.com"])[0] == 550
    sink.wait_count(2 + len(bounced))
    back = [(mail.split()[0], rcpt) for mail, rcpt in envelopes(sink)]
    for sender in bounced.values():
        assert ("<>", [f"<{sender}>"]) in [(m, [r.split()[0] for r in rcpt]) for m, rcpt in back]
    assert gate.metric("gatepost_srs_recipients_total", outcome="restored") == len(bounced)
    assert gate.metric("gatepost_srs_recipients_total", outcome="refused") == 2 * len(bounced)
    assert gate.log.count("srs.refused") == 2 * len(bounced)
    assert gate.metric("gatepost_return_paths_total", kind="srs", outcome="rewritten") == 2

    # A new secret in front of the old one: what leaves is signed with it, and old addresses are still read.
    secrets(directory, "a newer secret of some length", SECRET)
    gate.process.signal(signal.SIGHUP)
    wait_until(lambda: "reload.done" in gate.log, "the secrets are read again")
    with connect(gate.port, "127.0.0.2") as client:
        queue_id(transact(client, "Ben.K@example.net", ["eve0@abroad.test"]))
    with connect(gate.port) as client:
        queue_id(transact(client, "", [sent["Ben.K@example.net"]]))
    sink.wait_count(4 + len(bounced))
    made = {mail.split()[0].strip("<>") for mail, _ in envelopes(sink)} - {"", *sent.values()}
    assert [mail_srs("a newer secret of some length", "--reverse", address) for address in made] == [
        "Ben.K@example.net"
    ]


def test_a_redirection_to_outside_leaves_with_a_sender_of_ours(gatepost, running, directory):
    outside = running(SmtpSink(dump=True))
    (directory / "checks").write_text("/^Subject:/ REDIRECT eve@abroad.test\n")
    gate = gatepost(
        domains={"example.org": {"next_hop": "discard", "recipients": "any"}},
        routes={"default": f"smtp:127.0.0.1:{outside.port}"},
        pipeline=[{"content-checks": {"tables": [{"file": str(directory / "checks")}]}}],
        srs={"domain": "srs.example.org", "secrets_file": secrets(directory, SECRET)},
    )
    with connect(gate.port) as client:
        queue_id(transact(client, "ann@sender.test", ["anna@example.org"]))
    outside.wait_count(1)
    ((mail, (rcpt,)),) = envelopes(outside)
    srs = Srs("srs.example.org", (SECRET.encode(),))
    found = srs.restore(parse_mailbox(mail.split()[0].strip("<>")), SystemClock().now())
    assert (str(found), rcpt.split()[0]) == ("ann@sender.test", "<eve@abroad.test>")
    gate.wait_empty()


# --- signatures -------------------------------------------------------------------------------------------------------


def test_a_dsn_passes_dmarc_at_another_gateway(gatepost, running, dovecot, directory):
    sender = dovecot.mailbox()
    key = rsa(2048)
    # p= in pieces: a string of a TXT record has 255 octets.
    pieces = " ".join(f'"{key.record[at : at + 200]}"' for at in range(0, len(key.record), 200))
    zone = running(
        Unbound(
            [
                f"s1._domainkey.example.org. 60 IN TXT {pieces}",
                '_dmarc.example.org. 60 IN TXT "v=DMARC1; p=reject"',
                'example.org. 60 IN TXT "v=spf1 -all"',
            ]
        )
    )
    receiver = gatepost(
        hostname="mx.receiver.test",
        domains={Dovecot.DOMAIN: hop(dovecot.lmtp_port, "lmtp")},
        dns={"nameservers": [zone.address]},
        pipeline=[{"spf": {}}, {"dkim": {}}, {"dmarc": {}}],
    )
    keys = [{"selector": "s1", "key_file": key.write(directory / "s1.pem")}]
    refusing = running(SmtpSink("-f", "RCPT", "-B", "550 5.1.1 no such user"))
    gate = gatepost(
        domains={"store.test": hop(refusing.port)},
        routes={"default": f"smtp:127.0.0.1:{receiver.port}"},
        relay_from=ANYBODY,
        pipeline=[{"dkim-sign": {"domains": {"example.org": {"keys": keys, "subdomains": True}}}}],
    )
    with connect(gate.port) as client:
        queue_id(transact(client, sender, ["ben@store.test"]))
    (report,) = dovecot.wait_mails(sender)
    results = b" ".join(report.split())
    assert b"dkim=pass header.d=example.org" in results
    assert b"dmarc=pass header.from=mx.example.org" in results
    assert gate.metric("gatepost_own_signatures_total", outcome="signed") == 1
