"""Who sends, as far as retries are recognised by it: a pool, a proved domain or a network; and which sender it is.

A client that has proved a domain is that domain, whichever of its addresses it comes from next time. Senders are
compared by the part that stays the same from message to message, so that a list whose every message has a return
path of its own does not begin anew each time.

*RFCs*: 7208 (SPF), 6376 (DKIM), 6647 section 5 (what to count by).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from gateway.sdk import (
    Address,
    AuthResult,
    Dkim,
    Dnsbl,
    Ending,
    HeloName,
    ReverseName,
    Sender,
    Session,
    Spf,
    SpfResult,
    Transaction,
)
from plugins.greylist.options import GreylistOptions

_LONG_WORD: Final = 24
_WORDS: Final = re.compile(r"[\W_]+")
_HEXADECIMAL: Final = re.compile(r"[a-f]+\Z")
# Bounce address tag validation (prvs=TAG=LOCAL, btv1==TAG==LOCAL) and the sender rewriting scheme of forwarders.
_PRVS: Final = re.compile(r"prvs=([^=]*)=(.+)\Z")
_PRVS_TAG: Final = re.compile(r"[0-9]{4}[0-9a-f]{6}\Z")
_BTV: Final = re.compile(r"btv1==[^=]*==(.+)\Z")
_SRS0: Final = re.compile(r"srs0[=+-][^=]*=[^=]*=([^=]+=.+)\Z")
_SRS1: Final = re.compile(r"srs1[=+-][^=]*=[^=]*=[=+-][^=]*=[^=]*=([^=]+=.+)\Z")
_DISPROVED: Final = frozenset({SpfResult.FAIL, SpfResult.SOFTFAIL})


@dataclass(frozen=True, slots=True)
class Identity:
    """What counts as one client."""

    kind: Literal["pool", "domain", "network"]
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What other entries found out; None where none of them gives it or its owner proceeds without it."""

    dnsbl: Dnsbl | None = None
    reverse: ReverseName | None = None
    helo: HeloName | None = None
    spf: Spf | None = None
    dkim: Dkim | None = None

    @classmethod
    def of(cls, ending: Ending, *, dkim: bool) -> Evidence:
        """What proves the client's identity, from what is known at the end."""
        return cls(
            reverse=ending.finding(ReverseName),
            spf=ending.finding(Spf),
            dkim=ending.finding(Dkim) if dkim else None,
        )


def identify(options: GreylistOptions, transaction: Transaction, evidence: Evidence) -> Identity:
    """Who sends: the pool that the client's confirmed name lies in, else the proved domain, else the network."""
    if pool := _pool(options.pools, evidence):
        return Identity("pool", pool)
    if domain := proved_domain(transaction.sender, evidence):
        return Identity("domain", domain)
    return Identity("network", _network(options, transaction.session))


def _pool(pools: Mapping[str, tuple[str, ...]], evidence: Evidence) -> str:
    spf, reverse = evidence.spf, evidence.reverse
    names: list[str] = []
    if reverse is not None and reverse.result is AuthResult.PASS:
        names.append(reverse.name.lower())
    if spf is not None and spf.helo is SpfResult.PASS:
        names.append(spf.helo_domain.lower())
    if spf is not None and spf.result is SpfResult.PASS:
        names.append(spf.domain.lower())
    for pool, domains in pools.items():
        if any(_within(name, domain) for name in names for domain in domains):
            return pool
    return ""


def proved_domain(sender: Sender, evidence: Evidence) -> str:
    """The domain that SPF, or else DKIM, proved; empty when neither did.

    A signature counts when it is of the sender's domain or one above or below it, and SPF does not say that the client
    may not send for that: signed messages can be sent again by anybody.
    """
    spf = evidence.spf
    if spf is not None and spf.result is SpfResult.PASS and spf.domain:
        return spf.domain.lower()
    if evidence.dkim is None or not isinstance(sender, Address) or (spf is not None and spf.result in _DISPROVED):
        return ""
    domain = sender.ascii_domain
    return next((signer for signer in evidence.dkim.passed if _related(signer, domain)), "")


def _related(one: str, other: str) -> bool:
    shorter = min(one, other, key=len)
    return "." in shorter and (_within(one, other) or _within(other, one))


def _within(name: str, domain: str) -> bool:
    return name == domain or name.endswith("." + domain)


def _network(options: GreylistOptions, session: Session) -> str:
    client = session.client
    if isinstance(client, ipaddress.IPv6Address) and client.ipv4_mapped:
        client = client.ipv4_mapped
    prefix = options.ipv4_prefix if client.version == 4 else options.ipv6_prefix
    return str(ipaddress.ip_network((client, prefix), strict=False))


def suspicions(options: GreylistOptions, sender: Sender, evidence: Evidence) -> tuple[str, ...]:
    """What speaks against the client, in a word or two each. Where nothing at all was looked at, that does."""
    dnsbl, reverse, helo, spf = evidence.dnsbl, evidence.reverse, evidence.helo, evidence.spf
    if dnsbl is None and reverse is None and helo is None and spf is None:
        return ("nothing is known",)
    found: list[str] = []
    if dnsbl is not None and options.suspicious_score is not None and dnsbl.score >= options.suspicious_score:
        found.append(f"dnsbl {dnsbl.score:g}")
    # With the sender's domain proved by DKIM it says nothing any more that SPF did not prove it.
    if spf is not None and spf.result in options.suspicious_spf and not proved_domain(sender, evidence):
        found.append(f"spf {spf.result}")
    if reverse is not None and reverse.result in options.suspicious_reverse:
        found.append(f"reverse name {reverse.result}")
    if helo is not None and options.suspicious_helo and helo.problems:
        found.append(f"helo {helo.problems[0]}")
    return tuple(found)


def stable_sender(sender: Sender) -> str:
    """The sender without what changes from message to message: tags, numbers, extensions.

    Words with digits, very long ones, and hexadecimal ones beside them become ``#``. What separates words does not
    count. Telling too few senders apart only makes greylisting milder.
    """
    if not isinstance(sender, Address):
        return ""
    local = _unwrap(sender.local.lower())
    local = local.partition("+")[0] or local
    words = [word for word in _WORDS.split(local) if word]
    changing = [len(word) >= _LONG_WORD or any(c.isdigit() for c in word) for word in words]
    for at, word in enumerate(words):
        if not changing[at] and _HEXADECIMAL.match(word):
            changing[at] = any(changing[max(0, at - 1) : at + 2])
    kept: list[str] = []
    for word, changes in zip(words, changing, strict=True):
        if not changes:
            kept.append(word)
        elif kept[-1:] != ["#"]:
            kept.append("#")
    return f"{'.'.join(kept) or local}@{sender.ascii_domain}"


def _unwrap(local: str) -> str:
    if match := _PRVS.match(local):
        first, second = match[1], match[2]
        # Some write tag and local part the other way round.
        return first if _PRVS_TAG.match(second) and first and not _PRVS_TAG.match(first) else second
    for pattern in (_BTV, _SRS0, _SRS1):
        if match := pattern.match(local):
            return match[1]
    return local
