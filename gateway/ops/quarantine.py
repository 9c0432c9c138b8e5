"""Looking for messages in quarantine: the one way that the command line and the admin API share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from gateway.mail.address import AddressError, parse_forward_path
from gateway.mail.envelope import Recipient
from gateway.ops.view import StoredView

PAGE: Final = 500
SCANNED: Final = 10_000
"""Messages that one question looks at; the answer then says where to go on."""


class Listing(Protocol):
    """See `gateway.spool.spool.Spool.list`."""

    async def list(self, *, state: Any = None, limit: int = 1000, after: str = "") -> Sequence[Any]: ...


@dataclass(frozen=True, slots=True)
class Filter:
    """What is looked for. Texts are found anywhere in what they stand for, without regard to case; empty ones always.

    `before` and `since` are epoch seconds at which the message came; 0 stands for any time.
    """

    reason: str = ""
    sender: str = ""
    recipient: str = ""
    before: float = 0.0
    since: float = 0.0

    def matches(self, message: StoredView) -> bool:
        """Whether the message is among those looked for."""
        if (self.before and message.received >= self.before) or message.received < self.since:
            return False
        # The null sender goes by the form in which lists show it.
        sender = str(message.envelope.sender) or "<>"
        recipients = (str(slot.recipient.address) for slot in message.slots)
        return (
            _within(self.reason, message.reason)
            and _within(self.sender, sender)
            and (not self.recipient or any(_within(self.recipient, address) for address in recipients))
        )


def released_to(address: Any) -> Recipient:
    """A recipient from its address. Raises `AddressError`."""
    parsed = parse_forward_path(address if isinstance(address, str) else "", utf8=True)
    if not parsed.domain:
        raise AddressError("an address has a domain")
    return Recipient(parsed)


def _within(wanted: str, text: str) -> bool:
    return wanted.casefold() in text.casefold()


async def search(
    spool: Listing, state: Any, wanted: Filter, *, limit: int, after: str = "", scan: int = SCANNED
) -> tuple[list[Any], str | None]:
    """At most `limit` messages by id, and the id after which there may be more, None when there are none.

    At most `scan` messages are looked at.
    """
    out: list[Any] = []
    while scan > 0:
        page = await spool.list(state=state, limit=min(PAGE, scan), after=after)
        for message in page:
            after = message.id
            if wanted.matches(message):
                out.append(message)
                if len(out) >= limit:
                    return out, after
        if len(page) < min(PAGE, scan):
            return out, None
        scan -= len(page)
    return out, after
