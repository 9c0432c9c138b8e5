"""The stages of a transaction, and what is known at each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from gateway.mail.address import Sender
from gateway.mail.edit import Edit, EditedContent, apply_edits, replaced_body
from gateway.mail.envelope import MailParameters, Recipient
from gateway.mail.message import Content, HeaderField
from gateway.mail.session import Session


class Stage(StrEnum):
    """In the order in which they come. `rcpt` comes once per recipient."""

    CONNECT = "connect"
    HELO = "helo"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    MESSAGE = "message"


ORDER = tuple(Stage)


@dataclass(frozen=True, slots=True)
class Transaction:
    """One MAIL..end-of-data, as known so far. `recipients` are those accepted up to now."""

    id: str
    session: Session
    sender: Sender
    parameters: MailParameters
    recipients: tuple[Recipient, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """The received message at stage `message`: header fields top down as received, and the content as received.

    `content` and `fields` are the client's own octets, without the trace fields that Gatepost will add. An entry whose
    turn comes after others' edits (`acts`, and policies) sees the message as those left it; look-ups (`finds`) see it
    as it was received.
    """

    fields: tuple[HeaderField, ...]
    content: Content

    def all(self, name: str) -> tuple[str, ...]:
        """The values of all fields of this name, top down."""
        lower = name.lower()
        return tuple(f.value for f in self.fields if f.name.lower() == lower)

    def first(self, name: str) -> str | None:
        """The value of the topmost field of this name, None when there is none."""
        lower = name.lower()
        return next((f.value for f in self.fields if f.name.lower() == lower), None)

    def edited(self, edits: Sequence[Edit]) -> Message:
        """The message as these edits leave it; those of the envelope change nothing here."""
        fields = tuple(apply_edits(self.fields, edits))
        head = b"".join(field.raw for field in fields)
        skip = sum(len(field.raw) for field in self.fields)
        return Message(fields, EditedContent(self.content, head, skip, replaced_body(edits)))

    async def octets(self, limit: int) -> bytes:
        """The whole content at once, cut off after `limit` octets."""
        out = bytearray()
        async for block in self.content.blocks():
            out += block[: limit - len(out)]
            if len(out) >= limit:
                break
        return bytes(out)


# The first stage at which an input of a finder or a hook exists.
KNOWN_FROM: dict[type, Stage] = {
    Session: Stage.CONNECT,
    Transaction: Stage.MAIL,
    Recipient: Stage.RCPT,
    Message: Stage.MESSAGE,
}
