"""The client's side of a milter connection, without I/O: octets in, events out.

How a conversation goes. The two sides first agree on a version, on what the milter may change, and on what it does not
want to hear (``Steps.NO_...``) or does not answer (``Steps.SILENT_...``). Then comes one session after another:
CONNECT, HELO, and for each message MAIL, RCPT (many), DATA, HEADER (many), EOH, BODY (many), END. Every command is
answered once, unless the milter said that it stays silent, so several commands may go out in one write as long as only
the last of them is answered. `Progress` may come before any answer and is none. Only before the answer to END the
milter says what it wants changed, in any number of modifications. ABORT drops the message and not the session; QUIT_NC
ends the session and keeps the connection for another one; QUIT ends both. None of the three is answered.

What an answer means depends on what it answers. At CONNECT and HELO it is about the session, at RCPT a refusal is about
that recipient only, and elsewhere everything but *continue* settles the message: the milter has forgotten it then and
waits for MAIL. `_SENT` says which command may be said when, `_ANSWERED` what comes of an answer; a pair that is not
in there is our bug in the one case and the milter's in the other.

A session can be followed by another one on the same connection at some moments only. libmilter understands QUIT_NC
right after it has gone on at END, and after ABORT of a message of which it has heard. At others it takes no notice,
does not answer the next CONNECT either, and so is better left with QUIT. Nor is a connection kept of a milter that
does not want to hear CONNECT.

The body goes into BODY packets and never into that of END, where it might stand too: libmilter takes a callback's
answer to such a piece for the one to END, and a milter that stays silent about the body would never give that.

Content may be said ahead: header fields, the end of the header section, the body and the end of the message need not
wait for the answers to those before them, which come in their order. A milter that settles the message meanwhile has
what it takes no notice of on its way; what it says next nobody could tell apart, so the connection ends there.

A milter that answers although it promised silence would shift all later answers by one, and a refusal would be taken
for that of another message. So an answer that nobody waits for ends the connection.

*Promises*: bounded by `PACKET_OCTETS`; what is fed in pieces gives the same events as in one.

*Fails by*: `MilterError`, after which the connection is of no use. ValueError for what the owner must not do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Final

from plugins.milter.packets import (
    CHUNK_OCTETS,
    PACKET_OCTETS,
    Answer,
    BodyReplaced,
    Command,
    Event,
    MilterError,
    Negotiated,
    Progress,
    Said,
    Steps,
    Terms,
    joined,
    macro_packet,
    offer,
    options_packet,
    packet,
    read_answer,
    read_close,
    read_header_added,
    read_header_changed,
    read_header_inserted,
    read_options,
    read_quarantine,
    read_recipient,
    read_recipient_deleted,
    read_reply,
    read_sender,
    text,
)

Macros = Mapping[str, str]


class Phase(Enum):
    """Where the connection stands."""

    NEW = "new"
    OPTIONS = "agreeing on options"
    IDLE = "between two sessions"
    SESSION = "in a session"
    ENVELOPE = "in the envelope"
    HEADER = "in the header section"
    BODY = "in the body"
    END = "at the end of a message"
    ACCEPTED = "in a session that was accepted as a whole"
    CLOSED = "closed"


_IN_MESSAGE: Final = (Phase.ENVELOPE, Phase.HEADER, Phase.BODY)
_IN_SESSION: Final = (Phase.SESSION, *_IN_MESSAGE, Phase.ACCEPTED)

_SENT: Final[dict[tuple[Phase, Command], Phase]] = {
    (Phase.NEW, Command.OPTIONS): Phase.OPTIONS,
    (Phase.IDLE, Command.CONNECT): Phase.SESSION,
    (Phase.SESSION, Command.HELO): Phase.SESSION,
    (Phase.SESSION, Command.MAIL): Phase.ENVELOPE,
    (Phase.ENVELOPE, Command.RCPT): Phase.ENVELOPE,
    (Phase.ENVELOPE, Command.DATA): Phase.HEADER,
    (Phase.HEADER, Command.HEADER): Phase.HEADER,
    (Phase.HEADER, Command.EOH): Phase.BODY,
    (Phase.BODY, Command.BODY): Phase.BODY,
    (Phase.BODY, Command.END): Phase.END,
    **{(phase, Command.ABORT): Phase.SESSION for phase in (Phase.SESSION, *_IN_MESSAGE)},
    **{(phase, Command.QUIT_NC): Phase.IDLE for phase in _IN_SESSION},
    **{(phase, Command.QUIT): Phase.CLOSED for phase in (Phase.IDLE, *_IN_SESSION)},
}
"""What may be said when, and where that leads."""

_SETTLING: Final = (Said.ACCEPT, Said.REJECT, Said.TEMPFAIL, Said.DISCARD, Said.REPLY)
_REFUSING: Final = (Said.REJECT, Said.TEMPFAIL, Said.REPLY)
_CONTENT: Final = (Command.DATA, Command.HEADER, Command.EOH, Command.BODY)

_ANSWERED: Final[dict[tuple[Command, Said], Phase | None]] = {
    **{(command, Said.CONTINUE): None for command in (Command.MAIL, Command.RCPT, *_CONTENT)},
    **{(command, Said.CONTINUE): Phase.SESSION for command in (Command.CONNECT, Command.HELO, Command.END)},
    **{(command, Said.ACCEPT): Phase.ACCEPTED for command in (Command.CONNECT, Command.HELO)},
    **{(command, said): Phase.SESSION for command in (Command.CONNECT, Command.HELO) for said in _REFUSING},
    **{(command, said): Phase.SESSION for command in (Command.MAIL, *_CONTENT, Command.END) for said in _SETTLING},
    **{(Command.RCPT, said): None for said in _REFUSING},
    **{(Command.RCPT, said): Phase.SESSION for said in (Said.ACCEPT, Said.DISCARD)},
    (Command.BODY, Said.SKIP): None,
    **{
        (command, Said.CLOSE): Phase.CLOSED
        for command in (Command.CONNECT, Command.HELO, Command.MAIL, Command.RCPT, *_CONTENT, Command.END)
    },
}
"""What an answer leads to; None leaves the phase as it is."""

_UNWANTED: Final = {
    Command.CONNECT: Steps.NO_CONNECT,
    Command.HELO: Steps.NO_HELO,
    Command.MAIL: Steps.NO_MAIL,
    Command.RCPT: Steps.NO_RCPT,
    Command.DATA: Steps.NO_DATA,
    Command.HEADER: Steps.NO_HEADERS,
    Command.EOH: Steps.NO_EOH,
    Command.BODY: Steps.NO_BODY,
}
_SILENT: Final = {
    Command.CONNECT: Steps.SILENT_CONNECT,
    Command.HELO: Steps.SILENT_HELO,
    Command.MAIL: Steps.SILENT_MAIL,
    Command.RCPT: Steps.SILENT_RCPT,
    Command.DATA: Steps.SILENT_DATA,
    Command.HEADER: Steps.SILENT_HEADER,
    Command.EOH: Steps.SILENT_EOH,
    Command.BODY: Steps.SILENT_BODY,
}

_AHEAD: Final = frozenset({Command.HEADER, Command.EOH, Command.BODY, Command.END})
"""What may be said while answers to other content are due."""

_OF_MESSAGE: Final = frozenset({Command.MAIL, Command.RCPT, *_CONTENT})
_NEVER_ANSWERED: Final = frozenset({Command.ABORT, Command.QUIT, Command.QUIT_NC})

_ANSWERS: Final[dict[int, Said]] = {
    ord("a"): Said.ACCEPT,
    ord("c"): Said.CONTINUE,
    ord("d"): Said.DISCARD,
    ord("r"): Said.REJECT,
    ord("s"): Said.SKIP,
    ord("t"): Said.TEMPFAIL,
}
_REPLIES: Final[dict[int, Callable[[bytes], Answer]]] = {
    ord("y"): read_reply,
    ord("f"): read_close,
    ord("4"): read_close,
}
_MODIFICATIONS: Final[dict[int, Callable[[bytes], Event]]] = {
    ord("+"): read_recipient,
    ord("2"): read_recipient,
    ord("-"): read_recipient_deleted,
    ord("b"): BodyReplaced,
    ord("e"): read_sender,
    ord("h"): read_header_added,
    ord("i"): read_header_inserted,
    ord("m"): read_header_changed,
    ord("q"): read_quarantine,
}
_PROGRESS: Final = ord("p")


class Codec:
    """One connection. Each method gives the octets to write; while `awaited` is set, an answer is to be read first."""

    __slots__ = (
        "_buffer",
        "_clean",
        "_due",
        "_heard",
        "_offered",
        "_silent",
        "_unwanted",
        "phase",
        "skips_body",
        "terms",
        "trouble",
    )

    def __init__(self, version: int = 6) -> None:
        self.phase = Phase.NEW
        self._due: deque[Command] = deque()
        """Commands whose answers are due, in order."""
        self.skips_body = False
        """It has seen enough of this message's body."""
        self.trouble: MilterError | None = None
        """What is wrong with that which came after the events that were given last."""
        self._offered = offer(version)
        self.terms = self._offered
        self._unwanted: frozenset[Command] = frozenset()
        self._silent = _NEVER_ANSWERED
        self._heard = False
        """The milter has something of a message."""
        self._clean = False
        """It has nothing any more and would take QUIT_NC."""
        self._buffer = bytearray()

    # What the owner says. `macros` go before the command, and even if the milter does not want that.

    def negotiate(self) -> bytes:
        """Our offer; the answer is a `Negotiated`."""
        return self._say(Command.OPTIONS, None, options_packet(self._offered))

    def connect(self, name: str, address: str, port: int, *, v6: bool = False, macros: Macros = {}) -> bytes:  # noqa: B006
        """The client is connected; `name` is what the DNS knows of it."""
        where = (b"6" if v6 else b"4") + port.to_bytes(2, "big")
        return self._say(Command.CONNECT, macros, packet(Command.CONNECT, text(name) + where + text(address)))

    def helo(self, name: str, macros: Macros) -> bytes:
        return self._say(Command.HELO, macros, packet(Command.HELO, text(name)))

    def mail(self, arguments: Sequence[str], macros: Macros) -> bytes:
        """A message begins; `arguments` are the path in brackets and the ESMTP parameters one by one."""
        self.skips_body = False
        return self._say(Command.MAIL, macros, packet(Command.MAIL, joined(arguments)))

    def rcpt(self, arguments: Sequence[str], macros: Macros) -> bytes:
        return self._say(Command.RCPT, macros, packet(Command.RCPT, joined(arguments)))

    def data(self, macros: Macros) -> bytes:
        return self._say(Command.DATA, macros, packet(Command.DATA))

    def header(self, name: bytes, value: bytes) -> bytes:
        """One header field: no NUL in it, lines ended by LF alone; its end is left out where it is too large."""
        # libmilter closes the connection when a packet is larger, and anybody may write such a field.
        value = value[: CHUNK_OCTETS - len(name) - 2]
        return self._say(Command.HEADER, None, packet(Command.HEADER, name + b"\0" + value + b"\0"))

    def eoh(self, macros: Macros) -> bytes:
        return self._say(Command.EOH, macros, packet(Command.EOH))

    def body(self, octets: bytes) -> bytes:
        """A piece of the body, of `CHUNK_OCTETS` at most."""
        if len(octets) > CHUNK_OCTETS:
            raise ValueError("the piece is too large")
        return self._say(Command.BODY, None, packet(Command.BODY, octets))

    def end(self, macros: Macros) -> bytes:
        """The message is whole."""
        return self._say(Command.END, macros, packet(Command.END))

    def abort(self) -> bytes:
        """The message is dropped, and the session goes on. A milter that has not heard of it is told nothing."""
        heard, clean = self._heard, self._clean
        octets = self._say(Command.ABORT, None, packet(Command.ABORT))
        self._clean = heard or clean
        return octets if heard else b""

    def quit(self, *, keep: bool = False) -> bytes:
        """The session is over; with `keep` the connection waits for another one (`reusable`)."""
        command = Command.QUIT_NC if keep else Command.QUIT
        return self._say(command, None, packet(command))

    @property
    def awaited(self) -> Command | None:
        """The command whose answer is due next."""
        return self._due[0] if self._due else None

    @property
    def due(self) -> int:
        """How many answers are due."""
        return len(self._due)

    @property
    def in_message(self) -> bool:
        """Whether the milter has a message that it was not told the end of."""
        return self.phase in _IN_MESSAGE

    @property
    def can_quit(self) -> bool:
        """Whether `quit` can be said now."""
        return not self.awaited and (self.phase, Command.QUIT) in _SENT

    @property
    def reusable(self) -> bool:
        """Whether `quit` may keep the connection; a message that the milter has is to be aborted before."""
        left = self._heard if self.in_message else self._clean
        # Who does not want CONNECT would not notice that a session has begun: pymilter makes its objects then.
        wanted = self.wants(Command.CONNECT)
        return self.terms.version >= 6 and wanted and not self.awaited and not self.trouble and left

    def wants(self, command: Command) -> bool:
        """Whether the milter wants to be told."""
        return command not in self._unwanted

    def _say(self, command: Command, macros: Macros | None, octets: bytes) -> bytes:
        phase = _SENT.get((self.phase, command))
        ahead = not self._due or (command in _AHEAD and self._due[-1] in _CONTENT)
        if phase is None or not ahead:
            due = f", the answer to {self._due[0].name} is due" if self._due else ""
            raise ValueError(f"{command.name} cannot be said {self.phase.value}{due}")
        self.phase = phase
        before = macro_packet(command, macros) if macros else b""
        if command in self._unwanted:
            return before
        if command not in self._silent:
            self._due.append(command)
        self._heard = command in _OF_MESSAGE
        self._clean = False
        return before + octets if before else octets

    # What the milter says.

    def receive(self, data: bytes) -> list[Event]:
        """What the octets mean, in order. Raises `MilterError`; `trouble` is for when there are events before it."""
        events: list[Event] = []
        try:
            self._read(data, events)
        except MilterError as error:
            if not events:
                raise
            self.trouble = error
        return events

    def _read(self, data: bytes, events: list[Event]) -> None:
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= 4:
            size = int.from_bytes(buffer[at : at + 4], "big")
            if not 1 <= size <= PACKET_OCTETS:
                raise MilterError(f"a packet of {size} octets")
            if len(buffer) - at < size + 4:
                break
            events.append(self._event(buffer[at + 4], bytes(buffer[at + 5 : at + 4 + size])))
            at += size + 4
        if at:
            del buffer[:at]

    def _event(self, letter: int, data: bytes) -> Event:
        awaited = self.awaited
        if awaited is None:
            raise MilterError(f"it said {chr(letter)!r} and nobody had asked")
        if awaited is Command.OPTIONS:
            return self._agree(letter, data)
        if letter == _PROGRESS and not data:
            return Progress()
        if read := _MODIFICATIONS.get(letter):
            if awaited is not Command.END:
                raise MilterError(f"it changes the message with {chr(letter)!r} at {awaited.name}")
            return read(data)
        said = _ANSWERS.get(letter)
        if said is None and letter not in _REPLIES:
            raise MilterError(f"it said {chr(letter)!r}, which means nothing")
        return self._settle(awaited, read_answer(said, data) if said else _REPLIES[letter](data))

    def _settle(self, awaited: Command, answer: Answer) -> Answer:
        if (awaited, answer.said) not in _ANSWERED:
            raise MilterError(f"it said {answer.said} to {awaited.name}")
        self._due.popleft()
        self._clean = awaited is Command.END and answer.said is Said.CONTINUE
        if (phase := _ANSWERED[awaited, answer.said]) is not None:
            self.phase = Phase.CLOSED if self._due else phase
            self._due.clear()
        self.skips_body = self.skips_body or answer.said is Said.SKIP
        return answer

    def _agree(self, letter: int, data: bytes) -> Negotiated:
        if letter != Command.OPTIONS:
            raise MilterError(f"it answered our options with {chr(letter)!r}")
        found = read_options(data)
        terms, offered = found.terms, self._offered
        if not 2 <= terms.version <= offered.version:
            raise MilterError(f"it speaks version {terms.version} of the protocol and we {offered.version}")
        if wanted := terms.actions & ~offered.actions:
            raise MilterError(f"it wants to do more than we offered: {wanted:#x}")
        steps = terms.steps
        if terms.version < 4:
            steps |= Steps.NO_DATA  # the command is of version 4
        self.terms = Terms(terms.version, terms.actions, steps, terms.macros)
        self._unwanted = frozenset(command for command, step in _UNWANTED.items() if steps & step)
        self._silent = _NEVER_ANSWERED | {command for command, step in _SILENT.items() if steps & step}
        self.phase = Phase.IDLE
        self._due.clear()
        return Negotiated(self.terms)
