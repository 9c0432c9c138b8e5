"""A signature field, DKIM's or ARC's, read and checked as far as it goes without key and message.

*RFCs*: 6376 sections 3.5 and 6.1.1, 8301 section 3.1 (rsa-sha1 is over), 8463 section 3, 8616 (U-labels in d=, s= and
i=), 6008 (header.b), 8617 section 4.1 (ARC-Message-Signature and ARC-Seal).
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from gateway.sdk import Address, AuthResult, DkimSignature
from plugins.dkim.taglist import TagError, TagList, parse_tags

ALGORITHMS: Final = {"rsa-sha256": "rsa", "ed25519-sha256": "ed25519"}
MAX_NAMES: Final = 1000
SHORT: Final = 8
"""So much of b= tells signatures apart, as a rule (RFC 6008 section 4)."""

_NAME: Final = re.compile(r"[\x21-\x39\x3b-\x7e]{1,997}\Z")
_LABELS: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62}))*\Z")
_NUMBER: Final = re.compile(r"[0-9]{1,12}\Z")
_LENGTH: Final = re.compile(r"[0-9]{1,76}\Z")
_TEXT: Final = 255
_FAR: Final = 1 << 62


class Kind(Enum):
    """Which field it is, by the tags that it must have."""

    DKIM = ("v", "a", "b", "bh", "d", "h", "s")
    MESSAGE = ("i", "a", "b", "bh", "d", "h", "s")
    SEAL = ("i", "a", "b", "cv", "d", "s")


class SignatureError(ValueError):
    """A signature that cannot hold; `result` is what that is called, ``str(error)`` says why."""

    def __init__(self, text: str, result: AuthResult = AuthResult.PERMERROR) -> None:
        super().__init__(text)
        self.result = result


@dataclass(frozen=True, slots=True)
class Signature:
    """A well-formed signature. `place` is where its field stands; `bare` is the field with its b= emptied.

    `relaxed` and `body_relaxed` are c=; `names` are h= in lower case; `length` is l=.
    """

    place: int
    bare: bytes
    domain: str
    selector: str
    identity: str
    algorithm: str
    value: bytes
    relaxed: bool = True
    body_relaxed: bool = True
    names: tuple[str, ...] = ()
    body_hash: bytes = b""
    length: int | None = None
    signed_at: int | None = None
    expires: int | None = None
    cv: str = ""

    @property
    def key_name(self) -> str:
        """Where its key is."""
        return f"{self.selector}._domainkey.{self.domain}"

    @property
    def form(self) -> tuple[bool, int | None]:
        """The form of the body that its bh= is made of."""
        return self.body_relaxed, self.length

    def check_time(self, now: float, skew: float) -> None:
        """Raise `SignatureError` when it is over, or from the future, by more than `skew` seconds."""
        if self.expires is not None and self.expires < now - skew:
            raise SignatureError("signature has expired", AuthResult.FAIL)
        if self.signed_at is not None and self.signed_at > now + skew:
            raise SignatureError("signature was made in the future", AuthResult.FAIL)


def read_tags(raw: bytes) -> tuple[TagList, int]:
    """A field's tags, and where in its octets the list begins. Raises `SignatureError`."""
    start = raw.index(b":") + 1
    try:
        return parse_tags(raw[start:]), start
    except TagError as error:
        raise SignatureError(f"malformed: {error}") from None


def describe(tags: TagList) -> DkimSignature:
    """What can be said of a signature before anything is known about it."""
    domain = _printable(tags.get("d"))
    return DkimSignature(
        AuthResult.NEUTRAL,
        _ascii(domain) or domain.lower(),
        selector=_printable(tags.get("s")),
        identity=_printable(tags.get("i")),
        algorithm=_printable(tags.compact("a")).lower(),
        short=_printable(tags.compact("b")[:SHORT]),
    )


