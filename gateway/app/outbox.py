"""Mail of Gatepost's own that plugins send, such as reports: into the spool, and from there as all other mail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from gateway.mail.address import Address, Sender
from gateway.mail.envelope import Body, Envelope, MailParameters, Notify, Recipient
from gateway.mail.session import new_session_id, transaction_id
from gateway.ops import log
from gateway.sdk.services import Clock, OutboxError
from gateway.spool.spool import NewMessage, Spool, SpoolError

MAX_OCTETS = 32 << 20

_log = log.get()


class SpoolOutbox:
    """Implements `gateway.sdk.services.Outbox`.

    `ring` tells the scheduler that there is something to do; `sign` gives a message its signatures.
    """

    def __init__(
        self, spool: Spool, clock: Clock, ring: Callable[[], None], sign: Callable[[bytes], Awaitable[bytes]]
    ) -> None:
        self._spool = spool
        self._clock = clock
        self._ring = ring
        self._sign = sign

    async def send(self, sender: Sender, recipients: Sequence[Address], content: bytes) -> str:
        """Queue a message, durably; gives its queue id."""
        if not recipients or len(content) > MAX_OCTETS:
            raise OutboxError("a message needs recipients and at most 32 MiB of content")
        if content.count(b"\r\n") != content.count(b"\n") or content.count(b"\r\n") != content.count(b"\r"):
            raise OutboxError("a line of the content does not end in CRLF")
        content = await self._sign(content)
        id = transaction_id(new_session_id(), 0)
        body = Body.SEVEN_BIT if content.isascii() else Body.EIGHT_BIT
        # Whom it does not reach nobody has to be told of, neither by us nor by hosts after us.
        chosen = tuple(Recipient(recipient, frozenset({Notify.NEVER})) for recipient in recipients)
        envelope = Envelope(sender, chosen, MailParameters(body=body))
        draft = self._spool.draft(id)
        try:
            await draft.write(content)
            await self._spool.commit(draft, NewMessage(id, envelope, self._clock.now(), b"", owed=False, trusted=True))
        except SpoolError as error:
            await draft.abandon()
            raise OutboxError(f"cannot be queued: {error}") from error
        _log.info("outbox.queued", id=id, recipients=[str(r) for r in recipients], size=len(content))
        self._ring()
        return id
