"""Behind a load balancer: the true client is carried by PROXY and XCLIENT, from trusted networks only."""

from __future__ import annotations

import contextlib
import smtplib
import socket
import ssl
from typing import Any

import pytest

from tests.support.clients import MESSAGE, connect, queue_id, swaks, transact
from tests.support.process import free_port
from tests.support.servers import Certificate, Dovecot, Haproxy

pytestmark = pytest.mark.slow

CLIENT = "127.0.0.2"
"""Where the client of these tests comes from; haproxy itself comes from 127.0.0.1."""


def options(dovecot: Dovecot, **listener: Any) -> dict[str, Any]:
    return {
        "domains": {Dovecot.DOMAIN: {"next_hop": f"lmtp:127.0.0.1:{dovecot.lmtp_port}", "recipients": "any"}},
        "listeners": [{"address": f"127.0.0.1:{free_port()}", "role": "edge", **listener}],
    }


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
def test_haproxy_carries_the_true_client(gatepost, running, dovecot, certificate: Certificate, version: int, tls: str):
    listener: dict[str, Any] = {"proxy_protocol": {"trusted": ["127.0.0.1/32"]}}
    if tls != "none":
        files = {"certificate": str(certificate.certificate), "key": str(certificate.key)}
        listener["tls"] = {**files, "mode": tls}
    gate = gatepost(**options(dovecot, **listener))
    proxy = running(Haproxy(gate.port, version, speaks_first=tls != "implicit"))
    trusting = ssl.create_default_context(cafile=str(certificate.certificate))
    box = dovecot.mailbox()
    arguments: dict[str, Any] = {"local_hostname": "client.test", "timeout": 30, "source_address": (CLIENT, 0)}

    if tls == "implicit":
        client: smtplib.SMTP = smtplib.SMTP_SSL("127.0.0.1", proxy.port, context=trusting, **arguments)
    else:
        client = smtplib.SMTP("127.0.0.1", proxy.port, **arguments)
    with client:
        if tls == "starttls":
            client.starttls(context=trusting)
        client.sendmail("ann@sender.test", [box], MESSAGE)

    (stored,) = dovecot.wait_mails(box)
    assert b"[127.0.0.2]" in stored
    assert b"[127.0.0.1]" not in stored.partition(b"by mx.example.org")[0].rpartition(b"Received:")[2]
    assert (b"with ESMTPS" if tls != "none" else b"with ESMTP ") in stored


def test_a_tls_handshake_in_the_same_segment_as_the_proxy_header_is_not_lost(
    gatepost, dovecot, certificate: Certificate
):
    files = {"certificate": str(certificate.certificate), "key": str(certificate.key)}
    trust = {"trusted": ["127.0.0.1/32"]}
    gate = gatepost(**options(dovecot, proxy_protocol=trust, tls={**files, "mode": "implicit"}))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=str(certificate.certificate))
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", gate.port), timeout=10) as sock:
        outgoing.write(b"PROXY TCP4 192.0.2.7 127.0.0.1 999 25\r\n")
        greeting = b""
        while not greeting:
            try:
                greeting = tls.read(1000)
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
    assert greeting.startswith(b"220 ")


def test_a_client_that_talks_before_the_greeting_gets_no_session(gatepost, dovecot):
    # Behind a proxy this can be told for sure: the command comes in one segment with the header.
    gate = gatepost(**options(dovecot, proxy_protocol={"trusted": ["127.0.0.1/32"]}))
    with socket.create_connection(("127.0.0.1", gate.port), timeout=30) as sock:
        sock.sendall(b"PROXY TCP4 192.0.2.7 127.0.0.1 999 25\r\nEHLO client.test\r\n")
        said = b""
        with contextlib.suppress(ConnectionError):
            while block := sock.recv(4096):
                said += block
    assert not [line for line in said.splitlines() if line.startswith(b"2")], said


def test_a_trusted_peer_without_a_proxy_header_gets_no_session(gatepost, dovecot):
    gate = gatepost(**options(dovecot, proxy_protocol={"trusted": ["127.0.0.1/32"]}))
    with socket.create_connection(("127.0.0.1", gate.port), timeout=30) as sock:
        sock.sendall(b"EHLO client.test\r\n")
        said = b""
        while block := sock.recv(4096):
            said += block
    assert b"250" not in said


@pytest.mark.parametrize("header", [b"PROXY TCP4 192.0.2.7 127.0.0.1 999 25\r\n", b""], ids=["header", "no header"])
def test_an_untrusted_peer_gets_no_session_where_proxies_are_expected(gatepost, dovecot, header: bytes):
    gate = gatepost(**options(dovecot, proxy_protocol={"trusted": ["192.0.2.0/24"]}))
    with socket.create_connection(("127.0.0.1", gate.port), timeout=30) as sock:
        sock.sendall(header + b"EHLO client.test\r\n")
        said = b""
        with contextlib.suppress(ConnectionError):
            while block := sock.recv(4096):
                said += block
    assert not [line for line in said.splitlines() if line.startswith(b"2")], said


def test_a_proxy_header_where_no_proxy_is_configured_names_nobody_and_ends_the_session(gatepost, dovecot):
    box = dovecot.mailbox()
    gate = gatepost(**options(dovecot))
    with socket.create_connection(("127.0.0.1", gate.port), timeout=30) as sock:
        assert sock.recv(1000).startswith(b"220 ")
        sock.sendall(b"PROXY TCP4 192.0.2.7 127.0.0.1 999 25\r\n")
        assert sock.recv(1000).startswith(b"421 4.5.1 ") and sock.recv(1000) == b""
    with connect(gate.port) as client:
        queue_id(transact(client, "ann@sender.test", [box]))
    (stored,) = dovecot.wait_mails(box)
    assert b"192.0.2.7" not in stored


def test_xclient_from_a_trusted_peer_changes_the_client(gatepost, dovecot):
    box = dovecot.mailbox()
    gate = gatepost(**options(dovecot, xclient={"trusted": ["127.0.0.1/32"]}))
    sent = swaks(
        gate.port, "--xclient", "ADDR=192.0.2.9 NAME=c.test HELO=h.test", "--to", box, "--from", "ann@sender.test"
    )
    assert sent.status == 0, sent.text
    (stored,) = dovecot.wait_mails(box)
    assert b"(c.test [192.0.2.9])" in stored


def test_xclient_is_refused_and_not_offered_to_others(gatepost, dovecot):
    box = dovecot.mailbox()
    gate = gatepost(**options(dovecot, xclient={"trusted": ["192.0.2.0/24"]}))
    with connect(gate.port) as client:
        assert not client.has_extn("xclient")
        code, _ = client.docmd("XCLIENT", "ADDR=192.0.2.9")
        assert 500 <= code < 600
        queue_id(transact(client, "ann@sender.test", [box]))
    (stored,) = dovecot.wait_mails(box)
    assert b"192.0.2.9" not in stored
