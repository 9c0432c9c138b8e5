"""TLS towards next hops, with certificates made by the openssl command."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tests.transport.peer
from gateway.sdk.services import Tlsa
from gateway.sdk.testing import FakeDns
from gateway.transport.options import SmtpOptions, Timeouts
from gateway.transport.rule import Level
from gateway.transport.smtp import SmtpTransport
from gateway.transport.tls import make_context
from gateway.transport.transport import Destination, Fault, Kind, Outcome, Result, Security
from tests.support.certificates import make_ca
from tests.support.process import new_directory
from tests.support.servers import Certificate, make_certificate
from tests.transport.peer import Link, Peer, delivery, peer, run, statuses, transport


@pytest.fixture(autouse=True, params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds on both event loops."""
    monkeypatch.setattr(tests.transport.peer, "LOOP", request.param)


@pytest.fixture(scope="module")
def certificate() -> Iterator[Certificate]:
    """For localhost and 127.0.0.1."""
    yield make_certificate(new_directory("tls"))


@pytest.fixture
def server(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    return context


def taking(context: ssl.SSLContext) -> Any:
    async def script(link: Link) -> None:
        await link.greet("PIPELINING", "STARTTLS")
        await link.start_tls(context)
        await link.hello("PIPELINING")
        await link.take()
        await link.end()

    return script


async def in_the_clear(link: Link) -> None:
    await link.greet("PIPELINING")
    await link.take()
    await link.end()


@pytest.mark.parametrize("security", [Security.OPPORTUNISTIC, Security.REQUIRE])
def test_any_certificate_will_do_without_verification(server: ssl.SSLContext, security: Security):
    async def main() -> None:
        async with peer(taking(server)) as it:
            t = transport(it.port, security=security)
            (outcome,) = await t.deliver(delivery())
            await t.close()
        assert outcome.result is Result.DELIVERED
        assert outcome.tls.startswith("TLSv1.3/TLS_")
        assert it.count("EHLO") == 2, "EHLO is said again under TLS"

    run(main())


def test_verify_takes_the_right_name_from_the_right_ca(server: ssl.SSLContext, certificate: Certificate):
    async def main() -> None:
        async with peer(taking(server)) as it:
            t = transport(it.port, host="localhost", security=Security.VERIFY, tls_ca=str(certificate.certificate))
            (outcome,) = await t.deliver(delivery())
            await t.close()
        assert outcome.result is Result.DELIVERED and outcome.tls

    run(main())


def test_verify_refuses_another_name(server: ssl.SSLContext, certificate: Certificate):
    async def main() -> None:
        dns = FakeDns(a={"store.example.net": ["127.0.0.1"]})
        async with peer(taking(server)) as it:
            ca = str(certificate.certificate)
            t = transport(it.port, host="store.example.net", security=Security.VERIFY, tls_ca=ca, dns=dns)
            (outcome,) = await t.deliver(delivery())
            await t.close()
        assert statuses([outcome]) == ["deferred 4.7.5"] and outcome.fault is Fault.CONNECT
        assert it.count("MAIL") == 0

    run(main())


def test_verify_refuses_an_unknown_ca(server: ssl.SSLContext):
    async def main() -> None:
        async with peer(taking(server)) as it:
            t = transport(it.port, host="localhost", security=Security.VERIFY)
            assert statuses(await t.deliver(delivery())) == ["deferred 4.7.5"]
            assert it.count("MAIL") == 0
            await t.close()

    run(main())


@pytest.mark.parametrize("security", [Security.REQUIRE, Security.VERIFY])
def test_mail_is_not_sent_in_the_clear_when_tls_is_required(security: Security):
    async def main() -> None:
        async with peer(in_the_clear) as it:
            t = transport(it.port, security=security)
            assert statuses(await t.deliver(delivery())) == ["deferred 4.7.5"]
            await t.close()
            assert it.count("MAIL") == 0

    run(main())


async def breaks_the_handshake(link: Link) -> None:
    await link.greet("PIPELINING", "STARTTLS")
    await link.hear("STARTTLS")
    await link.say("220 go ahead")
    await link.reader.read(1)
    await link.say("this is no TLS record, whatever you think of it")
    await link.reader.read()


async def drops_the_handshake(link: Link) -> None:
    await link.greet("PIPELINING", "STARTTLS")
    await link.hear("STARTTLS")
    await link.say("220 go ahead")
    link.drop()


@pytest.mark.parametrize("broken", [breaks_the_handshake, drops_the_handshake])
def test_opportunistic_goes_on_in_the_clear_on_a_new_connection_after_a_failed_handshake(broken: Any):
    async def main() -> None:
        async with peer(broken, in_the_clear) as it:
            t = transport(it.port, security=Security.OPPORTUNISTIC)
            (outcome,) = await t.deliver(delivery())
            await t.close()
        assert outcome.result is Result.DELIVERED and outcome.tls == ""
        assert it.connections == 2

    run(main())


@pytest.mark.parametrize("broken", [breaks_the_handshake, drops_the_handshake])
def test_a_failed_handshake_defers_when_tls_is_required(broken: Any):
    async def main() -> None:
        async with peer(broken) as it:
            t = transport(it.port, security=Security.REQUIRE)
            assert statuses(await t.deliver(delivery())) == ["deferred 4.7.5"]
            assert it.connections == 1
            await t.close()

    run(main())


def test_what_is_injected_before_the_handshake_is_never_read():
    async def injects(link: Link) -> None:
        await link.greet("PIPELINING", "STARTTLS")
        await link.hear("STARTTLS")
        await link.say("220 go ahead", "250-evil", "250 PIPELINING")
        await link.reader.read(1)
        link.drop()

    async def main() -> None:
        async with peer(injects) as it:
            t = transport(it.port, security=Security.REQUIRE)
            assert statuses(await t.deliver(delivery())) == ["deferred 4.7.5"]
            assert it.count("MAIL") == 0
            await t.close()

    run(main())


def test_replies_injected_behind_the_one_to_starttls_are_never_read_though_the_handshake_succeeds(
    server: ssl.SSLContext,
):
    async def injects(link: Link) -> None:
        await link.greet("PIPELINING", "STARTTLS")
        await link.hear("STARTTLS")
        # Whoever is on the path puts more into the same octets; then the true peer goes on.
        link.writer.write(
            b"220 go ahead\r\n250-evil.test\r\n250 PIPELINING\r\n250 ok\r\n250 ok\r\n354 go on\r\n250 taken\r\n"
        )
        await link.writer.start_tls(server)
        await link.hello("8BITMIME")
        await link.hear("MAIL")
        await link.say("451 4.3.0 later")
        await link.end()

    async def main() -> None:
        async with peer(injects) as it:
            t = transport(it.port, security=Security.REQUIRE)
            assert statuses(await t.deliver(delivery())) == ["deferred 4.3.0"], "only the true peer was believed"
            await t.close()
            assert it.count("RCPT") == 0 and it.count("EHLO") == 2

    run(main())


def test_a_refused_starttls_goes_on_in_the_clear_when_opportunistic():
    async def refuses(link: Link) -> None:
        await link.greet("PIPELINING", "STARTTLS")
        await link.hear("STARTTLS")
        await link.say("454 4.7.0 no")
        await link.take()
        await link.end()

    async def main() -> None:
        async with peer(refuses) as it:
            t = transport(it.port, security=Security.OPPORTUNISTIC)
            assert statuses(await t.deliver(delivery())) == ["delivered 2.0.0"]
            assert it.connections == 1
            await t.close()

    run(main())


def test_security_none_does_not_ask_for_tls(server: ssl.SSLContext):
    async def offers(link: Link) -> None:
        await link.greet("PIPELINING", "STARTTLS")
        await link.take()
        await link.end()

    async def main() -> None:
        async with peer(offers) as it:
            t = transport(it.port, security=Security.NONE)
            assert statuses(await t.deliver(delivery())) == ["delivered 2.0.0"]
            await t.close()

    run(main())


def test_nothing_below_tls_1_2_is_spoken(certificate: Certificate):
    assert make_context(Level.ANY).minimum_version is ssl.TLSVersion.TLSv1_2
    assert make_context(Level.CA, str(certificate.certificate)).minimum_version is ssl.TLSVersion.TLSv1_2


def test_large_content_goes_through_tls_whole_and_the_connection_is_kept(server: ssl.SSLContext):
    async def script(link: Link) -> None:
        await link.greet("PIPELINING", "STARTTLS")
        await link.start_tls(server)
        await link.hello("PIPELINING")
        await link.take()
        await link.take()
        await link.end()

    async def main() -> None:
        data = b"line\r\n" * 500_000
        async with peer(script) as it:
            t = transport(it.port, security=Security.REQUIRE)
            for _ in range(2):
                assert statuses(await t.deliver(delivery(content=data))) == ["delivered 2.0.0"]
            await t.close()
        assert it.contents == [data, data] and it.connections == 1

    run(main())


def test_a_ca_file_that_cannot_be_read_is_our_fault(tmp_path: Path):
    async def main() -> None:
        async with peer(in_the_clear) as it:
            t = transport(it.port, security=Security.VERIFY, tls_ca=str(tmp_path / "missing.pem"))
            (outcome,) = await t.deliver(delivery())
        assert statuses([outcome]) == ["deferred 4.7.5"] and outcome.fault is Fault.OURS
        assert it.connections == 0

    run(main())


# Who the peer is.


CA = make_ca()
HOST = "mx.example.net"


def secured(
    port: int, security: Security, *, host: str = HOST, names: tuple[str, ...] = (), ca: str = "", **zone: Any
) -> SmtpTransport:
    """A transport to a named host on loopback, for which `zone` has records."""
    dns = FakeDns(**{"a": {HOST: ["127.0.0.1"]}, "authentic": ["example.net"], **zone})
    destination = Destination(Kind.SMTP, host, port, security=security, tls_ca=ca, tls_names=names)
    return SmtpTransport(destination, SmtpOptions("gate.test", Timeouts(quit=1.0, tls=0.3)), dns)


def attempt(context: ssl.SSLContext | Any, security: Security, **more: Any) -> tuple[Outcome, Peer]:
    """One delivery to a peer with this certificate, or with this script; `tlsa` stand under the peer's port."""

    async def main() -> tuple[Outcome, Peer]:
        script = taking(context) if isinstance(context, ssl.SSLContext) else context
        async with peer(script) as it:
            if "tlsa" in more:
                more["tlsa"] = {f"_{it.port}._tcp.{HOST}": more["tlsa"]}
            if "fails" in more:
                more["fails"] = [f"_{it.port}._tcp.{HOST}"]
            t = secured(it.port, security, **more)
            (outcome,) = await t.deliver(delivery())
            await t.close()
        return outcome, it

    return run(main())


def refused(outcome: Outcome, it: Peer, words: str) -> None:
    assert statuses([outcome]) == ["deferred 4.7.5"] and words in outcome.reply.text, outcome.reply.text
    assert it.count("MAIL") == 0 and it.contents == []
    assert outcome.tls_policy and not outcome.tls_peer


@pytest.fixture
def ca_file(tmp_path: Path) -> str:
    return str(CA.write(tmp_path, "ca")[0])


@pytest.mark.parametrize("name", ["store.example.org", "*.example.org"])
@pytest.mark.parametrize("wanted", ["store.example.org", ".example.org"])
def test_verify_takes_one_of_the_names_that_are_configured(tmp_path: Path, ca_file: str, name: str, wanted: str):
    server = CA.issue(name).server(tmp_path)
    outcome, _ = attempt(server, Security.VERIFY, ca=ca_file, names=("other.example", wanted))
    assert outcome.result is Result.DELIVERED
    assert (outcome.tls_policy, outcome.tls_peer) == ("verify", "CA")


def test_verify_refuses_the_hosts_own_name_where_others_are_configured(tmp_path: Path, ca_file: str):
    server = CA.issue(HOST).server(tmp_path)
    refused(
        *attempt(server, Security.VERIFY, ca=ca_file, names=(".example.org",)), "the certificate is for mx.example.net"
    )


def test_verify_refuses_an_expired_certificate(tmp_path: Path, ca_file: str):
    server = CA.issue(HOST, days=(-10, -1)).server(tmp_path)
    refused(*attempt(server, Security.VERIFY, ca=ca_file), "expired")
    refused(*attempt(server, Security.VERIFY, ca=ca_file, names=(HOST,)), "expired")


def test_a_name_is_sent_with_the_handshake(tmp_path: Path, ca_file: str):
    server = CA.issue(HOST).server(tmp_path)
    heard: list[str | None] = []
    server.sni_callback = lambda _object, name, _context: heard.append(name)
    attempt(server, Security.VERIFY, ca=ca_file)
    assert heard == [HOST]


@pytest.mark.parametrize("security", [Security.REQUIRE, Security.VERIFY, Security.DANE, Security.DANE_ONLY])
def test_a_peer_without_starttls_gets_nothing_where_tls_is_required(security: Security):
    refused(*attempt(in_the_clear, security, tlsa=[LEAF.tlsa()]), "does not offer STARTTLS")


async def refuses_starttls(link: Link) -> None:
    await link.greet("PIPELINING", "STARTTLS")
    await link.hear("STARTTLS")
    await link.say("454 4.7.0 no")
    await link.end()


async def hangs_in_the_handshake(link: Link) -> None:
    await link.greet("PIPELINING", "STARTTLS")
    await link.hear("STARTTLS")
    await link.say("220 go ahead")
    await link.reader.read()


@pytest.mark.parametrize("security", [Security.REQUIRE, Security.VERIFY, Security.DANE, Security.DANE_ONLY])
@pytest.mark.parametrize(
    "broken", [refuses_starttls, hangs_in_the_handshake, breaks_the_handshake, drops_the_handshake]
)
def test_a_peer_that_breaks_starttls_gets_nothing_where_tls_is_required(security: Security, broken: Any):
    refused(*attempt(broken, security, tlsa=[LEAF.tlsa()]), f"TLS with mx.example.net failed ({security.value}): ")


def test_a_handshake_that_hangs_ends_and_opportunistic_goes_on_in_the_clear():
    async def main() -> None:
        async with peer(hangs_in_the_handshake, in_the_clear) as it:
            t = secured(it.port, Security.OPPORTUNISTIC)
            (outcome,) = await t.deliver(delivery())
            await t.close()
        assert outcome.result is Result.DELIVERED and (outcome.tls, outcome.tls_policy) == ("", "opportunistic")

    run(main())


LEAF = CA.issue(HOST)


@pytest.mark.parametrize("security", [Security.DANE, Security.DANE_ONLY])
@pytest.mark.parametrize("record", [LEAF.tlsa(), LEAF.tlsa(3, 0, 2), CA.tlsa(2)], ids=str)
def test_dane_takes_a_peer_that_a_record_vouches_for(tmp_path: Path, security: Security, record: Tlsa):
    outcome, _ = attempt(LEAF.server(tmp_path), security, tlsa=[CA.issue(HOST).tlsa(), record])
    assert outcome.result is Result.DELIVERED
    assert (outcome.tls_policy, outcome.tls_peer) == (security.value, f"TLSA {record}")
    assert outcome.tls.startswith("TLSv1.3/")


@pytest.mark.parametrize("security", [Security.DANE, Security.DANE_ONLY])
def test_dane_gives_nothing_to_a_peer_with_another_certificate(tmp_path: Path, security: Security):
    outcome, it = attempt(CA.issue(HOST).server(tmp_path), security, tlsa=[LEAF.tlsa()])
    refused(outcome, it, "no TLSA record is for its certificates")
    assert it.connections == 1


def test_dane_asks_for_tls_without_authentication_when_no_record_is_usable(tmp_path: Path):
    record = LEAF.tlsa(1)
    outcome, _ = attempt(make_ca().issue("any.test").server(tmp_path), Security.DANE, tlsa=[record])
    assert (outcome.result, outcome.tls_policy, outcome.tls_peer) == (Result.DELIVERED, "dane-unusable", "")
    assert outcome.tls
    refused(*attempt(in_the_clear, Security.DANE, tlsa=[record]), "does not offer STARTTLS")
    refused(*attempt(LEAF.server(tmp_path), Security.DANE_ONLY, tlsa=[record]), "no usable TLSA record")


@pytest.mark.parametrize("zone", [{}, {"tlsa": [LEAF.tlsa()], "authentic": []}], ids=["no records", "not validated"])
def test_without_records_that_count_dane_is_opportunistic_and_dane_only_waits(zone: dict[str, Any]):
    outcome, _ = attempt(in_the_clear, Security.DANE, **zone)
    assert (outcome.result, outcome.tls_policy) == (Result.DELIVERED, "opportunistic")
    outcome, it = attempt(in_the_clear, Security.DANE_ONLY, **zone)
    refused(outcome, it, "no TLSA record that DNSSEC validates")
    assert it.connections == 0


@pytest.mark.parametrize("security", [Security.DANE, Security.DANE_ONLY])
def test_without_an_answer_about_the_records_mail_waits(security: Security):
    outcome, it = attempt(in_the_clear, security, fails=True)
    assert statuses([outcome]) == ["deferred 4.7.5"] and "no TLSA answer" in outcome.reply.text
    assert it.connections == 0


def test_mx_records_that_nobody_validated_lead_to_no_dane():
    async def main() -> None:
        async with peer(in_the_clear) as it:
            for authentic, security, expected in (
                ([HOST], Security.DANE, "delivered 2.0.0"),
                ([HOST], Security.DANE_ONLY, "deferred 4.7.5"),
                (["example.net"], Security.DANE, "deferred 4.7.5"),
            ):
                zone = {"a": {HOST: ["127.0.0.1"]}, "mx": {"example.net": [(10, HOST)]}}
                dns = FakeDns(**zone, tlsa={f"_{it.port}._tcp.{HOST}": [LEAF.tlsa()]}, authentic=authentic)
                destination = Destination(Kind.SMTP, "example.net", it.port, mx=True, security=security)
                t = SmtpTransport(destination, SmtpOptions("gate.test", Timeouts(quit=1.0)), dns)
                assert statuses(await t.deliver(delivery())) == [expected]
                await t.close()

    run(main())


def test_dane_goes_to_the_next_exchanger_when_the_first_is_not_who_it_should_be(tmp_path: Path):
    async def main() -> None:
        async with peer(taking(CA.issue("mx1.example.net").server(tmp_path)), taking(LEAF.server(tmp_path))) as it:
            dns = FakeDns(
                a={"mx1.example.net": ["127.0.0.1"], HOST: ["127.0.0.1"]},
                mx={"example.net": [(10, "mx1.example.net"), (20, HOST)]},
                tlsa={f"_{it.port}._tcp.{name}": [LEAF.tlsa()] for name in ("mx1.example.net", HOST)},
                authentic=["example.net"],
            )
            destination = Destination(Kind.SMTP, "example.net", it.port, mx=True, security=Security.DANE)
            t = SmtpTransport(destination, SmtpOptions("gate.test", Timeouts(quit=1.0)), dns)
            (outcome,) = await t.deliver(delivery())
            await t.close()
        assert outcome.result is Result.DELIVERED and outcome.host == HOST
        assert it.connections == 2 and it.count("MAIL") == 1

    run(main())
