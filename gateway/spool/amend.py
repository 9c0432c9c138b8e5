"""Amending messages: what `gateway.ops.operations` says, as steps of a writer.

*Promises*: who has a message in hand keeps it. An amendment that a delivery under way could undo, or be undone by, is
not made while the message is claimed; the two that do no harm (hold, drop) say that it was. What was done is noted
with the attempts, in the same transaction.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from gateway.mail.address import Address, AddressError
from gateway.mail.envelope import Envelope, Recipient
from gateway.ops.operations import (
    DEEDS,
    STATES,
    Amended,
    Amendment,
    Drop,
    EditRecipients,
    Hold,
    Leave,
    Redirect,
    Release,
    Reroute,
    Retry,
    Return,
)
from gateway.spool import schema
from gateway.spool.notes import Notes
from gateway.spool.spool import RETURNED, AttemptRecord, RecipientStatus, Slot, State
from gateway.spool.writer import Database

_OPEN: Final = tuple(status.value for status in RecipientStatus if status.open)
_DELIVERED: Final = RecipientStatus.DELIVERED.value
_OVER: Final = tuple(status.value for status in RecipientStatus if not status.open)


class Rows(Protocol):
    """How the row of a message is found, and removed."""

    find: str
    """Of an id: state, whether it is claimed, owed, reason, slots, envelope; nobody else changes it then."""

    def remove(self, db: Database, id: str) -> str:
        """Delete it with its content; gives the name of a content file to be removed."""


class ShardRows:
    """Rows of a shard, in a transaction that has the database to itself."""

    find = "SELECT state, claimed, owed, reason, slots, envelope FROM message WHERE id = ?"

    def remove(self, db: Database, id: str) -> str:
        content, file = db.execute("DELETE FROM message WHERE id = ? RETURNING content, file", (id,)).fetchone()
        db.execute("DELETE FROM content WHERE n = ?", (content,))
        return id if file else ""


@dataclass(slots=True)
class _Row:
    """A message's row while it is amended; `slots` and `envelope` are JSON that is known to be readable."""

    id: str
    state: State
    claimed: bool
    owed: bool
    reason: str
    slots: list[dict[str, Any]]
    envelope: dict[str, Any]

    @property
    def undelivered(self) -> list[dict[str, Any]]:
        return [slot for slot in self.slots if slot["status"] != _DELIVERED]


def amend(
    db: Database, ids: Sequence[str], amendment: Amendment, by: str, now: float, notes: Notes, rows: Rows
) -> list[tuple[str, Amended, str]]:
    """Amend those of `ids` that are here. Gives what came of each, and the name of a content file to be removed."""
    out: list[tuple[str, Amended, str]] = []
    for id in ids:
        found = db.execute(rows.find, (id,)).fetchone()
        if found is None:
            continue
        if isinstance(amendment, Drop) and found[0] == State.LEAVING:
            # It may be another's by now.
            out.append((id, Amended.WRONG_STATE, ""))
        elif isinstance(amendment, Drop):
            _note_drop(db, id, _read(id, found), f"{found[0]}: {found[3]}", by, now, notes)
            out.append((id, Amended.UNDERWAY if found[1] else Amended.DONE, rows.remove(db, id)))
        else:
            row = _read(id, found)
            result = Amended.UNREADABLE if row is None else _amend(db, row, amendment, by, now, notes)
            out.append((id, result, ""))
    return out


def hasten(
    db: Database, rows: Sequence[tuple[Any, ...]], by: str, now: float, notes: Notes
) -> list[tuple[str, Amended]]:
    """What `Retry` does, to all of these rows of queued messages: id, whether claimed, reason, slots.

    After an outage that may be all that there is, so it touches nothing but what says when they are due.
    """
    out: list[tuple[str, Amended]] = []
    hastened: list[tuple[float, str, str]] = []
    noted: list[tuple[str, list[AttemptRecord]]] = []
    for id, claimed, reason, text in rows:
        try:
            whom = [str(slot.recipient.address) for slot in schema.read_slots(text) if slot.status.value != _DELIVERED]
        except schema.Unreadable:
            out.append((id, Amended.UNREADABLE))
            continue
        if claimed:
            out.append((id, Amended.CLAIMED))
            continue
        slots = schema.loads(text)
        _hasten(slots)
        hastened.append((_due(slots), schema.dumps(slots), id))
        noted.append((id, _noted(whom, DEEDS[Retry], f"{State.QUEUED}: {reason}", by, now)))
        out.append((id, Amended.DONE))
    notes.add_all(db, noted)
    db.executemany("UPDATE message SET due = ?, slots = ? WHERE id = ?", hastened)
    return out


