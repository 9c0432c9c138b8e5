"""The client's side of an SMTP or LMTP connection, without I/O: octets in, events out.

The owner feeds what arrives to `Codec.receive`, acts on the events, and after every call writes what
`Codec.outgoing` gives. Every command sent puts a `Step` into a queue; every reply takes one out, and `_TABLE` says what
happens for a step and the first digit of its reply. A pair that is not in the table is garbage and ends the connection.

*Promises*: bounded by line length, lines per reply and commands under way. Octets that arrive between the reply to
STARTTLS and the handshake are dropped (response injection). A transaction always ends in one `Finished`.

*Fails by*: `Finished`, `Refused` or `Broken` events; never by an exception for what the peer sent.

*RFCs*: 5321 (section 4.2 replies, 4.2.4.2 and 3.8 for 421), 2033 (LMTP), 2920 (PIPELINING), 3207 (STARTTLS).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

from gateway.mail.reply import Reply

LINE_OCTETS: Final = 4096
"""RFC 5321 section 4.5.3.1.5 says 512; hosts send more."""
REPLY_LINES: Final = 100
WINDOW: Final = 100
"""Commands under way at most. Their replies then fit into any socket buffer, so that neither side can block."""

_LINE = re.compile(rb"([2-5]\d\d)(?:([ -])(.*))?\Z", re.DOTALL)


class Step(IntEnum):
    """What a reply is awaited for."""

    GREETING = 0
    EHLO = 1
    HELO = 2
    STARTTLS = 3
    MAIL = 4
    RCPT = 5
    DATA = 6
    DOT = 7
    RSET = 8


class Phase(Enum):
    """Where the connection stands. The values read after "while" in problem texts."""

    HELLO = "in the greeting"
    TLS = "before the TLS handshake"
    IDLE = "idle"
    ENVELOPE = "sending the envelope"
    CONTENT = "sending the content"
    DOT = "waiting for the reply to the content"
    CLOSED = "closed"


class Signal(Enum):
    """Events that carry nothing."""

    READY = "ready"
    """EHLO is done; a transaction may begin."""
    START_TLS = "start tls"
    """Do the handshake now, then call `Codec.tls_established`."""
    SEND_CONTENT = "send content"
    """Write the content with its final dot, then call `Codec.content_sent`."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The next hop does not want to talk to us: greeting or EHLO refused, or 421 before the first transaction."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Broken:
    """The connection is of no more use outside of a transaction."""

    problem: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A transaction is over. `replies` by recipient, None for those whose fate the peer never told.

    `mail_refused` says that the replies are the one to MAIL; `mail_answered` that MAIL got any reply (421 apart);
    `open` that the connection can be used again; `problem` what broke it, if the peer did.
    """

    replies: tuple[Reply | None, ...]
    mail_refused: bool = False
    mail_answered: bool = True
    open: bool = True
    problem: str = ""


Event = Signal | Refused | Broken | Finished


class Codec:
    """One connection. `wants_tls` asks for STARTTLS where it is offered; `extensions` maps EHLO keywords to values."""

    def __init__(self, hostname: str, *, lmtp: bool = False, wants_tls: bool = False) -> None:
        self.extensions: dict[str, str] = {}
        self.phase = Phase.HELLO
        self.secure = False
        self.answered = 0
        """Replies so far."""
        self._hostname = hostname
        self._lmtp = lmtp
        self._wants_tls = wants_tls
        self._expected: deque[Step] = deque([Step.GREETING])
        self._queue: deque[tuple[Step, bytes]] = deque()
        self._out: list[bytes] = []
        self._events: list[Event] = []
        self._buffer = b""
        self._code = b""
        self._lines: list[bytes] = []
        self._window = 1
        self._replies: list[Reply | None] = []
        self._accepted: list[int] = []
        self._asked = 0
        self._mail_refused = False
        self._mail_answered = False

    @property
    def waiting_for(self) -> Step | None:
        """What the next reply answers; None when none is due."""
        return self._expected[0] if self._expected else None

    def outgoing(self) -> bytes:
        """What is to be written now; taken out."""
        if not self._out:
            return b""
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        return data

    # What the owner says.

    def begin(self, mail: bytes, rcpts: Sequence[bytes], *, data: bool = True) -> None:
        """Start a transaction with these commands (CRLF included); without `data`, only ask and reset.

        Only after `Signal.READY` or a `Finished` that left the connection open.
        """
        if self.phase is not Phase.IDLE or not rcpts:
            raise ValueError(f"no transaction can begin while {self.phase.value}")
        self.phase = Phase.ENVELOPE
        self._replies = [None] * len(rcpts)
        self._accepted = []
        self._asked = 0
        self._mail_refused = self._mail_answered = False
        self._queue.append((Step.MAIL, mail))
        self._queue.extend([(Step.RCPT, command) for command in rcpts])
        if data:
            self._queue.append((Step.DATA, b"DATA\r\n"))
        self._pump()

    def content_sent(self) -> None:
        """The content and its final dot were written. LMTP answers once per accepted recipient (RFC 2033)."""
        if self.phase is Phase.CONTENT:
            self.phase = Phase.DOT
            self._expected.extend([Step.DOT] * (len(self._accepted) if self._lmtp else 1))

    def tls_established(self) -> None:
        """The handshake is done: what was said before is forgotten, EHLO comes again (RFC 3207 section 4.2)."""
        self.secure = True
        self.phase = Phase.HELLO
        self.extensions = {}
        self._hello()

    def quit(self) -> None:
        """Say QUIT; whatever still arrives is dropped, so the owner only waits for the connection to end."""
        if self.phase is not Phase.CLOSED:
            self._out.append(b"QUIT\r\n")
            self.phase = Phase.CLOSED

    def lost(self, problem: str) -> list[Event]:
        """The connection ended or is given up."""
        self._break(problem)
        return self._take_events()

    def receive(self, data: bytes) -> list[Event]:
        """What the octets mean, in order."""
        if self._buffer:
            data = self._buffer + data
        start = 0
        while self.phase is not Phase.CLOSED and self.phase is not Phase.TLS:
            end = data.find(b"\n", start)
            if end < 0:
                self._buffer = data[start:]
                if len(self._buffer) > LINE_OCTETS:
                    self._buffer = b""
                    self._break("the reply line is too long")
                break
            self._line(data[start : end - 1] if data[end - 1 : end] == b"\r" else data[start:end])
            start = end + 1
        else:
            self._buffer = b""
        if self._queue or self.phase is Phase.ENVELOPE:
            self._pump()
        return self._take_events()

    # Replies.

    def _line(self, line: bytes) -> None:
        match = _LINE.match(line)
        if match is None or len(line) > LINE_OCTETS or (self._lines and match[1] != self._code):
            self._break("the reply is not SMTP")
            return
        code, more, text = match.groups()
        self._lines.append(text or b"")
        if more == b"-":
            self._code = code
            if len(self._lines) >= REPLY_LINES:
                self._break("the reply has too many lines")
            return
        lines, self._lines = self._lines, []
        self.answered += 1
        self._reply(int(code), lines)

    def _reply(self, code: int, lines: list[bytes]) -> None:
        if code == 421:
            self._closing(_make(code, lines))
        elif self._expected:
            step = self._expected.popleft()
            action = _TABLE.get((step, code // 100))
            if action is None:
                self._break(f"the reply {code} does not answer {step.name}")
            else:
                action(self, code, lines)
        elif self.phase is Phase.CONTENT and code >= 400:
            # It has seen enough: this is the answer to the content, and what we still write is lost.
            self._settle(_make(code, lines))
            self._finish(open=False)
        else:
            self._break(f"the reply {code} answers nothing")

    def _greeted(self, code: int, lines: list[bytes]) -> None:
        self._hello()

    def _hello(self) -> None:
        verb = "LHLO" if self._lmtp else "EHLO"
        self._send(Step.EHLO, f"{verb} {self._hostname}\r\n".encode())

    def _hello_taken(self, code: int, lines: list[bytes]) -> None:
        for line in lines[1:]:
            keyword, _, value = line.decode("ascii", "replace").strip().partition(" ")
            self.extensions[keyword.upper()] = value
        if self._wants_tls and not self.secure and "STARTTLS" in self.extensions:
            self._send(Step.STARTTLS, b"STARTTLS\r\n")
        else:
            self._ready()

    def _helo_taken(self, code: int, lines: list[bytes]) -> None:
        self._ready()

    def _hello_unknown(self, code: int, lines: list[bytes]) -> None:
        if self._lmtp:
            self._refuse(code, lines)
        else:
            self._send(Step.HELO, f"HELO {self._hostname}\r\n".encode())

    def _refuse(self, code: int, lines: list[bytes]) -> None:
        self._events.append(Refused(_make(code, lines)))
        self.quit()

    def _tls_begins(self, code: int, lines: list[bytes]) -> None:
        self.phase = Phase.TLS
        self._events.append(Signal.START_TLS)

    def _tls_refused(self, code: int, lines: list[bytes]) -> None:
        self._ready()

    def _ready(self) -> None:
        self.phase = Phase.IDLE
        self._window = WINDOW if "PIPELINING" in self.extensions else 1
        self._events.append(Signal.READY)

    def _mail_taken(self, code: int, lines: list[bytes]) -> None:
        self._mail_answered = True

    def _mail_not_taken(self, code: int, lines: list[bytes]) -> None:
        self._mail_answered = self._mail_refused = True
        self._replies = [_make(code, lines)] * len(self._replies)
        self._queue.clear()

    def _rcpt_taken(self, code: int, lines: list[bytes]) -> None:
        self._accepted.append(self._asked)
        self._asked += 1

    def _rcpt_not_taken(self, code: int, lines: list[bytes]) -> None:
        if not self._mail_refused:
            self._replies[self._asked] = _too_many(_make(code, lines))
        self._asked += 1

    def _content_wanted(self, code: int, lines: list[bytes]) -> None:
        if self._accepted and not self._mail_refused:
            self.phase = Phase.CONTENT
            self._events.append(Signal.SEND_CONTENT)
        elif self._accepted or self._lmtp:
            # A refused sender with accepted recipients, or an LMTP server that would answer a dot for nobody with
            # silence: nothing that we could send now has a meaning.
            self._finish(open=False)
        else:
            # 354 though nobody is left: a lone dot ends it (RFC 2920 section 3.1).
            self.phase = Phase.DOT
            self._send(Step.DOT, b".\r\n")

    def _data_refused(self, code: int, lines: list[bytes]) -> None:
        self._settle(_make(code, lines))

    def _content_answered(self, code: int, lines: list[bytes]) -> None:
        if self._lmtp:
            self._replies[self._accepted.pop(0)] = _make(code, lines)
        else:
            self._settle(_make(code, lines))
        if not self._expected:
            self._finish()

    def _done(self, code: int, lines: list[bytes]) -> None:
        """A reply that changes nothing."""

    def _closing(self, reply: Reply) -> None:
        """421: the peer closes, whatever we asked (RFC 5321 section 3.8)."""
        if self.phase is Phase.HELLO:
            self._events.append(Refused(reply))
            self.phase = Phase.CLOSED
        elif self.phase is Phase.IDLE:
            self._break("the peer closes the connection")
        else:
            self._replies = [old or reply for old in self._replies]
            self._finish(open=False)

    # The transaction.

    def _send(self, step: Step, command: bytes) -> None:
        self._expected.append(step)
        self._out.append(command)

    def _pump(self) -> None:
        """Send what may be under way; end a transaction that has nothing left to ask."""
        while self._queue and len(self._expected) < self._window:
            step, command = self._queue.popleft()
            if step is Step.DATA and not self._expected and not self._accepted:
                break
            self._expected.append(step)
            self._out.append(command)
        if self.phase is Phase.ENVELOPE and not self._expected and not self._queue:
            self._finish()

    def _settle(self, reply: Reply) -> None:
        """Answer for all accepted recipients, unless MAIL's refusal is the answer already."""
        if not self._mail_refused:
            for i in self._accepted:
                self._replies[i] = reply

    def _finish(self, *, open: bool = True, problem: str = "") -> None:
        replies = tuple(self._replies)
        self._events.append(Finished(replies, self._mail_refused, self._mail_answered, open, problem))
        if not open:
            self.phase = Phase.CLOSED
            return
        if self.phase is Phase.ENVELOPE:
            # No content was sent, so the peer still holds the envelope. The next MAIL may follow at once.
            self._send(Step.RSET, b"RSET\r\n")
        self.phase = Phase.IDLE

    def _break(self, problem: str) -> None:
        if self.phase in (Phase.ENVELOPE, Phase.CONTENT, Phase.DOT):
            self._finish(open=False, problem=problem)
        elif self.phase is not Phase.CLOSED:
            self._events.append(Broken(problem))
        self.phase = Phase.CLOSED

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events


