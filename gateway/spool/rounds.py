"""Which mail leaves the disk next: rounds over the lanes of a shard, a few rows of each.

A lane is the mail that the queue has filed under one destination. Its rows lie together in an index, by priority and
then by when they are due, so finding the next lane and its next row are look-ups, however much waits. A round goes on
where the last one stopped: while a lane has due mail and room, everybody else gets at most one share before it gets
its own. Mail that is in no lane yet has a share of its own, and so has mail whose time is over.

Runs in the thread of the shard's writer. Pure but for the database that is handed in.

*Fails by*: `Misfit`, which `mend` puts right.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from gateway.mail.envelope import TURNS, Priority
from gateway.spool import schema
from gateway.spool.spool import Room, SpoolError, State
from gateway.spool.writer import Database

LOOKS: Final = 500
"""Classes (a lane and a priority) that one step looks at, so that nobody's commit waits for long."""
_WAITS: Final = "state = 'queued' AND claimed = 0"
_UNFILED: Final = ""
_BEYOND: Final = len(Priority)
_RANKS: Final = range(_BEYOND)

PREFETCH_OCTETS: Final = 16 << 10
"""Content up to this size comes with the claim; more is read when it is needed."""

# What is claimed is delivered soon, so its small content is read in the same step.
ROWS: Final = (
    f"SELECT {schema.COLUMNS}, lane, head, body FROM message"
    f" LEFT JOIN content ON content.n = message.content AND size <= {PREFETCH_OCTETS}"
)
TAKE: Final = f"{ROWS} WHERE {_WAITS} AND lane = ? AND priority = ? AND due <= ? ORDER BY due LIMIT ?"
OVERDUE: Final = f"{ROWS} WHERE {_WAITS} AND deadline <= ? ORDER BY deadline LIMIT ?"
# Two questions, since SQLite answers "(lane, priority) > (?, ?)" by going through all that is equal.
CLASS: Final = (
    f"SELECT lane, priority, due FROM message WHERE {_WAITS} AND lane = ? AND priority > ?"
    " ORDER BY priority, due LIMIT 1"
)
LANE: Final = (
    f"SELECT lane, priority, due FROM message WHERE {_WAITS} AND lane > ? ORDER BY lane, priority, due LIMIT 1"
)
LATER: Final = f"SELECT due FROM message WHERE {_WAITS} AND lane = ? AND priority = ? AND due > ? ORDER BY due LIMIT 1"
DEADLINE: Final = f"SELECT deadline FROM message WHERE {_WAITS} ORDER BY deadline LIMIT 1"
CLAIM: Final = "UPDATE message SET claimed = 1 WHERE id = ?"

_TURNS: Final = tuple(schema.RANKS[priority] for priority in TURNS)


class Rows(Protocol):
    """How rows are found and claimed."""

    take: str
    """Of a lane and a priority, what is due: so many at most."""
    overdue: str
    """What is beyond its deadline, so many at most."""

    def claim(self, db: Database, ids: Sequence[str]) -> None:
        """Mark them as ours."""


class OwnRows:
    """Rows that nobody else works on, as in a shard."""

    take = TAKE
    overdue = OVERDUE

    def claim(self, db: Database, ids: Sequence[str]) -> None:
        db.executemany(CLAIM, [(id,) for id in ids])


