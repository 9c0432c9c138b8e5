"""Where a domain's policy stands, and which domains belong to one organisation: by tree walk, or by public suffixes.

All names that a message's domains may need are known before the first answer, so they are asked for at once: a message
waits for one round trip and not for eight. What the answers mean is then plain computation.

*RFCs*: 9989 section 4.10 (tree walk), 4.10.1 (policy), 4.10.2 (organisational domain); 7489 sections 3.2 and 6.6.3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Protocol

from publicsuffixlist import PublicSuffixList

from gateway.sdk import Dns, DnsStatus, Finding
from plugins.dmarc.options import Rules
from plugins.dmarc.record import Record, is_record, parse_record

QUERIES: Final = 8
"""Names of one tree walk (RFC 9989 section 4.10)."""

_NAME_OCTETS: Final = 253


@dataclass(frozen=True, slots=True)
class Place:
    """What `_dmarc` below one domain holds. `several` records count as none; `failed` is the DNS's trouble."""

    record: Record | None = None
    several: bool = False
    failed: str = ""


_NOTHING: Final[Mapping[str, Place]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Found:
    """The policy record that applies to a domain and where it was found; or none; or why that cannot be told now."""

    record: Record | None = None
    domain: str = ""
    failed: str = ""
    several: bool = False


@dataclass(frozen=True, slots=True)
class DmarcRecords(Finding):
    """What stands at the names that a message's author and sender domains lead to, before anything is proved.

    It is asked for while keys of signatures are: so DMARC costs no round trip of its own.
    """

    places: Mapping[str, Place]

    def to_json(self) -> dict[str, Any]:
        return {"domains": [domain for domain, place in self.places.items() if place.record]}

    def idle(self) -> bool:
        return not self.places


class Organizations(Protocol):
    """One of the two rules, with all answers there."""

    def policy(self, domain: str) -> Found:
        """The policy record for an author domain."""

    def organizational(self, domain: str) -> tuple[str, str]:
        """The organisational domain; or "" and the DNS's trouble, when it cannot be told now."""


def walk_names(domain: str) -> list[str]:
    """The domains of a tree walk: the start, then its parents, from the seventh-highest label on."""
    labels = domain.split(".")
    kept = min(len(labels) - 1, QUERIES - 1)
    return [domain, *(".".join(labels[-n:]) for n in range(kept, 0, -1))]


async def look_up(dns: Dns, domains: Iterable[str], rules: Rules) -> dict[str, Place]:
    """Ask for the records of all these domains at once, each once."""
    names = list(dict.fromkeys(domains))
    places = await asyncio.gather(*(_place(dns, name, rules) for name in names))
    return dict(zip(names, places, strict=True))


async def _place(dns: Dns, domain: str, rules: Rules) -> Place:
    name = f"_dmarc.{domain}"
    if len(name) > _NAME_OCTETS:
        return Place()
    answer = await dns.lookup(name, "TXT")
    if answer.status is DnsStatus.FAILED:
        return Place(failed=f"DNS, {name}: {answer.problem or 'no answer'}")
    records = [text for text in answer.records if isinstance(text, bytes) and is_record(text)]
    if len(records) == 1:
        return Place(parse_record(records[0], rules))
    return Place(several=bool(records))


class TreeWalk:
    """RFC 9989, over what stands at the names of all walks."""

    def __init__(self, places: dict[str, Place]) -> None:
        self._places = places

    @classmethod
    async def ask(cls, dns: Dns, domains: Iterable[str], known: Mapping[str, Place] = _NOTHING) -> TreeWalk:
        """With the answers for walks from all these domains; what is `known` is not asked for again."""
        names = [name for domain in domains for name in walk_names(domain)]
        return cls({**known, **await look_up(dns, (n for n in names if n not in known), Rules.RFC9989)})

    def policy(self, domain: str) -> Found:
        here = self._places[domain]
        if here.failed:
            return Found(failed=here.failed)
        if here.record:
            return Found(here.record, domain)
        top, failed = self.organizational(domain)
        if failed:
            return Found(failed=failed)
        for name in (top, top.partition(".")[2]):
            place = self._places.get(name)
            # Above the organisational domain only a public suffix has a say.
            if place and place.record and (name == top or place.record.psd == "y"):
                return Found(place.record, name)
        return Found(several=here.several)

    def organizational(self, domain: str) -> tuple[str, str]:
        lowest = domain
        for name in walk_names(domain):
            place = self._places[name]
            if place.failed:
                return "", place.failed
            if place.record is None:
                continue
            if place.record.psd == "n":
                return name, ""
            if place.record.psd == "y" and name != domain:
                labels = domain.split(".")
                return ".".join(labels[-(name.count(".") + 2) :]), ""
            lowest = name
            if place.record.psd == "y":
                break
        return lowest, ""


class SuffixList:
    """RFC 7489, with the public suffix list that ships with the publicsuffixlist package."""

    def __init__(self, places: dict[str, Place]) -> None:
        self._places = places

    @classmethod
    async def ask(cls, dns: Dns, authors: Iterable[str], known: Mapping[str, Place] = _NOTHING) -> SuffixList:
        """With the answers for these author domains and their organisational domains, unless they are `known`."""
        names = [name for author in authors for name in (author, registered(author))]
        return cls({**known, **await look_up(dns, (n for n in names if n not in known), Rules.RFC7489)})

    def policy(self, domain: str) -> Found:
        for name in dict.fromkeys((domain, registered(domain))):
            place = self._places[name]
            if place.failed:
                return Found(failed=place.failed)
            if place.record:
                return Found(place.record, name)
            if place.several:
                # Section 6.6.3, step 5: discovery ends here.
                return Found(several=True)
        return Found()

    def organizational(self, domain: str) -> tuple[str, str]:
        return registered(domain), ""


@lru_cache(maxsize=1)
def suffixes() -> PublicSuffixList:
    """The list; reading it takes a tenth of a second, so it is done once and at start."""
    return PublicSuffixList()


@lru_cache(maxsize=4096)
def registered(domain: str) -> str:
    """The organisational domain by the public suffix list (RFC 7489 section 3.2); a public suffix is its own."""
    return str(suffixes().privatesuffix(domain) or domain)
