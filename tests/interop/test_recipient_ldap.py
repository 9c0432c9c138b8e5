"""Recipients in an LDAP directory: a real slapd, with and without TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.recipients import DOMAIN, SENDER, entry, ldap_domain, rcpt, status
from tests.support.clients import connect, queue_id, reference, transact
from tests.support.gatepost import refused_start
from tests.support.servers import Certificate
from tests.support.slapd import PASSWORD, Slapd, password_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slapd(certificate: Certificate) -> Iterator[Slapd]:
    server = Slapd([f"anna@{DOMAIN}", f"ben.b@{DOMAIN}", f"star@{DOMAIN}"], certificate=certificate)
    yield server
    server.stop()


def test_who_has_an_entry_gets_mail_and_nobody_else(gatepost, slapd, directory):
    gate = gatepost(
        domains={DOMAIN: ldap_domain(directory, f"ldap://127.0.0.1:{slapd.port}", more={"subaddress": "+"})},
        pipeline=entry(),
    )
    searches, binds = slapd.count("SRCH base"), slapd.count("BIND dn")
    with connect(gate.port) as client:
        for _ in range(2):  # the second time from memory
            code, text = transact(client, SENDER, [f"nobody@{DOMAIN}"])
            assert (code, text.startswith("5.1.1 ")) == (550, True)
        for address in ("anna", "ANNA", "ben.b", "anna+news", "postmaster"):
            queue_id(transact(client, SENDER, [f"{address}@{DOMAIN}"]))
        for address in ('"*"', '"a)(mail=*"', "st*", "anna-news", "anna.", "+anna"):
            code, _ = rcpt(client, f"{address}@{DOMAIN}")
            assert 500 <= code < 600, address
    gate.wait_empty()
    assert status(gate, text) == {
        "state": "unknown",
        "source": "cache",
        "reply": "the directory has no entry",
        "when_down": None,
    }
    assert gate.metric("gatepost_recipient_lookups_total", source="ldap", state="exists") == 3
    assert slapd.count("SRCH base") - searches == 3 + 2 + 5, "one each, two for a subaddress, none from memory"
    assert slapd.count("BIND dn") - binds <= 2, "the connection was used again"


@pytest.mark.parametrize("tls", ["ldaps", "starttls"])
def test_over_tls_with_a_certificate_that_is_good_for_the_name(gatepost, slapd, directory, certificate, tls):
    uri = f"ldaps://localhost:{slapd.tls_port}" if tls == "ldaps" else f"ldap://localhost:{slapd.port}"
    wrong = uri.replace("localhost", "127.0.0.2")
    options = {"tls_ca": str(certificate.certificate), "starttls": tls == "starttls"}
    gate = gatepost(
        domains={
            DOMAIN: ldap_domain(directory, uri, **options),
            "other.test": ldap_domain(directory, wrong, **options, connect_timeout="1s"),
            "nobodys.test": ldap_domain(directory, uri, starttls=tls == "starttls"),
        },
        pipeline=entry(),
    )
    with connect(gate.port) as client:
        assert rcpt(client, f"anna@{DOMAIN}")[0] == 250
        assert rcpt(client, f"nobody@{DOMAIN}")[0] == 550
        code, _ = rcpt(client, "anna@other.test")
        assert code == 451, "slapd is not there at 127.0.0.2, and would not be called so"
        code, text = rcpt(client, "anna@nobodys.test")
        assert code == 451, "no CA of the system's has signed it"
    assert "CERTIFICATE_VERIFY_FAILED" in status(gate, text)["reply"]


def test_the_password_is_in_no_log_record_or_message(gatepost, slapd, directory):
    uri = f"ldap://127.0.0.1:{slapd.port}"
    wrong = password_file(directory, "another secret") + ".wrong"
    Path(wrong).write_text("another secret\n")
    gate = gatepost(
        domains={DOMAIN: ldap_domain(directory, uri), "wrong.test": ldap_domain(directory, uri, password_file=wrong)},
        pipeline=entry(),
        log={"level": "debug"},
    )
    with connect(gate.port) as client:
        assert rcpt(client, f"nobody@{DOMAIN}")[0] == 550
        code, text = rcpt(client, "anna@wrong.test")
        assert code == 451
    assert "invalidCredentials" in status(gate, text)["reply"]
    said = [gate.log, gate.run("explain", reference(text)), gate.run("check"), gate.http("GET", "/metrics")[1]]
    for secret in (PASSWORD, "another secret", PASSWORD.encode().hex()):
        assert not any(secret in out for out in said)
    Path(wrong).write_text("\n")
    assert "the first line is empty; it must hold the password" in gate.run("check", "--json", status=2)


def test_without_the_package_it_does_not_start_and_says_what_to_install(slapd, directory, monkeypatch):
    hidden = directory / "hidden"
    hidden.mkdir()
    (hidden / "ldap3.py").write_text("raise ImportError('no ldap3 here')\n")
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    code, said = refused_start({"domains": {DOMAIN: ldap_domain(directory, f"ldap://127.0.0.1:{slapd.port}")}})
    assert code == 2
    assert "needs the package ldap3: install gatepost[ldap]" in said
