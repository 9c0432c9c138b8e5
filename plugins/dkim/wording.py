"""Writing a signature field: its tags in order, folded, and b= at the end.

*RFCs*: 6376 sections 3.5, 5.4 (which fields) and 5.6, 5322 section 2.1.1 (length of lines).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import Final

from plugins.dkim.canonical import relaxed_field, simple_field
from plugins.dkim.fields import Fields
from plugins.dkim.keys import sha256
from plugins.dkim.private import PrivateKey

# RFC 6376 section 5.4.1, with what has come to matter since. Trace fields and what others may add are not in it.
DEFAULT_HEADERS: Final = (
    "from",
    "sender",
    "reply-to",
    "to",
    "cc",
    "subject",
    "date",
    "message-id",
    "in-reply-to",
    "references",
    "mime-version",
    "content-type",
    "content-transfer-encoding",
    "content-id",
    "content-description",
    "resent-date",
    "resent-from",
    "resent-to",
    "resent-cc",
    "resent-message-id",
    "list-id",
    "list-help",
    "list-owner",
    "list-post",
    "list-subscribe",
    "list-unsubscribe",
    "list-unsubscribe-post",
    # RFC 8460 section 5.3 and RFC 8689 section 5.
    "tls-report-domain",
    "tls-report-submitter",
    "tls-required",
)

_LINE: Final = 76
_CHUNK: Final = 72
_MOST: Final = 50
_NAME: Final = re.compile(r"[!-9;-~]{1,77}\Z")
# They change on the way, or are what is being written.
_NEVER: Final = frozenset(
    {"return-path", "received", "authentication-results", "dkim-signature", "arc-seal", "bcc", "resent-bcc"}
)


def check_headers(names: Iterable[str], never: frozenset[str] = _NEVER) -> tuple[str, ...]:
    """Field names in a configuration, in lower case; raises ValueError for what cannot be signed."""
    lower = tuple(dict.fromkeys(name.lower() for name in names))
    for name in lower:
        if not _NAME.match(name):
            raise ValueError(f"{name!r} is no field name")
        if name in never:
            raise ValueError(f"{name} changes on the way and is not to be signed (RFC 6376 section 5.4)")
    return lower


def signed_names(fields: Fields, names: Iterable[str], oversigned: Iterable[str] = ()) -> tuple[str, ...]:
    """h= for a message: each name as often as it is there (at most 50 times), and once more when it is oversigned."""
    once_more = frozenset(oversigned)
    out: list[str] = []
    for name in names:
        out += [name] * (min(len(fields.named(name)), _MOST) + (name in once_more))
    return tuple(out)


def b64(octets: bytes) -> str:
    """Base64 as text."""
    return base64.b64encode(octets).decode("ascii")


class Wording:
    """A field's value as it grows; lines end where a tag would make them too long."""

    def __init__(self, name: str, first: str) -> None:
        self._name = name
        self._lines = [first]

    def tag(self, name: str, value: str) -> None:
        """Add a tag that needs no folding of its own."""
        self._add(f"{name}={value}")

    def names(self, names: Iterable[str]) -> None:
        """Add h=, which may be folded between its names."""
        self._lines[-1] += ";"
        self._lines.append("h=")
        first = True
        for name in names:
            text = name if first else ":" + name
            if len(self._lines[-1]) + len(text) > _LINE:
                self._lines[-1] += "" if first else ":"
                self._lines.append(name)
            else:
                self._lines[-1] += text
            first = False

    def _add(self, text: str) -> None:
        if len(self._lines[-1]) + len(text) + 2 > _LINE:
            self._lines[-1] += ";"
            self._lines.append(text)
        else:
            self._lines[-1] += "; " + text

    def sign(self, key: PrivateKey, signed: Iterable[bytes], *, relaxed: bool) -> str:
        """The whole value, line feeds as folds: `signed` are the canonical fields that come before the field itself."""
        self._lines[-1] += ";"
        bare = "\n\t".join([*self._lines, "b="])
        raw = f"{self._name}: {bare}".replace("\n", "\r\n").encode("ascii") + b"\r\n"
        own = relaxed_field(raw) if relaxed else simple_field(raw)
        value = key.sign(sha256(*signed, own.removesuffix(b"\r\n")))
        return bare + "\n\t".join(value[at : at + _CHUNK] for at in range(0, len(value), _CHUNK))
