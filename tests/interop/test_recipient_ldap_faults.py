"""An LDAP directory that dies, hangs, babbles, drips or is not there, and comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.interop.recipients import DOMAIN, SENDER, entry, ldap_domain, rcpt, status, taken
from tests.support.clients import connect, queue_id, reference, transact
from tests.support.process import free_port, wait_until
from tests.support.slapd import Babbler, Slapd

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slapd() -> Iterator[Slapd]:
    server = Slapd([f"anna@{DOMAIN}"])
    yield server
    server.stop()


def test_a_slapd_that_is_killed_and_comes_back(gatepost, running, directory):
    slapd = running(Slapd([f"anna@{DOMAIN}", f"ben@{DOMAIN}", f"carl@{DOMAIN}"]))
    uri = f"ldap://127.0.0.1:{slapd.port}"
    gate = gatepost(
        domains={
            DOMAIN: ldap_domain(directory, uri),
            "accept.test": ldap_domain(directory, uri, more={"when_down": "accept"}),
            "list.test": {"next_hop": f"maildir:{directory}/mail", "recipients": {"list": ["anna"]}},
        },
        pipeline=entry(refresh="1s"),
    )
    down = {"store": uri}
    with connect(gate.port) as client:
        assert rcpt(client, f"anna@{DOMAIN}")[0] == 250
        slapd.kill()
        for name in ("ben", "carl", "dora", "emil"):
            code, text = rcpt(client, f"{name}@{DOMAIN}")
            assert (code, text.startswith("4.4.1 recipient cannot be checked now")) == (451, True)
            assert "127.0.0.1" not in text
        assert status(gate, text) == {
            "state": "unavailable",
            "source": "left-alone",
            "reply": "the store did not answer just before",
            "when_down": None,
        }
        queue_id(transact(client, SENDER, ["anyone@accept.test"]))
        assert rcpt(client, "anna@list.test")[0] == 250
        time.sleep(1)  # noqa: TID251 - what was known is now old enough to be asked for again
        assert rcpt(client, f"anna@{DOMAIN}")[0] == 250, "whom it knew still gets mail"
        assert gate.metric("gatepost_recipient_store_down", **down) == 1
        assert '"store.lost"' in gate.log
        assert '"ldap.server_lost"' in gate.log

        slapd.start()
        wait_until(lambda: taken(gate, f"ben@{DOMAIN}"), "the directory is asked again", 15)
        assert rcpt(client, f"nobody@{DOMAIN}")[0] == 550
    assert gate.metric("gatepost_recipient_store_down", **down) == 0
    assert '"store.back"' in gate.log
    assert '"ldap.server_back"' in gate.log


def test_a_slapd_that_is_restarted_between_two_questions_is_not_noticed(gatepost, running, directory):
    slapd = running(Slapd([f"anna@{DOMAIN}", f"ben@{DOMAIN}"]))
    gate = gatepost(domains={DOMAIN: ldap_domain(directory, f"ldap://127.0.0.1:{slapd.port}")}, pipeline=entry())
    with connect(gate.port) as client:
        assert rcpt(client, f"anna@{DOMAIN}")[0] == 250
        slapd.kill()
        slapd.start()
        assert rcpt(client, f"ben@{DOMAIN}")[0] == 250
    assert '"ldap.server_lost"' not in gate.log


def test_a_slapd_that_hangs_holds_up_its_own_recipients_for_its_time_and_nobody_else(gatepost, running, directory):
    slapd = running(Slapd([f"anna@{DOMAIN}", f"ben@{DOMAIN}"]))
    uri = f"ldap://127.0.0.1:{slapd.port}"
    gate = gatepost(
        domains={
            DOMAIN: ldap_domain(directory, uri, timeout="1s"),
            "list.test": {"next_hop": f"maildir:{directory}/mail", "recipients": {"list": ["anna"]}},
        },
        pipeline=entry(),
    )
    with connect(gate.port) as client, connect(gate.port) as other:
        assert rcpt(client, f"anna@{DOMAIN}")[0] == 250
        with slapd.hung():
            begun = time.monotonic()
            client.docmd("MAIL", f"FROM:<{SENDER}>")
            client.putcmd("RCPT", f"TO:<ben@{DOMAIN}>")
            assert rcpt(other, "anna@list.test")[0] == 250
            assert time.monotonic() - begun < 0.9, "the event loop did not wait for it"
            code, text = client.getreply()
            assert time.monotonic() - begun < 5
            assert (code, text[:6]) == (451, b"4.4.1 ")
            client.rset()
            for name in ("carl", "dora"):
                assert rcpt(client, f"{name}@{DOMAIN}")[0] == 451
            code, left = rcpt(client, f"emil@{DOMAIN}")
            assert (code, status(gate, left)["source"]) == (451, "left-alone")
        assert "no answer in time" in status(gate, text.decode())["reply"]
        wait_until(lambda: taken(gate, f"ben@{DOMAIN}"), "it is asked again", 15)


@pytest.mark.parametrize(
    ("answer", "every"), [(b"220 mx.example.test ESMTP\r\n", 0.0), (b"\x30\x0c\x02\x01\x01\x61\x07", 0.1)]
)
def test_garbage_and_octets_that_drip_are_a_directory_that_is_down(gatepost, running, directory, answer, every):
    babbler = running(Babbler(answer, every=every))
    ldap = {"uri": f"ldap://127.0.0.1:{babbler.port}", "timeout": "1s"}
    gate = gatepost(
        domains={
            DOMAIN: ldap_domain(directory, **ldap),
            "accept.test": ldap_domain(directory, **ldap, more={"when_down": "accept"}),
        },
        pipeline=entry(),
    )
    with connect(gate.port) as client:
        code, text = rcpt(client, f"anna@{DOMAIN}")
        assert (code, text.startswith("4.4.1 ")) == (451, True)
        assert rcpt(client, "anna@accept.test")[0] == 250
    assert status(gate, text)["state"] == "unavailable"


def test_the_second_server_answers_when_the_first_is_dead_hung_or_none(gatepost, running, slapd, directory):
    hung, garbage = running(Babbler(b"")), running(Babbler(b"hello"))
    good = f"ldap://127.0.0.1:{slapd.port}"
    first = {"dead.test": free_port(), "hung.test": hung.port, "garbage.test": garbage.port}
    gate = gatepost(
        domains={
            name: ldap_domain(directory, [f"ldap://127.0.0.1:{port}", good], filter=f"(mail=%u@{DOMAIN})", timeout="2s")
            for name, port in first.items()
        },
        pipeline=entry(),
    )
    with connect(gate.port) as client:
        for name in first:
            begun = time.monotonic()
            assert rcpt(client, f"anna@{name}")[0] == 250, name
            assert rcpt(client, f"nobody@{name}")[0] == 550, name
            assert time.monotonic() - begun < 3, name
    assert hung.connections == 1, "the second question did not go there again"


def test_a_base_that_does_not_exist_refuses_nobody_for_good(gatepost, slapd, directory):
    where = ldap_domain(directory, f"ldap://127.0.0.1:{slapd.port}", base="ou=poeple,dc=example,dc=test")
    gate = gatepost(domains={DOMAIN: where}, pipeline=entry())
    with connect(gate.port) as client:
        code, text = rcpt(client, f"anna@{DOMAIN}")
    assert code == 451
    assert "the base does not exist" in status(gate, text)["reply"]


def test_when_the_entrys_timeout_is_over_first_its_on_error_decides_and_its_breaker_opens_and_closes(
    gatepost, running, directory
):
    slapd = running(Slapd([f"r{n}@{DOMAIN}" for n in range(20)]))
    gate = gatepost(
        breaker_pause=2,
        domains={DOMAIN: ldap_domain(directory, f"ldap://127.0.0.1:{slapd.port}", timeout="6s")},
        pipeline=[{"recipient": {}, "timeout": "300ms", "on_error": "reject"}],
    )
    with connect(gate.port) as client:
        with slapd.hung():
            for n in range(6):
                code, text = rcpt(client, f"r{n}@{DOMAIN}")
                assert 500 <= code < 600, "on_error: reject"
            assert gate.metric("gatepost_breaker_open", plugin="recipient") == 1
        assert gate.metric("gatepost_findings_total", plugin="recipient", outcome="timeout") == 5
        assert gate.metric("gatepost_findings_total", plugin="recipient", outcome="breaker") >= 1
        assert '"plugin.fault"' in gate.log
        assert "breaker" in str(gate.cli("explain", reference(text)))
    wait_until(lambda: taken(gate, f"r9@{DOMAIN}"), "the breaker closes", 15)
    assert gate.metric("gatepost_breaker_open", plugin="recipient") == 0
    assert '"breaker.closed"' in gate.log
