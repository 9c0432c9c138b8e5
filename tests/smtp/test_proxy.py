"""PROXY protocol headers, versions 1 and 2."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from structlog.testing import capture_logs

from gateway.smtp.proxy import TLV_AUTHORITY, V2_SIGNATURE, ProxyError, ProxyHeader, read
from tests.smtp.door import door, run

CLIENT = ipaddress.ip_address("192.0.2.7")
CLIENT6 = ipaddress.ip_address("2001:db8::7")


def v2(family: int, block: bytes, command: int = 0x21) -> bytes:
    return V2_SIGNATURE + struct.pack("!BBH", command, family, len(block)) + block


ADDRESSES = CLIENT.packed + bytes([127, 0, 0, 1]) + struct.pack("!HH", 999, 25)
ADDRESSES6 = CLIENT6.packed + bytes(15) + b"\1" + struct.pack("!HH", 999, 25)
TLV = struct.pack("!BH", TLV_AUTHORITY, 7) + b"mx.test"

GOOD = [
    (b"PROXY TCP4 192.0.2.7 127.0.0.1 999 25\r\n", ProxyHeader(CLIENT, 999)),
    (b"PROXY TCP6 2001:db8::7 ::1 999 25\r\n", ProxyHeader(CLIENT6, 999)),
    (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 999 25\r\n", ProxyHeader(CLIENT, 999)),
    (b"PROXY UNKNOWN\r\n", ProxyHeader(None)),
    (b"PROXY UNKNOWN ffff:f... anything 65535 65535\r\n", ProxyHeader(None)),
    (v2(0x11, ADDRESSES), ProxyHeader(CLIENT, 999)),
    (v2(0x21, ADDRESSES6), ProxyHeader(CLIENT6, 999)),
    (v2(0x11, ADDRESSES + TLV), ProxyHeader(CLIENT, 999, {TLV_AUTHORITY: b"mx.test"})),
    (v2(0x11, ADDRESSES + b"\x04\x00\x00"), ProxyHeader(CLIENT, 999, {4: b""})),
    (v2(0x00, b"", 0x20), ProxyHeader(None, local=True)),
    (v2(0x11, ADDRESSES, 0x20), ProxyHeader(None, local=True)),
    (v2(0x00, b""), ProxyHeader(None)),
]


@pytest.mark.parametrize(("data", "header"), GOOD)
def test_a_header_is_read_however_it_is_cut(data, header):
    for size in range(1, len(data)):
        assert read(data[:size]) is None
    assert read(data) == (header, len(data))
    assert read(data + b"EHLO x\r\n") == (header, len(data))


def test_the_authority_is_the_name_that_the_client_asked_for():
    found = read(v2(0x11, ADDRESSES + TLV))
    assert found is not None
    assert found[0].authority == "mx.test"


@pytest.mark.parametrize(
    "data",
    [
        b"EHLO client.test\r\n",
        b"\r\nEHLO",
        b"\x16\x03\x01",
        b"PROXZ",
        b"proxy TCP4 192.0.2.7 127.0.0.1 999 25\r\n",
        b"PROXY TCP4 192.0.2.7 127.0.0.1 999\r\n",
        b"PROXY TCP4 192.0.2.7  127.0.0.1 999 25\r\n",
        b"PROXY TCP4 192.0.2.700 127.0.0.1 999 25\r\n",
        b"PROXY TCP4 2001:db8::7 ::1 999 25\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 999 25\r\n",
        b"PROXY TCP4 192.0.2.7 127.0.0.1 99999 25\r\n",
        b"PROXY TCP4 192.0.2.7 127.0.0.1 -1 25\r\n",
        b"PROXY TCP4 192.0.2.7 127.0.0.1 \xc2\xb2 25\r\n",
        b"PROXY UDP4 192.0.2.7 127.0.0.1 999 25\r\n",
        b"PROXY \r\n",
        b"PROXY UNKNOWN" + b" " * 100 + b"\r\n",
        b"PROXY TCP4 " + b"1" * 200,
        v2(0x11, ADDRESSES[:-1]),
        v2(0x12, ADDRESSES),
        v2(0x31, bytes(216)),
        v2(0x11, ADDRESSES, 0x11),
        v2(0x11, ADDRESSES, 0x22),
        v2(0x11, ADDRESSES + b"\x02"),
        v2(0x11, ADDRESSES + b"\x02\x00\x05abc"),
        V2_SIGNATURE + struct.pack("!BBH", 0x21, 0x11, 0xFFFF),
    ],
)
def test_what_is_no_header_is_refused_at_once(data):
    with pytest.raises(ProxyError):
        read(data)


UNASKED = [
    b"PROXY TCP4 192.0.2.7 127.0.0.1 999 25\r\nEHLO client.test\r\n",
    b"PROXY UNKNOWN\r\nEHLO client.test\r\n",
    v2(0x11, ADDRESSES) + b"EHLO client.test\r\n",
]


@pytest.mark.parametrize("header", UNASKED)
@pytest.mark.parametrize("early", [True, False])
def test_a_header_where_none_is_expected_ends_the_session_and_says_why(header: bytes, early: bool) -> None:
    async def test() -> None:
        async with door() as opened:
            with capture_logs() as logs:
                client = await opened.connect(first=header if early else b"")
                if not early:
                    await client.greeting()
                    client.send(header)
                heard = (await client.last_words()).splitlines()
            assert heard[-1] == "421 4.5.1 no PROXY header is expected here" and "250" not in str(heard)
            (said,) = (line for line in logs if line["event"] == "session.turned_away")
            assert (said["reason"], said["client"]) == ("unasked-proxy-header", "127.0.0.1")

    run(test)


@pytest.mark.parametrize("line", ["PROXY", "PROXY example.org", "PROX TCP4 192.0.2.7"])
def test_what_only_resembles_a_header_is_an_unknown_command(line: str) -> None:
    async def test() -> None:
        async with door() as opened:
            client = await opened.session()
            await client.expect(line, "500")
            await client.expect("NOOP", "250")

    run(test)
