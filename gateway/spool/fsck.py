"""Checks a spool, and repairs it: what a restart would not notice, and what it would have to set aside.

This is about SQLite; `gateway.spool.postgres.fsck` shares what may be wrong with a row.

Without repair nothing is changed, and a gateway may run; then what may be a message that is just arriving or leaving
is not judged. A repair has every shard to itself, or is refused.

*Promises*: what cannot be read is set aside, and nothing is deleted: messages as `State.CORRUPT`, files and content
without a message in ``set-aside`` of their shard, a damaged database as a whole, after what can be read of it was
copied into a new one (`gateway.spool.salvage`). A repair that is stopped can be begun again.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from gateway.spool import schema, suspensions
from gateway.spool.diagnosis import Finding, Kind, Report
from gateway.spool.draft import sync_directory
from gateway.spool.postmaster import unowned
from gateway.spool.recovery import lock_shard
from gateway.spool.salvage import REBUILD, finish, salvage
from gateway.spool.shard import is_shard
from gateway.spool.spool import SpoolError, State, Stored
from gateway.spool.writer import Database, connect

ASIDE: Final = "set-aside"
_FAR: Final = 366 * 86400.0
_ID: Final = re.compile(r"[0-9A-Za-z]{1,64}\Z")
_CHECKED: Final = (
    f"SELECT {', '.join(f'm.{name.strip()}' for name in schema.COLUMNS.split(','))}, m.claimed, m.due,"
    " length(c.head), length(c.body), c.n, typeof(c.head) <> 'blob' OR typeof(c.body) NOT IN ('blob', 'null')"
    " FROM message m LEFT JOIN content c ON c.n = m.content"
)


def check(root: Path, *, repair: bool = False) -> Report:
    """Check all shards, and repair them if that is wanted. Blocks.

    Raises `SpoolError`: there is no spool, or a gateway has it and it is to be repaired.
    """
    report = Report()
    now = time.time_ns() / 1e9
    try:
        with contextlib.ExitStack() as stack:
            names = sorted(name for name in os.listdir(root) if is_shard(name))
            report.aside = sorted(name for name in os.listdir(root) if ".corrupt-" in name)
            if repair:
                for name in names:
                    stack.callback(os.close, lock_shard(root / name))
            leftover = sorted(name for name in os.listdir(root) if name.endswith(REBUILD))
            for name in _check_leftovers(root, leftover, report, repair):
                stack.callback(os.close, lock_shard(root / name))
                names.append(name)
            for name in names:
                _check_shard(root / name, report, now, stack if repair else None)
            _check_suspensions(root, report, repair)
    except OSError as error:
        raise SpoolError(f"cannot read spool directory {root}: {error.strerror}") from error
    if not names:
        raise SpoolError(f"no spool in {root}")
    return report


def _check_leftovers(root: Path, names: list[str], report: Report, repair: bool) -> list[str]:
    """New shards that had not taken their place yet. Gives the names of those that a repair has put there."""
    placed = []
    for name in names:
        found = f"put in its place if it is whole, else moved to {ASIDE}"
        report.findings.append(Finding(Kind.LEFTOVER, name, name, "left by a repair that was stopped", found))
        if repair:
            if (place := finish(root / name)) is not None:
                placed.append(place.name)
            else:
                _move(root / name, root / ASIDE)
    return placed


def _check_suspensions(root: Path, report: Report, repair: bool) -> None:
    draft = root / f"{suspensions.NAME}.new"
    found = []
    if draft.exists():
        found.append((draft, Kind.LEFTOVER, "left by a command that was stopped"))
    try:
        suspensions.read(root)
    except SpoolError as error:
        found.append((root / suspensions.NAME, Kind.SUSPENSIONS, str(error)))
    for path, kind, text in found:
        report.findings.append(Finding(kind, "", path.name, text, f"moved to {ASIDE}; nothing is suspended then"))
        if repair:
            _move(path, root / ASIDE)


def _check_shard(directory: Path, report: Report, now: float, stack: contextlib.ExitStack | None) -> None:
    """`stack` is there for a repair: what it opens stays locked until all is done."""
    with unowned(directory) as free:
        running = not free and stack is None
    report.running = report.running or running
    try:
        _Check(directory, report, now, repair=stack is not None, running=running).run()
    except _Unusable as problem:
        rebuilt = "what can be read of it is copied into a new one; it is kept as .corrupt-TIME"
        report.findings.append(Finding(Kind.DATABASE, directory.name, "spool.db", str(problem), rebuilt))
        if stack is not None:
            stack.callback(os.close, salvage(directory))
            # What was copied may be wrong in itself.
            _Check(directory, report, now, repair=True, running=False).run()
    if stack is None and not running:
        with unowned(directory) as free:
            if not free:
                # A gateway started meanwhile.
                report.running = True
                report.findings = [f for f in report.findings if (f.kind, f.shard) != (Kind.ORPHAN, directory.name)]


@dataclass(frozen=True, slots=True)
class Untimely:
    """What is wrong with when a message is tried, and what a repair does."""

    text: str
    repair: str
    mend: Callable[[Database], object]


def read(row: tuple[Any, ...], now: float) -> Stored:
    """A row of `schema.COLUMNS` whose values make sense. Raises `schema.Unreadable`."""
    message = schema.read_row(row)
    if not _ID.match(message.id) or not 0 <= message.received <= now + _FAR:
        raise schema.Unreadable("id or time that is none")
    if not isinstance(row[11], int) or not isinstance(row[3], int):
        raise schema.Unreadable("sizes that are none")
    return message


def untimely(message: Stored, due: Any, now: float) -> Untimely | None:
    """Whether it would be tried never, or much too late; `due` is the column by which it is found."""
    if message.state is not State.QUEUED:
        return None
    open = [slot for slot in message.slots if slot.status.open]
    if not open:
        text = "all its recipients are done, and it is still queued"
        hold = "UPDATE message SET state = 'hold', reason = ? WHERE id = ? AND state = 'queued'"
        return Untimely(text, "put on hold", lambda db: db.execute(hold, (text, message.id)))
    if not all(slot.due <= now + _FAR for slot in open) or not _in_time(due, message):
        late = "it would be tried much too late, or never"
        return Untimely(late, "made due now", lambda db: _make_due(db, message.id))
    return None


class _Unusable(Exception):
    """The database is none, or damaged."""


class _Check:
    """The check of one shard, and its repair."""

    def __init__(self, directory: Path, report: Report, now: float, *, repair: bool, running: bool) -> None:
        self._directory = directory
        self._content = directory / "content"
        self._report = report
        self._now = now
        self._repair = repair
        self._running = running
        self._mends: list[Callable[[sqlite3.Connection], object]] = []
        self._orphans: list[str] = []

    def run(self) -> None:
        """Raises `_Unusable`, OSError."""
        before, messages, corrupt = len(self._report.findings), self._report.messages, self._report.corrupt
        try:
            with self._opened() as db:
                if db is not None and self._usable(db):
                    self._look(db)
                    self._mend(db)
        except (sqlite3.Error, UnicodeError) as error:
            # The library's own words may hold octets of the damage. It will all be seen again, in what is made of it.
            del self._report.findings[before:]
            self._report.messages, self._report.corrupt = messages, corrupt
            raise _Unusable(f"it cannot be read: {error}") from error

    def _find(self, kind: Kind, name: str, text: str, repair: str) -> None:
        self._report.findings.append(Finding(kind, self._directory.name, name, text, repair))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection | None]:
        """The database; None where there is none and nothing that would belong to it."""
        path = self._directory / "spool.db"
        if not path.exists():
            if self._content.is_dir() and any(self._content.iterdir()):
                raise _Unusable("it is missing, and there is content")
            yield None
            return
        db = connect(str(path), create=False) if self._repair else read_only(path)
        try:
            yield db
        finally:
            db.close()

    def _usable(self, db: sqlite3.Connection) -> bool:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version not in (0, schema.VERSION):
            text = f"written by another version of Gatepost (schema {version})"
            self._find(Kind.VERSION, "spool.db", text, "left alone: start that version")
            return False
        said = [str(row[0]) for row in db.execute("PRAGMA integrity_check(3)")]
        if said != ["ok"]:
            raise _Unusable("; ".join(said)[:300])
        tables = {str(row[0]) for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {"message", "content", "record", "attempt"} <= tables:
            if tables or (self._content.is_dir() and any(self._content.iterdir())):
                raise _Unusable("its tables are not those of a spool")
            return False
        return True

    # Looking

    def _look(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN")
        files: dict[str, int | None] = {}
        for row in db.execute(_CHECKED):
            self._report.messages += 1
            self._look_at(row, files)
        shared = "SELECT content FROM message WHERE content NOT NULL GROUP BY content HAVING count(*) > 1"
        for (n,) in db.execute(shared).fetchall():
            self._find(Kind.CONTENT, f"content {n}", "belongs to several messages", "each gets its own, or none")
            self._mends.append(lambda db, n=n: _divide(db, n))  # type: ignore[misc]
        for n, octets in db.execute(
            "SELECT n, length(head) + ifnull(length(body), 0) FROM content"
            " WHERE n NOT IN (SELECT content FROM message WHERE content NOT NULL)"
        ).fetchall():
            self._find(Kind.ORPHAN, f"content {n}", f"{octets} octets without a message", f"moved to {ASIDE}")
            self._mends.append(lambda db, n=n: self._export(db, n))  # type: ignore[misc]
        self._look_at_offers(db)
        if (counts := _kept(db)) is not None and counts != [_count(db)]:
            self._find(Kind.COUNT, "kept", "the count of decision records is wrong", "counted again")
            self._mends.append(_recount)
        db.execute("COMMIT")
        self._look_at_files(db, files)

    def _look_at(self, row: tuple[Any, ...], files: dict[str, int | None]) -> None:
        id, state, columns = str(row[0]), row[1], len(schema.COLUMNS.split(","))
        claimed, due, head, body, content, odd = row[columns:]
        skip, _, file = row[11:14]
        files[id] = None
        if state == State.CORRUPT:
            self._report.corrupt += 1
            return
        try:
            message = read(row[:columns], self._now)
        except schema.Unreadable as error:
            self._corrupt(Kind.ROW, row[0], f"row cannot be read: {error}"[:300])
            return
        if content is None or (body is None and not file):
            self._corrupt(Kind.CONTENT, id, "content is missing")
        elif odd:
            self._corrupt(Kind.CONTENT, id, "content is none")
        elif body is None:
            files[id] = message.size - head + skip
        else:
            # A file of this name would not be read.
            del files[id]
            if head + body != message.size:
                self._corrupt(Kind.CONTENT, id, f"content has {head + body} octets instead of {message.size}")
        self._look_at_time(message, claimed, due)

    def _look_at_time(self, message: Stored, claimed: Any, due: Any) -> None:
        id = message.id
        if claimed not in (0, 1):
            self._find(Kind.SCHEDULE, id, "claimed by nobody there is", "let go of")
            self._mends.append(lambda db: db.execute("UPDATE message SET claimed = 0 WHERE id = ?", (id,)))
        if (found := untimely(message, due, self._now)) is not None:
            self._find(Kind.SCHEDULE, id, found.text, found.repair)
            self._mends.append(found.mend)

    def _look_at_offers(self, db: sqlite3.Connection) -> None:
        known = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'offer'").fetchone()
        condition = " AND id NOT IN (SELECT id FROM offer)" if known else ""
        text = "leaving, and it is not known to whom: another gateway may have it"
        hold = "UPDATE message SET state = 'hold', reason = ? WHERE id = ? AND state = 'leaving'"
        for (id,) in db.execute(f"SELECT id FROM message WHERE state = 'leaving'{condition}").fetchall():
            self._find(Kind.SCHEDULE, str(id), text, "put on hold")
            self._mends.append(lambda db, id=id: db.execute(hold, (text, id)))  # type: ignore[misc]

    def _corrupt(self, kind: Kind, id: Any, reason: str) -> None:
        """`id` is as the database gave it: text, octets, or text of octets that are none."""
        self._find(kind, str(id), reason, "marked as corrupt, and kept")
        key = id if isinstance(id, bytes) else str(id).encode("utf-8", "surrogateescape")
        where = "id = ?" if isinstance(id, str) and id.isascii() else "CAST(id AS BLOB) = ?"
        query = f"UPDATE message SET state = ?, claimed = 0, reason = ? WHERE {where}"
        value = id if where == "id = ?" else key
        self._mends.append(lambda db: db.execute(query, (State.CORRUPT.value, reason, value)))

    def _look_at_files(self, db: sqlite3.Connection, files: dict[str, int | None]) -> None:
        """`files` are those that there should be, with their sizes, None for any."""
        wrong = {id: "content file is missing" for id, size in files.items() if size is not None}
        if self._content.is_dir():
            for entry in os.scandir(self._content):
                size = files.get(entry.name)
                if entry.name not in files or not entry.is_file(follow_symlinks=False):
                    # While a gateway runs, it may be a message that is just arriving, or leaving.
                    if not self._running:
                        self._find(Kind.ORPHAN, f"content/{entry.name}", "belongs to no message", f"moved to {ASIDE}")
                        self._orphans.append(entry.name)
                elif size is not None:
                    there = entry.stat(follow_symlinks=False).st_size
                    if there == size:
                        del wrong[entry.name]
                    else:
                        wrong[entry.name] = f"content file has {there} octets instead of {size}"
        for id, text in wrong.items():
            # It may have left since its row was read.
            if not self._running or db.execute("SELECT 1 FROM message WHERE id = ?", (id,)).fetchone():
                self._corrupt(Kind.CONTENT, id, text)

    # Mending

    def _mend(self, db: sqlite3.Connection) -> None:
        if not self._repair:
            return
        db.execute("BEGIN IMMEDIATE")
        for mend in self._mends:
            mend(db)
        db.execute("COMMIT")
        for name in self._orphans:
            _move(self._content / name, self._directory / ASIDE)

    def _export(self, db: sqlite3.Connection, n: int) -> None:
        """Write content that belongs to no message to a file, durably, and remove it here."""
        head, body = db.execute("SELECT head, body FROM content WHERE n = ?", (n,)).fetchone()
        aside = self._directory / ASIDE
        aside.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(free_name(aside, f"content-{n}"), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            for part in (head, body):
                file.write(part if isinstance(part, bytes) else str(part or "").encode("utf-8", "surrogateescape"))
            file.flush()
            os.fsync(fd)
        sync_directory(str(aside))
        db.execute("DELETE FROM content WHERE n = ?", (n,))


def read_only(path: Path) -> sqlite3.Connection:
    """A database that is not to be changed. Raises sqlite3.Error."""
    quoted = str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    # On a disk that cannot be written there is no room for what readers share; nobody writes there either.
    immutable = "" if os.access(path.parent, os.W_OK) else "&immutable=1"
    db = sqlite3.connect(f"file:{quoted}?mode=ro{immutable}", timeout=10.0, isolation_level=None, uri=True)
    db.text_factory = lambda octets: octets.decode("utf-8", "surrogateescape")
    return db


def _in_time(due: Any, message: Stored) -> bool:
    """Whether the column by which a message is found says what its recipients say, or less."""
    return isinstance(due, int | float) and due <= schema.due_of(message.slots) + 1.0


def _make_due(db: Database, id: str) -> None:
    (text,) = db.execute("SELECT slots FROM message WHERE id = ?", (id,)).fetchone()
    slots = tuple(replace(slot, due=0.0) if slot.status.open else slot for slot in schema.read_slots(text))
    db.execute("UPDATE message SET due = 0, slots = ? WHERE id = ?", (schema.slots_json(slots), id))


def _divide(db: sqlite3.Connection, n: int) -> None:
    """Content that several messages call theirs: a copy for each, so that none takes it away from the others."""
    rows = db.execute("SELECT id, state FROM message WHERE content = ? ORDER BY state = 'corrupt', id", (n,)).fetchall()
    for id, state in rows[1:]:
        copy = None
        if state != State.CORRUPT:
            query = "INSERT INTO content (head, body) SELECT head, body FROM content WHERE n = ?"
            copy = db.execute(query, (n,)).lastrowid
        db.execute("UPDATE message SET content = ? WHERE id = ?", (copy, id))


def _kept(db: sqlite3.Connection) -> list[tuple[int, int]] | None:
    """What the shard says that there is; None for one that was made before that was counted."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'kept'").fetchone():
        return None
    return db.execute("SELECT records, octets FROM kept").fetchall()


def _count(db: sqlite3.Connection) -> tuple[int, int]:
    """How many records there are, and the octets of them and of all attempts."""
    octets = "SELECT cast(total(length(CAST(body AS BLOB))) AS INTEGER) FROM"
    row = db.execute(f"SELECT (SELECT count(*) FROM record), ({octets} record) + ({octets} attempt)").fetchone()
    return int(row[0]), int(row[1])


def _recount(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM kept")
    db.execute("INSERT INTO kept (n, records, octets) VALUES (1, ?, ?)", _count(db))


def _move(path: Path, aside: Path) -> None:
    """Move something aside, durably. Raises OSError."""
    aside.mkdir(mode=0o700, exist_ok=True)
    os.rename(path, free_name(aside, path.name))
    sync_directory(str(aside))
    sync_directory(str(path.parent))


def free_name(aside: Path, name: str) -> Path:
    """A name that is not taken there."""
    path, n = aside / name, 0
    while os.path.lexists(path):
        n += 1
        path = aside / f"{name}.{n}"
    return path
