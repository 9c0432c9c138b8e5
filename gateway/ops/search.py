"""Looking through decision records: which ones are meant, as the command line and the API say it."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

GIVEN_UP: Final = frozenset({"aborted", "disconnected"})
"""Outcomes of a transaction that its client ended."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Search:
    """What a record must have; what is empty or None does not matter.

    `sender` and `recipient` are an address, a domain (``example.org``), or ``<>``, compared without case; `outcome` is
    one of `gateway.sdk.ending.Outcome`; `plugin` is an entry that said something but *proceed*; `action` is what
    somebody said, or that entry if one is named, in shadow too; `queue_id` is that of another MTA, for which we judged.
    `hidden_sender` and `hidden_recipient` are what the addresses are in redacted records.
    """

    sender: str = ""
    recipient: str = ""
    client: Network | None = None
    outcome: str = ""
    plugin: str = ""
    queue_id: str = ""
    action: str = ""
    hidden_sender: str = ""
    hidden_recipient: str = ""

    def through(self, redact: Callable[[str], str]) -> Search:
        """The same search, which finds addresses in redacted records too."""
        hidden = [redact(wanted) if "@" in wanted else "" for wanted in (self.sender, self.recipient)]
        return replace(self, hidden_sender=hidden[0], hidden_recipient=hidden[1])

    def matches(self, record: dict[str, Any]) -> bool:
        """Whether this record is meant."""
        return (
            (not self.outcome or record.get("outcome") == self.outcome)
            and (not self.queue_id or (record.get("mta") or {}).get("queue_id") == self.queue_id)
            and (not self.sender or self._from_sender(str(record.get("sender") or "")))
            and (not self.recipient or any(self._to(address) for address in recipients(record)))
            and (self.client is None or self._from_client(record))
            and (not (self.plugin or self.action) or self._said(record))
        )

    def _from_sender(self, address: str) -> bool:
        return _is(address, self.sender) or (bool(self.hidden_sender) and _is(address, self.hidden_sender))

    def _to(self, address: str) -> bool:
        return _is(address, self.recipient) or (bool(self.hidden_recipient) and _is(address, self.hidden_recipient))

    def _said(self, record: dict[str, Any]) -> bool:
        if not self.action:
            return any(verdict.get("plugin") == self.plugin for verdict in spoken(record))
        return any(
            verdict.get("action") == self.action and (not self.plugin or verdict.get("plugin") == self.plugin)
            for verdict in record.get("verdicts") or ()
        )

    def _from_client(self, record: dict[str, Any]) -> bool:
        try:
            return self.client is not None and ipaddress.ip_address(client(record)) in self.client
        except ValueError:
            return False


def client(record: dict[str, Any]) -> str:
    """The client's address."""
    return str((record.get("client") or {}).get("ip", ""))


def recipients(record: dict[str, Any]) -> list[str]:
    """All recipients that were named, refused ones too."""
    return [str(recipient.get("address", "")) for recipient in record.get("recipients") or ()]


def ended(record: Mapping[str, Any]) -> str:
    """How it ended. A client that gave up because none of its recipients was taken was refused, by the last reply."""
    replies = [str(recipient.get("reply", "")) for recipient in record.get("recipients") or ()]
    return ended_as(str(record.get("outcome", "")), replies)


def ended_as(outcome: str, replies: Sequence[str]) -> str:
    """As `ended`; `replies` are those to RCPT."""
    if outcome not in GIVEN_UP or not replies or any(reply.startswith("2") for reply in replies):
        return outcome
    return "deferred" if replies[-1].startswith("4") else "rejected"


def spoken(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Verdicts that say something: all but plain *proceed*. Shadow entries are among them."""
    for verdict in record.get("verdicts") or ():
        if verdict.get("action", "proceed") != "proceed" or verdict.get("edits") or verdict.get("when"):
            yield verdict


def domain(sender: str) -> str:
    """The domain of a sender, ``<>`` for the null sender."""
    return sender.rpartition("@")[2].lower() or "<>"


def _is(address: str, wanted: str) -> bool:
    address, wanted = address.lower(), wanted.lower()
    return address == wanted or ("@" not in wanted and address.rpartition("@")[2] == wanted)
