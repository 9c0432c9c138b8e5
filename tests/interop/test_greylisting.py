"""Greylisting of real senders: a Postfix that retries, a pool of addresses, callouts, and a state store in trouble."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import smtplib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop.settings import maildir
from tests.support.clients import ProxiedClient, connect, queue_id, reference, transact
from tests.support.gatepost import GatepostProcess
from tests.support.postfix import Postfix
from tests.support.process import free_port, wait_until
from tests.support.servers import Dovecot, Unbound

pytestmark = pytest.mark.slow

RECORDS = [
    'pool.test. 60 IN TXT "v=spf1 ip4:192.0.2.0/24 ip4:198.51.100.0/24 ip4:203.0.113.0/24 -all"',
    'other.test. 60 IN TXT "v=spf1 ip4:192.0.2.0/24 ?all"',
]


def store(dovecot: Dovecot) -> dict[str, Any]:
    return {Dovecot.DOMAIN: {"next_hop": f"lmtp:127.0.0.1:{dovecot.lmtp_port}", "recipients": "any"}}


def proxied() -> list[dict[str, Any]]:
    return [
        {
            "address": f"127.0.0.1:{free_port()}",
            "role": "edge",
            "proxy_protocol": {"trusted": ["127.0.0.1/32"]},
        }
    ]


def send(port: int, client: str, sender: str, recipient: str) -> tuple[int, str]:
    """One transaction of a client that comes from this address."""
    with ProxiedClient(port, client) as connection:
        connection.ehlo()
        return transact(connection, sender, [recipient])


def states(gate: GatepostProcess) -> dict[str, float]:
    """How many attempts stood where."""
    names = ("new", "early", "passed", "known", "exempt")
    return {name: gate.metric("gatepost_greylist_attempts_total", state=name) for name in names}


def test_postfix_is_deferred_once_comes_again_and_is_known_from_then_on(gatepost, running, dovecot):
    box = dovecot.mailbox()
    gate = gatepost(domains=store(dovecot), workers=2, pipeline=[{"greylist": {"delay": "2s"}}])
    postfix = running(Postfix.relay(gate.port))

    with connect(postfix.port) as client:
        assert transact(client, "ann@sender.test", [box])[0] == 250
    first = postfix.wait_logged(rf"(\w+): to=<{box}>.* status=deferred \(host 127\.0\.0\.1.* said: (451 4\.7\.1 .*)")
    assert first[2].startswith("451 4.7.1 try again later (ref ")
    assert dovecot.mails(box) == []
    postfix.wait_logged(rf"{first[1]}: to=<{box}>.* status=sent \(250 2\.0\.0 queued as \w+\)")
    dovecot.wait_mails(box)

    with connect(postfix.port) as client:
        assert transact(client, "ann@sender.test", [box])[0] == 250
    dovecot.wait_mails(box, 2)
    wait_until(lambda: postfix.queue_length() == 0, "Postfix's queue is empty")
    assert postfix.log.count("status=deferred") == 1, "the second message passed at once"
    assert states(gate) == {"new": 1, "early": 0, "passed": 1, "known": 1, "exempt": 0}
    delay = gate.metric("gatepost_greylist_delay_seconds_sum")
    assert 2 <= delay < 60
    assert gate.log.count("greylist.passed") == 1
    explained = gate.run("explain", reference(first[2].partition(")")[0] + ")"))
    assert "Greylist" in explained
    assert "network 127.0.0.0/24" in explained


def test_of_many_attempts_at_once_on_two_workers_one_is_the_first(gatepost, directory):
    gate = gatepost(domains=maildir(directory), workers=2, pipeline=[{"greylist": {"delay": "2s"}}])

    def attempt(_: int) -> int:
        with connect(gate.port) as client:
            return transact(client, "ann@sender.test", ["ben@example.org"])[0]

    with concurrent.futures.ThreadPoolExecutor(20) as threads:
        began = time.monotonic()
        assert set(threads.map(attempt, range(20))) == {451}
        assert states(gate) == {"new": 1, "early": 19, "passed": 0, "known": 0, "exempt": 0}
        wait_until(lambda: time.monotonic() > began + 2.5 and attempt(0) == 250, "a retry passes")
        assert set(threads.map(attempt, range(20))) == {250}
    refusals = [json.loads(line) for line in gate.log.splitlines() if '"recipient.refused"' in line]
    assert {refusal["worker"] for refusal in refusals} == {"0", "1"}


def test_a_pool_of_addresses_passes_and_becomes_known_as_one_when_spf_proves_the_domain(gatepost, running, directory):
    unbound = running(Unbound(RECORDS))
    gate = gatepost(
        domains=maildir(directory),
        listeners=proxied(),
        workers=2,
        dns={"nameservers": [unbound.address], "timeout": "2s"},
        pipeline=[{"spf": {}}, {"greylist": {"when": "always", "delay": "1s", "learn_after": 2}}],
    )
    code, text = send(gate.port, "192.0.2.7", "ann@pool.test", "ben@example.org")
    assert (code, text[:6]) == (451, "4.7.1 ")
    assert "domain pool.test" in gate.run("explain", reference(text))
    wait_until(
        lambda: send(gate.port, "198.51.100.8", "ann@pool.test", "ben@example.org")[0] == 250,
        "a retry from another network passes",
    )
    queue_id(send(gate.port, "203.0.113.9", "ann@pool.test", "ben@example.org"))
    # Two messages were accepted: from now on all mail of the domain passes.
    wait_until(lambda: '"greylist.learned"' in gate.log, "the domain is known")
    id = queue_id(send(gate.port, "192.0.2.70", "eva@pool.test", "carl@example.org"))
    assert "the client is known" in gate.run("explain", id)
    # Who is not of the pool has its own wait, and so has who proves nothing, from each network.
    assert send(gate.port, "10.9.9.9", "ann@pool.test", "ben@example.org")[0] == 451
    assert send(gate.port, "198.51.100.8", "ann@other.test", "ben@example.org")[0] == 451
    assert send(gate.port, "203.0.113.9", "ann@other.test", "ben@example.org")[0] == 451


def test_by_default_a_client_against_which_nothing_speaks_does_not_wait(gatepost, running, directory):
    unbound = running(Unbound(RECORDS))
    gate = gatepost(
        domains=maildir(directory),
        listeners=proxied(),
        dns={"nameservers": [unbound.address], "timeout": "2s"},
        pipeline=[{"spf": {}}, "greylist"],
    )
    queue_id(send(gate.port, "192.0.2.7", "ann@pool.test", "ben@example.org"))
    code, text = send(gate.port, "10.9.9.9", "ann@pool.test", "ben@example.org")
    assert code == 451
    assert "spf fail" in gate.run("explain", reference(text))


def test_the_sender_verification_of_a_real_postfix_succeeds_at_once(gatepost, running, directory):
    """The other side asks with the null sender whether our user exists, before it takes mail from them."""
    gate = gatepost(domains=maildir(directory), pipeline=["greylist"])
    postfix = running(
        Postfix.relay(
            gate.port,
            address_verify_sender="",
            smtpd_sender_restrictions="reject_unverified_sender",
            address_verify_poll_count="10",
            address_verify_poll_delay="1s",
            smtpd_delay_reject="no",
        )
    )
    with connect(postfix.port) as client:
        code, text = client.docmd("MAIL", "FROM:<anna@example.org>")
    assert code == 250, text
    postfix.wait_logged(r"to=<anna@example\.org>.* status=deliverable \(250 ")
    # The null sender that goes on to DATA has to come again.
    with connect(gate.port) as client:
        assert client.docmd("MAIL", "FROM:<>")[0] == 250
        assert client.docmd("RCPT", "TO:<anna@example.org>")[0] == 250
        code, said = client.data(b"Subject: a bounce\r\n\r\nHello.\r\n")
    assert (code, said[:6]) == (451, b"4.7.1 ")


@contextlib.contextmanager
def locked(gate: GatepostProcess) -> Iterator[None]:
    """Nobody can write to the state store inside the block."""
    with contextlib.closing(sqlite3.connect(Path(gate.options["state"]["path"]) / "state.db")) as db:
        db.isolation_level = None
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            db.execute("ROLLBACK")


CODES = {"proceed": 250, "defer": 451, "reject": 554}
# The store gives up after 5 seconds: an entry with less patience sees a slow one, one with more a broken one.
PATIENCE = {"slow": "500ms", "broken": "18s"}
FAULTS = {"slow": "timeout", "broken": "StateError"}


def test_when_the_state_store_is_in_trouble_on_error_decides(gatepost, directory):
    cases = [(on_error, trouble) for on_error in CODES for trouble in PATIENCE]
    listeners = [
        {"address": f"127.0.0.1:{free_port()}", "role": "edge", "pipeline": f"{on_error}-{trouble}"}
        for on_error, trouble in cases
    ]
    pipelines = {
        f"{on_error}-{trouble}": [{"greylist": {}, "on_error": on_error, "timeout": PATIENCE[trouble]}]
        for on_error, trouble in cases
    }
    gate = gatepost(domains=maildir(directory), listeners=listeners, pipelines=pipelines)

    def attempt(port: int, sender: str) -> tuple[int, str]:
        with connect(port) as client:
            return transact(client, sender, ["ben@example.org"])

    with locked(gate), concurrent.futures.ThreadPoolExecutor(len(cases)) as threads:
        replies = list(threads.map(lambda port: attempt(port, "ann@sender.test"), gate.ports))
    for (on_error, trouble), (code, text) in zip(cases, replies, strict=True):
        assert code == CODES[on_error], (on_error, trouble, text)
        if on_error != "proceed":
            assert text.startswith(("4.3.0 ", "5.3.0 "))
            assert "database" not in text
            assert FAULTS[trouble] in gate.run("explain", reference(text))
    # And in order again, it greylists again.
    assert [attempt(port, "eva@sender.test")[0] for port in gate.ports] == [451] * len(cases)
    assert states(gate)["new"] == 1
    assert states(gate)["early"] == len(cases) - 1


def test_a_dead_store_opens_the_breaker_costs_no_more_time_and_one_that_is_back_closes_it(gatepost, directory):
    gate = gatepost(
        breaker_pause=1,
        domains=maildir(directory),
        pipeline=[{"greylist": {}, "on_error": "proceed", "timeout": "200ms"}],
    )

    def attempt() -> float:
        with connect(gate.port) as client:
            began = time.monotonic()
            assert transact(client, "ann@sender.test", ["ben@example.org"])[0] == 250
            return time.monotonic() - began

    with locked(gate):
        wait_until(lambda: attempt() > 0 and gate.metric("gatepost_breaker_open", plugin="greylist"), "it opens")
        # The best of three, so that a busy machine does not fail it.
        assert min(attempt() for _ in range(3)) < 0.2
    with connect(gate.port) as client:
        wait_until(lambda: transact(client, "eva@sender.test", ["ben@example.org"])[0] == 451, "it greylists again")
    assert gate.metric("gatepost_breaker_open", plugin="greylist") == 0


def test_where_it_is_told_to_the_reply_says_how_long_to_wait(gatepost, directory):
    gate = gatepost(domains=maildir(directory), pipeline=[{"greylist": {"tell_wait": True, "at": "message"}}])
    with connect(gate.port) as client, contextlib.suppress(smtplib.SMTPServerDisconnected):
        code, text = transact(client, "ann@sender.test", ["ben@example.org"])
    assert code == 451
    assert text.startswith("4.7.1 try again in 300 seconds (ref ")
