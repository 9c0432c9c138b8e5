"""Edits: changes to a message and its envelope, as values. All of a message's edits are applied, or none.

A filter says what it wants changed; the front door carries it out when the message is stored, and the decision record
keeps the list. Header fields are numbered from the top, and each edit sees the result of those before it.

*RFCs*: 5322 section 2.2 (header fields).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeGuard

from gateway.mail.address import NULL_SENDER, Address, Sender, parse_mailbox
from gateway.mail.envelope import Envelope, Priority, Recipient, Ret
from gateway.mail.message import Content, HeaderField, split_header

END: Final = 1 << 30
"""An index below all other fields."""

_NAME: Final = re.compile(r"[\x21-\x39\x3b-\x7e]{1,77}\Z")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_BLOCK: Final = 1 << 20
_TOLD: Final = 100
"""Edits of which a record tells what was there before, and fields that each of them tells of."""
_SHOWN: Final = 500


@dataclass(frozen=True, slots=True)
class AddHeader:
    """Put a field at the top of the header section (index 0), after `index` other fields, or below all (`END`).

    `lead` stands between the colon and the value.
    """

    name: str
    value: str
    index: int = 0
    lead: str = " "

    def __post_init__(self) -> None:
        check_field(self.name, self.value, self.lead)
        if self.index < 0:
            raise ValueError("index counts from 0")


@dataclass(frozen=True, slots=True)
class ChangeHeader:
    """Replace the `nth` field (from 1, top down) of this name; nothing happens when there is none."""

    name: str
    nth: int
    value: str
    lead: str = " "

    def __post_init__(self) -> None:
        check_field(self.name, self.value, self.lead)
        if self.nth < 1:
            raise ValueError("nth counts from 1")


@dataclass(frozen=True, slots=True)
class DeleteHeader:
    """Remove the `nth` field (from 1, top down) of this name; `nth` 0 removes all of them."""

    name: str
    nth: int = 0

    def __post_init__(self) -> None:
        if self.nth < 0:
            raise ValueError("nth counts from 1; 0 stands for all")


@dataclass(frozen=True, slots=True)
class ReplaceBody:
    """Put other octets in place of all that follows the header section and its empty line.

    The content is read when the message is stored, and by entries that look at the message after this one. Stray line
    ends in it are made CRLF then.
    """

    body: Content


@dataclass(frozen=True, slots=True)
class ChangeSender:
    """Another envelope sender; `ret` and `envid` where they are to be others too (RFC 3461 section 4.3 and 4.4)."""

    sender: Sender
    ret: Ret | None = None
    envid: str | None = None


@dataclass(frozen=True, slots=True)
class AddRecipient:
    """One more envelope recipient. Nothing happens when the message has it already."""

    recipient: Recipient


@dataclass(frozen=True, slots=True)
class DeleteRecipient:
    """Take an envelope recipient out. Who has none left is discarded."""

    address: Address


@dataclass(frozen=True, slots=True)
class Redirect:
    """Deliver to this recipient and to none of those there are so far."""

    recipient: Recipient


@dataclass(frozen=True, slots=True)
class Reroute:
    """Deliver to this next hop (as `domains.X.next_hop` is written) and not where the routes lead."""

    next_hop: str


@dataclass(frozen=True, slots=True)
class Prioritize:
    """Who goes first where mail has to wait: before others to the same destination, or after them."""

    priority: Priority


HeaderEdit = AddHeader | ChangeHeader | DeleteHeader
EnvelopeEdit = ChangeSender | AddRecipient | DeleteRecipient | Redirect | Reroute | Prioritize
Edit = HeaderEdit | ReplaceBody | EnvelopeEdit

HEADER_EDITS: Final = (AddHeader, ChangeHeader, DeleteHeader)
EDITS: Final = (*HEADER_EDITS, ReplaceBody, ChangeSender, AddRecipient, DeleteRecipient, Redirect, Reroute, Prioritize)


def is_header_edit(edit: Edit) -> TypeGuard[HeaderEdit]:
    """Whether the edit is one of the header section."""
    return isinstance(edit, HEADER_EDITS)


class BodyContent:
    """A body from octets that are in memory."""

    __slots__ = ("_octets", "eight_bit")

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self.eight_bit: bool = not octets.isascii()

    @property
    def size(self) -> int:
        return len(self._octets)

    async def blocks(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self._octets), _BLOCK):
            yield self._octets[at : at + _BLOCK]


class EditedContent:
    """Content that was edited: `head` in place of the first `skip` octets of `content`, then the rest of it.

    With `body` that, after an empty line, in place of the rest.
    """

    __slots__ = ("_body", "_content", "_head", "_skip")

    def __init__(self, content: Content, head: bytes, skip: int, body: Content | None = None) -> None:
        self._content = content
        self._head = head if body is None else head + b"\r\n"
        self._skip = skip
        self._body = body

    @property
    def size(self) -> int:
        rest = self._content.size - self._skip if self._body is None else self._body.size
        return len(self._head) + rest

    @property
    def eight_bit(self) -> bool:
        rest = self._content if self._body is None else self._body
        return rest.eight_bit or not self._head.isascii()

    async def blocks(self) -> AsyncIterator[bytes]:
        yield self._head
        if self._body is not None:
            async for block in self._body.blocks():
                yield block
            return
        skip = self._skip
        async for block in self._content.blocks():
            if skip < len(block):
                yield block[skip:] if skip else block
            skip = max(0, skip - len(block))


def edit_json(edit: Edit) -> dict[str, Any]:
    """The edit as the decision record keeps it: of a body only its size."""
    out: dict[str, Any] = {"edit": type(edit).__name__}
    match edit:
        case AddHeader() | ChangeHeader() | DeleteHeader():
            out["name"] = edit.name
            for field in ("nth", "index", "value"):
                if hasattr(edit, field):
                    out[field] = getattr(edit, field)
            if getattr(edit, "lead", " ") != " ":
                out["lead"] = getattr(edit, "lead", " ")
        case ReplaceBody():
            out["size"] = edit.body.size
        case ChangeSender():
            out["sender"] = "<>" if edit.sender is NULL_SENDER else str(edit.sender)
        case AddRecipient() | Redirect():
            out["recipient"] = str(edit.recipient.address)
        case DeleteRecipient():
            out["recipient"] = str(edit.address)
        case Reroute():
            out["next_hop"] = edit.next_hop
        case Prioritize():
            out["priority"] = edit.priority.value
    return out


def edits_json(edits: Sequence[Edit], section: bytes, body: int) -> list[dict[str, Any]]:
    """The edits of a message as its decision record keeps them: as `edit_json`, and what was there before.

    `section` is the header section as it was received, and `body` the octets after it and its empty line. ``was`` are
    the values of the fields that an edit changes or removes, cut when they are long; ``old_size`` is of the body.
    """
    out = [edit_json(edit) for edit in edits]
    fields: list[HeaderField] | None = None
    # Of a field that is added there is nothing to tell, so mostly nobody has to look at the section again.
    tells = any(is_header_edit(edit) and not isinstance(edit, AddHeader) for edit in edits[:_TOLD])
    for told, edit in zip(out[:_TOLD], edits, strict=False):
        if isinstance(edit, ReplaceBody):
            told["old_size"], body = body, edit.body.size
        elif tells and is_header_edit(edit):
            if fields is None:
                fields = split_header(section)[0]
            if not isinstance(edit, AddHeader):
                told["was"] = [field.value[:_SHOWN] for field in _meant(fields, edit.name, edit.nth)][:_TOLD]
            fields = apply_edits(fields, (edit,))
    return out


def _meant(fields: Sequence[HeaderField], name: str, nth: int) -> list[HeaderField]:
    found = [field for field in fields if field.name.lower() == name.lower()]
    return found[nth - 1 : nth] if nth else found


def edit_from_json(data: Mapping[str, Any]) -> Edit:
    """The edit that `edit_json` or `edits_json` described.

    Raises ValueError for one that cannot be told from that, as a body.
    """
    try:
        kind, rest = data["edit"], {key: value for key, value in data.items() if key not in ("edit", "was")}
        match kind:
            case "AddHeader":
                return AddHeader(**rest)
            case "ChangeHeader":
                return ChangeHeader(**rest)
            case "DeleteHeader":
                return DeleteHeader(**rest)
            case "ChangeSender":
                sender = rest["sender"]
                return ChangeSender(NULL_SENDER if sender == "<>" else parse_mailbox(sender, utf8=True))
            case "AddRecipient":
                return AddRecipient(Recipient(parse_mailbox(rest["recipient"], utf8=True)))
            case "Redirect":
                return Redirect(Recipient(parse_mailbox(rest["recipient"], utf8=True)))
            case "DeleteRecipient":
                return DeleteRecipient(parse_mailbox(rest["recipient"], utf8=True))
            case "Reroute":
                return Reroute(str(rest["next_hop"]))
            case "Prioritize":
                return Prioritize(Priority(rest["priority"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"an edit that lacks something, or has too much: {error}") from error
    raise ValueError(f"{kind} cannot be read back from a record")


def check_field(name: str, value: str, lead: str = " ") -> None:
    """Raise `ValueError` unless name and value make a header field that cannot break out of its line."""
    if not _NAME.match(name):
        raise ValueError(f"{name!r} is no header field name")
    if lead.strip(" \t"):
        raise ValueError("only white space stands between a header field's colon and its value")
    for line in value.split("\n")[1:]:
        if not line.startswith((" ", "\t")) or not line.strip():
            raise ValueError("a folded header line must start with white space and hold more than it")
    if _CONTROL.search(value):
        raise ValueError("a header value holds control characters")
    value.encode("utf-8", "surrogateescape")  # raises ValueError for what has no octets


def render_field(name: str, value: str, lead: str = " ") -> bytes:
    """The octets of a field; line feeds in `value` are folds."""
    return f"{name}:{lead}{value}\r\n".replace("\r\n", "\n").replace("\n", "\r\n").encode("utf-8", "surrogateescape")


def apply_edits(fields: Iterable[HeaderField], edits: Iterable[Edit]) -> list[HeaderField]:
    """The header fields after all edits of the header section, each seeing the result of those before it.

    The input is not changed. A last field that the message's end cut off is given its line end, so that another can
    follow it.
    """
    out = [f if f.raw.endswith(b"\r\n") else HeaderField(f.name, f.raw + b"\r\n") for f in fields]
    for edit in edits:
        match edit:
            case AddHeader():
                out.insert(min(edit.index, len(out)), _field(edit))
            case ChangeHeader():
                at = _nth(out, edit.name, edit.nth)
                if at is not None:
                    out[at] = _field(edit)
            case DeleteHeader(nth=0):
                lower = edit.name.lower()
                out = [f for f in out if f.name.lower() != lower]
            case DeleteHeader():
                at = _nth(out, edit.name, edit.nth)
                if at is not None:
                    del out[at]
    return out


def _field(edit: AddHeader | ChangeHeader) -> HeaderField:
    return HeaderField(edit.name, render_field(edit.name, edit.value, edit.lead))


def _nth(fields: list[HeaderField], name: str, nth: int) -> int | None:
    lower = name.lower()
    seen = 0
    for i, field in enumerate(fields):
        if field.name.lower() == lower:
            seen += 1
            if seen == nth:
                return i
    return None


def replaced_body(edits: Iterable[Edit]) -> Content | None:
    """The body that the last `ReplaceBody` among the edits gives, None when there is none."""
    body: Content | None = None
    for edit in edits:
        if isinstance(edit, ReplaceBody):
            body = edit.body
    return body


def inherit(recipient: Recipient, instead_of: Sequence[Recipient]) -> Recipient:
    """The recipient with what the sender wants to be told of those whose place it takes (RFC 3461 section 5.2).

    NOTIFY where all of them agree, ORCPT where there is one of them. What the recipient has of its own stays.
    """
    if recipient.notify or recipient.orcpt or len({r.notify for r in instead_of}) != 1:
        return recipient
    return replace(recipient, notify=instead_of[0].notify, orcpt=instead_of[0].orcpt if len(instead_of) == 1 else "")


def edit_envelope(envelope: Envelope, edits: Sequence[Edit]) -> Envelope:
    """The envelope after all edits that concern it. It may come out without recipients."""
    for edit in edits:
        match edit:
            case ChangeSender():
                parameters = envelope.parameters
                if edit.ret is not None:
                    parameters = replace(parameters, ret=edit.ret)
                if edit.envid is not None:
                    parameters = replace(parameters, envid=edit.envid)
                envelope = replace(envelope, sender=edit.sender, parameters=parameters)
            case AddRecipient(recipient) if all(r.address.key != recipient.address.key for r in envelope.recipients):
                envelope = replace(envelope, recipients=(*envelope.recipients, recipient))
            case DeleteRecipient(address):
                left = tuple(r for r in envelope.recipients if r.address.key != address.key)
                envelope = replace(envelope, recipients=left)
            case Redirect(recipient):
                envelope = replace(envelope, recipients=(inherit(recipient, envelope.recipients),))
            case Reroute():
                envelope = replace(envelope, next_hop=edit.next_hop)
            case Prioritize():
                envelope = replace(envelope, priority=edit.priority)
    return envelope