_Action = Callable[[Codec, int, list[bytes]], None]

_TABLE: Final[dict[tuple[Step, int], _Action]] = {
    (Step.GREETING, 2): Codec._greeted,
    (Step.GREETING, 4): Codec._refuse,
    (Step.GREETING, 5): Codec._refuse,
    (Step.EHLO, 2): Codec._hello_taken,
    (Step.EHLO, 4): Codec._refuse,
    (Step.EHLO, 5): Codec._hello_unknown,
    (Step.HELO, 2): Codec._helo_taken,
    (Step.HELO, 4): Codec._refuse,
    (Step.HELO, 5): Codec._refuse,
    (Step.STARTTLS, 2): Codec._tls_begins,
    (Step.STARTTLS, 4): Codec._tls_refused,
    (Step.STARTTLS, 5): Codec._tls_refused,
    (Step.MAIL, 2): Codec._mail_taken,
    (Step.MAIL, 4): Codec._mail_not_taken,
    (Step.MAIL, 5): Codec._mail_not_taken,
    (Step.RCPT, 2): Codec._rcpt_taken,
    (Step.RCPT, 4): Codec._rcpt_not_taken,
    (Step.RCPT, 5): Codec._rcpt_not_taken,
    (Step.DATA, 3): Codec._content_wanted,
    (Step.DATA, 4): Codec._data_refused,
    (Step.DATA, 5): Codec._data_refused,
    (Step.DOT, 2): Codec._content_answered,
    (Step.DOT, 4): Codec._content_answered,
    (Step.DOT, 5): Codec._content_answered,
    (Step.RSET, 2): Codec._done,
}


def _make(code: int, lines: list[bytes]) -> Reply:
    """The reply as a value; further lines follow the first without their own enhanced status."""
    reply = Reply.parse(code, lines[0].decode("utf-8", "replace"))
    if len(lines) == 1:
        return reply
    rest = [Reply.parse(code, line.decode("utf-8", "replace")).text for line in lines[1:]]
    return Reply(code, reply.detail, " ".join([reply.text, *rest])[:400])


def _too_many(reply: Reply) -> Reply:
    """552 after RCPT as RFC 5321 section 4.5.3.1.10 wants it read: too many recipients, so 452.

    An enhanced status that speaks of the mailbox or the system (5.2.2, 5.3.4) shows that the host meant what it said.
    """
    if reply.code != 552 or (reply.detail and not reply.detail.startswith("5.")):
        return reply
    return Reply(452, reply.detail or "5.3", reply.text)
