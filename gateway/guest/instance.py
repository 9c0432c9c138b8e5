"""One message, as Postfix asks a policy server about it: several requests, one transaction.

At each request the stages up to where the SMTP session stands are judged, as far as they were not before; what was
answered once is answered again alike, since Postfix asks at each place where its restrictions name us.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from gateway.guest.actions import DUNNO, Owed, refusal
from gateway.guest.envelope import parse_recipient, parse_sender
from gateway.guest.request import Request, State
from gateway.guest.ruling import Ruling
from gateway.guest.visit import RECIPIENTS, Visit
from gateway.mail.address import AddressError
from gateway.mail.envelope import Recipient
from gateway.mail.reply import Reply
from gateway.mail.session import Session
from gateway.ops import log
from gateway.sdk.stage import Stage
from gateway.sdk.verdict import Action

_BAD_SENDER: Final = Reply(501, "1.7", "malformed sender address")
_BAD_RECIPIENT: Final = Reply(501, "1.3", "malformed recipient address")
_PROCEED: Final = Ruling(Action.PROCEED)
_AT_END: Final = frozenset({State.DATA, State.END})

_log = log.get()


class Instance:
    """What was judged and told of one message. `lock` is held by whoever asks."""

    def __init__(self, visit: Visit, hostname: str, ok: str, renew: Callable[[Request, Session], Session]) -> None:
        """`ok` is the action where a verdict accepts; `renew` gives a session with what a request knows anew."""
        self.visit = visit
        self.lock = asyncio.Lock()
        self.used = 0.0
        self.closed = False
        self.attached = 0
        self._hostname = hostname
        self._ok = ok
        self._renew = renew
        self._owed = Owed()
        self._answers: dict[tuple[Stage, str], Ruling] = {}
        self._over: Ruling | None = None
        self._sender: str | None = None

    def continues(self, request: Request) -> bool:
        """Whether a request can be about this message, by what was said of it so far."""
        if self.closed:
            return False
        if request.state in (State.CONNECT, State.HELO):
            return not self.visit.in_transaction
        return self._sender is None or request.sender == self._sender

    async def answer(self, request: Request) -> str:
        """The action for a request about this message."""
        ruling = await self._judge(request)
        self._owed.discard, self._owed.hold = self.visit.discard, self.visit.quarantine
        if ruling.refused and ruling.reply is not None:
            action = refusal(ruling, ruling.reply)
        else:
            action = self._owed.next(request.state)
            action = action or (self._ok if ruling.action is Action.ACCEPT else DUNNO)
        if request.state is State.END:
            await self.end(size=request.size)
        return action

    async def end(self, *, size: int = 0) -> None:
        """There is no more to be told about this message."""
        if not self.visit.in_transaction:
            return
        self.visit.made(*self._owed.made)
        if self.visit.recipients:
            self.visit.left_out(*self._owed.unsaid())
        await self.visit.end(size=size)
        self._over = self._over or _PROCEED

    async def close(self) -> None:
        """End it, and the session with it."""
        self.closed = True
        try:
            await self.end()
        finally:
            await self.visit.close()

    # Judging

    async def _judge(self, request: Request) -> Ruling:
        state, visit = request.state, self.visit
        ruling = await self._session(request)
        if state in (State.CONNECT, State.HELO):
            return ruling
        if self._over is not None:
            return self._answers.get((state.value, request.recipient), self._over)
        if not visit.in_transaction:
            ruling = await self._once(Stage.MAIL, "", self._mail, request)
            if ruling.refused and not visit.in_transaction:
                self._over = ruling
                return ruling
        visit.name(request.queue_id)
        if state is State.MAIL:
            return self._answers[Stage.MAIL, ""]
        ruling = _PROCEED
        if request.recipient:
            ruling = await self._once(Stage.RCPT, request.recipient, self._rcpt, request)
        if state is State.RCPT:
            return ruling
        if ruling.refused:
            # The only recipient there is, of whom nobody asked before.
            self._over = ruling
            await self.end()
            return ruling
        ruling = await self._once(Stage.DATA, "", self._data, request)
        if ruling.refused:
            self._over = ruling
        return ruling

    async def _once(self, stage: Stage, of: str, ask: Callable[..., object], request: Request) -> Ruling:
        """What was answered before, or what comes of asking now."""
        ruling = self._answers.get((stage, of))
        if ruling is None:
            ruling = await ask(request)  # type: ignore[misc]
            self._owed.take(() if ruling.refused else ruling.edits)
            if len(self._answers) <= 2 * RECIPIENTS:
                self._answers[stage, of] = ruling
        return ruling

    async def _session(self, request: Request) -> Ruling:
        """Judge the connection and the HELO name, unless they were judged; gives what is to be said of them."""
        visit, early = self.visit, request.state in (State.CONNECT, State.HELO)
        ruling = self._answers.get((Stage.CONNECT, ""), _PROCEED)
        if not visit.connected:
            ruling = self._answers[Stage.CONNECT, ""] = await visit.connect(tell=early)
        if ruling.refused or request.state is State.CONNECT:
            return ruling
        known = visit.session
        if request.helo and (not visit.greeted or (known.helo, known.tls) != (request.helo, request.tls)):
            session = self._renew(request, known)
            # A new name ends what was begun under the old one.
            self._answers = {(Stage.CONNECT, ""): ruling}
            self._over = self._sender = None
            self._answers[Stage.HELO, request.helo] = await visit.helo(session, tell=early)
        return self._answers.get((Stage.HELO, request.helo), _PROCEED)

    async def _mail(self, request: Request) -> Ruling:
        self._sender = request.sender
        try:
            sender = parse_sender(request.sender, self._hostname)
        except AddressError as error:
            return self._malformed(request, _BAD_SENDER, error)
        visit = self.visit
        visit.session = self._renew(request, visit.session)
        return await visit.mail(sender, request.parameters, queue_id=request.queue_id, tell=request.state is State.MAIL)

    async def _rcpt(self, request: Request) -> Ruling:
        try:
            recipient = Recipient(parse_recipient(request.recipient, self._hostname))
        except AddressError as error:
            return self._malformed(request, _BAD_RECIPIENT, error)
        return await self.visit.rcpt(recipient)

    async def _data(self, request: Request) -> Ruling:
        return await self.visit.data()

    def _malformed(self, request: Request, reply: Reply, error: AddressError) -> Ruling:
        session = self.visit.session
        _log.info(
            "guest.bad_address", session=session.id, client=str(session.client), reply=str(reply), reason=str(error)
        )
        return Ruling(Action.REJECT, reply, str(error))


def renew(request: Request, session: Session) -> Session:
    """The session with what a request says of it: all of it may have changed since (HELO, STARTTLS, AUTH)."""
    return replace(
        session,
        helo=request.helo,
        esmtp=request.esmtp,
        tls=request.tls,
        name=request.name,
        trusted=session.trusted or bool(request.login),
    )
