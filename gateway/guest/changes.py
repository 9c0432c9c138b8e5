"""Edits as the calls of a milter, in an order in which every MTA understands the numbers alike.

Edits see the result of those before them. MTAs differ in how they count while a milter changes a message: Postfix
counts what is there by now, Sendmail what was there at first. So the edits are carried out on a list here, and what
came of it is told: first fields that have another value, then fields that are gone, from the last to the first, then
new ones.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.mail.address import NULL_SENDER, Sender
from gateway.mail.edit import (
    AddHeader,
    ChangeHeader,
    ChangeSender,
    DeleteHeader,
    Edit,
    Prioritize,
    Reroute,
    edit_envelope,
    edit_json,
    replaced_body,
)
from gateway.mail.envelope import Envelope, Recipient
from gateway.mail.message import Content, HeaderField

APPEND: Final = -1


@dataclass(frozen=True, slots=True)
class SetField:
    """Another value for the `nth` field of this name, from 1; None removes it."""

    name: str
    nth: int
    value: str | None


@dataclass(frozen=True, slots=True)
class InsertField:
    """A new field with `index` others above it, the MTA's own Received among them; `APPEND` puts it below all."""

    name: str
    value: str
    index: int


@dataclass(frozen=True, slots=True)
class SetSender:
    """Another envelope sender in brackets, with ESMTP parameters."""

    sender: str
    parameters: str


@dataclass(frozen=True, slots=True)
class Changes:
    """What a milter tells the MTA at the end of a message. `left_out` says in words what it cannot tell."""

    fields: tuple[SetField | InsertField, ...] = ()
    body: Content | None = None
    sender: SetSender | None = None
    added: tuple[tuple[str, str], ...] = ()
    """New recipients in brackets, each with its ESMTP parameters."""
    deleted: tuple[str, ...] = ()
    """Recipients to take out, as the MTA named them."""
    left_out: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class _Slot:
    """A field while edits are carried out. `origin` is its place in the message as it came, None for a new one."""

    name: str
    origin: int | None = None
    value: str | None = None
    lead: str = " "


def plan(
    fields: Sequence[HeaderField],
    envelope: Envelope,
    edits: Sequence[Edit],
    *,
    dropped: Sequence[Recipient] = (),
    named: Mapping[str, Iterable[str]] | None = None,
    leads: bool = True,
) -> Changes:
    """The calls that these edits come to.

    `dropped` are recipients to take out besides; `named` gives by `Address.key` all names that the MTA has for a
    recipient. `leads` says that the MTA takes values with the white space before them (SMFIP_HDR_LEADSPC).
    """
    named = named or {}
    after = edit_envelope(envelope, edits)
    gone = {r.address.key for r in envelope.recipients} - {r.address.key for r in after.recipients}
    gone |= {r.address.key for r in dropped}
    before = {r.address.key for r in envelope.recipients}
    sender = next((e for e in reversed(edits) if isinstance(e, ChangeSender)), None)
    left_out = tuple(" ".join(map(str, edit_json(e).values())) for e in edits if isinstance(e, Reroute | Prioritize))
    calls, mended = _fields(fields, edits, leads)
    return Changes(
        calls,
        replaced_body(edits),
        _sender(sender) if sender else None,
        tuple((f"<{r.address}>", _parameters(r)) for r in after.recipients if r.address.key not in before),
        _deleted(envelope.recipients, gone, named),
        (*left_out, *mended),
    )


def _deleted(
    recipients: Sequence[Recipient], gone: Container[str], named: Mapping[str, Iterable[str]]
) -> tuple[str, ...]:
    """The names of those who are gone. An MTA tells letters apart, in which one recipient may have been given twice."""
    names = [named.get(r.address.key, (f"<{r.address}>",)) for r in recipients if r.address.key in gone]
    return tuple(dict.fromkeys(name for those in names for name in those))


