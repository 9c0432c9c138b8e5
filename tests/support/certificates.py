"""Certificates as tests need them: a CA of their own, and what it signs for good and bad peers."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from gateway.sdk.services import Tlsa


@dataclass(frozen=True)
class Issued:
    """A certificate with its key. `chain` are those of the issuers, the root last."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...] = ()

    @cached_property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def chain_der(self) -> list[bytes]:
        """What a server sends, its own certificate first."""
        return [self.der, *(c.public_bytes(Encoding.DER) for c in self.chain)]

    def tlsa(self, usage: int = 3, selector: int = 1, matching: int = 1) -> Tlsa:
        """The TLSA record that speaks of this certificate."""
        data = self.der
        if selector == 1:
            data = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if matching:
            data = {1: hashlib.sha256, 2: hashlib.sha512}[matching](data).digest()
        return Tlsa(usage, selector, matching, data)

    def issue(
        self,
        *names: str | x509.GeneralName,
        ca: bool = False,
        days: tuple[int, int] = (-1, 30),
        subject: str = "",
        san: bool = True,
    ) -> Issued:
        """A certificate by this one, valid between these days from now. A name that is text is one of DNS."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = _sign(key, self, subject or (str(names[0]) if names else "some CA"), names if san else (), ca, days)
        return Issued(made, key, (self.certificate, *self.chain))

    def write(self, directory: Path, name: str = "peer") -> tuple[Path, Path]:
        """Files with certificate and chain, and with the key."""
        certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
        certificate.write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c in (self.certificate, *self.chain)))
        key.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate, key

    def server(self, directory: Path) -> ssl.SSLContext:
        """A server's context with it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.write(directory, f"{self.certificate.serial_number:x}"))
        return context


def make_ca(name: str = "Test CA") -> Issued:
    """A CA that nobody knows."""
    key = ec.generate_private_key(ec.SECP256R1())
    return Issued(_sign(key, None, name, (), True, (-30, 3000)), key)


def _sign(
    key: ec.EllipticCurvePrivateKey,
    issuer: Issued | None,
    subject: str,
    names: tuple[str | x509.GeneralName, ...],
    ca: bool,
    days: tuple[int, int],
) -> x509.Certificate:
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    signer = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.certificate.subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name) if isinstance(name, str) else name for name in names]),
            critical=False,
        )
    return builder.sign(signer, hashes.SHA256())
