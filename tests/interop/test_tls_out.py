"""TLS towards a real Postfix, by names that knot serves signed and unbound validates."""

from __future__ import annotations

import asyncio
import contextlib
import email
import gzip
import http.server
import json
import random
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.app.tlsreports import WAIT
from gateway.sdk.testing import FakeState
from gateway.services.clock import SystemClock
from gateway.services.dns import DnsOptions, Resolver
from gateway.services.dns_options import Dnssec
from gateway.services.state import SqliteState
from gateway.transport.options import SmtpOptions, Timeouts
from gateway.transport.policies import Policies
from gateway.transport.policyfetch import PolicyFetcher
from gateway.transport.rule import Applied, Failure
from gateway.transport.smtp import SmtpTransport
from gateway.transport.tlsresults import DAY, Session, store
from gateway.transport.transport import Destination, Kind, Outcome, Security
from tests.support.certificates import Issued, make_ca
from tests.support.clients import connect, queue_id, transact
from tests.support.dkimkeys import rsa
from tests.support.policyhost import serving
from tests.support.postfix import Postfix, SmtpSink
from tests.support.process import free_port, new_directory, wait_until
from tests.support.signed import BOGUS, PLAIN, SIGNED, SignedZones, tlsa_line
from tests.transport.peer import delivery

pytestmark = pytest.mark.slow

CA = make_ca()
NAMES = [f"{host}.{SIGNED}" for host in ("ta", "ee", "roll", "public")]
GOOD = CA.issue(*NAMES)
OLD = CA.issue(*NAMES, f"ok.{SIGNED}", days=(-20, -10))
NEXT = CA.issue(*NAMES)


@dataclass
class World:
    """A Postfix with a good certificate at `port`, with an expired one at `old`, without STARTTLS at `clear`."""

    postfix: Postfix
    zones: SignedZones
    old: int
    clear: int
    ca: str
    public: str
    """An address on loopback with ports 25 and 443 of its own, where `public` and the policy host of `e2e` are."""

    @property
    def port(self) -> int:
        return self.postfix.port


def _zone(ports: tuple[int, ...], public: str) -> dict[str, list[str]]:
    def host(name: str, *records: Any) -> list[str]:
        return [f"{name} 60 A 127.0.0.1", *(tlsa_line(name, port, r) for port in ports for r in records)]

    signed = [
        *host("ee", GOOD.tlsa(), OLD.tlsa(3, 0, 2)),
        *host("ta", CA.tlsa(2, 0, 1)),
        *host("roll", NEXT.tlsa(), GOOD.tlsa()),
        *host("mismatch", NEXT.tlsa()),
        *host("misnamed", CA.tlsa(2, 1, 1)),
        *host("pkix", GOOD.tlsa(1)),
        *host("none"),
        "alias 60 CNAME ee",
        f"away 60 CNAME host.{PLAIN}.",
        f"_{ports[0]}._tcp.away 60 TLSA 3 1 1 {NEXT.tlsa().data.hex()}",
        f"public 60 A {public}",
        f"mta-sts.e2e 60 A {public}",
        "e2e 60 MX 10 public",
        '_mta-sts.e2e 60 TXT "v=STSv1; id=1;"',
        '_smtp._tls.reported 60 TXT "v=TLSRPTv1; rua=mailto:reports@store.test"',
        "sts 60 MX 10 ee",
        '_mta-sts.sts 60 TXT "v=STSv1; id=20261126;"',
        "mta-sts.sts 60 A 127.0.0.1",
        "mailto 60 MX 10 mismatch",
        "mailto 60 MX 20 ee",
        f"strange 60 MX 10 host.{PLAIN}.",
    ]
    plain = [*host("host", NEXT.tlsa()), f"mailto 60 MX 10 mismatch.{SIGNED}."]
    return {SIGNED: signed, PLAIN: plain, BOGUS: host("ee", GOOD.tlsa())}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    home = new_directory("certificates")
    ca, _ = CA.write(home, "ca")

    def tls(certificate: Issued, name: str) -> dict[str, str]:
        paths = [str(path) for path in certificate.write(home, name)]
        return {"smtpd_tls_cert_file": paths[0], "smtpd_tls_key_file": paths[1]}

    old, clear = free_port(), free_port()
    more = "".join(f" -o {key}={value}" for key, value in tls(OLD, "old").items())
    services = f"127.0.0.1:{old} inet n - n - - smtpd{more}\n"
    services += f"127.0.0.1:{clear} inet n - n - - smtpd -o smtpd_tls_security_level=none\n"
    public = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}.{random.randrange(2, 255)}"
    services += f"{public}:25 inet n - n - - smtpd\n"
    settings = {
        "smtpd_tls_security_level": "may",
        "relay_domains": "static:all",
        "default_transport": "discard",
        "relay_transport": "discard",
        **tls(GOOD, "good"),
    }
    postfix = Postfix(settings, services=services)
    try:
        zones = SignedZones(_zone((postfix.port, old, clear), public))
    except BaseException:
        postfix.stop()
        raise
    yield World(postfix, zones, old, clear, str(ca), public)
    zones.stop()
    postfix.stop()
    shutil.rmtree(home)


