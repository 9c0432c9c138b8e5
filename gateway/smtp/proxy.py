"""PROXY protocol headers, versions 1 and 2: bytes in, the true client out. No sockets here.

The header is trusted only because its sender is; who may send one is decided by the front door.

*Source*: "The PROXY protocol", versions 1 and 2 (haproxy.org), sections 2.1 and 2.2. Not an RFC.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, field
from typing import Final

from gateway.mail.session import IPAddress, plain_address

V1_OCTETS: Final = 107
V2_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
V2_OCTETS: Final = 16 + 2048
TLV_AUTHORITY: Final = 0x02
_UNSPEC: Final = 0x00
_TCP: Final = {0x11: 4, 0x21: 16}
"""Octets of an address by family and protocol: TCP over IPv4, TCP over IPv6."""


class ProxyError(Exception):
    """What came is no PROXY header. ``str(error)`` says why."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """Whom the proxy speaks for. `client` is None when it does not say: UNKNOWN, UNSPEC and LOCAL.

    `local` says that it speaks for itself, which is a health check. `tlvs` are the extensions of version 2, by type;
    `authority` is the host name the client asked for by SNI.
    """

    client: IPAddress | None
    port: int = 0
    tlvs: dict[int, bytes] = field(default_factory=dict)
    local: bool = False

    @property
    def authority(self) -> str:
        return self.tlvs.get(TLV_AUTHORITY, b"").decode("ascii", "replace")


def begins(data: bytes | bytearray) -> bool:
    """Whether this is the beginning of a header, beyond chance; for listeners that expect none."""
    return data.startswith((b"PROXY TCP", b"PROXY UNKNOWN", V2_SIGNATURE))


def read(data: bytes | bytearray) -> tuple[ProxyHeader, int] | None:
    """The header at the start of `data` and how many octets it has; None when more octets are needed.

    Raises `ProxyError` as soon as it is clear that this is no header.
    """
    if data[:12] == V2_SIGNATURE[: len(data[:12])]:
        return _read_v2(data) if len(data) >= 16 else None
    if data[:6] == b"PROXY "[: len(data[:6])]:
        return _read_v1(data)
    raise ProxyError("no PROXY header")


def _read_v1(data: bytes | bytearray) -> tuple[ProxyHeader, int] | None:
    end = data.find(b"\r\n", 0, V1_OCTETS)
    if end < 0:
        if len(data) >= V1_OCTETS:
            raise ProxyError("version 1 header is too long")
        return None
    words = bytes(data[:end]).split(b" ")
    if words[1:2] == [b"UNKNOWN"]:
        return ProxyHeader(None), end + 2
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise ProxyError("version 1 header is malformed")
    try:
        source, target, *ports = (word.decode("ascii") for word in words[2:])
        kind = ipaddress.IPv4Address if words[1] == b"TCP4" else ipaddress.IPv6Address
        if "%" in source:
            raise ValueError("no zones")
        client = plain_address(kind(source))
        kind(target)
        numbers = [_port(port) for port in ports]
    except ValueError as error:
        raise ProxyError("version 1 header is malformed") from error
    return ProxyHeader(client, numbers[0]), end + 2


def _port(text: str) -> int:
    if not text.isdigit() or len(text) > 5 or int(text) > 65535:
        raise ValueError("no port")
    return int(text)


def _read_v2(data: bytes | bytearray) -> tuple[ProxyHeader, int] | None:
    version_command, family, length = struct.unpack_from("!BBH", data, 12)
    if version_command >> 4 != 2 or version_command & 15 > 1:
        raise ProxyError("version 2 header has an unknown version or command")
    total = 16 + length
    if total > V2_OCTETS:
        raise ProxyError("version 2 header is too long")
    if len(data) < total:
        return None
    block = bytes(data[16:total])
    if version_command & 15 == 0:
        return ProxyHeader(None, local=True), total
    if family == _UNSPEC:
        return ProxyHeader(None), total
    size = _TCP.get(family)
    if size is None:
        raise ProxyError("version 2 header is for another family than TCP")
    if len(block) < 2 * size + 4:
        raise ProxyError("version 2 header is too short")
    client = plain_address(ipaddress.ip_address(block[:size]))
    (port,) = struct.unpack_from("!H", block, 2 * size)
    return ProxyHeader(client, port, _tlvs(block[2 * size + 4 :])), total


def _tlvs(block: bytes) -> dict[int, bytes]:
    out: dict[int, bytes] = {}
    pos = 0
    while pos < len(block):
        if pos + 3 > len(block):
            raise ProxyError("TLV is cut off")
        kind, length = struct.unpack_from("!BH", block, pos)
        pos += 3
        if pos + length > len(block):
            raise ProxyError("TLV is cut off")
        out[kind] = block[pos : pos + length]
        pos += length
    return out
