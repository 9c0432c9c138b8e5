"""The SMTP and LMTP transport: connections to a destination, kept and used again, and what became of each recipient.

*Promises*: content is sent again silently only when it was never sent: a kept connection that turns out dead before
MAIL was answered is replaced once by a fresh one; once the final dot may have left, a lost connection is a deferral.

*Fails by*: outcomes. Only the content itself (the spool) can raise out of `deliver`; the dot is not sent then.

*RFCs*: 5321, 2033, 3207, 6531 section 3.3, 8689 section 5 (TLS-Required).
"""

from __future__ import annotations

import asyncio
import errno
import random
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from gateway.mail.address import NULL_SENDER, Address, Sender
from gateway.mail.envelope import Recipient
from gateway.mail.reply import Reply
from gateway.ops import log, metrics
from gateway.sdk.services import Callout, CalloutState, Dns
from gateway.transport import callout, commands, hosts
from gateway.transport.client import Broken, Codec, Finished, Refused, Signal
from gateway.transport.connection import Connection
from gateway.transport.content import says_not_required, stuff, whole
from gateway.transport.hosts import Exchangers, Unreachable, deferred
from gateway.transport.options import EightBit, SmtpOptions
from gateway.transport.policies import Policies
from gateway.transport.protection import Protection
from gateway.transport.rule import CLEAR, NOT_REQUIRED, Failure, Level, Rule, TlsFailed
from gateway.transport.tls import Contexts
from gateway.transport.tlsresults import Results, Session
from gateway.transport.transport import Delivery, Destination, Fault, Kind, Outcome, Result, Security

_log = log.get()
_T = TypeVar("_T")

SMALL: Final = 256 << 10
"""Content up to this many octets is made ready before MAIL, so that it leaves in one write when 354 comes."""

_NEEDS_UTF8: Final = Reply(553, "6.7", "the address needs SMTPUTF8, which the next hop does not offer")
_NEEDS_8BIT: Final = Reply(554, "6.3", "the content is 8-bit, and the next hop does not offer 8BITMIME")


_RELAXED: Final = (Security.OPPORTUNISTIC, Security.DANE)
_PUBLISHED: Final = ("dane", "dane-unusable", "mta-sts")
_IN_THE_CLEAR: Final = TlsFailed("it does not offer STARTTLS", Failure.NO_STARTTLS)

# What connect() says when it is this machine that has no more to give.
_OUR_TROUBLE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


