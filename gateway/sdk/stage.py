"""The stages of a transaction, and what is known at each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gateway.mail.address import Sender
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

    `content` and `fields` are the client's own octets, without the trace fields that Gatepost will add.
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


# The first stage at which an input of a finder or a hook exists.
KNOWN_FROM: dict[type, Stage] = {
    Session: Stage.CONNECT,
    Transaction: Stage.MAIL,
    Recipient: Stage.RCPT,
    Message: Stage.MESSAGE,
}
