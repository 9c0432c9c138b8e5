"""What a browser makes of the host part of a URL: names in A-labels, and addresses in all their disguises.

As the URL standard of the WHATWG has it (host parsing and IPv4 parsing), since that is what clicks go through: numbers
in octal and hexadecimal, addresses of one to four parts, percent-encoding, full-width letters and dots.

*RFCs*: 3986 section 3.2 (authority), 5890 (A-labels), 1035 section 2.3.4 (lengths).
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from functools import cache
from typing import Final
from urllib.parse import unquote

import idna
from publicsuffixlist import PublicSuffixList

_LONGEST: Final = 2000
_AUTHORITY_END: Final = re.compile(r"[/\\?#]")
_PORT: Final = re.compile(r":[0-9]*\Z")
_REMOVED: Final = re.compile(r"[\t\r\n\u00ad\u200b-\u200f\u2060\ufeff]")
_DOTS: Final = re.compile("[\u3002\uff0e\uff61]")
# Of a URL in a running text, what follows the host may be punctuation. Matches nothing at least.
_BEGINNING: Final = re.compile("[\\w.\u3002\uff0e\uff61-]*")
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_NUMBER: Final = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)\Z")


def host_of(authority: str) -> str:
    """The host of a URL's authority (with what follows it): a domain name in A-labels, or an address as text.

    Empty for what is no host, and for a name of one label.
    """
    text = _REMOVED.sub("", authority[:_LONGEST])
    text = _AUTHORITY_END.split(text, maxsplit=1)[0]
    # What stands before the last at sign is a user's name, however much it looks like a host.
    text = text.rpartition("@")[2]
    if text.startswith("["):
        return _six(text[1:].partition("]")[0])
    text = unquote(text)
    return host_name(_PORT.sub("", text)) or host_name(_BEGINNING.match(text)[0])  # type: ignore[index]


def _six(text: str) -> str:
    try:
        address = ipaddress.IPv6Address(text.partition("%")[0])
    except ValueError:
        return ""
    return str(address.ipv4_mapped or address)


def host_name(text: str) -> str:
    """A domain name in A-labels and lower case, or an IPv4 address; empty for anything else."""
    text = _DOTS.sub(".", unicodedata.normalize("NFKC", text)).lower().rstrip(".")
    if not text.isascii():
        try:
            text = idna.encode(text, uts46=True).decode("ascii").lower()
        except (idna.IDNAError, UnicodeError):
            return ""
    labels = text.split(".")
    if _NUMBER.match(labels[-1]):
        return _four(labels)
    if len(labels) < 2 or len(text) > 253 or not all(_LABEL.match(label) for label in labels):
        return ""
    return text


def _four(labels: list[str]) -> str:
    """An IPv4 address of one to four numbers; the last one fills what is left."""
    if len(labels) > 4 or any(not _NUMBER.match(label) or len(label) > 20 for label in labels):
        return ""
    try:
        numbers = [_number(label) for label in labels]
    except ValueError:
        return ""
    room = 256 ** (5 - len(numbers))
    if any(number > 255 for number in numbers[:-1]) or numbers[-1] >= room:
        return ""
    value = numbers[-1]
    for place, number in enumerate(numbers[:-1]):
        value += number * 256 ** (3 - place)
    return str(ipaddress.IPv4Address(value))


def _number(text: str) -> int:
    if text.startswith("0x"):
        return int(text[2:] or "0", 16)
    return int(text, 8) if len(text) > 1 and text.startswith("0") else int(text)


@cache
def _suffixes(accept_unknown: bool) -> PublicSuffixList:
    return PublicSuffixList(accept_unknown=accept_unknown)


def registered(host: str) -> str:
    """The registered domain of a name: its public suffix and one label more; the name itself where it is a suffix.

    Providers that let strangers have names of their own count as public suffixes. A suffix that is not known is the
    last label.
    """
    return _suffixes(True).privatesuffix(host) or host


def has_known_suffix(host: str) -> bool:
    """Whether a name is below a public suffix that is known: a word that ends otherwise is no domain name."""
    return _suffixes(False).privatesuffix(host) is not None


def is_address(host: str) -> bool:
    """Whether it is an address and no name."""
    return ":" in host or host.replace(".", "").isdigit()
