"""Configuration in, parts out: what each room is told, made from the one configuration file."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gateway.app.directory import Directory, MailHosts
from gateway.app.outbound import delivery_options, make_policies, make_reports, make_resolver, make_router
from gateway.app.signing import OwnSigner
from gateway.config import Config, ConfigError, Problem
from gateway.config.recipients import LIST_OCTETS, RecipientCheck, Recipients, parse_list
from gateway.mail.address import Address, parse_mailbox
from gateway.mail.envelope import Ret
from gateway.ops import log
from gateway.pipeline.folder import FolderError, FolderProblem, read_folder
from gateway.pipeline.loader import Catalog, Pipeline, load
from gateway.pipeline.plan import PipelineError, StageDeadlines
from gateway.queue.options import SchedulerOptions
from gateway.queue.retry import RetryOptions
from gateway.queue.returnpath import Rewriting
from gateway.queue.settler import BounceOptions, Double
from gateway.sdk.files import WatchedFile
from gateway.sdk.services import Clock, Dns, Lines, NoLines, NoOutbox, Outbox, RecipientRule, Services, State, Store
from gateway.services.clock import SystemClock
from gateway.services.dns import Resolver
from gateway.services.ldap import LdapStore
from gateway.services.ldap_options import LdapOptions
from gateway.services.state import SqliteState
from gateway.services.tasks import Tasks
from gateway.services.tenancy import Tenancy
from gateway.smtp.data import Newlines
from gateway.smtp.domains import Domain, Domains
from gateway.smtp.intake import Desk
from gateway.smtp.listener import tls_context
from gateway.smtp.options import Limits, ListenerOptions, Networks, SmtpOptions, Split, SplitRefused, Timeouts, TlsMode
from gateway.spool.spool import Inlet
from gateway.transport.factory import Transports
from gateway.transport.hosts import Unreachable, addresses
from gateway.transport.routing import Router
from gateway.transport.tlsresults import Results
from gateway.transport.transport import Destination, Kind

if TYPE_CHECKING:
    from gateway.app.tlsreports import TlsReports

RECIPIENT_PLUGIN = "recipient"
_WORKER_LOOKUPS = 500

_log = log.get()


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
    hosts: MailHosts
    ldap: Sequence[LdapStore]
    bounces: BounceOptions
    paths: Rewriting
    signer: OwnSigner
    reports: TlsReports | None = None
    tasks: Tasks = field(default_factory=Tasks)
    tenancy: Tenancy = field(default_factory=Tenancy)
    """The sessions and deliveries that work with it."""

    async def start(self) -> None:
        """Start all pipelines. Raises `gateway.pipeline.plan.PipelineError`; then all of it is closed."""
        started: list[Pipeline] = []
        try:
            for pipeline in self.pipelines.values():
                await pipeline.start()
                started.append(pipeline)
        except BaseException:
            await self._close(started)
            raise
        if self.reports is not None:
            self.tasks.start(self.reports.run(), name="tls-reports")

    async def close(self) -> None:
        """Close all of it, once the last session has ended."""
        await self._close(self.pipelines.values())

    async def _close(self, pipelines: Iterable[Pipeline]) -> None:
        await self.tasks.cancel()
        for pipeline in pipelines:
            await pipeline.close()
        for store in self.ldap:
            await store.close()
        await self.hosts.close()
        await self.transports.close()
        await self.resolver.close()

    def desk(self, spool: Inlet, clock: Clock, ring: Callable[[], None]) -> Desk:
        """What the front door's sessions work with."""
        config = self.config.digest
        return Desk(self.smtp, self.domains, self.pipelines, spool, clock, ring, config, self.tenancy)


@dataclass(frozen=True, slots=True)
class Foundations:
    """What all pipelines of a configuration are made with."""

    services: Services
    catalog: Catalog
    deadlines: StageDeadlines
    slots: asyncio.Semaphore

    def load(self, name: str, entries: Sequence[Any]) -> Pipeline:
        """Raises `PipelineError`."""
        return load(
            name,
            entries,
            self.services,
            known=self.catalog,
            deadlines=self.deadlines,
            worker_slots=self.slots,
        )


Build = Callable[[Config, Foundations], dict[str, Pipeline]]


