"""The contract of spools, kept by the one of SQLite and the one of PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.kit.contracts.spool import SpoolContract, SpoolPlace
from gateway.spool.hands import OperatedSpool
from gateway.spool.postgres import opening
from gateway.spool.postgres.spool import PostgresSpool
from gateway.spool.shard import no_step
from gateway.spool.sqlite import SqliteSpool, open_all
from tests.spool.postgres.rig import Schemas, noticed_there
from tests.spool.rig import noticed, options


class SqlitePlace:
    """Implements `SpoolPlace` in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: list[SqliteSpool] = []

    async def open(self, *, record: bool = True) -> OperatedSpool:
        await self.close()
        self._open.append(await SqliteSpool.open(options(self._directory, record=record)))
        return self._open[-1]

    async def view(self) -> OperatedSpool:
        self._open.append(await open_all(options(self._directory)))
        return self._open[-1]

    async def noticed(self) -> None:
        await noticed(self._open[0])

    async def close(self) -> None:
        while self._open:
            await self._open.pop().close()


class TestSqliteSpool(SpoolContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> SpoolPlace:
        return SqlitePlace(tmp_path)


class PostgresPlace:
    """Implements `SpoolPlace` in a schema of its own."""

    def __init__(self, schemas: Schemas, directory: Path) -> None:
        self._options = schemas.emptied(directory)
        self._open: list[PostgresSpool] = []

    async def open(self, *, record: bool = True) -> OperatedSpool:
        await self.close()
        options = replace(self._options, record=record)
        self._open.append(await opening.open_worker(options, worker=0, on_step=no_step))
        return self._open[-1]

    async def view(self) -> OperatedSpool:
        self._open.append(await opening.open_view(self._options))
        return self._open[-1]

    async def noticed(self) -> None:
        await noticed_there(self._open[0])

    async def close(self) -> None:
        while self._open:
            await self._open.pop().close()


class TestPostgresSpool(SpoolContract):
    @pytest.fixture(scope="class")
    @classmethod
    def schemas(cls) -> Iterator[Schemas]:
        # Whether the server syncs is not seen from here; the crash suite is about that.
        with Schemas.served("fsync=off") as schemas:
            yield schemas

    @pytest.fixture
    def place(self, schemas: Schemas, tmp_path: Path) -> SpoolPlace:
        return PostgresPlace(schemas, tmp_path)