class SmtpTransport:
    """Implements `gateway.transport.transport.Transport` for `Kind.SMTP` and `Kind.LMTP`."""

    def __init__(
        self,
        destination: Destination,
        options: SmtpOptions,
        dns: Dns,
        rng: random.Random | None = None,
        *,
        contexts: Contexts | None = None,
        policies: Policies | None = None,
        results: Results | None = None,
    ) -> None:
        self._destination = destination
        self._options = options
        self._dns = dns
        # Only for the order of equal MX hosts; nothing secret.
        self._rng = rng or random.Random()
        self._idle: list[Connection] = []
        self._ending: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._contexts = contexts or Contexts()
        self._protection = Protection(destination, dns, policies, results)
        self._results = results
        self._closed = False

    async def deliver(self, delivery: Delivery) -> list[Outcome]:
        """Attempt it once; see `gateway.transport.transport.Transport`."""
        content = delivery.content
        payload = stuff(await whole(content)) if content.size <= SMALL else None
        step = self._options.recipients_per_message
        outcomes: list[Outcome] = []
        # Reports on TLS say it, and would otherwise be what the next one reports.
        quiet = self._results is not None and await says_not_required(content)
        for start in range(0, len(delivery.recipients), step):
            group = delivery.recipients[start : start + step]

            async def send(connection: Connection, group: Sequence[Recipient] = group) -> list[Outcome] | None:
                return await _send(connection, delivery, group, payload, self._options.eight_bit)

            ran = await self._run(send, quiet=quiet)
            if isinstance(ran, Unreachable) and self._may_relax(ran) and await says_not_required(content):
                ran = await self._run(send, relaxed=True)
            if isinstance(ran, Unreachable):
                outcome = Outcome(ran.result, ran.reply, ran.host, ran.replied, ran.fault, tls_policy=ran.policy)
                # What holds for the first group would hold for the rest; do not wait for it again.
                return outcomes + [outcome] * (len(delivery.recipients) - start)
            outcomes += ran
        return outcomes

    async def verify(self, address: Address, sender: Sender = NULL_SENDER) -> Callout:
        """Ask whether the next hop would take this recipient: MAIL, RCPT, RSET. Does not raise."""

        async def ask(connection: Connection) -> Callout | None:
            return await callout.ask(connection, address, sender)

        ran = await self._run(ask)
        if isinstance(ran, Unreachable):
            return Callout(CalloutState.UNAVAILABLE, str(ran.reply), down=True)
        return ran

    async def close(self) -> None:
        """Say QUIT on idle connections and wait until they have ended. A delivery under way ends first, unkept."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in self._idle:
            self._end(connection)
        self._idle.clear()
        for connection in list(self._ending):
            await connection.ended()
        self._ending.clear()

    # Connections.

    def _may_relax(self, ran: Unreachable) -> bool:
        """Whether it is what the recipient's domain publishes that was in the way, and not our own configuration."""
        return self._destination.security in _RELAXED and ran.policy in _PUBLISHED

    async def _run(
        self, work: Callable[[Connection], Awaitable[_T | None]], *, relaxed: bool = False, quiet: bool = False
    ) -> _T | Unreachable:
        """Do `work` on a kept connection or a fresh one; on a fresh one too when it gives None (dead already).

        With `relaxed`, published policies do not count, and the connection serves nobody else. With `quiet`, sessions
        are not counted for reports.
        """
        kept = None if relaxed else self._take()
        if kept is not None:
            result = await self._use(kept, work)
            if result is not None:
                return result
        fresh = await self._connect(relaxed=relaxed, quiet=quiet or relaxed)
        if isinstance(fresh, Unreachable):
            return fresh
        result = await self._use(fresh, work)
        assert result is not None
        return result

    async def _use(self, connection: Connection, work: Callable[[Connection], Awaitable[_T | None]]) -> _T | None:
        try:
            result = await work(connection)
        except BaseException:
            # Cancelled, or the content could not be read: the peer must see no final dot.
            connection.abort()
            raise
        self._give_back(connection)
        return result

    def _take(self) -> Connection | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and now < connection.idle_until:
                return connection
            self._end(connection)
        return None

    def _give_back(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        relaxed = connection.rule in NOT_REQUIRED
        if (
            self._closed
            or relaxed
            or not connection.usable
            or connection.messages >= self._options.messages_per_connection
        ):
            self._end(connection)
            return
        connection.idle_until = loop.time() + self._options.max_idle
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._options.max_idle, self._sweep)

    def _sweep(self) -> None:
        """End what was idle for too long. The list is in the order of `idle_until`, for it is a stack."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        keep = [c for c in self._idle if c.usable and now < c.idle_until]
        for connection in self._idle:
            if connection not in keep:
                self._end(connection)
        self._idle = keep
        self._sweeper = loop.call_at(keep[0].idle_until, self._sweep) if keep else None

    def _end(self, connection: Connection) -> None:
        self._ending = {c for c in self._ending if not c.is_ended}
        connection.quit()
        if not connection.is_ended:
            self._ending.add(connection)

    async def _connect(self, *, relaxed: bool, quiet: bool) -> Connection | Unreachable:
        """A connection that is ready for MAIL: the first host and address that works, in order."""
        destination = self._destination
        if destination.path:
            return await self._try(destination.path, "", (CLEAR,), quiet=True)
        found = await self._hosts()
        if isinstance(found, Unreachable):
            return found
        trouble: Unreachable | None = None
        left = self._options.max_addresses
        for name in found.names[:left]:
            if not left:
                break
            located = await hosts.locate(name, self._dns, configured=not destination.mx)
            if isinstance(located, Unreachable):
                trouble = _worse(trouble, located)
                continue
            rules = NOT_REQUIRED if relaxed else await self._protection.rules(name, located, found, quiet=quiet)
            if isinstance(rules, Unreachable):
                trouble = _worse(trouble, rules)
                continue
            for address in located.addresses[:left]:
                left -= 1
                connection = await self._try(name, address, rules, quiet=quiet)
                if isinstance(connection, Connection):
                    return connection
                trouble = _worse(trouble, connection)
        return trouble or deferred("4.1", "no address to connect to")

    async def _hosts(self) -> Exchangers | Unreachable:
        if not self._destination.mx:
            return Exchangers([self._destination.host])
        return await hosts.exchangers(self._destination.host, self._dns, self._options.hostname, self._rng)

    async def _try(self, name: str, address: str, rules: Sequence[Rule], *, quiet: bool) -> Connection | Unreachable:
        """Connect to one address (or, without one, the unix socket `name`) and wait until MAIL can be said.

        Where TLS fails by one rule, the next is tried on a new connection. What goes through a unix socket does not
        leave the machine, so there is no TLS.
        """
        trouble: Unreachable | None = None
        for number, rule in enumerate(rules):
            found = await self._try_rule(name, address, rule)
            if not number and not quiet:
                self._report(name, address, rule, found)
            if isinstance(found, Connection):
                _count(rule, ("authenticated" if found.peer else "encrypted") if found.tls else "clear")
                return found
            if isinstance(found, Unreachable):
                return found
            _count(rule, found.failure.value)
            _log.debug("tls.failed", host=name, reason=found.problem, policy=rule.policy, failure=found.failure.value)
            trouble = deferred(
                "7.5", f"TLS with {name} failed ({rule.policy}): {found.problem}", name, policy=rule.policy
            )
        assert trouble is not None
        return trouble

    async def _try_rule(self, name: str, address: str, rule: Rule) -> Connection | Unreachable | TlsFailed:
        context: ssl.SSLContext | None = None
        if rule.level is not Level.NONE:
            try:
                context = await self._contexts.get(rule)
            except OSError as error:
                return deferred("7.5", f"tls_ca cannot be used: {error.strerror or error}", name, fault=Fault.OURS)
        try:
            connection = await self._dial(name, address, context is not None)
        except TimeoutError:
            return deferred("4.1", f"connect to {address or name}: no answer in time", name)
        except OSError as error:
            text = f"connect to {address or name}: {error.strerror or error}"
            if error.errno in _OUR_TROUBLE:
                return deferred("3.0", text, fault=Fault.OURS)
            return deferred("4.1", text, name)
        try:
            event = await connection.hello(context, rule)
        except BaseException:
            connection.abort()
            raise
        if isinstance(event, TlsFailed):
            return replace(event, local=connection.local)
        if isinstance(event, Refused):
            # It is not the message that was refused. A next hop of our own configuration may refuse us by mistake,
            # ours or its own; a public host that takes no mail means it (RFC 7504).
            final = event.reply.permanent and self._destination.mx
            result, fault = (Result.FAILED, Fault.PEER) if final else (Result.DEFERRED, Fault.CONNECT)
            return Unreachable(result, event.reply, fault, name, replied=True)
        if isinstance(event, Broken):
            return deferred("4.2", f"{name}: {connection.problem or event.problem}", name)
        assert event is Signal.READY
        if rule.level >= Level.ANY and not connection.tls:
            offered = "STARTTLS" in connection.offered
            self._end(connection)
            problem = "it refuses STARTTLS" if offered else "it does not offer STARTTLS"
            return TlsFailed(problem, Failure.NO_STARTTLS, connection.local)
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

    async def _dial(self, name: str, address: str, wants_tls: bool) -> Connection:
        options, destination = self._options, self._destination
        loop = asyncio.get_running_loop()
        codec = Codec(options.hostname, lmtp=destination.kind is Kind.LMTP, wants_tls=wants_tls)

        def make() -> Connection:
            return Connection(codec, options.timeouts, name if address else "localhost")

        async with asyncio.timeout(options.timeouts.connect):
            if address:
                _, connection = await loop.create_connection(make, address, destination.port)
            else:
                _, connection = await loop.create_unix_connection(make, name)
        return connection


def _count(rule: Rule, result: str) -> None:
    if rule is not CLEAR:
        metrics.TLS_OUT.labels(rule.policy, result).inc()


def _worse(old: Unreachable | None, new: Unreachable) -> Unreachable:
    """Of two troubles the one to report: it is for good only when every host said so."""
    if old is not None and old.result is Result.DEFERRED and new.result is Result.FAILED:
        return old
    return new


async def _send(
    connection: Connection,
    delivery: Delivery,
    recipients: Sequence[Recipient],
    payload: bytes | None,
    eight_bit: EightBit,
) -> list[Outcome] | None:
    """One transaction; None when a kept connection was dead before MAIL got an answer."""
    offered, parameters, content = connection.offered, delivery.parameters, delivery.content
    dsn = "DSN" in offered
    if content.eight_bit and eight_bit is EightBit.FAIL and "8BITMIME" not in offered:
        return [Outcome(Result.FAILED, _NEEDS_8BIT, connection.host, fault=Fault.PEER)] * len(recipients)
    mail = commands.mail(delivery.sender, parameters, size=content.size, eight_bit=content.eight_bit, offered=offered)
    cannot = Outcome(Result.FAILED, _NEEDS_UTF8, connection.host, fault=Fault.PEER)
    if mail is None:
        return [cannot] * len(recipients)
    rcpts = [commands.rcpt(r, smtputf8=parameters.smtputf8, offered=offered) for r in recipients]
    lines = [line for line in rcpts if line is not None]
    if not lines:
        return [cannot] * len(recipients)
    kept = connection.messages > 0
    finished = await connection.transact(mail, lines, payload=payload, content=content if payload is None else None)
    if kept and not finished.open and not finished.mail_answered:
        return None
    replies = iter(finished.replies)
    return [_outcome(connection, finished, next(replies), dsn) if line is not None else cannot for line in rcpts]


def _outcome(connection: Connection, finished: Finished, reply: Reply | None, dsn: bool) -> Outcome:
    result, fault, replied = Result.DELIVERED, Fault.NONE, True
    if reply is None:
        result, reply, fault, replied = Result.DEFERRED, connection.silence(finished), Fault.PEER, False
    elif not reply.positive:
        result, fault = Result.DEFERRED if reply.temporary else Result.FAILED, Fault.PEER
    return Outcome(
        result,
        reply,
        connection.host,
        replied,
        fault,
        dsn,
        connection.tls,
        tls_policy=connection.rule.policy,
        tls_peer=connection.peer,
    )
