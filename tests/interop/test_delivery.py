"""From real clients, through Gatepost, into a real mail store, and read back."""

from __future__ import annotations

import re
import smtplib
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import MESSAGE, connect, queue_id, swaks, transact
from tests.support.postfix import Postfix, SmtpSink, smtp_source
from tests.support.process import free_port, wait_until
from tests.support.servers import Certificate, Dovecot

pytestmark = pytest.mark.slow

AWKWARD = (
    b"From: Ann <ann@sender.test>\r\nTo: Ben <ben@example.test>\r\n"
    b"Subject: dots, octets\r\n =?utf-8?q?and?= lines\r\nX-Empty:\r\n\r\n"
    b".\r\n..\r\n.leading dot\r\n"
    + b"x" * 5000
    + b"\r\n"
    + bytes(range(128, 256))
    + b"\r\n\ttab and trailing space \r\n"
    b"\r\n\r\nFrom here the end\r\n"
)


def to_dovecot(dovecot: Dovecot) -> dict[str, Any]:
    return {Dovecot.DOMAIN: {"next_hop": f"lmtp:127.0.0.1:{dovecot.lmtp_port}", "recipients": "any"}}


def test_a_message_sent_with_swaks_is_read_back_over_imap_byte_for_byte(gatepost, dovecot, directory: Path):
    box = dovecot.mailbox()
    gate = gatepost(domains=to_dovecot(dovecot))
    original = MESSAGE + b"The end.\r\n"
    (directory / "message").write_bytes(original)

    sent = swaks(gate.port, "--from", "ann@sender.test", "--to", box, "--data", f"@{directory}/message")

    assert sent.status == 0, sent.text
    (stored,) = dovecot.wait_mails(box)
    # swaks adds one empty line of its own when the data does not end in one.
    assert stored.rstrip(b"\r\n").endswith(original.rstrip(b"\r\n"))
    trace = stored[: stored.index(original[:40])].decode()
    assert trace.count("Return-Path:") == 1
    assert "Return-Path: <ann@sender.test>" in trace
    ours = re.search(r"^Received: from (\S+) \(.*\[127\.0\.0\.1\]\)\s+by mx\.example\.org .*", trace, re.MULTILINE)
    assert ours, trace
    assert f"with ESMTP id {sent.queue_id}" in trace
    gate.wait_empty()


def test_octets_dots_and_long_lines_arrive_as_they_were_sent(gatepost, dovecot):
    box = dovecot.mailbox()
    gate = gatepost(domains=to_dovecot(dovecot))
    with connect(gate.port) as client:
        reply = transact(client, "ann@sender.test", [box], AWKWARD, parameters=" BODY=8BITMIME")

    queue_id(reply)
    (stored,) = dovecot.wait_mails(box)
    assert stored.endswith(AWKWARD)


def test_one_message_for_two_mailboxes_reaches_both(gatepost, dovecot):
    boxes = [dovecot.mailbox(), dovecot.mailbox()]
    gate = gatepost(domains=to_dovecot(dovecot))
    with connect(gate.port) as client:
        queue_id(transact(client, "", boxes))

    for box in boxes:
        (stored,) = dovecot.wait_mails(box)
        assert stored.endswith(MESSAGE)
        assert b"Return-Path: <>" in stored


def test_a_maildir_gets_return_path_and_received_once(gatepost, directory: Path):
    gate = gatepost(
        domains={"example.org": {"next_hop": f"maildir:{directory}/mail", "recipients": {"list": ["anna"]}}}
    )
    with connect(gate.port) as client:
        id = queue_id(transact(client, "ann@sender.test", ["anna@example.org"], AWKWARD, parameters=" BODY=8BITMIME"))

    gate.wait_empty()
    (path,) = [path for path in (directory / "mail").rglob("*") if path.parent.name == "new"]
    stored = path.read_bytes().replace(b"\r\n", b"\n")
    assert stored.endswith(AWKWARD.replace(b"\r\n", b"\n"))
    trace = stored[: -len(AWKWARD.replace(b"\r\n", b"\n"))]
    assert trace.startswith(b"Return-Path: <ann@sender.test>\n")
    assert trace.count(b"Received:") == 1
    assert id.encode() in trace


def test_starttls_and_implicit_tls_are_told_in_the_received_field(gatepost, dovecot, certificate: Certificate):
    files = {"certificate": str(certificate.certificate), "key": str(certificate.key)}
    ports = [free_port(), free_port()]
    gatepost(
        domains=to_dovecot(dovecot),
        listeners=[
            {"address": f"127.0.0.1:{ports[0]}", "role": "edge", "tls": {**files, "mode": "starttls"}},
            {"address": f"127.0.0.1:{ports[1]}", "role": "edge", "tls": {**files, "mode": "implicit"}},
        ],
    )
    verify = ("--tls-verify", "--tls-ca-path", str(certificate.certificate))
    for port, flag in zip(ports, ("-tls", "-tlsc"), strict=True):
        box = dovecot.mailbox()
        sent = swaks(port, flag, *verify, "--from", "ann@sender.test", "--to", box)
        assert sent.status == 0, sent.text
        (stored,) = dovecot.wait_mails(box)
        assert b"with ESMTPS id " + sent.queue_id.encode() in stored

    trusting = ssl.create_default_context(cafile=str(certificate.certificate))
    box = dovecot.mailbox()
    with smtplib.SMTP("127.0.0.1", ports[0], "client.test", timeout=30) as client:
        client.starttls(context=trusting)
        client.sendmail("ann@sender.test", [box], MESSAGE)
    with smtplib.SMTP_SSL("127.0.0.1", ports[1], "client.test", timeout=30, context=trusting) as client:
        client.sendmail("ann@sender.test", [box], MESSAGE)
    for stored in dovecot.wait_mails(box, 2):
        assert re.search(rb"using TLSv1\.[23]", stored)


