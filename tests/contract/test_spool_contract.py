"""The contract of spools, kept by the one of SQLite."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.kit.contracts.spool import SpoolContract, SpoolPlace
from gateway.spool.spool import Spool
from gateway.spool.sqlite import SqliteSpool, open_all
from tests.spool.rig import noticed, options


class SqlitePlace:
    """Implements `SpoolPlace` in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: list[Spool] = []

    async def open(self, *, record: bool = True) -> Spool:
        await self.close()
        self._open.append(await SqliteSpool.open(options(self._directory, record=record)))
        return self._open[-1]

    async def view(self) -> Spool:
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
