"""What one milter is told of one session, and what it says.

A milter must have heard what came before: CONNECT before HELO, MAIL before RCPT. `Conversation.come_to` tells it
whatever it has not heard yet, up to the stage that is asked for. So one road serves all: the ordinary step, a stage
that was passed over because an earlier entry had accepted it, and the new connection after a milter had failed in the
middle of a session.

What a milter says while it is told what was missed counts, with one exception: recipients that others have accepted
without asking it are told, and it has no say in them any more.

*Promises*: a milter that has settled a message (or session) is not told more of it. A kept connection that turns out
dead before it has answered anything is replaced, once for each that was kept; so is one that died between two stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from typing import Final, Protocol

from gateway.sdk import (
    Body,
    HeaderField,
    MailParameters,
    Message,
    MilterAction,
    MilterReply,
    Recipient,
    Stage,
    edit_begun,
)
from plugins.milter.changes import Changes
from plugins.milter.codec import Phase
from plugins.milter.content import body_pieces
from plugins.milter.link import Link, MilterGone
from plugins.milter.macros import Facts, MacroStage, client_host, macros
from plugins.milter.options import MilterOptions
from plugins.milter.packets import Answer, Command, Modification, Said, Steps

_CLOSING: Final = 421

_ACTIONS: Final = {
    Said.CONTINUE: MilterAction.CONTINUE,
    Said.ACCEPT: MilterAction.ACCEPT,
    Said.REJECT: MilterAction.REJECT,
    Said.TEMPFAIL: MilterAction.TEMPFAIL,
    Said.DISCARD: MilterAction.DISCARD,
    Said.SKIP: MilterAction.CONTINUE,
    Said.CLOSE: MilterAction.CONNECTION_FAIL,
}
_UNSETTLED: Final = (None, Said.CONTINUE, Said.SKIP)


class Door(Protocol):
    """Where connections come from and go to. `name` is the milter's, for records."""

    name: str
    options: MilterOptions

    async def open(self) -> Link:
        """A connection that has agreed on options, and is between two sessions."""

    def back(self, link: Link) -> None:
        """One whose session is over, in whatever state."""

    def stale(self, link: Link) -> None:
        """One that was kept, and turned out dead."""


