"""The mailboxes of From, Reply-To and the like, as readers of mail show them.

Lenient on purpose: who forges a field writes it so that the reader shows what a strict parser refuses. Whatever might
be shown as an address is given as one, and what surrounds it as its name. Nothing raises; DMARC has a parser of its own
that refuses what is malformed. One pass, which never goes back.

*RFCs*: 5322 section 3.4 (addresses, groups, comments), 2047 (encoded words), 6532 (UTF-8).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from gateway.sdk.domains import read_domain
from gateway.sdk.words import decode_words

FIELD_CHARACTERS: Final = 16_384
"""Characters of a field that are looked at."""
MAILBOXES: Final = 100
"""Mailboxes that are read, of all fields."""
_FIELDS: Final = 4
_SHOWN: Final = 80

_PIECE: Final = re.compile(
    r'"(?P<quoted>(?:[^"\\]|\\.)*)"?|<(?P<angle>[^<>]*)>?|(?P<end>[,;])|(?P<text>[^"<,;()\\]+|.)', re.DOTALL
)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Mailbox:
    """One mailbox. `name` is decoded, and empty where only an address stands; `domain` in lower-case A-labels.

    `address` is as it was written, and empty where a name has none; `domain` is empty where none can be read.
    """

    name: str
    address: str = ""
    domain: str = ""

    @property
    def key(self) -> str:
        """The address for comparing with those of options: lower case and A-labels; empty without a domain."""
        return f"{self.address.rpartition('@')[0].strip().lower()}@{self.domain}" if self.domain else ""

    def __str__(self) -> str:
        """As the reason of a verdict shows it: cut, and with nothing in it that a terminal obeys."""
        return f"{self.name[:_SHOWN]!r} <{ascii(self.address[:_SHOWN])[1:-1]}>"


def read_mailboxes(fields: Iterable[str]) -> tuple[Mailbox, ...]:
    """All mailboxes of these fields (`Message.all` gives their unfolded values), in order."""
    found: list[Mailbox] = []
    for value in list(fields)[:_FIELDS]:
        found += _read(value[:FIELD_CHARACTERS])
    return tuple(found[:MAILBOXES])


def _read(value: str) -> list[Mailbox]:
    found: list[Mailbox] = []
    here = _Reading()
    at = 0
    while at < len(value) and len(found) < MAILBOXES:
        if value[at] == "(":
            comment, at = _comment(value, at)
            here.comments.append(comment)
            here.text.append(" ")
            continue
        piece = _PIECE.match(value, at)
        if piece is None:
            at += 1
            continue
        at = piece.end()
        if piece["end"]:
            found += here.mailboxes()
            here = _Reading()
        elif piece["angle"] is not None:
            here.angles.append(piece["angle"].strip())
        else:
            quoted = piece["quoted"]
            here.text.append(piece["text"] if quoted is None else _ESCAPED.sub(r"\1", quoted))
    return [*found, *here.mailboxes()]


def _comment(value: str, at: int) -> tuple[str, int]:
    """What stands in the comment that begins at `at`, and where it ends; comments nest."""
    start, depth = at + 1, 0
    while at < len(value):
        if value[at] == "(":
            depth += 1
        elif value[at] == ")":
            depth -= 1
            if not depth:
                return value[start:at], at + 1
        at += 2 if value[at] == "\\" else 1
    return value[start:], len(value)


class _Reading:
    """What was read of one mailbox."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.comments: list[str] = []
        self.angles: list[str] = []

    def mailboxes(self) -> list[Mailbox]:
        """One; or several, where readers disagree about which of them is the address."""
        text = decode_words("".join(self.text))
        comments = decode_words(" ".join(self.comments))
        if self.angles:
            name = _plain(text) or _plain(comments)
            return [_mailbox(name, address) for address in self.angles if name or address]
        addresses = [word.strip(":<>") for word in text.split() if "@" in word.strip("@")]
        if not addresses:
            name = _plain(f"{text} {comments}")
            return [Mailbox(name)] if name else []
        others = " ".join(word for word in text.split() if "@" not in word)
        # Worked out once: a name may be as long as there are many addresses.
        name = _plain(f"{others} {comments}")
        return [_mailbox(name, address) for address in addresses]


def _plain(text: str) -> str:
    """One space where there is white space, and quotation marks that a name is wrapped in once more taken off."""
    return " ".join(text.split()).strip("'\" ")


def _mailbox(name: str, address: str) -> Mailbox:
    # A source route stands in front of the address (RFC 5322 section 4.4).
    bare = address.rpartition(":")[2].strip() if address.startswith("@") else address
    local, _, domain = bare.rpartition("@")
    # Obsolete syntax allows white space around dots.
    return Mailbox(name, bare, read_domain("".join(domain.split())) if local else "")
