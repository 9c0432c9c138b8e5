"""Logging in to a next hop: the client's side of SASL mechanisms. Challenges in, responses out, no I/O.

*Promises*: a password is in no text that comes out of here but the responses themselves. With SCRAM the server must
prove that it knows the password, too, or it was no success.

*Fails by*: `Misled`, for challenges that make no sense.

*RFCs*: 4616 (PLAIN), 2195 (CRAM-MD5), 5802 and 7677 (SCRAM-SHA-256), 4013 (what a name and a password are made of).
LOGIN is draft-murchison-sasl-login.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import stringprep
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

MIN_ITERATIONS: Final = 4096
MAX_ITERATIONS: Final = 200_000
"""RFC 7677 section 4 wants 4096 at least. More than this many would keep the event loop from its work."""
_CHALLENGE: Final = 2048

_PROHIBITED: Final = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


class MechanismName(StrEnum):
    """What there is, best first."""

    SCRAM_SHA_256 = "SCRAM-SHA-256"
    CRAM_MD5 = "CRAM-MD5"
    PLAIN = "PLAIN"
    LOGIN = "LOGIN"


@dataclass(frozen=True, slots=True)
class Login:
    """A name and a password, prepared. `mechanisms` may be used; `without_tls` allows them in the clear."""

    user: str
    password: str = field(repr=False)
    mechanisms: tuple[MechanismName, ...] = tuple(MechanismName)
    without_tls: bool = False


class Misled(ValueError):
    """The server asks what it cannot ask, or has not proved itself; the text says what."""


class Mechanism(Protocol):
    """One login. The first response, where `begins`, goes along with AUTH."""

    begins: bool

    def respond(self, challenge: bytes) -> bytes:
        """The response to a challenge; to none, which is empty, the first one. Raises `Misled`."""

    def check(self) -> None:
        """The server says that it was a success. Raises `Misled` where it has not proved that."""


def choose(login: Login, offered: str) -> tuple[str, Mechanism] | None:
    """The best mechanism that the server `offered` in its reply to EHLO, with its name; None when there is none."""
    known = offered.upper().split()
    for name in MechanismName:
        if name in login.mechanisms and name.value in known:
            return name.value, _MAKE[name](login)
    return None


class _Simple:
    """Responses one after the other, whatever is asked."""

    def __init__(self, *responses: str, begins: bool) -> None:
        self.begins = begins
        self._responses = [response.encode() for response in responses]

    def respond(self, challenge: bytes) -> bytes:
        if not self._responses:
            raise Misled("it asks for more than name and password")
        return self._responses.pop(0)

    def check(self) -> None:
        if self._responses:
            raise Misled("it was content before it was told all")


class _CramMd5:
    begins = False

    def __init__(self, login: Login) -> None:
        self._login = login
        self._answered = False

    def respond(self, challenge: bytes) -> bytes:
        if self._answered or not challenge:
            raise Misled("it asks for something else than CRAM-MD5 has")
        self._answered = True
        digest = hmac.new(self._login.password.encode(), challenge, hashlib.md5).hexdigest()
        return f"{self._login.user} {digest}".encode()

    def check(self) -> None:
        if not self._answered:
            raise Misled("it was content before it was told all")


class ScramSha256:
    """SCRAM without channel binding. `nonce` is ours, random where none is given."""

    begins = True

    def __init__(self, login: Login, nonce: str = "") -> None:
        self._login = login
        self._nonce = nonce or secrets.token_urlsafe(24)
        user = login.user.replace("=", "=3D").replace(",", "=2C")
        self._first = f"n={user},r={self._nonce}"
        self._steps: list[Callable[[bytes], bytes]] = [self._begin, self._prove, self._verify]
        self._signature = b""

    def respond(self, challenge: bytes) -> bytes:
        if not self._steps:
            raise Misled("it goes on after SCRAM has ended")
        return self._steps.pop(0)(challenge)

    def check(self) -> None:
        if self._steps:
            raise Misled("it has not proved that it knows the password")

    def _begin(self, challenge: bytes) -> bytes:
        if challenge:
            raise Misled("it speaks first")
        return f"n,,{self._first}".encode()

    def _prove(self, challenge: bytes) -> bytes:
        server_first = _text(challenge)
        values = _attributes(server_first)
        if [name for name, _ in values][:3] != ["r", "s", "i"]:
            raise Misled("its SCRAM message is malformed")
        nonce, salt, rounds = (value for _, value in values[:3])
        if not nonce.startswith(self._nonce) or len(nonce) == len(self._nonce):
            raise Misled("its nonce is none of its own")
        iterations = int(rounds) if rounds.isascii() and rounds.isdigit() and len(rounds) < 10 else 0
        if not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
            raise Misled(f"it wants {rounds[:20]} iterations; {MIN_ITERATIONS} to {MAX_ITERATIONS} are made")
        salted = hashlib.pbkdf2_hmac("sha256", self._login.password.encode(), _base64(salt), iterations)
        final = f"c=biws,r={nonce}"
        message = f"{self._first},{server_first},{final}".encode()
        client_key = _hmac(salted, b"Client Key")
        signature = _hmac(hashlib.sha256(client_key).digest(), message)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self._signature = _hmac(_hmac(salted, b"Server Key"), message)
        return f"{final},p={base64.b64encode(proof).decode()}".encode()

    def _verify(self, challenge: bytes) -> bytes:
        (name, value), *_ = _attributes(_text(challenge))
        if name == "e":
            raise Misled(f"it says {value[:50]}")
        if name != "v" or not hmac.compare_digest(_base64(value), self._signature):
            raise Misled("it does not know the password")
        return b""


_MAKE: Final[dict[MechanismName, Callable[[Login], Mechanism]]] = {
    MechanismName.PLAIN: lambda login: _Simple(f"\0{login.user}\0{login.password}", begins=True),
    MechanismName.LOGIN: lambda login: _Simple(login.user, login.password, begins=False),
    MechanismName.CRAM_MD5: _CramMd5,
    MechanismName.SCRAM_SHA_256: ScramSha256,
}


def decode_challenge(line: bytes) -> bytes:
    """The text of a 334 reply. Raises `Misled` when it is no base64."""
    if len(line) > _CHALLENGE:
        raise Misled("its challenge is too long")
    try:
        return base64.b64decode(line.strip(), validate=True)
    except binascii.Error:
        raise Misled("its challenge is no base64") from None


def prepare(text: str) -> str:
    """A name or password as SASLprep makes it (RFC 4013). Raises ValueError for what can be neither."""
    mapped = "".join(" " if stringprep.in_table_c12(c) else c for c in text if not stringprep.in_table_b1(c))
    out = unicodedata.normalize("NFKC", mapped)
    if not out:
        raise ValueError("is empty")
    for c in out:
        if any(table(c) for table in _PROHIBITED) or stringprep.in_table_a1(c):
            raise ValueError(f"holds a character that it may not hold, U+{ord(c):04X}")
    if any(map(stringprep.in_table_d1, out)):
        right = stringprep.in_table_d1(out[0]) and stringprep.in_table_d1(out[-1])
        if not right or any(map(stringprep.in_table_d2, out)):
            raise ValueError("mixes writing from the right and from the left")
    return out


def _text(challenge: bytes) -> str:
    try:
        return challenge.decode()
    except UnicodeDecodeError:
        raise Misled("its SCRAM message is no text") from None


def _attributes(message: str) -> Sequence[tuple[str, str]]:
    pairs = [part.partition("=") for part in message.split(",")]
    return [(name, value) for name, _, value in pairs]


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Misled("its SCRAM message is no base64") from None


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")
