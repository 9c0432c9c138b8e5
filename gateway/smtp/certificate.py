"""Certificates of clients: the CAs that vouch for them, and what is told of one.

*Promises*: a name comes out of a certificate only when a CA of the listener's vouches for it, only when it is
printable, and never shortened.

*RFCs*: 5280 (certificates).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from gateway.mail.session import ClientCertificate

NAMES: Final = 50
"""So many alternative names of a certificate are told."""
NAME_LENGTH: Final = 255
"""A longer name is not told: part of a name is another name."""
UNREADABLE: Final = "the certificate cannot be read"

_FILE: Final = 1 << 20
_AUTHORITIES: Final = 500


def read_authorities(path: str) -> list[x509.Certificate]:
    """The certificates in a PEM file. Raises OSError, or ValueError when it holds none, or what is no certificate."""
    with open(path, "rb") as file:
        data = file.read(_FILE + 1)
    if len(data) > _FILE:
        raise ValueError(f"more than {_FILE >> 10} KiB")
    try:
        found = x509.load_pem_x509_certificates(data)
    except ValueError:
        raise ValueError("it holds no certificate, or something that is none") from None
    if len(found) > _AUTHORITIES:
        raise ValueError(f"more than {_AUTHORITIES} certificates")
    return found


def inspect(der: bytes, problem: str) -> ClientCertificate:
    """What is told of a certificate that a client has the key of. `problem` is why no CA of ours vouches for it."""
    digest = hashlib.sha256(der).hexdigest().upper()
    fingerprint = ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))
    if problem:
        return ClientCertificate(False, fingerprint, problem)
    try:
        leaf = x509.load_der_x509_certificate(der)
        names = tuple(_names(leaf))[:NAMES]
        subject, issuer = _common_name(leaf.subject), _common_name(leaf.issuer)
        serial = _printable(f"{leaf.serial_number:X}")
    # What is wrong inside is told by several kinds of errors, which have no other base.
    except Exception:  # noqa: BLE001
        return ClientCertificate(False, fingerprint, UNREADABLE)
    return ClientCertificate(True, fingerprint, "", subject, names, issuer, serial)


def _common_name(name: x509.Name) -> str:
    """The one common name; none of several, as they may be read as either."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return _printable(found[0].value) if len(found) == 1 else ""


def _names(leaf: x509.Certificate) -> Iterator[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return
    for name in names:
        match name:
            case x509.DNSName(value=value):
                kind, value = "DNS", value.lower()
            case x509.RFC822Name(value=value):
                kind = "email"
            case x509.UniformResourceIdentifier(value=value):
                kind = "URI"
            case x509.IPAddress(value=value):
                kind = "IP"
            case _:
                continue
        if told := _printable(str(value)):
            yield f"{kind}:{told}"


def _printable(value: str | bytes) -> str:
    """The value, when it may stand anywhere on a line of its own; else nothing."""
    fits = isinstance(value, str) and len(value) <= NAME_LENGTH and value.isprintable()
    return value if fits else ""  # type: ignore[return-value]
