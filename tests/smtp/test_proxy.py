"""PROXY protocol headers, versions 1 and 2."""

from __future__ import annotations

import ipaddress
import struct

import pytest

from gateway.smtp.proxy import TLV_AUTHORITY, V2_SIGNATURE, ProxyError, ProxyHeader, read

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
