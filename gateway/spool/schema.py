"""The tables of a shard, and the way between rows and values.

One row of `message` is one accepted message; its recipients are one JSON column, so that every settlement is one
row. Content up to 256 KiB lies in `content`, more in a file beside the database. `record` and
`attempt` outlive the message. `offer` says to whom a message is leaving, `taken` what others have offered us.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any, Final

import orjson

from gateway.mail.address import NULL_SENDER, Address
from gateway.mail.envelope import Envelope, Priority, Recipient
from gateway.spool.spool import AttemptRecord, NewMessage, RecipientStatus, Slot, State, Stored

VERSION: Final = 1


def _counting(table: str, records: int) -> list[str]:
    """Triggers that keep `kept` right: how many records there are, and the octets of a table's bodies."""
    new, old = "length(CAST(new.body AS BLOB))", "length(CAST(old.body AS BLOB))"
    changes = {
        "INSERT": f"records = records + {records}, octets = octets + {new}",
        "DELETE": f"records = records - {records}, octets = octets - {old}",
        "UPDATE": f"octets = octets + {new} - {old}",
    }
    return [
        f"CREATE TRIGGER IF NOT EXISTS {table}_{event.lower()} AFTER {event} ON {table}"
        f" BEGIN UPDATE kept SET {change}; END;\n"
        for event, change in changes.items()
    ]


HANDOVER: Final = (
    "CREATE TABLE IF NOT EXISTS offer (id TEXT PRIMARY KEY, offer TEXT NOT NULL, spool TEXT NOT NULL,"
    " url TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS taken (offer TEXT, id TEXT, taken INTEGER NOT NULL, spool TEXT NOT NULL,"
    " PRIMARY KEY (offer, id)) WITHOUT ROWID",
)
"""Tables that few spools need: whoever hands mail over, or takes it over, makes them where they are not there yet."""

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS message (
    id TEXT PRIMARY KEY, state TEXT NOT NULL, claimed INTEGER NOT NULL, due REAL NOT NULL, received REAL NOT NULL,
    size INTEGER NOT NULL, envelope TEXT NOT NULL, slots TEXT NOT NULL, owed INTEGER NOT NULL,
    trusted INTEGER NOT NULL, warned INTEGER NOT NULL, reason TEXT NOT NULL,
    content INTEGER, skip INTEGER NOT NULL, eight_bit INTEGER NOT NULL, file INTEGER NOT NULL,
    lane TEXT NOT NULL DEFAULT '', priority INTEGER NOT NULL DEFAULT 1, deadline REAL NOT NULL DEFAULT 1e18
) WITHOUT ROWID;
DROP INDEX IF EXISTS message_due;
CREATE INDEX IF NOT EXISTS message_lane ON message (lane, priority, due) WHERE state = 'queued' AND claimed = 0;
CREATE INDEX IF NOT EXISTS message_deadline ON message (deadline, claimed, state)
    WHERE state = 'queued' AND claimed = 0;
CREATE INDEX IF NOT EXISTS message_oldest ON message (received, claimed, state)
    WHERE state = 'queued' AND claimed = 0;
CREATE INDEX IF NOT EXISTS message_aside ON message (state, received, claimed) WHERE state <> 'queued';
CREATE TRIGGER IF NOT EXISTS message_amended AFTER UPDATE OF reason, envelope ON message
    WHEN new.lane <> '' AND (new.reason <> old.reason OR new.envelope <> old.envelope)
    BEGIN UPDATE message SET lane = '' WHERE id = new.id; END;