def attempt(
    world: World,
    host: str,
    security: Security,
    *,
    port: int = 0,
    mx: bool = False,
    ca: str = "",
    dnssec: Dnssec = Dnssec.LOOPBACK,
) -> Outcome:
    """One delivery over real DNS and real TLS."""

    async def main() -> Outcome:
        nameserver = ("127.0.0.1", world.zones.port)
        resolver = Resolver(DnsOptions((nameserver,), 10.0, dnssec), SystemClock())
        destination = Destination(Kind.SMTP, host, port or world.port, mx=mx, security=security, tls_ca=ca)
        transport = SmtpTransport(destination, SmtpOptions("gate.test", Timeouts(hello=30.0)), resolver)
        (outcome,) = await transport.deliver(delivery("anna@store.test"))
        await transport.close()
        await resolver.close()
        return outcome

    return asyncio.run(main())


def attempt_by_policy(world: World, policy: str, port: int) -> Outcome:
    """One delivery to a domain whose policy comes over HTTPS."""
    name = f"sts.{SIGNED}"

    async def main() -> Outcome:
        clock = SystemClock()
        resolver = Resolver(DnsOptions((("127.0.0.1", world.zones.port),), 10.0), clock)
        body = f"version: STSv1\r\nmode: {policy}\r\nmax_age: 86400\r\n".encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        context = CA.issue(f"mta-sts.{name}").server(Path(world.ca).parent)
        async with serving(context, head + body, []) as https:
            fetcher = PolicyFetcher(resolver, port=https, ca_file=world.ca)
            policies = Policies(resolver, FakeState(clock), clock, lambda: fetcher, world.ca)
            destination = Destination(Kind.SMTP, name, port, mx=True)
            transport = SmtpTransport(destination, SmtpOptions("gate.test"), resolver, policies=policies)
            (outcome,) = await transport.deliver(delivery(f"anna@{name}"))
            await transport.close()
            await policies.close()
        await resolver.close()
        return outcome

    return asyncio.run(main())


def said(outcome: Outcome) -> tuple[str, str, str]:
    return outcome.result.value, outcome.tls_policy, outcome.tls_peer


def deferred(outcome: Outcome, words: str) -> None:
    assert (outcome.result.value, outcome.reply.status, outcome.tls_peer) == ("deferred", "4.7.5", ""), outcome
    assert words in outcome.reply.text


@pytest.mark.parametrize("host", ["ee", "ta", "roll", "alias"])
@pytest.mark.parametrize("security", [Security.DANE, Security.DANE_ONLY])
def test_dane_authenticates_a_postfix_by_its_tlsa_records(world: World, host: str, security: Security):
    outcome = attempt(world, f"{host}.{SIGNED}", security)
    peer = "TLSA 2 0 1" if host == "ta" else "TLSA 3 1 1"
    assert said(outcome) == ("delivered", security.value, peer)
    assert outcome.tls.startswith("TLSv1.3/")


def test_an_end_entitys_certificate_may_have_expired_and_a_trust_anchors_may_not(world: World):
    assert said(attempt(world, f"ee.{SIGNED}", Security.DANE, port=world.old)) == ("delivered", "dane", "TLSA 3 0 2")
    deferred(attempt(world, f"ta.{SIGNED}", Security.DANE, port=world.old), "trust anchor")


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("mismatch", "no TLSA record is for its certificates"),
        ("misnamed", "the TLSA trust anchor does not vouch for it"),
    ],
)
def test_dane_defers_for_a_postfix_that_the_records_do_not_speak_of(world: World, host: str, words: str):
    for security in (Security.DANE, Security.DANE_ONLY):
        deferred(attempt(world, f"{host}.{SIGNED}", security), words)


def test_dane_never_sends_in_the_clear_where_there_are_records(world: World):
    for host in ("ee", "pkix"):
        deferred(attempt(world, f"{host}.{SIGNED}", Security.DANE, port=world.clear), "does not offer STARTTLS")


def test_records_that_cannot_be_used_ask_for_tls(world: World):
    assert said(attempt(world, f"pkix.{SIGNED}", Security.DANE)) == ("delivered", "dane-unusable", "")
    deferred(attempt(world, f"pkix.{SIGNED}", Security.DANE_ONLY), "no usable TLSA record")


