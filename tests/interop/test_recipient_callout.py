"""Recipients asked for at the next hop: Postfix and Dovecot that know, servers that refuse, die, hang and babble."""

from __future__ import annotations

import itertools
import os
import signal
import time
from typing import Any

import pytest

from tests.interop.recipients import DOMAIN, SENDER, entry, rcpt, status, taken
from tests.support.clients import connect, queue_id, reference, transact
from tests.support.postfix import Postfix, SmtpSink
from tests.support.process import free_port, wait_until
from tests.support.servers import Dovecot
from tests.support.slapd import Babbler

pytestmark = pytest.mark.slow

INNER = "mailbox-7.inner.example.test"


def store(next_hop: str, **recipients: Any) -> dict[str, Any]:
    """A domain with this next hop, which is asked for its recipients."""
    return {"next_hop": next_hop, "recipients": {"verify": "callout", **recipients}, "tls": "none"}


def test_postfix_and_dovecot_are_asked_for_the_address_as_it_came(gatepost, running, dovecot):
    postfix = running(Postfix.store("postfix.test", ["anna"]))
    box = dovecot.mailbox()
    gate = gatepost(
        domains={
            "postfix.test": store(f"smtp:127.0.0.1:{postfix.port}"),
            Dovecot.DOMAIN: store(f"lmtp:127.0.0.1:{dovecot.lmtp_port}"),
        },
        pipeline=entry(),
    )
    with connect(gate.port) as client:
        for known, unknown in (("anna@postfix.test", "nobody@postfix.test"), (box, f"nobody@{Dovecot.DOMAIN}")):
            queue_id(transact(client, SENDER, [known]))
            for _ in range(2):
                code, text = rcpt(client, unknown)
                assert (code, text.startswith("5.1.1 recipient unknown (ref ")) == (550, True)
        assert status(gate, text)["source"] == "cache"
    wait_until(lambda: postfix.mails("anna"), "the mail is in Postfix's mailbox")
    assert len(dovecot.wait_mails(box)) == 1
    postfix.wait_logged("nobody@postfix.test")
    assert postfix.log.count("RCPT from") == 1, "refused once, and then remembered"


@pytest.mark.parametrize("flags", [("-f", "rcpt"), ("-r", "rcpt")], ids=["hard", "soft"])
def test_what_the_store_says_never_reaches_the_wire(gatepost, running, flags):
    """smtp-sink refuses RCPT with a text that names a host behind us."""
    texts = ["-B", f"550 5.1.1 no such user at {INNER}", "-b", f"450 4.2.1 {INNER} is busy"]
    sink = running(SmtpSink(*flags, *texts))
    gate = gatepost(domains={DOMAIN: store(f"smtp:127.0.0.1:{sink.port}")}, pipeline=entry())
    with connect(gate.port) as client:
        code, text = rcpt(client, f"ben@{DOMAIN}")
        shown, again = rcpt(client, f"ben@{DOMAIN}")
    assert code == shown == (550 if "-f" in flags else 451)
    assert INNER not in text + again
    assert INNER in status(gate, text)["reply"], "but the record has it"


def test_refusals_for_now_are_when_downs_and_do_not_stop_other_questions(gatepost, running):
    sink = running(SmtpSink("-r", "rcpt"))
    hop = f"smtp:127.0.0.1:{sink.port}"
    gate = gatepost(domains={DOMAIN: store(hop), "accept.test": store(hop, when_down="accept")}, pipeline=entry())
    with connect(gate.port) as client:
        for n in range(5):
            code, text = rcpt(client, f"r{n}@{DOMAIN}")
            assert (code, text.startswith("4.4.1 ")) == (451, True)
        assert status(gate, text)["source"] == "callout", "it answers, so it is not left alone"
        assert rcpt(client, "anyone@accept.test")[0] == 250
    assert gate.metric("gatepost_recipient_store_down") == 0


@pytest.mark.parametrize("flags", [("-f", "mail"), ("-q", "rcpt"), ("-q", "helo,ehlo")])
def test_a_next_hop_that_refuses_the_question_or_hangs_up_refuses_nobody_for_good(gatepost, running, flags):
    sink = running(SmtpSink(*flags))
    gate = gatepost(domains={DOMAIN: store(f"smtp:127.0.0.1:{sink.port}")}, pipeline=entry())
    with connect(gate.port) as client:
        code, text = rcpt(client, f"ben@{DOMAIN}")
    assert (code, text.startswith("4.4.1 ")) == (451, True)
    assert status(gate, text)["state"] == "unavailable"


def test_a_next_hop_that_is_killed_and_comes_back(gatepost, running):
    sink = SmtpSink()
    hop = f"smtp:127.0.0.1:{sink.port}"
    gate = gatepost(domains={DOMAIN: store(hop), "accept.test": store(hop, when_down="accept")}, pipeline=entry())
    with connect(gate.port) as client:
        assert rcpt(client, f"anna@{DOMAIN}")[0] == 250
        os.kill(sink._process.pid, signal.SIGKILL)
        sink.stop()
        for n in range(4):
            code, text = rcpt(client, f"r{n}@{DOMAIN}")
            assert (code, text.startswith("4.4.1 ")) == (451, True)
        assert status(gate, text)["source"] == "left-alone"
        assert rcpt(client, "anyone@accept.test")[0] == 250
        assert rcpt(client, f"anna@{DOMAIN}")[0] == 250, "whom it knew still gets mail"
    assert gate.metric("gatepost_recipient_store_down", store=hop) == 1
    running(SmtpSink(port=sink.port))
    wait_until(lambda: taken(gate, f"r3@{DOMAIN}"), "it is asked again", 15)
    assert gate.metric("gatepost_recipient_store_down", store=hop) == 0
    assert '"store.lost"' in gate.log and '"store.back"' in gate.log