@dataclass(slots=True)
class Taken:
    """What a step took. Nothing else comes due before `due`, but for what there was no room for: then `short`."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    due: float = schema.NEVER
    short: bool = False
    given: dict[tuple[str, int], int] = field(default_factory=dict)
    """What each class has of its room."""
    suspect: int = 0
    """What lanes that are not proven have of theirs."""


class Misfit(SpoolError):
    """A row is found by a value that is none, and would keep all others from being claimed."""


def mend(db: sqlite3.Connection) -> list[str]:
    """Have rows of a shard found that are so by values that are none; gives their ids.

    A row whose id is none is set aside. Reads all that waits: for when a claim has failed.
    """
    found = db.execute(
        "SELECT CAST(id AS BLOB), typeof(id), CAST(lane AS BLOB), typeof(lane), priority, due, deadline"
        f" FROM message WHERE {_WAITS}"
    ).fetchall()
    mended = []
    for id, id_type, lane, lane_type, *numbers in found:
        if not _is_text(id, id_type):
            query = "UPDATE message SET state = ?, reason = 'its id is none' WHERE CAST(id AS BLOB) = ?"
            db.execute(query, (State.CORRUPT.value, id))
        elif not (_is_text(lane, lane_type) and numbers[0] in _RANKS and all(map(_is_number, numbers))):
            # Due now, by no lane: what is attempted is what its recipients say, and that is stored anew.
            again = "UPDATE message SET lane = '', priority = ?, due = 0, deadline = ? WHERE CAST(id AS BLOB) = ?"
            db.execute(again, (schema.RANKS[Priority.NORMAL], schema.NEVER, id))
        else:
            continue
        mended.append(id.decode("utf-8", "replace"))
    return mended


def _is_text(octets: bytes, kind: str) -> bool:
    return kind == "text" and octets.decode("utf-8", "replace").encode() == octets


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


class Rounds:
    """Goes round the lanes of one shard; remembers where it was."""

    def __init__(self, rows: Rows | None = None) -> None:
        self._rows = rows or OwnRows()
        self._at = (_UNFILED, _BEYOND)
        self._turn = 0

    def take(self, db: Database, now: float, room: Room) -> Taken:
        """Claim due rows, as far as there is room. Raises `Misfit`, with which nothing must be kept of it."""
        try:
            return self._take(db, now, room)
        except (ValueError, TypeError, IndexError) as error:
            # Where it stopped may be what cannot be asked for.
            self._at = (_UNFILED, _BEYOND)
            raise Misfit(f"what says where and when mail is due is damaged: {error!r}") from error

    def _take(self, db: Database, now: float, room: Room) -> Taken:
        taken = Taken()
        filed = min(room.filed, room.total)
        if filed:
            filed -= self._overdue(db, now, max(1, filed // 4), taken)
        unfiled = min(room.unfiled, room.total - len(taken.rows))
        self._take_unfiled(db, now, unfiled, taken)
        filed = min(filed, room.total - len(taken.rows))
        filed -= self._feed(db, now, filed // 2, room, taken)
        self._go_round(db, now, filed, room, taken)
        return taken

    def _claim(self, db: Database, query: str, values: tuple[Any, ...], taken: Taken) -> int:
        rows = db.execute(query, values).fetchall()
        if rows:
            self._rows.claim(db, [row[0] for row in rows])
        taken.rows += rows
        return len(rows)

    def _overdue(self, db: Database, now: float, limit: int, taken: Taken) -> int:
        """What has to be looked at even if its destination is left alone: its sender is to hear of it."""
        found = self._claim(db, self._rows.overdue, (now, limit), taken)
        row = db.execute(DEADLINE).fetchone()
        if row is not None:
            taken.due = min(taken.due, float(row[0]))
        return found

    def _take_unfiled(self, db: Database, now: float, limit: int, taken: Taken) -> None:
        """Mail of no lane: each priority by its turns, then whoever has more."""
        left = limit
        wanted = [0] * _BEYOND
        for turn in range(limit):
            wanted[_TURNS[(self._turn + turn) % len(_TURNS)]] += 1
        self._turn = (self._turn + limit) % len(_TURNS)
        got = []
        for rank, some in enumerate(wanted):
            found = self._claim(db, self._rows.take, (_UNFILED, rank, now, some), taken) if some else 0
            left -= found
            got.append(found)
        for rank, some in enumerate(wanted):
            if left and got[rank] == some:
                left -= self._claim(db, self._rows.take, (_UNFILED, rank, now, left), taken)
        if left <= 0:
            taken.short = True
            return
        for rank in range(_BEYOND):
            self._later(db, _UNFILED, rank, now, taken)

    def _feed(self, db: Database, now: float, limit: int, room: Room, taken: Taken) -> int:
        """Lanes that would have nothing to do until the round comes by."""
        left = limit
        for lane in room.hungry:
            for rank in range(_BEYOND):
                if left > 0:
                    left -= self._serve(db, now, lane, rank, left, room, taken)
        return limit - left

    def _go_round(self, db: Database, now: float, left: int, room: Room, taken: Taken) -> None:
        """One round at most, over classes that have something."""
        start = self._at
        wrapped = False
        for _ in range(LOOKS):
            if left <= 0:
                taken.short = True
                return
            found = db.execute(CLASS, self._at).fetchone() or db.execute(LANE, self._at[:1]).fetchone()
            if found is None:
                if wrapped:
                    return
                wrapped, self._at = True, (_UNFILED, _BEYOND)
                continue
            lane, rank, due = found
            if wrapped and (lane, rank) > start:
                self._at = start
                return
            self._at = (lane, rank)
            if due > now:
                taken.due = min(taken.due, due)
            else:
                left -= self._serve(db, now, lane, rank, left, room, taken)
        # There may be more lanes: the next step goes on.
        taken.due = min(taken.due, now)

    def _serve(self, db: Database, now: float, lane: str, rank: int, limit: int, room: Room, taken: Taken) -> int:
        """What one class may have; gives how much that is."""
        given = taken.given.get((lane, rank), 0)
        share = min(limit, room.of(lane, rank) - given)
        if lane not in room.proven:
            share = min(share, room.suspect - taken.suspect)
        got = self._claim(db, self._rows.take, (lane, rank, now, share), taken) if share > 0 else 0
        taken.given[lane, rank] = given + got
        if lane not in room.proven:
            taken.suspect += got
        if got >= share:
            taken.short = True
        else:
            self._later(db, lane, rank, now, taken)
        return got

    def _later(self, db: Database, lane: str, rank: int, now: float, taken: Taken) -> None:
        row = db.execute(LATER, (lane, rank, now)).fetchone()
        if row is not None:
            taken.due = min(taken.due, float(row[0]))
