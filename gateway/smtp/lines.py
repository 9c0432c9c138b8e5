"""Connections that are not greeted yet: who of them talks before it is its turn. Serves plugins.

*RFCs*: 5321 section 4.3.1 (the client waits for the greeting).
"""

from __future__ import annotations

from gateway.mail.session import Session
from gateway.smtp.inbox import Inbox


class OpenLines:
    """Implements `gateway.sdk.services.Lines` for the sessions of one worker."""

    def __init__(self) -> None:
        self._inboxes: dict[str, Inbox] = {}
        self._told: set[str] = set()

    def open(self, session: Session, inbox: Inbox) -> None:
        """This session waits for its greeting."""
        self._inboxes[session.id] = inbox

    def close(self, session: Session) -> bool:
        """It has been judged, and does not wait any more. Gives whether a plugin was told that it talks early."""
        self._inboxes.pop(session.id, None)
        told = session.id in self._told
        self._told.discard(session.id)
        return told

    async def early(self, session: Session, seconds: float) -> bool:
        """Whether the client talks before its greeting; see `Lines`."""
        inbox = self._inboxes.get(session.id)
        if inbox is None:
            return False
        talks = await inbox.talks(seconds)
        if talks and session.id in self._inboxes:
            self._told.add(session.id)
        return talks