def test_a_next_hop_that_hangs_is_down_after_wait_and_holds_up_nobody_else(gatepost, running):
    sink, good = running(SmtpSink()), running(SmtpSink())
    gate = gatepost(
        domains={
            DOMAIN: store(f"smtp:127.0.0.1:{sink.port}"),
            "good.test": store(f"smtp:127.0.0.1:{good.port}"),
        },
        pipeline=entry(wait="1s"),
    )
    os.kill(sink._process.pid, signal.SIGSTOP)
    try:
        with connect(gate.port) as client, connect(gate.port) as other:
            for n in range(4):
                begun = time.monotonic()
                client.docmd("MAIL", f"FROM:<{SENDER}>")
                client.putcmd("RCPT", f"TO:<r{n}@{DOMAIN}>")
                assert rcpt(other, f"r{n}@good.test")[0] == 250
                assert time.monotonic() - begun < 0.9
                code, text = client.getreply()
                assert (code, text[:6]) == (451, b"4.4.1 ")
                client.rset()
        # The fourth is not asked for at all.
        assert status(gate, text.decode())["source"] == "left-alone"
    finally:
        os.kill(sink._process.pid, signal.SIGCONT)
    wait_until(lambda: taken(gate, f"r3@{DOMAIN}"), "it is asked again", 15)


@pytest.mark.parametrize(("answer", "every"), [(b"\x00\xff garbage\r\n" * 50, 0.0), (b"220-slow\r\n", 0.2)])
def test_a_next_hop_that_speaks_garbage_or_drips_is_down(gatepost, running, answer, every):
    babbler = running(Babbler(answer, every=every))
    hop = f"smtp:127.0.0.1:{babbler.port}"
    gate = gatepost(
        domains={DOMAIN: store(hop), "accept.test": store(hop, when_down="accept")}, pipeline=entry(wait="1s")
    )
    with connect(gate.port) as client:
        code, text = rcpt(client, f"ben@{DOMAIN}")
        assert (code, text.startswith("4.4.1 ")) == (451, True)
        assert rcpt(client, "anyone@accept.test")[0] == 250
    assert status(gate, text)["state"] == "unavailable"


def test_a_slow_next_hop_has_as_long_as_wait(gatepost, running):
    sink = running(SmtpSink("-w", "1"))
    gate = gatepost(domains={DOMAIN: store(f"smtp:127.0.0.1:{sink.port}")}, pipeline=entry())
    with connect(gate.port) as client:
        assert rcpt(client, f"ben@{DOMAIN}")[0] == 250
        begun = time.monotonic()
        assert rcpt(client, f"ben@{DOMAIN}")[0] == 250
        assert time.monotonic() - begun < 0.9, "from memory"


@pytest.mark.parametrize(("on_error", "reply"), [("proceed", 250), ("defer", 451), ("reject", 554)])
def test_when_the_entrys_timeout_is_over_first_its_on_error_decides_and_its_breaker_opens_and_closes(
    gatepost, running, on_error, reply
):
    sink = running(SmtpSink())
    gate = gatepost(
        breaker_pause=2,
        domains={DOMAIN: store(f"smtp:127.0.0.1:{sink.port}")},
        pipeline=[{"recipient": {}, "timeout": "300ms", "on_error": on_error}],
    )
    os.kill(sink._process.pid, signal.SIGSTOP)
    try:
        with connect(gate.port) as client:
            said = [rcpt(client, f"r{n}@{DOMAIN}") for n in range(7)]
        assert [code for code, _ in said] == [reply] * 7
        if on_error != "proceed":
            assert "breaker" in str(gate.cli("explain", reference(said[-1][1])))
        assert gate.metric("gatepost_breaker_open", plugin="recipient") == 1
        assert gate.metric("gatepost_findings_total", plugin="recipient", outcome="timeout") == 5
        assert gate.metric("gatepost_findings_total", plugin="recipient", outcome="breaker") == 2
    finally:
        os.kill(sink._process.pid, signal.SIGCONT)
    numbers = itertools.count(100)

    def closed() -> bool:
        with connect(gate.port) as client:
            rcpt(client, f"r{next(numbers)}@{DOMAIN}")
        return '"breaker.closed"' in gate.log

    wait_until(closed, "the breaker closes", 30)
    assert gate.metric("gatepost_breaker_open", plugin="recipient") == 0
    with connect(gate.port) as client:
        assert rcpt(client, f"anybody@{DOMAIN}")[0] == 250


def test_many_who_ask_for_one_address_at_once_cost_one_callout(gatepost, running):
    postfix = running(Postfix.store("postfix.test", ["anna"]))
    gate = gatepost(domains={"postfix.test": store(f"smtp:127.0.0.1:{postfix.port}")}, pipeline=entry())
    clients = [connect(gate.port) for _ in range(20)]
    for client in clients:
        client.docmd("MAIL", f"FROM:<{SENDER}>")
        client.putcmd("RCPT", "TO:<nobody@postfix.test>")
    assert {client.getreply()[0] for client in clients} == {550}
    for client in clients:
        client.quit()
    postfix.wait_logged("nobody@postfix.test")
    assert postfix.log.count("RCPT from") == 1


def test_a_store_nobody_listens_at_is_asked_again_and_never_refuses_for_good(gatepost):
    gate = gatepost(domains={DOMAIN: store(f"lmtp:127.0.0.1:{free_port()}")}, pipeline=entry())
    with connect(gate.port) as client:
        for n in range(6):
            assert rcpt(client, f"r{n}@{DOMAIN}")[0] == 451
