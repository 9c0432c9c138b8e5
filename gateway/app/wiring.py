"""Configuration in, parts out: what each room is told, made from the one configuration file."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.config import Config, ConfigError, Problem
from gateway.config.routes import RecipientCheck
from gateway.mail.address import Address
from gateway.pipeline.loader import Catalog, Pipeline, load
from gateway.pipeline.plan import PipelineError, StageDeadlines
from gateway.queue.lane import SchedulerOptions
from gateway.queue.retry import RetryOptions
from gateway.sdk.services import Callout, Clock, Lines, NoLines, NoOutbox, Outbox, RecipientRule, Services
from gateway.services.clock import SystemClock
from gateway.services.dns import DnsOptions, Resolver
from gateway.services.state import SqliteState
from gateway.smtp.data import Newlines
from gateway.smtp.domains import Domain, Domains
from gateway.smtp.intake import Desk
from gateway.smtp.listener import tls_context
from gateway.smtp.options import Limits, ListenerOptions, Networks, SmtpOptions, Split, SplitRefused, Timeouts, TlsMode
from gateway.spool.spool import Spool
from gateway.transport.factory import Transports
from gateway.transport.options import SmtpOptions as DeliveryOptions
from gateway.transport.routing import Router
from gateway.transport.transport import Destination, Transport

RECIPIENT_PLUGIN = "recipient"
_WORKER_LOOKUPS = 500


class Directory:
    """Implements `gateway.sdk.services.Directory` over the configured domains and their next hops."""

    def __init__(self, domains: Domains, router: Router, transports: Transports) -> None:
        self._domains = domains
        self._router = router
        self._transports = transports

    def rule(self, address: Address) -> RecipientRule:
        return self._domains.rule(address)

    async def callout(self, address: Address) -> Callout:
        return await self._transports.verify(self._router.resolve(address), address)


class Roads:
    """Routing and transports as the scheduler sees them: always those of the configuration in force."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def resolve(self, address: Address) -> Destination:
        return self.parts.router.resolve(address)

    def for_destination(self, destination: Destination) -> Transport:
        return self.parts.transports.for_destination(destination)


@dataclass(frozen=True, slots=True)
class Parts:
    """All that a configuration determines and a reload replaces, for one process."""

    config: Config
    router: Router
    transports: Transports
    resolver: Resolver
    domains: Domains
    pipelines: Mapping[str, Pipeline]
    smtp: SmtpOptions

    def desk(self, spool: Spool, clock: Clock, ring: Callable[[], None]) -> Desk:
        """What the front door's sessions work with."""
        return Desk(self.smtp, self.domains, self.pipelines, spool, clock, ring)


def make_parts(
    config: Config, state: SqliteState, clock: Clock, lines: Lines | None = None, outbox: Outbox | None = None
) -> Parts:
    """Build everything; nothing is started or opened. Raises `ConfigError`.

    `lines` and `outbox` are there in a worker only.
    """
    servers = tuple((server.host, server.port) for server in config.dns.nameservers)
    resolver = Resolver(DnsOptions(servers, config.dns.timeout), clock)
    delivery = DeliveryOptions(
        config.hostname,
        max_idle=config.queue.connection_idle,
        messages_per_connection=config.queue.connection_messages,
    )
    transports = Transports(delivery, resolver, clock)
    domains = Domains({name: _domain(name, domain) for name, domain in config.domains.items()})
    router = Router(
        {name: domain.destination for name, domain in config.domains.items()}, config.routes.default.destination
    )
    services = Services(
        resolver,
        state,
        clock,
        Directory(domains, router, transports),
        config.authserv_id,
        config.hostname,
        lines or NoLines(),
        outbox or NoOutbox(),
    )
    return Parts(config, router, transports, resolver, domains, _pipelines(config, services), smtp_options(config))


def _domain(name: str, domain: Any) -> Domain:
    rules = {RecipientCheck.ANY: RecipientRule.ANY, RecipientCheck.CALLOUT: RecipientRule.CALLOUT}
    if domain.check is RecipientCheck.LIST:
        return Domain(name, domain.pipeline or "", RecipientRule.LISTED, domain.listed)
    return Domain(name, domain.pipeline or "", rules[domain.check])


def implied(config: Config, entries: tuple[Any, ...]) -> tuple[Any, ...]:
    """The entries, with the recipient plugin in front unless the operator placed it.

    What `domains.X.recipients` says always holds, whatever the pipeline is.
    """
    named = any(e == RECIPIENT_PLUGIN or (isinstance(e, dict) and RECIPIENT_PLUGIN in e) for e in entries)
    if named or all(d.check is RecipientCheck.ANY for d in config.domains.values()):
        return entries
    return (RECIPIENT_PLUGIN, *entries)


def _pipelines(config: Config, services: Services) -> dict[str, Pipeline]:
    deadlines = StageDeadlines(**config.deadlines.model_dump())
    catalog = Catalog.installed()
    slots = asyncio.Semaphore(_WORKER_LOOKUPS)
    made: dict[str, Pipeline] = {}
    problems: list[Problem] = []
    for name, given in config.all_pipelines.items():
        entries = implied(config, given)
        try:
            made[name] = load(name, entries, services, known=catalog, deadlines=deadlines, worker_slots=slots)
        except PipelineError as error:
            problems += config.pipeline_problems(name, error, before=len(entries) - len(given))
    if problems:
        raise ConfigError(problems)
    return made


def load_pipelines(config: Config) -> dict[str, Pipeline]:
    """All pipelines by name, not started: for `gatepost check` and `gatepost pipeline`. Raises `ConfigError`."""
    clock = SystemClock()
    return dict(make_parts(config, SqliteState(Path(config.state.path), clock), clock).pipelines)


def smtp_options(config: Config) -> SmtpOptions:
    """What all listeners share."""
    return SmtpOptions(
        config.hostname,
        config.authserv_id,
        Limits(**config.limits.model_dump()),
        Timeouts(**config.timeouts.model_dump()),
        Newlines(config.bare_newline),
        Networks(config.relay_from),
        bounces=config.bounces == "proven",
        split=Split(config.split),
        split_refused=SplitRefused(config.split_refused),
    )


def listener_options(listener: Any, name: str) -> ListenerOptions:
    """One listener; `name` is its address as bound. Raises OSError or ssl.SSLError for bad certificate files."""
    tls: ssl.SSLContext | None = None
    mode = TlsMode.STARTTLS
    if listener.tls is not None:
        tls = tls_context(listener.tls.certificate, listener.tls.key)
        mode = TlsMode(listener.tls.mode)
    return ListenerOptions(
        name,
        listener.pipeline,
        tls,
        mode,
        Networks(listener.proxy_protocol.trusted if listener.proxy_protocol else ()),
        Networks(listener.xclient.trusted if listener.xclient else ()),
    )


def retry_options(config: Config) -> RetryOptions:
    return RetryOptions(**config.retry.model_dump())


def scheduler_options(config: Config) -> SchedulerOptions:
    return SchedulerOptions(active=config.queue.active, destination_concurrency=config.queue.destination_concurrency)


def name_of(sock: socket.socket) -> str:
    """``host:port`` as bound."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