def make_parts(
    config: Config,
    state: State,
    clock: Clock,
    lines: Lines | None = None,
    outbox: Outbox | None = None,
    *,
    build: Build | None = None,
) -> Parts:
    """Build everything; nothing is started or opened. Raises `ConfigError`.

    `lines` and `outbox` are there in a worker only; `build` makes other pipelines than those of the configuration.
    """
    resolver = make_resolver(config, clock)
    delivery = delivery_options(config)
    wanted = config.outbound_tls.reports
    results = Results(state, clock) if wanted else None
    policies = make_policies(config, resolver, state, clock)
    transports = Transports(delivery, resolver, clock, policies=policies, results=results)
    reports = make_reports(config, resolver, state, clock, outbox or NoOutbox()) if wanted else None
    domains = Domains({name: _domain(config, name, domain, clock) for name, domain in config.domains.items()})
    ldap = _ldap(config, resolver)
    hosts = MailHosts(config.hostname, resolver, clock)
    router = make_router(config)
    services = Services(
        resolver,
        state,
        clock,
        Directory(domains, router, transports, {n: _store(d) for n, d in config.domains.items()}, ldap),
        config.authserv_id,
        config.hostname,
        lines or NoLines(),
        outbox or NoOutbox(),
        hosts,
    )
    deadlines = StageDeadlines(**config.deadlines.model_dump())
    foundations = Foundations(services, catalog_of(config), deadlines, asyncio.Semaphore(_WORKER_LOOKUPS))
    pipelines = (build or _pipelines)(config, foundations)
    # Domains with the same directory share its connections.
    shared = tuple({id(store): store for store in ldap.values()}.values())
    return Parts(
        config,
        router,
        transports,
        resolver,
        domains,
        pipelines,
        smtp_options(config),
        hosts,
        shared,
        bounce_options(config, domains),
        return_paths(config, domains, clock),
        OwnSigner(pipelines),
        reports,
    )


_RULES: Final = {
    RecipientCheck.ANY: RecipientRule.ANY,
    RecipientCheck.LIST: RecipientRule.LISTED,
    RecipientCheck.CALLOUT: RecipientRule.CALLOUT,
    RecipientCheck.LDAP: RecipientRule.LDAP,
}


def _domain(config: Config, name: str, domain: Any, clock: Clock) -> Domain:
    recipients = domain.recipients if isinstance(domain.recipients, Recipients) else Recipients.model_construct()
    listed: frozenset[str] | None = None
    file: WatchedFile[frozenset[str]] | None = None
    if domain.check is RecipientCheck.LIST:
        listed = domain.listed
        if read := domain.list_read:
            file = WatchedFile(recipients.list_file or "", parse_list, clock, limit=LIST_OCTETS, read=read)
    rule, subaddress = _RULES[domain.check], recipients.subaddress or ""
    by_name = rule in (RecipientRule.LISTED, RecipientRule.LDAP) and not subaddress
    forwards = not by_name and _forwards(config, domain.destination)
    return Domain(name, domain.pipeline or "", rule, listed, file, subaddress, forwards)


def _forwards(config: Config, destination: Destination) -> bool:
    """Whether mail goes to a server, or to a command such as sendmail, which may send it on."""
    if destination.kind is Kind.NAMED:
        destination = config.transports[destination.name].destination(destination.name)
    return destination.kind in (Kind.SMTP, Kind.PIPE)


def _store(domain: Any) -> Store:
    """Who is asked for the domain's recipients, by the name that logs and metrics show."""
    when_down = domain.recipients.when_down if isinstance(domain.recipients, Recipients) else None
    match domain.check:
        case RecipientCheck.CALLOUT:
            several = not isinstance(domain.next_hop, str)
            return Store(str(domain.destination) if several else domain.next_hop, when_down)
        case RecipientCheck.LDAP:
            return Store(str(domain.recipients.ldap.options().servers[0]), when_down)
    return Store()


def _ldap(config: Config, dns: Dns) -> dict[str, LdapStore]:
    async def resolve(host: str) -> list[str]:
        found = await addresses(host, dns, configured=True)
        if isinstance(found, Unreachable):
            raise OSError(found.reply.text)
        return found

    made: dict[LdapOptions, LdapStore] = {}
    stores: dict[str, LdapStore] = {}
    for name, domain in config.domains.items():
        if isinstance(domain.recipients, Recipients) and domain.recipients.ldap:
            options = domain.recipients.ldap.options()
            if options not in made:
                made[options] = LdapStore(options, resolve)
            stores[name] = made[options]
    return stores


def implied(config: Config, entries: tuple[Any, ...]) -> tuple[Any, ...]:
    """The entries, with the recipient plugin in front unless the operator placed it.

    What `domains.X.recipients` says always holds, whatever the pipeline is.
    """
    named = any(e == RECIPIENT_PLUGIN or (isinstance(e, dict) and RECIPIENT_PLUGIN in e) for e in entries)
    if named or all(d.check is RecipientCheck.ANY for d in config.domains.values()):
        return entries
    return (RECIPIENT_PLUGIN, *entries)


def catalog_of(config: Config) -> Catalog:
    """What may stand in its pipelines: all that is installed, and what its `policy_folder` holds now.

    Raises `ConfigError`.
    """
    try:
        installed = Catalog.installed()
        if config.policy_folder is None:
            return installed
        # Whoever can write the configuration decides what runs here anyway.
        owners = {os.geteuid(), os.stat(config.file).st_uid}
        return installed.with_files(read_folder(config.policy_folder, owners))
    except PipelineError as error:
        raise ConfigError([config.problem(("pipeline",), error.message)]) from error
    except OSError as error:
        raise ConfigError([config.problem((), f"cannot be read: {error.strerror}")]) from error
    except FolderError as error:
        raise ConfigError([_of_folder(config, problem) for problem in error.problems]) from error


