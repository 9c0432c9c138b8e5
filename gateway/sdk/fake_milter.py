"""A milter for tests: a real server of the protocol on loopback that answers as a test says, stage by stage.

What it is to answer is written as what a milter client finds, so that a policy that takes `MilterReply`, a pipeline
with ``milter`` in it and the plugin itself are all tried with the same words. There is no written standard; it says
what libmilter says. Authors find it in `gateway.sdk.testing`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Final

from gateway.mail.edit import (
    END,
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    DeleteHeader,
    DeleteRecipient,
    Edit,
    ReplaceBody,
)
from gateway.mail.envelope import Recipient
from gateway.mail.message import Content
from gateway.sdk.handing import MilterAction, MilterReply
from gateway.sdk.stage import Stage

_VERSION: Final = 6
_ACTIONS: Final = 0x1FF
_LEADING_SPACE: Final = 0x100000
_CHUNK: Final = 65_535
_STAGES: Final = {
    "C": Stage.CONNECT,
    "H": Stage.HELO,
    "M": Stage.MAIL,
    "R": Stage.RCPT,
    "T": Stage.DATA,
    "E": Stage.MESSAGE,
}
_PLAIN: Final = {
    MilterAction.CONTINUE: "c",
    MilterAction.ACCEPT: "a",
    MilterAction.REJECT: "r",
    MilterAction.TEMPFAIL: "t",
    MilterAction.DISCARD: "d",
    MilterAction.CONNECTION_FAIL: "f",
}
_GARBAGE: Final = b"\x00\x00\x00\x05?what"


class MilterFault(Enum):
    """How a milter fails instead of an answer, so that an entry's `timeout` and `on_error` are seen at work."""

    HANGS = "hangs"
    """It says nothing any more."""
    DIES = "dies"
    """It closes the connection."""
    GARBAGE = "garbage"
    """It says what is no answer."""


@dataclass
class MilterTold:
    """What the milter was told of one message so far; sender and recipients with their angle brackets.

    `fields` are names and values of the header section. `macros` are all that were given, by name without braces.
    """

    client: str = ""
    helo: str = ""
    sender: str = ""
    recipients: list[str] = field(default_factory=list)
    fields: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    macros: dict[str, str] = field(default_factory=dict)

    def anew(self) -> MilterTold:
        """For the session's next message."""
        return MilterTold(self.client, self.helo, macros=dict(self.macros))


Answer = MilterReply | MilterAction | MilterFault
Answers = Mapping[Stage, Answer | Callable[[MilterTold], Answer]]


