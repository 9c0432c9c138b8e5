"""A decision record, read back as what policies are asked about: session, transaction, recipients, findings, verdicts.

*Fails by*: `NotTold`, where the record does not hold what is asked for.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from gateway.mail.address import NULL_SENDER, AddressError, Sender
from gateway.mail.envelope import MailParameters, Recipient
from gateway.mail.session import Session, Tls
from gateway.ops.archive import is_record
from gateway.ops.redaction import Redactor
from gateway.pipeline.hidden import Hidden, NotTold, read_address, recorded
from gateway.pipeline.lookup import Fault, FaultKind
from gateway.pipeline.plan import Node, Scope
from gateway.pipeline.recall import RecallError, recall
from gateway.sdk.findings import Finding
from gateway.sdk.stage import Stage, Transaction

__all__ = ["NotTold", "Past", "recorded"]

_GIVEN_UP: Final = frozenset({"aborted", "disconnected"})
_SESSION: Final = {"helo": "session.helo", "client.name": "session.name", "tls.sni": "session.tls.sni"}
"""What of a session may have been redacted, as the record and as policies call it."""


class Past:
    """One record. `trusted` says whether a client may send anywhere, which no record holds.

    `redacted` says that local parts are hidden in it, about which a `redactor` with the same key can tell a little.
    """

    def __init__(
        self, record: Mapping[str, Any], trusted: Callable[[Any], bool], redactor: Redactor | None = None
    ) -> None:
        """Raises `NotTold` for what is no record."""
        if not is_record(record):
            raise NotTold("the record cannot be read")
        self.record = record
        self.redacted = "redacted" in record
        read = partial(read_address, redacted=self.redacted, redactor=redactor)
        try:
            self.session = _session(record, trusted)
            sender = record["sender"]
            self.sender: Sender | None = None if sender is None else NULL_SENDER if sender == "<>" else read(sender)
            self.recipients = [
                (Recipient(read(told["address"])), str(told["reply"]))
                for told in record["recipients"]
                if "@" in told["address"]
            ]
            self._notes: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
            for note in record["findings"]:
                if "finding" in note:
                    key = note["finding"], note.get("recipient", "")
                    self._notes.setdefault(key, []).append(note)
            self.reached = self._reached()
        except (LookupError, TypeError, ValueError, AttributeError, AddressError, OverflowError) as error:
            raise NotTold("the record cannot be read") from error

    def _reached(self) -> Stage:
        """The last stage of which the record tells."""
        record = self.record
        if self.sender is None:
            return Stage.HELO if record["helo"] else Stage.CONNECT
        if not record["recipients"]:
            return Stage.MAIL
        if not any(str(told["reply"]).startswith("2") for told in record["recipients"]):
            return Stage.RCPT
        if record["outcome"] in _GIVEN_UP:
            return Stage.RCPT
        return Stage.MESSAGE if record["size"] else Stage.DATA

    @property
    def outcome(self) -> str:
        """How it ended. A client that gives up because none of its recipients was taken was refused."""
        told = self.record["recipients"]
        if self.record["outcome"] not in _GIVEN_UP or not told or any(str(t["reply"]).startswith("2") for t in told):
            return str(self.record["outcome"])
        return "deferred" if str(told[-1]["reply"]).startswith("4") else "rejected"

    def verdict_on(self, recipient: str = "") -> bool:
        """Whether a verdict refused: this recipient, or else the transaction as a whole, and not a limit."""
        return any(
            told.get("recipient", "") == recipient
            and not told.get("shadow")
            and told.get("action") in ("reject", "defer", "disconnect")
            for told in self.record["verdicts"]
        )

    def transaction(self, recipients: tuple[Recipient, ...]) -> Transaction:
        """The transaction with these recipients accepted. What MAIL declared beside the sender is not told."""
        sender = NULL_SENDER if self.sender is None else self.sender
        parameters = MailParameters(size=int(self.record["size"]))
        return Transaction(str(self.record["id"]), self.session, sender, parameters, recipients)

    def finding(self, node: Node, recipient: Recipient | None) -> Finding | Fault | None:
        """What was found: by the same entry at the same stage if it was there, else by any. None for nothing.

        Raises `NotTold`.
        """
        name = node.finder.finding.__name__
        whom = recorded(recipient.address) if recipient and node.scope is Scope.RECIPIENT else ""
        notes = self._notes.get((name, whom))
        if not notes:
            raise NotTold(f"{name} was not looked up")
        note = max(notes, key=lambda n: (n["plugin"] == node.entry.name, n["stage"] == node.stage.value))
        if "value" in note:
            try:
                hidden = {str(field): Hidden(f"{name}.{field}") for field in note.get("redacted", ())}
                return recall(node.finder.finding, note["value"], hidden)
            except (RecallError, TypeError) as error:
                raise NotTold(f"{name} was not recorded whole") from error
        if "fault" in note:
            try:
                return Fault(node.entry, FaultKind(note["fault"]), str(note.get("detail", "")))
            except ValueError as error:
                raise NotTold(f"{name} failed in a way that is not known") from error
        if note.get("missing"):
            return None
        raise NotTold(f"{name} was not waited for")


def _session(record: Mapping[str, Any], trusted: Callable[[Any], bool]) -> Session:
    client, tls = record["client"], record["tls"]
    address = ipaddress.ip_address(client["ip"])
    hidden = {str(name): Hidden(_SESSION[name]) for name in record.get("redacted", ())}
    return Session(
        id=record["session"],
        client=address,
        client_port=int(client["port"]),
        peer=ipaddress.ip_address(client.get("peer", client["ip"])),
        listener=record["listener"],
        started=float(record["time"]),
        helo=hidden.get("helo", record["helo"]),
        esmtp=True,
        tls=Tls(tls["version"], tls["cipher"], hidden.get("tls.sni", tls["sni"])) if tls else None,
        name=hidden.get("client.name", client.get("name", "")),
        trusted=trusted(address),
    )
