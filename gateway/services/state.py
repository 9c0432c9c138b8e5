"""Small shared state on one machine: rates, verified recipients, greylists. SQLite, shared by all workers.

Every access happens in one thread of its own, which takes all waiting calls in one transaction, so no worker's event
loop ever waits for the file. `put_new` and `take` are atomic between processes: the transaction holds the write
lock from its beginning. Losing the last moments in a power cut costs a counter and no mail, so nothing is synced at
each commit.

*Promises*: the file, the calls waiting and the work of one sweep are bounded.

*Fails by*: `StateError`; nothing of the failed step is stored.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from gateway.sdk.services import Clock, State, StateError, Taken

KEY_CHARACTERS: Final = 512
VALUE_OCTETS: Final = 65_536
MEMBER_CHARACTERS: Final = 2_048
WAITING: Final = 10_000
BATCH: Final = 256
SWEEP_ROWS: Final = 500
SWEEP_SECONDS: Final = 60.0
BUSY_MS: Final = 5_000
PAGE_OCTETS: Final = 4_096
MAX_OCTETS: Final = 1 << 30

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entry (key TEXT PRIMARY KEY, value BLOB NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entry_expires ON entry (expires);
CREATE TABLE IF NOT EXISTS bucket (
    key TEXT PRIMARY KEY, tokens REAL NOT NULL, updated REAL NOT NULL, expires REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS bucket_expires ON bucket (expires);
CREATE TABLE IF NOT EXISTS tally (
    key TEXT, member TEXT, n INTEGER NOT NULL, expires REAL NOT NULL, PRIMARY KEY (key, member)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tally_expires ON tally (expires);
"""

_T = TypeVar("_T")
_Step = Callable[[sqlite3.Connection, float], Any]


@dataclass(slots=True)
class _Call:
    step: _Step
    writes: bool
    future: asyncio.Future[Any]
    result: Any = None
    error: StateError | None = None


def check_key(key: str) -> None:
    """Raise ValueError for a key that is empty or too long: its maker must shorten or hash what a client chose."""
    if not 0 < len(key) <= KEY_CHARACTERS:
        raise ValueError(f"a key has 1 to {KEY_CHARACTERS} characters")
    key.encode()  # A lone surrogate is refused here, by a ValueError too.


def check_member(key: str, member: str, ttl: float) -> None:
    """Raise ValueError for what cannot be counted."""
    check_key(key)
    if not 0 < len(member) <= MEMBER_CHARACTERS:
        raise ValueError(f"a member has 1 to {MEMBER_CHARACTERS} characters")
    member.encode()
    if ttl <= 0:
        raise ValueError("a time to live is over 0 seconds")


def check_value(key: str, value: bytes, ttl: float) -> None:
    """Raise ValueError for what cannot be stored."""
    check_key(key)
    if len(value) > VALUE_OCTETS:
        raise ValueError(f"a value has at most {VALUE_OCTETS} octets")
    if ttl <= 0:
        raise ValueError("a time to live is over 0 seconds")


def check_bucket(capacity: float, per_second: float, cost: float) -> None:
    """Raise ValueError for a bucket that cannot be."""
    if capacity <= 0 or per_second <= 0 or cost < 0:
        raise ValueError("a bucket needs a capacity and a rate over 0, and costs are not negative")


def refill(tokens: float, updated: float, now: float, capacity: float, per_second: float) -> float:
    """Tokens in a bucket that held `tokens` at `updated`. A clock that went back refills nothing."""
    return min(capacity, tokens + max(0.0, now - updated) * per_second)


