"""What delivery is made of: routes, how next hops are reached, MTA-STS policies, the sender of TLS reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.config import Config
from gateway.sdk.services import Clock, Dns, Outbox, State
from gateway.services.dns import DnsOptions, Resolver
from gateway.transport.options import SmtpOptions
from gateway.transport.own import OwnAddresses
from gateway.transport.policies import Fetch, Policies
from gateway.transport.routing import Router

if TYPE_CHECKING:
    from gateway.app.tlsreports import TlsReports


def make_resolver(config: Config, clock: Clock) -> Resolver:
    """Asks the configured nameservers."""
    servers = tuple((server.host, server.port) for server in config.dns.nameservers)
    return Resolver(DnsOptions(servers, config.dns.timeout, config.dns.dnssec), clock)


def make_router(config: Config) -> Router:
    """The table of domains, routes and named transports."""
    routes = config.routes
    return Router(
        {name: domain.destination for name, domain in config.domains.items()},
        routes.default.destination,
        {name: entry.destination(name) for name, entry in config.transports.items()},
        {name: route.destination for name, route in routes.domains.items()},
        {name: route.destination for name, route in routes.senders.items()},
        routes.address_literals,
    )


def delivery_options(config: Config) -> SmtpOptions:
    """How next hops are spoken to."""
    routes = config.routes
    listening = [listener.address.ip for listener in config.listeners]
    own = {str(ip) for ip in listening if not ip.is_unspecified} | {str(ip) for ip in config.own_addresses}
    return SmtpOptions(
        config.hostname,
        max_idle=config.queue.connection_idle,
        messages_per_connection=config.queue.connection_messages,
        max_addresses=routes.max_addresses,
        families=routes.addresses,
        next_address=routes.next_address_after,
        connections=config.queue.destination_concurrency,
        own=OwnAddresses(frozenset(own), frozenset(ip.version for ip in listening if ip.is_unspecified)),
    )


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
