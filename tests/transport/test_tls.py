"""TLS towards next hops, with certificates made by the openssl command."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tests.transport.peer
from gateway.sdk.testing import FakeDns
from gateway.transport.tls import make_context
from gateway.transport.transport import Fault, Result, Security
from tests.support.process import new_directory
from tests.support.servers import Certificate, make_certificate
from tests.transport.peer import Link, delivery, peer, run, statuses, transport


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
    assert make_context(Security.REQUIRE).minimum_version is ssl.TLSVersion.TLSv1_2
    assert make_context(Security.VERIFY, str(certificate.certificate)).minimum_version is ssl.TLSVersion.TLSv1_2


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
