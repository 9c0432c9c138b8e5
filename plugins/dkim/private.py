"""Private keys: their files, and what they sign.

RSA is dkimpy's (PKCS #1 or PKCS #8 in PEM, without a passphrase); Ed25519 is libsodium's (PKCS #8 in PEM as OpenSSL
writes it, or the 32 octets in base64 as dknewkey does). Nothing of a key is ever logged or shown.

*Fails by*: `ValueError` with what to do, when the plugin starts.

*RFCs*: 8301 section 3.2 (sizes), 8410 section 7 (Ed25519 in PKCS #8), 8463.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from abc import ABC, abstractmethod
from typing import Any, Final

import nacl.signing
from dkim.crypto import RSASSA_PKCS1_v1_5_sign, RSASSA_PKCS1_v1_5_verify, parse_pem_private_key

from plugins.dkim.keys import sha256

FILE_OCTETS: Final = 65_536
MIN_BITS: Final = 1024
_ED25519: Final = bytes.fromhex("302e020100300506032b657004220420")
_PEM: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\n([A-Za-z0-9+/=\n]+)-----END \1-----")


class PrivateKey(ABC):
    """A key that signs. `algorithm` is a= as it is written."""

    algorithm: str

    def sign(self, digest: Any) -> str:
        """b= for a hash object (SHA-256), in base64."""
        return base64.b64encode(self._sign(digest)).decode("ascii")

    @abstractmethod
    def _sign(self, digest: Any) -> bytes:
        """The signature's octets."""


class RsaKey(PrivateKey):
    """An RSA key."""

    algorithm = "rsa-sha256"

    def __init__(self, numbers: dict[str, int]) -> None:
        self.bits = numbers["modulus"].bit_length()
        self._numbers = numbers

    def _sign(self, digest: Any) -> bytes:
        return bytes(RSASSA_PKCS1_v1_5_sign(digest, self._numbers))

    def sound(self) -> bool:
        """Whether what it signs, it verifies."""
        digest = sha256(b"sound")
        return bool(RSASSA_PKCS1_v1_5_verify(digest, self._sign(digest), self._numbers))


class Ed25519Key(PrivateKey):
    """An Ed25519 key."""

    algorithm = "ed25519-sha256"

    def __init__(self, seed: bytes) -> None:
        self._key = nacl.signing.SigningKey(seed)

    def _sign(self, digest: Any) -> bytes:
        return self._key.sign(digest.digest()).signature


def load_key(path: str) -> PrivateKey:
    """The key in a file that not everybody can read. Blocks; raises ValueError that names the file and says why."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IROTH | stat.S_IWOTH):
                raise ValueError(f"{path} is a private key that everybody can read or write: chmod o= {path}")
            data = file.read(FILE_OCTETS + 1)
    except OSError as error:
        raise ValueError(f"cannot read the private key {path}: {error.strerror}") from error
    try:
        return _parse(data)
    except ValueError as error:
        raise ValueError(f"{path} holds no usable private key: {error}") from None


def _parse(data: bytes) -> PrivateKey:
    if len(data) > FILE_OCTETS:
        raise ValueError(f"larger than {FILE_OCTETS} octets")
    text = data.replace(b"\r\n", b"\n")
    if b"-----BEGIN" not in text:
        return _parse_seed(text)
    match = _PEM.search(text)
    if not match or b"ENCRYPTED" in match[1]:
        raise ValueError("not in PEM without a passphrase")
    try:
        der = base64.b64decode(match[2].replace(b"\n", b""), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("its PEM is damaged") from None
    if der.startswith(_ED25519) and len(der) == len(_ED25519) + 32:
        return Ed25519Key(der[len(_ED25519) :])
    try:
        key = RsaKey(parse_pem_private_key(match[0]))
        sound = key.bits < MIN_BITS or key.sound()
    except Exception:  # noqa: BLE001 - dkimpy's reader raises half a dozen kinds for octets that are no RSA key
        raise ValueError("neither RSA nor Ed25519") from None
    if key.bits < MIN_BITS:
        raise ValueError(f"it has {key.bits} bits, and {MIN_BITS} are the least that counts")
    if not sound:
        raise ValueError("its numbers do not belong together")
    return key


def _parse_seed(text: bytes) -> PrivateKey:
    try:
        seed = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        seed = b""
    if len(seed) != 32:
        raise ValueError("neither PEM nor an Ed25519 key in base64")
    return Ed25519Key(seed)


def check_domain(value: str) -> str:
    """A domain or selector in a configuration, in lower case; raises ValueError."""
    lower = value.lower()
    if len(lower) > 253 or not re.fullmatch(r"[a-z0-9_](?:[a-z0-9_-]{0,62})(?:\.[a-z0-9_][a-z0-9_-]{0,62})*", lower):
        raise ValueError(f"{value!r} is no domain name in ASCII (write A-labels, xn--...)")
    return lower
