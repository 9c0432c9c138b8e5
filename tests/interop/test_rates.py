"""Rate limits in a running Gatepost: floods, several workers with one bucket, dictionary attacks."""

from __future__ import annotations

import smtplib
import time
from pathlib import Path
from typing import Any

import pytest

from tests.interop.explained import found
from tests.interop.settings import delivered, maildir
from tests.support.clients import MESSAGE, ProxiedClient, connect, queue_id, reference, transact
from tests.support.postfix import smtp_source
from tests.support.process import free_port, wait_until

pytestmark = pytest.mark.slow

BOX = "anna@example.org"


def limited(directory: Path, *limits: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"domains": maildir(directory), "pipeline": [{"ratelimit": {"limits": list(limits)}}], **more}


def listed(directory: Path) -> dict[str, Any]:
    return {"example.org": {**maildir(directory)["example.org"], "recipients": {"list": ["anna"]}}}  # type: ignore[dict-item]


def test_two_workers_share_one_limit_of_which_a_flood_gets_no_more_than_there_is(gatepost, directory):
    gate = gatepost(
        **limited(directory, {"rate": "100/1h", "key": "sender_domain"}),
        workers=2,
        limits={"errors": 100},
    )
    began = time.monotonic()
    smtp_source(gate.port, "-A", "-s", "20", "-m", "2000", "-l", "500", "-f", "ann@sender.test", "-t", BOX, timeout=120)
    refilled = (time.monotonic() - began) * 100 / 3600 + 1
    accepted = gate.metric("gatepost_messages_total", outcome="accepted")
    assert 100 <= accepted <= 100 + refilled
    assert gate.metric("gatepost_ratelimit_limited_total", counted="messages", key="sender_domain") == 2000 - accepted
    assert gate.metric("gatepost_replies_total", command="MAIL", code="451") == 2000 - accepted
    gate.wait_empty()
    assert len(delivered(directory)) == accepted
    assert len(gate.workers) == 2


def test_a_flood_of_connections_is_cut_at_the_door(gatepost, directory):
    gate = gatepost(**limited(directory, {"count": "connections", "rate": "50/1h"}, {"rate": "1000/1h"}))
    # The probe that waits until it greets has connected, too.
    codes: dict[int, int] = {}
    for _ in range(120):
        try:
            with connect(gate.port) as client:
                codes[250] = codes.get(250, 0) + 1
                client.noop()
        except smtplib.SMTPConnectError as refused:
            codes[refused.smtp_code] = codes.get(refused.smtp_code, 0) + 1
    assert sum(codes.values()) == 120
    assert 45 <= codes[250] <= 50, codes
    assert codes[421] == 120 - codes[250]
    assert gate.metric("gatepost_ratelimit_limited_total", counted="connections", key="client") == codes[421]
    with pytest.raises(smtplib.SMTPConnectError) as cut:
        connect(gate.port)
    assert cut.value.smtp_error.decode().startswith("4.7.0 too many connections, try again later (ref ")
    (finding,) = found(gate.cli("explain", reference(cut.value.smtp_error.decode())), "Rate")
    assert (finding["counted"], finding["limit"], finding["key"]) == (
        "connections",
        "50/1h connections",
        "client 127.0.0.1",
    )


