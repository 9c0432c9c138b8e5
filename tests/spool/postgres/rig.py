"""What the tests of the shared spool share: one server, a schema for each test."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway.spool.postgres import opening
from gateway.spool.postgres.spool import PostgresSpool
from gateway.spool.shard import no_step
from gateway.spool.spool import SpoolOptions
from tests.support.postgres_server import PostgresServer

_TABLES = ("message", "content", "chunk", "record", "attempt", "kept_by", "worker", "suspension")


class Schemas:
    """Spools in one server."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self._numbers = itertools.count(1)
        self._made = False

    @classmethod
    @contextmanager
    def served(cls, *settings: str) -> Iterator[Schemas]:
        """With a server of its own inside the block."""
        server = PostgresServer(*settings)
        try:
            yield cls(server)
        finally:
            server.stop()

    def new(self, directory: Path, **values: Any) -> SpoolOptions:
        """A spool that is empty. `values` are of its options, or of its server's."""
        lease = {name: values.pop(name) for name in ("timeout", "lease") if name in values}
        postgres = self.server.options(f"spool_{next(self._numbers)}", **lease)
        return SpoolOptions(str(directory / "spool"), **{"min_free": 0, "postgres": postgres, **values})

    def emptied(self, directory: Path) -> SpoolOptions:
        """The same spool again and again, with nothing in it: sooner had than a new one."""
        postgres = self.server.options("emptied")
        if self._made:
            emptied = "; ".join(f"DELETE FROM {name}" for name in _TABLES)
            self.server.query(emptied, schema=postgres.schema)
        self._made = True
        return SpoolOptions(str(directory / "spool"), min_free=0, postgres=postgres)

    def query(self, options: SpoolOptions, sql: str, *values: Any) -> list[Any]:
        """What another session sees or does there."""
        assert options.postgres is not None
        return self.server.query(sql, *values, schema=options.postgres.schema)


async def opened(options: SpoolOptions, worker: int = 0) -> PostgresSpool:
    return await opening.open_worker(options, worker=worker, on_step=no_step)


async def noticed_there(spool: PostgresSpool) -> None:
    """Wait until a worker's spool has heard that somebody else changed something."""
    await until(lambda: spool._stale)


async def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)