@pytest.mark.parametrize("host", [f"none.{SIGNED}", f"host.{PLAIN}"])
def test_without_validated_records_dane_is_opportunistic_and_dane_only_defers(world: World, host: str):
    assert said(attempt(world, host, Security.DANE)) == ("delivered", "opportunistic", "")
    deferred(attempt(world, host, Security.DANE_ONLY), "no TLSA record that DNSSEC validates")


def test_an_answer_that_is_bogus_defers_and_is_no_reason_to_go_without(world: World):
    outcome = attempt(world, f"ee.{BOGUS}", Security.DANE)
    assert outcome.result.value == "deferred" and "SERVFAIL" in outcome.reply.text


def test_a_validated_alias_that_leads_to_an_unsigned_host_keeps_its_own_records(world: World):
    deferred(attempt(world, f"away.{SIGNED}", Security.DANE), "no TLSA record is for its certificates")


def test_an_exchanger_that_is_not_who_it_should_be_is_passed_over_for_the_next(world: World):
    outcome = attempt(world, f"mailto.{SIGNED}", Security.DANE, mx=True)
    assert said(outcome) == ("delivered", "dane", "TLSA 3 1 1") and outcome.host == f"ee.{SIGNED}"


def test_unsigned_mx_records_and_unsigned_hosts_are_outside_of_dane(world: World):
    for domain in (f"mailto.{PLAIN}", f"strange.{SIGNED}"):
        assert said(attempt(world, domain, Security.DANE, mx=True)) == ("delivered", "opportunistic", "")
        deferred(attempt(world, domain, Security.DANE_ONLY, mx=True), "no TLSA record that DNSSEC validates")


def test_nobodys_word_is_taken_when_the_operator_says_so(world: World):
    assert said(attempt(world, f"ee.{SIGNED}", Security.DANE, dnssec=Dnssec.OFF)) == ("delivered", "opportunistic", "")


def test_verify_takes_the_name_in_the_certificate_and_no_other_and_no_expired_one(world: World):
    assert said(attempt(world, f"ee.{SIGNED}", Security.VERIFY, ca=world.ca)) == ("delivered", "verify", "CA")
    deferred(attempt(world, f"none.{SIGNED}", Security.VERIFY, ca=world.ca), "Hostname mismatch")
    deferred(attempt(world, f"ee.{SIGNED}", Security.VERIFY, ca=world.ca, port=world.old), "expired")
    deferred(attempt(world, f"ee.{SIGNED}", Security.VERIFY), "self-signed certificate in certificate chain")
    deferred(attempt(world, f"ee.{SIGNED}", Security.VERIFY, ca=world.ca, port=world.clear), "STARTTLS")


def test_require_takes_any_certificate_and_nothing_in_the_clear(world: World):
    assert said(attempt(world, f"host.{PLAIN}", Security.REQUIRE, port=world.old)) == ("delivered", "require", "")
    deferred(attempt(world, f"host.{PLAIN}", Security.REQUIRE, port=world.clear), "does not offer STARTTLS")


def test_an_mta_sts_policy_holds_for_a_postfix(world: World):
    good = f"enforce\r\nmx: ee.{SIGNED}"
    assert said(attempt_by_policy(world, good, world.port)) == ("delivered", "mta-sts", "CA")
    deferred(attempt_by_policy(world, good, world.old), "expired")
    deferred(attempt_by_policy(world, good, world.clear), "does not offer STARTTLS")
    deferred(attempt_by_policy(world, f"enforce\r\nmx: ta.{SIGNED}", world.port), "does not name")
    outcome = attempt_by_policy(world, f"testing\r\nmx: ee.{SIGNED}", world.old)
    assert said(outcome) == ("delivered", "opportunistic", "") and outcome.tls


def test_the_record_the_log_and_the_metrics_say_how_mail_left(gatepost, world: World):
    gate = gatepost(
        dns={"nameservers": [world.zones.address], "timeout": "10s"},
        domains={
            name: {"next_hop": f"smtp:{host}.{SIGNED}:{world.port}", "recipients": "any", "tls": "dane"}
            for name, host in (("good.test", "ta"), ("bad.test", "mismatch"))
        },
    )
    with connect(gate.port) as client:
        good = queue_id(transact(client, "ann@sender.test", ["ben@good.test"]))
        bad = queue_id(transact(client, "ann@sender.test", ["ben@bad.test"]))
    (attempt,) = wait_until(lambda: gate.cli("explain", good)[0]["attempts"], "it was delivered")
    assert attempt["outcome"] == "delivered"
    assert (attempt["tls"]["policy"], attempt["tls"]["peer"]) == ("dane", "TLSA 2 0 1")
    assert attempt["tls"]["session"].startswith("TLSv1.3/")
    assert "peer by TLSA 2 0 1" in gate.run("explain", good)
    (attempt,) = wait_until(lambda: gate.cli("explain", bad)[0]["attempts"], "it was deferred")
    assert attempt["tls"] == {"policy": "dane", "session": "", "peer": ""}
    assert "no TLSA record" in gate.queue()[0]["recipients"][0]["last"]
    assert gate.metric("gatepost_tls_out_total", policy="dane", result="authenticated") == 1
    assert gate.metric("gatepost_tls_out_total", policy="dane", result="certificate-not-trusted") >= 1
    assert re.search(r'"tls_peer": ?"TLSA 2 0 1"', gate.log)


