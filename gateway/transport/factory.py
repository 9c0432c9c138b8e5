"""All transports of a process: one per destination, made when it is first needed.

*Promises*: bounded: the transport that was not used for the longest time is closed when there are too many.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from typing import Final

from gateway.mail.address import NULL_SENDER, Address, Sender
from gateway.sdk.services import Callout, CalloutState, Clock, Dns
from gateway.services.tasks import Tasks
from gateway.transport.discard import DiscardTransport
from gateway.transport.maildir import MaildirTransport
from gateway.transport.mbox import MboxTransport
from gateway.transport.options import PipeOptions, SmtpOptions, WebhookOptions
from gateway.transport.pipe import PipeTransport
from gateway.transport.policies import Policies
from gateway.transport.smtp import SmtpTransport
from gateway.transport.tls import Contexts
from gateway.transport.tlsresults import Results
from gateway.transport.transport import Destination, Kind, Transport

MAX_TRANSPORTS: Final = 1000


class Transports:
    """Gives the transport of a destination."""

    def __init__(
        self,
        options: SmtpOptions,
        dns: Dns,
        clock: Clock,
        *,
        rng: random.Random | None = None,
        limit: int = MAX_TRANSPORTS,
        policies: Policies | None = None,
        results: Results | None = None,
    ) -> None:
        self._options = options
        self._dns = dns
        self._clock = clock
        self._rng = rng or random.Random()
        self._limit = limit
        self._transports: OrderedDict[Destination, Transport] = OrderedDict()
        self._contexts = Contexts()
        self._policies = policies
        self._results = results
        self._tasks = Tasks()

    def for_destination(self, destination: Destination) -> Transport:
        """The transport; it stays usable when it is evicted, but keeps no connection then."""
        found = self._transports.get(destination)
        if found is not None:
            self._transports.move_to_end(destination)
            return found
        made = self._transports[destination] = self._make(destination)
        if len(self._transports) > self._limit:
            _, oldest = self._transports.popitem(last=False)
            self._tasks.start(oldest.close(), name="transport.close")
        return made

    async def verify(self, destination: Destination, address: Address, sender: Sender = NULL_SENDER) -> Callout:
        """Ask the destination whether it would take the recipient. What is no server takes everybody."""
        transport = self.for_destination(destination)
        if isinstance(transport, SmtpTransport):
            return await transport.verify(address, sender)
        return Callout(CalloutState.EXISTS, f"{destination.kind} takes every recipient")

    async def close(self) -> None:
        """Close all; deliveries under way end first, without keeping their connections."""
        transports = list(self._transports.values())
        self._transports.clear()
        for transport in transports:
            self._tasks.start(transport.close(), name="transport.close")
        await self._tasks.wait()
        if self._policies is not None:
            await self._policies.close()
        if self._results is not None:
            await self._results.close()

    def _make(self, destination: Destination) -> Transport:
        hostname = self._options.hostname
        match destination.kind:
            case Kind.DISCARD:
                return DiscardTransport()
            case Kind.MAILDIR:
                return MaildirTransport(destination, hostname, self._clock)
            case Kind.MBOX:
                return MboxTransport(destination, hostname, self._clock)
            case Kind.PIPE if isinstance(destination.options, PipeOptions):
                return PipeTransport(destination.options, hostname, self._clock)
            case Kind.HTTP if isinstance(destination.options, WebhookOptions):
                # Its HTTP client takes a while to import, and most gateways never need it.
                from gateway.transport.webhook import WebhookTransport

                return WebhookTransport(destination.options, self._options, self._dns, self._clock)
            case Kind.SMTP | Kind.LMTP:
                return SmtpTransport(
                    destination,
                    self._options,
                    self._dns,
                    self._rng,
                    contexts=self._contexts,
                    policies=self._policies,
                    results=self._results,
                )
        raise ValueError(f"{destination} has no transport")
