"""XCLIENT: a trusted peer says who the client really is. Text in, the changed session out.

*Source*: Postfix XCLIENT_README. Not an RFC.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace
from typing import Final

from gateway.mail.reply import Reply
from gateway.mail.session import IPAddress, Session, new_session_id, plain_address
from gateway.smtp.command import CommandError, parse_helo

OFFER: Final = "XCLIENT NAME ADDR PORT PROTO HELO LOGIN REVERSE_NAME DESTADDR DESTPORT"
"""What EHLO says. Attributes that nothing here uses are offered and ignored, since clients send what they know."""

_ATTRIBUTES: Final = frozenset(OFFER.split()[1:])
_UNAVAILABLE: Final = ("[UNAVAILABLE]", "[TEMPUNAVAIL]")
_PORT: Final = re.compile(r"[0-9]{1,5}\Z")
_MAX_OCTETS: Final = 255

MALFORMED: Final = Reply(501, "5.4", "XCLIENT attribute is malformed")


def parse(argument: str) -> dict[str, str]:
    """Attributes by upper-case name, xtext decoded; empty for those that are not available. Raises `CommandError`."""
    out: dict[str, str] = {}
    for word in argument.split(" "):
        name, equals, value = word.partition("=")
        name = name.upper()
        if not word:
            continue
        if name not in _ATTRIBUTES or not equals or name in out or len(value) > _MAX_OCTETS:
            raise CommandError(MALFORMED)
        text = re.sub(r"\+([0-9A-Fa-f]{2})", lambda m: chr(int(m[1], 16)), value)
        if not text.isprintable():
            raise CommandError(MALFORMED)
        out[name] = "" if text.upper() in _UNAVAILABLE else text
    if not out:
        raise CommandError(Reply(501, "5.4", "XCLIENT needs attributes"))
    return out


def apply(session: Session, given: dict[str, str], peer: IPAddress) -> Session:
    """A new session for the client that the attributes describe; nothing that was said before of another counts in it.

    `peer` says them, and stands for a client whose address it does not know. Raises `CommandError`. `trusted` is False;
    whoever knows the networks sets it.
    """
    session = replace(session, id=new_session_id(), helo="", esmtp=False, trusted=False)
    if "ADDR" in given:
        session = replace(session, client=peer, client_port=0, name="")
    if address := given.get("ADDR", ""):
        text = address[5:] if address[:5].upper() == "IPV6:" else address
        try:
            client = ipaddress.ip_address(text)
        except ValueError as error:
            raise CommandError(MALFORMED) from error
        if "%" in text:
            raise CommandError(MALFORMED)
        session = replace(session, client=plain_address(client))
    if port := given.get("PORT", ""):
        if not _PORT.match(port) or int(port) > 0xFFFF:
            raise CommandError(MALFORMED)
        session = replace(session, client_port=int(port))
    if "NAME" in given:
        session = replace(session, name=given["NAME"])
    if given.get("HELO"):
        session = replace(session, helo=parse_helo(given["HELO"]), esmtp=given.get("PROTO", "").upper() != "SMTP")
    return session