class Conversation:
    """One milter's part in one session."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._options = door.options
        self._link: Link | None = None
        self._busy = False
        self._changes: Changes | None = None
        self._forget()

    def _forget(self) -> None:
        """Nothing has been said on this connection."""
        self._helo: str | None = None
        self._transaction = ""
        self._told: set[Recipient] = set()
        self._connected = self._data = self._settled = False

    @property
    def busy(self) -> bool:
        """Whether it waits for an answer: whoever asked was called off, and it cannot go on."""
        return self._busy

    def end(self) -> None:
        """The session is over."""
        link, self._link = self._link, None
        if link is not None and self._busy:
            link.abort()
        elif link is not None:
            self._door.back(link)
        self._forget()

    def _fail(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.abort()
        self._forget()

    async def come_to(self, stage: Stage, facts: Facts, message: Message | None = None) -> MilterReply:
        """Tell the milter of this stage, and of what it missed before. `message` at stage `message` only.

        Raises `MilterError` and OSError when it fails, and then the conversation has ended.
        """
        self._busy = True
        # Of a message that was refused, or at whose end it failed.
        self._changes = None
        try:
            while True:
                if self._link is not None and self._link.dead:
                    self._fail()
                link = self._link or await self._open()
                try:
                    return await self._advance(link, stage, facts, message)
                except (MilterGone, ConnectionError):
                    if link.answers or not link.reused:
                        raise
                    self._door.stale(link)
                    self._link = None
                    self._forget()
        except BaseException:
            self._fail()
            raise
        finally:
            self._busy = False

    async def _open(self) -> Link:
        self._forget()
        self._link = await self._door.open()
        return self._link

    async def _advance(self, link: Link, stage: Stage, facts: Facts, message: Message | None) -> MilterReply:
        if link.codec.phase is Phase.ACCEPTED:
            return self._skipped()
        answer = await self._greet(link, stage, facts)
        if answer is None and facts.transaction is not None:
            answer = await self._envelope(link, stage, facts)
        if answer is None and message is not None and not self._settled:
            answer = await self._content(link, facts, message)
        if link.codec.phase is Phase.SESSION and facts.transaction is not None:
            already, self._settled = self._settled, True
            if already and answer is None:
                return self._skipped()
        if link.codec.phase is Phase.CLOSED:
            self.end()
        return self._reply(answer, self._wanted(link, stage))

    def _wanted(self, link: Link, stage: Stage) -> bool:
        return stage is Stage.MESSAGE or link.codec.wants(_COMMANDS[stage])

    async def _greet(self, link: Link, stage: Stage, facts: Facts) -> Answer | None:
        """CONNECT, and HELO as far as it came to that; gives an answer that is not simply to go on."""
        codec, session = link.codec, facts.session
        if not self._connected:
            self._connected = True
            told = codec.connect(
                client_host(facts),
                str(session.client),
                session.client_port,
                v6=session.client.version == 6,
                macros=self._macros(link, MacroStage.CONNECT, facts),
            )
            answer = await self._tell(link, told)
            if answer or stage is Stage.CONNECT:
                return answer
        if not session.helo or (stage is not Stage.HELO and self._helo == session.helo):
            return None
        if codec.in_message:
            link.say(codec.abort())
        self._helo = session.helo
        return await self._tell(link, codec.helo(session.helo, self._macros(link, MacroStage.HELO, facts)))

    async def _envelope(self, link: Link, stage: Stage, facts: Facts) -> Answer | None:
        """MAIL, RCPT and DATA as far as it came to that."""
        codec, transaction = link.codec, facts.transaction
        assert transaction is not None
        if self._transaction != transaction.id:
            if codec.in_message:
                link.say(codec.abort())
            self._transaction = transaction.id
            self._told = set()
            self._data = self._settled = False
            arguments = mail_arguments(str(transaction.sender), transaction.parameters)
            answer = await self._tell(link, codec.mail(arguments, self._macros(link, MacroStage.MAIL, facts)))
            if answer or stage is Stage.MAIL:
                return answer
        if self._settled or self._data:
            return None
        for recipient in transaction.recipients:
            if recipient not in self._told and (answer := await self._recipient(link, facts, recipient)):
                if codec.phase is not Phase.ENVELOPE:
                    return answer
        if stage is Stage.RCPT and facts.recipient is not None:
            return await self._recipient(link, facts, facts.recipient)
        if stage in (Stage.DATA, Stage.MESSAGE):
            self._data = True
            return await self._tell(link, codec.data(self._macros(link, MacroStage.DATA, facts)))
        return None

    async def _recipient(self, link: Link, facts: Facts, recipient: Recipient) -> Answer | None:
        self._told.add(recipient)
        if facts.recipient is not recipient:
            facts = facts._replace(recipient=recipient)
        arguments = rcpt_arguments(recipient)
        return await self._tell(link, link.codec.rcpt(arguments, self._macros(link, MacroStage.RCPT, facts)))

    async def _content(self, link: Link, facts: Facts, message: Message) -> Answer | None:
        """The whole message, and what the milter makes of it."""
        codec, seconds = link.codec, self._options.content_timeout
        leading_space = bool(codec.terms.steps & Steps.LEADING_SPACE)
        if codec.wants(Command.HEADER):
            for field in message.fields:
                told = codec.header(*wire_field(field, leading_space=leading_space))
                if answer := _settling(await link.ahead(told, seconds)):
                    return answer
        if answer := _settling(await link.ahead(codec.eoh(self._macros(link, MacroStage.EOH, facts)), seconds)):
            return answer
        if codec.wants(Command.BODY):
            first = True
            async with aclosing(body_pieces(message)) as pieces:
                async for piece in pieces:
                    # A small message goes out in one write; of a large one no more than the milter keeps up with.
                    if not first and (answer := await self._tell(link, b"", seconds)):
                        return answer
                    if codec.skips_body:
                        break
                    first = False
                    if answer := _settling(await link.ahead(codec.body(piece), seconds)):
                        return answer
        options = self._options
        self._changes = Changes(
            message.fields, leading_space=leading_space, most=options.edits, body_size=options.body_size
        )
        told = codec.end(self._macros(link, MacroStage.EOM, facts))
        return await link.tell(told, seconds, self._take)

    async def _take(self, change: Modification) -> None:
        edit_begun()
        assert self._changes is not None
        await self._changes.take(change)

    async def _tell(self, link: Link, told: bytes, seconds: float | None = None) -> Answer | None:
        """Say it; gives an answer that is not simply to go on."""
        return _settling(await link.tell(told, seconds or self._options.command_timeout))

    def _macros(self, link: Link, stage: MacroStage, facts: Facts) -> Mapping[str, str]:
        options = self._options.macros
        names = link.codec.terms.macros.get(stage)
        return macros(options.names(stage) if names is None else names, facts, options.values)

    def _skipped(self) -> MilterReply:
        return MilterReply(MilterAction.SKIPPED, self._door.name)

    def _reply(self, answer: Answer | None, wanted: bool) -> MilterReply:
        name = self._door.name
        if answer is None:
            return MilterReply(MilterAction.CONTINUE if wanted else MilterAction.SKIPPED, name)
        if answer.said is Said.REPLY:
            action = MilterAction.REJECT if answer.code >= 500 else MilterAction.TEMPFAIL
            action = MilterAction.CONNECTION_FAIL if answer.code == _CLOSING else action
            return MilterReply(action, name, answer.code, answer.detail, answer.text)
        changes, self._changes = self._changes, None
        if changes is None or answer.said not in (Said.CONTINUE, Said.ACCEPT):
            return MilterReply(_ACTIONS[answer.said], name)
        return MilterReply(_ACTIONS[answer.said], name, quarantine=changes.quarantine, edits=changes.edits())


def _settling(answer: Answer | None) -> Answer | None:
    """An answer that is not simply to go on."""
    return answer if answer and answer.said not in _UNSETTLED else None


_COMMANDS: Final = {
    Stage.CONNECT: Command.CONNECT,
    Stage.HELO: Command.HELO,
    Stage.MAIL: Command.MAIL,
    Stage.RCPT: Command.RCPT,
    Stage.DATA: Command.DATA,
}


def wire_field(field: HeaderField, *, leading_space: bool) -> tuple[bytes, bytes]:
    """Name and value as milters are told them: lines ended by LF, no NUL, and, for most, without the space in front."""
    name, _, value = field.raw.partition(b":")
    value = value.removesuffix(b"\r\n").replace(b"\r\n", b"\n")
    if not leading_space and value.startswith(b" "):
        value = value[1:]
    return name.rstrip(b" \t"), value.replace(b"\0", b"")


def mail_arguments(sender: str, parameters: MailParameters) -> list[str]:
    """The arguments of MAIL as the client gave them."""
    out = [f"<{sender}>"]
    if parameters.size:
        out.append(f"SIZE={parameters.size}")
    if parameters.body is Body.EIGHT_BIT:
        out.append(f"BODY={parameters.body}")
    if parameters.smtputf8:
        out.append("SMTPUTF8")
    if parameters.ret:
        out.append(f"RET={parameters.ret}")
    if parameters.envid:
        out.append(f"ENVID={parameters.envid}")
    return out


def rcpt_arguments(recipient: Recipient) -> list[str]:
    """The arguments of RCPT as the client gave them."""
    out = [f"<{recipient.address}>"]
    if recipient.notify:
        out.append(f"NOTIFY={','.join(sorted(recipient.notify))}")
    if recipient.orcpt:
        out.append(f"ORCPT={recipient.orcpt}")
    return out
