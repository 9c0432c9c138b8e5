"""The SMTP and LMTP transport: connections to a destination, kept and used again, and what became of each recipient.

*Promises*: content is sent again silently only when it was never sent: a kept connection that turns out dead before
MAIL was answered is replaced once by a fresh one; once the final dot may have left, a lost connection is a deferral.

*Fails by*: outcomes. Only the content itself (the spool) can raise out of `deliver`; the dot is not sent then.

*RFCs*: 5321, 2033, 3207, 8689 (REQUIRETLS, TLS-Required).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from gateway.mail.address import NULL_SENDER, Address, Sender
from gateway.mail.envelope import Origin, Recipient
from gateway.sdk.services import Callout, CalloutState, Dns
from gateway.transport import callout
from gateway.transport.approach import Approach, Rules
from gateway.transport.connection import Connection
from gateway.transport.content import says_not_required
from gateway.transport.hosts import Exchangers, Located, Unreachable, deferred
from gateway.transport.opening import Caller, Opener
from gateway.transport.options import Proxy, SmtpOptions
from gateway.transport.parcel import Parcel
from gateway.transport.policies import Policies
from gateway.transport.protection import Protection
from gateway.transport.rule import CLEAR, NOT_REQUIRED, STRICT_POLICY, Demand
from gateway.transport.tls import Contexts
from gateway.transport.tlsresults import Results
from gateway.transport.transport import Delivery, Destination, Kind, Outcome, Security, Server, keeping

_T = TypeVar("_T")

_RELAXED: Final = (Security.OPPORTUNISTIC, Security.DANE)
_PUBLISHED: Final = ("dane", "dane-unusable", "mta-sts")
_FRESH: Final = 2
"""Fresh connections for one piece of work: one may turn out to know less than its host says."""


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
        self._hop = destination.hop
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
        parcel = Parcel(delivery, self._hop, self._options.hostname)
        await parcel.prepare()
        step = self._options.recipients_per_message
        outcomes: list[Outcome] = []
        demand = Demand.STRICT if delivery.parameters.requiretls else Demand.USUAL
        # Reports on TLS say it, and would otherwise be what the next one reports.
        quiet = self._results is not None and await says_not_required(delivery.content)
        with keeping(outcomes):
            for start in range(0, len(delivery.recipients), step):
                ran = await self._attempt(delivery, delivery.recipients[start : start + step], parcel, demand, quiet)
                if isinstance(ran, Unreachable):
                    outcome = Outcome(ran.result, ran.reply, ran.host, ran.replied, ran.fault, tls_policy=ran.policy)
                    # What holds for the first group would hold for the rest; do not wait for it again.
                    return outcomes + [outcome] * (len(delivery.recipients) - start)
                outcomes += ran
        return outcomes

    async def _attempt(
        self, delivery: Delivery, group: Sequence[Recipient], parcel: Parcel, demand: Demand, quiet: bool
    ) -> list[Outcome] | Unreachable:
        """One transaction."""

        async def send(connection: Connection) -> list[Outcome] | None:
            sent = await parcel.send(connection, group)
            if not parcel.chunking:
                self._hop = replace(self._hop, chunking=False)
            return sent

        ran = await self._run(send, delivery.origin, demand, quiet=quiet)
        relaxes = isinstance(ran, Unreachable) and demand is Demand.USUAL and self._may_relax(ran)
        if relaxes and await says_not_required(delivery.content):
            ran = await self._run(send, delivery.origin, Demand.RELAXED)
        return ran

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
        self,
        work: Callable[[Connection], Awaitable[_T | None]],
        origin: Origin | None = None,
        demand: Demand = Demand.USUAL,
        *,
        quiet: bool = False,
    ) -> _T | Unreachable:
        """Do `work` on a kept connection or a fresh one; again on a fresh one when it gives None: nothing was done.

        The connection is one on which we speak, or may begin to speak, for `origin`.

        Where the `demand` is relaxed, published policies do not count. With any but the usual one, the connection
        serves nobody else, and with `quiet` too, sessions are not counted for reports.
        """
        found = await self._approach.find() if self._several else None
        kept = self._take(found, origin) if demand is Demand.USUAL else None
        if kept is not None:
            result = await self._use(kept, work)
            if result is not None:
                return result
        for _ in range(_FRESH):
            found = found or await self._approach.find()
            if isinstance(found, Unreachable):
                return found
            fresh = await self._connect(found, origin, demand, quiet=quiet or demand is not Demand.USUAL)
            if isinstance(fresh, Unreachable):
                return fresh
            result = await self._use(fresh, work)
            if result is not None:
                return result
        return deferred("5.0", "it does not take what it offers", self._destination.host)

    async def _use(self, connection: Connection, work: Callable[[Connection], Awaitable[_T | None]]) -> _T | None:
        try:
            result = await work(connection)
        except BaseException:
            # Cancelled, or the content could not be read: the peer must see no final dot.
            connection.abort()
            raise
        self._give_back(connection)
        return result

    def _take(self, found: Exchangers | Unreachable | None, origin: Origin | None) -> Connection | None:
        """A kept connection: where there are several servers, to the one whose turn it is."""
        turn = found.groups[0][0] if isinstance(found, Exchangers) else None
        now = asyncio.get_running_loop().time()
        for connection in reversed(self._idle):
            if not connection.usable or now >= connection.idle_until:
                self._idle.remove(connection)
                self._opener.end(connection)
            elif (turn is None or connection.server == turn) and self._serves(connection, origin):
                self._idle.remove(connection)
                return connection
        return None

    def _serves(self, connection: Connection, origin: Origin | None) -> bool:
        """Whether mail from `origin` may go over a kept connection, for which something else may have been said."""
        hop = self._hop
        if not hop.xclient and hop.proxy is Proxy.NONE:
            return True
        if hop.xclient and origin is not None and "XCLIENT" in connection.offered:
            return True
        return connection.origin == origin or (connection.origin is None and hop.xclient)

    def _give_back(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        self._opener.remember(connection)
        once = connection.rule in NOT_REQUIRED or connection.rule.policy == STRICT_POLICY
        if (
            self._closed
            or once
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

    async def _connect(
        self, found: Exchangers, origin: Origin | None, demand: Demand, *, quiet: bool
    ) -> Connection | Unreachable:
        """A connection that is ready for MAIL: to the first host and address that works."""
        if self._idle and not self._opener.has_room():
            # Kept connections to other servers of the destination, or in the name of other clients.
            self._opener.end(self._idle.pop(0))

        async def rules(server: Server, located: Located, found: Exchangers) -> Rules | Unreachable:
            if server.path:
                relays = demand is Demand.STRICT and self._destination.kind is Kind.SMTP
                return (replace(CLEAR, policy=STRICT_POLICY) if relays else CLEAR,)
            match demand:
                case Demand.RELAXED:
                    return NOT_REQUIRED
                case Demand.STRICT:
                    return await self._protection.strict(server.host, located, found, port=server.port)
            return await self._protection.rules(server.host, located, found, port=server.port, quiet=quiet)

        return await self._approach.connect(rules, Caller(self._opener, quiet, origin), found)
