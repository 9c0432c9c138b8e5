"""Sends the daily TLS reports: for each domain that was written to and asks for one, by mail or HTTPS, each once.

Whoever of the workers comes first takes a day's turn; each report is claimed when it is made and before it is sent, so
that a worker which takes over from one that died, or was stopped, sends only what is left.

*Promises*: a report goes to the addresses that the domain's record names and to no other, at most once.

*Fails by*: log events; what could not be sent is tried again until the next day's end.

*RFCs*: 8460 section 5.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import orjson

from gateway.mail.address import parse_mailbox
from gateway.ops import log, metrics
from gateway.sdk.services import Clock, Dns, DnsStatus, Outbox, OutboxError, State, StateError
from gateway.transport import tlsresults
from gateway.transport.tlsreport import Report, Reporter, Targets, read_record, read_row, render_mail
from gateway.transport.tlsresults import DAY, KEEP

_log = log.get()

WAIT: Final = 3600.0
"""Seconds after midnight (UTC) before a day's reports: then all workers have stored what they counted."""
LOOK: Final = 900.0
LEASE: Final = 900.0
ROWS: Final = 2000


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """`email` sends; `organization` and `contact` stand in the report."""

    email: str
    organization: str
    contact: str


@dataclass(frozen=True, slots=True)
class _Made:
    """A report, and where it goes."""

    targets: Targets
    report: Report
    packed: bytes


class TlsReports:
    """One per worker, started with the configuration's parts. `post` sends to a URL: a problem, or an empty text."""

    def __init__(
        self,
        options: ReportOptions,
        dns: Dns,
        state: State,
        clock: Clock,
        outbox: Outbox,
        post: Callable[[str, bytes], Awaitable[str]],
    ) -> None:
        self._options = options
        self._dns = dns
        # Of all replicas one reports, and only while it sees what all of them have counted.
        self._state = state.exact
        self._clock = clock
        self._outbox = outbox
        self._post = post
        domain = options.email.rpartition("@")[2].lower()
        self._reporter = Reporter(options.organization, options.contact, domain)

    async def run(self) -> None:
        """Look now and then, for ever."""
        while True:
            try:
                await self.report()
            except StateError as error:
                _log.warning("tls_report.state_failed", reason=str(error))
            except Exception:  # noqa: BLE001 - a bug in a report must not end all that follow
                _log.exception("tls_report.bug", fault="ours")
            await asyncio.sleep(LOOK)

    async def report(self) -> int:
        """Send what is due; gives how many reports were sent. Raises `StateError`."""
        now = self._clock.now()
        day = int(now - WAIT) // DAY - 1
        turn = f"tls-report-turn:{day}"
        if await self._state.put_new(turn, b"taken", LEASE) is not None:
            return 0
        sent, left = 0, 0
        for domain in await self._state.tally(tlsresults.domains_key(day)):
            claim = f"tls-report-sent:{day}:{domain}"
            if await self._state.get(claim) is not None:
                continue
            try:
                made = await self._make(domain, day)
                # From here on it may have been sent, whatever happens.
                if await self._state.put_new(claim, b"1", KEEP) is None and made is not None:
                    sent += await self._send(domain, made)
            except (OutboxError, _NotNow) as error:
                left += 1
                metrics.TLS_REPORTS.labels("put off").inc()
                _log.warning("tls_report.put_off", domain=domain, reason=str(error))
                await self._state.delete(claim)
        if not left:
            await self._state.put(turn, b"done", KEEP)
        return sent

    async def _make(self, domain: str, day: int) -> _Made | None:
        """The report; None for a domain that wants none."""
        targets = await self._targets(domain)
        if not targets:
            return None
        rows = await self._state.tally(tlsresults.rows_key(day, domain), ROWS)
        report = Report(self._reporter, domain, day, rows, await self._policies(rows))
        return _Made(targets, report, await asyncio.to_thread(report.compressed))

    async def _send(self, domain: str, made: _Made) -> bool:
        problem = ""
        for url in made.targets.https:
            problem = await self._post(url, made.packed)
            if not problem:
                return self._note(domain, url)
        if made.targets.mail:
            return self._note(domain, await self._mail(made.report, made.targets, made.packed))
        raise _NotNow(problem)

    def _note(self, domain: str, to: str) -> bool:
        metrics.TLS_REPORTS.labels("sent").inc()
        _log.info("tls_report.sent", domain=domain, to=to)
        return True

    async def _targets(self, domain: str) -> Targets:
        answer = await self._dns.lookup(f"_smtp._tls.{domain}", "TXT")
        if answer.status is DnsStatus.FAILED:
            raise _NotNow(f"DNS: {answer.problem}")
        return read_record(answer.records)

    async def _policies(self, rows: Iterable[str]) -> dict[str, dict[str, Any]]:
        names = {row["policy"] for member in rows if (row := read_row(member))}
        stored = {name: await self._state.get(tlsresults.policy_key(name)) for name in sorted(names)}
        return {name: orjson.loads(text) for name, text in stored.items() if text}

    async def _mail(self, report: Report, targets: Targets, packed: bytes) -> str:
        options = self._options
        mail = render_mail(report, options.email, targets.mail, packed, self._clock.now())
        return await self._outbox.send(parse_mailbox(options.email), targets.mail, mail)


class _NotNow(Exception):
    """Trouble: try this report again later."""
