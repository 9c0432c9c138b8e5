"""What the postmaster does to mail, as steps of a writer: find, release, note what was done.

What somebody did by hand is kept beside the delivery attempts, since it says why a message left as it did.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final

from gateway.mail.envelope import Recipient
from gateway.spool import schema
from gateway.spool.notes import Notes
from gateway.spool.spool import AttemptRecord, Explained, RecipientStatus, Slot, State
from gateway.spool.writer import Database

PAGE: Final = 500
"""Messages that one step changes at most, so that the gateway's own steps never wait for long."""


def state_in(states: Collection[State]) -> str:
    """The condition that a message is in one of these states; a state that nobody knows counts as corrupt."""
    named = ", ".join(f"'{state.value}'" for state in states)
    if State.CORRUPT not in states:
        return f"state IN ({named})"
    known = ", ".join(f"'{state.value}'" for state in State)
    return f"(state IN ({named}) OR state NOT IN ({known}))"


def explain(db: Database, prefix: str) -> list[tuple[Any, ...]]:
    """Id, record, attempts and row of everything whose id begins with `prefix`."""
    bounds = (prefix, prefix + "\uffff")
    ids: set[str] = set()
    for table in ("record", "attempt", "message"):
        query = f"SELECT DISTINCT id FROM {table} WHERE id >= ? AND id < ? ORDER BY id LIMIT 1000"
        ids.update(id for (id,) in db.execute(query, bounds))
    out: list[tuple[Any, ...]] = []
    for id in sorted(ids):
        record = db.execute("SELECT body FROM record WHERE id = ?", (id,)).fetchone()
        attempts = [body for (body,) in db.execute("SELECT body FROM attempt WHERE id = ? ORDER BY n", (id,))]
        row = db.execute(f"SELECT {schema.COLUMNS} FROM message WHERE id = ?", (id,)).fetchone()
        out.append((id, record[0] if record else None, attempts, row))
    return out


def explained(rows: list[tuple[Any, ...]]) -> list[Explained]:
    """What `explain` found in all shards, by id."""
    return [
        Explained(
            {**next(iter(schema.read_notes([record] if record else [])), {}), "id": id},
            schema.read_notes(attempts),
            schema.lenient(row) if row else None,
        )
        for id, record, attempts, row in sorted(rows, key=lambda row: row[0])
    ]


def attempts(db: Database, first: str, last: str) -> list[tuple[str, str]]:
    """Id and body of the attempts from one id to another, in the order in which they were made."""
    query = "SELECT id, body FROM attempt WHERE id >= ? AND id <= ? ORDER BY id, n"
    return list(db.execute(query, (first, last)))


def attempts_by_id(rows: Iterable[tuple[str, str]]) -> dict[str, Sequence[dict[str, Any]]]:
    """What `attempts` found."""
    bodies: dict[str, list[str]] = {}
    for id, body in rows:
        bodies.setdefault(id, []).append(body)
    return {id: schema.read_notes(texts) for id, texts in bodies.items()}


def read_records(texts: Iterable[tuple[str, bytes]]) -> list[dict[str, Any]]:
    """Records with their ids, as `gateway.spool.spool.Spool.record_texts` gives them; of a damaged one the id."""
    return [{**next(iter(schema.read_notes([body.decode("utf-8", "replace")])), {}), "id": id} for id, body in texts]


def record_ids(db: Database, after: str, before: str, limit: int, newest: bool) -> list[str]:
    """Ids of records between these: the first, or the last. No other shard is read for what this one has before it."""
    order = "DESC" if newest else "ASC"
    query = f"SELECT id FROM record WHERE id > ? AND id < ? ORDER BY id {order} LIMIT ?"
    return [id for (id,) in db.execute(query, (after, before, limit))]


def record_texts(db: Database, ids: tuple[str, str]) -> list[tuple[str, bytes]]:
    """Records from one id to another as they are stored."""
    query = "SELECT id, CAST(body AS BLOB) FROM record WHERE id >= ? AND id <= ?"
    return list(db.execute(query, ids))


def pages(ids: Sequence[str]) -> Iterator[list[str]]:
    """Those ids page by page, in the order in which all operators lock them."""
    rising = sorted(set(ids))
    for start in range(0, len(rising), PAGE):
        yield rising[start : start + PAGE]


def release(
    db: Database,
    ids: Sequence[str],
    *,
    to: Sequence[Recipient],
    by: str,
    states: Collection[State],
    notes: Notes,
    lock: str = "",
) -> int:
    """Queue messages in one of `states`, due now: who has not got it is tried again, or `to` instead; gives how many.

    With `by` that is noted. `lock` ends the question: in a database that others write to, nobody may change a row
    between our look and our change.
    """
    look = f"SELECT slots, envelope, state, reason FROM message WHERE {state_in(states)} AND id = ? {lock}"
    query = "UPDATE message SET state = 'queued', reason = '', lane = '', due = 0, slots = ?, envelope = ? WHERE id = ?"
    count = 0
    for id in ids:
        found = db.execute(look, (id,)).fetchone()
        if found is None:
            continue
        text, envelope, state, reason = found
        try:
            schema.read_slots(text)
        except schema.Unreadable:
            continue
        slots = _reopened(json.loads(text), to)
        db.execute(query, (schema.dumps(slots), _without_next_hop(envelope) if to else envelope, id))
        if by and notes.kept:
            notes.add_attempts(db, id, _done(slots, "released", f"{state}: {reason}", by, time.time_ns() / 1e9))
        count += 1
    return count


def _reopened(slots: list[dict[str, Any]], to: Sequence[Recipient]) -> list[dict[str, Any]]:
    if to:
        slots = json.loads(schema.slots_json(tuple(Slot(recipient) for recipient in to)))
    for slot in slots:
        if slot["status"] != RecipientStatus.DELIVERED:
            slot.update(status=RecipientStatus.PENDING.value, due=0.0, attempts=0)
    return slots


def _without_next_hop(envelope: str) -> str:
    try:
        read = json.loads(envelope)
    except ValueError:
        return envelope
    if isinstance(read, dict) and read.pop("next_hop", None):
        return schema.dumps(read)
    return envelope


def note_end(
    db: Database,
    id: str,
    states: Collection[State],
    outcome: str,
    by: str,
    now: float,
    notes: Notes,
    *,
    lock: str = "",
) -> None:
    """Note that a message in one of `states` is about to be removed by somebody."""
    query = f"SELECT slots, state, reason FROM message WHERE id = ? AND {state_in(states)} {lock}"
    row = db.execute(query, (id,)).fetchone()
    if row is None:
        return
    try:
        schema.read_slots(row[0])
    except schema.Unreadable:
        slots: list[dict[str, Any]] = [{"local": "", "domain": ""}]
    else:
        slots = json.loads(row[0])
    notes.add_attempts(db, id, _done(slots, outcome, f"{row[1]}: {row[2]}", by, now))


def _done(slots: list[dict[str, Any]], outcome: str, why: str, by: str, now: float) -> list[AttemptRecord]:
    """What somebody did, for each recipient that it was done to."""
    recipients = [str(Recipient.from_json(slot).address) for slot in slots if slot.get("status") != "delivered"]
    return [AttemptRecord(now, recipient, outcome, why, by) for recipient in recipients]
