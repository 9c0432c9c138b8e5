"""What happens to mail in PostgreSQL, as steps of the writer: stored, claimed, settled, let go of.

Each step is told the number of the worker that it is done for, and changes only what that worker, or nobody, has in
hand.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.ops import log, metrics
from gateway.spool import operator, rounds, schema
from gateway.spool.notes import RECORD, Notes
from gateway.spool.postgres.tables import CHUNK, INSERT
from gateway.spool.spool import NewDsn, Settlement, SpoolError, State, Step
from gateway.spool.writer import Database

_log = log.get()
_READABLE: Final = tuple(state for state in State if state is not State.CORRUPT)
_LOCKED: Final = " FOR UPDATE OF message SKIP LOCKED"
LOCK: Final = "FOR UPDATE"


class SharedRows:
    """Rows that others claim, too: what somebody is just claiming or changing is left to him."""

    take = rounds.TAKE + _LOCKED
    overdue = rounds.OVERDUE + _LOCKED

    def __init__(self, worker: Callable[[], int]) -> None:
        self._worker = worker

    def claim(self, db: Database, ids: Sequence[str]) -> None:
        db.execute("UPDATE message SET claimed = ? WHERE id = ANY (?)", (self._worker(), list(ids)))


@dataclass(slots=True)
class NewRow:
    """A message that is about to be stored. `path` is the file that its body is read from, `skip` octets into it.

    Several may be of one content.
    """

    row: tuple[Any, ...]
    """A `schema.new_row`, claimed by nobody."""
    head: bytes
    body: bytes | None
    record: dict[str, Any] | None
    fresh: bool = False
    """Whether it is born in its worker's hand."""
    path: str = ""
    skip: int = 0
    octets: int = 0
    """What the file must hold."""


def insert(db: Database, new: NewRow, worker: int, notes: Notes) -> None:
    """Store a message with its content and its decision record. Raises `SpoolError` for a file that is not whole."""
    claimed = worker if new.fresh else 0
    row = (*new.row[:2], claimed, *new.row[3:])
    (n,) = db.execute(INSERT, (new.head, new.body, *_booleans(row))).fetchone()
    if new.path:
        _store_file(db, n, new)
    if new.record is not None and notes.kept:
        db.execute(RECORD, (row[0], notes.record(new.record)))


