"""The tables of a shard, and the way between rows and values.

One row of `message` is one accepted message; its recipients are one JSON column, so that every settlement is one
row. Content up to 256 KiB lies in `content`, more in a file beside the database. `record` and
`attempt` outlive the message.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any, Final

from gateway.mail.address import NULL_SENDER
from gateway.mail.envelope import Envelope, Recipient
from gateway.spool.spool import NewMessage, RecipientStatus, Slot, State, Stored

VERSION: Final = 1

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS message (
    id TEXT PRIMARY KEY, state TEXT NOT NULL, claimed INTEGER NOT NULL, due REAL NOT NULL, received REAL NOT NULL,
    size INTEGER NOT NULL, envelope TEXT NOT NULL, slots TEXT NOT NULL, owed INTEGER NOT NULL,
    trusted INTEGER NOT NULL, warned INTEGER NOT NULL, reason TEXT NOT NULL,
    content INTEGER, skip INTEGER NOT NULL, eight_bit INTEGER NOT NULL, file INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS message_due ON message (due) WHERE state = 'queued' AND claimed = 0;
CREATE TABLE IF NOT EXISTS content (n INTEGER PRIMARY KEY, head BLOB NOT NULL, body BLOB);
CREATE TABLE IF NOT EXISTS record (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempt (id TEXT, n INTEGER, body TEXT NOT NULL, PRIMARY KEY (id, n)) WITHOUT ROWID;
"""

COLUMNS: Final = (
    "id, state, received, size, envelope, slots, owed, trusted, warned, reason, content, skip, eight_bit, file"
)

INSERT: Final = (
    "INSERT INTO message (id, state, claimed, due, received, size, envelope, slots, owed, trusted, warned, reason,"
    " content, skip, eight_bit, file) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?)"
)

_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
NEVER: Final = 1e18


def dumps(value: Any) -> str:
    """Compact JSON. Lone surrogates (undecodable octets a client sent) become U+FFFD: SQLite takes UTF-8 only."""
    text = _dumps(value)
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def slots_json(slots: tuple[Slot, ...]) -> str:
    """The slots as the column holds them."""
    return dumps(
        [
            {
                **s.recipient.to_json(),
                "status": s.status.value,
                "due": s.due,
                "attempts": s.attempts,
                "last": s.last,
            }
            for s in slots
        ]
    )


def read_slots(text: str) -> tuple[Slot, ...]:
    """The way back from `slots_json`; raises ValueError, KeyError or TypeError on anything else."""
    return tuple(
        Slot(Recipient.from_json(d), RecipientStatus(d["status"]), float(d["due"]), int(d["attempts"]), str(d["last"]))
        for d in json.loads(text)
    )


def first_slots(message: NewMessage) -> tuple[Slot, ...]:
    """The slots of a message that was just accepted: all pending, due at once."""
    return tuple(Slot(r, due=message.received) for r in message.envelope.recipients)


def new_stored(message: NewMessage, size: int, slots: tuple[Slot, ...]) -> Stored:
    """What a reader will see of a message that is being committed."""
    return Stored(
        message.id,
        message.state,
        message.envelope,
        slots,
        message.received,
        size,
        message.owed,
        message.trusted,
        reason=message.reason,
    )


def due_of(slots: tuple[Slot, ...]) -> float:
    """When the next open recipient is due; far in the future when none is open."""
    return min((s.due for s in slots if s.status.open), default=NEVER)


def read_row(row: sqlite3.Row | tuple[Any, ...]) -> Stored:
    """A row of `COLUMNS` as a value; raises ValueError, KeyError or TypeError when it is not what was stored."""
    id, state, received, size, envelope, slots_text, owed, trusted, warned, reason = tuple(row)[:10]
    slots = read_slots(slots_text)
    return Stored(
        id,
        State(state),
        Envelope.from_json(json.loads(envelope), tuple(s.recipient for s in slots)),
        slots,
        received,
        size,
        bool(owed),
        bool(trusted),
        bool(warned),
        reason,
    )


def unreadable(row: sqlite3.Row | tuple[Any, ...], problem: str) -> Stored:
    """A stand-in for a row that cannot be read, so that it can still be listed."""
    return Stored(str(row[0]), State.CORRUPT, Envelope(NULL_SENDER, ()), (), 0.0, 0, False, False, reason=problem)
