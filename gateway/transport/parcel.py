"""One message on its way to a next hop: its content in the form that the hop can take, and one transaction with it.

*RFCs*: 3030 section 2 (BDAT in place of DATA), 6152 section 3 (what has 8 bits is converted or bounced), 6531 sections
3.2 and 3.5 (SMTPUTF8 or a bounce).
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Final

from gateway.mail.address import Address, Sender
from gateway.mail.edit import BodyContent
from gateway.mail.envelope import Recipient
from gateway.mail.message import Content
from gateway.mail.reply import Reply
from gateway.mail.sevenbit import MAX_OCTETS, Unconvertible, to_seven_bit
from gateway.ops import log
from gateway.transport import commands
from gateway.transport.connection import Connection
from gateway.transport.content import head_of, stuff, whole
from gateway.transport.events import Broken, Finished, Refused, Signal, Unauthenticated
from gateway.transport.introduction import greeting_name, xclient, xforward
from gateway.transport.options import EightBit, HopOptions
from gateway.transport.transport import Delivery, Fault, Outcome, Result

SMALL: Final = 256 << 10
"""Content up to this many octets is made ready before MAIL, so that it leaves in one write when 354 comes."""

_NEEDS_UTF8: Final = Reply(553, "6.7", "the address needs SMTPUTF8, which the next hop does not offer")
_NEEDS_UTF8_HEADER: Final = Reply(554, "6.9", "the header needs SMTPUTF8, which the next hop does not offer")
_NEEDS_8BIT: Final = Reply(554, "6.3", "the content is 8-bit, and the next hop does not offer 8BITMIME")

_log = log.get()


class Parcel:
    """One delivery. What its content becomes for some next hop is made once. Not for several tasks at once.

    `chunking` allows BDAT; False as soon as the next hop turns out not to know it.
    """

    def __init__(self, delivery: Delivery, hop: HopOptions, hostname: str) -> None:
        self.delivery = delivery
        self._hop = hop
        self._hostname = hostname
        self._eight_bit = hop.eight_bit
        self.chunking = hop.chunking
        self._original = _Form(delivery.content)
        self._converted: _Form | Reply | None = None

    async def prepare(self) -> None:
        """Read what is small now, and not when the next hop waits for it."""
        await self._original.octets()

    async def send(self, connection: Connection, recipients: Sequence[Recipient]) -> list[Outcome] | None:
        """One transaction; None when it is to be done on another connection.

        That is when a kept connection was dead before MAIL got an answer, and when the next hop does not know BDAT.
        """
        kept = connection.messages > 0
        unheard = await self._introduce(connection)
        if isinstance(unheard, Broken) and kept:
            return None
        if unheard is not None:
            return [_not_introduced(connection, unheard)] * len(recipients)
        offered, delivery = connection.offered, self.delivery
        parameters = delivery.parameters
        if not parameters.smtputf8 and _needs_smtputf8(delivery.sender, recipients):
            # It came without, and was given such an address since: by a postmaster, a filter, or VERP.
            parameters = replace(parameters, smtputf8=True)
        cannot = Outcome(Result.FAILED, _NEEDS_UTF8, connection.host, fault=Fault.PEER)
        rcpts = [commands.rcpt(r, smtputf8=parameters.smtputf8, offered=offered) for r in recipients]
        lines = [line for line in rcpts if line is not None]
        form = await self._form(offered)
        if isinstance(form, Reply):
            # An address that cannot be written comes before a header that cannot.
            said = Outcome(Result.FAILED, form, connection.host, fault=Fault.PEER)
            fits = commands.mail(delivery.sender, parameters, size=0, eight_bit=False, offered=offered) is not None
            return [said if fits and line is not None else cannot for line in rcpts]
        content = form.content
        mail = commands.mail(
            delivery.sender, parameters, size=content.size, eight_bit=content.eight_bit, offered=offered
        )
        if mail is None or not lines:
            return [cannot] * len(recipients)
        chunking = self.chunking and "CHUNKING" in offered
        payload = await form.octets() if chunking else await form.stuffed()
        finished = await connection.transact(
            mail,
            lines,
            payload=payload,
            content=content if payload is None else None,
            chunking=chunking,
            before=self._forwarding(offered),
        )
        if connection.forward_refused is not None:
            _log.warning("xforward.refused", host=connection.host, reply=str(connection.forward_refused))
        if kept and not finished.open and not finished.mail_answered:
            return None
        if finished.no_chunks:
            _log.warning("chunking.unknown", host=connection.host)
            self.chunking = False
            return None
        replies = iter(finished.replies)
        dsn = "DSN" in offered
        return [_outcome(connection, finished, next(replies), dsn) if line is not None else cannot for line in rcpts]

    async def _introduce(self, connection: Connection) -> Refused | Unauthenticated | Broken | None:
        """Say XCLIENT where it is wanted and offered; what came instead of an assent."""
        origin = self.delivery.origin
        if not self._hop.xclient or origin is None or origin == connection.origin:
            return None
        command = xclient(origin, connection.offered.get("XCLIENT", ""))
        if not command:
            return None
        strict = self.delivery.parameters.requiretls and "REQUIRETLS" in connection.offered
        event = await connection.introduce(command, greeting_name(origin, self._hostname), origin)
        if strict and event is Signal.READY and "REQUIRETLS" not in connection.offered:
            return Broken("it no longer offers REQUIRETLS")
        return None if isinstance(event, Signal) else event

    def _forwarding(self, offered: Mapping[str, str]) -> list[bytes]:
        """XFORWARD commands, where they are wanted and offered."""
        origin = self.delivery.origin
        if not self._hop.xforward or origin is None or "XFORWARD" not in offered:
            return []
        return xforward(origin, self.delivery.id, offered["XFORWARD"])

    async def _form(self, offered: Container[str]) -> _Form | Reply:
        """The content for a next hop that offers this, or why it cannot have it."""
        content = self.delivery.content
        if self.delivery.parameters.smtputf8 and "SMTPUTF8" not in offered and not (await head_of(content)).isascii():
            return _NEEDS_UTF8_HEADER
        if not content.eight_bit or "8BITMIME" in offered or self._eight_bit is EightBit.SEND:
            return self._original
        if self._eight_bit is EightBit.BOUNCE:
            return _NEEDS_8BIT
        if self._converted is None:
            self._converted = await self._convert(content)
        return self._converted

    async def _convert(self, content: Content) -> _Form | Reply:
        try:
            if content.size > MAX_OCTETS:
                raise Unconvertible(f"it is larger than {MAX_OCTETS >> 20} MiB")
            octets = await whole(content)
            converted = await asyncio.to_thread(to_seven_bit, octets) if len(octets) > SMALL else to_seven_bit(octets)
        except Unconvertible as error:
            text = f"the content is 8-bit, the next hop does not offer 8BITMIME, and it cannot be converted: {error}"
            return Reply(554, "6.3", text)
        _log.info("content.converted", id=self.delivery.id, size=len(octets), converted=len(converted))
        return _Form(BodyContent(converted))


class _Form:
    """Content, and the octets of it that go over the wire, if it is small."""

    def __init__(self, content: Content) -> None:
        self.content = content
        self._octets: bytes | None = None
        self._stuffed: bytes | None = None

    async def octets(self) -> bytes | None:
        """Without the dots of DATA."""
        if self._octets is None and self.content.size <= SMALL:
            self._octets = await whole(self.content)
        return self._octets

    async def stuffed(self) -> bytes | None:
        """With them."""
        octets = await self.octets()
        if self._stuffed is None and octets is not None:
            self._stuffed = stuff(octets)
        return self._stuffed


def _needs_smtputf8(sender: Sender, recipients: Sequence[Recipient]) -> bool:
    """Whether one of the addresses cannot be written without."""
    addresses = [sender, *(recipient.address for recipient in recipients)]
    return any(isinstance(address, Address) and address.needs_smtputf8 for address in addresses)


def _not_introduced(connection: Connection, event: Refused | Unauthenticated | Broken) -> Outcome:
    """The mail waits: as if it were our own it might be let in where its sender would not be."""
    match event:
        case Refused():
            said = f"refused XCLIENT: {event.reply}"
        case Unauthenticated():
            said = f"does not let us in after XCLIENT: {event.problem}"
        case Broken():
            said = f"left after XCLIENT: {connection.problem or event.problem}"
    reply = Reply(451, "7.0", f"{connection.host} {said}")
    return Outcome(Result.DEFERRED, reply, connection.host, fault=Fault.CONNECT, tls=connection.tls)


def _outcome(connection: Connection, finished: Finished, reply: Reply | None, dsn: bool) -> Outcome:
    result, fault, replied = Result.DELIVERED, Fault.NONE, True
    if reply is None:
        result, reply, fault, replied = Result.DEFERRED, connection.silence(finished), Fault.PEER, False
    elif not reply.positive:
        result, fault = Result.DEFERRED if reply.temporary else Result.FAILED, Fault.PEER
    return Outcome(
        result,
        reply,
        connection.host,
        replied,
        fault,
        dsn,
        connection.tls,
        tls_policy=connection.rule.policy,
        tls_peer=connection.peer,
    )
