"""The DMARC result of a message: its author domains against the identifiers that SPF and DKIM proved.

One round of questions finds the records of all domains, most of them while signatures are still being checked; one more
asks whether an author domain exists, where `np` makes that matter. A message with several author domains is judged by
each, and the worst counts.

*RFCs*: 9989 sections 4.10, 5.3 and 11.5; 7489 section 6.6 (`pct` in 6.6.4); 8020 (NXDOMAIN).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from gateway.sdk import AuthResult, Dkim, Dmarc, DmarcPolicy, Dns, DnsStatus, Message, Spf, SpfResult
from plugins.dmarc.author import author_domains, is_domain
from plugins.dmarc.discovery import (
    DmarcRecords,
    Found,
    Organizations,
    SuffixList,
    TreeWalk,
    look_up,
    registered,
    walk_names,
)
from plugins.dmarc.options import Rules
from plugins.dmarc.record import Record

AUTHORS: Final = 4
IDENTIFIERS: Final = 6
_LIST_ID: Final = 255

_MILDER: Final = {
    DmarcPolicy.REJECT: DmarcPolicy.QUARANTINE,
    DmarcPolicy.QUARANTINE: DmarcPolicy.NONE,
    DmarcPolicy.NONE: DmarcPolicy.NONE,
}


class Method(StrEnum):
    """What proves an identifier."""

    SPF = "spf"
    DKIM = "dkim"


@dataclass(frozen=True, slots=True)
class Identifier:
    """A domain that SPF or DKIM proved, or (`proved` False) could not check for now."""

    domain: str
    method: Method
    proved: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of the message apart from DNS records; `unchecked` says what nobody looked at."""

    identifiers: tuple[Identifier, ...]
    unchecked: str
    sample: int
    list_id: str


def gather_evidence(message: Message, spf: Spf | None, dkim: Dkim | None) -> Evidence:
    """Identifiers that count or might have counted, and what was not checked at all."""
    found: list[Identifier] = []
    if spf is not None and spf.result in (SpfResult.PASS, SpfResult.TEMPERROR):
        found.append(Identifier(spf.domain, Method.SPF, spf.result is SpfResult.PASS))
    for signature in dkim.signatures if dkim is not None else ():
        if signature.result in (AuthResult.PASS, AuthResult.TEMPERROR):
            found.append(Identifier(signature.domain, Method.DKIM, signature.result is AuthResult.PASS))
    unchecked = ""
    if spf is None:
        unchecked = "SPF was not checked"
    elif dkim is None and message.first("DKIM-Signature") is not None:
        unchecked = "DKIM signatures were not checked"
    usable = tuple(i for i in dict.fromkeys(found) if is_domain(i.domain))
    return Evidence(usable, unchecked, _sample(message), _list_id(message))


def _sample(message: Message) -> int:
    """A number from 0 to 99 that is the same whenever this message comes (for `pct`)."""
    marks = message.all("Message-ID") or (*message.all("From"), *message.all("Date"), *message.all("Subject"))
    digest = hashlib.sha256("\0".join(marks).encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8]) % 100


def _list_id(message: Message) -> str:
    return "".join(c if c.isprintable() else "?" for c in (message.first("List-Id") or "")[:_LIST_ID])


async def early_records(dns: Dns, rules: Rules, message: Message, sender: str) -> DmarcRecords:
    """The records that the author domains lead to, and that of the `sender` domain if it may be of the same family."""
    authors = author_domains(message.all("From"))
    if authors.problem or len(authors.domains) > AUTHORS:
        return DmarcRecords({})
    if rules is Rules.RFC7489:
        names = [name for author in authors.domains for name in (author, registered(author))]
    else:
        alike = [sender] if is_domain(sender) and any(_common(a, sender) for a in authors.domains) else []
        names = [name for domain in (*authors.domains, *alike) for name in walk_names(domain)]
    return DmarcRecords(await look_up(dns, names, rules))


async def evaluate(
    dns: Dns,
    rules: Rules,
    message: Message,
    spf: Spf | None,
    dkim: Dkim | None,
    records: DmarcRecords,
) -> Dmarc:
    """The message's DMARC finding; `records` are those that were looked up before."""
    authors = author_domains(message.all("From"))
    evidence = gather_evidence(message, spf, dkim)
    problem = authors.problem
    if not problem and len(authors.domains) > AUTHORS:
        problem = f"From names {len(authors.domains)} domains"
    if problem:
        return Dmarc(AuthResult.PERMERROR, "", problem=problem, list_id=evidence.list_id)
    near = _near(authors.domains, evidence.identifiers)
    known = records.places
    organizations: Organizations
    if rules is Rules.RFC7489:
        organizations = await SuffixList.ask(dns, authors.domains, known)
    else:
        organizations = await TreeWalk.ask(dns, (*authors.domains, *(i.domain for i in near)), known)
    evidence = replace(evidence, identifiers=near)
    found = [await _judge(dns, organizations, domain, evidence) for domain in authors.domains]
    worst = max(found, key=_severity)
    if len(found) > 1:
        said = f"worst of {len(found)} author domains"
        others = tuple(one.domain for one in found if one is not worst and _asks_for_more(one))
        worst = replace(worst, problem=f"{worst.problem}; {said}" if worst.problem else said, others=others)
    return worst