def _read(id: str, found: tuple[Any, ...]) -> _Row | None:
    state, claimed, owed, reason, slots, envelope = found
    try:
        recipients = tuple(slot.recipient for slot in schema.read_slots(slots))
        read = json.loads(envelope)
        sender = Envelope.from_json(read, recipients).sender
        if isinstance(sender, Address):
            schema.check(sender)
        return _Row(id, State(state), bool(claimed), bool(owed), str(reason), json.loads(slots), read)
    except (schema.Unreadable, *schema.MISFITS):
        return None


def _note_drop(db: Database, id: str, row: _Row | None, was: str, by: str, now: float, notes: Notes) -> None:
    whom = [""] if row is None else [_address(slot) for slot in row.undelivered]
    _note(db, id, whom, DEEDS[Drop], was, by, now, notes)


def _amend(db: Database, row: _Row, amendment: Amendment, by: str, now: float, notes: Notes) -> Amended:
    if row.state.value not in STATES[type(amendment)]:
        return Amended.WRONG_STATE
    was = f"{row.state}: {row.reason}"
    if isinstance(amendment, Hold):
        # The state alone: where the recipients stand is for the attempt under way to say.
        db.execute("UPDATE message SET state = 'hold', reason = ? WHERE id = ?", (amendment.reason, row.id))
        _note(db, row.id, [_address(slot) for slot in row.undelivered], DEEDS[Hold], amendment.reason, by, now, notes)
        return Amended.UNDERWAY if row.claimed else Amended.DONE
    if row.claimed:
        return Amended.CLAIMED
    if isinstance(amendment, Leave):
        _offer(db, row, amendment)
        return Amended.DONE
    # Whom it concerns: those who were to get it, and who are to get it now.
    concerned = {_address(slot): None for slot in row.undelivered}
    problem = _apply(row, amendment)
    if problem is not None:
        return problem
    concerned |= {_address(slot): None for slot in row.undelivered}
    _note(db, row.id, list(concerned), DEEDS[type(amendment)], _said(amendment, was), by, now, notes)
    due = _due(row.slots)
    # Let go of, too: a claim that counts for nothing any more must not be settled. And filed under nothing: it may go
    # elsewhere now, and where it went before may be closed.
    db.execute(
        "UPDATE message SET claimed = 0, lane = '', state = ?, reason = ?, due = ?, slots = ?, envelope = ?"
        " WHERE id = ?",
        (row.state.value, row.reason, due, schema.dumps(row.slots), schema.dumps(row.envelope), row.id),
    )
    return Amended.DONE


