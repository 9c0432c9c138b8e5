"""The front door: the commands of one connection, and the only module that imports aiosmtpd.

aiosmtpd lends the protocol class and the names of its commands. What it does with the bytes is replaced, row by row of
the list in docs/decisions/0001-front-door.md: reading, writing, address parsing, DATA, TLS, PROXY, timeouts, limits and
the handling of our own errors. Most of that stands in `gateway.smtp.connection` and `gateway.smtp.conversation`.

*Promises*: only CRLF.CRLF ends DATA. Nothing read before a TLS handshake is used after it.

*RFCs*: 5321, 2920 (PIPELINING), 1870 (SIZE), 6152 (8BITMIME), 6531 (SMTPUTF8), 2034 (ENHANCEDSTATUSCODES), 3461 (DSN),
3030 (CHUNKING), 3207 (STARTTLS), 8689 (REQUIRETLS).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from aiosmtpd.smtp import SMTP

from gateway.mail.reply import Reply
from gateway.smtp import command as grammar
from gateway.smtp import xclient
from gateway.smtp.command import Bdat, CommandError
from gateway.smtp.connection import TIMED_OUT
from gateway.smtp.conversation import DRAINING, EARLY, Conversation, End, Hall, count
from gateway.smtp.data import DataDecoder, Newlines
from gateway.smtp.options import ListenerOptions, TlsMode
from gateway.smtp.receive import WASTE, Chunks, Sink
from gateway.smtp.replies import TOO_BIG

OK: Final = Reply(250, "0.0", "ok")
SEND: Final = Reply(354, "", "send the message, end with <CRLF>.<CRLF>")
BYE: Final = Reply(221, "0.0", "goodbye")
HELO_FIRST: Final = Reply(503, "5.1", "say EHLO first")
MAIL_FIRST: Final = Reply(503, "5.1", "say MAIL first")


class Server(Conversation, SMTP):
    """One connection. The methods named ``smtp_X`` are the commands; the dispatch table is made of them once."""

    def __init__(self, hall: Hall, listener: ListenerOptions, loop: asyncio.AbstractEventLoop) -> None:
        # aiosmtpd's own __init__ scans all members of handler and protocol at each connection, and makes a stream
        # reader that stops at lines of 1001 octets; neither is wanted.
        Conversation.__init__(self, hall, listener, loop)

    async def smtp_HELO(self, argument: str) -> Reply:
        return await self._hello(argument, esmtp=False)

    async def smtp_EHLO(self, argument: str) -> Reply:
        return await self._hello(argument, esmtp=True)

    async def _hello(self, argument: str, *, esmtp: bool) -> Reply:
        name = grammar.parse_helo(argument)
        self._chunks = None
        session = replace(self.session, helo=name, esmtp=esmtp)
        if self._health_check:
            refusal = None
            await self.intake.renew(session)
        else:
            refusal = await self.intake.helo(session)
        if refusal is not None:
            self._greeted = False
            return refusal
        self.session = session
        self._greeted = True
        hostname = self.desk.options.hostname
        return Reply(250, "", "\n".join([hostname, *self._extensions()]) if esmtp else hostname)

    def _extensions(self) -> list[str]:
        out = [
            "PIPELINING",
            f"SIZE {self.desk.options.limits.message_size}",
            "8BITMIME",
            "SMTPUTF8",
            "ENHANCEDSTATUSCODES",
            "DSN",
            "CHUNKING",
        ]
        if self._may_start_tls():
            out.append("STARTTLS")
        if self._may_require_tls():
            out.append("REQUIRETLS")
        if self._may_introduce():
            out.append(xclient.OFFER)
        return out

    def _may_require_tls(self) -> bool:
        """RFC 8689 section 2: never without TLS."""
        return self.listener.requiretls and self.session.tls is not None

    def _may_start_tls(self) -> bool:
        return self.listener.tls is not None and self.listener.tls_mode is TlsMode.STARTTLS and self.session.tls is None

    def _may_introduce(self) -> bool:
        """Whether XCLIENT is for this peer. Behind a proxy that is the proxy's client: anybody can be behind one."""
        return self._known and self._caller is not None and self._caller in self.listener.xclient_trusted

    async def smtp_MAIL(self, argument: str) -> Reply:
        if not self._greeted:
            return HELO_FIRST
        if self.intake.in_transaction:
            return Reply(503, "5.1", "MAIL was said already")
        if self.hall.draining:
            raise self._hang_up("draining", DRAINING)
        self._vantage.note(self.session)
        return await self.intake.mail(grammar.parse_mail(argument, self.session.esmtp, self._may_require_tls()))

    async def smtp_RCPT(self, argument: str) -> Reply:
        if not self.intake.in_transaction or self._chunks is not None:
            return MAIL_FIRST
        smtputf8 = self.intake.smtputf8
        recipient = grammar.parse_rcpt(argument, esmtp=self.session.esmtp, smtputf8=smtputf8)
        return await self.intake.rcpt(recipient)

    async def smtp_DATA(self, argument: str) -> Reply | None:
        if argument:
            return Reply(501, "5.4", "DATA takes no argument")
        if not self.intake.in_transaction or self._chunks is not None:
            return MAIL_FIRST
        refusal = None if self._inbox.buffer else await self.intake.data()
        if refusal is not None:
            return refusal
        if self._inbox.buffer:
            # RFC 2920 section 3.1: DATA ends a group. Who sends on without waiting smuggles, or is broken.
            raise self._hang_up("early-data", EARLY)
        self._in_content = True
        self._say(SEND)
        await self._flush()
        return await self._read_data()

    async def _read_data(self) -> Reply:
        block = self.desk.options.timeouts.data_block
        decoder = DataDecoder()
        sink = Sink(self.intake, self.desk.options.limits.message_size)
        last = self._last()
        rest: bytes | None = None
        while rest is None:
            self._wait_for_content(block, last)
            piece, rest = decoder.feed(await self._inbox.some())
            await sink.write(piece)
            if sink.fed_up:
                raise self._hang_up("too-big", TOO_BIG)
        self._inbox.give_back(rest)
        self._in_content = False
        return await self._finish(sink, decoder.stray)

    async def _finish(self, sink: Sink, stray: bool) -> Reply:
        self._work()
        strict = self.desk.options.newlines is Newlines.REJECT
        reply = await self.intake.finish(overflow=sink.overflow, stray=stray and strict, failed=sink.failed)
        if reply.positive:
            self._errors = self._idle_talk = 0
        return reply

    async def smtp_BDAT(self, argument: str) -> Reply | None:
        limit = self.desk.options.limits.message_size
        try:
            bdat = grammar.parse_bdat(argument)
        except CommandError as error:
            # Without its size the chunk cannot be told from commands.
            raise self._hang_up("bad-chunk", error.reply) from error
        if bdat.octets > limit + WASTE:
            raise self._hang_up("bad-chunk", TOO_BIG)
        if self._chunks is not None and self.loop.time() > self._chunks.last:
            raise self._hang_up("timeout", TIMED_OUT)
        self._in_content = True
        refusal: Reply | None = None
        if self._chunks is None and self.intake.in_transaction:
            refusal = await self.intake.data()
            if refusal is None:
                self._chunks = Chunks(Sink(self.intake, limit), self._last())
        chunks = self._chunks
        await self._read_chunk(bdat, chunks)
        self._in_content = False
        if chunks is None:
            return refusal or MAIL_FIRST
        if bdat.last:
            await chunks.sink.write(chunks.decoder.end())
        elif not chunks.sink.overflow and chunks.sink.failed is None:
            return Reply(250, "0.0", f"{bdat.octets} octets received")
        self._chunks = None
        return await self._finish(chunks.sink, chunks.decoder.stray)

    def _last(self) -> float:
        """When all of a message has to be there whose content begins now."""
        return self.loop.time() + self.desk.options.timeouts.data_total

    async def _read_chunk(self, bdat: Bdat, chunks: Chunks | None) -> None:
        """Read exactly the chunk's octets, wanted or not (RFC 3030 section 2)."""
        left = bdat.octets
        block = self.desk.options.timeouts.data_block
        last = chunks.last if chunks else self._last()
        while left:
            if not self._inbox.buffer:
                await self._flush()
            self._wait_for_content(block, last)
            data = await self._inbox.some(left)
            left -= len(data)
            if chunks is not None:
                await chunks.sink.write(chunks.decoder.feed(data))
        self._work()

    async def smtp_RSET(self, argument: str) -> Reply:
        if argument:
            return Reply(501, "5.4", "RSET takes no argument")
        self._chunks = None
        await self.intake.abort()
        return OK

    async def smtp_NOOP(self, argument: str) -> Reply:
        return OK

    async def smtp_HELP(self, argument: str) -> Reply:
        return Reply(214, "0.0", "see RFC 5321")

    async def smtp_VRFY(self, argument: str) -> Reply:
        if not argument:
            return Reply(501, "5.4", "VRFY takes a name")
        return Reply(252, "5.2", "cannot say, try RCPT")

    async def smtp_EXPN(self, argument: str) -> Reply:
        return Reply(502, "5.1", "not done here")

    async def smtp_AUTH(self, argument: str) -> Reply:
        return Reply(503, "5.1", "AUTH is not offered here")

    async def smtp_QUIT(self, argument: str) -> Reply:
        if argument:
            return Reply(501, "5.4", "QUIT takes no argument")
        await self.intake.abort()
        count("QUIT", 221)
        self._say(BYE)
        raise End

    async def smtp_STARTTLS(self, argument: str) -> None:
        if argument:
            raise CommandError(Reply(501, "5.4", "STARTTLS takes no argument"))
        if not self._may_start_tls():
            raise CommandError(Reply(503, "5.1", "TLS is not offered or already on"))
        self._chunks = None
        self._greeted = False
        session = replace(self.session, helo="", esmtp=False)
        await self.intake.renew(session)
        self._say(Reply(220, "0.0", "go ahead"))
        # From here to the handshake the event loop does not run, so nothing can slip in.
        self._write_out()
        self._inbox.clear()
        self.session = replace(session, tls=(tls := await self._tls()))
        self._note_certificate(tls.client)
        await self.intake.renew(self.session)

    async def smtp_XCLIENT(self, argument: str) -> Reply | None:
        if self._caller is None or not self._may_introduce():
            return Reply(550, "7.0", "XCLIENT is not for you")
        if self.intake.in_transaction:
            return Reply(503, "5.1", "not within a transaction")
        given = xclient.parse(argument)
        session = xclient.apply(self.session, given, self._caller)
        if "ADDR" in given:
            self._introduced = bool(given["ADDR"])
        await self.intake.close()
        # Nor are the errors of one client those of the next.
        self._errors = self._overshoot = self._idle_talk = 0
        self.session = replace(session, trusted=self._introduced and session.client in self.desk.options.relay_from)
        if not await self._greet():
            raise End
        return None


Server.commands = {
    name.removeprefix("smtp_"): getattr(Server, name) for name in vars(Server) if name.startswith("smtp_")
}
