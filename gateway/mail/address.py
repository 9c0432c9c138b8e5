"""Mail addresses and the path grammar of MAIL and RCPT.

Strict on purpose: what the grammar of RFC 5321 does not allow is a syntax error and never reaches a policy.
The one leniency is the one the standard asks for: a source route is read and dropped.

*RFCs*: 5321 section 4.1.2 (paths), 4.5.3.1 (sizes), 6531 section 3.3 (UTF-8 in addresses), 5890 (A-labels).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final

LOCAL_PART_OCTETS: Final = 64
DOMAIN_OCTETS: Final = 255
PATH_OCTETS: Final = 256

_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-]"
# UTF-8 beyond ASCII, without C1 controls (a terminal obeys them) and without halves of surrogate pairs.
_UTF8 = r"\u00a0-\ud7ff\ue000-\U0010ffff"
_UTEXT = rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~\-{_UTF8}]"
_DOT_STRING = re.compile(rf"{_ATEXT}+(?:\.{_ATEXT}+)*\Z")
_UDOT_STRING = re.compile(rf"{_UTEXT}+(?:\.{_UTEXT}+)*\Z")
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_\-]*[A-Za-z0-9])?\Z|_[A-Za-z0-9_\-]*[A-Za-z0-9]\Z")
# What most addresses are; whatever else the grammar allows is read character by character.
_USUAL = re.compile(
    rf"(?P<local>{_ATEXT}+(?:\.{_ATEXT}+)*)"
    r"@(?P<domain>[A-Za-z0-9](?:[A-Za-z0-9_\-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9_\-]{0,61}[A-Za-z0-9])?)*)\Z"
)
_REWRITTEN = re.compile(r"SRS[01][-+=]", re.IGNORECASE)
_QTEXT = re.compile(rf"[\x20\x21\x23-\x5b\x5d-\x7e{_UTF8}]\Z")


class AddressError(ValueError):
    """The text is no address or path by the grammar. ``str(error)`` says why, without repeating the input."""


class NullSender(Enum):
    """The reverse-path ``<>``: a value of its own, so that no rule for addresses can match it by accident."""

    NULL_SENDER = "<>"

    def __str__(self) -> str:
        return ""


NULL_SENDER: Final = NullSender.NULL_SENDER


@lru_cache(maxsize=4096)
def ascii_domain(domain: str) -> str:
    """The domain in lower-case A-label form, which is the only form to compare domains in.

    Raises `AddressError` when a label has no A-label form. Address literals come back in lower case.
    """
    if domain.startswith("["):
        return domain.lower()
    if domain.isascii():
        return domain.lower()
    import idna

    try:
        return idna.encode(domain, uts46=True).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError) as error:
        raise AddressError("domain has no A-label form") from error


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox: `local` is the local part without quoting, `domain` as it was written.

    `domain` is empty only for the bare ``postmaster`` of RFC 5321 section 4.5.1.
    """

    local: str
    domain: str

    @property
    def key(self) -> str:
        """Form for look-ups: lower-case local part and the domain's A-labels.

        Local parts are case-sensitive by the letter of RFC 5321 section 2.4; no mail store in use keeps them
        apart, so lists and caches compare them without case.
        """
        return f"{self.local.lower()}@{self.ascii_domain}" if self.domain else self.local.lower()

    @property
    def ascii_domain(self) -> str:
        """The domain as lower-case A-labels (RFC 5890)."""
        return ascii_domain(self.domain)

    def has_local(self, names: Collection[str]) -> bool:
        """Whether the local part, in any case, is one of these, which are in lower case.

        Policies ask this rather than look at `local`: it can be answered of a redacted decision record too.
        """
        return self.local.lower() in names

    @property
    def needs_smtputf8(self) -> bool:
        """Whether only an SMTPUTF8 next hop can take it (RFC 6531): the local part is not ASCII."""
        return not self.local.isascii()

    def __str__(self) -> str:
        """The address as it stands between angle brackets, quoted where the grammar needs it."""
        local = self.local
        if not _UDOT_STRING.match(local):
            local = '"' + re.sub(r'(["\\])', r"\\\1", local) + '"'
        return f"{local}@{self.domain}" if self.domain else local


Sender = Address | NullSender


def _octets(text: str) -> int:
    """Length in UTF-8; text that has no UTF-8 form (it came from undecodable octets) is no address."""
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise AddressError("address is not UTF-8") from error


def parse_domain(text: str, *, utf8: bool = False) -> str:
    """Check a domain name or address literal and return it as it was; raises `AddressError`.

    With `utf8`, U-labels are allowed (RFC 6531 section 3.3).
    """
    if not text:
        raise AddressError("domain is empty")
    if _octets(text) > DOMAIN_OCTETS:
        raise AddressError("domain is too long")
    if text.startswith("["):
        return _parse_literal(text)
    if not text.isascii():
        if not utf8:
            raise AddressError("domain is not ASCII and SMTPUTF8 was not asked for")
        name = ascii_domain(text)
    else:
        name = text
    if len(name) > DOMAIN_OCTETS:
        raise AddressError("domain is too long")
    for label in name.split("."):
        if not label or len(label) > 63 or not _LABEL.match(label):
            raise AddressError("domain is malformed")
    return text


