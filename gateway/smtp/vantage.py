"""Whether a listener sees its clients, or only a machine before them that passes them on under its own address.

A load balancer, a NAT or a node of a cluster that does so has every filter judge one address for everybody, and makes
an open relay of a network in `relay_from` that holds it. Nothing in a session says that it happens. But honest
neighbours greet by their own names, so a few addresses of no global scope with many names between them are a disguise.
"""

from __future__ import annotations

from typing import Final

from gateway.mail.session import IPAddress, Session
from gateway.ops import log, metrics

_log = log.get()

TRANSACTIONS: Final = 100
"""So many in a row, and none of a client with a global address, before anything is said."""
NAMES: Final = 10
"""So many HELO names at least."""
NAMES_PER_ADDRESS: Final = 4
ADDRESSES: Final = 64
"""More than these are a network of one's own, and no row of proxies."""


class Vantage:
    """What one listener has seen in a worker since the last client with a global address. Bounded in memory."""

    def __init__(self, listener: str) -> None:
        self._listener = listener
        self._transactions = 0
        self._addresses: set[IPAddress] = set()
        self._names: set[str] = set()
        self._gauge = metrics.CLIENTS_HIDDEN.labels(listener)
        self._gauge.set(0)
        self.hidden = False
        """Whether the clients are hidden; `gatepost_clients_hidden` says the same."""

    def note(self, session: Session) -> None:
        """Note a transaction's client, as it is after PROXY and XCLIENT."""
        if session.client.is_global:
            if self._transactions:
                self._begin_anew()
            return
        if self.hidden:
            return
        self._transactions += 1
        if len(self._addresses) <= ADDRESSES:
            self._addresses.add(session.client)
        enough = max(NAMES, NAMES_PER_ADDRESS * len(self._addresses))
        if len(self._names) < enough:
            self._names.add(session.helo.lower())
        if self._transactions >= TRANSACTIONS and len(self._names) >= enough and len(self._addresses) <= ADDRESSES:
            self.hidden = True
            self._gauge.set(1)
            _log.warning(
                "clients.hidden",
                listener=self._listener,
                client=str(session.client),
                addresses=len(self._addresses),
                names=len(self._names),
                trusted=session.trusted,
            )

    def _begin_anew(self) -> None:
        if self.hidden:
            self.hidden = False
            self._gauge.set(0)
            _log.info("clients.seen", listener=self._listener)
        self._transactions = 0
        self._addresses.clear()
        self._names.clear()
