"""Every option of gatepost.yaml, with its default and its meaning: the one truth for file, schema and reference."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    WithJsonSchema,
    model_validator,
)

from gateway.config.bounces import Bounces, SrsOptions, To, VerpOptions, short_bounces
from gateway.config.cross import DEFAULT_PIPELINE
from gateway.config.destinations import Destinations, QueueOptions, Retry
from gateway.config.document import Document
from gateway.config.operations import Admin, Evacuate, Log, ReloadOptions
from gateway.config.outbound import OutboundTls
from gateway.config.postgres import Postgres, short_postgres
from gateway.config.problems import Path, Problem, dotted
from gateway.config.routes import Domain, Routes
from gateway.config.state import StateStore
from gateway.config.transports import TransportEntry, TransportName
from gateway.config.values import (
    Cidr,
    Count,
    DomainKey,
    DomainName,
    Duration,
    DurationOrNone,
    Endpoint,
    FilePath,
    Flag,
    IpAddress,
    Nameserver,
    ReadableFile,
    Section,
    Size,
    SizeOrNone,
    authorities_problem,
    between,
    key_pair_problem,
    refuse,
    section,
)
from gateway.pipeline.plan import PipelineError
from gateway.sdk.deprecation import Notice
from gateway.sdk.options import parse_duration as seconds
from gateway.sdk.options import parse_size as octets
from gateway.services.dns_options import Dnssec
from gateway.spool.spool import SpoolOptions

WORKERS_MAX = 64


class Role(StrEnum):
    """Who comes in at a listener."""

    EDGE = "edge"


class ListenerTls(Section):
    """TLS on a listener."""

    certificate: ReadableFile
    """PEM file with the certificate and its chain."""
    key: ReadableFile
    """PEM file with the private key, without a passphrase."""
    mode: Literal["starttls", "implicit"] = "starttls"
    """`starttls` offers STARTTLS; `implicit` begins with the handshake."""
    requiretls: Flag = False
    """Offer REQUIRETLS: take mail that may only go on to hosts which protect it as well, and otherwise bounces."""
    client_ca: ReadableFile | None = None
    """PEM file of the CAs by which clients may show certificates. Default: none is asked for."""
    client_certificate: Literal["ask", "require"] = "ask"
    """With `client_ca`: `ask` takes everybody and notes what is shown; `require` breaks off TLS with who shows none by
    these CAs."""

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if problem := key_pair_problem(self.certificate, self.key):
            raise refuse(("certificate",), problem)
        if self.client_ca:
            if problem := authorities_problem(self.client_ca):
                raise refuse(("client_ca",), problem)
        elif "client_certificate" in self.model_fields_set:
            raise refuse(("client_certificate",), "client_ca must say by which CAs")
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """All files that it is made of."""
        return (self.certificate, self.key, *([self.client_ca] if self.client_ca else ()))


class ProxyProtocol(Section):
    """PROXY protocol, version 1 and 2."""

    trusted: tuple[Cidr, ...] = Field(min_length=1)
    """Networks of the proxies: the header is required from these and refused from all others."""


class Xclient(Section):
    """Postfix's XCLIENT command."""

    trusted: tuple[Cidr, ...] = Field(min_length=1)
    """Networks that may use the command; it is offered to nobody else."""


def _role(value: Any) -> Any:
    if value == "submission":
        raise ValueError("a submission listener is not built yet; edge is")
    return value


class Listener(Section):
    """One listening socket."""

    address: Endpoint
    """IP address and port; port 0 takes any free one."""
    role: Annotated[Role, BeforeValidator(_role), WithJsonSchema({"enum": ["edge"]})] = Role.EDGE
    """`edge` takes mail from strangers for our domains."""
    tls: ListenerTls | None = None
    """Without it, TLS is not offered."""
    proxy_protocol: ProxyProtocol | None = None
    """PROXY protocol, version 1 or 2: which networks speak it."""
    xclient: Xclient | None = None
    """XCLIENT: which networks may use it."""
    pipeline: str = "default"
    """`default` is the top-level pipeline; others by their name under `pipelines`."""


