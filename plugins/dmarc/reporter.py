"""Makes and sends the aggregate reports of an interval that is over: each once, by one worker.

Whoever stores the interval's turn first works through it. Each report is claimed just before it is queued, so that a
worker which takes over from one that died or was stopped sends what is left, and only that.

*Promises*: a report goes only to mailto addresses whose domain has agreed to it, to `destinations` of them at most, and
at most once.

*RFCs*: 9990 sections 3.5 (transport) and 4 (external destinations); 9989 section 4.7 (`rua`); 7489 section 6.2 (sizes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import Counter

from gateway.sdk import Address, DnsStatus, OutboxError, Services, StateError, get_logger
from plugins.dmarc.discovery import SuffixList, TreeWalk
from plugins.dmarc.options import ReportOptions, Rules
from plugins.dmarc.record import Destination, Record, is_record, parse_record
from plugins.dmarc.report import Report, compress, render_mail, render_xml
from plugins.dmarc.tally import Collector, Period

REPORTS = Counter("gatepost_dmarc_reports_total", "Aggregate reports, and what became of them.", ["outcome"])
_LEASE: Final = 900.0
_NAME_OCTETS: Final = 253
_BASE64: Final = 4 / 3 * 77 / 76

_log = get_logger()


class _NotNow(Exception):
    """DNS trouble: try this report again later."""


@dataclass(frozen=True, slots=True)
class _Mail:
    """A report that is ready to be queued; `rows` is how many it has."""

    recipients: tuple[Address, ...]
    content: bytes
    rows: int


class Reporter:
    """Sends what a `Collector` counted."""

    def __init__(self, services: Services, collector: Collector, options: ReportOptions, rules: Rules) -> None:
        self._services = services
        self._collector = collector
        self._options = options
        self._rules = rules
        self._submitter = options.email.rpartition("@")[2].lower()

    async def report(self, now: float) -> int:
        """Send the reports of the last two intervals that are due and not sent yet; gives how many were sent."""
        sent = 0
        for back in (2, 1):
            period = Period.of(now - back * self._options.interval, self._options.interval)
            if now >= period.end + self._options.wait:
                sent += await self._report(period)
        return sent

    async def _report(self, period: Period) -> int:
        # Of all replicas one reports, and only while it sees what all of them have counted.
        state = self._services.state.exact
        if await state.put_new(period.key("turn"), b"taken", _LEASE) is not None:
            return 0
        sent, left = 0, 0
        for domain in await self._collector.domains(period):
            claim = period.key("sent", domain)
            if await state.get(claim) is not None:
                continue
            try:
                mail = await self._prepare(period, domain, claim)
                # Whoever is stopped before this has sent nothing, and leaves it to the next one.
                if mail is None or await state.put_new(claim, b"1", self._collector.ttl) is not None:
                    continue
                sent += await self._send(domain, mail, claim)
            except (_NotNow, OutboxError) as error:
                left += 1
                REPORTS.labels("put off").inc()
                _log.warning("dmarc.report_put_off", domain=domain, reason=str(error))
        if not left:
            await state.put(period.key("turn"), b"done", self._collector.ttl)
        return sent

    async def _prepare(self, period: Period, domain: str, claim: str) -> _Mail | None:
        """The report's mail; None when there is none to be sent. What can never be read must not stop the others."""
        try:
            mail = await self._make(period, domain)
        except (_NotNow, StateError):
            raise
        except Exception:
            await self._services.state.exact.put_new(claim, b"1", self._collector.ttl)
            raise
        if mail is None:
            await self._services.state.exact.put_new(claim, b"1", self._collector.ttl)
        return mail

    async def _make(self, period: Period, domain: str) -> _Mail | None:
        text = await self._collector.published(period, domain)
        record = parse_record(text, self._rules) if text else None
        rows, more = await self._collector.rows(period, domain)
        if record is None or not rows:
            return None
        report = Report(domain, self._submitter, period, record, self._rules, rows, more)
        packed = compress(render_xml(report, self._options))
        destinations = await self._destinations(domain, record, len(packed))
        if not destinations:
            REPORTS.labels("unwanted").inc()
            _log.info("dmarc.report_unwanted", domain=domain)
            return None
        now = self._services.clock.now()
        mail = render_mail(report, self._options, [d.address for d in destinations], packed, now)
        return _Mail(tuple(_address(d.address) for d in destinations), mail, len(rows))

    async def _send(self, domain: str, mail: _Mail, claim: str) -> bool:
        """Queue it. Raises `OutboxError`, and then nobody has it."""
        try:
            id = await self._services.outbox.send(_address(self._options.email), mail.recipients, mail.content)
        except OutboxError:
            await self._services.state.exact.delete(claim)
            raise
        REPORTS.labels("sent").inc()
        _log.info("dmarc.report_sent", domain=domain, id=id, rows=mail.rows, recipients=len(mail.recipients))
        return True

    async def _destinations(self, domain: str, record: Record, octets: int) -> list[Destination]:
        """Who gets the report: in the order given, agreed to where they are elsewhere, not too small for it."""
        chosen: dict[str, Destination] = {}
        for wanted in record.rua[: 2 * self._options.destinations]:
            for destination in await self._agreed(domain, wanted):
                # RFC 9989 section 4.8 tells reporters to ignore the limit that RFC 7489 had.
                limited = self._rules is Rules.RFC7489 and destination.limit
                if not limited or octets * _BASE64 <= destination.limit:
                    chosen.setdefault(destination.address.lower(), destination)
        return list(chosen.values())[: self._options.destinations]

    async def _agreed(self, domain: str, wanted: Destination) -> Sequence[Destination]:
        """`wanted`, or what its host wants instead, or nothing (RFC 9990 section 4)."""
        if await self._same_organization(domain, wanted.host):
            return (wanted,)
        name = f"{domain}._report._dmarc.{wanted.host}"
        if len(name) > _NAME_OCTETS:
            return ()
        answer = await self._services.dns.lookup(name, "TXT")
        if answer.status is DnsStatus.FAILED:
            raise _NotNow(f"DNS, {name}: {answer.problem or 'no answer'}")
        texts = [text for text in answer.records if isinstance(text, bytes) and is_record(text)]
        if not texts:
            return ()
        records = [record for text in texts if (record := parse_record(text, Rules.RFC9989))]
        instead = [destination for record in records for destination in record.rua]
        if any(destination.host != wanted.host for destination in instead):
            return ()
        return instead or (wanted,)

    async def _same_organization(self, domain: str, host: str) -> bool:
        if domain == host:
            return True
        dns = self._services.dns
        rules = SuffixList({}) if self._rules is Rules.RFC7489 else await TreeWalk.ask(dns, (domain, host))
        ours, trouble = rules.organizational(domain)
        theirs, more_trouble = rules.organizational(host)
        if trouble or more_trouble:
            raise _NotNow(trouble or more_trouble)
        return ours == theirs


def _address(text: str) -> Address:
    local, _, domain = text.rpartition("@")
    return Address(local, domain)
