"""Opening a shard: what a restart finds on disk is put in order before the first step.

*Promises*: recovery can be stopped at any instant and begun again. It removes only drafts that nobody answered 250
to. What it cannot make sense of is kept: a message as `State.CORRUPT`, a whole shard under another name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.ops import log, metrics
from gateway.spool import schema
from gateway.spool.draft import sync_directory
from gateway.spool.spool import SpoolError, State, Step
from gateway.spool.writer import connect

_log = log.get()
_TRIES: Final = 8
_TRY_SECONDS: Final = 0.05
_LOST: Final = "content is missing or of the wrong size"


class InUse(SpoolError):
    """Another process has the shard."""


class Damaged(SpoolError):
    """The shard's database is none, or not the one that belongs to its content."""


def make_root(root: Path) -> None:
    """Make the spool's directory, with a name that survives a power cut. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    device = root.stat().st_dev
    for directory in (root, *root.absolute().parents):
        if directory.stat().st_dev != device:
            break
        with contextlib.suppress(PermissionError):
            sync_directory(str(directory))


def lock_shard(directory: Path) -> int:
    """Make the shard's directory if need be, and take its lock. Gives the file descriptor that holds it.

    Raises `SpoolError` when somebody else has it, and OSError.
    """
    (directory / "content").mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _flock(lock)
        sync_directory(str(directory))
        sync_directory(str(directory.parent))
    except BlockingIOError as error:
        os.close(lock)
        raise InUse(f"{directory} is in use by another Gatepost") from error
    except BaseException:
        os.close(lock)
        raise
    return lock


def _flock(lock: int) -> None:
    """Raises BlockingIOError. An operator's command may have it for a moment, to see whether somebody else does."""
    for last in (*[False] * (_TRIES - 1), True):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if last:
                raise
        time.sleep(_TRY_SECONDS)  # noqa: TID251 - opening a shard blocks anyway


def open_database(directory: Path, on_step: Callable[[Step], None]) -> sqlite3.Connection:
    """The shard's database, made or recovered. The caller holds the lock. Raises `SpoolError` and OSError.

    `Damaged` says that the shard has to be set aside.
    """
    path = directory / "spool.db"
    try:
        database = connect(str(path))
        try:
            _recover(directory, database, on_step)
        except BaseException:
            # Closed here and now: SQLite removes the log by its name, which soon may be another database's.
            database.close()
            raise
    except sqlite3.OperationalError as error:
        raise SpoolError(f"cannot open {path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise Damaged(f"cannot open {path}: {error}") from error
    return database


def set_aside(directory: Path, error: SpoolError) -> None:
    """Keep a damaged shard under another name, so that mail goes on in a new one. Raises OSError."""
    now = time.time_ns() // 1_000_000_000
    aside = directory.with_name(f"{directory.name}.corrupt-{now}")
    while aside.exists():
        now += 1
        aside = directory.with_name(f"{directory.name}.corrupt-{now}")
    os.rename(directory, aside)
    sync_directory(str(directory.parent))
    metrics.SPOOL_ERRORS.labels("shard").inc()
    _log.error("spool.shard_corrupt", shard=directory.name, kept_as=aside.name, error=str(error))


def _recover(directory: Path, database: sqlite3.Connection, on_step: Callable[[Step], None]) -> None:
    """Let go of all claims, find content that is gone, remove drafts that never became messages."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version not in (0, schema.VERSION):
        raise SpoolError(f"{directory} was written by another version of Gatepost (schema {version})")
    content = directory / "content"
    made = not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'message'").fetchone()
    if made and next(content.iterdir(), None) is not None:
        raise Damaged(f"{directory} holds content, but its database is empty")
    made_known = f"PRAGMA user_version = {schema.VERSION}"
    known = [row[1] for row in database.execute("PRAGMA table_info(message)")]
    added = schema.additions(known) if known else ""
    database.executescript(f"BEGIN IMMEDIATE; {added} {schema.SCHEMA} {schema.COUNT} {made_known}; COMMIT")
    database.execute("BEGIN IMMEDIATE")
    released = database.execute("UPDATE message SET claimed = 0 WHERE claimed = 1").rowcount
    on_step(Step.RECOVERY_BEGUN)
    lost, orphans = _compare(content, database)
    for id in lost:
        _log.error("message.corrupt", id=id, reason=_LOST)
    database.executemany(
        "UPDATE message SET state = ?, reason = ? WHERE id = ?", [(State.CORRUPT, _LOST, id) for id in lost]
    )
    for name in orphans:
        # Before anybody else may write: a message that is entered by hand or handed over may be about to give its file
        # the name that one from an earlier try has here.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(content / name)
    database.execute("COMMIT")
    on_step(Step.RECOVERY_DONE)
    if released or orphans or lost:
        _log.info("spool.recovered", shard=directory.name, released=released, orphans=len(orphans), corrupt=len(lost))


def _compare(content: Path, database: sqlite3.Connection) -> tuple[list[str], list[str]]:
    """Ids of messages whose content is not all there, and names of files that belong to no message."""
    # What the file holds: the message without its head, plus what the head stands in for.
    wanted: dict[str, int | None] = {}
    lost = []
    for id, state, file, size in database.execute(
        "SELECT m.id, m.state, m.file, m.size - length(c.head) + m.skip FROM message m"
        " LEFT JOIN content c ON c.n = m.content WHERE m.file OR c.n IS NULL"
    ):
        if file:
            wanted[id] = size
        if size is None and state != State.CORRUPT:
            lost.append(id)
        elif file and state == State.CORRUPT:
            wanted[id] = None
    orphans = []
    with os.scandir(content) as entries:
        for entry in entries:
            if entry.name in wanted:
                size = wanted.pop(entry.name)
                if size is not None and entry.stat().st_size != size:
                    lost.append(entry.name)
            elif entry.is_file(follow_symlinks=False):
                orphans.append(entry.name)
    lost += [id for id, size in wanted.items() if size is not None]
    return lost, orphans