def read_signature(raw: bytes, place: int, kind: Kind, tags: TagList, start: int) -> Signature:
    """The signature in a field whose tags are `tags`. Raises `SignatureError` unless it is well formed."""
    for name in kind.value:
        if tags.get(name) is None:
            raise SignatureError(f"{name}= is missing")
    if kind is Kind.DKIM and tags.get("v") != "1":
        raise SignatureError("v= is not 1")
    algorithm = tags.compact("a").lower()
    if algorithm == "rsa-sha1":
        raise SignatureError("rsa-sha1 does not count any more", AuthResult.POLICY)
    if algorithm not in ALGORITHMS:
        raise SignatureError("a= is unknown")
    domain, selector = _name(tags, "d"), _name(tags, "s")
    begin, end = tags.spans["b"]
    bare = raw[: start + begin] + raw[start + end :]
    value = _decode(tags, "b")
    if kind is Kind.SEAL:
        if tags.get("h") is not None:
            raise SignatureError("a seal has no h=")
        cv = (tags.get("cv") or "").lower()
        return Signature(place, bare, domain, selector, "", algorithm, value, signed_at=_number(tags, "t"), cv=cv)
    relaxed, body_relaxed = _canonicalization(tags)
    signed_at, expires = _number(tags, "t"), _number(tags, "x")
    if signed_at is not None and expires is not None and expires < signed_at:
        raise SignatureError("x= is before t=")
    body_hash = _decode(tags, "bh")
    if len(body_hash) != 32:
        raise SignatureError("bh= is not SHA-256")
    return Signature(
        place,
        bare,
        domain,
        selector,
        _identity(tags, domain) if kind is Kind.DKIM else "",
        algorithm,
        value,
        relaxed,
        body_relaxed,
        _names(tags, kind),
        body_hash,
        _length(tags),
        signed_at,
        expires,
    )


def _printable(text: str | None) -> str:
    if text is None or (text.isprintable() and len(text) <= _TEXT):
        return text or ""
    return "".join(c if c.isprintable() else "?" for c in text[:_TEXT])


def _ascii(domain: str) -> str:
    """A-labels in lower case, empty when it is no domain name."""
    try:
        name = Address("", domain).ascii_domain
    except ValueError:
        return ""
    return name if len(name) < 254 and _LABELS.match(name) else ""


def _name(tags: TagList, name: str) -> str:
    found = _ascii(tags.get(name) or "")
    if not found:
        raise SignatureError(f"{name}= is no domain name")
    return found


def _decode(tags: TagList, name: str) -> bytes:
    try:
        value = base64.b64decode(tags.compact(name), validate=True)
    except (binascii.Error, ValueError):
        raise SignatureError(f"{name}= is not base64") from None
    if not value:
        raise SignatureError(f"{name}= is empty")
    return value


def _number(tags: TagList, name: str) -> int | None:
    value = tags.get(name)
    if value is None:
        return None
    if not _NUMBER.match(value):
        raise SignatureError(f"{name}= is no time")
    return int(value)


def _length(tags: TagList) -> int | None:
    value = tags.get("l")
    if value is None:
        return None
    if not _LENGTH.match(value):
        raise SignatureError("l= is no number")
    return min(int(value), _FAR)


def _canonicalization(tags: TagList) -> tuple[bool, bool]:
    value = tags.compact("c").lower() if tags.get("c") is not None else "simple"
    header, slash, body = value.partition("/")
    body = body if slash else "simple"
    if header not in ("simple", "relaxed") or body not in ("simple", "relaxed"):
        raise SignatureError("c= is unknown")
    return header == "relaxed", body == "relaxed"


def _names(tags: TagList, kind: Kind) -> tuple[str, ...]:
    names = tuple(name.lower() for name in tags.items("h"))
    if len(names) > MAX_NAMES or not all(map(_NAME.match, names)):
        raise SignatureError("h= is no list of field names")
    if "from" not in names:
        raise SignatureError("From is not signed")
    if kind is Kind.MESSAGE and "arc-seal" in names:
        raise SignatureError("h= names ARC-Seal")
    return names


def _identity(tags: TagList, domain: str) -> str:
    """i=, or its default; its domain in A-labels."""
    if (methods := tags.items("q")) and "dns/txt" not in methods:
        raise SignatureError("q= knows no dns/txt")
    value = tags.get("i")
    if value is None:
        return f"@{domain}"
    local, at, host = value.rpartition("@")
    host = _ascii(host)
    if not at or not (host == domain or host.endswith("." + domain)):
        raise SignatureError("i= is not within d=")
    return f"{_printable(local)}@{host}"