@pytest.mark.parametrize("reuse", [False, True], ids=["one connection each", "connections reused"])
def test_two_hundred_messages_from_smtp_source_reach_smtp_sink_exactly_once(gatepost, running, reuse: bool):
    sink = running(SmtpSink(dump=True))
    gate = gatepost(
        workers=2,
        domains={"example.test": {"next_hop": f"smtp:127.0.0.1:{sink.port}", "recipients": "any", "tls": "none"}},
    )
    flags = ["-s", "10", "-m", "200", "-l", "4000", "-N", "-t", "user@example.test"]
    smtp_source(gate.port, *flags, *(["-d"] if reuse else []))
    sink.wait_count(200)
    gate.wait_empty()

    numbers = [re.search(r"^X-Rcpt-Args: <(\d+)user@example\.test>", text, re.MULTILINE) for text in sink.messages()]
    assert len(numbers) == 200
    assert len({match[1] for match in numbers if match}) == 200
    assert gate.metric("gatepost_messages_total", outcome="accepted") == 200, "counted right across workers"
    assert gate.metric("gatepost_attempts_total", outcome="delivered", transport="smtp") == 200


def test_postfix_hands_us_eight_bit_mail_with_dsn_parameters_and_they_go_on(gatepost, running):
    sink = running(SmtpSink(dump=True))
    gate = gatepost(
        domains={"example.test": {"next_hop": f"smtp:127.0.0.1:{sink.port}", "recipients": "any", "tls": "none"}}
    )
    relay = running(Postfix.relay(gate.port))
    with connect(relay.port) as client:
        client.docmd("MAIL", "FROM:<ann@sender.test> BODY=8BITMIME RET=HDRS ENVID=Ab+2Bc")
        client.docmd("RCPT", "TO:<ben@example.test> NOTIFY=FAILURE,DELAY ORCPT=rfc822;Ben+2B@Example.test")
        assert client.data(AWKWARD)[0] == 250

    sink.wait_count(1)
    relay.wait_logged(r"status=sent \(250 2\.0\.0 queued as \w+\)")
    assert "warning:" not in relay.log
    (text,) = sink.messages()
    assert re.search(r"^X-Mail-Args: <ann@sender\.test>.*ENVID=Ab\+2Bc", text, re.MULTILINE)
    assert re.search(r"^X-Mail-Args: .*RET=HDRS", text, re.MULTILINE)
    assert re.search(r"^X-Rcpt-Args: <ben@example\.test>.*NOTIFY=(FAILURE,DELAY|DELAY,FAILURE)", text, re.MULTILINE)
    assert re.search(r"^X-Rcpt-Args: .*ORCPT=rfc822;Ben\+2B@Example\.test", text, re.MULTILINE)
    assert re.search(r"Received: from postfix\.test \(\[127\.0\.0\.1\]\)\s+by mx\.example\.org .* with ESMTP id", text)


def test_fifty_large_messages_at_once_cost_little_memory(gatepost):
    gate = gatepost(domains={"example.test": {"next_hop": "discard", "recipients": "any"}})
    (worker,) = gate.workers
    line = b"y" * 76 + b"\r\n"
    content = b"Subject: large\r\n\r\n" + line * ((25 << 20) // len(line)) + b".\r\n"
    replies: list[tuple[int, str]] = []

    def resident(field: str) -> int:
        status = Path(f"/proc/{worker}/status").read_text()
        return int(re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)[1])

    def send(number: int) -> None:
        with connect(gate.port) as client:
            client.timeout = 300
            client.docmd("MAIL", f"FROM:<ann{number}@sender.test>")
            client.docmd("RCPT", "TO:<ben@example.test>")
            client.docmd("DATA")
            client.sock.settimeout(300)
            client.sock.sendall(content)
            code, text = client.getreply()
            replies.append((code, text.decode()))

    before = resident("VmRSS")
    threads = [threading.Thread(target=send, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    peak = resident("VmHWM")
    assert len(replies) == 50
    assert [code for code, _ in replies] == [250] * 50, replies
    print(f"resident memory rose by {(peak - before) / 1024:.0f} MiB")
    assert peak - before < 100 << 10
    wait_until(lambda: not gate.queue(), "all are gone", 120)