def _asks_for_more(found: Dmarc) -> bool:
    """Whether it fails and its policy wants something done about that."""
    return found.result is AuthResult.FAIL and found.policy is not DmarcPolicy.NONE


def _severity(found: Dmarc) -> tuple[int, int]:
    order = (AuthResult.PASS, AuthResult.NONE, AuthResult.PERMERROR, AuthResult.TEMPERROR, AuthResult.FAIL)
    return order.index(found.result), list(DmarcPolicy).index(found.policy or DmarcPolicy.NONE)


def _near(authors: Iterable[str], identifiers: Sequence[Identifier]) -> tuple[Identifier, ...]:
    """The identifiers that can align at all, the most alike first, and no more than may be asked for."""
    alike = {i: max(_common(author, i.domain) for author in authors) for i in identifiers}
    able = sorted((i for i in identifiers if alike[i]), key=lambda i: (-alike[i], not i.proved))
    return tuple(able[:IDENTIFIERS])


def _common(one: str, other: str) -> int:
    """How many labels two domains have in common, from the right; one that is the other counts as more."""
    if one == other:
        return 1_000
    count = 0
    for a, b in zip(reversed(one.split(".")), reversed(other.split(".")), strict=False):
        if a != b:
            break
        count += 1
    return count


async def _judge(dns: Dns, organizations: Organizations, domain: str, evidence: Evidence) -> Dmarc:
    found = organizations.policy(domain)
    organizational, trouble = organizations.organizational(domain)
    start = Dmarc(AuthResult.NONE, domain, organizational or domain, list_id=evidence.list_id)
    record = found.record
    if found.failed:
        return replace(start, result=AuthResult.TEMPERROR, problem=found.failed)
    if record is None:
        return replace(start, problem="several records" if found.several else "")
    start = replace(start, record_domain=found.domain, published=record.text)
    if not record.usable:
        return replace(start, problem="; ".join(record.problems))
    aligned = _Alignment(organizations, domain, record)
    passed = [i for i in evidence.identifiers if i.proved and aligned.of(i)]
    policy, problem = await _policy(dns, found, record, domain)
    spared = record.testing or evidence.sample >= record.pct
    start = replace(
        start,
        policy=_MILDER[policy] if spared else policy,
        testing=spared,
        spf=any(i.method is Method.SPF for i in passed),
        dkim=any(i.method is Method.DKIM for i in passed),
        aligned=tuple(dict.fromkeys(i.domain for i in passed)),
        problem="; ".join(record.problems),
    )
    if passed:
        return replace(start, result=AuthResult.PASS)
    if any(not i.proved and aligned.of(i) is not False for i in evidence.identifiers):
        problem = "SPF or DKIM could not be checked for now"
    elif any(i.proved and aligned.of(i) is None for i in evidence.identifiers):
        problem = trouble or "the organisational domains could not be found for now"
    problem = problem or evidence.unchecked
    if problem:
        return replace(start, result=AuthResult.TEMPERROR, problem=problem)
    return replace(start, result=AuthResult.FAIL)


class _Alignment:
    """Whether identifiers align with one author domain (RFC 9989 section 4.4)."""

    def __init__(self, organizations: Organizations, author: str, record: Record) -> None:
        self._organizations = organizations
        self._author = author
        self._record = record

    def of(self, identifier: Identifier) -> bool | None:
        """None when the DNS does not say for now."""
        if identifier.domain == self._author:
            return True
        strict = self._record.strict_spf if identifier.method is Method.SPF else self._record.strict_dkim
        if strict or not _common(self._author, identifier.domain):
            return False
        ours, our_trouble = self._organizations.organizational(self._author)
        theirs, their_trouble = self._organizations.organizational(identifier.domain)
        return None if our_trouble or their_trouble else ours == theirs


async def _policy(dns: Dns, found: Found, record: Record, domain: str) -> tuple[DmarcPolicy, str]:
    """p, sp or np, as applies; with trouble where it cannot be told whether the domain exists."""
    if found.domain == domain:
        return record.p, ""
    if record.np is record.sp:
        return record.sp, ""
    answer = await dns.lookup(domain, "A")
    if answer.status is DnsStatus.NXDOMAIN:
        return record.np, ""
    trouble = f"DNS, {domain}: {answer.problem or 'no answer'}" if answer.status is DnsStatus.FAILED else ""
    return record.sp, trouble
