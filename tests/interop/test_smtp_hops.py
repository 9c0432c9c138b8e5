"""What next hops are told, by a Postfix that believes it: XCLIENT, XFORWARD and PROXY headers."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterator

import pytest

from gateway.mail.envelope import Origin
from gateway.sdk.testing import FakeDns
from gateway.transport.options import HopOptions, Proxy, SmtpOptions
from gateway.transport.smtp import SmtpTransport
from gateway.transport.transport import Destination, Kind
from tests.support.postfix import Postfix
from tests.support.process import free_port, wait_until
from tests.transport.peer import delivery, statuses

pytestmark = pytest.mark.slow

CLIENT = Origin(ipaddress.ip_address("192.0.2.77"), 4711, "mail.client.test", "helo.client.test")


@pytest.fixture(scope="module")
def proxied_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def store(proxied_port: int) -> Iterator[Postfix]:
    """Takes mail for anybody, and on a second port only after a PROXY header."""
    proxied = f"127.0.0.1:{proxied_port} inet n - n - - smtpd -o smtpd_upstream_proxy_protocol=haproxy\n"
    users = ["xclient", "xforward", "v1", "v2"]
    it = Postfix.store("store.test", users, proxied, smtpd_authorized_xforward_hosts="127.0.0.0/8")
    yield it
    it.stop()


def deliver(port: int, user: str, hop: HopOptions, origin: Origin | None = CLIENT) -> list[str]:
    """The statuses of two deliveries, one after the other."""

    async def main() -> list[str]:
        destination = Destination(Kind.SMTP, "127.0.0.1", port, hop=hop)
        t = SmtpTransport(destination, SmtpOptions("gate.test"), FakeDns())
        told = []
        for _ in range(2):
            told += statuses(await t.deliver(delivery(f"{user}@store.test", origin=origin)))
        await t.close()
        return told

    return asyncio.run(main())


def arrived(store: Postfix, user: str) -> list[bytes]:
    return wait_until(lambda: found if len(found := store.mails(user)) == 2 else None, "both are in the mailbox")


def test_postfix_takes_the_client_of_xclient_for_whom_it_speaks_to(store: Postfix):
    assert deliver(store.port, "xclient", HopOptions(xclient=True)) == ["delivered 2.0.0"] * 2
    for mail in arrived(store, "xclient"):
        assert b"Received: from helo.client.test (mail.client.test [192.0.2.77])" in mail


def test_postfix_logs_the_client_of_xforward(store: Postfix):
    assert deliver(store.port, "xforward", HopOptions(xforward=True)) == ["delivered 2.0.0"] * 2
    for mail in arrived(store, "xforward"):
        assert b"Received: from gate.test (" in mail and b"[127.0.0.1]" in mail
    store.wait_logged(r"orig_client=mail\.client\.test\[192\.0\.2\.77\]")


@pytest.mark.parametrize("version", [Proxy.V1, Proxy.V2])
@pytest.mark.parametrize("origin", [CLIENT, None], ids=["client", "ourselves"])
def test_postfix_takes_the_client_of_a_proxy_header_for_whom_it_speaks_to(
    store: Postfix, proxied_port: int, version: Proxy, origin: Origin | None
):
    told = deliver(proxied_port, version.value, HopOptions(proxy=version), origin)
    assert told == ["delivered 2.0.0"] * 2
    if origin is not None:
        assert all(b"[192.0.2.77]" in mail for mail in arrived(store, version.value))