class SqliteState:
    """`gateway.sdk.State` in ``state.db`` of a directory. Call `start` first and `close` at the end."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._path = directory / "state.db"
        self._clock = clock
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._swept = clock.now()

    async def start(self) -> None:
        """Open the file, creating it where needed; raises StateError saying what is wrong with which file."""
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="state", daemon=True)
        self._thread.start()
        try:
            await asyncio.wrap_future(opened)
        except StateError:
            self._thread = None
            raise

    async def close(self) -> None:
        """Finish the calls that wait and close the file."""
        if self._thread is not None:
            thread, self._thread = self._thread, None
            await asyncio.to_thread(self._stop, thread)

    def _stop(self, thread: threading.Thread) -> None:
        self._calls.put(None)
        thread.join()

    @property
    def exact(self) -> State:
        return self

    async def get(self, key: str) -> bytes | None:
        """The value, or None when there is none or its time is over."""
        check_key(key)
        return await self._call(lambda db, now: _get(db, key, now), writes=False)

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        """Store for `ttl` seconds."""
        check_value(key, value, ttl)
        await self._call(lambda db, now: _put(db, key, value, now + ttl))

    async def put_new(self, key: str, value: bytes, ttl: float) -> bytes | None:
        """Store unless there is a value; give the value that was there, None when ours was stored."""
        check_value(key, value, ttl)

        def step(db: sqlite3.Connection, now: float) -> bytes | None:
            there = _get(db, key, now)
            if there is None:
                _put(db, key, value, now + ttl)
            return there

        return await self._call(step)

    async def delete(self, key: str) -> None:
        """Forget the key."""
        check_key(key)
        await self._call(lambda db, now: db.execute("DELETE FROM entry WHERE key = ?", (key,)) and None)

    async def forget(self, key: str) -> None:
        """Forget all that there is under the key: value, bucket and tally."""
        check_key(key)

        def step(db: sqlite3.Connection, now: float) -> None:
            for table in ("entry", "bucket", "tally"):
                db.execute(f"DELETE FROM {table} WHERE key = ?", (key,))

        await self._call(step)

    async def take(self, key: str, *, capacity: float, per_second: float, cost: float = 1.0) -> Taken:
        """Take `cost` tokens from the bucket `key`, all or none, in one atomic step."""
        check_key(key)
        check_bucket(capacity, per_second, cost)
        return await self._call(lambda db, now: _take(db, key, capacity, per_second, cost, now), writes=cost > 0)

    async def count(self, key: str, member: str, ttl: float, by: int = 1) -> int:
        """Add `by` to the count of `member` in the tally `key`; gives the new count."""
        check_member(key, member, ttl)
        return await self._call(lambda db, now: _count(db, key, member, by, now, ttl))

    async def tally(self, key: str, limit: int = 10_000) -> dict[str, int]:
        """The counts of a tally, at most `limit` members, the largest counts first."""
        check_key(key)
        query = "SELECT member, n FROM tally WHERE key = ? AND expires > ? ORDER BY n DESC, member LIMIT ?"
        return await self._call(lambda db, now: dict(db.execute(query, (key, now, limit)).fetchall()), writes=False)

    async def _call(self, step: Callable[[sqlite3.Connection, float], _T], *, writes: bool = True) -> _T:
        if self._thread is None:
            raise StateError("the state store is closed")
        if self._calls.qsize() >= WAITING:
            raise StateError("the state store is overloaded")
        call = _Call(step, writes, asyncio.get_running_loop().create_future())
        self._calls.put(call)
        result: _T = await call.future
        return result

    def _run(self, opened: Future[None]) -> None:
        """The thread: open, then one transaction per wake-up until told to stop."""
        opened.set_running_or_notify_cancel()
        try:
            db = self._open()
        except (sqlite3.Error, OSError) as error:
            opened.set_exception(StateError(f"{self._path}: {error}"))
            return
        opened.set_result(None)
        more = True
        while more:
            calls = [self._calls.get()]
            while len(calls) < BATCH and not self._calls.empty():
                calls.append(self._calls.get())
            more = None not in calls
            # A call whose caller has gone is not begun.
            begun = [c for c in calls if c is not None and not c.future.cancelled()]
            if begun:
                self._serve(db, begun)
                # One wake-up for all of them: those of one worker share its event loop.
                begun[0].future.get_loop().call_soon_threadsafe(_answer, begun)
        db.close()

    def _serve(self, db: sqlite3.Connection, calls: list[_Call]) -> None:
        now = self._clock.now()
        try:
            writes = any(call.writes for call in calls)
            if writes:
                if abs(now - self._swept) >= SWEEP_SECONDS:
                    self._sweep(db, now)
                db.execute("BEGIN IMMEDIATE")
            for call in calls:
                call.result = call.step(db, now)
            if writes:
                db.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - whatever it was, the callers must hear of it and the thread goes on
            if db.in_transaction:
                db.rollback()
            for call in calls:
                call.error = StateError(f"{self._path.name}: {error}")

    def _sweep(self, db: sqlite3.Connection, now: float) -> None:
        """Remove a bounded number of entries whose time is over; when there are more, go on at the next call.

        In transactions of its own, before the calls': it must succeed also when the file is full and they cannot.
        """
        removed = 0
        for table, key in (("entry", "key"), ("bucket", "key"), ("tally", "key, member")):
            cursor = db.execute(
                f"DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE expires <= ? LIMIT ?)",
                (now, SWEEP_ROWS),
            )
            removed = max(removed, cursor.rowcount)
        if removed < SWEEP_ROWS:
            self._swept = now

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return _prepare(str(self._path))


def _answer(calls: list[_Call]) -> None:
    """On the event loop: tell those who still wait."""
    for call in calls:
        if call.future.done():
            continue
        if call.error is not None:
            call.future.set_exception(call.error)
        else:
            call.future.set_result(call.result)


class MemoryState(SqliteState):
    """The same in memory, for one process: nothing survives a restart."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(Path("memory"), clock)

    def _open(self) -> sqlite3.Connection:
        return _prepare(":memory:")


