"""The Sender Rewriting Scheme: another's address inside one of ours, signed, so that bounces find their way back.

Who forwards a message keeps its sender, and fails SPF at the next host: the sender's domain never named us. So the
sender becomes ``SRS0=HASH=TT=example.net=ben`` at a domain of ours. A bounce to that address comes to us, and goes on
to ben@example.net when the hash is one that we made and the day TT is not long ago. A sender that somebody else has
rewritten becomes ``SRS1=HASH=first.example==...``: its bounce goes straight to the forwarder who was first.

Written and read as by Mail::SRS and libsrs2 (postsrsd): HMAC-SHA1 in base64 over the parts in lower case, days in two
characters of base 32. Hosts on the way may fold the case of a local part, so hash and day are compared without it, and
``SRS0+`` and ``SRS0-`` are read as ``SRS0=``.

*Fails by*: `SrsError`, whose text says what is wrong with the address.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import Final

from gateway.mail.address import LOCAL_PART_OCTETS, PATH_OCTETS, Address, AddressError, parse_domain

HASH_MIN: Final = 4
HASH_MAX: Final = 27
"""Characters of base64 that an HMAC-SHA1 has."""

_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_DAYS: Final = 1024
_DAY_SECONDS: Final = 86400.0
_SRS0: Final = re.compile(r"SRS0([-+=])", re.IGNORECASE)
_SRS1: Final = re.compile(r"SRS1[-+=]", re.IGNORECASE)


class SrsError(ValueError):
    """The address cannot be rewritten, or is none that we rewrote, or its time is over."""


@dataclass(frozen=True, slots=True)
class Srs:
    """A domain of ours and its secrets: the first one signs, all of them are good for reading.

    A hash has `hash_length` characters, and no shorter one is believed. An address is good for `valid_days`. With
    `over_long`, local parts of more than 64 octets are written. `bounces_only` says that nobody but the null sender may
    write to a rewritten address.
    """

    domain: str
    secrets: tuple[bytes, ...] = field(repr=False)
    hash_length: int = 8
    valid_days: int = 21
    over_long: bool = False
    bounces_only: bool = True

    def __post_init__(self) -> None:
        if not self.secrets or not all(self.secrets):
            raise ValueError("SRS needs a secret")
        if not HASH_MIN <= self.hash_length <= HASH_MAX or not 1 <= self.valid_days < _DAYS // 2:
            raise ValueError("a hash has 4 to 27 characters, and an address is good for 1 to 511 days")

    def rewrite(self, sender: Address, now: float) -> Address:
        """Our address that stands for `sender`, made at `now` (epoch seconds). Raises `SrsError`."""
        try:
            host = sender.ascii_domain
        except AddressError as error:
            raise SrsError(str(error)) from error
        local = self._of_srs(sender.local, host) or self._of_other(sender.local, host, now)
        octets = len(local.encode())
        if octets + len(self.domain) + 3 > PATH_OCTETS or (octets > LOCAL_PART_OCTETS and not self.over_long):
            raise SrsError("the rewritten address would be too long")
        return Address(local, self.domain)

    def reads(self, address: Address) -> bool:
        """Whether it has the form of a rewritten address and is at our domain; nothing is verified."""
        try:
            at_home = address.ascii_domain == self.domain
        except AddressError:
            return False
        return at_home and bool(_SRS0.match(address.local) or _SRS1.match(address.local))

    def restore(self, address: Address, now: float) -> Address:
        """The address inside a rewritten one, whose hash and day are verified. Raises `SrsError`."""
        if not self.reads(address):
            raise SrsError("it is no rewritten address of ours")
        if _SRS1.match(address.local):
            return self._restore_srs1(address.local[5:])
        parts = address.local[5:].split("=", 3)
        if len(parts) != 4:
            raise SrsError("the rewritten address lacks a part")
        given, day, host, local = parts
        self._verify(given, day, host, local)
        self._check_day(day, now)
        return _address(local, host)

    def _of_srs(self, local: str, host: str) -> str:
        """Of an address that another forwarder rewrote; empty when it is none."""
        if _SRS1.match(local):
            _, _, rest = local[5:].partition("=")
            first, equals, rest = rest.partition("=")
            if not (first and equals and rest):
                return ""
            return f"SRS1={self._hash(self.secrets[0], first, rest)}={first}={rest}"
        if _SRS0.match(local):
            rest = local[4:]
            return f"SRS1={self._hash(self.secrets[0], host, rest)}={host}={rest}"
        return ""

    def _of_other(self, local: str, host: str, now: float) -> str:
        number = int(now // _DAY_SECONDS) % _DAYS
        day = _ALPHABET[number >> 5] + _ALPHABET[number & 31]
        return f"SRS0={self._hash(self.secrets[0], day, host, local)}={day}={host}={local}"

    def _restore_srs1(self, text: str) -> Address:
        parts = text.split("=", 2)
        if len(parts) != 3 or not _SRS0.match("SRS0" + parts[2]):
            raise SrsError("the rewritten address lacks a part")
        given, host, rest = parts
        self._verify(given, host, rest)
        return _address("SRS0" + rest, host)

    def _verify(self, given: str, *parts: str) -> None:
        if not self.hash_length <= len(given) <= HASH_MAX or not given.isascii():
            raise SrsError("its hash has the wrong length")
        folded = given.lower()
        good = [hmac.compare_digest(self._hash(s, *parts, length=len(given)).lower(), folded) for s in self.secrets]
        if not any(good):
            raise SrsError("its hash is wrong")

    def _hash(self, secret: bytes, *parts: str, length: int = 0) -> str:
        # bytes.lower() folds ASCII only, as the others do.
        digest = hmac.new(secret, "".join(parts).encode().lower(), hashlib.sha1).digest()
        return base64.b64encode(digest).decode("ascii")[: length or self.hash_length]

    def _check_day(self, day: str, now: float) -> None:
        try:
            high, low = (_ALPHABET.index(c) for c in day.upper())
        except ValueError as error:
            raise SrsError("its day is malformed") from error
        # Another of our machines may be a moment ahead of us at midnight.
        age = (int(now // _DAY_SECONDS) - (high << 5 | low) + 1) % _DAYS - 1
        if age > self.valid_days:
            raise SrsError(f"its time is over: it is good for {self.valid_days} days")


def _address(local: str, host: str) -> Address:
    if not local:
        raise SrsError("the rewritten address lacks a part")
    try:
        return Address(local, parse_domain(host))
    except AddressError as error:
        raise SrsError(str(error)) from error
