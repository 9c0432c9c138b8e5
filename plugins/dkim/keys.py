"""Public keys: their records in the DNS, and what they verify.

dkimpy reads the key and makes the padding. Here is what it leaves out: the length of the signature, bounds of modulus
and exponent, and the record's rules (h=, s=, t=, which k= goes with which a=).

*RFCs*: 6376 section 3.6, 8301 section 3.2 (sizes), 8463 section 4 (Ed25519), 8017 section 8.2.2 (RSASSA-PKCS1-v1_5).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import nacl.exceptions
import nacl.signing
from dkim.crypto import EMSA_PKCS1_v1_5_encode, parse_public_key

from gateway.sdk import AuthResult, Dns, DnsStatus
from plugins.dkim.taglist import TagError, parse_tags

RECORD_OCTETS: Final = 4096
RECORDS: Final = 4
"""So many records of one name are tried (section 6.1.2 leaves it to us)."""
MAX_BITS: Final = 4096
"""What every verifier must take; more is a way to make us compute."""
_MAX_EXPONENT: Final = 1 << 33


class KeyRecordError(ValueError):
    """A record that holds no usable key; ``str(error)`` says why."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key and the rules of its record.

    `kind` is ``rsa`` or ``ed25519``; `testing` is t=y; `exact` is t=s: i= must be in d= itself, not below it.
    """

    kind: str
    bits: int
    testing: bool
    exact: bool
    modulus: int = 0
    exponent: int = 0
    point: bytes = b""

    def verifies(self, digest: Any, signature: bytes) -> bool:
        """Whether `signature` is this key's over the hash object `digest` (SHA-256)."""
        if self.kind == "ed25519":
            try:
                nacl.signing.VerifyKey(self.point).verify(digest.digest(), signature)
            except (nacl.exceptions.BadSignatureError, ValueError):
                return False
            return True
        size = (self.bits + 7) // 8
        number = int.from_bytes(signature, "big")
        if len(signature) != size or number >= self.modulus:
            return False
        padded = _power(number, self.exponent, self.modulus).to_bytes(size, "big")
        return bool(padded == EMSA_PKCS1_v1_5_encode(digest, size))


def _power(number: int, exponent: int, modulus: int) -> int:
    """``pow`` for a public exponent, which is short and nearly all zeros: a third faster than the built-in is."""
    out = number
    for bit in bin(exponent)[3:]:
        out = out * out % modulus
        if bit == "1":
            out = out * number % modulus
    return out


@lru_cache(maxsize=1024)
def parse_key(record: bytes) -> PublicKey:
    """The key in a record; raises `KeyRecordError`."""
    if len(record) > RECORD_OCTETS:
        raise KeyRecordError(f"key record is longer than {RECORD_OCTETS} octets")
    try:
        tags = parse_tags(record)
    except TagError as error:
        raise KeyRecordError(f"key record is malformed: {error}") from None
    if (version := tags.get("v")) is not None and (version != "DKIM1" or next(iter(tags.values)) != "v"):
        raise KeyRecordError("record is no DKIM1 key")
    if tags.get("p") is None:
        raise KeyRecordError("record has no key")
    if not tags.compact("p"):
        raise KeyRecordError("key is revoked")
    if "h" in tags.values and "sha256" not in tags.items("h"):
        raise KeyRecordError("key does not allow sha256")
    if "s" in tags.values and not {"*", "email"} & set(tags.items("s")):
        raise KeyRecordError("key is not for mail")
    flags = tags.items("t")
    kind = tags.get("k") or "rsa"
    try:
        octets = base64.b64decode(tags.compact("p"), validate=True)
    except (binascii.Error, ValueError):
        raise KeyRecordError("key is not base64") from None
    if kind == "ed25519":
        if len(octets) != 32:
            raise KeyRecordError("an Ed25519 key has 32 octets")
        return PublicKey(kind, 256, "y" in flags, "s" in flags, point=octets)
    if kind != "rsa":
        raise KeyRecordError("key is of an unknown type")
    modulus, exponent = _read_rsa(octets)
    return PublicKey(kind, modulus.bit_length(), "y" in flags, "s" in flags, modulus, exponent)


def _read_rsa(octets: bytes) -> tuple[int, int]:
    try:
        read = parse_public_key(octets)
        modulus, exponent = int(read["modulus"]), int(read["publicExponent"])
    except Exception:  # noqa: BLE001 - dkimpy's ASN.1 reader raises half a dozen kinds for octets that are no key
        raise KeyRecordError("key is not an RSA public key") from None
    if modulus.bit_length() > MAX_BITS:
        raise KeyRecordError(f"key has more than {MAX_BITS} bits")
    if modulus.bit_length() < 512 or not modulus & 1 or not exponent & 1 or not 3 <= exponent < _MAX_EXPONENT:
        raise KeyRecordError("key is not a sound RSA public key")
    return modulus, exponent


@dataclass(frozen=True, slots=True)
class KeyAnswer:
    """What the DNS has under a key's name: its records, or why there are none and what that makes of a signature."""

    records: tuple[bytes, ...]
    result: AuthResult = AuthResult.NEUTRAL
    problem: str = ""


NO_TIME: Final = KeyAnswer((), AuthResult.TEMPERROR, "key was not had in time")


async def fetch_keys(dns: Dns, names: Collection[str], deadline: float) -> dict[str, KeyAnswer]:
    """The records of all these names, asked for at once. `deadline` is the event loop's time; nothing raises."""
    if len(names) == 1:
        return {name: await _fetch(dns, name, deadline) for name in names}
    answers = await asyncio.gather(*(_fetch(dns, name, deadline) for name in names))
    return dict(zip(names, answers, strict=True))


async def _fetch(dns: Dns, name: str, deadline: float) -> KeyAnswer:
    if len(name) > 253:
        return KeyAnswer((), AuthResult.PERMERROR, "name of the key is too long")
    try:
        async with asyncio.timeout_at(deadline):
            answer = await dns.lookup(name, "TXT")
    except TimeoutError:
        return NO_TIME
    match answer.status:
        case DnsStatus.OK:
            return KeyAnswer(tuple(record for record in answer.records if isinstance(record, bytes))[:RECORDS])
        case DnsStatus.FAILED:
            return KeyAnswer((), AuthResult.TEMPERROR, f"DNS: {answer.problem or 'no answer'}")
        case _:
            return KeyAnswer((), AuthResult.PERMERROR, "no key in the DNS")


def sha256(*parts: bytes) -> Any:
    """A hash object fed with these parts."""
    made = hashlib.sha256()
    for part in parts:
        made.update(part)
    return made
