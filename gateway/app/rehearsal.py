"""A session through the front door in memory: no thread, no file, no network, so that time may jump (`quick`)."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from gateway.mail.address import Address
from gateway.mail.envelope import MailParameters, Recipient
from gateway.mail.reply import Reply
from gateway.mail.session import Session, new_session_id
from gateway.sdk.stage import Stage
from gateway.smtp.command import Mail
from gateway.smtp.intake import Desk, Intake
from gateway.spool.spool import Draft, NewMessage

_MESSAGE: Final = b"From: <a@sender.invalid>\r\nTo: <b@chaos.invalid>\r\nSubject: chaos\r\n\r\nHello.\r\n"
_CLIENT: Final = ipaddress.ip_address("192.0.2.1")
_HELO: Final = "client.invalid"
_MAIL: Final = Mail(Address("a", "sender.invalid"), MailParameters(size=len(_MESSAGE)))
_RECIPIENT: Final = Recipient(Address("b", "chaos.invalid"))
_READY: Final = Reply(220, "", "ready")
_HELLO: Final = Reply(250, "", "hello")
_SEND: Final = Reply(354, "", "send the message")


@dataclass(frozen=True, slots=True)
class Step:
    """What the client heard at a stage, and after how many seconds."""

    stage: Stage
    reply: Reply
    seconds: float


class _MemoryDraft:
    """Implements `gateway.spool.spool.Draft`."""

    def __init__(self) -> None:
        self.head = b""

    @property
    def size(self) -> int:
        return len(self.head)

    @property
    def eight_bit(self) -> bool:
        return not self.head.isascii()

    async def write(self, data: bytes) -> None:
        self.head += data

    async def blocks(self) -> AsyncIterator[bytes]:
        yield self.head

    async def abandon(self) -> None:
        """There is nothing to forget."""


@dataclass(slots=True)
class Records:
    """Implements `gateway.spool.spool.Inlet`: keeps the records, and no mail."""

    kept: list[Mapping[str, Any]] = field(default_factory=list)

    def check_room(self, size: int) -> None:
        """There is always room."""

    def draft(self, id: str, *, edited: bool = False) -> Draft:
        return _MemoryDraft()

    async def commit(self, draft: Draft, message: NewMessage, *copies: NewMessage) -> None:
        self.kept += [one.record for one in (message, *copies) if one.record is not None]

    def note(self, record: dict[str, Any]) -> None:
        self.kept.append(record)


async def rehearse(desk: Desk, pipeline: str) -> tuple[Step, ...]:
    """One session with one message, up to the first refusal.

    It comes from a client that may send anywhere, for a recipient elsewhere: nothing but the pipeline refuses it.
    """
    session = Session(new_session_id(), _CLIENT, 0, _CLIENT, "rehearsal", desk.clock.now(), trusted=True)
    intake = Intake(desk, session, pipeline)
    talk: tuple[tuple[Stage, Callable[[], Awaitable[Reply | None]], Reply], ...] = (
        (Stage.CONNECT, intake.connect, _READY),
        (Stage.HELO, lambda: intake.helo(replace(session, helo=_HELO, esmtp=True)), _HELLO),
        (Stage.MAIL, lambda: intake.mail(_MAIL), _HELLO),
        (Stage.RCPT, lambda: intake.rcpt(_RECIPIENT), _HELLO),
        (Stage.DATA, intake.data, _SEND),
        (Stage.MESSAGE, lambda: _content(intake), _HELLO),
    )
    steps: list[Step] = []
    try:
        for stage, say, otherwise in talk:
            began = desk.clock.monotonic()
            reply = await say() or otherwise
            steps.append(Step(stage, reply, desk.clock.monotonic() - began))
            if not reply.positive:
                break
    finally:
        await intake.close()
    return tuple(steps)


async def _content(intake: Intake) -> Reply:
    await intake.draft.write(_MESSAGE)
    return await intake.finish()
