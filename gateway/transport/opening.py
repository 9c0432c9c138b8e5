"""Opening connections to the servers of one destination: TCP or a unix socket, the greeting, EHLO, TLS by rule.

*Fails by*: `Unreachable` values.

*RFCs*: 5321 section 3.1 (who greets with 554), 7504 (521 and 556), 3207 (STARTTLS), 4954 (AUTH), 7435 (in the clear
where TLS fails), 8689 section 4.2.1 (REQUIRETLS).
"""

from __future__ import annotations

import asyncio
import errno
import ssl
import time
from dataclasses import dataclass, replace
from typing import Final

from gateway.mail.envelope import Origin
from gateway.ops import log, metrics
from gateway.transport.approach import Place, Rules
from gateway.transport.client import Codec
from gateway.transport.connection import Connection
from gateway.transport.credentials import locked_out, read_login
from gateway.transport.events import Broken, Refused, Signal, Unauthenticated
from gateway.transport.hosts import Unreachable, deferred, failed
from gateway.transport.options import Proxy, SmtpOptions
from gateway.transport.rule import CLEAR, STRICT_POLICY, Failure, Level, Rule, TlsFailed
from gateway.transport.sasl import Login
from gateway.transport.sessions import Sessions
from gateway.transport.tls import Contexts
from gateway.transport.tlsresults import Results, Session
from gateway.transport.transport import Destination, Fault, Kind, Result

_log = log.get()

_IN_THE_CLEAR: Final = TlsFailed("it does not offer STARTTLS", Failure.NO_STARTTLS)

# What connect() says when it is this machine that has no more to give.
_OUR_TROUBLE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


