"""`milter`: a milter behind a socket is told of sessions and messages, and what it says is found."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from gateway.sdk import PluginOptions, Pool, Services, Session, dial
from plugins.milter.codec import Codec
from plugins.milter.conversation import Conversation
from plugins.milter.link import Link
from plugins.milter.meters import Meters
from plugins.milter.options import MilterOptions
from plugins.milter.packets import MilterError
from plugins.milter.policy import MilterPolicy
from plugins.milter.stages import MilterStages


class Switchboard:
    """Connections to one milter, new ones and kept ones."""

    def __init__(self, options: MilterOptions, services: Services) -> None:
        self.options = options
        self.name = options.name or str(options.connect)
        self.meters = Meters(self.name)
        self._services = services
        self._closed = False
        self._pool: Pool[Link] = Pool(Link.close, services.clock, idle=options.idle)

    async def open(self) -> Link:
        """One that waits, or a new one. Raises `MilterError` and OSError."""
        while (kept := self._pool.take()) is not None:
            if not kept.dead:
                self.meters.connected("reused")
                return kept
            self.stale(kept)
        seconds = self.options.connect_timeout
        try:
            async with asyncio.timeout(seconds) as limit:
                reader, writer = await dial(self.options.connect, self._services.dns)
        except TimeoutError:
            if not limit.expired():
                raise
            raise MilterError(f"no connection within {seconds:g}s") from None
        link = Link(reader, writer, Codec(self.options.protocol))
        try:
            await link.agree(seconds)
        except BaseException:
            link.abort()
            raise
        self.meters.connected("new")
        return link

    def back(self, link: Link) -> None:
        """Keep it for another session if that can be done, else close it."""
        if self.options.reuse and not self._closed and link.release():
            self._pool.give(link)
        else:
            link.close()

    def stale(self, link: Link) -> None:
        """It was kept and is dead; those that were kept longer are no better."""
        self.meters.connected("stale")
        link.close()
        self._pool.clear()

    def close(self) -> None:
        """Close what is kept, and what comes back later."""
        self._closed = True
        self._pool.close()


class MilterPlugin(MilterStages):
    """Asks one milter."""

    name = "milter"
    Options: ClassVar[type[PluginOptions]] = MilterOptions
    policy = MilterPolicy
    timeout = 30.0
    options: MilterOptions

    def __init__(self, options: PluginOptions, services: Services) -> None:
        super().__init__(options, services)
        self._board = Switchboard(self.options, services)
        self.meters = self._board.meters
        self._conversations: dict[str, Conversation] = {}

    async def close(self) -> None:
        self._board.close()
        for conversation in self._conversations.values():
            conversation.end()
        self._conversations.clear()

    def party(self, session: Session) -> Conversation:
        conversation = self._conversations.get(session.id)
        if conversation is not None and conversation.busy:
            # Whoever asked last was called off a moment ago; what it was told meanwhile nobody knows.
            self._end(session)
            conversation = None
        if conversation is None:
            conversation = self._conversations[session.id] = Conversation(self._board)
        return conversation

    async def leave(self, session: Session) -> None:
        self._end(session)

    def _end(self, session: Session) -> None:
        conversation = self._conversations.pop(session.id, None)
        if conversation is not None:
            conversation.end()
