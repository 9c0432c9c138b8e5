"""Checks the spool in PostgreSQL, and repairs it: what of `gateway.spool.fsck` can go wrong in a database of others.

The database's own files are not our matter: a page that PostgreSQL cannot read fails the check. All is looked at in one
snapshot, so a check beside running gateways judges everything. A repair is one transaction, in which no worker starts;
it is refused while one is alive.

*Promises*: those of `gateway.spool.fsck`: what cannot be read is set aside, and nothing is deleted. Content without a
message goes to ``set-aside`` in the spool's directory of the machine that repairs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg

from gateway.spool import schema
from gateway.spool.diagnosis import Finding, Kind, Report
from gateway.spool.draft import sync_directory
from gateway.spool.fsck import ASIDE, free_name, read, untimely
from gateway.spool.postgres import lease
from gateway.spool.postgres.database import Database
from gateway.spool.postgres.opening import plain
from gateway.spool.recovery import make_root
from gateway.spool.spool import SpoolError, SpoolOptions, State

_PLACE: Final = "postgres"
_PAGE: Final = 1000
_COLUMNS: Final = schema.COLUMNS.split(",")
_MESSAGES: Final = (
    f"SELECT {', '.join(f'm.{name.strip()}' for name in _COLUMNS)}, m.due,"
    " m.claimed <> 0 AND NOT EXISTS (SELECT 1 FROM worker w WHERE w.n = m.claimed),"
    " octet_length(c.head) + coalesce(octet_length(c.body), 0), c.body IS NULL,"
    " CASE WHEN m.file THEN (SELECT sum(octet_length(data)) FROM chunk WHERE n = m.content"
    "  HAVING count(*) = max(at) + 1) END"
    " FROM message m LEFT JOIN content c ON c.n = m.content WHERE m.id > ? ORDER BY m.id"
    f" LIMIT {_PAGE}"
)
_CONTENTS: Final = (
    f"SELECT n, octet_length(head) + coalesce(octet_length(body), 0) FROM content WHERE n > ? ORDER BY n LIMIT {_PAGE}"
)
_CHUNKED: Final = f"SELECT DISTINCT n FROM chunk WHERE n > ? ORDER BY n LIMIT {_PAGE}"
_RECORDS: Final = f"SELECT id, octet_length(body) FROM record WHERE id > ? ORDER BY id LIMIT {10 * _PAGE}"
_ATTEMPTS: Final = (
    f"SELECT id, n, octet_length(body) FROM attempt WHERE (id, n) > (?, ?) ORDER BY id, n LIMIT {10 * _PAGE}"
)
_ABANDONED: Final = "SELECT n, (SELECT count(*) FROM message WHERE claimed = n) FROM worker ORDER BY n"


def check(options: SpoolOptions, *, repair: bool = False) -> Report:
    """Check the spool, and repair it if that is wanted. Blocks.

    Raises `SpoolError`: it cannot be read, or a gateway is running and it is to be repaired.
    """
    if options.postgres is None:
        raise ValueError("no database is named")
    try:
        db = plain(options.postgres, "gatepost fsck", make=False)
        try:
            return _Check(db, Path(options.path), repair=repair).run()
        finally:
            db.close()
    except psycopg.Error as error:
        why = " ".join(str(error).split())[:500]
        raise SpoolError(f"{options.postgres.server} cannot be checked: {why}") from error
    except OSError as error:
        raise SpoolError(f"{error.strerror} ({error.filename})") from error


class _Check:
    """One check, and its repair."""

    def __init__(self, db: Database, root: Path, *, repair: bool) -> None:
        self._db = db
        self._root = root
        self._repair = repair
        self._now = time.time_ns() / 1e9
        self._report = Report()
        self._mends: list[Callable[[Database], object]] = []
        self._owners: dict[int, str] = {}
        self._shared: dict[int, list[str]] = {}

    def run(self) -> Report:
        db = self._db
        db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        if self._repair:
            # Before the snapshot. Who starts now waits for us.
            db.execute("LOCK TABLE worker IN SHARE ROW EXCLUSIVE MODE")
        living = lease.living(db)
        if self._repair and living:
            raise SpoolError(f"{len(living)} workers of running gateways use the spool; stop these gateways first")
        self._report.running = bool(living)
        self._look_at_workers(living)
        self._look_at_messages()
        self._look_for_orphans()
        self._count()
        for mend in self._mends if self._repair else ():
            mend(db)
        db.execute("COMMIT")
        return self._report

    def _find(self, kind: Kind, name: str, text: str, repair: str, mend: Callable[[Database], object]) -> None:
        self._report.findings.append(Finding(kind, _PLACE, name, text, repair))
        self._mends.append(mend)

    def _pages(self, query: str, after: tuple[Any, ...], *, key: int = 1) -> Iterator[tuple[Any, ...]]:
        """The rows of a question whose first `key` columns say where the next page begins."""
        while rows := self._db.execute(query, after).fetchall():
            yield from rows
            after = rows[-1][:key]

    def _look_at_workers(self, living: frozenset[int]) -> None:
        for n, claimed in self._db.execute(_ABANDONED).fetchall():
            if n not in living:
                text = f"it is gone, and has {claimed} messages in hand"
                self._find(Kind.LEASE, f"worker {n}", text, "they are let go of", lease.bury)

    def _look_at_messages(self) -> None:
        for row in self._pages(_MESSAGES, ("",)):
            self._report.messages += 1
            if (n := row[10]) is not None:
                if n in self._owners and row[len(_COLUMNS) + 2] is not None:
                    self._shared.setdefault(n, [self._owners[n]]).append(row[0])
                self._owners[n] = row[0]
            self._look_at(row)
        for n, ids in self._shared.items():
            divide = partial(_divide, n=n, ids=ids)
            self._find(Kind.CONTENT, f"content {n}", "belongs to several messages", "each gets its own", divide)

    def _look_at(self, row: tuple[Any, ...]) -> None:
        id, file = row[0], row[13]
        due, astray, octets, bodiless, chunks = row[len(_COLUMNS) :]
        if row[1] == State.CORRUPT:
            self._report.corrupt += 1
            return
        try:
            message = read(row[: len(_COLUMNS)], self._now)
        except schema.Unreadable as error:
            self._corrupt(Kind.ROW, id, f"row cannot be read: {error}"[:300])
            return
        if octets is None or (bodiless and not file) or (file and chunks is None):
            self._corrupt(Kind.CONTENT, id, "content is missing")
        elif (there := octets + int(chunks or 0)) != message.size:
            self._corrupt(Kind.CONTENT, id, f"content has {there} octets instead of {message.size}")
        if astray:
            free = "UPDATE message SET claimed = 0 WHERE id = ?"
            name = "claimed by nobody there is"
            self._find(Kind.SCHEDULE, id, name, "let go of", lambda db: db.execute(free, (id,)))
        if (found := untimely(message, due, self._now)) is not None:
            self._find(Kind.SCHEDULE, id, found.text, found.repair, found.mend)

    def _corrupt(self, kind: Kind, id: str, reason: str) -> None:
        query = "UPDATE message SET state = ?, claimed = 0, reason = ? WHERE id = ?"
        values = (State.CORRUPT.value, reason, id)
        self._find(kind, id, reason, "marked as corrupt, and kept", lambda db: db.execute(query, values))

    def _look_for_orphans(self) -> None:
        there = set()
        for n, octets in self._pages(_CONTENTS, (-(1 << 62),)):
            there.add(n)
            if n not in self._owners:
                self._orphan(n, f"{octets} octets, and what chunks there are, without a message")
        for (n,) in self._pages(_CHUNKED, (-(1 << 62),)):
            if n not in there and n not in self._owners:
                self._orphan(n, "chunks without a message")

    def _orphan(self, n: int, text: str) -> None:
        self._find(Kind.ORPHAN, f"content {n}", text, f"moved to {ASIDE}", partial(self._export, n=n))

    def _export(self, db: Database, n: int) -> None:
        """Write content that belongs to no message to a file, durably, and remove it here."""
        make_root(self._root)
        aside = self._root / ASIDE
        aside.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(free_name(aside, f"content-{n}"), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            head, body = db.execute("SELECT head, body FROM content WHERE n = ?", (n,)).fetchone() or (b"", b"")
            file.write(head + (body or b""))
            for (at,) in db.execute("SELECT at FROM chunk WHERE n = ? ORDER BY at", (n,)).fetchall():
                (data,) = db.execute("SELECT data FROM chunk WHERE n = ? AND at = ?", (n, at)).fetchone() or (b"",)
                file.write(data)
            file.flush()
            os.fsync(fd)
        sync_directory(str(aside))
        db.execute("DELETE FROM content WHERE n = ?", (n,))
        db.execute("DELETE FROM chunk WHERE n = ?", (n,))

    def _count(self) -> None:
        records = octets = 0
        for _, size in self._pages(_RECORDS, ("",)):
            records, octets = records + 1, octets + size
        for _, _, size in self._pages(_ATTEMPTS, ("", -(1 << 62)), key=2):
            octets += size
        if self._db.execute("SELECT records, octets FROM kept").fetchone() != (records, octets):
            recount = partial(_recount, records=records, octets=octets)
            self._find(Kind.COUNT, "kept", "the count of decision records is wrong", "counted again", recount)


def _recount(db: Database, records: int, octets: int) -> None:
    db.execute("DELETE FROM kept_by")
    db.execute("INSERT INTO kept_by VALUES (0, ?, ?)", (records, octets))


def _divide(db: Database, n: int, ids: list[str]) -> None:
    """Content that several messages call theirs: a copy for each, so that none takes it away from the others."""
    for id in ids[1:]:
        query = "INSERT INTO content (head, body) SELECT head, body FROM content WHERE n = ? RETURNING n"
        copied = db.execute(query, (n,)).fetchone()
        if copied is not None:
            db.execute("INSERT INTO chunk SELECT ?::bigint, at, data FROM chunk WHERE n = ?", (copied[0], n))
            db.execute("UPDATE message SET content = ? WHERE id = ?", (copied[0], id))
