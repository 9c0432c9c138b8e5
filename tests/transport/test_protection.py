"""What an MTA-STS policy does to deliveries, beside what the configuration and TLSA records ask for."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from gateway.sdk.testing import FakeDns, FakeState, ManualClock
from gateway.transport.options import SmtpOptions, Timeouts
from gateway.transport.policies import Fetched, Policies
from gateway.transport.smtp import SmtpTransport
from gateway.transport.tlsresults import Session
from gateway.transport.transport import Destination, Kind, Outcome, Result, Security
from tests.support.certificates import Issued, make_ca
from tests.transport.peer import Link, Peer, delivery, peer, run, statuses

CA = make_ca()
HOST = "mx.example.net"
LEAF = CA.issue(HOST)
STRANGER = CA.issue("elsewhere.test")


class Given:
    """A policy's host that always gives the same."""

    def __init__(self, body: str) -> None:
        self._body = body.encode()

    async def __call__(self, domain: str) -> Fetched:
        return Fetched(self._body)

    async def close(self) -> None:
        pass


def script(context: ssl.SSLContext | None) -> Any:
    async def speak(link: Link) -> None:
        await link.greet("PIPELINING", *(["STARTTLS"] if context else []))
        if context:
            await link.start_tls(context)
            await link.hello("PIPELINING")
        await link.take()
        await link.end()

    return speak


def attempt(
    tmp_path: Path,
    *certificates: Issued | None,
    mode: str = "enforce",
    mx: str = HOST,
    security: Security = Security.OPPORTUNISTIC,
    by_mx: bool = True,
    content: bytes = b"Subject: x\r\n\r\nHello\r\n",
    results: Any = None,
    times: int = 1,
    **zone: Any,
) -> tuple[Outcome, Peer]:
    """One delivery to a peer with these certificates, connection by connection; None for one without STARTTLS."""

    async def main() -> tuple[Outcome, Peer]:
        ca, _ = CA.write(tmp_path, "ca")
        async with peer(*(script(c and c.server(tmp_path)) for c in certificates)) as it:
            tlsa = {f"_{it.port}._tcp.{HOST}": zone["tlsa"]} if "tlsa" in zone else {}
            dns = FakeDns(
                a={HOST: ["127.0.0.1"]},
                mx={"example.net": [(10, HOST)]},
                txt={"_mta-sts.example.net": ["v=STSv1; id=1"]},
                tlsa=tlsa,
                authentic=["example.net"],
            )
            clock = ManualClock()
            text = f"version: STSv1\nmode: {mode}\nmx: {mx}\nmax_age: 86400\n"
            policies = Policies(dns, FakeState(clock), clock, lambda: Given(text), str(ca))
            destination = Destination(Kind.SMTP, "example.net" if by_mx else HOST, it.port, mx=by_mx, security=security)
            t = SmtpTransport(
                destination, SmtpOptions("gate.test", Timeouts(quit=1.0)), dns, policies=policies, results=results
            )
            for _ in range(times):
                (outcome,) = await t.deliver(delivery(content=content))
            await t.close()
            await policies.close()
        return outcome, it

    return run(main())


def refused(outcome: Outcome, it: Peer, words: str) -> None:
    assert statuses([outcome]) == ["deferred 4.7.5"] and words in outcome.reply.text, outcome.reply.text
    assert outcome.tls_policy == "mta-sts" and it.count("MAIL") == 0


@pytest.mark.parametrize("security", [Security.OPPORTUNISTIC, Security.REQUIRE, Security.DANE])
@pytest.mark.parametrize("mx", [HOST, "*.example.net"])
def test_enforce_takes_a_named_host_with_a_good_certificate(tmp_path: Path, security: Security, mx: str):
    outcome, _ = attempt(tmp_path, LEAF, mx=mx, security=security)
    assert (outcome.result, outcome.tls_policy, outcome.tls_peer) == (Result.DELIVERED, "mta-sts", "CA")


@pytest.mark.parametrize(
    ("certificate", "words"),
    [
        (STRANGER, "Hostname mismatch"),
        (CA.issue(HOST, days=(-9, -2)), "expired"),
        (make_ca().issue(HOST), "self-signed certificate in certificate chain"),
        (None, "does not offer STARTTLS"),
    ],
    ids=["wrong name", "expired", "unknown CA", "no STARTTLS"],
)
def test_enforce_defers_otherwise(tmp_path: Path, certificate: Issued | None, words: str):
    refused(*attempt(tmp_path, certificate), words)


