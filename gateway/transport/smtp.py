"""The SMTP and LMTP transport: connections to a destination, kept and used again, and what became of each recipient.

*Promises*: content is sent again silently only when it was never sent: a kept connection that turns out dead before
MAIL was answered is replaced once by a fresh one; once the final dot may have left, a lost connection is a deferral.

*Fails by*: outcomes. Only the content itself (the spool) can raise out of `deliver`; the dot is not sent then.

*RFCs*: 5321, 2033, 3207, 6531 section 3.3, 8689 section 5 (TLS-Required).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from gateway.mail.address import NULL_SENDER, Address, Sender
from gateway.mail.envelope import Recipient
from gateway.mail.reply import Reply
from gateway.sdk.services import Callout, CalloutState, Dns
from gateway.transport import callout, commands
from gateway.transport.approach import Approach, Rules
from gateway.transport.client import Finished
from gateway.transport.connection import Connection
from gateway.transport.content import says_not_required, stuff, whole
from gateway.transport.hosts import Exchangers, Located, Unreachable
from gateway.transport.opening import Caller, Opener
from gateway.transport.options import EightBit, SmtpOptions
from gateway.transport.policies import Policies
from gateway.transport.protection import Protection
from gateway.transport.rule import NOT_REQUIRED
from gateway.transport.tls import Contexts
from gateway.transport.tlsresults import Results
from gateway.transport.transport import Delivery, Destination, Fault, Outcome, Result, Security, Server

_T = TypeVar("_T")

SMALL: Final = 256 << 10
"""Content up to this many octets is made ready before MAIL, so that it leaves in one write when 354 comes."""

_NEEDS_UTF8: Final = Reply(553, "6.7", "the address needs SMTPUTF8, which the next hop does not offer")
_NEEDS_8BIT: Final = Reply(554, "6.3", "the content is 8-bit, and the next hop does not offer 8BITMIME")


_RELAXED: Final = (Security.OPPORTUNISTIC, Security.DANE)
_PUBLISHED: Final = ("dane", "dane-unusable", "mta-sts")


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
        self._several = len(destination.servers) > 1
        self._approach = Approach(destination, options, dns, self._rng)
        self._idle: list[Connection] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._opener = Opener(destination, options, contexts or Contexts(), results)
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
            self._opener.end(connection)
        self._idle.clear()
        await self._opener.ended()

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
        found = await self._approach.find() if self._several else None
        kept = None if relaxed else self._take(found)
        if kept is not None:
            result = await self._use(kept, work)
            if result is not None:
                return result
        found = found or await self._approach.find()
        if isinstance(found, Unreachable):
            return found
        fresh = await self._connect(found, relaxed=relaxed, quiet=quiet or relaxed)
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

    def _take(self, found: Exchangers | Unreachable | None) -> Connection | None:
        """A kept connection: where there are several servers, to the one whose turn it is."""
        turn = found.groups[0][0] if isinstance(found, Exchangers) else None
        now = asyncio.get_running_loop().time()
        for connection in reversed(self._idle):
            if turn is None or connection.server == turn:
                self._idle.remove(connection)
                if connection.usable and now < connection.idle_until:
                    return connection
                self._opener.end(connection)
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
            self._opener.end(connection)
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
                self._opener.end(connection)
        self._idle = keep
        self._sweeper = loop.call_at(keep[0].idle_until, self._sweep) if keep else None

    async def _connect(self, found: Exchangers, *, relaxed: bool, quiet: bool) -> Connection | Unreachable:
        """A connection that is ready for MAIL: to the first host and address that works."""
        if self._idle and not self._opener.has_room():
            # Kept connections to other servers of the destination.
            self._opener.end(self._idle.pop(0))

        async def rules(server: Server, located: Located, found: Exchangers) -> Rules | Unreachable:
            if relaxed:
                return NOT_REQUIRED
            return await self._protection.rules(server.host, located, found, port=server.port, quiet=quiet)

        return await self._approach.connect(rules, Caller(self._opener, quiet), found)


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