class _PolicyHandler(http.server.BaseHTTPRequestHandler):
    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def policy_host(world: World, policy: str) -> Iterator[None]:
    """The policy host of `e2e`, on port 443."""
    handler = type("Handler", (_PolicyHandler,), {"body": policy.encode()})
    server = http.server.HTTPServer((world.public, 443), handler)
    context = CA.issue(f"mta-sts.e2e.{SIGNED}").server(Path(world.ca).parent)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_policy_is_fetched_enforced_and_still_holds_after_a_restart_without_its_host(
    gatepost, world: World, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SSL_CERT_FILE", world.ca)
    options: dict[str, Any] = {
        "dns": {"nameservers": [world.zones.address], "timeout": "10s"},
        "relay_from": ["127.0.0.0/8"],
    }

    def send(gate: Any) -> dict[str, Any]:
        with connect(gate.port) as client:
            id = queue_id(transact(client, "ann@sender.test", [f"ben@e2e.{SIGNED}"]))
        attempts = wait_until(lambda: gate.cli("explain", id)[0]["attempts"], "it was attempted")
        first: dict[str, Any] = attempts[0]
        return first

    with policy_host(world, f"version: STSv1\nmode: enforce\nmx: public.{SIGNED}\nmax_age: 86400\n"):
        gate = gatepost(**options)
        attempt = send(gate)
    assert attempt["outcome"] == "delivered", attempt
    assert (attempt["tls"]["policy"], attempt["tls"]["peer"]) == ("mta-sts", "CA")
    assert gate.metric("gatepost_sts_fetches_total", result="fetched") == 1
    gate.stop()
    gate.start()
    attempt = send(gate)
    assert attempt["tls"]["policy"] == "mta-sts"
    assert gate.log.count("mta_sts.policy") == 1
    # Without the CA that vouches for the mail host, the kept policy keeps mail back.
    gate.stop()
    monkeypatch.setenv("SSL_CERT_FILE", str(make_ca().write(Path(world.ca).parent, "other-ca")[0]))
    gate.start()
    attempt = send(gate)
    assert (attempt["outcome"], attempt["tls"]["policy"]) == ("deferred", "mta-sts")


def test_yesterdays_sessions_are_reported_once_in_a_signed_mail(gatepost, running, world: World, directory: Path):
    domain = f"reported.{SIGNED}"
    clock = SystemClock()
    day = int(clock.now() - WAIT) // DAY - 1
    keys = [{"selector": "sel", "key_file": rsa(2048).write(directory / "dkim.pem")}]

    async def remember() -> None:
        state = SqliteState(directory, clock)
        await state.start()
        await store(state, day, Session(domain, Applied("tlsa", ("3 1 1 ab",))), 41)
        await store(state, day, Session(domain, Applied(), Failure.NO_STARTTLS, "no STARTTLS", "mx.test"), 1)
        await state.close()

    asyncio.run(remember())
    sink = running(SmtpSink(dump=True))
    gate = gatepost(
        workers=2,
        dns={"nameservers": [world.zones.address], "timeout": "10s"},
        state={"path": str(directory)},
        outbound_tls={"reports": {"email": "tls@example.org"}},
        pipeline=[{"dkim-sign": {"domains": {"example.org": {"keys": keys}}}}],
        domains={"store.test": {"next_hop": f"smtp:127.0.0.1:{sink.port}", "recipients": "any", "tls": "none"}},
    )
    sink.wait_count(1)
    gate.wait_empty()
    (stored,) = sink.messages()
    mail = email.message_from_string(stored[stored.index("DKIM-Signature") :])
    signature = "".join(mail["DKIM-Signature"].split())
    assert "d=example.org" in signature and mail["TLS-Report-Domain"] == domain
    assert ":tls-report-domain:tls-report-submitter" in signature and ":tls-required" in signature
    report = json.loads(gzip.decompress(mail.get_payload()[1].get_payload(decode=True)))  # type: ignore[union-attr]
    summaries = {p["policy"]["policy-type"]: p["summary"] for p in report["policies"]}
    assert summaries["tlsa"]["total-successful-session-count"] == 41
    assert summaries["no-policy-found"]["total-failure-session-count"] == 1
    assert gate.metric("gatepost_tls_reports_total", outcome="sent") == 1