def _of_folder(config: Config, problem: FolderProblem) -> Problem:
    """A problem with a file where it stands in that file; with the folder, where it is named."""
    if not problem.line:
        return config.problem(("policy_folder",), f"{problem.file} {problem.message}")
    return Problem(problem.file, problem.line, "", problem.message, problem.column)


def _pipelines(config: Config, foundations: Foundations) -> dict[str, Pipeline]:
    made: dict[str, Pipeline] = {}
    problems: list[Problem] = []
    for name, given in config.all_pipelines.items():
        entries = implied(config, given)
        try:
            made[name] = foundations.load(name, entries)
        except PipelineError as error:
            problems += config.pipeline_problems(name, error, before=len(entries) - len(given))
    if problems:
        raise ConfigError(problems)
    return made


def notices(config: Config, pipelines: Mapping[str, Pipeline]) -> list[Problem]:
    """Options that are going and that the file still sets, with their lines, in its order; each with what to do."""
    found = config.notices
    for name, given in config.all_pipelines.items():
        before = len(implied(config, given)) - len(given)
        found += config.pipeline_notices(name, pipelines[name].notices, before=before)
    return sorted(found)


def log_notices(config: Config, pipelines: Mapping[str, Pipeline]) -> None:
    """Write them to the log."""
    for notice in notices(config, pipelines):
        _log.warning("config.deprecated", file=notice.file, line=notice.line, key=notice.path, reason=notice.message)


def load_pipelines(config: Config) -> dict[str, Pipeline]:
    """All pipelines by name, not started: for `gatepost check` and `gatepost pipeline`. Raises `ConfigError`.

    Also raised for what the transports' commands need and this machine has not.
    """
    clock = SystemClock()
    made = dict(make_parts(config, SqliteState(Path(config.state.path), clock), clock).pipelines)
    lacking = [
        config.problem(("transports", name, "pipe", *path), message)
        for name, entry in config.transports.items()
        if entry.pipe is not None
        for path, message in entry.pipe.problems_here()
    ]
    if lacking:
        raise ConfigError(lacking)
    return made


def smtp_options(config: Config) -> SmtpOptions:
    """What all listeners share."""
    return SmtpOptions(
        config.hostname,
        config.authserv_id,
        Limits(**config.limits.model_dump()),
        Timeouts(**config.timeouts.model_dump(exclude={"drain_delay"})),
        Newlines(config.bare_newline),
        Networks(config.relay_from),
        bounces=config.bounces.to == "proven",
        srs=config.srs.scheme if config.srs else None,
        split=Split(config.split),
        split_refused=SplitRefused(config.split_refused),
        address_literals=config.routes.address_literals,
    )


def listener_options(listener: Any, name: str) -> ListenerOptions:
    """One listener; `name` is its address as bound. Raises OSError or ValueError for bad certificate files."""
    tls: ssl.SSLContext | None = None
    mode = TlsMode.STARTTLS
    if listener.tls is not None:
        tls = tls_context(
            listener.tls.certificate,
            listener.tls.key,
            listener.tls.client_ca or "",
            required=listener.tls.client_certificate == "require",
        )
        mode = TlsMode(listener.tls.mode)
    return ListenerOptions(
        name,
        listener.pipeline,
        tls,
        mode,
        Networks(listener.proxy_protocol.trusted if listener.proxy_protocol else ()),
        Networks(listener.xclient.trusted if listener.xclient else ()),
        requiretls=listener.tls is not None and listener.tls.requiretls,
    )


def retry_options(config: Config) -> RetryOptions:
    return config.retry.options()


def bounce_options(config: Config, domains: Domains) -> BounceOptions:
    """The postmaster is the one who is named, or that of our own name or first domain."""
    bounces = config.bounces
    return BounceOptions(
        parse_mailbox(bounces.address) if bounces.address else None,
        Ret.FULL if bounces.returned == "full" else Ret.HEADERS,
        Double(bounces.double),
        parse_mailbox(bounces.postmaster) if bounces.postmaster else domains.postmaster(config.hostname),
    )


def return_paths(config: Config, domains: Domains, clock: Clock) -> Rewriting:
    """VERP and SRS. Ours is what we take mail for, our own name, and what `srs.keep` names."""
    keep = (*config.srs.keep, config.srs.domain, config.hostname) if config.srs else ()
    kept = Domains({name: Domain(name) for name in keep})

    def ours(address: Address) -> bool:
        return domains.find(address) is not None or kept.find(address) is not None

    verp = config.verp.scheme if config.verp else None
    return Rewriting(ours, clock.now, verp, config.srs.scheme if config.srs else None)


def scheduler_options(config: Config) -> SchedulerOptions:
    """Bounds of the scheduler of one worker."""
    named = {name: own.options(config.queue, config.retry, config.workers) for name, own in config.destinations.items()}
    return SchedulerOptions(config.queue.active, pace=config.queue.pace(), named=named)


def name_of(sock: socket.socket) -> str:
    """``host:port`` as bound."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
