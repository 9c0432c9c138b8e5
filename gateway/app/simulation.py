"""A message on trial: through the front door and its pipelines, with everything real but that nothing is kept.

DNS is asked, milters and scanners too; the shared state is a copy, so that greylists and rates learn nothing. Findings
can be given instead, and then their plugins are not asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from gateway.app.wiring import Parts, make_parts
from gateway.config import Config
from gateway.mail.address import Sender
from gateway.mail.envelope import Body, MailParameters, Recipient
from gateway.mail.reply import Reply
from gateway.mail.session import IPAddress, Session, new_session_id
from gateway.pipeline.recall import RecallError, recall
from gateway.services.clock import SystemClock
from gateway.services.state import SqliteState
from gateway.smtp import replies
from gateway.smtp.command import Mail
from gateway.smtp.data import ChunkDecoder
from gateway.smtp.intake import Intake
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


@dataclass(frozen=True, slots=True)
class Line:
    """One command and its reply; the greeting has no command."""

    command: str
    reply: str


@dataclass(slots=True)
class Played:
    """What came of it: the dialogue; decision records and contents that would have been queued, by queue id."""

    dialogue: list[Line] = field(default_factory=list)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    taken: bool = False


class _Nowhere:
    """Implements `gateway.spool.spool.Inlet`: takes what the front door stores, and keeps only what is to be shown."""

    def __init__(self, directory: Path, executor: ThreadPoolExecutor, played: Played) -> None:
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
            self._played.contents[one.id] = one.head + octets[one.skip :]
            if one.record is not None:
                self._played.records[one.id] = one.record
        for one in (message, *copies):
            await (one.content or draft).abandon()

    def note(self, record: dict[str, Any]) -> None:
        self._played.records[record["id"]] = record


async def simulate(config: Config, scene: Scene, given: Mapping[str, Mapping[str, Any]]) -> Played:
    """Play the scene. `given` are findings by name, as the record keeps them.

    Raises `gateway.config.ConfigError`, `gateway.pipeline.plan.PipelineError`, `gateway.sdk.services.StateError`,
    OSError for a message that cannot be read, and `gateway.pipeline.recall.RecallError` for findings that are none.
    """
    played = Played()
    with tempfile.TemporaryDirectory(prefix="gatepost-simulate-") as name, ThreadPoolExecutor(1) as executor:
        directory = Path(name)
        async with _parts(config, directory) as parts:
            _fix(parts, given)
            desk = parts.desk(_Nowhere(directory, executor, played), SystemClock(), lambda: None)
            session = _session(scene, config)
            intake = Intake(desk, session, scene.pipeline)
            try:
                await _play(intake, session, scene, played)
            finally:
                await intake.close()
    return played


@contextlib.asynccontextmanager
async def _parts(config: Config, directory: Path) -> AsyncIterator[Parts]:
    clock = SystemClock()
    await asyncio.to_thread(_copy_state, Path(config.state.path), directory)
    state = SqliteState(directory, clock)
    await state.start()
    parts = make_parts(config, state, clock)
    try:
        await parts.start()
        yield parts
    finally:
        await parts.close()
        await state.close()


def _copy_state(real: Path, directory: Path) -> None:
    """What greylists and rates know now, without touching it."""
    file = real / "state.db"
    if not file.exists():
        return
    with (
        contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as source,
        contextlib.closing(sqlite3.connect(directory / "state.db")) as target,
    ):
        source.backup(target)


def _fix(parts: Parts, given: Mapping[str, Mapping[str, Any]]) -> None:
    kinds = {name: kind for pipeline in parts.pipelines.values() for name, kind in pipeline.findings.items()}
    for name in given:
        if name not in kinds:
            raise RecallError(
                f"{name} is no finding of these pipelines; there are {', '.join(sorted(kinds)) or 'none'}"
            )
    found = {kinds[name]: recall(kinds[name], value) for name, value in given.items()}
    for pipeline in parts.pipelines.values():
        pipeline.fix(found)


def _session(scene: Scene, config: Config) -> Session:
    return Session(
        id=new_session_id(),
        client=scene.client,
        client_port=0,
        peer=scene.client,
        listener="simulation",
        started=SystemClock().now(),
        name=scene.name,
        trusted=any(scene.client in network for network in config.relay_from),
    )


async def _play(intake: Intake, session: Session, scene: Scene, played: Played) -> None:
    """Greeting, EHLO, and as many transactions as a client would need for all its recipients."""
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
    command = f"MAIL FROM:<{scene.sender}> SIZE={size} BODY={body.value}"
    if not _say(played, command, await intake.mail(Mail(scene.sender, MailParameters(size=size, body=body)))):
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
