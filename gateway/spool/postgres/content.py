"""Content in PostgreSQL: in one row up to 256 KiB, else a head and then chunk by chunk."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Executor

from gateway.spool.draft import StoredContent
from gateway.spool.postgres.writer import PostgresWriter
from gateway.spool.writer import Database


class PostgresContent(StoredContent):
    """The content number `n`, read over a connection of its own. `chunked` says that there is more than one row."""

    __slots__ = ("_chunked", "_n", "_reader")

    def __init__(
        self,
        reader: PostgresWriter,
        broken: Callable[[str], Awaitable[None]],
        n: int | None,
        size: int,
        eight_bit: bool,
        executor: Executor,
        *,
        chunked: bool,
    ) -> None:
        super().__init__(self._found, broken, "", 0, size, eight_bit, executor)
        self._reader = reader
        self._n = n
        self._chunked = chunked

    async def _found(self) -> tuple[bytes, bytes | None] | None:
        def step(db: Database) -> tuple[bytes, bytes | None] | None:
            found: tuple[bytes, bytes | None] | None = db.execute(
                "SELECT head, body FROM content WHERE n = ?", (self._n,)
            ).fetchone()
            return found

        return await self._reader.read(step)

    async def _parts(self) -> AsyncGenerator[bytes, None]:
        found = await self._found()
        if found is None:
            return
        head, body = found
        if head:
            yield head
        if body:
            yield body
        at = 0
        while self._chunked:
            data = await self._reader.read(lambda db, at=at: self._chunk(db, at))  # type: ignore[misc]
            if data is None:
                return
            yield data
            at += 1

    def _chunk(self, db: Database, at: int) -> bytes | None:
        found = db.execute("SELECT data FROM chunk WHERE n = ? AND at = ?", (self._n, at)).fetchone()
        return None if found is None else bytes(found[0])
