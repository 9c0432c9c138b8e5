"""Destinations that nothing is delivered to for a while, as rows that the workers of all gateways look at."""

from __future__ import annotations

import time
from typing import Any, Final

from gateway.ops.operations import Suspension
from gateway.spool.postgres.writer import PostgresWriter
from gateway.spool.spool import SpoolError
from gateway.spool.suspensions import COUNT_MAX, ENDED_MAX, Listed
from gateway.spool.writer import Database

_ALL: Final = (
    "SELECT destination, suspended_by, since, reason, ended, ended_by FROM suspension"
    " ORDER BY coalesce(ended, since), destination"
)
_SUSPEND: Final = (
    "INSERT INTO suspension (destination, suspended_by, since, reason) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (destination) DO UPDATE SET suspended_by = excluded.suspended_by, since = excluded.since,"
    " reason = excluded.reason, ended = NULL, ended_by = '' WHERE suspension.ended IS NOT NULL"
)
_RESUME: Final = (
    "UPDATE suspension SET ended = ?, ended_by = ? WHERE destination = ? AND ended IS NULL"
    " RETURNING destination, suspended_by, since, reason"
)
_FORGET: Final = (
    "DELETE FROM suspension WHERE destination IN"
    f" (SELECT destination FROM suspension WHERE ended IS NOT NULL ORDER BY ended DESC OFFSET {ENDED_MAX})"
)


def read(db: Database) -> list[tuple[Any, ...]]:
    """The rows. Raises psycopg.Error."""
    rows: list[tuple[Any, ...]] = db.execute(_ALL).fetchall()
    return rows


def listed(rows: list[tuple[Any, ...]]) -> Listed:
    """What they say."""
    suspended = [Suspension(*row[:4]) for row in rows if row[4] is None]
    ended = [Suspension(row[0], row[5], row[4]) for row in rows if row[4] is not None]
    return Listed({one.destination: one for one in suspended}, ended)


def suspend(db: Database, suspension: Suspension) -> bool:
    """False when the destination is suspended already. Raises psycopg.Error and `SpoolError`."""
    (count,) = db.execute("SELECT count(*) FROM suspension WHERE ended IS NULL").fetchone()
    values = (suspension.destination, suspension.by, suspension.since, suspension.reason)
    made = bool(db.execute(_SUSPEND, values).rowcount)
    if made and count >= COUNT_MAX:
        raise SpoolError(f"{COUNT_MAX} destinations are suspended already")
    return made


def resume(db: Database, destination: str, by: str) -> Suspension | None:
    """None when there was no such suspension. `by` says who ends it. Raises psycopg.Error."""
    found = db.execute(_RESUME, (time.time_ns() / 1e9, by, destination)).fetchone()
    db.execute(_FORGET)
    return None if found is None else Suspension(*found)


class ListTable:
    """The rows as a `gateway.spool.suspensions.Source`."""

    def __init__(self, reader: PostgresWriter) -> None:
        self._reader = reader
        self._seen: list[tuple[Any, ...]] | None = None

    async def look(self) -> Listed | None:
        rows = await self._reader.read(read)
        if rows == self._seen:
            return None
        self._seen = rows
        return listed(rows)
