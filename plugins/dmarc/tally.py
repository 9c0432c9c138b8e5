"""What happened to each domain's mail, counted in the shared state until its report is made.

One tally per interval and policy domain holds the rows, another one the domains of the interval. Rows and domains are
made by strangers, so both are bounded: what comes on top is counted without being told apart.

*RFCs*: 9990 sections 3.1.1 (rows) and 3.1.4 (which signatures).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from gateway.sdk import (
    Address,
    Arc,
    AuthResult,
    Dkim,
    DkimSignature,
    Dmarc,
    DmarcPolicy,
    Ending,
    Outcome,
    Spf,
    State,
)
from plugins.dmarc.options import DmarcOptions, ReportOptions, Rules
from plugins.dmarc.policy import Decision, Override, decide
from plugins.dmarc.record import parse_record

SIGNATURES: Final = 10
OVERFLOW: Final = "overflow"
_MEMBER: Final = 2_000
_KNOWN: Final = 50_000
_NAME: Final = 253
_DONE: Final = {
    Outcome.ACCEPTED: DmarcPolicy.NONE,
    Outcome.QUARANTINED: DmarcPolicy.QUARANTINE,
    Outcome.REJECTED: DmarcPolicy.REJECT,
    Outcome.DISCARDED: DmarcPolicy.REJECT,
}
_STRICTNESS: Final = list(DmarcPolicy)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a report, apart from its count. Texts are what strangers sent, cut to their greatest length."""

    client: str
    disposition: str
    dkim: bool
    spf: bool
    header_from: str
    envelope_from: str
    override: str = ""
    comment: str = ""
    spf_domain: str = ""
    spf_result: str = ""
    signatures: tuple[tuple[str, str, str], ...] = ()
    """Domain, selector and result of each."""

    def to_member(self) -> str:
        """As a tally's member, with as many signatures as fit."""
        signatures = self.signatures
        while True:
            values = [self.client, self.disposition, self.dkim, self.spf, self.header_from, self.envelope_from]
            values += [self.override, self.comment, self.spf_domain, self.spf_result, [list(s) for s in signatures]]
            text = json.dumps(values, separators=(",", ":"))
            if len(text) <= _MEMBER or not signatures:
                return text
            signatures = signatures[:-1]

    @classmethod
    def from_member(cls, text: str) -> Row:
        """Raises ValueError for what `to_member` did not write."""
        values = json.loads(text)
        if not isinstance(values, list) or len(values) != 11:
            raise ValueError("no row")
        signatures = tuple((str(d), str(s), str(r)) for d, s, r in values[10])
        return replace(cls(*values[:10]), signatures=signatures)


def make_row(options: DmarcOptions, ending: Ending, dmarc: Dmarc) -> Row | None:
    """The row that this ending belongs to; None when it is not to be counted (it was deferred or broken off)."""
    done = _DONE.get(ending.outcome)
    transaction = ending.transaction
    if done is None or transaction is None:
        return None
    decision = decide(options, ending.session, dmarc, ending.finding(Arc))
    disposition, override, comment = _disposition(options, decision, done, dmarc)
    spf, dkim = ending.finding(Spf), ending.finding(Dkim)
    sender = transaction.sender
    return Row(
        client=str(ending.session.client),
        disposition=disposition,
        dkim=dmarc.dkim,
        spf=dmarc.spf,
        header_from=dmarc.domain,
        envelope_from=sender.ascii_domain if isinstance(sender, Address) else "",
        override=override,
        comment=comment[:100],
        spf_domain=spf.domain[:_NAME] if spf else "",
        spf_result=spf.result.value if spf else "",
        signatures=tuple((s.domain[:_NAME], s.selector[:63], s.result.value) for s in _ranked(dkim, dmarc)),
    )


def _disposition(options: DmarcOptions, decision: Decision, done: DmarcPolicy, dmarc: Dmarc) -> tuple[str, str, str]:
    """Disposition, override reason and comment (RFC 9990 sections 3.1.1.9 and 3.1.6)."""
    record = parse_record(dmarc.published.encode("ascii", "replace"), options.rules)
    if dmarc.result is AuthResult.PASS:
        enforcing = record is not None and (record.p, record.sp) != (DmarcPolicy.NONE, DmarcPolicy.NONE)
        return ("pass" if enforcing else "none"), "", ""
    if dmarc.result is AuthResult.TEMPERROR:
        return "none", Override.OTHER.value, "temporary error"
    # Milder than decided: shadowed, or an entry before this one took it. Stricter: that was another entry's doing.
    applied = min(decision.handling, done, key=_STRICTNESS.index)
    if decision.override:
        return applied.value, decision.override.value, decision.comment
    if applied is not decision.handling:
        return applied.value, Override.LOCAL_POLICY.value, "not applied"
    if dmarc.testing:
        if options.rules is Rules.RFC7489:
            return applied.value, Override.OTHER.value, "sampled out by pct"
        return applied.value, Override.POLICY_TEST_MODE.value, ""
    return applied.value, "", ""


