"""Mixed traffic for replays: made up from a seed, judged by real pipelines behind the real front door's steps.

What the plugins find depends on who sends what to whom and on nothing else, so that two configurations are shown the
same.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import structlog

from gateway.mail.address import NULL_SENDER, parse_mailbox
from gateway.mail.envelope import MailParameters, Recipient
from gateway.mail.session import Session, base32
from gateway.pipeline.loader import Catalog, Pipeline, load
from gateway.sdk import (
    PROCEED,
    Finding,
    Message,
    Plugin,
    PluginOptions,
    Policy,
    Services,
    Stage,
    Transaction,
    Verdict,
    defer,
    discard,
    finds,
    quarantine,
    reject,
)
from gateway.services.clock import SystemClock
from gateway.smtp.command import Mail
from gateway.smtp.domains import Domain, Domains
from gateway.smtp.intake import Desk, Intake
from gateway.smtp.options import SmtpOptions
from gateway.spool.draft import FileDraft
from gateway.spool.shard import no_step
from gateway.spool.spool import Draft, NewMessage

Options = Mapping[str, Mapping[str, Any]]
CONTENT = b"Subject: x\r\n\r\nHello.\r\n"
START = 1_790_000_000


class Thresholds(PluginOptions):
    """From which value on what is said; 100 is never."""

    reject_at: int = 100
    defer_at: int = 100
    quarantine_at: int = 100
    discard_at: int = 100


def _say(options: Thresholds, value: int) -> Verdict:
    if value >= options.reject_at:
        return reject("7.1", "no")
    if value >= options.defer_at:
        return defer("7.1", "later")
    if value >= options.quarantine_at:
        return quarantine(f"value {value}")
    return discard(f"value {value}") if value >= options.discard_at else PROCEED


def value_of(kind: str, *about: object) -> int:
    """A number below 100 that depends on what it is about."""
    return zlib.crc32(" ".join([kind, *map(str, about)]).encode()) % 100


@dataclass(frozen=True, slots=True)
class ClientValue(Finding):
    value: int


@dataclass(frozen=True, slots=True)
class SenderValue(Finding):
    value: int


@dataclass(frozen=True, slots=True)
class RecipientValue(Finding):
    value: int


@dataclass(frozen=True, slots=True)
class ContentValue(Finding):
    value: int


class ClientPolicy(Policy):
    name = "client"
    Options = Thresholds

    def on_connect(self, found: ClientValue) -> Verdict:
        return _say(self.options, found.value)


class ClientPlugin(Plugin):
    name = "client"
    Options = Thresholds
    policy = ClientPolicy

    @finds(Stage.CONNECT)
    async def find(self, session: Session) -> ClientValue:
        return ClientValue(value_of("client", session.client))


class SenderPolicy(Policy):
    name = "sender-value"
    Options = Thresholds

    def on_mail(self, found: SenderValue) -> Verdict:
        return _say(self.options, found.value)


class SenderPlugin(Plugin):
    name = "sender-value"
    Options = Thresholds
    policy = SenderPolicy

    @finds(Stage.MAIL)
    async def find(self, txn: Transaction) -> SenderValue:
        return SenderValue(value_of("sender", txn.sender))


class RecipientPolicy(Policy):
    name = "recipient-value"
    Options = Thresholds

    def on_rcpt(self, found: RecipientValue) -> Verdict:
        return _say(self.options, found.value)


class RecipientPlugin(Plugin):
    name = "recipient-value"
    Options = Thresholds
    policy = RecipientPolicy

    @finds(Stage.RCPT)
    async def find(self, txn: Transaction, recipient: Recipient) -> RecipientValue:
        return RecipientValue(value_of("recipient", txn.sender, recipient.address))


class ContentPolicy(Policy):
    name = "content"
    Options = Thresholds

    def on_message(self, found: ContentValue, sender: SenderValue) -> Verdict:
        return _say(self.options, (found.value + sender.value) // 2)


class ContentPlugin(Plugin):
    name = "content"
    Options = Thresholds
    policy = ContentPolicy

    @finds(Stage.MESSAGE)
    async def find(self, txn: Transaction, message: Message) -> ContentValue:
        return ContentValue(value_of("content", txn.sender, txn.session.client, len(txn.recipients) > 0))


PLUGINS: tuple[type[Plugin], ...] = (ClientPlugin, SenderPlugin, RecipientPlugin, ContentPlugin)
CATALOG = Catalog({p.name: p for p in PLUGINS}, {})


def pipeline(options: Mapping[str, Mapping[str, Any]]) -> Pipeline:
    """All four, with these options by name."""
    nobody: Any = None
    services = Services(nobody, nobody, SystemClock(), nobody, "mx.example.org", "mx.example.org")
    return load("default", [{p.name: dict(options.get(p.name, {}))} for p in PLUGINS], services, known=CATALOG)


@dataclass(frozen=True)
class Mailing:
    """One session with one message."""

    number: int
    client: str
    sender: str
    recipients: tuple[str, ...]
    aborted: bool


def mailings(count: int, seed: int) -> list[Mailing]:
    """Who sends what to whom; the same for the same seed."""
    dice = random.Random(seed)
    out = []
    for number in range(count):
        recipients = tuple(f"user{dice.randrange(200)}@example.org" for _ in range(dice.choice((1, 1, 1, 2, 3))))
        if dice.random() < 0.05:
            recipients += ("someone@elsewhere.example",)
        sender = "" if dice.random() < 0.05 else f"s{dice.randrange(5000)}@sender.example"
        client = f"192.0.2.{dice.randrange(1, 255)}"
        out.append(Mailing(number, client, sender, tuple(dict.fromkeys(recipients)), dice.random() < 0.02))
    return out


class Recorder:
    """Implements `gateway.spool.spool.Inlet`: keeps the records by id, the last of each."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self.records: dict[str, dict[str, Any]] = {}
        self._executor = executor

    def check_room(self, size: int) -> None:
        pass

    def draft(self, id: str, *, edited: bool = False) -> FileDraft:
        return FileDraft(id, f"/nonexistent/{id}", self._executor, no_step, self.check_room)

    async def commit(self, draft: Draft, message: NewMessage, *copies: NewMessage) -> None:
        for one in (message, *copies):
            assert one.record is not None
            self.records[one.id] = one.record

    def note(self, record: dict[str, Any]) -> None:
        self.records[record["id"]] = record


