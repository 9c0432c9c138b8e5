"""Messages on their way out of a spool and into another: a file of RFC 5322, and JSON that says all else.

The JSON is what the row says: envelope, recipients with where their delivery stands, state, and the size and SHA-256 of
the message. Nothing of it is believed when it comes in: somebody may have edited it.

*Promises*: what is entered is whole and durable when `enter` returns, or not there. A content file gets its name in the
transaction that makes its row, so that no recovery takes it for a draft that nobody was promised.

*RFCs*: 5322 section 2.3 (line ends).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from gateway.mail.address import NULL_SENDER, Address, AddressError, parse_mailbox
from gateway.mail.envelope import Envelope
from gateway.spool import schema
from gateway.spool.draft import FileDraft, sync_directory
from gateway.spool.notes import Notes
from gateway.spool.spool import SET_ASIDE, AttemptRecord, NewMessage, Slot, SpoolError, State, Step, Stored
from gateway.spool.writer import Database

if TYPE_CHECKING:
    from gateway.spool.shard import Shard

VERSION: Final = 1
RECIPIENTS_MAX: Final = 100_000
_TEXT_MAX: Final = 64 << 10
"""Characters of a reason: a filter may have much to say of why it set a message aside."""
_ID: Final = re.compile(r"[0-9A-Z]{14,20}\Z")
_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
_BARE: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_FIELDS: Final = frozenset(
    ("gatepost_message", "id", "state", "reason", "received", "size", "sha256", "owed", "trusted", "warned")
) | {"envelope", "recipients"}


class ParcelError(ValueError):
    """It is no exported message; the text says why."""


class Entered(StrEnum):
    """What came of entering a message."""

    DONE = "done"
    THERE = "there"
    """A message of this id is in the spool."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message without its content. `slots` is as stored, so that nothing of it is lost on the way."""

    id: str
    state: State
    reason: str
    received: float
    size: int
    sha256: str
    owed: bool
    trusted: bool
    warned: bool
    envelope: Envelope
    slots: tuple[Slot, ...]


def to_json(message: Stored, sha256: str) -> dict[str, Any]:
    """What an export says of a message."""
    return {
        "gatepost_message": VERSION,
        "id": message.id,
        "state": message.state.value,
        "reason": message.reason,
        "received": message.received,
        "size": message.size,
        "sha256": sha256,
        "owed": message.owed,
        "trusted": message.trusted,
        "warned": message.warned,
        "envelope": message.envelope.to_json(),
        "recipients": json.loads(schema.slots_json(message.slots)),
    }


def from_json(data: Any, check_next_hop: Callable[[str], object]) -> Parcel:
    """The way back. `check_next_hop` raises ValueError for what is no next hop. Raises `ParcelError`."""
    if not isinstance(data, dict) or data.get("gatepost_message") != VERSION:
        raise ParcelError(f"no message exported by this version of Gatepost (gatepost_message: {VERSION})")
    if data.keys() != _FIELDS:
        odd = ", ".join(sorted(map(str, data.keys() ^ _FIELDS))[:5])
        raise ParcelError(f"keys missing or too many: {odd[:200]}")
    try:
        slots = schema.read_slots(json.dumps(data["recipients"]))
        if len(slots) > RECIPIENTS_MAX:
            raise ValueError("too many recipients")
        envelope = Envelope.from_json(data["envelope"], tuple(slot.recipient for slot in slots))
        for address in [slot.recipient.address for slot in slots] + [envelope.sender]:
            if address is not NULL_SENDER and isinstance(address, Address):
                _check(address)
        if envelope.next_hop:
            check_next_hop(envelope.next_hop)
        parcel = Parcel(
            id=_text(data, "id", _ID),
            state=State(data["state"]),
            reason=_text(data, "reason"),
            received=_moment(data["received"]),
            size=_size(data["size"]),
            sha256=_text(data, "sha256", _SHA256),
            owed=data["owed"] is True,
            trusted=data["trusted"] is True,
            warned=data["warned"] is True,
            envelope=envelope,
            slots=slots,
        )
    except (schema.Unreadable, *schema.MISFITS) as error:
        raise ParcelError(f"it cannot be read: {error}"[:300]) from error
    if not all(math.isfinite(slot.due) and 0 <= slot.attempts < 1 << 31 for slot in parcel.slots):
        raise ParcelError("a recipient's times or attempts are none")
    if parcel.state not in (State.QUEUED, *SET_ASIDE):
        raise ParcelError(f"a message that is {parcel.state} cannot be entered")
    return parcel


def _check(address: Address) -> None:
    if not address.domain and address.local.lower() == "postmaster":
        return
    if parse_mailbox(str(address), utf8=True) != address:
        raise AddressError("no address")


def _text(data: dict[str, Any], key: str, pattern: re.Pattern[str] | None = None) -> str:
    text = data[key]
    if not isinstance(text, str) or len(text) > _TEXT_MAX or (pattern and not pattern.match(text)):
        raise ValueError(f"{key} is none")
    return text


