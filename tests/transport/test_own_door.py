"""The transport against Gatepost's own front door: what the one says, the other understands."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest

from gateway.mail.envelope import MailParameters, Origin
from gateway.sdk.testing import FakeDns
from gateway.spool.spool import Stored
from gateway.transport.options import HopOptions, Proxy, SmtpOptions, Timeouts
from gateway.transport.smtp import SmtpTransport
from gateway.transport.transport import Destination, Kind, Security
from tests.smtp.door import door, networks
from tests.support.certificates import make_ca
from tests.transport.peer import delivery, run, statuses

ANN = Origin(ipaddress.ip_address("192.0.2.7"), 4711, "client.test", "helo.client.test")
BEN = Origin(ipaddress.ip_address("2001:db8::7"), 25, "", "[192.0.2.1]", esmtp=False)
CA = make_ca()


def deliver(
    hop: HopOptions,
    *origins: Origin | None,
    content: bytes = b"Subject: x\r\n\r\n.Hello\r\n",
    security: Security = Security.NONE,
    ca: str = "",
    parameters: MailParameters = MailParameters(),  # noqa: B008 - frozen
    **options: Any,
) -> list[tuple[Stored, bytes]]:
    """What stands in the spool of a door with these options after a delivery from each origin."""

    async def main() -> list[tuple[Stored, bytes]]:
        async with door(**options) as opened:
            destination = Destination(
                Kind.SMTP, "127.0.0.1", opened.port, security=security, tls_ca=ca, tls_names=("mx.test",), hop=hop
            )
            t = SmtpTransport(destination, SmtpOptions("gate.test", Timeouts(quit=1.0)), FakeDns())
            for origin in origins:
                d = delivery("b@example.org", content=content, origin=origin, parameters=parameters)
                assert statuses(await t.deliver(d)) == ["delivered 2.0.0"]
            await t.close()
            messages = [stored.message for stored in await opened.stored()]
            return list(zip(messages, await opened.contents(), strict=True))

    return run(main())


@pytest.mark.parametrize("chunking", [True, False])
@pytest.mark.parametrize("size", [0, 10, 40_000])
def test_content_arrives_whole_by_chunks_and_by_data(chunking: bool, size: int):
    content = b"Subject: x\r\n\r\n" + b".a line with a dot\r\n" * size
    ((_, stored),) = deliver(HopOptions(chunking=chunking), None, content=content)
    assert stored.endswith(content)


def test_the_door_takes_the_client_of_xclient_for_its_own():
    found = deliver(HopOptions(xclient=True), ANN, ANN, BEN, xclient=networks("127.0.0.1/32"))
    assert [message.envelope.origin for message, _ in found[:2]] == [ANN, ANN]
    ben = found[2][0].envelope.origin
    assert ben is not None and (ben.client, ben.port, ben.helo) == (BEN.client, BEN.port, BEN.helo)


@pytest.mark.parametrize("version", [Proxy.V1, Proxy.V2])
def test_the_door_takes_the_client_of_a_proxy_header_for_its_own(version: Proxy):
    found = deliver(HopOptions(proxy=version), ANN, BEN, None, proxy=networks("127.0.0.1/32"))
    clients = [message.envelope.origin.client for message, _ in found if message.envelope.origin]
    assert clients == [ANN.client, BEN.client, ipaddress.ip_address("127.0.0.1")]


@pytest.mark.parametrize("strict", [True, False])
def test_requiretls_goes_from_spool_to_spool(tmp_path: Path, strict: bool):
    ca, _ = CA.write(tmp_path, "ca")
    ((message, _),) = deliver(
        HopOptions(),
        None,
        security=Security.VERIFY,
        ca=str(ca),
        parameters=MailParameters(requiretls=strict),
        tls=CA.issue("mx.test").server(tmp_path),
        requiretls=True,
    )
    assert message.envelope.parameters.requiretls is strict