def test_enforce_defers_for_a_host_that_the_policy_does_not_name(tmp_path: Path):
    outcome, it = attempt(tmp_path, LEAF, mx="mx2.example.net")
    refused(outcome, it, "the policy of example.net does not name mx.example.net")
    assert it.connections == 0


def test_testing_delivers_in_any_case(tmp_path: Path):
    outcome, it = attempt(tmp_path, LEAF, mode="testing")
    assert (outcome.result, outcome.tls_policy, outcome.tls_peer) == (Result.DELIVERED, "mta-sts-testing", "CA")
    outcome, it = attempt(tmp_path, STRANGER, mode="testing")
    assert (outcome.result, outcome.tls_policy, outcome.tls_peer) == (Result.DELIVERED, "opportunistic", "")
    assert outcome.tls and it.connections == 2
    outcome, _ = attempt(tmp_path, None, mode="testing")
    assert (outcome.result, outcome.tls) == (Result.DELIVERED, "")
    outcome, _ = attempt(tmp_path, LEAF, mode="testing", mx="mx2.example.net")
    assert (outcome.result, outcome.tls_policy) == (Result.DELIVERED, "opportunistic")


def test_testing_takes_nothing_away_from_what_the_configuration_requires(tmp_path: Path):
    outcome, it = attempt(tmp_path, None, mode="testing", security=Security.REQUIRE)
    assert statuses([outcome]) == ["deferred 4.7.5"] and it.count("MAIL") == 0


def test_a_policy_of_mode_none_asks_for_nothing(tmp_path: Path):
    outcome, _ = attempt(tmp_path, None, mode="none")
    assert (outcome.result, outcome.tls_policy) == (Result.DELIVERED, "opportunistic")


def test_a_next_hop_that_the_configuration_names_has_no_policy(tmp_path: Path):
    outcome, _ = attempt(tmp_path, None, by_mx=False)
    assert (outcome.result, outcome.tls_policy) == (Result.DELIVERED, "opportunistic")


def test_none_asks_for_no_tls_whatever_is_published(tmp_path: Path):
    outcome, _ = attempt(tmp_path, None, security=Security.NONE)
    assert (outcome.result, outcome.tls_policy) == (Result.DELIVERED, "none")


def test_dane_goes_before_mta_sts(tmp_path: Path):
    outcome, _ = attempt(tmp_path, STRANGER, security=Security.DANE, tlsa=[STRANGER.tlsa()])
    assert (outcome.result, outcome.tls_policy, outcome.tls_peer) == (Result.DELIVERED, "dane", "TLSA 3 1 1")
    outcome, it = attempt(tmp_path, LEAF, security=Security.DANE, tlsa=[STRANGER.tlsa()])
    assert statuses([outcome]) == ["deferred 4.7.5"] and outcome.tls_policy == "dane" and it.count("MAIL") == 0


# TLS-Required: No.


NOT_REQUIRED = b"Subject: x\r\nTLS-Required: No\r\n\r\nHello\r\n"


@pytest.mark.parametrize("security", [Security.OPPORTUNISTIC, Security.DANE])
def test_a_message_that_says_so_goes_where_what_the_domain_publishes_is_in_the_way(tmp_path: Path, security: Security):
    outcome, it = attempt(tmp_path, STRANGER, security=security, content=NOT_REQUIRED)
    assert (outcome.result, outcome.tls_policy) == (Result.DELIVERED, "tls-required-no")
    assert outcome.tls and it.connections == 2
    outcome, _ = attempt(tmp_path, None, security=security, content=NOT_REQUIRED)
    assert (outcome.result, outcome.tls) == (Result.DELIVERED, "")


def test_it_goes_past_tlsa_records_too_and_past_hosts_that_a_policy_does_not_name(tmp_path: Path):
    outcome, _ = attempt(tmp_path, STRANGER, security=Security.DANE, tlsa=[LEAF.tlsa()], content=NOT_REQUIRED)
    assert (outcome.result, outcome.tls_policy) == (Result.DELIVERED, "tls-required-no")
    outcome, _ = attempt(tmp_path, LEAF, mx="mx2.example.net", content=NOT_REQUIRED)
    assert (outcome.result, outcome.tls_policy) == (Result.DELIVERED, "tls-required-no")


