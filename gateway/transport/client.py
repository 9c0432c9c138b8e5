"""The client's side of an SMTP or LMTP connection, without I/O: octets in, events out.

The owner feeds what arrives to `Codec.receive`, acts on the events, and after every call writes what
`Codec.outgoing` gives. Every command sent puts a `Step` into a queue; every reply takes one out, and `_TABLE` says what
happens for a step and the first digit of its reply. A pair that is not in the table is garbage and ends the connection.

*Promises*: bounded by line length, lines per reply and commands under way. Octets that arrive between the reply to
STARTTLS and the handshake are dropped (response injection). A transaction always ends in one `Finished`.

*Fails by*: `Finished`, `Refused` or `Broken` events; never by an exception for what the peer sent.

*RFCs*: 5321 (section 4.2 replies, 4.2.4.2 and 3.8 for 421), 2033 (LMTP), 2920 (PIPELINING), 3030
section 2 (CHUNKING), 3207 (STARTTLS), 4954 (AUTH).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from gateway.mail.reply import Reply
from gateway.transport.admission import Admission
from gateway.transport.events import Broken, Event, Finished, Phase, Refused, Signal, Step, Unauthenticated
from gateway.transport.replying import Garbled, ReplyReader, make_reply, too_many
from gateway.transport.sasl import Login

WINDOW: Final = 100
"""Commands under way at most. Their replies then fit into any socket buffer, so that neither side can block."""

_CONTENT: Final = (Step.DATA, Step.CHUNK, Step.LAST)
_UNKNOWN: Final = (500, 502)
"""What who does not know a command says to it."""


class Codec:
    """One connection. `wants_tls` asks for STARTTLS where it is offered; `extensions` maps EHLO keywords to values.

    With `login` there is no `Signal.READY` before the peer has let us in.
    """

    def __init__(
        self, hostname: str, *, lmtp: bool = False, wants_tls: bool = False, login: Login | None = None
    ) -> None:
        self.extensions: dict[str, str] = {}
        self.phase = Phase.HELLO
        self.secure = False
        self.answered = 0
        """Replies so far."""
        self.forward_refused: Reply | None = None
        """What was last said against XFORWARD, which changes nothing about the mail."""
        self._hostname = hostname
        self._lmtp = lmtp
        self._wants_tls = wants_tls
        self._admission = Admission(login) if login else None
        self._expected: deque[Step] = deque([Step.GREETING])
        self._queue: deque[tuple[Step, bytes]] = deque()
        self._out: list[bytes] = []
        self._events: list[Event] = []
        self._reader = ReplyReader()
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

    def introduce(self, xclient: bytes, hostname: str) -> None:
        """Say for whom we speak from now on (XCLIENT), and greet anew, by the name `hostname`.

        Ends in `Signal.READY` or `Refused`. Only when a transaction could begin.
        """
        if self.phase is not Phase.IDLE:
            raise ValueError(f"nobody can be introduced while {self.phase.value}")
        self.phase = Phase.HELLO
        self._hostname = hostname
        # Who refused it once does not get to begin it in the middle.
        self._wants_tls = False
        self._send(Step.XCLIENT, xclient)

    def begin(
        self,
        mail: bytes,
        rcpts: Sequence[bytes],
        *,
        data: bool = True,
        chunking: bool = False,
        whole: bytes = b"",
        before: Sequence[bytes] = (),
    ) -> None:
        """Start a transaction with these commands (CRLF included); without `data`, only ask and reset.

        `before` are XFORWARD commands.

        With `chunking` the content goes by BDAT, and when `whole` is it, with the envelope. Not so for LMTP, where the
        number of replies hangs on those to RCPT. Only after `Signal.READY` or a `Finished` that left it open.
        """
        if self.phase is not Phase.IDLE or not rcpts:
            raise ValueError(f"no transaction can begin while {self.phase.value}")
        self.phase = Phase.ENVELOPE
        self._replies = [None] * len(rcpts)
        self._accepted = []
        self._asked = 0
        self._mail_refused = self._mail_answered = False
        self.forward_refused = None
        self._queue.extend([(Step.XFORWARD, command) for command in before])
        self._queue.append((Step.MAIL, mail))
        self._queue.extend([(Step.RCPT, command) for command in rcpts])
        if chunking and whole and not self._lmtp:
            self._queue.append((Step.LAST, b"BDAT %d LAST\r\n" % len(whole) + whole))
        elif chunking:
            self._queue.append((Step.CHUNK, b""))
        elif data:
            self._queue.append((Step.DATA, b"DATA\r\n"))
        self._pump()

    def content_sent(self) -> None:
        """The content and its final dot were written. LMTP answers once per accepted recipient (RFC 2033)."""
        if self.phase is Phase.CONTENT:
            self.phase = Phase.DOT
            self._expected.extend([Step.DOT] * (len(self._accepted) if self._lmtp else 1))

    def chunk(self, size: int, *, last: bool) -> bytes:
        """The command to write before a chunk of so many octets; without it, the chunk is not to be written either.

        LMTP answers the last one once per accepted recipient.
        """
        if self.phase is not Phase.CONTENT:
            return b""
        if last:
            self.phase = Phase.DOT
        self._expected.extend([Step.LAST if last else Step.CHUNK] * (len(self._accepted) if last and self._lmtp else 1))
        return b"BDAT %d LAST\r\n" % size if last else b"BDAT %d\r\n" % size

    def tls_established(self) -> None:
        """The handshake is done: what was said before is forgotten, EHLO comes again (RFC 3207 section 4.2)."""
        self.secure = True
        self.phase = Phase.HELLO
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
        self._reader.feed(data)
        while self.phase is not Phase.CLOSED and self.phase is not Phase.TLS:
            try:
                found = self._reader.next()
            except Garbled as error:
                self._break(str(error))
                break
            if found is None:
                break
            self.answered += 1
            self._reply(*found)
        else:
            self._reader.drop()
        if self._queue or self.phase is Phase.ENVELOPE:
            self._pump()
        return self._take_events()

    # Replies.

    def _reply(self, code: int, lines: list[bytes]) -> None:
        if code == 421:
            self._closing(make_reply(code, lines))
        elif self._expected:
            step = self._expected.popleft()
            action = _TABLE.get((step, code // 100))
            if action is None:
                self._break(f"the reply {code} does not answer {step.name}")
            else:
                action(self, code, lines)
        elif self.phase is Phase.CONTENT and code >= 400:
            # It has seen enough: this is the answer to the content, and what we still write is lost.
            self._settle(make_reply(code, lines))
            self._finish(open=False)
        else:
            self._break(f"the reply {code} answers nothing")

    def _greeted(self, code: int, lines: list[bytes]) -> None:
        self._hello()

    def _hello(self) -> None:
        self.extensions = {}
        verb = "LHLO" if self._lmtp else "EHLO"
        self._send(Step.EHLO, f"{verb} {self._hostname}\r\n".encode())

    def _hello_taken(self, code: int, lines: list[bytes]) -> None:
        for line in lines[1:]:
            keyword, _, value = line.decode("ascii", "replace").strip().partition(" ")
            self.extensions[keyword.upper()] = value
        if self._wants_tls and not self.secure and "STARTTLS" in self.extensions:
            self._send(Step.STARTTLS, b"STARTTLS\r\n")
        else:
            self._enter()

    def _helo_taken(self, code: int, lines: list[bytes]) -> None:
        self._enter()

    def _hello_unknown(self, code: int, lines: list[bytes]) -> None:
        if self._lmtp:
            self._refuse(code, lines)
        else:
            self._send(Step.HELO, f"HELO {self._hostname}\r\n".encode())

    def _refuse(self, code: int, lines: list[bytes]) -> None:
        self._events.append(Refused(make_reply(code, lines)))
        self.quit()

    def _tls_begins(self, code: int, lines: list[bytes]) -> None:
        self.phase = Phase.TLS
        self._events.append(Signal.START_TLS)

    def _tls_refused(self, code: int, lines: list[bytes]) -> None:
        self._enter()

    def _enter(self) -> None:
        """Log in, where we are to."""
        if self._admission is None:
            self._ready()
        else:
            self._go_on(self._admission.begin(self.extensions.get("AUTH", ""), secure=self.secure))

    def _go_on(self, line: bytes | Unauthenticated | None) -> None:
        if line is None:
            self._ready()
        elif isinstance(line, bytes):
            self._send(Step.AUTH, line)
        else:
            self._events.append(line)
            self.quit()

    def _challenged(self, code: int, lines: list[bytes]) -> None:
        assert self._admission is not None
        self._go_on(self._admission.challenge(lines[0]))

    def _let_in(self, code: int, lines: list[bytes]) -> None:
        assert self._admission is not None
        self._go_on(self._admission.succeed())

    def _not_let_in(self, code: int, lines: list[bytes]) -> None:
        assert self._admission is not None
        self._go_on(self._admission.refuse(make_reply(code, lines)))

    def _ready(self) -> None:
        self.phase = Phase.IDLE
        self._window = WINDOW if "PIPELINING" in self.extensions else 1
        self._events.append(Signal.READY)

    def _mail_taken(self, code: int, lines: list[bytes]) -> None:
        self._mail_answered = True

    def _mail_not_taken(self, code: int, lines: list[bytes]) -> None:
        self._mail_answered = self._mail_refused = True
        self._replies = [make_reply(code, lines)] * len(self._replies)
        self._queue.clear()

    def _rcpt_taken(self, code: int, lines: list[bytes]) -> None:
        self._accepted.append(self._asked)
        self._asked += 1

    def _rcpt_not_taken(self, code: int, lines: list[bytes]) -> None:
        if not self._mail_refused:
            self._replies[self._asked] = too_many(make_reply(code, lines))
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
        self._settle(make_reply(code, lines))

    def _content_answered(self, code: int, lines: list[bytes], *, reset: bool = False) -> None:
        if self._lmtp:
            self._replies[self._accepted.pop(0)] = make_reply(code, lines)
        else:
            self._settle(make_reply(code, lines))
        if not self._expected:
            self._finish(reset=reset)

    def _chunk_taken(self, code: int, lines: list[bytes]) -> None:
        if self._window == 1 and self.phase is Phase.CONTENT:
            self._events.append(Signal.NEXT_CHUNK)

    def _chunk_refused(self, code: int, lines: list[bytes]) -> None:
        """The content failed; nothing that may still follow on this connection has a meaning (RFC 3030 section 2)."""
        no_chunks = code in _UNKNOWN
        if not no_chunks:
            self._settle(make_reply(code, lines))
        self._finish(open=False, no_chunks=no_chunks)

    def _last_taken(self, code: int, lines: list[bytes]) -> None:
        # Sent along with the envelope, it may also answer for nobody.
        self.phase = Phase.DOT
        self._content_answered(code, lines)

    def _last_refused(self, code: int, lines: list[bytes]) -> None:
        taken = any(reply and reply.positive for reply in self._replies)
        if code in _UNKNOWN and self._accepted and not self._mail_refused and not taken:
            self._chunk_refused(code, lines)
        else:
            self._content_answered(code, lines, reset=True)

    def _not_forwarded(self, code: int, lines: list[bytes]) -> None:
        self.forward_refused = make_reply(code, lines)

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
            step, command = self._queue[0]
            if step is Step.CHUNK and self._expected:
                # Who has been accepted decides whether there is anything to send.
                break
            self._queue.popleft()
            if step in _CONTENT and not self._expected and not self._accepted:
                break
            if step is Step.CHUNK:
                self.phase = Phase.CONTENT
                self._events.append(Signal.SEND_CONTENT)
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

    def _finish(self, *, open: bool = True, problem: str = "", no_chunks: bool = False, reset: bool = False) -> None:
        replies = tuple(self._replies)
        self._events.append(Finished(replies, self._mail_refused, self._mail_answered, open, problem, no_chunks))
        if not open:
            self.phase = Phase.CLOSED
            return
        if reset or self.phase is Phase.ENVELOPE:
            # No content was taken, so the peer may still hold the envelope. The next MAIL may follow at once.
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

_REFUSALS: Final[dict[Step, _Action]] = {
    Step.GREETING: Codec._refuse,
    Step.HELO: Codec._refuse,
    Step.STARTTLS: Codec._tls_refused,
    Step.AUTH: Codec._not_let_in,
    Step.XCLIENT: Codec._refuse,
    Step.XFORWARD: Codec._not_forwarded,
    Step.MAIL: Codec._mail_not_taken,
    Step.RCPT: Codec._rcpt_not_taken,
    Step.DATA: Codec._data_refused,
    Step.DOT: Codec._content_answered,
    Step.CHUNK: Codec._chunk_refused,
    Step.LAST: Codec._last_refused,
}
_TABLE: Final[dict[tuple[Step, int], _Action]] = {
    (Step.GREETING, 2): Codec._greeted,
    (Step.EHLO, 2): Codec._hello_taken,
    (Step.EHLO, 4): Codec._refuse,
    (Step.EHLO, 5): Codec._hello_unknown,
    (Step.HELO, 2): Codec._helo_taken,
    (Step.STARTTLS, 2): Codec._tls_begins,
    (Step.AUTH, 2): Codec._let_in,
    (Step.AUTH, 3): Codec._challenged,
    (Step.XCLIENT, 2): Codec._greeted,
    (Step.XFORWARD, 2): Codec._done,
    (Step.MAIL, 2): Codec._mail_taken,
    (Step.RCPT, 2): Codec._rcpt_taken,
    (Step.DATA, 3): Codec._content_wanted,
    (Step.DOT, 2): Codec._content_answered,
    (Step.CHUNK, 2): Codec._chunk_taken,
    (Step.LAST, 2): Codec._last_taken,
    (Step.RSET, 2): Codec._done,
    **{(step, kind): action for step, action in _REFUSALS.items() for kind in (4, 5)},
}
