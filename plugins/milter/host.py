"""A milter class's part in one session, seen from the event loop: what is due at a stage, and one thread hop for it.

The class must have heard what came before, so `Visit.come_to` has it called for whatever it has not heard yet, up to
the stage that is asked for: after a failure in the middle of a session, and where an earlier entry accepted a stage.
Callbacks to which the class gives no answer (``@noreply``) wait until one is due that has an answer, in their order:
over a socket nobody waits for them either.

*Promises*: all calls of a stage are made in one hop, but for a body of more than `BATCH_OCTETS`, which takes a hop for
each such piece. One thread at a time is in an instance, and an instance whose call nobody waits for any more is never
used again.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from contextlib import aclosing
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from gateway.sdk import Message, MilterAction, MilterReply, Recipient, Stage, edit_begun, progress
from plugins.milter.changes import Changes
from plugins.milter.content import MEMORY_OCTETS, HeldContent, body_pieces, held_pieces
from plugins.milter.context import Context, Limits, Notices
from plugins.milter.conversation import mail_arguments, rcpt_arguments, wire_field
from plugins.milter.crew import Crew
from plugins.milter.hosted import (
    ABORT,
    BODY,
    CONNECT,
    DATA,
    ENVFROM,
    ENVRCPT,
    EOH,
    EOM,
    HEADER,
    HELLO,
    Call,
    Done,
    Hosted,
)
from plugins.milter.macros import Facts, client_host
from plugins.milter.packets import Answer, Said, Steps

BATCH_OCTETS: Final = 1 << 20
_WAITING: Final = 64
"""Calls that wait for a hop; more than that get one of their own."""
_CLOSING: Final = 421
_LEADING_SPACE: Final = Steps.LEADING_SPACE.value
_ACTIONS: Final = {
    Said.ACCEPT: MilterAction.ACCEPT,
    Said.REJECT: MilterAction.REJECT,
    Said.TEMPFAIL: MilterAction.TEMPFAIL,
    Said.DISCARD: MilterAction.DISCARD,
}
_OWN: Final = {
    Stage.CONNECT: CONNECT,
    Stage.HELO: HELLO,
    Stage.MAIL: ENVFROM,
    Stage.RCPT: ENVRCPT,
    Stage.DATA: DATA,
}


@dataclass(frozen=True, slots=True)
class Host:
    """What all sessions of one milter share. `steps` is what its class declines (`Steps`), None when only an instance
    knows."""

    name: str
    make: Callable[[], Any]
    error: type[Exception]
    steps: int | None
    farewell: bool
    """Whether the class does something in ``close`` or ``abort``."""
    limits: Limits
    values: Mapping[str, str]
    crew: Crew
    plain: dict[MilterAction, MilterReply] = field(default_factory=dict)
    """Answers that are one word, which most are."""

    def reply(self, action: MilterAction) -> MilterReply:
        """An answer of one word."""
        if (reply := self.plain.get(action)) is None:
            reply = self.plain[action] = MilterReply(action, self.name)
        return reply

    def hosted(self) -> Hosted:
        """An instance to be, for a new session."""
        return Hosted(self.make, Context(self.error, self.limits, self.values))


def stages(steps: int) -> frozenset[Stage]:
    """The stages at which a class that declines so is called."""
    return frozenset(stage for stage, callback in _OWN.items() if callback.wanted(steps)) | {Stage.MESSAGE}


class Visit:
    """One milter in one session."""

    def __init__(self, host: Host) -> None:
        self.busy = False
        """Whether calls are being made: whoever asked was called off, and this visit cannot go on."""
        self._host = host
        self._hosted: Hosted | None = None
        self._facts: Facts | None = None
        self._forget()

    def _forget(self) -> None:
        """Nothing has been told to this instance."""
        self._waiting: list[Call] = []
        self._helo: str | None = None
        self._transaction = ""
        self._told: dict[Recipient, None] = {}
        self._connected = self._data = self._settled = False
        self._refused: Done | None = None
        """The answer that settled the whole session."""

    async def come_to(self, stage: Stage, facts: Facts, message: Message | None = None) -> MilterReply:
        """Have it called for this stage, and for what it missed before. `message` at stage `message` only.

        Raises what the milter raises, and `MilterError`; the instance is given up then.
        """
        self.busy = True
        self._facts = facts
        try:
            return await self._come_to(stage, facts, message)
        except BaseException:
            self._give_up()
            raise
        finally:
            self.busy = False

    async def end(self) -> None:
        """The session is over."""
        hosted, calls, facts = self._hosted, self._waiting, self._facts
        self._hosted = None
        self._forget()
        if facts is None or (hosted is None and not calls):
            return
        if hosted is not None and not calls and not self._host.farewell:
            hosted.drop()
            return
        hosted = hosted or self._host.hosted()
        try:
            await self._host.crew.run(partial(hosted.finish, [*calls, Call(ABORT, facts)], _notices(self._host.crew)))
        except BaseException:
            hosted.abandoned = True
            raise

    def _give_up(self) -> None:
        if self._hosted is not None:
            self._hosted.abandoned = True
            self._hosted = None
        self._forget()

    @property
    def _steps(self) -> int | None:
        """What it declines, None when nobody has asked it yet."""
        return self._hosted.steps if self._hosted and self._hosted.steps is not None else self._host.steps

    async def _come_to(self, stage: Stage, facts: Facts, message: Message | None) -> MilterReply:
        if (refused := self._refused) is not None:
            if not (stage is Stage.HELO and refused.by is HELLO):
                return self._of_session(refused)
            self._refused = None
        calls = self._due(stage, facts)
        if message is not None and not self._settled:
            self._settled = True
            done, edits = await self._message(calls, facts, message)
            return self._reply(done, edits)
        steps = self._steps
        if steps is None and not calls:
            return self._skipped()
        if steps is not None:
            calls = [call for call in calls if call.callback.wanted(steps)]
            if all(call.callback is ABORT or steps & call.callback.silent for call in calls):
                self._waiting += calls
                if len(self._waiting) > _WAITING:
                    await self._hop([])
                return self._skipped()
        return self._reply(await self._hop(calls))

    def _due(self, stage: Stage, facts: Facts) -> list[Call]:
        """The calls up to this stage that it has not had, but for those of the message's content."""
        calls: list[Call] = []
        session, transaction = facts.session, facts.transaction
        if not self._connected:
            self._connected = True
            calls.append(Call(CONNECT, facts, _client(facts)))
        if stage is Stage.CONNECT:
            return calls
        if session.helo and (stage is Stage.HELO or self._helo != session.helo):
            self._helo = session.helo
            calls += [Call(ABORT, facts), Call(HELLO, facts, (session.helo,))]
        if transaction is None:
            return calls
        if self._transaction != transaction.id:
            self._transaction = transaction.id
            self._told = {}
            self._data = self._settled = False
            arguments = mail_arguments(str(transaction.sender), transaction.parameters)
            calls += [Call(ABORT, facts), Call(ENVFROM, facts, _octets(arguments))]
        if self._settled or self._data:
            return calls
        for recipient in transaction.recipients:
            if recipient not in self._told:
                calls.append(self._recipient(facts, recipient, asked=False))
        if stage is Stage.RCPT and facts.recipient is not None:
            calls.append(self._recipient(facts, facts.recipient, asked=True))
        elif stage in (Stage.DATA, Stage.MESSAGE):
            self._data = True
            calls.append(Call(DATA, self._last(facts)))
        return calls

    def _last(self, facts: Facts) -> Facts:
        """With the last recipient that it was told: macros of recipients hold until the message ends."""
        last = next(reversed(self._told), None)
        return facts if facts.recipient is last else facts._replace(recipient=last)

    def _recipient(self, facts: Facts, recipient: Recipient, *, asked: bool) -> Call:
        self._told[recipient] = None
        if facts.recipient is not recipient:
            facts = facts._replace(recipient=recipient)
        return Call(ENVRCPT, facts, _octets(rcpt_arguments(recipient)), asked)

    async def _message(self, calls: list[Call], facts: Facts, message: Message) -> tuple[Done, Changes | None]:
        """The content, and what the milter makes of it."""
        if self._steps is None:
            # Which of it is wanted is known only when the instance is there.
            if (done := await self._hop(calls)).answer:
                return done, None
            calls = []
        steps = self._steps
        assert steps is not None
        facts = self._last(facts)
        leading_space = bool(steps & _LEADING_SPACE)
        if HEADER.wanted(steps):
            for field in message.fields:
                _, value = wire_field(field, leading_space=leading_space)
                calls.append(Call(HEADER, facts, (field.name, value)))
        calls.append(Call(EOH, facts))
        if BODY.wanted(steps) and isinstance(message.content, HeldContent):
            calls += [Call(BODY, facts, (piece,)) for piece in held_pieces(message.fields, message.content)]
        elif BODY.wanted(steps):
            size = 0
            async with aclosing(body_pieces(message)) as pieces:
                async for piece in pieces:
                    if not piece:
                        continue
                    calls.append(Call(BODY, facts, (piece,)))
                    size += len(piece)
                    if size >= BATCH_OCTETS:
                        if (done := await self._hop(calls)).answer:
                            return done, None
                        if self._hosted and self._hosted.skips(BODY):
                            calls = []
                            break
                        calls, size = [], 0
        done = await self._hop([*calls, Call(EOM, facts)])
        limits = self._host.limits
        changes = Changes(
            message.fields,
            leading_space=leading_space,
            most=limits.edits,
            body_size=limits.body_size,
            # On the event loop nothing may have to wait, and the pieces are in memory anyway.
            memory=MEMORY_OCTETS if self._host.crew.most else limits.body_size,
        )
        for change in done.changes:
            await changes.take(change)
        return done, changes

    async def _hop(self, calls: list[Call]) -> Done:
        """Have these made, after those that wait."""
        if self._waiting:
            calls = [*self._waiting, *calls]
            self._waiting = []
        if self._hosted is None:
            self._hosted = self._host.hosted()
        return await self._host.crew.run(partial(self._hosted.perform, calls, _notices(self._host.crew)))

    def _skipped(self) -> MilterReply:
        return self._host.reply(MilterAction.SKIPPED)

    def _of_session(self, refused: Done) -> MilterReply:
        assert refused.answer is not None
        return self._skipped() if refused.answer.said is Said.ACCEPT else self._plain(refused.answer)

    def _reply(self, done: Done, changes: Changes | None = None) -> MilterReply:
        answer = done.answer
        self._note(done)
        if answer is not None and answer.said is not Said.ACCEPT:
            return self._plain(answer)
        action = MilterAction.CONTINUE if answer is None else MilterAction.ACCEPT
        if changes is None:
            return self._host.reply(action)
        return MilterReply(action, self._host.name, quarantine=changes.quarantine, edits=changes.edits())

    def _note(self, done: Done) -> None:
        """Remember what an answer settles."""
        if done.answer is None:
            return
        if done.by in (CONNECT, HELLO):
            self._refused = done
        elif done.by is not ENVRCPT or done.answer.said in (Said.ACCEPT, Said.DISCARD):
            self._settled = True

    def _plain(self, answer: Answer) -> MilterReply:
        """An answer without changes."""
        if answer.said is not Said.REPLY:
            return self._host.reply(_ACTIONS[answer.said])
        action = MilterAction.REJECT if answer.code >= 500 else MilterAction.TEMPFAIL
        action = MilterAction.CONNECTION_FAIL if answer.code == _CLOSING else action
        return MilterReply(action, self._host.name, answer.code, answer.detail, answer.text)