class Spool(Section):
    """Where accepted mail lives until it has left."""

    path: FilePath = "./var/spool"
    """Directory; made when it is missing."""
    postgres: Annotated[Postgres, BeforeValidator(short_postgres, json_schema_input_type=str | Postgres)] | None = None
    """Shares the spool with other gateways; `path` then holds large messages while they arrive. Default: not shared."""
    min_free: Size = octets("100MiB")
    """With less free space than this, mail is refused with 452."""
    keep_records: Duration = seconds("7d")
    """How long decision records are kept."""
    keep_records_size: SizeOrNone = octets("4GiB")
    """How much of them is kept, all workers together; the oldest go first. 0 for no bound."""
    record: Flag = True
    """Whether decision records are kept at all."""
    redact: Literal["none", "local-parts"] = "none"
    """What decision records do not hold: `local-parts` of addresses are replaced by keyed hashes."""
    redact_key_file: FilePath | None = None
    """The key of these hashes; made when it is missing. Default: `redact.key` in `path`."""

    def options(self) -> SpoolOptions:
        return SpoolOptions(
            self.path,
            self.min_free,
            self.keep_records,
            self.record,
            self.keep_records_size,
            self.redact != "none",
            self.key_file,
            self.postgres.options() if self.postgres else None,
        )

    @property
    def key_file(self) -> str:
        """Where the redaction key is."""
        return self.redact_key_file or os.path.join(self.path, "redact.key")


class DnsOptions(Section):
    """Where DNS questions go."""

    nameservers: tuple[Nameserver, ...] = ()
    """IP addresses, with a port unless it is 53; none means the system's."""
    timeout: Duration = seconds("5s")
    """For one question, all tries together."""
    dnssec: Dnssec = Dnssec.LOOPBACK
    """Whose word is taken that DNSSEC has validated an answer, which `tls: dane` needs: `loopback` (nameservers on this
    machine, when all are), `trust` (all nameservers) or `off`."""


class Limits(Section):
    """Bounds on what one client, and all of them, may use."""

    message_size: Annotated[Size, between("64KiB", "1GiB")] = octets("50MiB")
    """Largest message, offered as SIZE; 64 KiB at least (RFC 5321 section 4.5.3.1.7)."""
    recipients: Count = 100
    """Recipients of one transaction; the next one gets 452."""
    sessions: Count = 1000
    """Open sessions, all workers together; beyond them 421."""
    sessions_per_client: Annotated[Count, Field(le=65535)] = 50
    """Open sessions of one client address, all workers together (IPv6: of one /64)."""
    header_size: Annotated[Size, between("1KiB", "256KiB")] = octets("256KiB")
    """Largest header section."""
    received_hops: Count = 50
    """Received fields before a message counts as looping (RFC 5321 section 6.3)."""
    errors: Count = 20
    """Bad commands in one session before 421."""
    transactions: Count = 1000
    """Transactions in one session before 421."""
    command_line: Annotated[Size, between("512B", "64KiB")] = 2048
    """Longest command line."""


class Timeouts(Section):
    """How long the front door waits."""

    greeting: Duration = seconds("30s")
    """For the PROXY header."""
    tls_handshake: Duration = seconds("30s")
    """For a TLS handshake."""
    command: Duration = seconds("5m")
    """For the next command (RFC 5321 section 4.5.3.2.7)."""
    data_block: Duration = seconds("3m")
    """For the next block of message content (RFC 5321 section 4.5.3.2.5)."""
    data_total: Duration = seconds("30m")
    """For the whole content of one message."""
    session: Duration = seconds("1h")
    """For a session as a whole."""
    drain: Duration = seconds("30s")
    """Grace for open sessions when the gateway stops."""
    drain_delay: DurationOrNone = 0.0
    """How long new sessions are still taken when the gateway stops, while `/readyz` already says no: for load balancers
    to look elsewhere."""


