"""The milter server: `gateway.guest.dialogue` behind pymilter, which brings Sendmail's libmilter.

Only this module imports pymilter, and only `gatepost milter` imports this module. libmilter has a thread for each
connection of the MTA's, and for SIGTERM, SIGINT and SIGHUP one that waits beside ours: where the kernel gives one of
these to libmilter, it stops, which is noticed here.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Final

import Milter
import milter

from gateway.guest.changes import Changes, InsertField, SetField
from gateway.guest.dialogue import BUSY, PROCEED, THROUGH, TROUBLE, Answer, Dialogue, Options, Word
from gateway.guest.visit import Host
from gateway.mail.reply import Reply
from gateway.ops import log, metrics
from gateway.sdk.endpoint import Endpoint

_CHUNK: Final = 65_535
_LINES: Final = 32
_LINE: Final = 900
_REASON: Final = 200
_MACROS: Final = ("i", "r", "{client_resolve}", "{daemon_name}", "{tls_version}", "{cipher}", "{auth_authen}")
_WORDS: Final = {
    Word.CONTINUE: milter.CONTINUE,
    Word.REJECT: milter.REJECT,
    Word.TEMPFAIL: milter.TEMPFAIL,
    Word.DISCARD: milter.DISCARD,
}

_log = log.get()


class MilterServer:
    """The server. `host` and `options` may be replaced at any time; sessions that have begun keep theirs.

    `ended` is set when libmilter has stopped, whoever told it to.
    """

    def __init__(self, host: Host, options: Options) -> None:
        self.host = host
        self.options = options
        self.ended = asyncio.Event()
        self.draining = False
        self._loop = asyncio.get_running_loop()
        self._open: set[MilterSession] = set()
        self._lock = threading.Lock()
        self._problem = ""

    def renew(self, host: Host, options: Options) -> None:
        """Connections that are made from now on get these."""
        self.host, self.options = host, options

    async def listen(self, endpoint: Endpoint) -> None:
        """Begin to serve. Raises OSError when it does not come to that."""
        Milter.factory = lambda: MilterSession(self)
        threading.Thread(target=self._run, args=(connection(endpoint),), name="libmilter", daemon=True).start()
        for _ in range(200):
            if self.ended.is_set():
                raise OSError(f"libmilter cannot listen on {endpoint}: {self._problem}")
            if await _answers(endpoint):
                return
            await asyncio.sleep(0.05)
        raise OSError(f"libmilter does not listen on {endpoint}")

    def _run(self, where: str) -> None:
        try:
            Milter.runmilter("gatepost", where)
        except Exception as error:  # noqa: BLE001  (libmilter's, or pymilter's: whatever it is, we cannot go on)
            self._problem = str(error)
            _log.error("milter.ended", reason=str(error))
        finally:
            self._loop.call_soon_threadsafe(self.ended.set)

    async def drain(self, patience: float) -> None:
        """Take nothing new, let messages under way come to their end, and end all sessions."""
        # libmilter itself is not told: it would cut off all its connections. It ends with the process.
        self.draining = True
        ends = self._loop.time() + patience
        while self._loop.time() < ends:
            if not any(session.dialogue.busy for session in self.sessions()):
                break
            await asyncio.sleep(0.05)
        for session in self.sessions():
            # In a thread: it waits for the event loop.
            await asyncio.to_thread(session.close)

    def sessions(self) -> list[MilterSession]:
        """Those that are open."""
        with self._lock:
            return list(self._open)

    def enter(self, session: MilterSession) -> bool:
        """Count a connection in; False when there are too many."""
        with self._lock:
            if session in self._open:
                return True
            if self.draining or len(self._open) >= self.options.connections:
                return False
            self._open.add(session)
        metrics.SESSIONS_OPEN.inc()
        return True

    def leave(self, session: MilterSession) -> None:
        """Count it out."""
        with self._lock:
            if session not in self._open:
                return
            self._open.discard(session)
        metrics.SESSIONS_OPEN.dec()
        metrics.SESSIONS.labels(self.options.listener, "closed").inc()

    def dialogue(self) -> Dialogue:
        return Dialogue(self.host, self.options, self._loop)


class MilterSession(Milter.Base):
    """One connection of the MTA's. Every callback answers; with TEMPFAIL when nothing better can be said."""

    def __init__(self, server: MilterServer) -> None:
        self._server = server
        self.dialogue = server.dialogue()

    # Callbacks

    def connect(self, hostname: str, family: int, hostaddr: Any) -> int:
        if not self._server.enter(self):
            return self._answer("connect", Answer(Word.TEMPFAIL, BUSY))
        address, port = (hostaddr[0], int(hostaddr[1])) if isinstance(hostaddr, tuple) else (hostaddr, 0)
        return self._ask("connect", lambda: self.dialogue.connect(hostname, address, port, self._macros()))

    def hello(self, hostname: str) -> int:
        return self._ask("helo", lambda: self.dialogue.hello(hostname, self._macros()))

    def envfrom(self, f: str, *parameters: str) -> int:
        return self._ask("mail", lambda: self.dialogue.envfrom(f, parameters, self._macros()))

    def envrcpt(self, to: str, *parameters: str) -> int:
        return self._ask("rcpt", lambda: self.dialogue.envrcpt(to, parameters, self._macros()))

    def data(self) -> int:
        return self._ask("data", lambda: self.dialogue.data(self._macros()))

    @Milter.decode("bytes")
    def header(self, field: str, value: bytes) -> int:
        return self._ask("header", lambda: self.dialogue.header(field, value, leads=self.leads))

    def body(self, blk: bytes) -> int:
        return self._ask("body", lambda: self.dialogue.body(blk))

    def eom(self) -> int:
        return self._ask("message", lambda: self.dialogue.eom(self, self._macros()))

    def abort(self) -> int:
        return self._ask("abort", self.dialogue.abort)

    def close(self) -> int:
        try:
            return self._ask("close", self.dialogue.close)
        finally:
            self._server.leave(self)

    # What `dialogue` asks of the MTA

    @property
    def leads(self) -> bool:
        return bool(self._protocol & milter.P_HDR_LEADSPC)

    def missing(self, changes: Changes, *, quarantine: bool) -> str:
        adds = any(isinstance(call, InsertField) for call in changes.fields)
        sets = any(isinstance(call, SetField) for call in changes.fields)
        needed = (
            (adds, milter.ADDHDRS, "add header fields"),
            (sets, milter.CHGHDRS, "change header fields"),
            (changes.body is not None, milter.MODBODY, "replace the body"),
            (changes.sender is not None, milter.CHGFROM, "change the sender"),
            (bool(changes.added), milter.ADDRCPT, "add recipients"),
            (any(p for _, p in changes.added), milter.ADDRCPT_PAR, "add recipients with parameters"),
            (bool(changes.deleted), milter.DELRCPT, "delete recipients"),
            (quarantine, milter.QUARANTINE, "quarantine"),
        )
        return ", ".join(what for wanted, flag, what in needed if wanted and not self._actions & flag)

    def make(self, changes: Changes, body: Callable[[], bytes | None]) -> None:
        for call in changes.fields:
            if isinstance(call, SetField):
                self.chgheader(call.name, call.nth, call.value)
            else:
                self.addheader(call.name, call.value, call.index)
        if changes.body is not None:
            self._replace(body)
        if changes.sender is not None:
            self.chgfrom(changes.sender.sender, changes.sender.parameters or None)
        for recipient, parameters in changes.added:
            self.addrcpt(recipient, parameters or None)
        for recipient in changes.deleted:
            self.delrcpt(recipient)

    def _replace(self, body: Callable[[], bytes | None]) -> None:
        empty = True
        while (block := body()) is not None:
            for at in range(0, len(block), _CHUNK):
                self.replacebody(block[at : at + _CHUNK])
                empty = False
        if empty:
            self.replacebody(b"")

    def quarantine(self, reason: str) -> None:
        super().quarantine(_printable(reason.replace("\n", " "))[:_REASON])

    # Inside

    def _ask(self, callback: str, work: Callable[[], Answer | None]) -> int:
        """Run a callback of the dialogue. What it raises is our trouble."""
        try:
            answer = work() or PROCEED
        except Exception as error:  # noqa: BLE001  (our bug, whatever it is, defers; and the thread is libmilter's)
            late = isinstance(error, TimeoutError)
            reason = str(error) if late else type(error).__name__
            _log.error("milter.failed", callback=callback, reason=reason, exc_info=None if late else error)
            answer = Answer(Word.TEMPFAIL, TROUBLE)
        return self._answer(callback, answer)

    def _answer(self, callback: str, answer: Answer) -> int:
        if callback not in ("header", "body"):
            metrics.GUEST_ANSWERS.labels(THROUGH, callback, answer.word.value).inc()
        if answer.reply is not None:
            try:
                self._set_reply(answer.reply)
            except Exception as error:  # noqa: BLE001  (then the MTA uses words of its own)
                _log.warning("milter.reply_not_set", callback=callback, reason=str(error) or type(error).__name__)
        return _WORDS[answer.word]

    def _set_reply(self, reply: Reply) -> None:
        lines = [_printable(line)[:_LINE].replace("%", "%%") or " " for line in reply.text.split("\n")[:_LINES]]
        self.setreply(str(reply.code), reply.status or None, *lines)

    def _macros(self) -> dict[str, str]:
        found = {}
        for name in _MACROS:
            try:
                value = self.getsymval(name)
            except (UnicodeDecodeError, milter.error):
                continue
            if value:
                found[name] = value[:_LINE]
        return found


Milter.enable_protocols(MilterSession, milter.P_HDR_LEADSPC)


def connection(endpoint: Endpoint) -> str:
    """The endpoint as libmilter writes it."""
    if endpoint.path:
        return f"unix:{endpoint.path}"
    return f"{'inet6' if ':' in endpoint.host else 'inet'}:{endpoint.port}@{endpoint.host}"


async def _answers(endpoint: Endpoint) -> bool:
    """Whether somebody takes a connection."""
    try:
        if endpoint.path:
            _, writer = await asyncio.open_unix_connection(endpoint.path)
        else:
            _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    except OSError:
        return False
    writer.close()
    return True


def _printable(text: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in text)
