"""The places that a spool may be in, alike for the tests that mean both: a directory, and a PostgreSQL server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import pytest

from gateway.spool.hands import OperatedSpool
from gateway.spool.postgres import lease
from gateway.spool.postgres.bell import Ring
from gateway.spool.postgres.spool import PostgresSpool
from gateway.spool.spool import SpoolOptions
from gateway.spool.sqlite import SqliteSpool
from tests.spool import rig
from tests.spool.postgres.rig import Schemas, noticed_there


class Place(Protocol):
    """A spool's place, empty at first."""

    options: SpoolOptions

    def query(self, sql: str, *values: Any) -> list[Any]:
        """What another connection sees or does there; values stand for ``?``."""

    def contents(self) -> int:
        """How many contents there are, and files or chunks of large ones."""

    def heed(self, spool: OperatedSpool) -> None:
        """Have a worker's spool know that somebody changed something, which it sees by itself before long."""

    async def noticed(self, spool: OperatedSpool) -> None:
        """Wait until it does."""

    async def kill(self, spool: OperatedSpool) -> None:
        """End a worker's spool as if its process had been killed a while ago."""

    def other(self) -> Place:
        """Another place of the same kind."""


class SqlitePlace:
    """Implements `Place` in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.options = rig.options(directory)

    def query(self, sql: str, *values: Any) -> list[Any]:
        return rig.query(self.options, sql, *values)

    def contents(self) -> int:
        (rows,) = self.query("SELECT count(*) FROM content")
        return int(rows[0]) + len(rig.content_files(self.options))

    def heed(self, spool: OperatedSpool) -> None:
        assert isinstance(spool, SqliteSpool)
        for shard in spool._shards:
            shard.next_due, shard.stale = 0.0, True

    async def noticed(self, spool: OperatedSpool) -> None:
        await rig.noticed(spool)

    async def kill(self, spool: OperatedSpool) -> None:
        await spool.close()
        self.query("UPDATE message SET claimed = 1")

    def other(self) -> Place:
        return SqlitePlace(self._directory / "other")


class PostgresPlace:
    """Implements `Place` in a schema."""

    def __init__(self, schemas: Schemas, directory: Path, options: SpoolOptions) -> None:
        self._schemas = schemas
        self._directory = directory
        self.options = options

    def query(self, sql: str, *values: Any) -> list[Any]:
        text = sql.replace("%", "%%").replace("?", "%s") if values else sql
        return self._schemas.query(self.options, text, *values)

    def contents(self) -> int:
        ((count,),) = self.query("SELECT (SELECT count(*) FROM content) + (SELECT count(*) FROM chunk)")
        return int(count)

    def heed(self, spool: OperatedSpool) -> None:
        assert isinstance(spool, PostgresSpool)
        spool._hear(Ring.CHANGED)

    async def noticed(self, spool: OperatedSpool) -> None:
        assert isinstance(spool, PostgresSpool)
        await noticed_there(spool)

    async def kill(self, spool: OperatedSpool) -> None:
        assert isinstance(spool, PostgresSpool)
        # Without its lease it does not say goodbye.
        spool._lease, claims = None, self.query("SELECT id, claimed FROM message WHERE claimed <> 0")
        await spool.close()
        assert claims == self.query("SELECT id, claimed FROM message WHERE claimed <> 0")
        self.query("UPDATE worker SET seen = clock_timestamp() - interval '1 hour'")

    def other(self) -> Place:
        directory = self._directory / "other"
        return PostgresPlace(self._schemas, directory, self._schemas.new(directory))


@pytest.fixture(scope="session")
def schemas() -> Iterator[Schemas]:
    """A server for all tests of a process that mean both places."""
    # Whether it syncs is not seen from here; the crash suite is about that.
    with Schemas.served("fsync=off") as schemas:
        yield schemas


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def places(request: pytest.FixtureRequest) -> Callable[[Path], Place]:
    """Makes places of the one kind and then of the other; in a server, each is the last one emptied."""
    if request.param == "sqlite":
        return SqlitePlace
    schemas: Schemas = request.getfixturevalue("schemas")
    return lambda directory: PostgresPlace(schemas, directory, schemas.emptied(directory))


def spool_section(options: SpoolOptions) -> dict[str, Any]:
    """The section of a configuration that asks for it."""
    if (postgres := options.postgres) is None:
        return {"path": options.path}
    url = str(postgres.server).replace("//", f"//{postgres.server.user}@", 1)
    return {"path": options.path, "postgres": {"url": url, "namespace": postgres.schema}}


ON_FILES: Final = pytest.mark.parametrize("places", ["sqlite"], indirect=True)
"""For tests that say nothing about the spool: one kind of place is enough."""


@pytest.fixture
def place(places: Callable[[Path], Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    # That the server has just started would be a reason for nobody to be dead.
    monkeypatch.setattr(lease, "GRACE_SECONDS", 0.0)
    return places(tmp_path)
