"""A decision record, read back as what policies are asked about: session, transaction, recipients, findings, verdicts.

*Fails by*: `NotTold`, where the record does not hold what is asked for.
"""

from __future__ import annotations

import functools
import ipaddress
import itertools
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Final

from gateway.mail.address import NULL_SENDER, AddressError, Sender
from gateway.mail.envelope import MailParameters, Recipient
from gateway.mail.session import Session, Tls
from gateway.ops.archive import is_record
from gateway.ops.redaction import Redactor
from gateway.ops.search import GIVEN_UP, ended
from gateway.pipeline.hidden import Hidden, NotTold, read_address, recorded
from gateway.pipeline.lookup import Fault, FaultKind
from gateway.pipeline.plan import Node
from gateway.pipeline.recall import Memory, RecallError, recall
from gateway.sdk.findings import Finding
from gateway.sdk.stage import Stage, Transaction

__all__ = ["NotTold", "Past", "recorded"]

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
                if "finding" in note and "plugin" in note:
                    key = note["finding"], note.get("recipient", "")
                    if key in self._notes:
                        self._notes[key].append(note)
                    else:
                        self._notes[key] = [note]
            self._transactions: dict[tuple[Recipient, ...], Transaction] = {}
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
        if record["outcome"] in GIVEN_UP:
            return Stage.RCPT
        if record["outcome"] in ("rejected", "deferred") and not self._told_of(Stage.MESSAGE):
            # Refused at DATA, or by a limit before anybody was asked about the message.
            return Stage.DATA
        return Stage.MESSAGE if record["size"] else Stage.DATA

    def _told_of(self, stage: Stage) -> bool:
        notes = itertools.chain(self.record["verdicts"], self.record["findings"])
        return any(note.get("stage") == stage.value for note in notes)

    @property
    def outcome(self) -> str:
        """How it ended, as `gateway.ops.search.ended` has it."""
        return ended(self.record)

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
        if (made := self._transactions.get(recipients)) is None:
            sender = NULL_SENDER if self.sender is None else self.sender
            parameters = MailParameters(size=int(self.record["size"]))
            made = Transaction(str(self.record["id"]), self.session, sender, parameters, recipients)
            self._transactions[recipients] = made
        return made

    def finding(self, node: Node, whom: str, entry: str, others: Collection[str]) -> Finding | Fault | None:
        """What was found by `entry`, as it was called then, or by one that is not among `others`. None for nothing.

        `whom` is the recipient about whom it was, as recorded; empty where it is not about one. Of several findings
        that of the same stage counts. Raises `NotTold`.
        """
        name = node.finder.finding.__name__
        notes = self._notes.get((name, whom), ())
        if len(notes) == 1 and notes[0]["plugin"] == entry:
            note = notes[0]
        else:
            own = [n for n in notes if n["plugin"] == entry] or [n for n in notes if n["plugin"] not in others]
            if not own:
                raise NotTold(f"{name} was not looked up")
            note = max(own, key=lambda n: n.get("stage") == node.stage.value)
        if "value" in note:
            try:
                if "redacted" in note:
                    hidden = {str(field): Hidden(f"{name}.{field}") for field in note["redacted"]}
                    return recall(node.finder.finding, note["value"], hidden)
                return _findings.recall(node.finder.finding, note["value"])
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


_findings: Final = Memory()
_address = functools.lru_cache(maxsize=10_000)(ipaddress.ip_address)


def _session(record: Mapping[str, Any], trusted: Callable[[Any], bool]) -> Session:
    client, tls = record["client"], record["tls"]
    address = _address(client["ip"])
    hidden = {str(name): Hidden(_SESSION[name]) for name in record.get("redacted", ())}
    return Session(
        id=record["session"],
        client=address,
        client_port=int(client["port"]),
        peer=_address(client["peer"]) if "peer" in client else address,
        listener=record["listener"],
        started=float(record["time"]),
        helo=hidden.get("helo", record["helo"]),
        esmtp=True,
        tls=Tls(tls["version"], tls["cipher"], hidden.get("tls.sni", tls["sni"])) if tls else None,
        name=hidden.get("client.name", client.get("name", "")),
        trusted=trusted(address),
    )
