"""A message played through the front door's steps, with nobody at the other end and nothing that is kept.

Who plays brings the desk: `gatepost simulate` one of real parts, the testing kit one of fakes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from gateway.mail.address import Sender
from gateway.mail.envelope import Body, MailParameters, Recipient
from gateway.mail.reply import Reply
from gateway.mail.session import IPAddress, Session, Tls
from gateway.smtp import replies
from gateway.smtp.command import Mail
from gateway.smtp.data import ChunkDecoder
from gateway.smtp.intake import Desk, Intake
from gateway.spool.draft import FileDraft
from gateway.spool.shard import no_step
from gateway.spool.spool import Draft, NewMessage

_BLOCK: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Scene:
    """Who sends what: the message is read from `content`, whose line ends are made CRLF."""

    client: IPAddress
    helo: str
    sender: Sender
    recipients: tuple[Recipient, ...]
    content: Path
    name: str = ""
    pipeline: str = "default"
    tls: Tls | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One command and its reply; the greeting has no command."""

    command: str
    reply: str


@dataclass(slots=True)
class Played:
    """What came of it: the dialogue, and by queue id the decision records, and messages and contents that would have
    been queued."""

    dialogue: list[Line] = field(default_factory=list)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    messages: dict[str, NewMessage] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    taken: bool = False


class Nowhere:
    """Implements `gateway.spool.spool.Inlet`: takes what the front door stores, and keeps only what is to be shown."""

    def __init__(self, directory: Path, executor: Executor, played: Played) -> None:
        self._directory = directory
        self._executor = executor
        self._played = played

    def check_room(self, size: int) -> None:
        """There is always room."""

    def draft(self, id: str, *, edited: bool = False) -> FileDraft:
        name = f"{id}.edited" if edited else id
        return FileDraft(name, str(self._directory / name), self._executor, no_step, self.check_room)

    async def commit(self, draft: Draft, message: NewMessage, *copies: NewMessage) -> None:
        for one in (message, *copies):
            content = one.content or draft
            octets = b"".join([block async for block in content.blocks()])
            self._played.messages[one.id] = one
            self._played.contents[one.id] = one.head + octets[one.skip :]
            if one.record is not None:
                self._played.records[one.id] = one.record
        for one in (message, *copies):
            await (one.content or draft).abandon()

    def note(self, record: dict[str, Any]) -> None:
        self._played.records[record["id"]] = record


async def play(desk: Desk, session: Session, scene: Scene, played: Played) -> None:
    """One session: greeting, EHLO, and as many transactions as a client would need for all its recipients.

    `session` is that of a client that has said nothing yet. Raises OSError for a message that cannot be read.
    """
    intake = Intake(desk, session, scene.pipeline)
    try:
        await _play(intake, session, scene, played)
    finally:
        await intake.close()


async def _play(intake: Intake, session: Session, scene: Scene, played: Played) -> None:
    if refusal := await intake.connect():
        played.dialogue.append(Line("", str(refusal)))
        return
    played.dialogue.append(Line("", f"220 {intake.desk.options.hostname} ESMTP"))
    refusal = await intake.helo(replace(session, helo=scene.helo, esmtp=True))
    played.dialogue.append(Line(f"EHLO {scene.helo}", str(refusal or f"250 {intake.desk.options.hostname}")))
    left: Sequence[Recipient] = scene.recipients
    while left and refusal is None and not intake.hang_up:
        before = len(left)
        left = await _transaction(intake, scene, left, played)
        if len(left) == before:
            return


async def _transaction(
    intake: Intake, scene: Scene, recipients: Sequence[Recipient], played: Played
) -> Sequence[Recipient]:
    """One transaction; gives the recipients that are told to come in another one."""
    size = scene.content.stat().st_size
    body = Body.SEVEN_BIT if await asyncio.to_thread(_is_ascii, scene.content) else Body.EIGHT_BIT
    # A client says so where an address needs it, or it is refused (RFC 6531 section 3.4).
    utf8 = not all(str(address).isascii() for address in (scene.sender, *(r.address for r in scene.recipients)))
    command = f"MAIL FROM:<{scene.sender}> SIZE={size} BODY={body.value}{' SMTPUTF8' if utf8 else ''}"
    if not _say(played, command, await intake.mail(Mail(scene.sender, MailParameters(size, body, utf8)))):
        return ()
    later = []
    for recipient in recipients:
        reply = await intake.rcpt(recipient)
        _say(played, f"RCPT TO:<{recipient.address}>", reply)
        if reply == replies.OF_ITS_OWN:
            later.append(recipient)
        if intake.hang_up or not intake.in_transaction:
            return later
    if refusal := await intake.data():
        _say(played, "DATA", refusal)
        await intake.abort()
        return later
    played.dialogue.append(Line("DATA", "354 go ahead"))
    overflow = await _send(intake, scene.content)
    played.taken = _say(played, ".", await intake.finish(overflow=overflow)) or played.taken
    return later


def _say(played: Played, command: str, reply: Reply) -> bool:
    played.dialogue.append(Line(command, str(reply)))
    return reply.positive


def _is_ascii(path: Path) -> bool:
    with path.open("rb") as file:
        return all(block.isascii() for block in iter(lambda: file.read(_BLOCK), b""))


async def _send(intake: Intake, path: Path) -> bool:
    """Write the message into the draft; says whether there was too much."""
    mender, limit = ChunkDecoder(), intake.desk.options.limits.message_size
    with path.open("rb") as file:
        while block := await asyncio.to_thread(file.read, _BLOCK):
            if intake.draft.size + len(block) > limit:
                return True
            await intake.draft.write(mender.feed(block))
    await intake.draft.write(mender.end())
    return False