def _ranked(dkim: Dkim | None, dmarc: Dmarc) -> list[DkimSignature]:
    """Signatures by their worth to the reader: strictly aligned, aligned, passing, others."""

    def worth(signature: DkimSignature) -> int:
        if signature.result is not AuthResult.PASS:
            return 3
        return 0 if signature.domain == dmarc.domain else 1 if signature.domain in dmarc.aligned else 2

    return sorted(dkim.signatures if dkim else (), key=worth)[:SIGNATURES]


@dataclass(frozen=True, slots=True)
class Period:
    """One interval: seconds since 1970, UTC; `end` is the first second after it."""

    begin: int
    end: int

    @classmethod
    def of(cls, now: float, interval: float) -> Period:
        begin = int(now // interval * interval)
        return cls(begin, begin + int(interval))

    def key(self, kind: str, domain: str = "") -> str:
        """A key of the state; domains are hashed, for strangers chose them."""
        name = f"dmarc:{kind}:{self.begin}-{self.end}"
        return f"{name}:{hashlib.sha256(domain.encode()).hexdigest()[:32]}" if domain else name


class Collector:
    """Counts rows in the state."""

    def __init__(self, state: State, options: ReportOptions) -> None:
        self._state = state
        self._options = options
        # As long as it takes to report, and to try again while the interval before the last one is still looked at.
        self.ttl = 3 * options.interval + options.wait + 3_600
        self._forget(Period(0, 0))

    def _forget(self, period: Period) -> None:
        self._period = period
        self._known: set[int] = set()
        self._full: set[str] = set()
        self._noted: dict[str, str] = {}

    async def count(self, period: Period, domain: str, published: str, row: Row) -> None:
        """Count one message for the policy domain, whose record is now `published`."""
        if period != self._period:
            self._forget(period)
        if not await self._listed(period, domain):
            return
        if self._noted.get(domain) != published:
            await self._state.put(period.key("record", domain), published.encode(), self.ttl)
            self._noted[domain] = published
        rows, member = period.key("rows", domain), row.to_member()
        mark = hash((domain, member))
        if mark not in self._known and domain in self._full:
            member = OVERFLOW
        if await self._state.count(rows, member, self.ttl) == 1 and member != OVERFLOW:
            size = await self._state.count(period.key("sizes"), domain, self.ttl)
            if size > self._options.max_rows:
                self._full.add(domain)
                await self._state.count(rows, member, self.ttl, by=-1)
                await self._state.count(rows, OVERFLOW, self.ttl)
                return
        self._remember(mark)

    async def _listed(self, period: Period, domain: str) -> bool:
        """Whether the domain is one of the interval's; the first ones are."""
        mark = hash(domain)
        if mark in self._known or domain in self._noted:
            return True
        if "" in self._full:
            return False
        if await self._state.count(period.key("domains"), domain, self.ttl) == 1:
            if await self._state.count(period.key("sizes"), "*", self.ttl) > self._options.max_domains:
                await self._state.count(period.key("domains"), domain, self.ttl, by=-1)
                self._full.add("")
                return False
        self._remember(mark)
        return True

    def _remember(self, mark: int) -> None:
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known.add(mark)

    async def domains(self, period: Period) -> list[str]:
        """The policy domains of an interval."""
        counted = await self._state.exact.tally(period.key("domains"), 2 * self._options.max_domains)
        return sorted(domain for domain, count in counted.items() if count > 0)

    async def rows(self, period: Period, domain: str) -> tuple[list[tuple[Row, int]], int]:
        """A domain's rows with their counts, and how many messages are in none of them."""
        counted = await self._state.exact.tally(period.key("rows", domain), 2 * self._options.max_rows)
        more = counted.pop(OVERFLOW, 0)
        return [(Row.from_member(text), count) for text, count in _positive(counted.items())], more

    async def published(self, period: Period, domain: str) -> bytes | None:
        """The record's text as it was last seen in the interval."""
        return await self._state.exact.get(period.key("record", domain))


def _positive(counted: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    return [(text, count) for text, count in counted if count > 0]
