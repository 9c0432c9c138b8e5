"""One SMTP session as a milter hears of it: callbacks in, answers out. Knows nothing of libmilter.

Callbacks come in a thread of libmilter's and are waited for there; the pipeline runs on the event loop.

*Promises*: no callback waits longer than its stage may take and a little. Whatever fails is a TEMPFAIL, and a message
that was half changed is one too. After `close` nothing of the session is left.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ipaddress
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final, Protocol, TypeVar

from gateway.guest.changes import Changes, plan
from gateway.guest.content import MailBuffer, TooBig
from gateway.guest.envelope import mail_parameters, parse_recipient, parse_sender, recipient_parameters
from gateway.guest.request import UNKNOWN_CLIENT
from gateway.guest.ruling import Ruling
from gateway.guest.visit import Host, Visit
from gateway.mail.address import AddressError
from gateway.mail.envelope import Envelope
from gateway.mail.reply import Reply
from gateway.mail.session import IPAddress, Session, Tls, new_session_id, plain_address
from gateway.ops import log
from gateway.sdk.ending import Outcome
from gateway.sdk.stage import Message, Stage
from gateway.sdk.verdict import Action

THROUGH: Final = "milter"
TROUBLE: Final = Reply(451, "3.0", "local trouble, try again later")
BUSY: Final = Reply(421, "3.2", "too many connections, try again later")

_BAD_SENDER: Final = Reply(501, "1.7", "malformed sender address")
_BAD_RECIPIENT: Final = Reply(501, "1.3", "malformed recipient address")
_MARGIN: Final = 5.0
"""Seconds beyond a stage's deadline: every look-up has ended by then, unless the event loop itself hangs."""
_PROGRESS: Final = 10.0
"""So often an MTA that waits for the end of a message hears that it is being worked on, in seconds."""
_END: Final = 10.0

_T = TypeVar("_T")
_log = log.get()


class Word(Enum):
    """What a callback answers."""

    CONTINUE = "continue"
    REJECT = "reject"
    TEMPFAIL = "tempfail"
    DISCARD = "discard"


@dataclass(frozen=True, slots=True)
class Answer:
    """A callback's answer; `reply` goes with REJECT and TEMPFAIL."""

    word: Word
    reply: Reply | None = None


PROCEED: Final = Answer(Word.CONTINUE)


@dataclass(frozen=True, slots=True)
class Options:
    """What all dialogues share. `deadlines` are the stages', sizes in octets."""

    listener: str
    hostname: str
    deadlines: Mapping[Stage, float]
    message_size: int
    header_size: int
    connections: int = 1000


class Editor(Protocol):
    """The MTA's side at the end of a message."""

    @property
    def leads(self) -> bool:
        """Whether values of header fields come and go with the white space before them."""

    def missing(self, changes: Changes, *, quarantine: bool) -> str:
        """What of this the MTA does not let us do; empty when all can be done."""

    def make(self, changes: Changes, body: Callable[[], bytes | None]) -> None:
        """Tell the MTA of all changes. `body` gives the new body in blocks, None at its end."""

    def quarantine(self, reason: str) -> None:
        """Have the MTA set the message aside."""

    def progress(self) -> None:
        """Tell the MTA that it is being worked on."""


@dataclass(slots=True)
class _Mail:
    """The message that is under way."""

    buffer: MailBuffer
    named: dict[str, dict[str, None]] = field(default_factory=dict)
    """By `Address.key`, the names that the MTA has for recipients who were let through, in their order."""
    data: bool = False
    trouble: Answer | None = None


