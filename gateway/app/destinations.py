"""Where mail goes, in the words of lists and commands, by the configuration."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Final

from gateway.app.outbound import make_router
from gateway.config import Config, ConfigError, load
from gateway.mail.address import NULL_SENDER, Address, Sender, parse_domain
from gateway.ops import log
from gateway.ops.operations import Selection
from gateway.queue.lane import SUSPENDED
from gateway.spool.hands import Hands, Hop
from gateway.transport.routing import Router, parse_next_hop, parse_own_next_hop
from gateway.transport.transport import Kind

UNKNOWN: Final = "?"
"""What stands for a destination where there is no route."""
_log = log.get()
_BY: Final = "the end of a suspension"


def hop_of(router: Router) -> Hop:
    """Says where a recipient's mail goes, as lists show it; see `gateway.spool.hands.Hop`."""

    def hop(local: str, domain: str, own: str, sender_local: str, sender_domain: str) -> str:
        sender: Sender = Address(sender_local, sender_domain) if sender_local or sender_domain else NULL_SENDER
        try:
            return str(router.resolve(Address(local, domain), own, sender))
        except ValueError:
            return UNKNOWN

    return hop


class Destinations:
    """The destinations of a configuration."""

    def __init__(self, config: Config) -> None:
        self.give_up = config.retry.give_up
        self.keep = config.quarantine.keep
        self._router = make_router(config)
        self.hop = hop_of(self._router)

    def own_next_hop(self, text: str) -> str:
        """A next hop that a message may be given. Raises ValueError."""
        text = text.strip()
        found = parse_own_next_hop(text)
        if found.kind is Kind.NAMED and found.name not in self._router.named:
            raise ValueError(f"there is no transport {found.name!r} in the configuration")
        return text

    def label(self, text: str) -> str:
        """A destination as lists show it, from that or from a next hop as the configuration writes it.

        Raises ValueError.
        """
        text = text.strip()
        scheme, colon, rest = text.partition(":")
        if scheme == "mx":
            if not colon:
                raise ValueError("mx is many destinations; name one as mx:DOMAIN")
            return f"mx:{Address('', parse_domain(rest, utf8=True)).ascii_domain}"
        if scheme in ("smtp", "lmtp") and "," in text:
            # Several servers of one destination.
            return ",".join(str(parse_next_hop(part)) for part in text.split(","))
        found = parse_next_hop(text)
        if found.kind is not Kind.NAMED:
            return str(found)
        if found.name not in self._router.named:
            raise ValueError(f"there is no transport {found.name!r} in the configuration")
        return str(self._router.named[found.name])


class FromFile:
    """The destinations by a configuration's file as it is now: what a reload takes, and what the command line reads.

    While the file has problems, they are those that it said last.
    """

    def __init__(self, config: Config) -> None:
        self._file = config.file
        self._last = Destinations(config)
        self._seen = self._stamp()

    def __call__(self) -> Destinations:
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._last = Destinations(load(self._file))
            except ConfigError as error:
                _log.warning("admin.config_unreadable", error=str(error))
        return self._last

    def _stamp(self) -> tuple[int, ...]:
        try:
            found = os.stat(self._file)
        except OSError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size


async def hasten(postmaster: Hands, hop: Hop, destinations: Collection[str]) -> None:
    """Make due what was put off because these destinations were suspended. Raises `SpoolError`."""
    for destination in destinations:
        await postmaster.hasten(Selection(next_hop=destination, reason=SUSPENDED.text), hop, by=_BY)
