"""Looking through decision records: which ones are meant, as the command line and the API say it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Search:
    """What a record must have; what is empty or None does not matter.

    `sender` and `recipient` are an address, a domain (``example.org``), or ``<>``, compared without case; `outcome` is
    one of `gateway.sdk.ending.Outcome`; `plugin` is an entry that said something but *proceed*;
    `queue_id` is that of another MTA, for which we judged.
    """

    sender: str = ""
    recipient: str = ""
    client: Network | None = None
    outcome: str = ""
    plugin: str = ""
    queue_id: str = ""

    def matches(self, record: dict[str, Any]) -> bool:
        """Whether this record is meant."""
        return (
            (not self.outcome or record.get("outcome") == self.outcome)
            and (not self.queue_id or (record.get("mta") or {}).get("queue_id") == self.queue_id)
            and (not self.sender or _is(record.get("sender") or "", self.sender))
            and (not self.recipient or any(_is(address, self.recipient) for address in recipients(record)))
            and (self.client is None or self._from_client(record))
            and (not self.plugin or any(verdict.get("plugin") == self.plugin for verdict in spoken(record)))
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
