"""The hosts that a message's texts lead to: in links, behind redirectors, and as words that readers make links of.

All in linear time, and at most so many of each. What readers do with a malformed URL differs; where they may follow it,
its host is here.

*RFCs*: 3986 (URIs).
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from gateway.sdk import MimeText
from plugins.content.hosts import has_known_suffix, host_name, host_of, is_address, registered

_MOST: Final = 5000
"""Hosts that are looked at, of each text."""
_DEEPEST: Final = 4
_OF_ONE_DOMAIN: Final = 3

_SCHEME: Final = re.compile(
    r"(?i)\b(?:https?|ftps?|hxxps?)(?::|%3a|&colon;)(?:/|\\|%2f|&sol;){1,5}([^\s\"'<>`{}|^]{1,2000})"
)
_MARKUP_ATTRIBUTE: Final = re.compile(
    r"(?i)[\s\"'/](?:href|src|action|formaction|background|data|poster|cite|srcset|longdesc)[\s\0]{0,20}=[\s\0]{0,20}"
    r"(?:\"([^\"]{1,4000})|'([^']{1,4000})|([^\s\"'>]{1,4000}))"
)
_LINK: Final = re.compile(r"(?i)(?:(?:https?|ftps?):)?[/\\]{0,5}(.*)", re.DOTALL)
_SLASHES: Final = re.compile(r"(?i)(?:https?|ftps?):|[/\\]{2}")
_TAG: Final = re.compile(r"<[^<>]{0,4000}>")
_BARE: Final = re.compile(
    r"(?<![\w@.%=&/\\-])((?:[^\W_](?:[\w-]{0,62})[.\u3002\uff0e\uff61]){1,10}[^\W\d_]{2,63})(?![\w@-]|\.\w)"
)
_WHITE: Final = " \t\r\n\f\0"


@dataclass(frozen=True, slots=True)
class Hosts:
    """Hosts of a message, each once: those of links first, then those that only stand there."""

    links: tuple[str, ...]
    words: tuple[str, ...]


def find_hosts(texts: Iterable[MimeText], *, bare: bool = True) -> Hosts:
    """All hosts of these texts. `bare` says whether words that look like a domain name count."""
    links: dict[str, None] = {}
    words: dict[str, None] = {}
    for text in texts:
        if text.type not in ("text/plain", "text/html"):
            continue
        is_html = text.type == "text/html"
        links.update(dict.fromkeys(_links(text.text, is_html=is_html)))
        if bare:
            words.update(dict.fromkeys(_words(text.text, is_html=is_html)))
    return Hosts(tuple(links), tuple(word for word in words if word not in links))


def _links(text: str, *, is_html: bool) -> Iterator[str]:
    if is_html:
        for match in _take(_MARKUP_ATTRIBUTE.finditer(text)):
            yield from _link(html.unescape(match[1] or match[2] or match[3]))
        text = html.unescape(text)
    for match in _take(_SCHEME.finditer(text)):
        yield from _hosts(match[1])


def _take(matches: Iterable[re.Match[str]]) -> Iterator[re.Match[str]]:
    for number, match in enumerate(matches):
        if number >= _MOST:
            return
        yield match


def _link(value: str) -> Iterator[str]:
    """The hosts of an attribute that holds a URL, as browsers read it."""
    value = value.strip(_WHITE).replace("\t", "").replace("\r", "").replace("\n", "")
    if _SLASHES.match(value) and (match := _LINK.match(value)):
        yield from _hosts(match[1])


def _hosts(rest: str) -> Iterator[str]:
    """The host of a URL without its scheme, and those of URLs that are parameters of it."""
    for _ in range(_DEEPEST):
        if host := host_of(rest):
            yield host
        inner = _SCHEME.search(rest)
        if not inner:
            return
        rest = inner[1]


def _words(text: str, *, is_html: bool) -> Iterator[str]:
    if is_html:
        text = html.unescape(_TAG.sub("", text))
    for match in _take(_BARE.finditer(text)):
        host = host_name(match[1])
        if host and not is_address(host) and has_known_suffix(host):
            yield host


def choose(hosts: Iterable[str], most: int) -> tuple[str, ...]:
    """At most so many of them, the same ones for the same message.

    Not the first ones: then whoever wrote it would choose, and could hide one behind many others. For the same reason
    there are few of each registered domain.
    """
    found = list(dict.fromkeys(hosts))
    if len(found) <= most:
        return tuple(found)
    chosen: list[str] = []
    count: dict[str, int] = {}
    for host in sorted(found, key=lambda host: hashlib.sha256(host.encode()).digest()):
        domain = host if is_address(host) else registered(host)
        count[domain] = count.get(domain, 0) + 1
        if count[domain] <= _OF_ONE_DOMAIN and len(chosen) < most:
            chosen.append(host)
    kept = set(chosen)
    return tuple(host for host in found if host in kept)
