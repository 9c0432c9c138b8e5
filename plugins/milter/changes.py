"""What a milter wants changed, as edits: the same result as behind Postfix, where Gatepost's own numbering differs.

Behind Postfix a message has its Received field on top before milters see it. They are not shown it, and changes by
name do not count it, but insertions do: index 0 is above it, index 1 right below. Gatepost puts its trace fields on top
after all edits, so insertions below Postfix's Received come out the same, and what stood above it stands right below
ours.

A field that is to be changed and is not there is added below all others, as Postfix and Sendmail do. What a milter
gives as a value is kept octet by octet, except that lines are folded where the milter forgot to, and control
characters, with which a field would break out of its line, become question marks.

*RFCs*: 5322 section 2.2 (folding), 3461 section 4 (parameters).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from gateway.sdk import (
    END,
    AddHeader,
    AddRecipient,
    Address,
    ChangeHeader,
    ChangeSender,
    DeleteHeader,
    DeleteRecipient,
    Edit,
    HeaderField,
    Notify,
    Recipient,
    ReplaceBody,
    Ret,
    Sender,
    parse_forward_path,
    parse_reverse_path,
    split_path,
)
from plugins.milter.content import MEMORY_OCTETS, NewBody
from plugins.milter.packets import (
    BodyReplaced,
    HeaderAdded,
    HeaderChanged,
    HeaderInserted,
    MilterError,
    Modification,
    Quarantined,
    RecipientAdded,
    RecipientDeleted,
    SenderChanged,
)

HEADER_OCTETS: Final = 1 << 20
"""Octets of all header fields that one milter may add or change in a message."""

_XTEXT: Final = r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})"
_ENVID: Final = re.compile(_XTEXT + r"{1,100}\Z")
_ORCPT: Final = re.compile(r"(?=.{1,500}\Z)[A-Za-z0-9-]{1,40};" + _XTEXT + r"+\Z")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Changes:
    """Modifications of one message, collected in their order.

    `fields` are those that the milter was shown; `leading_space` says that its values begin where the colon ends.
    At most `most` of them, and `body_size` octets of a new body, of which `memory` stay out of a file.
    """

    def __init__(
        self,
        fields: Iterable[HeaderField],
        *,
        leading_space: bool,
        most: int,
        body_size: int,
        memory: int = MEMORY_OCTETS,
    ) -> None:
        self.quarantine = ""
        self._names = [field.name.lower() for field in fields]
        self._above = 0
        """Fields that would stand above an MTA's own Received field."""
        self._leading_space = leading_space
        self._left = most
        self._octets = 0
        self._body_size = body_size
        self._memory = memory
        self._edits: list[Edit] = []
        self._body: NewBody | None = None

    def edits(self) -> tuple[Edit, ...]:
        """All of them."""
        body = (ReplaceBody(self._body.content()),) if self._body else ()
        return (*self._edits, *body)

    @property
    def names(self) -> list[str]:
        """The names of all fields as they are by now, in lower case, top down."""
        return list(self._names)

    async def take(self, change: Modification) -> None:
        """One more. Raises `MilterError` for one that cannot be made, or too many."""
        if isinstance(change, BodyReplaced):
            self._body = self._body or NewBody(self._body_size, self._memory)
            await self._body.append(change.octets)
            return
        if not self._left:
            raise MilterError("it makes too many changes")
        self._left -= 1
        try:
            self._edits.extend(self._made(change))
        except ValueError as error:
            raise MilterError(f"{type(change).__name__}: {error}") from error

    def _made(self, change: Modification) -> tuple[Edit, ...]:
        match change:
            case HeaderAdded(name, value):
                return (self._append(name, value),)
            case HeaderInserted(index, name, value):
                return (self._insert(index, name, value),)
            case HeaderChanged(nth, name, value):
                return self._change(max(1, nth), name, value)
            case SenderChanged(path, parameters):
                return (_sender(path, parameters),)
            case RecipientAdded(path, parameters):
                return (AddRecipient(_recipient(path, parameters)),)
            case RecipientDeleted(path):
                return (DeleteRecipient(_forward(path)),)
            case Quarantined(reason):
                self.quarantine = reason or "no reason given"
        return ()

    def _append(self, name: str, value: str) -> AddHeader:
        self._names.append(name.lower())
        return AddHeader(name, *self._value(value, END))

    def _insert(self, index: int, name: str, value: str) -> AddHeader:
        if index <= self._above:
            self._above += 1
        else:
            index -= 1
        if index >= len(self._names):
            return self._append(name, value)
        self._names.insert(index, name.lower())
        return AddHeader(name, *self._value(value, index))

    def _change(self, nth: int, name: str, value: str) -> tuple[Edit, ...]:
        at = self._find(name.lower(), nth)
        if value:
            if at is None:
                return (self._append(name, value),)
            text, _, lead = self._value(value, 0)
            return (ChangeHeader(name, nth, text, lead),)
        if at is None:
            return ()
        del self._names[at]
        if at < self._above:
            self._above -= 1
        return (DeleteHeader(name, nth),)

    def _find(self, name: str, nth: int) -> int | None:
        at = -1
        for _ in range(nth):
            try:
                at = self._names.index(name, at + 1)
            except ValueError:
                return None
        return at

    def _value(self, value: str, index: int) -> tuple[str, int, str]:
        """The value as an edit takes it, the index, and what stands between colon and value."""
        self._octets += len(value)
        if self._octets > HEADER_OCTETS:
            raise MilterError(f"it writes more than {HEADER_OCTETS} octets of header fields")
        text = field_value(value)
        if not self._leading_space:
            return text, index, " "
        bare = text.lstrip(" \t")
        return bare, index, text[: len(text) - len(bare)]


def field_value(value: str) -> str:
    """A milter's value of a header field as one that stays within its field, folded by line feeds."""
    first, *others = _CONTROL.sub("?", value.replace("\r\n", "\n").replace("\r", "\n")).split("\n")
    folded = [line if line[0] in " \t" else f"\t{line}" for line in others if line.strip(" \t")]
    return "\n".join([first, *folded])


def _inside(path: str) -> str:
    """A path without its brackets, which not every milter writes."""
    path = path.strip()
    return split_path(path)[0] if path.startswith("<") else path


def _forward(path: str) -> Address:
    return parse_forward_path(_inside(path), utf8=True)


def _sender(path: str, parameters: str) -> ChangeSender:
    """Parameters other than RET and ENVID are of no use here and left out."""
    sender: Sender = parse_reverse_path(_inside(path), utf8=True)
    values = _values(parameters)
    ret = values.get("RET", "").upper()
    envid = values.get("ENVID")
    if envid is not None and not _ENVID.match(envid):
        raise ValueError("ENVID is malformed")
    return ChangeSender(sender, Ret(ret) if ret else None, envid)


def _recipient(path: str, parameters: str) -> Recipient:
    values = _values(parameters)
    notify = frozenset(Notify(word) for word in values.get("NOTIFY", "").upper().split(",") if word)
    if Notify.NEVER in notify and len(notify) > 1:
        raise ValueError("NOTIFY=NEVER stands alone")
    orcpt = values.get("ORCPT", "")
    if orcpt and not _ORCPT.match(orcpt):
        raise ValueError("ORCPT is malformed")
    return Recipient(_forward(path), notify, orcpt)


def _values(parameters: str) -> dict[str, str]:
    pairs = (word.partition("=") for word in parameters.split())
    return {name.upper(): value for name, _, value in pairs}