CREATE TABLE IF NOT EXISTS content (n INTEGER PRIMARY KEY, head BLOB NOT NULL, body BLOB);
CREATE TABLE IF NOT EXISTS record (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempt (id TEXT, n INTEGER, body TEXT NOT NULL, PRIMARY KEY (id, n)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept (n INTEGER PRIMARY KEY, records INTEGER NOT NULL, octets INTEGER NOT NULL);
""" + "".join(_counting("record", 1) + _counting("attempt", 0))

ADDED: Final = {
    "lane": "TEXT NOT NULL DEFAULT ''",
    "priority": "INTEGER NOT NULL DEFAULT 1",
    "deadline": "REAL NOT NULL DEFAULT 1e18",
}
"""Columns that came later. What writes without knowing them writes what they stand at by default."""


def additions(known: Collection[str]) -> str:
    """The statements that give a `message` table with these columns the others."""
    return "".join(
        f"ALTER TABLE message ADD COLUMN {name} {kind};\n" for name, kind in ADDED.items() if name not in known
    )


COUNT: Final = """
INSERT INTO kept SELECT 1, (SELECT count(*) FROM record), (SELECT total(length(CAST(body AS BLOB))) FROM record)
    + (SELECT total(length(CAST(body AS BLOB))) FROM attempt) WHERE NOT EXISTS (SELECT 1 FROM kept);
"""
"""Counts what a shard has that was made before there was `kept`."""

COLUMNS: Final = (
    "id, state, received, size, envelope, slots, owed, trusted, warned, reason, content, skip, eight_bit, file"
)

INSERT: Final = (
    "INSERT INTO message (content, id, state, claimed, due, received, size, envelope, slots, owed, trusted, warned,"
    " reason, skip, eight_bit, file, priority) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?)"
)

COUNT_KNOWN: Final = (
    "SELECT 'queued', count(*), 0 FROM message WHERE state = 'queued' AND claimed = 0"
    " UNION ALL SELECT state, count(*), total(claimed) FROM message WHERE state <> 'queued' GROUP BY state"
)
"""Messages per state, without those that are queued and claimed; and how many of the others are claimed.

The indexes hold all that this asks for.
"""

_WAITS: Final = "state = 'queued' AND claimed = 0"
OLDEST: Final = " UNION ALL ".join(
    f"SELECT '{state}', (SELECT received FROM message WHERE {which} ORDER BY received LIMIT 1)"
    for state in State
    for which in [_WAITS if state is State.QUEUED else f"state <> 'queued' AND state = '{state}'"]
)
"""When the oldest message of each state came, of those that are queued and nobody has in hand; null for none.

Each is the first entry of an index, or of its part for a state.
"""

ASIDE: Final = (
    f"SELECT {COLUMNS} FROM message WHERE state <> 'queued' AND state = ? AND received < ? ORDER BY received LIMIT ?"
)
"""The oldest that were set aside in one state; the first condition is that of the index."""

# What a decision record holds that JSON has no word for is written as text: a record never costs a message.
_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode
_NEAT: Final = orjson.OPT_NON_STR_KEYS
NEVER: Final = 1e18
RANKS: Final = {priority: rank for rank, priority in enumerate(Priority)}
"""How the column `priority` counts them."""


class Unreadable(Exception):
    """A row does not hold what was stored; the text says what is wrong with it."""


def dumps(value: Any) -> str:
    """Compact JSON. Lone surrogates (undecodable octets a client sent) become ``?``: SQLite takes UTF-8 only."""
    try:
        return orjson.dumps(value, str, _NEAT).decode()
    except orjson.JSONEncodeError:
        # What orjson will not write: lone surrogates, and numbers of more than 64 bits.
        return _dumps(value).encode("utf-8", "replace").decode("utf-8")


def slots_json(slots: tuple[Slot, ...]) -> str:
    """The slots as the column holds them."""
    out = []
    for slot in slots:
        data = slot.recipient.to_json()
        data["status"] = slot.status
        data["due"] = slot.due
        data["attempts"] = slot.attempts
        data["last"] = slot.last
        out.append(data)
    return dumps(out)


def attempts_json(attempts: tuple[AttemptRecord, ...]) -> str:
    """The attempts of one settlement as the column holds them."""
    return dumps([attempt.to_json() for attempt in attempts])


def read_slots(text: str) -> tuple[Slot, ...]:
    """The way back from `slots_json`. Raises `Unreadable`, also for no slots at all: every message has recipients."""
    try:
        slots = tuple([_slot(data) for data in loads(text)])
    except MISFITS as error:
        raise Unreadable(f"recipients: {error!r}") from error
    if not slots:
        raise Unreadable("recipients: none")
    return slots


# Looking up is a third of the work of asking the class, and long lists are read row by row.
_STATUS: Final = {status.value: status for status in RecipientStatus}
_STATES: Final = {state.value: state for state in State}
MISFITS = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading JSON of another form than was stored may raise."""


def _slot(data: dict[str, Any]) -> Slot:
    recipient = Recipient.from_json(data)
    check(recipient.address)
    status = _STATUS[data["status"]]
    return Slot(recipient, status, float(data["due"]), int(data["attempts"]), str(data["last"]))


def check(address: Address) -> None:
    """Octets that are no UTF-8 come out of the database as lone surrogates, and no address holds those.

    Raises ValueError.
    """
    (address.local + address.domain).encode()


def new_row(message: NewMessage, slots: tuple[Slot, ...], size: int, eight_bit: bool, **flags: int) -> tuple[Any, ...]:
    """The values of `INSERT` after the first, which is the content's number. `flags`: claimed, skip, file."""
    return (
        message.id,
        # Exactly a str: SQLite's binding looks for an adapter for anything else.
        message.state.value,
        flags.get("claimed", 0),
        message.received,
        message.received,
        size,
        dumps(message.envelope.to_json()),
        slots_json(slots),
        message.owed,
        message.trusted,
        # A filter may have put a sender's octets into it.
        message.reason.encode("utf-8", "replace").decode("utf-8"),
        flags.get("skip", 0),
        eight_bit,
        flags.get("file", 0),
        RANKS[message.envelope.priority],
    )


def first_slots(message: NewMessage) -> tuple[Slot, ...]:
    """The slots of a message that was just accepted: all pending, due at once."""
    return tuple([Slot(recipient, due=message.received) for recipient in message.envelope.recipients])


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


def read_row(row: tuple[Any, ...]) -> Stored:
    """A row of `COLUMNS` as a value. Raises `Unreadable`."""
    id, state, received, size, envelope, slots_text, owed, trusted, warned, reason = row[:10]
    slots = read_slots(slots_text)
    try:
        read = Envelope.from_json(loads(envelope), tuple([s.recipient for s in slots]))
        if isinstance(read.sender, Address):
            check(read.sender)
        return Stored(
            str(id),
            _STATES[state],
            read,
            slots,
            float(received),
            int(size),
            bool(owed),
            bool(trusted),
            bool(warned),
            str(reason),
        )
    except MISFITS as error:
        raise Unreadable(repr(error)) from error


def unreadable(row: tuple[Any, ...], problem: str) -> Stored:
    """A stand-in for a row that cannot be read, so that it can still be listed."""
    return Stored(str(row[0]), State.CORRUPT, Envelope(NULL_SENDER, ()), (), 0.0, 0, False, False, reason=problem)


def lenient(row: tuple[Any, ...]) -> Stored:
    """A row for the operator's eyes, even when it cannot be read."""
    try:
        return read_row(row)
    except Unreadable as error:
        return unreadable(row, str(error))


def oldest(found: Iterable[tuple[str, Any]]) -> dict[State, float]:
    """The least time of each state: of `OLDEST`, asked in several places. What is no number says nothing."""
    out: dict[State, float] = {}
    for name, received in found:
        if isinstance(received, int | float):
            state = _STATES[name]
            out[state] = min(out.get(state, received), float(received))
    return out


def loads(text: str) -> Any:
    """What `dumps` wrote; but a number of more than 64 bits comes back as a float, as in most readers of JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        # NaN and infinity, which only the library of Python writes and reads.
        return json.loads(text)


def read_notes(texts: list[str]) -> tuple[dict[str, Any], ...]:
    """Records, or lists of attempts, as stored; what cannot be read is left out."""
    out: list[dict[str, Any]] = []
    for text in texts:
        try:
            value = loads(text)
        except (ValueError, RecursionError):
            continue
        out += [note for note in (value if isinstance(value, list) else [value]) if isinstance(note, dict)]
    return tuple(out)