class FakeMilter:
    """Answers each stage as `answers` says, with *continue* where they say nothing.

    An answer is a `MilterReply` (whose `milter` does not matter), its action alone, a `MilterFault`, or a function of
    what the milter was told so far. Edits and quarantine go with *continue* or *accept* at stage `message`. At `rcpt`
    the recipient in question is the last one told.

        with FakeMilter({Stage.RCPT: MilterReply(MilterAction.REJECT, "m", 550, "1.1", "not here")}) as milter:
            found = Bench().find("milter", {"connect": milter.address}, Stage.RCPT)

    Raises ValueError for what no milter can say.
    """

    def __init__(self, answers: Answers | None = None) -> None:
        self._answers = dict(answers or {})
        for stage, answer in self._answers.items():
            if isinstance(answer, (MilterReply, MilterAction)):
                _check(stage, _reply(answer))
        self.stages: list[Stage] = []
        """The stages it was told of, in order, `rcpt` once for each recipient."""
        self.messages: list[MilterTold] = []
        """Messages of which it was told the end."""
        self.troubles: list[Exception] = []
        """What answers could not be given: a function that raised, or gave what no milter can say."""
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def address(self) -> str:
        """What the option `connect` of ``milter`` takes."""
        host, port = self._listener.getsockname()[:2]
        return f"{host}:{port}"

    def close(self) -> None:
        """Close all connections, and listen no more."""
        self._closing.set()
        with self._lock:
            sockets = [self._listener, *self._open]
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    def __enter__(self) -> FakeMilter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            with self._lock:
                self._open.add(connection)
                self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as stream:
                link = _Link(self)
                while head := stream.read(4):
                    command = stream.read(struct.unpack(">I", head)[0])
                    for octets in link.hear(chr(command[0]), command[1:]):
                        connection.sendall(octets)
                    if link.over:
                        return
                    if link.hangs:
                        self._closing.wait()
                        return
        except (OSError, struct.error, IndexError):
            return  # The client has gone, in the middle of a packet perhaps.
        finally:
            with self._lock:
                self._open.discard(connection)

    def answer(self, stage: Stage, told: MilterTold) -> Answer:
        """What to answer now."""
        self.stages.append(stage)
        if stage is Stage.MESSAGE:
            self.messages.append(told)
        answer = self._answers.get(stage, MilterAction.CONTINUE)
        try:
            said = answer if isinstance(answer, (MilterReply, MilterAction, MilterFault)) else answer(told)
            if not isinstance(said, MilterFault):
                said = _reply(said)
                _check(stage, said)
        except Exception as error:  # noqa: BLE001 - a test's own function; the test looks at `troubles`
            self.troubles.append(error)
            return MilterFault.DIES
        return said


class _Link:
    """One connection: packets in, packets out."""

    def __init__(self, milter: FakeMilter) -> None:
        self.over = self.hangs = False
        self._milter = milter
        self._told = MilterTold()
        self._leading_space = False

    def hear(self, letter: str, data: bytes) -> Iterator[bytes]:
        """What to send for this command."""
        if letter == "O":
            version, actions, steps = struct.unpack(">III", data)
            self._leading_space = bool(steps & _LEADING_SPACE)
            yield _packet("O", struct.pack(">III", min(version, _VERSION), actions & _ACTIONS, steps & _LEADING_SPACE))
            return
        self._note(letter, data)
        if letter == "Q":
            self.over = True
        if letter in "DAKQ":
            return
        stage = _STAGES.get(letter)
        if stage is None:
            yield _packet("c")
            return
        said = self._milter.answer(stage, self._told)
        if stage is Stage.MESSAGE:
            self._told = self._told.anew()
        if isinstance(said, MilterFault):
            self.hangs = said is MilterFault.HANGS
            self.over = not self.hangs
            if said is MilterFault.GARBAGE:
                yield _GARBAGE
            return
        yield from _spoken(_reply(said), self._leading_space)

    def _note(self, letter: str, data: bytes) -> None:
        texts = [part.decode("utf-8", "surrogateescape") for part in data.split(b"\0")]
        told = self._told
        match letter:
            case "C":
                # The host's name, a NUL, then family and port (in three octets), then the address.
                self._told = MilterTold(data.partition(b"\0")[2][3:].rstrip(b"\0").decode("ascii", "replace"))
            case "D":
                names, values = texts[0:-1:2], texts[1:-1:2]
                names[0] = names[0][1:]  # after the letter of the command that they are for
                told.macros.update(zip((name.strip("{}") for name in names), values, strict=False))
            case "H":
                told.helo = texts[0]
            case "M":
                self._told = told.anew()
                self._told.sender = texts[0]
            case "R":
                told.recipients.append(texts[0])
            case "L":
                told.fields.append((texts[0], texts[1].removeprefix(" ") if self._leading_space else texts[1]))
            case "B" | "E":
                told.body += data
            case "A":
                self._told = told.anew()
            case "K":
                self._told = MilterTold()


def _packet(letter: str, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data) + 1) + letter.encode() + data


def _reply(answer: MilterReply | MilterAction) -> MilterReply:
    return MilterReply(answer, "fake") if isinstance(answer, MilterAction) else answer


