"""Other gateways of ours, to which mail is handed over, as values; `gateway.transport.peers` asks them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

URLS_MAX: Final = 64


class PeersError(ValueError):
    """That is no peer; the text says why."""


class Told(StrEnum):
    """What is known of an offer after a request."""

    TAKEN = "taken"
    """The peer owns the message."""
    REFUSED = "refused"
    """The peer has it not, and never will by this offer."""
    NOT_SENT = "not-sent"
    """Nothing of it left this machine."""
    UNKNOWN = "unknown"
    """Anything may have happened."""
    AMISS = "amiss"
    """As `UNKNOWN`; and the peer says that it is the message which it cannot take."""


@dataclass(frozen=True, slots=True)
class Said:
    """What came of a request, and in what words."""

    told: Told
    why: str = ""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another gateway, as it introduced itself. `url` leads to one address; `host` is the name it was found by."""

    spool: str
    name: str
    url: str
    host: str
    ready: bool
    why: str = ""
    """Why it is not ready."""


def check_url(text: str) -> str:
    """``http://HOST:PORT`` or ``https://...``, without anything behind it. Raises `PeersError`."""
    try:
        url = urlsplit(text)
        whole = url.scheme in ("http", "https") and url.hostname and url.port != 0 and "@" not in url.netloc
    except ValueError as error:
        raise PeersError(f"that is no URL: {error}") from error
    if len(text) > 1000 or not text.isascii() or not text.isprintable() or not whole:
        raise PeersError("expected http://HOST:PORT")
    if url.path not in ("", "/") or "?" in text or "#" in text:
        raise PeersError("has a path; expected http://HOST:PORT")
    return text.rstrip("/")


def read_token(octets: bytes) -> str:
    """The token in a file: its first line. Raises `PeersError`, whose text never holds it."""
    try:
        token = octets[:4097].split(b"\n", 1)[0].strip().decode("ascii")
    except UnicodeDecodeError as error:
        raise PeersError("the token holds octets that are no ASCII") from error
    if not 16 <= len(token) <= 1000 or not token.isprintable():
        raise PeersError("the first line must hold a token of 16 to 1000 characters")
    return token
