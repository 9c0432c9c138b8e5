"""What `milter` and `milter-host` have in common: the stages at which a milter is told, and what is counted of it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

from gateway.sdk import Message, MilterReply, Plugin, Recipient, ReverseName, Session, Stage, Transaction, acts
from plugins.milter.macros import Facts, client_name
from plugins.milter.meters import Meters


class Party(Protocol):
    """One milter in one session."""

    async def come_to(self, stage: Stage, facts: Facts, message: Message | None = None) -> MilterReply:
        """Tell it of this stage, and of what it missed before. `message` at stage `message` only."""


class MilterStages(Plugin):
    """Base of plugins that tell one milter of all stages. `meters` is to be set by `__init__`."""

    meters: Meters

    @abstractmethod
    def party(self, session: Session) -> Party:
        """The milter's part in this session, a new one where there is none that can go on."""

    @abstractmethod
    async def leave(self, session: Session) -> None:
        """Its part in this session is over, if it had one."""

    async def hung_up(self, session: Session) -> None:
        await self.leave(session)

    @acts(Stage.CONNECT)
    async def on_connect(self, session: Session, reverse: ReverseName | None) -> MilterReply:
        """A client has connected."""
        await self.leave(session)
        return await self._ask(Stage.CONNECT, session, reverse)

    @acts(Stage.HELO)
    async def on_helo(self, session: Session, reverse: ReverseName | None) -> MilterReply:
        """It has said who it is."""
        return await self._ask(Stage.HELO, session, reverse)

    @acts(Stage.MAIL)
    async def on_mail(self, transaction: Transaction, reverse: ReverseName | None) -> MilterReply:
        """It has a message."""
        return await self._ask(Stage.MAIL, transaction.session, reverse, transaction)

    @acts(Stage.RCPT)
    async def on_rcpt(self, transaction: Transaction, recipient: Recipient, reverse: ReverseName | None) -> MilterReply:
        """For this one."""
        return await self._ask(Stage.RCPT, transaction.session, reverse, transaction, recipient)

    @acts(Stage.DATA)
    async def on_data(self, transaction: Transaction, reverse: ReverseName | None) -> MilterReply:
        """All recipients are known."""
        return await self._ask(Stage.DATA, transaction.session, reverse, transaction)

    @acts(Stage.MESSAGE)
    async def on_message(self, transaction: Transaction, message: Message, reverse: ReverseName | None) -> MilterReply:
        """The message is there, as entries before this one have left it."""
        return await self._ask(Stage.MESSAGE, transaction.session, reverse, transaction, message=message)

    async def _ask(
        self,
        stage: Stage,
        session: Session,
        reverse: ReverseName | None,
        transaction: Transaction | None = None,
        recipient: Recipient | None = None,
        message: Message | None = None,
    ) -> MilterReply:
        party = self.party(session)
        facts = Facts(self.services.hostname, session, client_name(session, reverse), transaction, recipient)
        reply = await party.come_to(stage, facts, message)
        self.meters.replied(stage, reply.action)
        for edit in reply.edits:
            self.meters.edited(edit)
        return reply