def _offer(db: Database, row: _Row, to: Leave) -> None:
    """Where it stands is left as it is, for the other one to go on there, or for us."""
    for statement in schema.HANDOVER:
        db.execute(statement)
    values = (row.id, to.offer, to.spool, to.url, to.name, row.state.value, row.reason)
    db.execute("INSERT OR REPLACE INTO offer VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    reason = f"offered to {to.name} at {to.url}"
    db.execute("UPDATE message SET state = ?, reason = ? WHERE id = ?", (State.LEAVING.value, reason, row.id))


def _said(amendment: Amendment, was: str) -> str:
    """What the note says besides whom, by whom and what."""
    match amendment:
        case Reroute(next_hop):
            return f"to {next_hop or 'where the routes lead'}"
        case Redirect(to):
            return f"to {', '.join(str(recipient.address) for recipient in to)}"
        case EditRecipients(add, remove):
            changes = [f"+{recipient.address}" for recipient in add] + [f"-{address}" for address in remove]
            return ", ".join(changes)
        case Return(reason):
            return reason
    return was


def _apply(row: _Row, amendment: Amendment) -> Amended | None:
    """Change the row; gives what is in the way, None for nothing."""
    match amendment:
        case Retry():
            _hasten(row.slots)
        case Release():
            row.state, row.reason = State.QUEUED, ""
            _reopen(row)
        case Reroute(next_hop):
            row.envelope.pop("next_hop", None)
            if next_hop:
                row.envelope["next_hop"] = next_hop
            _keep(row)
            _hasten(row.slots)
        case Redirect(to):
            return _redirect(row, to)
        case EditRecipients(add, remove):
            return _edit(row, add, remove)
        case Return(reason):
            if not row.owed or not row.envelope.get("sender"):
                return Amended.NOT_OWED
            # Of who was refused while it was queued the sender has heard.
            again = row.state is not State.QUEUED
            if not any(again or slot["status"] in _OPEN for slot in row.undelivered):
                return Amended.UNCHANGED
            row.state, row.reason = State.QUEUED, f"{RETURNED}: {reason}"
            if again:
                _reopen(row)
            _hasten(row.slots)
    return None


def _keep(row: _Row) -> None:
    """Who gives a message another way does not want it returned any more."""
    if row.state is State.QUEUED:
        row.reason = ""


def _due(slots: list[dict[str, Any]]) -> float:
    return min((float(slot["due"]) for slot in slots if slot["status"] in _OPEN), default=schema.NEVER)


def _hasten(slots: list[dict[str, Any]]) -> None:
    for slot in slots:
        if slot["status"] in _OPEN:
            slot["due"] = 0.0


def _reopen(row: _Row) -> None:
    for slot in row.undelivered:
        slot.update(status=RecipientStatus.PENDING.value, due=0.0, attempts=0)


def _redirect(row: _Row, to: Sequence[Recipient]) -> Amended | None:
    undelivered = row.undelivered
    if not undelivered:
        return Amended.UNCHANGED
    _keep(row)
    # What the sender wants to hear of the first holds for those who stand in for him (RFC 3461 section 5.2.7).
    wishes: dict[str, Any] = {key: undelivered[0][key] for key in ("notify", "orcpt") if key in undelivered[0]}
    row.slots = [slot for slot in row.slots if slot["status"] == _DELIVERED]
    row.slots += [{**_new_slot(recipient), **wishes} for recipient in to]
    return None


def _edit(row: _Row, add: Sequence[Recipient], remove: Sequence[Address]) -> Amended | None:
    keys, gone = {_key(slot) for slot in row.slots}, {_key_of(address) for address in remove}
    slots = [slot for slot in row.slots if slot["status"] == _DELIVERED or _key(slot) not in gone]
    added = [recipient for recipient in add if _key_of(recipient.address) not in keys]
    if len(slots) == len(row.slots) and not added:
        return Amended.UNCHANGED
    # Who was refused gets what is queued no more, and what is set aside when it is released.
    over = (_DELIVERED,) if row.state is not State.QUEUED else _OVER
    if not added and all(slot["status"] in over for slot in slots):
        return Amended.NOBODY_LEFT
    row.slots = slots + [_new_slot(recipient) for recipient in added]
    return None


def _new_slot(recipient: Recipient) -> dict[str, Any]:
    (made,) = json.loads(schema.slots_json((Slot(recipient),)))
    return dict(made)


def _address(slot: dict[str, Any]) -> str:
    return str(Recipient.from_json(slot).address)


def _key(slot: dict[str, Any]) -> str:
    return _key_of(Recipient.from_json(slot).address)


def _key_of(address: Address) -> str:
    try:
        return address.key
    except AddressError:
        return str(address)


def _note(db: Database, id: str, whom: Sequence[str], deed: str, what: str, by: str, now: float, notes: Notes) -> None:
    notes.add_attempts(db, id, _noted(whom, deed, what, by, now))


def _noted(whom: Sequence[str], deed: str, what: str, by: str, now: float) -> list[AttemptRecord]:
    return [AttemptRecord(now, recipient, deed, what, by) for recipient in whom] if by else []
