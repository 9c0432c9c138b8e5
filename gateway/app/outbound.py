"""What outbound TLS is made of: MTA-STS policies and the sender of reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.config import Config
from gateway.sdk.services import Clock, Dns, Outbox, State
from gateway.transport.policies import Fetch, Policies

if TYPE_CHECKING:
    from gateway.app.tlsreports import TlsReports


def make_policies(config: Config, dns: Dns, state: State, clock: Clock) -> Policies | None:
    """Where MTA-STS policies come from; None when nobody is to look for any."""

    def make_fetch() -> Fetch:
        from gateway.transport.policyfetch import PolicyFetcher

        return PolicyFetcher(dns)

    return Policies(dns, state, clock, make_fetch) if config.outbound_tls.mta_sts else None


def make_reports(config: Config, dns: Dns, state: State, clock: Clock, outbox: Outbox) -> TlsReports:
    """The sender of TLS reports."""
    # Most gateways send no reports.
    from gateway.app.tlsreports import ReportOptions, TlsReports

    wanted = config.outbound_tls.reports
    assert wanted is not None

    async def post(url: str, packed: bytes) -> str:
        # An HTTP client takes a while to import, and few domains want their reports that way.
        from gateway.transport.https import Https, HttpsFailed

        https = Https(dns, public_only=True)
        try:
            answer = await https.ask("POST", url, {"Content-Type": "application/tlsrpt+gzip"}, packed)
        finally:
            await https.close()
        if isinstance(answer, HttpsFailed):
            return answer.problem
        return "" if 200 <= answer.status < 300 else f"HTTP {answer.status}"

    organization, contact = wanted.organization or config.hostname, wanted.contact or wanted.email
    options = ReportOptions(wanted.email, organization, contact)
    return TlsReports(options, dns, state, clock, outbox, post)
