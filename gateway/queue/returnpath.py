"""Return paths: the sender that a message leaves with, where it is not the one that it came with. Pure.

Nothing of it is stored: a message in the spool has the sender that it came with, and each attempt works out the other
one. So what we report ourselves goes to the true sender, and no address is a week old already when it leaves.

- **VERP** (`gateway.mail.verp`): the sender names the recipient. What we report goes to that address, too.
- **SRS** (`gateway.mail.srs`): mail of others that we send on to others leaves with a sender of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from gateway.mail.address import Address, AddressError, Sender
from gateway.mail.srs import Srs, SrsError
from gateway.mail.verp import Verp
from gateway.ops import log, metrics

_log = log.get()


class ReturnPaths(Protocol):
    """Says what senders are outside. No I/O; does not raise."""

    def sender(self, id: str, sender: Sender, recipient: Address) -> Sender:
        """What MAIL says for the message `id` on its way to this recipient."""

    def reports_to(self, sender: Sender, recipient: Address) -> Sender:
        """Who is told what became of this recipient."""


class AsTheyCame:
    """Senders as they came; implements `ReturnPaths`."""

    def sender(self, id: str, sender: Sender, recipient: Address) -> Sender:
        return sender

    def reports_to(self, sender: Sender, recipient: Address) -> Sender:
        return sender


AS_THEY_CAME: Final = AsTheyCame()


@dataclass(frozen=True, slots=True)
class Rewriting:
    """Return paths by the configuration; implements `ReturnPaths`.

    `ours` says of an address whether its domain is one of ours, so that SRS has nothing to do with it. `now` is
    the time in epoch seconds.
    """

    ours: Callable[[Address], bool]
    now: Callable[[], float]
    verp: Verp | None = None
    srs: Srs | None = None

    def sender(self, id: str, sender: Sender, recipient: Address) -> Sender:
        """VERP for the senders that it is for; SRS for those of others, on the way to others."""
        if not isinstance(sender, Address):
            return sender
        if self.verp is not None:
            try:
                made = self.verp.encode(sender, recipient)
            except AddressError as error:
                return self._kept(id, "verp", sender, str(error))
            if made is None:
                return self._kept(id, "verp", sender, "the address would be too long")
            if made is not sender:
                return self._made(id, "verp", sender, made)
        if self.srs is None:
            return sender
        try:
            if self.ours(sender) or self.ours(recipient):
                return sender
            return self._made(id, "srs", sender, self.srs.rewrite(sender, self.now()))
        except (SrsError, AddressError) as error:
            return self._kept(id, "srs", sender, str(error))

    def reports_to(self, sender: Sender, recipient: Address) -> Sender:
        """The address that VERP makes, so that our reports are read as everybody else's; else the sender."""
        if not isinstance(sender, Address) or self.verp is None:
            return sender
        try:
            return self.verp.encode(sender, recipient) or sender
        except AddressError:
            return sender

    def _made(self, id: str, kind: str, sender: Address, made: Address) -> Address:
        metrics.RETURN_PATHS.labels(kind, "rewritten").inc()
        _log.debug("sender.rewritten", id=id, kind=kind, sender=str(sender), to=str(made))
        return made

    def _kept(self, id: str, kind: str, sender: Address, problem: str) -> Address:
        metrics.RETURN_PATHS.labels(kind, "kept").inc()
        _log.info("sender.kept", id=id, kind=kind, sender=str(sender), reason=problem)
        return sender
