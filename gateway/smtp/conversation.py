"""One session from accept to close: who may come in, the greeting, command by command, and the end.

*Promises*: replies leave in order, and in one write per pipelined group. An exception of ours is a 451 or 421, never a
5xx and never an accept, and what is left of a message after it is never taken for commands. Every session that was
counted in is counted out.

*RFCs*: 5321 section 3.1 and 4.3 (order), 4.5.3.2 (timeouts), 2920 (PIPELINING).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

from gateway.mail.reply import Reply
from gateway.mail.session import ClientCertificate, IPAddress, Session, Tls, new_session_id
from gateway.ops import log, metrics
from gateway.smtp import command as grammar
from gateway.smtp import proxy
from gateway.smtp.command import CommandError
from gateway.smtp.connection import Connection
from gateway.smtp.data import Newlines
from gateway.smtp.inbox import Gone, LineTooLong
from gateway.smtp.intake import Desk, Intake
from gateway.smtp.lines import OpenLines
from gateway.smtp.options import ListenerOptions, TlsMode
from gateway.smtp.receive import Chunks
from gateway.smtp.vantage import Vantage

_log = log.get()

TROUBLE: Final = Reply(451, "3.0", "local trouble, try again later")
TROUBLE_CLOSING: Final = Reply(421, "3.0", "local trouble, try again later")
NOT_KNOWN: Final = Reply(500, "5.1", "command not recognised")
TOO_MANY_ERRORS: Final = Reply(421, "7.0", "too many errors")
DRAINING: Final = Reply(421, "3.2", "closing for maintenance, try again soon")
BUSY: Final = Reply(421, "3.2", "too many connections, try again later")
BUSY_CLIENT: Final = Reply(421, "7.0", "too many connections from you, try again later")
NOT_SMTP: Final = Reply(554, "5.1", "this is SMTP")
NO_PROXY: Final = Reply(421, "5.1", "no valid PROXY header")
UNASKED_PROXY: Final = Reply(421, "5.1", "no PROXY header is expected here")
EARLY: Final = Reply(554, "5.1", "data before it was asked for")

_IDLE_TALK: Final = frozenset({"HELO", "EHLO", "NOOP", "RSET", "VRFY", "HELP"})
_IDLE_TALK_MAX: Final = 100
"""So many commands that lead nowhere are free between two messages; each one after that counts as an error."""
_OVERSHOOT: Final = 1000
"""So many 452 are free in a session: they tell a client of our limits, and are no fault of its own."""
_CLIENT_ERRORS: Final = frozenset({500, 501, 502, 503, 504, 555})
"""Codes of what the protocol refuses, and no policy."""
_REPLIES_AT_ONCE: Final = 100
"""Replies are sent after so many, even within a pipelined group; and others get their turn."""


class Counter(Protocol):
    """Counts open sessions over all workers; a slot of `gateway.ops.board`."""

    def session_opened(self, client: IPAddress) -> None: ...

    def session_closed(self, client: IPAddress) -> None: ...

    def sessions(self) -> int: ...

    def sessions_of(self, client: IPAddress) -> int: ...


class Hall(Protocol):
    """What the connections of one worker share: the current desk, who is counted, whether we are closing."""

    desk: Desk
    draining: bool
    counter: Counter
    servers: set[Conversation]
    lines: OpenLines

    def vantage(self, listener: str) -> Vantage:
        """What is known of that listener's clients together, by its address."""
        ...


class End(Exception):
    """The session is over, how is already said."""