def _client(facts: Facts) -> tuple[str, int, tuple[Any, ...]]:
    """The arguments of ``connect`` as pymilter gives them."""
    session = facts.session
    address: tuple[Any, ...] = (str(session.client), session.client_port)
    if session.client.version == 4:
        return client_host(facts), int(socket.AF_INET), address
    return client_host(facts), int(socket.AF_INET6), (*address, 0, 0)


def _octets(arguments: list[str]) -> tuple[bytes, ...]:
    return tuple(argument.encode("utf-8", "surrogateescape") for argument in arguments)


_HERE: Final = Notices(edit_begun, progress)


def _notices(crew: Crew) -> Notices:
    """Ways for whoever does the work to tell the look-up that runs here."""
    if not crew.most:
        return _HERE
    loop, context = asyncio.get_running_loop(), copy_context()
    pending = False

    def get_on() -> None:
        nonlocal pending
        pending = False
        progress()

    def say_progress() -> None:
        nonlocal pending
        # A milter may say so a million times; once for each turn of the loop will do.
        if not pending:
            pending = True
            loop.call_soon_threadsafe(get_on, context=context)

    def say_edit_begun() -> None:
        loop.call_soon_threadsafe(edit_begun, context=context)

    return Notices(say_edit_begun, say_progress)
