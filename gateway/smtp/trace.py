"""Trace fields: what Gatepost puts on top of a message, and what it takes away.

*RFCs*: 5321 section 4.4 (Received), 3848 and 6531 section 4.3 (the ``with`` keywords), 8601 (Authentication-Results).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from email.utils import formatdate
from typing import Final

from gateway.mail.edit import Edit, apply_edits
from gateway.mail.envelope import Recipient
from gateway.mail.message import HeaderField, split_header
from gateway.mail.session import ClientCertificate, IPAddress, Session

OWN_HOPS: Final = 8
"""So many Received fields of our own make a loop, long before the hop limit does."""

_RECEIVED: Final = re.compile(rb"^received[ \t]*:", re.IGNORECASE | re.MULTILINE)
_RESULTS: Final = b"authentication-results"
_UNSAFE: Final = re.compile(r"[^\x21-\x27\x2a-\x5b\x5d-\x7e]")
# As above; but spaces stand in a comment, and double quotes are around it.
_UNSAFE_QUOTED: Final = re.compile(r"[^\x20\x21\x23-\x27\x2a-\x5b\x5d-\x7e]")
_NO_FIELD: Final = re.compile(rb"\A[ \t]|(?ms:^(?!\r\n|[ \t]|[\x21-\x39\x3b-\x7e]{1,997}[ \t]*:).)")
"""What ends a header section in its midst, as `gateway.mail.message.split_header` has it."""
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')
_WORD: Final = re.compile(r"[^\s;(\"]+")
_date: tuple[int, str] = (-1, "")


def header_end(head: bytes) -> int:
    """Offset of the empty line that ends the header section, or -1. A message may begin with it."""
    if head.startswith(b"\r\n"):
        return 0
    end = head.find(b"\r\n\r\n")
    return end + 2 if end >= 0 else -1


def literal(address: IPAddress) -> str:
    """An address literal (RFC 5321 section 4.1.3)."""
    return f"[IPv6:{address}]" if address.version == 6 else f"[{address}]"


def protocol(session: Session, *, smtputf8: bool) -> str:
    """The ``with`` keyword: SMTP, ESMTP, ESMTPS, UTF8SMTP or UTF8SMTPS."""
    if not session.esmtp:
        return "SMTP"
    return ("UTF8SMTP" if smtputf8 else "ESMTP") + ("S" if session.tls else "")


def received(
    session: Session, hostname: str, id: str, recipients: tuple[Recipient, ...], now: float, *, smtputf8: bool
) -> bytes:
    """Our Received field. It names the recipient only when there is a single one: others are nobody's business."""
    helo = _UNSAFE.sub("?", session.helo) or "unknown"
    name = f"{_UNSAFE.sub('?', session.name)} " if session.name else ""
    tls = f"\r\n\t(using {session.tls.version} with cipher {session.tls.cipher})" if session.tls else ""
    tls += _shown(session.tls.client) if session.tls and session.tls.client else ""
    to = (
        f"\r\n\tfor <{recipients[0].address}>" if len(recipients) == 1 and len(str(recipients[0].address)) < 200 else ""
    )
    return (
        f"Received: from {helo} ({name}{literal(session.client)}){tls}\r\n"
        f"\tby {hostname} (Gatepost) with {protocol(session, smtputf8=smtputf8)} id {id}{to};\r\n\t{date(now)}\r\n"
    ).encode()


def _shown(client: ClientCertificate) -> str:
    """What the client showed, in Postfix's words."""
    if not client.verified:
        return "\r\n\t(Client certificate not verified)"
    subject, issuer = (_UNSAFE_QUOTED.sub("?", name) for name in (client.subject, client.issuer))
    return f'\r\n\t(Client CN "{subject}", Issuer "{issuer}" (verified OK))'


def date(now: float) -> str:
    """An RFC 5322 date in UTC. The last one is kept: many messages share a second."""
    global _date
    second = int(now)
    if _date[0] != second:
        _date = (second, formatdate(second, localtime=False).replace("-0000", "+0000"))
    return _date[1]


def loops(section: bytes, hostname: str, limit: int) -> bool:
    """Whether the header section has more than `limit` Received fields, or too many of ours (RFC 5321 section 6.3)."""
    count = hops(section)
    return count > limit or (count > OWN_HOPS and own_hops(split_header(section)[0], hostname) > OWN_HOPS)


def hops(head: bytes) -> int:
    """How many Received fields the header section has."""
    return len(_RECEIVED.findall(head))


def own_hops(fields: Iterable[HeaderField], hostname: str) -> int:
    """How many Received fields say that we wrote them."""
    mark = f" by {hostname} (gatepost)".lower()
    return sum(1 for f in fields if f.name.lower() == "received" and mark in _flat(f.value))


def _flat(value: str) -> str:
    return " ".join(value.lower().split())


def rewrite(section: bytes, authserv_id: str, edits: tuple[Edit, ...]) -> tuple[bytes, int]:
    """The header section without forged results and with `edits`: its new octets, and how many old ones they replace.

    Nothing to do gives ``(b"", 0)``. Raises ValueError for an edit that cannot be made.
    """
    suspect = _RESULTS in section.lower()
    broken_off = _NO_FIELD.search(section) is not None
    if not edits and not suspect and not broken_off:
        return b"", 0
    fields, end = split_header(section)
    if suspect:
        fields = [f for f in fields if not is_own_results(f, authserv_id)]
    head = b"".join(f.raw for f in apply_edits(fields, edits))
    # A line that is no field, or a fold of none, ends the header for all that judged it. Some readers skip it and read
    # on: they would see an author whom nobody has looked at. An empty line has them see what was judged.
    return head + b"\r\n" if broken_off else head, end


def is_own_results(field: HeaderField, authserv_id: str) -> bool:
    """Whether this is an Authentication-Results field that claims to be ours (RFC 8601 section 5).

    Comments, quotes and a version after the id are looked through: a forger uses what a reader forgives.
    """
    if field.name.lower() != "authentication-results":
        return False
    return _first_word(field.value).rstrip(".").lower() == authserv_id.rstrip(".").lower()


def _first_word(value: str) -> str:
    """The first token or quoted string after white space and comments (RFC 5322 section 3.2), unquoted."""
    depth, at = 0, 0
    while at < len(value) and (depth or value[at] in " \t("):
        if value[at] == "(":
            depth += 1
        elif value[at] == ")":
            depth -= 1
        elif value[at] == "\\":
            at += 1
        at += 1
    if match := _QUOTED.match(value, at):
        return re.sub(r"\\(.)", r"\1", match[1]).strip()
    match = _WORD.match(value, at)
    return match[0] if match else ""
