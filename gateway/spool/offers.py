"""Offers between gateways, as steps in a shard's database: to whom a message is leaving, and what was taken."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from gateway.mail.session import ids_from
from gateway.spool import operator, schema
from gateway.spool.notes import ATTEMPT, RECORD, Notes
from gateway.spool.parcel import ParcelError
from gateway.spool.spool import State, Step

if TYPE_CHECKING:
    from gateway.spool.shard import Shard

KEPT_SECONDS: Final = 90 * 86400.0
"""So long it is known what came of an offer. An older one is neither taken nor refused."""
AHEAD_SECONDS: Final = 86400.0
"""By so much the clocks of two gateways may differ."""
_PRUNED: Final = 200
_PAPERS_MAX: Final = 10_000


class Answer(StrEnum):
    """What the receiver says of an offer."""

    TAKEN = "taken"
    """The receiver owns the message, or has owned it."""
    REFUSED = "refused"
    """It was not taken, and never will be."""
    CONFLICT = "conflict"
    """Another message of this id is there. The offer stands."""
    TOO_OLD = "too-old"
    """It is not known any more what came of it."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A message that is leaving. `spool` is its receiver's id, `url` where that was, `name` its name for people.

    `state` and `reason` are what the message was in before.
    """

    id: str
    offer: str
    spool: str
    url: str
    name: str
    state: State
    reason: str


def _there(db: sqlite3.Connection, table: str) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone() is not None


def noted(db: sqlite3.Connection, id: str, offer: str) -> Answer | None:
    if not _there(db, "taken"):
        return None
    row = db.execute("SELECT taken FROM taken WHERE offer = ? AND id = ?", (offer, id)).fetchone()
    return None if row is None else Answer.TAKEN if row[0] else Answer.REFUSED


def note_answer(db: sqlite3.Connection, id: str, offer: str, spool: str, *, taken: bool) -> None:
    for statement in schema.HANDOVER:
        db.execute(statement)
    db.execute("INSERT INTO taken VALUES (?, ?, ?, ?)", (offer, id, taken, spool))
    old = ids_from(time.time_ns() / 1e9 - KEPT_SECONDS - AHEAD_SECONDS)
    query = "DELETE FROM taken WHERE (offer, id) IN (SELECT offer, id FROM taken WHERE offer < ? LIMIT ?)"
    db.execute(query, (old, _PRUNED))


def pending(db: sqlite3.Connection, offer: str) -> list[Offer]:
    if not _there(db, "offer"):
        return []
    query = (
        "SELECT o.id, o.offer, o.spool, o.url, o.name, o.state, o.reason FROM offer o"
        " JOIN message m ON m.id = o.id AND m.state = ?1 WHERE ?2 IN ('', o.offer) ORDER BY o.id"
    )
    rows = db.execute(query, (State.LEAVING.value, offer)).fetchall()
    return [Offer(id, of, spool, url, name, State(state), why) for id, of, spool, url, name, state, why in rows]


def _is_leaving(db: sqlite3.Connection, offer: Offer) -> bool:
    query = "SELECT 1 FROM offer o JOIN message m ON m.id = o.id AND m.state = ? WHERE o.id = ? AND o.offer = ?"
    values = (State.LEAVING.value, offer.id, offer.offer)
    return _there(db, "offer") and db.execute(query, values).fetchone() is not None


def leave(db: sqlite3.Connection, shard: Shard, offer: Offer, by: str, notes: Notes) -> bool:
    """Remove a message that is another's; says whether it has a content file."""
    if not _is_leaving(db, offer):
        return False
    now = time.time_ns() / 1e9
    operator.note_end(db, offer.id, (State.LEAVING,), "handed-over", by, now, notes)
    content, file = db.execute("DELETE FROM message WHERE id = ? RETURNING content, file", (offer.id,)).fetchone()
    db.execute("DELETE FROM content WHERE n = ?", (content,))
    db.execute("DELETE FROM offer WHERE id = ?", (offer.id,))
    shard.on_step(Step.LEFT_BEGUN)
    return bool(file)


def come_back(db: sqlite3.Connection, offer: Offer) -> None:
    if not _is_leaving(db, offer):
        return
    query = "UPDATE message SET state = ?, reason = ? WHERE id = ?"
    db.execute(query, (offer.state.value, offer.reason, offer.id))
    db.execute("DELETE FROM offer WHERE id = ?", (offer.id,))


@dataclass(frozen=True, slots=True)
class Papers:
    """The decision record and the attempts that come with a message, as its sender kept them."""

    record: dict[str, Any] | None
    attempts: list[tuple[int, list[dict[str, Any]]]]
    redacted: bool

    def store(self, db: sqlite3.Connection, id: str, notes: Notes) -> None:
        redactor = None if self.redacted else notes.redactor
        if self.record is not None:
            record = schema.dumps(self.record if redactor is None else redactor.record(self.record))
            db.execute(RECORD, (id, record))
        for n, attempts in self.attempts:
            body = schema.dumps(attempts if redactor is None else redactor.attempts(attempts))
            db.execute(ATTEMPT, (id, n, body))


def papers_of(db: sqlite3.Connection, id: str, redacted: bool) -> dict[str, Any]:
    records = [body for (body,) in db.execute("SELECT body FROM record WHERE id = ?", (id,))]
    rows = db.execute("SELECT n, body FROM attempt WHERE id = ? ORDER BY n DESC LIMIT ?", (id, _PAPERS_MAX)).fetchall()
    return {
        "record": next(iter(schema.read_notes(records)), None),
        "attempts": [[n, list(schema.read_notes([body]))] for n, body in reversed(rows)],
        "redacted": redacted,
    }


def read_papers(data: Any) -> Papers:
    """What `papers_of` wrote. Raises `ParcelError`."""
    try:
        record, attempts = data["record"], [(n, notes) for n, notes in data["attempts"]]
        good = data.keys() == {"record", "attempts", "redacted"} and (record is None or isinstance(record, dict))
        good = good and isinstance(data["redacted"], bool) and len(attempts) <= _PAPERS_MAX
        for n, notes in attempts:
            good = good and type(n) is int and 0 <= n < 1 << 62 and isinstance(notes, list)
            good = good and all(isinstance(one, dict) for one in notes)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ParcelError(f"its record and attempts cannot be read: {error!r}"[:300]) from error
    if not good:
        raise ParcelError("its record and attempts are none")
    return Papers(record, attempts, data["redacted"])