class Opener:
    """Opens connections, and knows how many there are."""

    def __init__(
        self, destination: Destination, options: SmtpOptions, contexts: Contexts, results: Results | None
    ) -> None:
        self._destination = destination
        self._options = options
        self._contexts = contexts
        self._results = results
        self._sessions = Sessions(time.monotonic)
        self._open: set[Connection] = set()
        self._ending: set[Connection] = set()
        self._dialing = 0

    def has_room(self) -> bool:
        """Whether there may be one more connection beside those there are."""
        self._forget_ended()
        return self._dialing + len(self._open) < self._options.connections

    def _forget_ended(self) -> None:
        self._open = {connection for connection in self._open if not connection.is_ended}

    def end(self, connection: Connection) -> None:
        """Say QUIT, and let it end."""
        self._ending = {c for c in self._ending if not c.is_ended}
        connection.quit()
        if not connection.is_ended:
            self._ending.add(connection)

    async def ended(self) -> None:
        """Wait until all that were told to end have ended."""
        for connection in list(self._ending):
            await connection.ended()
        self._ending.clear()

    def remember(self, connection: Connection) -> None:
        """Keep its TLS session for a later connection."""
        if connection.tls:
            key = (connection.rule, connection.host, connection.address)
            self._sessions.keep(key, connection.session, resumed=connection.resumed)

    async def greet(
        self, place: Place, rules: Rules, connection: Connection, *, quiet: bool
    ) -> Connection | Unreachable:
        """Wait until MAIL can be said to the host that `connection` leads to.

        Where TLS fails by one rule, the next is tried on a new connection. What goes through a unix socket does not
        leave the machine, so there is no TLS.
        """
        name, address = place.server.path or place.server.host, place.address
        trouble: Unreachable | None = None
        for number, rule in enumerate(rules):
            dialled = await self.dial(place, rule, connection.origin) if number else connection
            found = dialled if isinstance(dialled, Unreachable) else await self._hello(name, rule, dialled)
            if isinstance(found, TlsFailed) and self._sessions.forget((rule, name, address)):
                # It may be the session that the peer could not take up.
                again = await self.dial(place, rule, connection.origin)
                found = again if isinstance(again, Unreachable) else await self._hello(name, rule, again)
            if not number and not quiet:
                self._report(name, address, rule, found)
            if isinstance(found, Connection):
                if rule.policy == STRICT_POLICY and self._destination.kind is Kind.SMTP:
                    if "REQUIRETLS" not in found.offered:
                        self.end(found)
                        return _not_strict(name, "it does not offer REQUIRETLS")
                if found.resumed:
                    metrics.TLS_RESUMED.labels(rule.policy).inc()
                _count(rule, ("authenticated" if found.peer else "encrypted") if found.tls else "clear")
                return found
            if isinstance(found, Unreachable):
                return found
            _count(rule, found.failure.value)
            _log.debug("tls.failed", host=name, reason=found.problem, policy=rule.policy, failure=found.failure.value)
            if rule.policy == STRICT_POLICY and found.failure is Failure.NO_STARTTLS:
                return _not_strict(name, found.problem)
            trouble = deferred(
                "7.5", f"TLS with {name} failed ({rule.policy}): {found.problem}", name, policy=rule.policy
            )
        assert trouble is not None
        return trouble

    async def dial(self, place: Place, rule: Rule, origin: Origin | None = None) -> Connection | Unreachable:
        """Connect to one address or unix socket; the codec will ask for TLS if the rule does.

        With PROXY headers it is `origin` for whom the connection speaks.
        """
        name = place.server.path or place.server.host
        context = await self._context(name, rule)
        if isinstance(context, Unreachable):
            return context
        try:
            credentials = self._destination.hop.auth
            login = await asyncio.to_thread(read_login, credentials) if credentials else None
        except (OSError, ValueError) as error:
            assert credentials is not None
            return locked_out(credentials, name, Unauthenticated(str(error)), Fault.OURS)
        try:
            connection = await self._dial(place, context is not None, origin, login)
        except TimeoutError:
            return deferred("4.1", f"connect to {place.address or name}: no answer in time", name)
        except OSError as error:
            text = f"connect to {place.address or name}: {error.strerror or error}"
            if error.errno in _OUR_TROUBLE:
                return deferred("3.0", text, fault=Fault.OURS)
            return deferred("4.1", text, name)
        self._forget_ended()
        self._open.add(connection)
        return connection

    async def _context(self, name: str, rule: Rule) -> ssl.SSLContext | Unreachable | None:
        if rule.level is Level.NONE:
            return None
        try:
            return await self._contexts.get(rule)
        except OSError as error:
            return deferred("7.5", f"tls_ca cannot be used: {error.strerror or error}", name, fault=Fault.OURS)

    async def _hello(self, name: str, rule: Rule, connection: Connection) -> Connection | Unreachable | TlsFailed:
        try:
            context = await self._context(name, rule)
            if isinstance(context, Unreachable):
                connection.abort()
                return context
            session = self._sessions.find((rule, name, connection.address))
            event = await connection.hello(context, rule, session)
        except BaseException:
            connection.abort()
            raise
        if isinstance(event, TlsFailed):
            return replace(event, local=connection.local)
        credentials = self._destination.hop.auth
        if isinstance(event, Unauthenticated):
            assert credentials is not None
            return locked_out(credentials, name, event)
        if isinstance(event, Refused):
            # It is not the message that was refused. A next hop of our own configuration may refuse us by mistake,
            # ours or its own; a public host that takes no mail means it (RFC 7504).
            final = event.reply.permanent and (self._destination.mx or self._destination.literal)
            result, fault = (Result.FAILED, Fault.PEER) if final else (Result.DEFERRED, Fault.CONNECT)
            return Unreachable(result, event.reply, fault, name, replied=True)
        if isinstance(event, Broken):
            return deferred("4.2", f"{name}: {connection.problem or event.problem}", name)
        assert event is Signal.READY
        if rule.level >= Level.ANY and not connection.tls:
            offered = "STARTTLS" in connection.offered
            self.end(connection)
            problem = "it refuses STARTTLS" if offered else "it does not offer STARTTLS"
            return TlsFailed(problem, Failure.NO_STARTTLS, connection.local)
        if credentials is not None:
            metrics.AUTH_OUT.labels("ok").inc()
        return connection

    def _report(self, host: str, address: str, rule: Rule, found: Connection | Unreachable | TlsFailed) -> None:
        """Count a session for the domain's report: what came of the first rule, whatever is done by the next."""
        domain = self._destination.host
        if self._results is None or not self._destination.mx or rule is CLEAR or isinstance(found, Unreachable):
            return
        if isinstance(found, Connection) and found.tls:
            session = Session(domain, rule.applied)
        else:
            failed = found if isinstance(found, TlsFailed) else _IN_THE_CLEAR
            local = found.local
            session = Session(domain, rule.applied, failed.failure, failed.problem, host, address, local)
        self._results.count(session)

    async def _dial(self, place: Place, wants_tls: bool, origin: Origin | None, login: Login | None) -> Connection:
        options, server = self._options, place.server
        loop = asyncio.get_running_loop()
        codec = Codec(options.hostname, lmtp=self._destination.kind is Kind.LMTP, wants_tls=wants_tls, login=login)
        proxy = Proxy.NONE if server.path else self._destination.hop.proxy
        speaks_for = origin if proxy is not Proxy.NONE else None

        def make() -> Connection:
            host = "localhost" if server.path else server.host
            return Connection(codec, options.timeouts, host, proxy=proxy, origin=speaks_for)

        self._dialing += 1
        try:
            async with asyncio.timeout(options.timeouts.connect):
                if server.path:
                    _, connection = await loop.create_unix_connection(make, server.path)
                else:
                    _, connection = await loop.create_connection(make, place.address, server.port)
        finally:
            self._dialing -= 1
        connection.server, connection.address = server, place.address
        return connection


@dataclass(frozen=True, slots=True)
class Caller:
    """Implements `gateway.transport.approach.Caller` for one attempt, at mail from `origin`.

    With `quiet`, nothing is counted for reports.
    """

    opener: Opener
    quiet: bool = False
    origin: Origin | None = None

    async def dial(self, place: Place, rules: Rules) -> Connection | Unreachable:
        return await self.opener.dial(place, rules[0], self.origin)

    async def greet(self, place: Place, rules: Rules, connection: Connection) -> Connection | Unreachable:
        return await self.opener.greet(place, rules, connection, quiet=self.quiet)

    def has_room(self) -> bool:
        return self.opener.has_room()


def _not_strict(host: str, problem: str) -> Unreachable:
    """The host cannot do what REQUIRETLS asks for (RFC 8689 section 4.2.1)."""
    return replace(failed(550, "7.30", f"REQUIRETLS: {host}: {problem}"), host=host, policy=STRICT_POLICY)


def _count(rule: Rule, result: str) -> None:
    if rule is not CLEAR:
        metrics.TLS_OUT.labels(rule.policy, result).inc()
