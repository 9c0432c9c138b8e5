"""The plugin `dmarc`: the finding, the counting of endings, and the task that sends reports."""

from __future__ import annotations

import asyncio

from prometheus_client import Counter

from gateway.sdk import (
    Address,
    AuthResult,
    Dkim,
    Dmarc,
    Ending,
    Message,
    Plugin,
    Session,
    Spf,
    Stage,
    StateError,
    Transaction,
    finds,
    get_logger,
)
from plugins.dmarc.discovery import DmarcRecords, suffixes
from plugins.dmarc.evaluate import early_records, evaluate
from plugins.dmarc.options import DmarcOptions, Rules
from plugins.dmarc.policy import DmarcDefault
from plugins.dmarc.record import parse_record
from plugins.dmarc.reporter import Reporter
from plugins.dmarc.tally import Collector, Period, make_row

RESULTS = Counter("gatepost_dmarc_results_total", "DMARC results, by the policy that applies.", ["result", "policy"])
_COUNTED = (AuthResult.PASS, AuthResult.FAIL, AuthResult.TEMPERROR)

_log = get_logger()


class DmarcPlugin(Plugin):
    """Evaluates DMARC; and, where it is told to, reports to the domains' owners."""

    name = "dmarc"
    Options = DmarcOptions
    policy = DmarcDefault
    # Two rounds of questions, each as long as the resolver's own time limit.
    timeout = 15.0
    options: DmarcOptions

    async def start(self) -> None:
        self._collector: Collector | None = None
        self._reporter: Reporter | None = None
        self._task: asyncio.Task[None] | None = None
        if self.options.rules is Rules.RFC7489:
            await asyncio.to_thread(suffixes)
        if (reports := self.options.reports) and reports.enabled:
            self._collector = Collector(self.services.state, reports)
            self._reporter = Reporter(self.services, self._collector, reports, self.options.rules)
            pause = min(600.0, reports.interval / 4)
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._report_for_ever(pause), name="dmarc.reports")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @finds(Stage.MESSAGE)
    async def records(self, transaction: Transaction, message: Message) -> DmarcRecords:
        """What can be looked up without waiting for SPF and DKIM."""
        if transaction.session.trusted:
            return DmarcRecords({})
        sender = transaction.sender
        domain = sender.ascii_domain if isinstance(sender, Address) else ""
        return await early_records(self.services.dns, self.options.rules, message, domain)

    @finds(Stage.MESSAGE)
    async def check(
        self, session: Session, message: Message, spf: Spf | None, dkim: Dkim | None, records: DmarcRecords
    ) -> Dmarc:
        """DMARC by what SPF and DKIM found; clients of ours are not checked."""
        if session.trusted:
            return Dmarc(AuthResult.NONE, "", problem="client is not checked")
        found = await evaluate(self.services.dns, self.options.rules, message, spf, dkim, records)
        RESULTS.labels(found.result.value, found.policy.value if found.policy else "").inc()
        return found

    async def ended(self, ending: Ending) -> None:
        """Count the message for its domain's report, when somebody wants one."""
        dmarc = ending.finding(Dmarc)
        if self._collector is None or dmarc is None or ending.stage is not Stage.MESSAGE or self._excluded(ending):
            return
        record = parse_record(dmarc.published.encode("ascii", "replace"), self.options.rules)
        if dmarc.result not in _COUNTED or record is None or not record.rua:
            return
        row = make_row(self.options, ending, dmarc)
        if row is not None:
            reports = self.options.reports
            assert reports is not None
            period = Period.of(self.services.clock.now(), reports.interval)
            await self._collector.count(period, dmarc.record_domain, record.text, row)

    def _excluded(self, ending: Ending) -> bool:
        """Whether this is mail to who sends the reports: reports about that would beget reports."""
        reports, transaction = self.options.reports, ending.transaction
        if reports is None or transaction is None or ending.session.trusted:
            return True
        unwanted = {reports.email.lower(), *reports.exclude}
        return bool(transaction.recipients) and all(r.address.key in unwanted for r in transaction.recipients)

    async def report(self, now: float) -> int:
        """Send the reports that are due at `now`; gives how many were sent. Raises StateError."""
        return await self._reporter.report(now) if self._reporter else 0

    async def _report_for_ever(self, pause: float) -> None:
        while True:
            await asyncio.sleep(pause)
            try:
                await self.report(self.services.clock.now())
            except StateError as error:
                _log.warning("dmarc.reports_put_off", reason=str(error))
            except Exception as error:  # noqa: BLE001 - a report that cannot be made must not be the last one
                _log.error("dmarc.reports_failed", exc_info=error)
