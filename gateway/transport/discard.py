"""The transport that throws mail away: every recipient is delivered, nothing is kept."""

from __future__ import annotations

from gateway.mail.reply import Reply
from gateway.transport.transport import Delivery, Outcome, Result

_DISCARDED = Outcome(Result.DELIVERED, Reply(250, "0.0", "discarded"))


class DiscardTransport:
    """Implements `gateway.transport.transport.Transport`."""

    async def deliver(self, delivery: Delivery) -> list[Outcome]:
        return [_DISCARDED] * len(delivery.recipients)

    async def close(self) -> None:
        """Nothing is open."""