def record(judges: Options | Pipeline, traffic: Sequence[Mailing]) -> dict[int, dict[str, Any]]:
    """The decision record of each mailing, by its number, under these options."""

    async def judge() -> dict[int, dict[str, Any]]:
        made = judges if isinstance(judges, Pipeline) else pipeline(judges)
        await made.start()
        with ThreadPoolExecutor(1) as executor:
            recorder = Recorder(executor)
            smtp = SmtpOptions("mx.example.org", "mx.example.org")
            domains = Domains({"example.org": Domain("example.org")})
            desk = Desk(smtp, domains, {"default": made}, recorder, SystemClock(), lambda: None)
            for mailing in traffic:
                await _send(desk, mailing)
            await made.close()
        out = {}
        for told in recorder.records.values():
            out[int(told["client"]["port"])] = told
        return out

    with structlog.testing.capture_logs():
        return asyncio.run(judge())


async def _send(desk: Desk, mailing: Mailing) -> None:
    # Ids rise as the mailings do, as ids of real sessions do.
    id = base32(START * 1000 + mailing.number, 9) + "0000"
    client = ipaddress.ip_address(mailing.client)
    session = Session(id, client, mailing.number, client, "edge", float(START + mailing.number), esmtp=True)
    intake = Intake(desk, session, "default")
    try:
        if await intake.connect() or await intake.helo(replace(session, helo="client.example")):
            return
        sender = parse_mailbox(mailing.sender) if mailing.sender else NULL_SENDER
        if not (await intake.mail(Mail(sender, MailParameters()))).positive:
            return
        for recipient in mailing.recipients:
            await intake.rcpt(Recipient(parse_mailbox(recipient)))
        if mailing.aborted or await intake.data():
            await intake.abort()
            return
        await intake.draft.write(CONTENT)
        await intake.finish()
    finally:
        await intake.close()


Check = Callable[[Options], None]