def _booleans(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """The row with truth values where SQLite has numbers."""
    *others, owed, trusted, reason, skip, eight_bit, file, priority = row
    return (*others, bool(owed), bool(trusted), reason, skip, bool(eight_bit), bool(file), priority)


def _store_file(db: Database, n: int, new: NewRow) -> None:
    try:
        with open(new.path, "rb", buffering=0) as file:
            file.seek(new.skip)
            at, left = 0, new.octets
            while data := file.read(CHUNK):
                db.execute("INSERT INTO chunk (n, at, data) VALUES (?, ?, ?)", (n, at, data))
                at, left = at + 1, left - len(data)
    except OSError as error:
        raise SpoolError(f"{error.strerror} ({new.path})") from error
    if left:
        raise SpoolError("a write to the draft had failed")


def insert_dsn(db: Database, dsn: NewDsn, notes: Notes) -> None:
    """A DSN is a message like any other, except that nobody sent it in."""
    message, slots = dsn.message, schema.first_slots(dsn.message)
    row = schema.new_row(message, slots, len(dsn.content), not dsn.content.isascii())
    insert(db, NewRow(row, b"", dsn.content, message.record), 0, notes)


def retract(db: Database, ids: Sequence[str], worker: int, name: str, sessions: Sequence[int]) -> None:
    """Remove what was committed after all though its client was told that it was not, unless it has gone further.

    Those `sessions` of this `name` that the server still has are ended first: they may be about to commit.
    """
    for session in sessions:
        if not end_sessions(db, name, session):
            raise SpoolError("a session that may be committing it has not ended yet")
    query = "SELECT id FROM message WHERE id = ANY (?) AND claimed IN (0, ?) FOR UPDATE"
    for (id,) in db.execute(query, (list(ids), worker)).fetchall():
        delete(db, id, tuple(State))
        db.execute("DELETE FROM record WHERE id = ?", (id,))


def settle(
    db: Database, settlement: Settlement, worker: int, due: float, notes: Notes, on_step: Callable[[Step], None]
) -> bool:
    """Store a settlement and the DSNs that it owes; False, and only a note, when the message is another's by now.

    Nothing is owed for a message that was dropped meanwhile.
    """
    id, slots = settlement.id, settlement.slots
    on_step(Step.SETTLE_BEGUN)
    notes.add_attempts(db, id, settlement.attempts)
    done = not settlement.hold and not any(slot.status.open for slot in slots)
    found = db.execute("SELECT claimed FROM message WHERE id = ? FOR UPDATE", (id,)).fetchone()
    if found is None:
        return True
    if found != (worker,):
        return False
    if not done or not delete(db, id, _READABLE):
        _keep(db, settlement, due)
    for dsn in settlement.dsns:
        insert_dsn(db, dsn, notes)
    return True


def delete(db: Database, id: str, states: Collection[State]) -> bool:
    """Delete a message in one of `states` with its content; False when there is none."""
    query = (
        f"WITH gone AS (DELETE FROM message WHERE id = ? AND {operator.state_in(states)} RETURNING content, file),"
        " bodies AS (DELETE FROM content USING gone WHERE content.n = gone.content)"
        " SELECT content, file FROM gone"
    )
    gone = db.execute(query, (id,)).fetchone()
    if gone is not None and gone[1]:
        db.execute("DELETE FROM chunk WHERE n = ?", (gone[0],))
    return gone is not None


def _keep(db: Database, settlement: Settlement, due: float) -> None:
    """Store where the recipients stand, and let go of the message."""
    hold = settlement.hold
    query = (
        "UPDATE message SET claimed = 0, due = ?, slots = ?, lane = ?, deadline = ?, warned = warned OR ?,"
        " state = CASE WHEN ? AND state = 'queued' THEN 'hold' ELSE state END,"
        " reason = CASE WHEN ? AND state = 'queued' THEN ? ELSE reason END WHERE id = ?"
    )
    filed = (due, schema.slots_json(settlement.slots), settlement.lane, settlement.deadline, settlement.warned)
    db.execute(query, (*filed, bool(hold), bool(hold), hold, settlement.id))


def end_sessions(db: Database, name: str, session: int = 0) -> bool:
    """End other sessions of this name, or this one of them, and wait until they have ended, for 2 s at most.

    Says whether they have: one that waits for the server's disk does not hear it.
    """
    query = (
        "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity"
        " WHERE application_name = ? AND pid <> pg_backend_pid() AND ? IN (0, pid)"
    )
    return all(ended for (ended,) in db.execute(query, (name, session)).fetchall())


def let_go(db: Database, ids: Sequence[str], worker: int) -> None:
    """Give claimed messages back."""
    db.execute("UPDATE message SET claimed = 0 WHERE id = ANY (?) AND claimed = ?", (list(ids), worker))


def set_aside(db: Database, id: str, reason: str, worker: int) -> bool:
    """Mark a message in hand as corrupt: it stays, and is not tried again."""
    query = "UPDATE message SET state = ?, claimed = 0, reason = ? WHERE id = ? AND claimed = ?"
    return bool(db.execute(query, (State.CORRUPT.value, reason, id, worker)).rowcount)


def drop(
    db: Database, ids: Sequence[str], outcome: str, by: str, states: Collection[State], now: float, notes: Notes
) -> list[str]:
    """Remove messages in one of `states`; gives their ids. With `by` they are noted as ended so."""
    out: list[str] = []
    for id in ids:
        if by and notes.kept:
            operator.note_end(db, id, states, outcome, by, now, notes, lock=LOCK)
        if delete(db, id, states):
            out.append(id)
    return out


def note_lost(id: str) -> None:
    """A delivery's result that was not stored: whoever has the message now will store his own."""
    metrics.SPOOL_LEASES_LOST.inc()
    _log.warning("spool.lease_lost", id=id)
