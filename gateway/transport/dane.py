"""DANE for SMTP: TLSA records of a mail host, and whether its certificates are those that the records speak of.

Only answers that DNSSEC has validated count. Who cannot get an answer may be under attack, so that is trouble, and
never "no records".

*Fails by*: `Unreachable` for look-ups without an answer, `TlsFailed` for certificates.

*RFCs*: 6698 and 7671 (TLSA), 7672 (SMTP).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store, VerificationError

from gateway.sdk.services import Dns, DnsStatus, Tlsa
from gateway.transport.hosts import Located, Unreachable, deferred
from gateway.transport.rule import Failure, TlsFailed

TRUST_ANCHOR: Final = 2
END_ENTITY: Final = 3
_CERTIFICATE, _KEY = 0, 1
_FULL: Final = 0
_DIGESTS: Final = {1: hashlib.sha256, 2: hashlib.sha512}
_SIZES: Final = {1: 32, 2: 64}
CHAIN: Final = 10
"""Certificates of a peer that are looked at."""


@dataclass(frozen=True, slots=True)
class Found:
    """The TLSA records of a host under `base`, the name that SNI says and the certificate may be for."""

    base: str
    records: tuple[Tlsa, ...]


async def find(host: str, port: int, located: Located, dns: Dns) -> Found | Unreachable | None:
    """The records that apply to a host with these addresses; None when none do (RFC 7672 section 2.2.2, 2.2.3)."""
    try:
        ipaddress.ip_address(host)
        return None
    except ValueError:
        pass
    bases = await _bases(host, located, dns)
    if isinstance(bases, Unreachable):
        return bases
    for base in bases:
        question = f"_{port}._tcp.{base}"
        answer = await dns.lookup(question, "TLSA")
        if answer.status is DnsStatus.FAILED:
            return _unanswered(f"no TLSA answer for {question}: {answer.problem}", host)
        records = tuple(r for r in answer.records if isinstance(r, Tlsa))
        if records and answer.authentic:
            return Found(base, records)
    return None


async def _bases(host: str, located: Located, dns: Dns) -> list[str] | Unreachable:
    """The names to look under: where an alias leads first, then the name itself, as far as they are validated."""
    if located.authentic:
        return list(dict.fromkeys([located.alias or host, host]))
    if not located.alias:
        return []
    # The alias may be validated though the place where it leads is not.
    alias = await dns.lookup(host, "CNAME")
    if alias.status is DnsStatus.FAILED:
        return _unanswered(f"no CNAME answer for {host}: {alias.problem}", host)
    return [host] if alias.authentic else []


def _unanswered(problem: str, host: str) -> Unreachable:
    return deferred("7.5", f"DANE: {problem}", host, policy="dane", failure=Failure.DNSSEC_INVALID)


def usable(records: Iterable[Tlsa]) -> tuple[Tlsa, ...]:
    """The records that say something which can be checked (RFC 7672 section 3.1; PKIX-TA and PKIX-EE are not).

    Of several digests for the same usage and selector only the strongest counts (RFC 7671 section 9).
    """
    good = [r for r in records if _is_usable(r)]
    strongest: dict[tuple[int, int], int] = {}
    for r in good:
        if r.matching != _FULL:
            key = (r.usage, r.selector)
            strongest[key] = max(strongest.get(key, 0), r.matching)
    return tuple(r for r in good if r.matching in (_FULL, strongest.get((r.usage, r.selector))))


def _is_usable(record: Tlsa) -> bool:
    if record.usage not in (TRUST_ANCHOR, END_ENTITY) or record.selector not in (_CERTIFICATE, _KEY):
        return False
    if record.matching == _FULL:
        return bool(record.data)
    return len(record.data) == _SIZES.get(record.matching)


def authenticate(chain: Sequence[bytes], records: Sequence[Tlsa], names: Sequence[str]) -> Tlsa | TlsFailed:
    """The record that vouches for a peer with this chain (DER, its own certificate first).

    An end entity's certificate counts whatever its names and dates are (RFC 7672 section 3.1.1). Under a trust anchor
    it must be valid, and for one of `names` (section 3.1.2 and 3.2).
    """
    try:
        certificates = [x509.load_der_x509_certificate(der) for der in chain[:CHAIN]]
    except (ValueError, x509.InvalidVersion) as error:
        return TlsFailed(f"a certificate cannot be read: {_first_line(error)}")
    if not certificates:
        return TlsFailed("there is no certificate")
    keys = [_key(certificate) for certificate in certificates]
    for record in records:
        if record.usage == END_ENTITY and _matches(record, chain[0], keys[0]):
            return record
    failed: TlsFailed | None = None
    for record in records:
        if record.usage != TRUST_ANCHOR:
            continue
        for anchor in _anchors(record, certificates, chain, keys):
            problem = _check_path(certificates, anchor, names)
            if problem is None:
                return record
            failed = problem
    return failed or TlsFailed("no TLSA record is for its certificates", Failure.UNTRUSTED)


def _key(certificate: x509.Certificate) -> bytes:
    """The public key with its algorithm; empty, which no record can mean, for one that is of no known kind."""
    try:
        return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        return b""


def _matches(record: Tlsa, certificate: bytes, key: bytes) -> bool:
    selected = key if record.selector == _KEY else certificate
    digest = _DIGESTS.get(record.matching)
    return (digest(selected).digest() if digest else selected) == record.data


def _anchors(
    record: Tlsa, certificates: Sequence[x509.Certificate], chain: Sequence[bytes], keys: Sequence[bytes]
) -> list[x509.Certificate]:
    """The certificates that this record makes trust anchors: of the chain, or the one that stands in the record."""
    found = [certificates[n] for n in range(1, len(certificates)) if _matches(record, chain[n], keys[n])]
    if not found and record.selector == _CERTIFICATE and record.matching == _FULL:
        try:
            return [x509.load_der_x509_certificate(record.data)]
        except (ValueError, x509.InvalidVersion):
            return []
    return found


# What a private CA may do as it likes, but for what makes it a CA and its certificates those of names.
_CA_POLICY: Final = ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
_NAMED: Final = ExtensionPolicy.permit_all().require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)


def _check_path(
    certificates: Sequence[x509.Certificate], anchor: x509.Certificate, names: Sequence[str]
) -> TlsFailed | None:
    """Whether a path of valid signatures leads from the peer to `anchor`, for one of the names; None when it does."""
    builder = PolicyBuilder().store(Store([anchor])).max_chain_depth(CHAIN)
    builder = builder.extension_policies(ca_policy=_CA_POLICY, ee_policy=_NAMED)
    others = [certificate for certificate in certificates[1:] if certificate != anchor]
    problem = "no name to check"
    for name in names:
        try:
            builder.build_server_verifier(x509.DNSName(name)).verify(certificates[0], others)
            return None
        except (VerificationError, ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
            problem = _first_line(error)
    return TlsFailed(f"the TLSA trust anchor does not vouch for it: {problem}", Failure.UNTRUSTED)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