class Dialogue:
    """One connection of the MTA's. Methods are libmilter's callbacks, called one at a time."""

    def __init__(self, host: Host, options: Options, loop: asyncio.AbstractEventLoop) -> None:
        self._host = host
        self._options = options
        self._loop = loop
        self._visit: Visit | None = None
        self._mail: _Mail | None = None
        self._lock = asyncio.Lock()

    @property
    def busy(self) -> bool:
        """Whether a message is under way."""
        return self._mail is not None

    # Callbacks

    def connect(self, name: str, address: object, port: int, macros: Mapping[str, str]) -> Answer:
        """The MTA has a client. `address` is an address or something else, such as the path of a unix socket."""
        self._finish(Outcome.DISCONNECTED)
        client = _client(address)
        if macros.get("{client_resolve}", "OK") != "OK" or name.startswith("[") or name == "unknown":
            name = ""
        listener = macros.get("{daemon_name}") or self._options.listener
        trusted = self._host.trusted(client)
        session = Session(
            new_session_id(), client, port, client, listener, self._host.clock.now(), name=name, trusted=trusted
        )
        visit = self._visit = Visit(self._host, session, THROUGH)
        return self._said(self._wait(visit.connect(), Stage.CONNECT))

    def hello(self, helo: str, macros: Mapping[str, str]) -> Answer:
        """The client gave its name."""
        visit = self._open()
        self._drop()
        session = replace(visit.session, helo=helo, esmtp=macros.get("r", "ESMTP").startswith("E"), tls=_tls(macros))
        return self._said(self._wait(visit.helo(session), Stage.HELO))

    def envfrom(self, sender: str, parameters: Sequence[str], macros: Mapping[str, str]) -> Answer:
        """A message begins."""
        visit = self._open()
        self._drop()
        session = visit.session
        tls = _tls(macros) or session.tls
        visit.session = replace(session, tls=tls, trusted=session.trusted or bool(macros.get("{auth_authen}")))
        try:
            given = parse_sender(sender, self._options.hostname)
        except AddressError as error:
            return self._malformed(_BAD_SENDER, error)
        mail = self._mail = _Mail(MailBuffer(self._options.message_size, self._options.header_size))
        begun = visit.mail(given, mail_parameters(parameters), queue_id=macros.get("i", ""))
        answer = self._said(self._wait(begun, Stage.MAIL))
        if answer is not PROCEED:
            self._mail = None
            mail.buffer.close()
        return answer

    def envrcpt(self, recipient: str, parameters: Sequence[str], macros: Mapping[str, str]) -> Answer:
        """A recipient was given."""
        visit, mail = self._open(), self._under_way()
        visit.name(macros.get("i", ""))
        try:
            address = parse_recipient(recipient, self._options.hostname)
        except AddressError as error:
            return self._malformed(_BAD_RECIPIENT, error)
        answer = self._said(self._wait(visit.rcpt(recipient_parameters(address, parameters)), Stage.RCPT))
        if answer is PROCEED:
            mail.named.setdefault(address.key, {})[recipient] = None
        return answer

    def data(self, macros: Mapping[str, str]) -> Answer:
        """The content comes next."""
        visit, mail = self._open(), self._under_way()
        visit.name(macros.get("i", ""))
        mail.data = True
        answer = self._said(self._wait(visit.data(), Stage.DATA))
        if answer is not PROCEED:
            self._drop()
        return answer

    def header(self, name: str, value: bytes, *, leads: bool) -> None:
        """One header field. What is wrong with it is said at the end of the message."""
        mail = self._under_way()
        if mail.trouble is None:
            mail.trouble = self._taken(lambda: mail.buffer.add_field(name, value, lead=b"" if leads else b" "))

    def body(self, chunk: bytes) -> None:
        """The next octets of the body. What is wrong with them is said at the end of the message."""
        mail = self._under_way()
        if mail.trouble is None:
            mail.trouble = self._taken(lambda: mail.buffer.add_body(chunk))

    def eom(self, editor: Editor, macros: Mapping[str, str]) -> Answer:
        """The message is complete: judge it, and have the MTA change it."""
        visit, mail = self._open(), self._under_way()
        visit.name(macros.get("i", ""))
        try:
            if not mail.data and (answer := self.data(macros)) is not PROCEED:
                return answer
            if mail.trouble is not None and mail.trouble.reply is not None:
                action = Action.REJECT if mail.trouble.word is Word.REJECT else Action.DEFER
                return self._said(self._wait(visit.refuse(Ruling(action, mail.trouble.reply)), Stage.DATA))
            message = Message(tuple(mail.buffer.fields), mail.buffer)
            ruling = self._wait(visit.message(message), Stage.MESSAGE, editor.progress)
            if ruling.refused:
                return self._said(ruling)
            return self._carry_out(ruling, editor, visit, mail)
        except Exception as error:
            self._give_up(error)
            raise
        finally:
            # What still reads the content is called off before it goes.
            self._drop()

    def abort(self) -> None:
        """The message is not going to be. The session goes on."""
        self._drop()

    def close(self) -> None:
        """The session is over."""
        self._finish(Outcome.DISCONNECTED)

    # Inside

    def _carry_out(self, ruling: Ruling, editor: Editor, visit: Visit, mail: _Mail) -> Answer:
        """Tell the MTA what a ruling that does not refuse wants done."""
        size = mail.buffer.size
        if ruling.action is not Action.DISCARD:
            aside = ruling.action is Action.QUARANTINE
            envelope = Envelope(visit.sender, visit.recipients)
            changes = plan(
                mail.buffer.fields,
                envelope,
                ruling.edits,
                dropped=ruling.dropped,
                named=mail.named,
                leads=editor.leads,
            )
            if problem := editor.missing(changes, quarantine=aside):
                _log.error("milter.not_allowed", session=visit.session.id, reason=problem)
                late = Ruling(Action.DEFER, TROUBLE, f"the MTA does not let us {problem}")
                return self._said(self._wait(visit.refuse(late, size=size), Stage.DATA))
            blocks = changes.body.blocks() if changes.body is not None else None
            # A message that is to be set aside must not get away because a change to it failed.
            if aside:
                editor.quarantine(ruling.reason or "quarantined")
            editor.make(changes, lambda: self._wait(_next(blocks), Stage.MESSAGE, editor.progress))
            visit.made(*ruling.edits)
            visit.left_out(*changes.left_out)
        self._wait(visit.end(ruling, size=size), Stage.DATA)
        return Answer(Word.DISCARD) if ruling.action is Action.DISCARD else PROCEED

    def _give_up(self, error: Exception) -> None:
        """The message is deferred because something of ours failed; the record is to say so."""
        visit = self._visit
        if visit is not None and visit.in_transaction:
            reason = f"{type(error).__name__}: {error}"[:300]
            self._await(visit.refuse(Ruling(Action.DEFER, TROUBLE, reason)), _END)

    def _wait(self, work: Coroutine[Any, Any, _T], stage: Stage, progress: Callable[[], None] | None = None) -> _T:
        """Have it done on the event loop, and wait as long as the stage may take. Raises TimeoutError."""
        return self._await(work, self._options.deadlines[stage] + _MARGIN, progress)

    def _await(self, work: Coroutine[Any, Any, _T], seconds: float, progress: Callable[[], None] | None = None) -> _T:
        future = asyncio.run_coroutine_threadsafe(self._in_turn(work), self._loop)
        while True:
            step = min(seconds, _PROGRESS)
            done, _ = concurrent.futures.wait([future], step)
            if done:
                return future.result()
            seconds -= step
            if seconds <= 0:
                future.cancel()
                raise TimeoutError("the event loop did not answer in time")
            if progress is not None:
                progress()

    async def _in_turn(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What an earlier callback left behind, having run out of time, comes to its end first."""
        async with self._lock:
            return await work

    def _said(self, ruling: Ruling) -> Answer:
        if not ruling.refused or ruling.reply is None:
            return PROCEED
        reply = ruling.reply
        if ruling.action is Action.DISCONNECT:
            reply = replace(reply, code=421 if reply.temporary else 521)
        elif reply.code in (421, 521):
            reply = replace(reply, code=451 if reply.temporary else 550)
        return Answer(Word.TEMPFAIL if reply.temporary else Word.REJECT, reply)

    def _malformed(self, reply: Reply, error: AddressError) -> Answer:
        session = self._open().session
        client = str(session.client)
        _log.info("guest.bad_address", session=session.id, client=client, reply=str(reply), reason=str(error))
        return Answer(Word.REJECT, reply)

    def _taken(self, take: Callable[[], None]) -> Answer | None:
        """Take something in; what went wrong with it, if anything."""
        try:
            take()
        except TooBig as error:
            return Answer(Word.REJECT, Reply(552, "3.4", str(error)))
        except OSError as error:
            _log.error("milter.failed", session=self._open().session.id, callback="body", reason=str(error))
            return Answer(Word.TEMPFAIL, TROUBLE)
        return None

    def _drop(self) -> None:
        """Let go of the message that is under way."""
        mail, self._mail = self._mail, None
        try:
            if self._visit is not None and self._visit.in_transaction:
                self._await(self._visit.abort(), _END)
        finally:
            if mail is not None:
                mail.buffer.close()

    def _finish(self, outcome: Outcome) -> None:
        """Let go of the session."""
        visit, self._visit = self._visit, None
        mail, self._mail = self._mail, None
        try:
            if visit is not None:
                self._await(_leave(visit, outcome), _END)
        finally:
            if mail is not None:
                mail.buffer.close()

    def _open(self) -> Visit:
        if self._visit is None:
            raise RuntimeError("the MTA has not said who its client is")
        return self._visit

    def _under_way(self) -> _Mail:
        if self._mail is None:
            raise RuntimeError("no message is under way")
        return self._mail


async def _leave(visit: Visit, outcome: Outcome) -> None:
    try:
        await visit.abort(outcome)
    finally:
        await visit.close()


async def _next(blocks: Any) -> bytes | None:
    """The next block, None at the end."""
    return await anext(blocks, None) if blocks is not None else None


def _client(address: object) -> IPAddress:
    """The client's address; of a local one, which has none, that of this machine."""
    if not isinstance(address, str):
        return UNKNOWN_CLIENT
    try:
        client = ipaddress.ip_address(address.removeprefix("IPv6:").partition("%")[0])
    except ValueError:
        return ipaddress.IPv4Address("127.0.0.1") if address.startswith("/") else UNKNOWN_CLIENT
    return plain_address(client)


def _tls(macros: Mapping[str, str]) -> Tls | None:
    version = macros.get("{tls_version}", "")
    return Tls(version, macros.get("{cipher}", "")) if version else None
