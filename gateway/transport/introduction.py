"""Telling a next hop that trusts us whom a message came from: XCLIENT, XFORWARD, PROXY headers. Octets out, no sockets.

*Promises*: whatever a client called itself, a command is one line of printable ASCII.

*Source*: Postfix XCLIENT_README and XFORWARD_README; "The PROXY protocol", versions 1 and 2 (haproxy.org).

*RFCs*: 3461 section 4 (xtext).
"""

from __future__ import annotations

import ipaddress
import re
import struct
from typing import Final

from gateway.mail.envelope import Origin
from gateway.mail.session import IPAddress
from gateway.transport.options import Proxy

_UNAVAILABLE: Final = "[UNAVAILABLE]"
_VALUE: Final = 255
_LINE: Final = 510
_NOT_XTEXT: Final = re.compile(rb"[^\x21-\x2a\x2c-\x3c\x3e-\x7e]")
# Of one form only, so that no name takes longer than another: strangers choose them.
_LABEL: Final = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}"
_HELO: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?\Z|\[[A-Za-z0-9.:]{{1,50}}\]\Z")
_V2_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"


def xtext(text: str) -> str:
    """Text as xtext, ``+`` and ``=`` and all that is not printable ASCII as ``+2B`` (RFC 3461 section 4)."""
    return _NOT_XTEXT.sub(lambda match: b"+%02X" % match[0][0], text.encode("utf-8", "replace")).decode("ascii")


def xclient(origin: Origin, offered: str) -> bytes:
    """The XCLIENT command, CRLF included, with those attributes that EHLO `offered`; empty when that leaves none.

    The name of HELO comes in the EHLO that follows, too, so it is left out where the line would get too long.
    """
    words = _words(_attributes(origin), offered)
    line = " ".join(["XCLIENT", *words])
    if len(line) > _LINE:
        line = " ".join(["XCLIENT", *[word for word in words if not word.startswith("HELO=")]])
    return f"{line}\r\n".encode("ascii") if words else b""


def xforward(origin: Origin, id: str, offered: str) -> list[bytes]:
    """The XFORWARD commands, in two lines since one may get too long."""
    attributes = _attributes(origin)
    told = {**attributes, "IDENT": xtext(id)[:_VALUE], "SOURCE": "REMOTE"}
    groups = [("NAME", "ADDR", "PORT"), ("PROTO", "HELO", "IDENT", "SOURCE")]
    lines = [_words({name: told[name] for name in group}, offered) for group in groups]
    return [f"XFORWARD {' '.join(words)}\r\n".encode("ascii") for words in lines if words]


def greeting_name(origin: Origin, own: str) -> str:
    """What EHLO says after XCLIENT: the client's own word where it is a name, else ours."""
    return origin.helo if len(origin.helo) <= _VALUE and _HELO.match(origin.helo) else own


def _attributes(origin: Origin) -> dict[str, str]:
    address = f"IPV6:{origin.client}" if origin.client.version == 6 else str(origin.client)
    return {
        "ADDR": address,
        "PORT": str(origin.port) if origin.port else _UNAVAILABLE,
        "NAME": _value(origin.name),
        "HELO": _value(origin.helo),
        "PROTO": "ESMTP" if origin.esmtp else "SMTP",
    }


def _value(text: str) -> str:
    # What is no printable ASCII some servers refuse, encoded or not, and then the mail would never leave.
    encoded = xtext(text) if text.isascii() and text.isprintable() else ""
    return encoded if 0 < len(encoded) <= _VALUE else _UNAVAILABLE


def _words(attributes: dict[str, str], offered: str) -> list[str]:
    known = offered.upper().split()
    return [f"{name}={value}" for name, value in attributes.items() if name in known]


def proxy_header(version: Proxy, client: tuple[str, int], server: tuple[str, int]) -> bytes:
    """The header before all else on a connection to `server`, in the name of `client`: addresses and ports.

    Who speaks for himself gives his own: UNKNOWN and LOCAL are not taken by all. Addresses of two families are both
    written as IPv6, the IPv4 one mapped, since a header has one family.
    """
    source: IPAddress = ipaddress.ip_address(client[0].partition("%")[0])
    target: IPAddress = ipaddress.ip_address(server[0].partition("%")[0])
    if source.version != target.version:
        source, target = _mapped(source), _mapped(target)
    four = source.version == 4
    if version is Proxy.V1:
        return f"PROXY TCP{source.version} {source} {target} {client[1]} {server[1]}\r\n".encode("ascii")
    block = source.packed + target.packed + struct.pack("!HH", client[1], server[1])
    return _V2_SIGNATURE + struct.pack("!BBH", 0x21, 0x11 if four else 0x21, len(block)) + block


def _mapped(address: IPAddress) -> ipaddress.IPv6Address:
    if isinstance(address, ipaddress.IPv6Address):
        return address
    return ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed)