def _parse_literal(text: str) -> str:
    if not text.endswith("]"):
        raise AddressError("address literal is malformed")
    inner = text[1:-1]
    if "%" in inner:
        # Python takes a zone after the address, of any characters; RFC 5321 section 4.1.3 knows none.
        raise AddressError("address literal is malformed")
    try:
        if inner[:5].lower() == "ipv6:":
            ipaddress.IPv6Address(inner[5:])
        else:
            ipaddress.IPv4Address(inner)
    except ValueError as error:
        raise AddressError("address literal is malformed") from error
    return text


def _parse_local(text: str, *, utf8: bool) -> tuple[str, int]:
    """Read a local part at the start of `text`; give its unquoted form and where it ended."""
    if text.startswith('"'):
        out: list[str] = []
        i = 1
        while i < len(text):
            c = text[i]
            if c == '"':
                if not out:
                    raise AddressError("local part is empty")
                return "".join(out), i + 1
            if c == "\\":
                i += 1
                if i >= len(text) or not " " <= text[i] <= "~":
                    raise AddressError("local part is malformed")
                out.append(text[i])
            elif _QTEXT.match(c) and (utf8 or c.isascii()):
                out.append(c)
            else:
                raise AddressError("local part is malformed")
            i += 1
        raise AddressError("quoted local part does not end")
    end = text.find("@")
    end = len(text) if end < 0 else end
    local = text[:end]
    if not _DOT_STRING.match(local) and not (utf8 and _UDOT_STRING.match(local)):
        raise AddressError("local part is malformed")
    return local, end


@lru_cache(maxsize=8192)
def parse_mailbox(text: str, *, utf8: bool = False) -> Address:
    """Parse ``local@domain`` without brackets; raises `AddressError`."""
    usual = _USUAL.match(text) if len(text) <= LOCAL_PART_OCTETS else None
    if usual:
        return Address(usual["local"], usual["domain"])
    local, end = _parse_local(text, utf8=utf8)
    # Forwarders put a whole address into a local part (SRS) and care little for its length; the path's limit holds.
    if _octets(local) > LOCAL_PART_OCTETS and not _REWRITTEN.match(local):
        raise AddressError("local part is too long")
    if end >= len(text) or text[end] != "@":
        raise AddressError("address has no domain")
    return Address(local, parse_domain(text[end + 1 :], utf8=utf8))


def _strip_route(text: str) -> str:
    """Drop the source route ``@a,@b:`` (RFC 5321 section 4.1.2, appendix C)."""
    if not text.startswith("@"):
        return text
    route, colon, rest = text.partition(":")
    if not colon:
        raise AddressError("source route does not end")
    for hop in route.split(","):
        if not hop.startswith("@"):
            raise AddressError("source route is malformed")
        parse_domain(hop[1:], utf8=True)
    return rest


def split_path(text: str) -> tuple[str, str]:
    """Split what follows ``FROM:`` or ``TO:`` into the bracketed path's inside and the parameters after it.

    Honours quoted strings, so that a ``>`` inside quotes does not end the path. Raises `AddressError`.
    """
    if not text.startswith("<"):
        raise AddressError("path has no angle brackets")
    quoted = False
    i = 1
    while i < len(text):
        c = text[i]
        if quoted:
            if c == "\\":
                i += 1
            elif c == '"':
                quoted = False
        elif c == '"':
            quoted = True
        elif c == ">":
            rest = text[i + 1 :]
            if rest and not rest.startswith(" "):
                raise AddressError("text after the path")
            return text[1:i], rest.strip(" ")
        i += 1
    raise AddressError("path does not end")


def parse_reverse_path(inner: str, *, utf8: bool = False) -> Sender:
    """The sender from the inside of the brackets; ``""`` is `NULL_SENDER`. Raises `AddressError`."""
    if not inner:
        return NULL_SENDER
    if _octets(inner) > PATH_OCTETS - 2:
        raise AddressError("path is too long")
    return parse_mailbox(_strip_route(inner), utf8=utf8)


def parse_forward_path(inner: str, *, utf8: bool = False) -> Address:
    """The recipient from the inside of the brackets, bare ``postmaster`` included. Raises `AddressError`."""
    if _octets(inner) > PATH_OCTETS - 2:
        raise AddressError("path is too long")
    if inner.lower() == "postmaster":
        return Address(inner, "")
    return parse_mailbox(_strip_route(inner), utf8=utf8)
