"""The session: one client's connection, as policies and plugins see it.

A frozen value; the front door makes a new one when something becomes known (HELO, TLS, XCLIENT).
"""

from __future__ import annotations

import ipaddress
import os
import time
from dataclasses import dataclass
from typing import Final

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def plain_address(address: IPAddress) -> IPAddress:
    """An IPv4 address mapped into IPv6 (``::ffff:192.0.2.1``) as the IPv4 address, any other as it is."""
    return getattr(address, "ipv4_mapped", None) or address


_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS: Final = tuple(a + b for a in _ALPHABET for b in _ALPHABET)
_RANDOM_OCTETS: Final = 3 * 1024
_random = bytearray()
"""Drawn in bulk: each draw asks the kernel, and lets go of the interpreter meanwhile."""
_last_ms = 0

# Two processes must not go on with the same octets.
os.register_at_fork(after_in_child=_random.clear)


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """The certificate that a client showed, and has the key of.

    `verified` says that a CA of the listener's vouched for it; `problem` says why not, where none did. Then nothing but
    the `fingerprint` is told, since anybody can make a certificate with any name in it.

    `fingerprint` is SHA-256 (``AB:01:...``, as ``openssl x509 -fingerprint -sha256`` writes it), `subject` and `issuer`
    are common names, `names` the subject's alternative names (``DNS:mx.example.org``, ``email:``, ``URI:``, ``IP:``),
    and `serial` is hexadecimal. What is not printable or too long is left out.
    """

    verified: bool
    fingerprint: str
    problem: str = ""
    subject: str = ""
    names: tuple[str, ...] = ()
    issuer: str = ""
    serial: str = ""


@dataclass(frozen=True, slots=True)
class Tls:
    """What was negotiated: `version` as OpenSSL writes it (``TLSv1.3``), cipher name, SNI name or empty.

    `client` is the certificate that the client showed, None where it showed none or was asked for none.
    """

    version: str
    cipher: str
    sni: str = ""
    client: ClientCertificate | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """One connection. `client` is the true client: PROXY and XCLIENT are already applied.

    `peer` is the TCP peer (a load balancer, where there is one); `helo` is empty until HELO or EHLO;
    `name` is the client's name as a trusted XCLIENT gave it, else empty. `trusted` says that `client` lies in
    `relay_from`.
    """

    id: str
    client: IPAddress
    client_port: int
    peer: IPAddress
    listener: str
    started: float
    helo: str = ""
    esmtp: bool = False
    tls: Tls | None = None
    name: str = ""
    trusted: bool = False


def base32(value: int, width: int) -> str:
    """`value` in Crockford's base 32, exactly `width` characters; sorts like the number."""
    out = ""
    for _ in range(width >> 1):
        out = _PAIRS[value & 1023] + out
        value >>= 10
    return _ALPHABET[value & 31] + out if width & 1 else out


def new_session_id() -> str:
    """A session id: 9 characters of milliseconds, strictly rising in one process, and 4 random ones.

    Ids sort by time. A transaction's id, which is its queue id too, is the session id and a number in base 32
    (`transaction_id`), so everything of a session is found by prefix.
    """
    global _last_ms
    # Ids only need to rise and differ; no decision depends on this clock.
    ms = max(_last_ms + 1, time.time_ns() // 1_000_000)
    _last_ms = ms
    if not _random:
        _random.extend(os.urandom(_RANDOM_OCTETS))
    low = _random.pop() | _random.pop() << 8 | _random.pop() << 16
    return base32(ms, 9) + base32(low, 4)


SESSION_ID_LENGTH: Final = 13


def ids_from(seconds: float) -> str:
    """What ids of sessions and transactions from this moment on sort behind; `seconds` since 1970."""
    return base32(max(0, int(seconds * 1000)), 9)


def transaction_id(session_id: str, number: int) -> str:
    """Id of the session's `number`-th transaction, which becomes the queue id when the message is accepted."""
    return session_id + (base32(number, 1) if number < 32 else base32(number, 4))