def _fields(
    fields: Sequence[HeaderField], edits: Sequence[Edit], leads: bool
) -> tuple[tuple[SetField | InsertField, ...], list[str]]:
    """Calls for the header section, and which fields hold octets that cannot be told."""
    slots = [_Slot(field.name, place) for place, field in enumerate(fields)]
    for edit in edits:
        _carry_out(slots, edit)
    if all(slot.origin is not None and slot.value is None for slot in slots) and len(slots) == len(fields):
        return (), []
    numbers = _numbers(fields)
    mended: list[str] = []

    def told(slot: _Slot) -> str:
        value = (slot.value or "") if not leads else slot.lead + (slot.value or "")
        octets = value.encode("utf-8", "surrogateescape")
        text = octets.decode("utf-8", "replace")
        if text != value:
            mended.append(f"octets of {slot.name} that are no UTF-8")
        # An empty value would remove the field.
        return text or " "

    calls: list[SetField | InsertField] = [
        SetField(slot.name, numbers[slot.origin], told(slot))
        for slot in slots
        if slot.origin is not None and slot.value is not None
    ]
    left = {slot.origin for slot in slots}
    calls += [SetField(fields[i].name, numbers[i], None) for i in reversed(range(len(fields))) if i not in left]
    return (*calls, *_insertions(slots, told)), mended


def _insertions(slots: Sequence[_Slot], told: object) -> list[InsertField]:
    """New fields: those on top from the lowest to the highest, each put above all; the others from the top down.

    An MTA's own Received field, which it does not show us, counts among those above (Postfix, and Sendmail's manual of
    smfi_insheader).
    """
    assert callable(told)
    first = next((i for i, slot in enumerate(slots) if slot.origin is not None), len(slots))
    last = next((i for i in range(len(slots) - 1, -1, -1) if slots[i].origin is not None), first - 1)
    top = [InsertField(slot.name, told(slot), 0) for slot in reversed(slots[:first])]
    middle = [
        InsertField(slot.name, told(slot), i + 1)
        for i, slot in enumerate(slots[first : last + 1], first)
        if slot.origin is None
    ]
    return [*top, *middle, *(InsertField(slot.name, told(slot), APPEND) for slot in slots[last + 1 :])]


def _carry_out(slots: list[_Slot], edit: Edit) -> None:
    match edit:
        case AddHeader():
            slots.insert(min(edit.index, len(slots)), _Slot(edit.name, None, edit.value, edit.lead))
        case ChangeHeader():
            if (slot := _nth(slots, edit.name, edit.nth)) is not None:
                slot.name, slot.value, slot.lead = edit.name, edit.value, edit.lead
        case DeleteHeader(nth=0):
            slots[:] = [slot for slot in slots if slot.name.lower() != edit.name.lower()]
        case DeleteHeader():
            if (slot := _nth(slots, edit.name, edit.nth)) is not None:
                slots.remove(slot)


def _nth(slots: Sequence[_Slot], name: str, nth: int) -> _Slot | None:
    alike = [slot for slot in slots if slot.name.lower() == name.lower()]
    return alike[nth - 1] if nth <= len(alike) else None


def _numbers(fields: Sequence[HeaderField]) -> list[int]:
    """Of each field, the how manieth of its name it is, from 1."""
    seen: dict[str, int] = {}
    out = []
    for field in fields:
        key = field.name.lower()
        seen[key] = seen.get(key, 0) + 1
        out.append(seen[key])
    return out


def bracketed(sender: Sender) -> str:
    """A sender as it stands in MAIL."""
    return "<>" if sender is NULL_SENDER else f"<{sender}>"


def _sender(edit: ChangeSender) -> SetSender:
    given = [f"RET={edit.ret.value}"] if edit.ret else []
    if edit.envid:
        given.append(f"ENVID={edit.envid}")
    return SetSender(bracketed(edit.sender), " ".join(given))


def _parameters(recipient: Recipient) -> str:
    given = [f"NOTIFY={','.join(sorted(recipient.notify))}"] if recipient.notify else []
    if recipient.orcpt:
        given.append(f"ORCPT={recipient.orcpt}")
    return " ".join(given)