class Quarantine(Section):
    """Mail that a policy set aside."""

    keep: DurationOrNone = seconds("30d")
    """How long it is kept, counted from when it came; 0 for ever. Then it is dropped, and nobody is told."""


class Deadlines(Section):
    """How long the whole pipeline may take at each stage; then `on_error` decides for what is still missing."""

    connect: Duration = seconds("10s")
    """At connect, before the greeting."""
    helo: Duration = seconds("10s")
    """At HELO or EHLO."""
    mail: Duration = seconds("20s")
    """At MAIL."""
    rcpt: Duration = seconds("20s")
    """At each RCPT."""
    data: Duration = seconds("20s")
    """At DATA, before 354."""
    message: Duration = seconds("60s")
    """After the final dot; clients wait 10 minutes (RFC 5321 section 4.5.3.2.6)."""


Entries = Annotated[tuple[Any, ...], WithJsonSchema({"type": "array", "items": {"type": ["object", "string"]}})]
PipelineName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class Config(Section):
    """A whole configuration file. Made by `gateway.config.load`."""

    hostname: DomainName = Field(default_factory=socket.getfqdn)
    """Our own name, in the greeting, in Received and in EHLO. Default: the machine's."""
    authserv_id: DomainName = Field(default_factory=lambda data: data["hostname"])
    """Our name in Authentication-Results (RFC 8601). Default: `hostname`."""
    workers: Annotated[Count, Field(le=WORKERS_MAX)] = Field(
        default_factory=lambda: min(os.cpu_count() or 1, WORKERS_MAX)
    )
    """Worker processes. Default: one per core."""
    listeners: tuple[Listener, ...] = Field(min_length=1)
    """The listening sockets; one at least."""
    admin: Admin = section()
    """The HTTP side: health, metrics, API."""
    spool: Spool = section()
    """Where accepted mail lives until it has left."""
    state: StateStore = section()
    """Small shared state: rates, verified recipients, greylist."""
    dns: DnsOptions = section()
    """Where DNS questions go."""
    outbound_tls: OutboundTls = section()
    """TLS towards domains whose mail hosts are found by MX."""
    limits: Limits = section()
    """Bounds on what one client, and all of them, may use."""
    timeouts: Timeouts = section()
    """How long the front door waits."""
    split: Literal["defer", "copies"] = "defer"
    """Recipients of one message whose pipelines differ: the later ones come back by themselves (452), or one copy is
    queued for each pipeline."""
    split_refused: Literal["quarantine", "discard"] = "quarantine"
    """What becomes of a recipient's copy that is refused after DATA while others of the same message are taken."""
    bare_newline: Literal["normalize", "reject"] = "normalize"
    """Bare CR and bare LF in a message: made CRLF, or the message refused."""
    pipeline: Entries = ()
    """The default pipeline: plugin and policy entries in judging order."""
    pipelines: dict[PipelineName, Entries] = {}
    """More pipelines, by name."""
    policy_folder: FilePath | None = None
    """Folder whose `*.py` files hold policies and plugins of our own, each offered by its name. Default: none."""
    deadlines: Deadlines = section()
    """How long the whole pipeline may take at each stage."""
    relay_from: tuple[Cidr, ...] = ()
    """Networks that may send to any domain. Default: nobody."""
    domains: dict[DomainKey, Domain] = {}
    """What we take mail for, and where it goes; `.example.org` stands for all subdomains of example.org."""
    transports: dict[TransportName, TransportEntry] = {}
    """Next hops with options of their own, by name: `next_hop: transport:NAME`."""
    routes: Routes = section()
    """Where mail for all other domains goes."""
    own_addresses: tuple[IpAddress, ...] = ()
    """Addresses by which others reach us, besides those that we listen on: of a load balancer, say. A domain whose best
    mail host has one of them is a loop."""
    retry: Retry = section()
    """When a deferred recipient is tried again, and until when."""
    queue: QueueOptions = section()
    """How deliveries share the machine."""
    destinations: Destinations = {}
    """What is different for some destinations: a host or domain, `.example.org` for all below it, or a next hop."""
    quarantine: Quarantine = section()
    """Mail that a policy set aside."""
    bounces: Annotated[Bounces, BeforeValidator(short_bounces, json_schema_input_type=To | Bounces)] = section()
    """What senders and postmaster are told."""
    verp: VerpOptions | None = None
    """Variable envelope return paths: senders that name the recipient. Default: nobody's."""
    srs: SrsOptions | None = None
    """The Sender Rewriting Scheme, for mail of others that is sent on to others. Default: senders stay as they are."""
    log: Log = section()
    """Log events on standard error."""
    evacuate: Evacuate = section()
    """Mail that other gateways take over when this one stops."""
    reload: ReloadOptions = section()
    """Reloading without being asked."""

    _document: Document = PrivateAttr(default_factory=lambda: Document("configuration"))

    def attach(self, document: Document) -> None:
        """Keep the document, for `locate`. Called once by the loader."""
        self._document = document

    @property
    def file(self) -> str:
        """The file it was read from, as the operator named it."""
        return self._document.file

    @property
    def digest(self) -> str:
        """By which file it was: the first digits of the file's SHA-256, as ``sha256sum`` prints them."""
        return self._document.digest

    @property
    def all_pipelines(self) -> dict[str, tuple[Any, ...]]:
        """Every pipeline's raw entries by name, the top-level one as ``default``."""
        return {DEFAULT_PIPELINE: self.pipeline, **self.pipelines}

    def pipeline_problems(self, name: str, error: PipelineError, *, before: int = 0) -> list[Problem]:
        """What the pipeline loader found wrong with the entries of pipeline `name`, with file and line.

        `before` is how many entries were put in front of those that stand in the file.
        """
        return [
            self._problem_inside(self.pipeline_path(name, problem.path, before=before), problem.message, problem.offset)
            for problem in error.problems
        ]

    def pipeline_path(self, name: str, path: Path, *, before: int = 0) -> Path:
        """Where in the file the key `path` of pipeline `name` stands; `before` as for `pipeline_problems`."""
        start: Path = ("pipeline",) if name == DEFAULT_PIPELINE else ("pipelines", name)
        if path and isinstance(path[0], int):
            path = (path[0] - before, *path[1:])
        return (*start, *path)

    def pipeline_notices(self, name: str, notices: Iterable[Notice], *, before: int = 0) -> list[Problem]:
        """Options that are going in the entries of pipeline `name`, with file and line; `before` as above."""
        return [
            self.problem(self.pipeline_path(name, notice.path, before=before), notice.message) for notice in notices
        ]

    @property
    def notices(self) -> list[Problem]:
        """Options that are going elsewhere in the file, with file and line."""
        return [self.problem(notice.path, notice.message) for notice in self._document.notices]

    def _problem_inside(self, path: Path, message: str, offset: int | None) -> Problem:
        """A problem with the character `offset` of the text at `path`, or with all of it."""
        if offset is None or (place := self._document.place(path, offset)) is None:
            return self.problem(path, message)
        return Problem(self.file, place[0], dotted(path), message, place[1])

    def problem(self, path: Path, message: str) -> Problem:
        """A problem with the value at `path`, with the file and line where it stands."""
        return Problem(self.file, self._document.line(path), dotted(path), message)

    def place(self, path: Path, offset: int | None = None) -> tuple[int, int]:
        """Line and column, from 1, of the key at `path` or of the nearest thing around it that stands in the file; with
        `offset`, of that character of its text."""
        if offset is not None and (place := self._document.place(path, offset)) is not None:
            return place
        return self._document.line(path), self._document.columns.get(self._document.known(path), 1)

    def written(self, path: Path) -> bool:
        """Whether the key at `path` stands in the file."""
        return path in self._document.lines

    @property
    def document(self) -> Document:
        """The file as it was read."""
        return self._document

    def locate(self, path: Path) -> str:
        """``file:line`` of the value at `path`, or of the nearest thing around it that stands in the file."""
        return f"{self.file}:{self._document.line(path)}"
