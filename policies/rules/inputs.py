"""What an expression can name: the variables, their types, from which stage on they are known, and how they are read.

Beside the findings, which go by their class's name in lower case (``recipient_status`` is `RecipientStatus`), these
are the session, the envelope and the message. Only what an expression names is ever turned into the library's values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from gateway.sdk import (
    NULL_SENDER,
    Address,
    Finding,
    MailParameters,
    Message,
    Recipient,
    Sender,
    Session,
    Stage,
    Transaction,
)
from gateway.sdk.words import decode_words
from policies.rules.functions import MESSAGE
from policies.rules.types import BOOL, INT, ITEMS, STRING, Kind, Type, list_of, members, plain, text

Values = Mapping[type, Any]
"""What a hook was given, by type."""

_SUBJECT: Final = 20_000


@dataclass(frozen=True, slots=True)
class Input:
    """A variable: `kind` is what a hook must take for it, `read` gives the variable or one field of it.

    `known` is the stage at which a rule that names it is asked if nothing else is said; `possible` the earliest one
    that may be said. Fields that come later than the rest have stages of their own. `source` takes what is read from
    what the hook was given.
    """

    kind: type
    type: Type
    read: Callable[[Any, str], Any]
    known: Stage
    possible: Stage | None = None
    fields: Mapping[str, tuple[Stage, Stage]] = field(default_factory=dict)
    source: Callable[[Any], Any] = lambda value: value

    def stages(self, name: str = "") -> tuple[Stage, Stage]:
        """When the field is known, and when it may be asked for at the earliest."""
        return self.fields.get(name, (self.known, self.possible or self.known))


def _address(value: Sender | Address, name: str) -> str:
    """One field of an address. No other is looked at: a redacted record tells of the domain only."""
    if value is NULL_SENDER or not isinstance(value, Address):
        return ""
    match name:
        case "address":
            return text(str(value))
        case "local":
            return text(value.local)
        case "domain":
            return value.ascii_domain
    raise KeyError(name)


def _recipients(txn: Transaction, _: str) -> list[dict[str, str]]:
    names = tuple(ADDRESS.fields)
    return [{name: _address(recipient.address, name) for name in names} for recipient in txn.recipients[:ITEMS]]


def _message(message: Message, name: str) -> Any:
    match name:
        case "size":
            return message.content.size
        case "eight_bit":
            return message.content.eight_bit
        case "subject":
            return text(decode_words((message.first("Subject") or "")[:_SUBJECT]))
    raise KeyError(name)


def field_of(value: Any, name: str) -> Any:
    """One field of a finding or another value of ours."""
    return plain(getattr(value, name))


ADDRESS: Final = Type(
    Kind.OBJECT,
    "address",
    fields={"address": STRING, "local": replace(STRING, size=64), "domain": replace(STRING, size=255)},
)

INPUTS: Final[dict[str, Input]] = {
    "session": Input(
        Session,
        Type(Kind.OBJECT, "session", fields=members(Session)),
        field_of,
        Stage.CONNECT,
        fields={
            "helo": (Stage.HELO, Stage.HELO),
            "esmtp": (Stage.HELO, Stage.HELO),
            # At the first EHLO there is none yet: clients begin TLS after it.
            "tls": (Stage.MAIL, Stage.HELO),
        },
    ),
    "sender": Input(Transaction, ADDRESS, lambda txn, name: _address(txn.sender, name), Stage.MAIL),
    "parameters": Input(
        Transaction,
        Type(Kind.OBJECT, "parameters", fields=members(MailParameters)),
        field_of,
        Stage.MAIL,
        source=lambda txn: txn.parameters,
    ),
    "recipient": Input(Recipient, ADDRESS, lambda recipient, name: _address(recipient.address, name), Stage.RCPT),
    "recipients": Input(Transaction, list_of(ADDRESS), _recipients, Stage.DATA, Stage.RCPT),
    "message": Input(
        Message,
        Type(Kind.OBJECT, MESSAGE, fields={"size": INT, "eight_bit": BOOL, "subject": STRING}),
        _message,
        Stage.MESSAGE,
    ),
}
"""By the name of the variable. `recipient` is known at rcpt only, since a message has several."""

_WORDS: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def variable_of(finding: type[Finding]) -> str:
    """``recipient_status`` for `RecipientStatus`."""
    return _WORDS.sub("_", finding.__name__).lower()


def all_findings() -> set[type[Finding]]:
    """Every kind of finding that has been defined so far, whoever defined it.

    A dataclass with slots is made from a class of the same name, which lives on for a while and is none of them.
    """
    out: set[type[Finding]] = set()
    pending: list[type[Finding]] = list(Finding.__subclasses__())
    while pending:
        kind = pending.pop()
        if kind not in out:
            out.add(kind)
            pending += kind.__subclasses__()
    slotted = {(k.__module__, k.__qualname__) for k in out if "__slots__" in vars(k)}
    return {k for k in out if "__slots__" in vars(k) or (k.__module__, k.__qualname__) not in slotted}


def finding_type(kind: type[Finding]) -> Type:
    """The type of a finding's variable, which may always be missing."""
    return Type(Kind.OBJECT, kind.__name__, nullable=True, fields=members(kind))


def read(name: str, used: Iterable[str], source: Any) -> Any:
    """A variable's value for the library, of which the expression names these fields."""
    found = INPUTS.get(name)
    if found is None:
        return None if source is None else {part: plain(getattr(source, part)) for part in used}
    if found.type.kind is Kind.LIST:
        return found.read(source, "")
    return {part: found.read(source, part) for part in used}


def missing(path: tuple[str, ...], source: Any) -> bool:
    """Whether what the path leads to from a variable's source is not there."""
    for part in path[1:]:
        if source is None:
            return True
        source = getattr(source, part)
    return source is None


def message_functions(message: Message) -> dict[str, Callable[..., Any]]:
    """The methods of `message`; the library gives the receiver as their first argument."""
    return {
        "first": lambda _, name: text(message.first(name) or ""),
        "all": lambda _, name: [text(value) for value in message.all(name)[:ITEMS]],
    }