def _check(stage: Stage, reply: MilterReply) -> None:
    """Raise ValueError for what no milter can say."""
    for_good = {MilterAction.REJECT: range(500, 600), MilterAction.TEMPFAIL: range(400, 500)}
    if reply.action is MilterAction.SKIPPED:
        raise ValueError("that a milter was not asked is nothing it says")
    if reply.code and reply.code not in {**for_good, MilterAction.CONNECTION_FAIL: (421,)}.get(reply.action, ()):
        raise ValueError(f"{reply.action} does not go with {reply.code}")
    if (reply.detail or reply.text) and not reply.code:
        raise ValueError("a milter's own text needs a code")
    if not reply.edits and not reply.quarantine:
        return
    if stage is not Stage.MESSAGE or reply.action not in (MilterAction.CONTINUE, MilterAction.ACCEPT):
        raise ValueError("a milter changes and quarantines messages at their end, and goes on or accepts")
    for edit in reply.edits:
        if not isinstance(edit, ReplaceBody):
            _spoken_edit(edit, leading_space=False)


def _spoken(reply: MilterReply, leading_space: bool) -> Iterator[bytes]:
    for edit in reply.edits:
        yield _spoken_edit(edit, leading_space)
    if reply.quarantine:
        yield _packet("q", _text(reply.quarantine))
    if reply.code:
        status = f"{reply.code // 100}.{reply.detail} " if reply.detail else ""
        lines = reply.text.replace("%", "%%").split("\n")
        marks = ["-"] * (len(lines) - 1) + [" "]
        whole = "\r\n".join(f"{reply.code}{mark}{status}{line}" for mark, line in zip(marks, lines, strict=True))
        yield _packet("y", _text(whole))
    else:
        yield _packet(_PLAIN[reply.action])


def _spoken_edit(edit: Edit, leading_space: bool) -> bytes:
    match edit:
        case AddHeader(name, value, index, lead):
            field = _text(name) + _text(_value(value, lead, leading_space))
            # Milters count the field on top that an MTA adds, which stands above all that they were told of.
            return _packet("h", field) if index >= END else _packet("i", struct.pack(">I", index + 1) + field)
        case ChangeHeader(name, nth, value, lead):
            return _packet("m", struct.pack(">I", nth) + _text(name) + _text(_value(value, lead, leading_space)))
        case DeleteHeader(name, nth) if nth:
            return _packet("m", struct.pack(">I", nth) + _text(name) + _text(""))
        case ReplaceBody(body):
            octets = asyncio.run(_octets(body))
            pieces = [octets[at : at + _CHUNK] for at in range(0, len(octets), _CHUNK)] or [b""]
            return b"".join(_packet("b", piece) for piece in pieces)
        case ChangeSender(sender):
            parameters = [f"RET={edit.ret}"] if edit.ret else []
            parameters += [f"ENVID={edit.envid}"] if edit.envid else []
            return _packet("e", _text(f"<{sender}>") + (_text(" ".join(parameters)) if parameters else b""))
        case AddRecipient(recipient):
            parameters = _parameters(recipient)
            path = _text(f"<{recipient.address}>")
            return _packet("2", path + _text(" ".join(parameters))) if parameters else _packet("+", path)
        case DeleteRecipient(address):
            return _packet("-", _text(f"<{address}>"))
    raise ValueError(f"no milter can say {edit}")


def _parameters(recipient: Recipient) -> list[str]:
    notify = [f"NOTIFY={','.join(sorted(recipient.notify))}"] if recipient.notify else []
    return notify + ([f"ORCPT={recipient.orcpt}"] if recipient.orcpt else [])


def _value(value: str, lead: str, leading_space: bool) -> str:
    if "\0" in value:
        raise ValueError("a milter's texts end at a NUL")
    return lead + value if leading_space else value


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape") + b"\0"


async def _octets(content: Content) -> bytes:
    return b"".join([block async for block in content.blocks()])