class Conversation(Connection):
    """One session. A subclass brings the commands, in `commands` by upper-case verb."""

    commands: dict[str, Callable[[Any, str], Any]] = {}

    def __init__(self, hall: Hall, listener: ListenerOptions, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.hall = hall
        self.desk = hall.desk
        self.listener = listener
        self.session: Any = None
        self._errors = 0
        self._overshoot = 0
        self._idle_talk = 0
        self._greeted = False
        self._refused = False
        self._health_check = False
        self._introduced = False
        self._known = False
        self._vantage = hall.vantage(listener.address)
        self._caller: IPAddress | None = None
        self._counted = False
        self._chunks: Chunks | None = None
        self._in_content = False
        self._busy = True
        self.intake: Intake = None  # type: ignore[assignment]  # there is one before the first command

    def connection_made(self, transport: Any) -> None:
        self.hall.servers.add(self)
        self.desk.tenancy.enter()
        super().connection_made(transport)

    def drain(self) -> None:
        """Say goodbye now if nothing is under way; otherwise `_talk` does when the transaction is over."""
        if not self._busy and not self.intake.in_transaction:
            self._end = "draining"
            self._say(DRAINING)
            self._inbox.end()

    def abort(self) -> None:
        """Close now, whatever is under way."""
        if self._handler_coroutine is not None:
            self._end = "cut-off"
            self._say(DRAINING)
            self._handler_coroutine.cancel()

    # The session

    async def _handle_client(self) -> None:
        timeouts = self.desk.options.timeouts
        self._patience = timeouts.command
        self._hard_deadline = self.loop.time() + timeouts.session
        try:
            if await self._open():
                await self._talk()
        except End:
            pass
        except Gone:
            if self._end == "quit":
                self._end = "lost"
        except Exception as error:  # noqa: BLE001  (the last line of defence: our bug is the client's 421)
            self._end = "error"
            _log.error("session.failed", session=getattr(self.session, "id", ""), exc_info=error)
            self._say(TROUBLE_CLOSING)
        finally:
            await self._close()

    async def _close(self) -> None:
        try:
            if self.intake is not None:
                await self.intake.close()
        except Exception as error:  # noqa: BLE001  (the connection must be let go of whatever happens)
            _log.error("session.failed", session=self.session.id, exc_info=error)
        finally:
            self._forget_alarm()
            self._let_go()
            if self._caller is not None and self._counted:
                self.hall.counter.session_closed(self._caller)
                metrics.SESSIONS_OPEN.dec()
            self.hall.servers.discard(self)
            self.desk.tenancy.leave()
            metrics.SESSIONS.labels(self.listener.address, self._end).inc()
            if self.session is not None:
                _log.debug("session.closed", session=self.session.id, end=self._end)

    async def _open(self) -> bool:
        """Everything before the first command. False when the session ends here."""
        peer, port = self._peer()
        client, self._known = peer, True
        if self.listener.proxy_trusted:
            header = await self._proxy_header(peer)
            if header is None:
                return False
            self._health_check = header.local
            # What the proxy itself may do, to relay or to introduce others, its clients may not.
            self._known = header.client is not None
            if header.client is not None:
                client, port = header.client, header.port
        self._caller = client
        self._counted = True
        self.hall.counter.session_opened(client)
        metrics.SESSIONS_OPEN.inc()
        implicit = self.listener.tls is not None and self.listener.tls_mode is TlsMode.IMPLICIT
        if not self._may_enter(client, silent=implicit):
            return False
        self._work()
        tls = await self._tls() if implicit else None
        trusted = self._known and client in self.desk.options.relay_from
        self.session = Session(
            new_session_id(), client, port, peer, self.listener.address, self.desk.clock.now(), tls=tls, trusted=trusted
        )
        _log.debug("session.opened", session=self.session.id, client=str(client), peer=str(peer))
        if tls is not None:
            self._note_certificate(tls.client)
        if not await self._greet():
            return False
        await self._flush()
        return True

    async def _proxy_header(self, peer: IPAddress) -> proxy.ProxyHeader | None:
        """The PROXY header that must come first here; None when the session ends for want of it."""
        if peer not in self.listener.proxy_trusted:
            self._turn_away(NO_PROXY, "untrusted-proxy")
            return None
        self._wait_until(self.desk.options.timeouts.greeting)
        buffer = self._inbox.buffer
        try:
            while True:
                if buffer and (found := proxy.read(buffer)):
                    header, size = found
                    del buffer[:size]
                    return header
                await self._inbox.more()
        except proxy.ProxyError as error:
            _log.warning("session.bad_proxy_header", peer=str(peer), reason=str(error))
            self._turn_away(NO_PROXY, "bad-proxy-header")
            return None

    def _may_enter(self, client: IPAddress, *, silent: bool) -> bool:
        """Whether there is room. With `silent`, before implicit TLS, there is no way yet to say why not."""
        counter, limits = self.hall.counter, self.desk.options.limits
        if self.hall.draining:
            reply, end = DRAINING, "draining"
        elif counter.sessions() > limits.sessions:
            reply, end = BUSY, "too-many"
        elif counter.sessions_of(client) > limits.sessions_per_client and not self._health_check:
            reply, end = BUSY_CLIENT, "too-many-of-client"
        else:
            return True
        self._turn_away(None if silent else reply, end)
        return False

    def _turn_away(self, reply: Reply | None, end: str) -> None:
        self._end = end
        _log.info("session.turned_away", client=str(self._caller or self._peer()[0]), reason=end)
        if reply is not None:
            count("connect", reply.code)
            self._say(reply)

    def _refuse_header(self, head: bytes) -> None:
        """End the session when `head` is of a proxy that nobody expects here: what follows is somebody else's."""
        if proxy.begins(head):
            self._turn_away(UNASKED_PROXY, "unasked-proxy-header")
            raise End

    async def _greet(self) -> bool:
        """Judge the connection and greet. After a refusal the client may only QUIT (RFC 5321 section 3.1).

        After XCLIENT the name the client gave may be known already, and is judged too.
        """
        self.intake = Intake(self.desk, self.session, self.listener.pipeline)
        lines = self.hall.lines
        lines.open(self.session, self._inbox)
        try:
            refusal = None if self._health_check else await self.intake.connect()
        finally:
            judged = lines.close(self.session)
        if refusal is None and self.session.helo:
            refusal = await self.intake.helo(self.session)
        self._refused = refusal is not None
        self._greeted = bool(self.session.helo) and refusal is None
        if self._inbox.buffer and not self._health_check and refusal is None and not judged:
            # Honest clients wait for the greeting (RFC 5321 section 4.3.1); what does not wait does not listen. Where
            # a plugin was told of it, its policy has decided.
            if proxy.begins(self._inbox.buffer):
                self._turn_away(UNASKED_PROXY, "unasked-proxy-header")
            else:
                self._turn_away(EARLY, "early-data")
            return False
        if refusal is None:
            reply = Reply(220, "", f"{self.desk.options.hostname} ESMTP Gatepost")
        else:
            self._end = "refused"
            reply = Reply(421 if refusal.temporary else 554, refusal.detail, refusal.text)
        count("connect", reply.code)
        self._say(reply)
        return reply.code in (220, 554) and not self.intake.hang_up

    async def _tls(self) -> Tls:
        """What the peer and PROXY said of addresses stays; everything else is forgotten."""
        if self.listener.tls is None:
            raise RuntimeError("no TLS context")
        try:
            return await self._start_tls(self.listener.tls, self.desk.options.timeouts.tls_handshake)
        except OSError as error:
            if self._end == "quit":
                self._end = "tls"
            _log.info("session.tls_failed", client=str(self._caller), reason=str(error))
            raise End from error

    def _note_certificate(self, shown: ClientCertificate | None) -> None:
        """Log and count what the client showed in the handshake."""
        if shown is None:
            return
        metrics.CLIENT_CERTIFICATES.labels(self.listener.address, "verified" if shown.verified else "unverified").inc()
        _log.info(
            "session.certificate",
            session=self.session.id,
            client=str(self.session.client),
            verified=shown.verified,
            subject=shown.subject,
            issuer=shown.issuer,
            fingerprint=shown.fingerprint,
            reason=shown.problem,
        )

    async def _talk(self) -> None:
        """Commands until the end."""
        options = self.desk.options
        inbox = self._inbox
        while self.transport is not None:
            if not inbox.has_line or len(self._out) > _REPLIES_AT_ONCE:
                if len(self._out) > _REPLIES_AT_ONCE:
                    await asyncio.sleep(0)
                self._wait_until(options.timeouts.command)
                await self._flush()
                if self.hall.draining and not self.intake.in_transaction:
                    self._end = "draining"
                    self._say(DRAINING)
                    return
            self._busy = False
            try:
                line = await inbox.line(options.limits.command_line)
            except LineTooLong:
                self._busy = True
                self._answer("line", Reply(500, "5.2", "line is too long"))
                continue
            self._busy = True
            self._work()
            try:
                verb, argument = grammar.split_line(line, strict=options.newlines is Newlines.REJECT)
            except CommandError as error:
                self._refuse_header(line + self._inbox.buffer[:16])
                self._answer("line", error.reply)
                continue
            await self._command(verb, argument)
        self._end = "lost"

    async def _command(self, verb: str, argument: str) -> None:
        method = self.commands.get(verb)
        if method is None:
            if verb in grammar.HTTP_VERBS:
                self._end = "http"
                self._say(NOT_SMTP)
                raise End
            self._refuse_header(f"{verb} {argument}".encode())
            self._answer("unknown", NOT_KNOWN)
            return
        if self._refused and verb not in ("QUIT", "XCLIENT"):
            self._answer(verb, Reply(503, "5.1", "not for you, say QUIT"))
            return
        try:
            reply = await method(self, argument)
        except CommandError as error:
            reply = error.reply
        except (End, Gone):
            raise
        except Exception as error:
            if self._in_content:
                raise
            _log.error("command.failed", session=self.session.id, command=verb, exc_info=error)
            await self.intake.abort()
            self._chunks = None
            reply = TROUBLE
        if reply is not None:
            self._answer(verb, reply)

    def _answer(self, verb: str, reply: Reply) -> None:
        """Say it, count it, and end the session when it is time to."""
        count(verb, reply.code)
        self._say(reply)
        if self.intake.hang_up:
            self._end = "refused"
            raise End
        if reply.code == 452 and self._overshoot < _OVERSHOOT:
            self._overshoot += 1
        elif reply.code >= 400:
            if reply.code in _CLIENT_ERRORS:
                self.intake.client_error(reply)
            self._err()
        elif verb in _IDLE_TALK:
            self._idle_talk += 1
            if self._idle_talk > _IDLE_TALK_MAX:
                self._err()

    def _err(self) -> None:
        self._errors += 1
        if self._errors > self.desk.options.limits.errors:
            self._end = "errors"
            self._say(TOO_MANY_ERRORS)
            raise End

    def _hang_up(self, end: str, reply: Reply) -> End:
        """For `raise`: the last reply, and the end."""
        self._end = end
        self._say(reply)
        return End()


_reply_counters: dict[tuple[str, int], Any] = {}


def count(verb: str, code: int) -> None:
    counter = _reply_counters.get((verb, code))
    if counter is None:
        counter = _reply_counters[(verb, code)] = metrics.REPLIES.labels(verb, str(code))
    counter.inc()