def test_a_dictionary_attack_is_stopped_for_its_network_and_for_nobody_else(gatepost, directory):
    listener = {"address": f"127.0.0.1:{free_port()}", "role": "edge", "proxy_protocol": {"trusted": ["127.0.0.1/32"]}}
    limit = {"count": "invalid_recipients", "key": "network", "rate": "20/1h"}
    gate = gatepost(**{**limited(directory, limit), "domains": listed(directory)}, listeners=[listener])
    replies: list[int] = []
    for session in range(6):
        try:
            with ProxiedClient(gate.port, f"192.0.2.{session + 1}") as client:
                client.ehlo()
                client.docmd("MAIL", "FROM:<ann@sender.test>")
                for n in range(10):
                    replies.append(client.docmd("RCPT", f"TO:<guess{session}.{n}@example.org>")[0])
        except smtplib.SMTPConnectError as refused:
            replies.append(refused.smtp_code)
    # What is counted is known after the reply, so that a step or two more may pass.
    assert 20 <= replies.count(550) <= 22, replies
    assert set(replies) <= {550, 450, 421, 503}
    with pytest.raises(smtplib.SMTPConnectError) as cut:
        ProxiedClient(gate.port, "192.0.2.200")
    assert cut.value.smtp_code == 421
    assert b"4.7.0 too many unknown recipients" in cut.value.smtp_error
    with ProxiedClient(gate.port, "198.51.100.1") as client:
        client.ehlo()
        queue_id(transact(client, "ann@sender.test", [BOX]))


def test_a_client_that_makes_too_many_errors_is_turned_away(gatepost, directory):
    gate = gatepost(**limited(directory, {"count": "errors", "rate": "10/1h"}))
    with connect(gate.port) as client:
        for _ in range(10):
            assert client.docmd("NONSENSE")[0] == 500

    def turned_away() -> bool:
        try:
            connect(gate.port).close()
        except smtplib.SMTPConnectError as refused:
            return refused.smtp_code == 421 and b"too many errors" in refused.smtp_error
        return False

    wait_until(turned_away, "the client is turned away")


def test_octets_are_limited_by_what_is_declared_and_by_what_comes(gatepost, directory):
    gate = gatepost(**limited(directory, {"count": "bytes", "rate": "100kB/1h"}))
    body = MESSAGE + b"x" * 70 + b"\r\n"
    big = MESSAGE + (b"x" * 70 + b"\r\n") * 800
    with connect(gate.port) as client:
        queue_id(transact(client, "ann@sender.test", [BOX], big))
        code, text = transact(client, "ann@sender.test", [BOX], big, parameters=f" SIZE={len(big)}")
        assert (code, text.partition(" (ref ")[0]) == (451, "4.7.1 too much data, try again later")
        assert client.docmd("MAIL", "FROM:<ann@sender.test>")[0] == 250, "not declared, so it may try"
        client.rset()
        code, text = transact(client, "ann@sender.test", [BOX], big)
        assert (code, text.partition(" (ref ")[0]) == (451, "4.7.1 too much data, try again later")
        queue_id(transact(client, "ann@sender.test", [BOX], body, parameters=f" SIZE={len(body)}"))
    gate.wait_empty()
    assert len(delivered(directory)) == 2


def test_a_limit_in_shadow_counts_and_refuses_nobody(gatepost, directory):
    pipeline = [{"ratelimit": {"rate": "2/1h"}, "shadow": True}, {"ratelimit": {"rate": "4/1h", "key": "sender"}}]
    gate = gatepost(domains=maildir(directory), pipeline=pipeline)
    with connect(gate.port) as client:
        ids = [queue_id(transact(client, "ann@sender.test", [BOX])) for _ in range(4)]
        assert transact(client, "ann@sender.test", [BOX])[0] == 451
    shadowed = list(found(gate.cli("explain", ids[3]), "Rate"))
    assert [(rate["limit"], rate["allowed"]) for rate in shadowed] == [
        ("2/1h messages", False),
        ("4/1h messages", True),
    ]
    assert gate.metric("gatepost_verdicts_total", plugin="ratelimit", action="defer", shadow="true") == 3
    assert gate.metric("gatepost_verdicts_total", plugin="ratelimit#2", action="defer", shadow="false") == 1


def test_buckets_outlive_a_restart(gatepost, directory):
    gate = gatepost(**limited(directory, {"rate": "2/1h"}))
    with connect(gate.port) as client:
        for _ in range(2):
            queue_id(transact(client, "ann@sender.test", [BOX]))
    gate.stop()
    gate.start()
    with connect(gate.port) as client:
        assert transact(client, "ann@sender.test", [BOX])[0] == 451
