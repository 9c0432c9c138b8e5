"""A decision record, read back as what policies are asked about: session, transaction, recipients, findings, verdicts.

*Fails by*: `NotTold`, where the record does not hold what is asked for.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable, Collection, Mapping, Set
from functools import partial
from typing import Any, Final

from gateway.mail.address import NULL_SENDER, AddressError, Sender
from gateway.mail.envelope import Recipient
from gateway.mail.session import ClientCertificate, Session, Tls
from gateway.ops.redaction import Redactor
from gateway.ops.search import GIVEN_UP, ended_as
from gateway.pipeline.asking import ON_ERROR
from gateway.pipeline.hidden import Hidden, NotTold, read_address, read_hidden, recorded
from gateway.pipeline.lookup import Fault, FaultKind
from gateway.pipeline.plan import Node
from gateway.pipeline.recall import Memory, RecallError
from gateway.pipeline.told import TlsNote, Told, UnreadableRecord, read_told
from gateway.sdk.findings import Finding
from gateway.sdk.mime import Mime
from gateway.sdk.stage import Stage, Transaction

__all__ = ["NotTold", "Past", "recorded"]

_SESSION: Final = {
    "helo": "session.helo",
    "client.name": "session.name",
    "tls.sni": "session.tls.sni",
    "tls.client.subject": "session.tls.client.subject",
    "tls.client.names": "session.tls.client.names",
    "tls.client.issuer": "session.tls.client.issuer",
}
"""What of a session may have been redacted, as the record and as policies call it."""
_ALL_TOLD: Final[dict[str, Any]] = {}
_PARAMETERS: Final[Any] = Hidden("what MAIL declared beside the sender", "is not recorded")
_ESMTP: Final[Any] = Hidden("session.esmtp", "is not recorded")
_UNRECORDED: Final[dict[type[Finding], dict[str, Any]]] = {Mime: {"texts": Hidden("Mime.texts", "is not recorded")}}
"""Fields of findings that no record holds."""


class Past:
    """One record. `trusted` says whether a client may send anywhere, which no record holds.

    `redacted` says that local parts are hidden in it, about which a `redactor` with the same key can tell a little.
    """

    def __init__(
        self, record: Told | Mapping[str, Any] | bytes, trusted: Callable[[Any], bool], redactor: Redactor | None = None
    ) -> None:
        """`record` may be its JSON. Raises `NotTold` for what is no record."""
        try:
            self.told = told = record if isinstance(record, Told) else read_told(record)
        except UnreadableRecord as error:
            raise NotTold(str(error)) from error
        self.redacted = told.redacted is not None
        read = partial(read_hidden, redactor=redactor) if self.redacted else read_address
        try:
            self.session = _session(told, trusted)
            sender = told.sender
            self.sender: Sender | None = None if sender is None else NULL_SENDER if sender == "<>" else read(sender)
            self.recipients = [(Recipient(read(to.address)), to.reply) for to in told.recipients if "@" in to.address]
        except (LookupError, TypeError, ValueError, AttributeError, AddressError, OverflowError) as error:
            raise NotTold("the record cannot be read") from error
        self._transactions: dict[tuple[Recipient, ...], Transaction] = {}
        self.reached = self._reached()

    def _reached(self) -> Stage:
        """The last stage of which the record tells."""
        told = self.told
        if self.sender is None:
            return Stage.HELO if told.helo else Stage.CONNECT
        if not told.recipients:
            return Stage.MAIL
        if told.outcome in GIVEN_UP or not any(to.taken for to in told.recipients):
            return Stage.RCPT
        if self._told_of(Stage.MESSAGE):
            # Also of a message without a single octet.
            return Stage.MESSAGE
        if told.outcome in ("rejected", "deferred"):
            # Refused at DATA, or by a limit before anybody was asked about the message.
            return Stage.DATA
        return Stage.MESSAGE if told.size else Stage.DATA

    def _told_of(self, stage: Stage) -> bool:
        told, name = self.told, stage.value
        return any(note.stage == name for note in told.verdicts) or any(note.stage == name for note in told.findings)

    @property
    def cut(self) -> bool:
        """Whether it had too many findings or verdicts, so that some are not told."""
        return not all(note.stage for note in self.told.verdicts) or not all(note.stage for note in self.told.findings)

    @property
    def outcome(self) -> str:
        """How it ended, as `gateway.ops.search.ended` has it."""
        return ended_as(self.told.outcome, [to.reply for to in self.told.recipients])

    def verdict_on(self, recipient: str = "") -> bool:
        """Whether a verdict refused: this recipient, or else the transaction as a whole, and not a limit."""
        return any(
            note.action in ("reject", "defer", "disconnect") and note.recipient == recipient and not note.shadow
            for note in self.told.verdicts
        )

    def late(self) -> Set[tuple[str, str | None, str]]:
        """At which stage whose `on_error` spoke, and of which recipient, though no look-up of it failed.

        The stage was over; what it had found by a later one stands in the record all the same.
        """
        told = self.told
        spoke = {(note.stage, note.plugin, note.recipient) for note in told.verdicts if note.policy == ON_ERROR}
        failed = {note.plugin for note in told.findings if note.fault} if spoke else ()
        return {one for one in spoke if one[1] not in failed}

    def transaction(self, recipients: tuple[Recipient, ...]) -> Transaction:
        """The transaction with these recipients accepted. What MAIL declared beside the sender is not told."""
        if (made := self._transactions.get(recipients)) is None:
            sender = NULL_SENDER if self.sender is None else self.sender
            made = Transaction(self.told.id, self.session, sender, _PARAMETERS, recipients)
            self._transactions[recipients] = made
        return made

    def finding(self, node: Node, whom: str, entry: str, others: Collection[str]) -> Finding | Fault | None:
        """What was found by `entry`, as it was called then, or by one that is not among `others`. None for nothing.

        `whom` is the recipient about whom it was, as recorded; empty where it is not about one. Of several findings
        that of the same stage counts. Raises `NotTold`.
        """
        name = node.finder.finding.__name__
        notes = [note for note in self.told.findings if note.finding == name and note.recipient == whom]
        if len(notes) == 1 and notes[0].plugin == entry:
            note = notes[0]
        else:
            own = [n for n in notes if n.plugin == entry] or [n for n in notes if n.plugin not in others]
            if not own:
                raise NotTold(f"{name} was not looked up")
            note = max(own, key=lambda n: n.stage == node.stage.value)
        if octets := bytes(note.value):
            try:
                hidden = _UNRECORDED.get(node.finder.finding, _ALL_TOLD)
                if note.redacted is not None:
                    hidden = {field: Hidden(f"{name}.{field}") for field in note.redacted} | hidden
                return _findings.recall(node.finder.finding, octets, hidden)
            except (RecallError, TypeError) as error:
                raise NotTold(f"{name} was not recorded whole") from error
        if note.fault:
            try:
                return Fault(node.entry, FaultKind(note.fault), note.detail)
            except ValueError as error:
                raise NotTold(f"{name} failed in a way that is not known") from error
        if note.missing:
            return None
        raise NotTold(f"{name} was not waited for")


_findings: Final = Memory()
_address = functools.lru_cache(maxsize=10_000)(ipaddress.ip_address)


def _session(told: Told, trusted: Callable[[Any], bool]) -> Session:
    client = told.client
    address = _address(client.ip)
    hidden: dict[str, Any] = {name: Hidden(_SESSION[name]) for name in told.redacted} if told.redacted else _ALL_TOLD
    return Session(
        id=told.session,
        client=address,
        client_port=client.port,
        peer=_address(client.peer) if client.peer else address,
        listener=told.listener,
        started=told.time,
        helo=hidden.get("helo", told.helo),
        esmtp=_ESMTP,
        tls=_tls(told.tls, hidden),
        name=hidden.get("client.name", client.name),
        trusted=trusted(address),
    )


def _tls(tls: TlsNote | None, hidden: Mapping[str, Any]) -> Tls | None:
    if tls is None:
        return None
    client: ClientCertificate | None = None
    if (shown := tls.client) is not None:
        client = ClientCertificate(
            shown.verified,
            shown.fingerprint,
            shown.problem,
            hidden.get("tls.client.subject", shown.subject),
            hidden.get("tls.client.names", tuple(shown.names)),
            hidden.get("tls.client.issuer", shown.issuer),
            shown.serial,
        )
    return Tls(tls.version, tls.cipher, hidden.get("tls.sni", tls.sni), client)