def test_a_policy_that_the_host_fits_is_kept_to_all_the_same(tmp_path: Path):
    outcome, it = attempt(tmp_path, LEAF, content=NOT_REQUIRED)
    assert (outcome.tls_policy, outcome.tls_peer, it.connections) == ("mta-sts", "CA", 1)


def test_the_connection_of_such_a_message_serves_no_other(tmp_path: Path):
    outcome, it = attempt(tmp_path, STRANGER, content=NOT_REQUIRED, times=2)
    assert outcome.result is Result.DELIVERED and it.connections == 4


@pytest.mark.parametrize("security", [Security.REQUIRE, Security.VERIFY, Security.DANE_ONLY])
def test_it_takes_nothing_away_from_what_the_configuration_requires(tmp_path: Path, security: Security):
    outcome, it = attempt(tmp_path, None, security=security, content=NOT_REQUIRED, tlsa=[LEAF.tlsa()])
    assert statuses([outcome]) == ["deferred 4.7.5"] and it.count("MAIL") == 0


@pytest.mark.parametrize(
    "content",
    [
        b"Subject: x\r\n\r\nTLS-Required: No\r\n",
        b"TLS-Required: Yes\r\n\r\n",
        b"TLS-Required: No\r\nTLS-Required: No\r\n\r\n",
        b"X-TLS-Required: No\r\n\r\n",
        b"TLS-Required: No\r\n way\r\n\r\n",
        b"Subject: a\r\n TLS-Required: No\r\n\r\n",
    ],
)
def test_only_the_field_itself_says_so_and_only_once(tmp_path: Path, content: bytes):
    refused(*attempt(tmp_path, STRANGER, content=content), "Hostname mismatch")


# What is counted for reports.


class Counted:
    """Keeps sessions."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []

    def count(self, session: Session) -> None:
        self.sessions.append(session)

    @property
    def short(self) -> list[tuple[str, str]]:
        return [(s.applied.kind, s.failure.value if s.failure else "") for s in self.sessions]


def counted(tmp_path: Path, *certificates: Issued | None, **more: Any) -> Counted:
    results = Counted()
    attempt(tmp_path, *certificates, results=results, **more)
    return results


def test_each_session_is_counted_once_under_the_policy_that_applied(tmp_path: Path):
    assert counted(tmp_path, LEAF).short == [("sts", "")]
    assert counted(tmp_path, STRANGER).short == [("sts", "certificate-host-mismatch")]
    assert counted(tmp_path, STRANGER, mode="testing").short == [("sts", "certificate-host-mismatch")]
    assert counted(tmp_path, LEAF, mode="none").short == [("no-policy-found", "")]
    assert counted(tmp_path, None, mode="none").short == [("no-policy-found", "starttls-not-supported")]
    dane = {"security": Security.DANE, "tlsa": [LEAF.tlsa()]}
    assert counted(tmp_path, LEAF, **dane).short == [("tlsa", "")]
    assert counted(tmp_path, STRANGER, **dane).short == [("tlsa", "certificate-not-trusted")]


def test_a_failure_is_counted_with_what_tells_it_from_others(tmp_path: Path):
    (session,) = counted(tmp_path, CA.issue(HOST, days=(-9, -2))).sessions
    assert (session.domain, session.host, session.address, session.local) == (
        "example.net",
        HOST,
        "127.0.0.1",
        "127.0.0.1",
    )
    assert "expired" in session.reason and session.applied.mx == (HOST,)
    assert session.applied.strings[0] == "version: STSv1"


def test_what_fails_before_there_is_a_connection_is_counted(tmp_path: Path):
    assert counted(tmp_path, LEAF, mx="mx2.example.net").short == [("sts", "certificate-host-mismatch")]
    assert counted(tmp_path, LEAF, security=Security.DANE_ONLY).short == [("tlsa", "dane-required")]
    assert counted(tmp_path, LEAF, mode="strange").short == [("sts", "sts-policy-invalid"), ("no-policy-found", "")]


def test_messages_that_do_not_require_tls_and_next_hops_of_the_configuration_are_not_counted(tmp_path: Path):
    assert counted(tmp_path, STRANGER, content=NOT_REQUIRED).short == []
    assert counted(tmp_path, LEAF, content=NOT_REQUIRED).short == []
    assert counted(tmp_path, LEAF, by_mx=False).short == []