def _prepare(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_MS / 1000)
    db.execute(f"PRAGMA page_size = {PAGE_OCTETS}")
    # Workers that start together race for the change to WAL, and there SQLite does not always wait by itself.
    for _ in range(BUSY_MS // 100):
        try:
            db.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            threading.Event().wait(0.1)
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(f"PRAGMA max_page_count = {MAX_OCTETS // PAGE_OCTETS}")
    db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
    return db


def _get(db: sqlite3.Connection, key: str, now: float) -> bytes | None:
    row = db.execute("SELECT value FROM entry WHERE key = ? AND expires > ?", (key, now)).fetchone()
    return bytes(row[0]) if row else None


def _put(db: sqlite3.Connection, key: str, value: bytes, expires: float) -> None:
    db.execute("INSERT OR REPLACE INTO entry (key, value, expires) VALUES (?, ?, ?)", (key, value, expires))


def _count(db: sqlite3.Connection, key: str, member: str, by: int, now: float, ttl: float) -> int:
    (expires,) = db.execute("SELECT max(expires) FROM tally WHERE key = ?", (key,)).fetchone()
    if expires is None or expires <= now:
        db.execute("DELETE FROM tally WHERE key = ?", (key,))
        expires = now + ttl
    query = (
        "INSERT INTO tally (key, member, n, expires) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (key, member) DO UPDATE SET n = n + excluded.n RETURNING n"
    )
    (n,) = db.execute(query, (key, member, by, expires)).fetchone()
    return int(n)


def _take(db: sqlite3.Connection, key: str, capacity: float, per_second: float, cost: float, now: float) -> Taken:
    row = db.execute("SELECT tokens, updated FROM bucket WHERE key = ?", (key,)).fetchone()
    tokens = refill(row[0], row[1], now, capacity, per_second) if row else capacity
    # Where the clock went back, who only looks must note it, too: nothing would come in until the old time is reached.
    if not cost and not (row and row[1] > now):
        return Taken(True, tokens, 0.0)
    # Refilled tokens are sums of fractions; a hair less than `cost` is enough.
    allowed = tokens + 1e-9 >= cost
    if allowed:
        tokens = max(0.0, tokens - cost)
    full = now + (capacity - tokens) / per_second
    db.execute(
        "INSERT OR REPLACE INTO bucket (key, tokens, updated, expires) VALUES (?, ?, ?, ?)", (key, tokens, now, full)
    )
    return Taken(allowed, tokens, 0.0 if allowed else (cost - tokens) / per_second)