def _moment(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e11:
        raise ValueError("received is no moment")
    return float(value)


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
        raise ValueError("size is none")
    return value


Insert = Callable[[sqlite3.Connection, FileDraft], bool]
"""Stores the row of a message that has arrived, or says that it is not to be."""


async def enter(
    shard: Shard, parcel: Parcel, blocks: AsyncIterator[bytes], by: str, notes: Notes, executor: Executor
) -> Entered:
    """Store it in a shard, whoever owns that. Raises `ParcelError` for other content, and `SpoolError`."""

    def insert(db: sqlite3.Connection, draft: FileDraft) -> bool:
        if has(db, parcel.id):
            return False
        insert_row(db, shard, draft, parcel)
        note(db, parcel, "imported", by, notes)
        return True

    done = await receive(shard, parcel, blocks, executor, insert)
    return Entered.DONE if done else Entered.THERE


async def receive(
    shard: Shard,
    parcel: Parcel,
    blocks: AsyncIterator[bytes],
    executor: Executor,
    insert: Insert,
    *,
    mark: str = "",
    lines: bool = True,
    check_room: Callable[[int], None] = lambda _: None,
    after: Callable[[], None] | None = None,
) -> bool:
    """Have its content arrive and `insert` store it, durably; gives what that says. `after` runs once it is durable.

    Several that arrive at once under one id differ by their `mark`. `lines` has line ends checked. Raises `ParcelError`
    for other content, and `SpoolError`.
    """
    final = shard.path_of(parcel.id)
    arriving = f"{final}.{mark}.incoming" if mark else f"{final}.incoming"
    draft = FileDraft(parcel.id, arriving, executor, no_step, check_room)
    try:
        await fill(draft, parcel, blocks, lines=lines)
        await draft.sync([arriving])
        done = await shard.writer.submit(lambda db: insert(db, draft), after=after)
    except BaseException:
        await draft.abandon()
        if draft.file is not None:
            # As a step of the writer's, so that it is not taken from somebody who is just giving a file that name.
            await shard.writer.submit(lambda db: None if has(db, parcel.id) else _unlink(final))
        raise
    if not done:
        await draft.abandon()
        return False
    shard.next_due = 0.0
    return True


def _unlink(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def no_step(step: Step) -> None:
    """No crash test looks here: what is not entered yet was promised to nobody."""


async def fill(draft: FileDraft, parcel: Parcel, blocks: AsyncIterator[bytes], *, lines: bool = True) -> None:
    """Write the content to a draft. Raises `ParcelError` for another than is described, and `SpoolError`."""
    digest = hashlib.sha256()
    before = b""
    async for block in blocks:
        if draft.size + len(block) > parcel.size:
            raise ParcelError(f"the message is longer than the {parcel.size} octets that its description says")
        digest.update(block)
        # A CR at the very end may have its LF in the next block, so it is judged there; an LF was judged in its own.
        seen, begun = before + block, len(before) if before != b"\r" else 0
        if lines and _BARE.search(seen[:-1] if seen.endswith(b"\r") else seen, begun):
            raise ParcelError("the message has line ends that are no CRLF")
        before = block[-1:]
        await draft.write(block)
    if draft.size != parcel.size:
        raise ParcelError(f"the message has {draft.size} octets, and its description says {parcel.size}")
    if lines and before == b"\r":
        raise ParcelError("the message has line ends that are no CRLF")
    if digest.hexdigest() != parcel.sha256:
        raise ParcelError("the message is not the one that was exported: its SHA-256 differs")


def has(db: sqlite3.Connection, id: str) -> bool:
    """Whether a message of this id is here."""
    return db.execute("SELECT 1 FROM message WHERE id = ?", (id,)).fetchone() is not None


def insert_row(db: sqlite3.Connection, shard: Shard, draft: FileDraft, parcel: Parcel) -> None:
    """Store a message whose content has arrived, and give a content file its name. Raises `SpoolError`."""
    file = draft.file is not None
    if draft.file is not None:
        _name(draft.file.path, shard.path_of(parcel.id))
    shard.insert(db, row_of(parcel, draft), b"", None if file else bytes(draft.memory), None)
    finish(db, parcel)


def row_of(parcel: Parcel, draft: FileDraft) -> tuple[Any, ...]:
    """Its `schema.new_row`."""
    message = NewMessage(
        parcel.id,
        parcel.envelope,
        parcel.received,
        b"",
        state=parcel.state,
        owed=parcel.owed,
        trusted=parcel.trusted,
        reason=parcel.reason,
    )
    return schema.new_row(message, parcel.slots, parcel.size, draft.eight_bit, file=int(draft.file is not None))


def finish(db: Database, parcel: Parcel) -> None:
    """What a new row has not yet of the state that the message was in."""
    query = "UPDATE message SET due = ?, warned = ? WHERE id = ?"
    db.execute(query, (schema.due_of(parcel.slots), parcel.warned, parcel.id))


def note(db: Database, parcel: Parcel, outcome: str, by: str, notes: Notes) -> None:
    """Note that it came in."""
    if by:
        now = time.time_ns() / 1e9
        whom = [str(slot.recipient.address) for slot in parcel.slots]
        notes.add_attempts(db, parcel.id, [AttemptRecord(now, one, outcome, parcel.state.value, by) for one in whom])


def _name(draft: str, final: str) -> None:
    """Give a content file its name, durably. The step that does it may be run again."""
    try:
        os.rename(draft, final)
        sync_directory(os.path.dirname(final))
    except FileNotFoundError:
        if not os.path.exists(final):
            raise SpoolError("a gateway that started meanwhile has removed the draft; try again") from None
    except OSError as error:
        raise SpoolError(f"{error.strerror} ({final})") from error
