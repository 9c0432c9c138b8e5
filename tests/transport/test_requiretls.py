"""Mail with REQUIRETLS goes only to a host that has proved who it is, and that asks the next one for the same."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from gateway.mail.envelope import MailParameters
from gateway.sdk.testing import FakeDns, FakeState, ManualClock
from gateway.transport.options import SmtpOptions, Timeouts
from gateway.transport.policies import Fetched, Policies
from gateway.transport.smtp import SmtpTransport
from gateway.transport.transport import Destination, Kind, Outcome, Result, Security
from tests.support.certificates import Issued, make_ca
from tests.transport.peer import Link, Peer, delivery, peer, run, statuses

CA = make_ca()
HOST = "mx.example.net"
LEAF = CA.issue(HOST, "localhost")
STRANGER = CA.issue("elsewhere.test")
STRICT = MailParameters(requiretls=True)


class Given:
    def __init__(self, body: str) -> None:
        self._body = body.encode()

    async def __call__(self, domain: str) -> Fetched:
        return Fetched(self._body)

    async def close(self) -> None:
        pass


def script(context: ssl.SSLContext | None, *offers: str, lmtp: bool = False) -> Any:
    async def speak(link: Link) -> None:
        async def hello(*extensions: str) -> None:
            if not lmtp:
                return await link.hello(*extensions)
            await link.hear("LHLO")
            await link.say("250-store", *[f"250-{extension}" for extension in extensions], "250 SIZE")

        await link.say("220 peer.test")
        await hello("PIPELINING", *(["STARTTLS"] if context else []))
        if context:
            await link.start_tls(context)
            await hello("PIPELINING", *offers)
        while True:
            await link.take()

    return speak


def attempt(
    tmp_path: Path,
    certificate: Issued | None = LEAF,
    *offers: str,
    security: Security = Security.OPPORTUNISTIC,
    by_mx: bool = True,
    authentic: bool = True,
    sts: str = "",
    tlsa: bool = False,
    parameters: MailParameters = STRICT,
    content: bytes = b"Subject: x\r\n\r\nHello\r\n",
    kind: Kind = Kind.SMTP,
    host: str = HOST,
    times: int = 1,
) -> tuple[Outcome, Peer]:
    """The last outcome of deliveries to a peer with this certificate that offers this under TLS."""

    async def main() -> tuple[Outcome, Peer]:
        ca, _ = CA.write(tmp_path, "ca")
        context = certificate.server(tmp_path) if certificate else None
        async with peer(script(context, *(offers or ("REQUIRETLS",)), lmtp=kind is Kind.LMTP)) as it:
            dns = FakeDns(
                a={HOST: ["127.0.0.1"]},
                mx={"example.net": [(10, HOST)]},
                txt={"_mta-sts.example.net": ["v=STSv1; id=1"]} if sts else {},
                tlsa={f"_{it.port}._tcp.{HOST}": [LEAF.tlsa()]} if tlsa else {},
                authentic=["example.net"] if authentic else [],
            )
            clock = ManualClock()
            text = f"version: STSv1\nmode: {sts}\nmx: {HOST}\nmax_age: 86400\n"
            policies = Policies(dns, FakeState(clock), clock, lambda: Given(text), str(ca))
            destination = Destination(
                kind, "example.net" if by_mx else host, it.port, mx=by_mx, security=security, tls_ca=str(ca)
            )
            t = SmtpTransport(destination, SmtpOptions("gate.test", Timeouts(quit=1.0)), dns, policies=policies)
            for _ in range(times):
                (outcome,) = await t.deliver(delivery(parameters=parameters, content=content))
            await t.close()
            await policies.close()
        return outcome, it

    return run(main())


@pytest.mark.parametrize("security", [Security.NONE, Security.OPPORTUNISTIC, Security.REQUIRE, Security.DANE])
def test_a_verified_host_that_offers_it_is_told(tmp_path: Path, security: Security):
    outcome, it = attempt(tmp_path, security=security)
    assert (outcome.result, outcome.tls_policy, outcome.tls_peer) == (Result.DELIVERED, "requiretls", "CA")
    assert "MAIL FROM:<ben@example.org> REQUIRETLS" in it.heard


def test_tlsa_records_vouch_for_it_too(tmp_path: Path):
    outcome, _ = attempt(tmp_path, make_ca().issue(HOST), tlsa=True)
    assert statuses([outcome]) == ["deferred 4.7.5"]
    outcome, _ = attempt(tmp_path, LEAF, tlsa=True)
    assert (outcome.result, outcome.tls_peer) == (Result.DELIVERED, "TLSA 3 1 1")


@pytest.mark.parametrize("mode", ["enforce", "testing"])
def test_a_policy_vouches_for_the_hosts_name_where_dnssec_does_not(tmp_path: Path, mode: str):
    outcome, _ = attempt(tmp_path, authentic=False, sts=mode)
    assert (outcome.result, outcome.tls_policy) == (Result.DELIVERED, "requiretls")


def test_a_next_hop_that_the_configuration_names_needs_nobody_to_vouch_for_its_name(tmp_path: Path):
    outcome, _ = attempt(tmp_path, by_mx=False, authentic=False)
    assert (outcome.result, outcome.tls_peer) == (Result.DELIVERED, "CA")


def no_hope(outcome: Outcome, it: Peer, words: str) -> None:
    assert statuses([outcome]) == ["failed 5.7.30"] and words in outcome.reply.text and not outcome.replied
    assert it.count("MAIL") == 0


def test_a_host_that_does_not_offer_it_gets_nothing(tmp_path: Path):
    no_hope(*attempt(tmp_path, LEAF, "SIZE"), "does not offer REQUIRETLS")


def test_a_host_without_tls_gets_nothing(tmp_path: Path):
    no_hope(*attempt(tmp_path, None), "does not offer STARTTLS")


def test_a_host_that_nobody_vouches_for_gets_nothing(tmp_path: Path):
    outcome, it = attempt(tmp_path, authentic=False)
    no_hope(outcome, it, "neither DNSSEC nor MTA-STS vouches")
    assert it.connections == 0


@pytest.mark.parametrize("certificate", [STRANGER, CA.issue(HOST, days=(-9, -2)), make_ca().issue(HOST)])
def test_a_host_that_is_not_who_it_should_be_gets_nothing_and_the_mail_waits(tmp_path: Path, certificate: Issued):
    outcome, it = attempt(tmp_path, certificate)
    assert statuses([outcome]) == ["deferred 4.7.5"] and outcome.tls_policy == "requiretls" and it.count("MAIL") == 0


def test_tls_required_no_takes_nothing_away_from_it(tmp_path: Path):
    outcome, it = attempt(tmp_path, STRANGER, sts="enforce", content=b"TLS-Required: No\r\n\r\nx\r\n")
    assert statuses([outcome]) == ["deferred 4.7.5"] and it.count("MAIL") == 0


def test_its_connections_are_of_its_own(tmp_path: Path):
    outcome, it = attempt(tmp_path, times=2)
    assert outcome.result is Result.DELIVERED and it.connections == 2


def test_a_mail_store_on_this_machine_is_no_next_hop(tmp_path: Path):
    store = {"kind": Kind.LMTP, "by_mx": False, "host": "127.0.0.1", "security": Security.NONE}
    outcome, _ = attempt(tmp_path, None, **store)
    assert outcome.result is Result.DELIVERED


def test_other_mail_is_not_told_to_require_it(tmp_path: Path):
    outcome, it = attempt(tmp_path, parameters=MailParameters())
    assert outcome.result is Result.DELIVERED and "REQUIRETLS" not in " ".join(it.heard)
