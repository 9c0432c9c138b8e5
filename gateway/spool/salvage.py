"""Takes what can be read out of a damaged database, and puts it into a new one.

Rows are looked for on every way that leads to them: forwards and backwards over the table up to where it breaks off,
over the indexes, and by the ids that decision records and content files name.

*Promises*: the damaged shard is kept as it is, under another name, with its content files (the new one has links to
them). The new one takes its place when it is whole and synced. A message whose row is there and whose content is not is
`State.CORRUPT` in the new one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from gateway.spool import schema
from gateway.spool.draft import sync_directory
from gateway.spool.recovery import lock_shard, set_aside
from gateway.spool.spool import SpoolError, State
from gateway.spool.writer import connect

REBUILD: Final = ".rebuild"
_WHOLE: Final = "whole"
_NOTES: Final = (
    ("record", "id, body"),
    ("attempt", "id, n, body"),
    ("offer", "id, offer, spool, url, name, state, reason"),
    ("taken", "offer, id, taken, spool"),
)
_BATCH: Final = 500
_NAMES: Final = (
    *("id", "state", "claimed", "due", "received", "size", "envelope", "slots", "owed", "trusted", "warned", "reason"),
    *("content", "skip", "eight_bit", "file"),
)
_FIELDS: Final = ", ".join(_NAMES)
_CONTENT: Final = _NAMES.index("content")


def salvage(directory: Path) -> int:
    """Put a new shard in the place of a damaged one, whose lock the caller holds; gives the lock of the new one.

    Raises `SpoolError` and OSError.
    """
    made = directory.with_name(directory.name + REBUILD)
    lock = lock_shard(made)
    try:
        try:
            new = connect(str(made / "spool.db"))
            try:
                new.executescript(
                    f"BEGIN; {schema.SCHEMA} {schema.COUNT} PRAGMA user_version = {schema.VERSION}; COMMIT"
                )
                _copy(directory, made, new)
            finally:
                new.close()
        except sqlite3.Error as error:
            raise SpoolError(f"cannot write {made / 'spool.db'}: {error}") from error
        _say_whole(directory, made)
        for path in (made / "content", made):
            sync_directory(str(path))
        set_aside(directory, SpoolError("damaged; what can be read of it was copied"))
        _put(made, directory)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _say_whole(old: Path, made: Path) -> None:
    """Write down that the new shard is whole, and which directory it is made from, whatever that is called later."""
    with open(made / _WHOLE, "w", encoding="ascii") as file:
        file.write(str(old.stat().st_ino))
        file.flush()
        os.fsync(file.fileno())


def _put(made: Path, place: Path) -> None:
    os.rename(made, place)
    sync_directory(str(place.parent))
    (place / _WHOLE).unlink()


def finish(made: Path) -> Path | None:
    """Put a new shard that a stopped repair has left in its place; gives that.

    None when it is not whole, or what it was made from is still there, to be read again. Where its place was taken
    meanwhile, it gets a number of its own. Raises OSError.
    """
    place = made.with_name(made.name.removesuffix(REBUILD))
    try:
        origin = int((made / _WHOLE).read_text("ascii")[:30])
    except (FileNotFoundError, ValueError):
        return None
    if place.exists():
        if place.stat().st_ino == origin or not place.name.startswith("shard-"):
            return None
        taken = {path.name for path in made.parent.iterdir()}
        place = next(made.with_name(name) for n in range(10_000) if (name := f"shard-{n:02}") not in taken)
    _put(made, place)
    return place


def _copy(directory: Path, made: Path, new: sqlite3.Connection) -> None:
    path = directory / "spool.db"
    if not path.exists():
        return
    old = _open(path)
    try:
        for statement in schema.HANDOVER:
            new.execute(statement)
        for table, fields in _NOTES:
            _copy_notes(old, new, table, fields)
        new.execute("BEGIN")
        of_message, of_content = _columns(old, "message", _NAMES), _columns(old, "content", ("n", "head", "body"))
        queries = (
            f"SELECT {', '.join(of_message)} FROM message WHERE {of_message[0]} = ?",
            f"SELECT {', '.join(of_content[1:])} FROM content WHERE {of_content[0]} = ?",
        )
        for id in _ids(old, directory / "content"):
            _copy_message(old, new, id, queries, directory, made)
        new.execute("COMMIT")
    finally:
        old.close()


def _open(path: Path) -> sqlite3.Connection:
    """The damaged database, as far as it is one; with its log, as long as that can be read."""
    old = sqlite3.connect(path, timeout=10.0, isolation_level=None)
    old.text_factory = lambda octets: octets.decode("utf-8", "surrogateescape")
    with contextlib.suppress(sqlite3.Error):
        # What a check would refuse may be right all the same.
        old.execute("PRAGMA cell_size_check = OFF")
        # An index or a trigger whose words were hit is to cost itself only. Who reads them first is told of it.
        old.execute("PRAGMA writable_schema = ON")
        old.execute("SELECT 1 FROM message")
    return old


def _rows(old: sqlite3.Connection, query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
    """Rows as long as they can be read."""
    try:
        yield from old.execute(query, values)
    except (sqlite3.Error, UnicodeError, OverflowError):
        return


def _ids(old: sqlite3.Connection, content: Path) -> Iterable[str]:
    """All ids that a message may have."""
    found: dict[str, None] = {}
    for query in (
        "SELECT id FROM message ORDER BY id",
        "SELECT id FROM message ORDER BY id DESC",
        # Indexes that hold all that is asked here, so that the table is not read.
        "SELECT id FROM message INDEXED BY message_oldest WHERE state = 'queued' AND claimed = 0",
        "SELECT id FROM message INDEXED BY message_deadline WHERE state = 'queued' AND claimed = 0",
        "SELECT id FROM message INDEXED BY message_aside WHERE state <> 'queued'",
        "SELECT id FROM record ORDER BY id",
        "SELECT id FROM record ORDER BY id DESC",
        "SELECT id FROM attempt ORDER BY id",
        "SELECT id FROM attempt ORDER BY id DESC",
    ):
        found |= {row[0]: None for row in _rows(old, query) if isinstance(row[0], str) and row[0].isascii()}
    if content.is_dir():
        found |= {name: None for name in os.listdir(content) if name.isascii()}
    return sorted(found)


def _columns(old: sqlite3.Connection, table: str, names: Sequence[str]) -> Sequence[str]:
    """What the columns are called there: the damage may have hit their names, and then their order says which is which.

    The names as SQL has them.
    """
    found = [str(row[1]) for row in _rows(old, f"PRAGMA table_info({table})")]
    # Columns that came later stand behind the others.
    known = found[: len(names)] if len(found) in (len(names), len(names) + len(schema.ADDED)) else names
    return ['"' + name.replace('"', '""') + '"' for name in known]


def _copy_message(
    old: sqlite3.Connection, new: sqlite3.Connection, id: str, queries: tuple[str, str], directory: Path, made: Path
) -> None:
    row = next(_rows(old, queries[0], id), None)
    if row is None or row[0] != id:
        return
    values = list(row)
    content = next(_rows(old, queries[1], values[_CONTENT]), None)
    values[_CONTENT] = None
    if content is not None:
        values[_CONTENT] = new.execute("INSERT INTO content (head, body) VALUES (?, ?)", _octets(content)).lastrowid
    else:
        values[1], values[11] = State.CORRUPT.value, "content could not be read from a damaged database"
    # Claims of a damaged database are nobody's; a column that may not be empty is not.
    values[2] = 0
    values = [0 if value is None and n != _CONTENT else value for n, value in enumerate(values)]
    marks = ", ".join("?" * len(values))
    new.execute(f"INSERT OR IGNORE INTO message ({_FIELDS}) VALUES ({marks})", [_storable(value) for value in values])
    source = directory / "content" / id
    if source.is_file() and not source.is_symlink():
        _link(source, made / "content" / id)


def _octets(content: tuple[Any, ...]) -> tuple[Any, Any]:
    head, body = (_storable(part) for part in content)
    return (b"" if head is None else head), body


def _storable(value: Any) -> Any:
    """Text that is no UTF-8 goes back as the octets that it was."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogateescape")
    return value


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        # A file system without links.
        shutil.copyfile(source, target)
        with open(target, "rb") as file:
            os.fsync(file.fileno())


def _copy_notes(old: sqlite3.Connection, new: sqlite3.Connection, table: str, fields: str) -> None:
    """Records or attempts, forwards and then backwards over the gap."""
    marks = ", ".join("?" * len(fields.split(",")))
    new.execute("BEGIN")
    for order in ("ASC", "DESC"):
        rows = _rows(old, f"SELECT {fields} FROM {table} ORDER BY id {order}")
        batch: list[list[Any]] = []
        for row in rows:
            if all(value is not None for value in row):
                batch.append([_storable(value) for value in row])
            if len(batch) >= _BATCH:
                new.executemany(f"INSERT OR IGNORE INTO {table} ({fields}) VALUES ({marks})", batch)
                batch.clear()
        new.executemany(f"INSERT OR IGNORE INTO {table} ({fields}) VALUES ({marks})", batch)
    new.execute("COMMIT")
