"""What the tests of the spool share: the contract's mail, and looks into the files of the real one."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

from gateway.kit.contracts.stock import (
    HEAD,
    LARGE,
    NOW,
    SENDER,
    SMALL,
    after,
    attempt,
    defer,
    deliver,
    hasten,
    message,
    new_dsn,
    new_id,
    octets,
    put,
    take,
)
from gateway.spool.spool import Spool, SpoolOptions
from gateway.spool.sqlite import SqliteSpool

__all__ = [
    "HEAD",
    "LARGE",
    "NOW",
    "SENDER",
    "SMALL",
    "after",
    "attempt",
    "content_files",
    "database",
    "defer",
    "deliver",
    "hasten",
    "message",
    "new_dsn",
    "new_id",
    "noticed",
    "octets",
    "options",
    "put",
    "query",
    "take",
]


def options(directory: Path, **values: Any) -> SpoolOptions:
    return SpoolOptions(str(directory / "spool"), **{"min_free": 0, **values})


async def noticed(spool: Spool) -> None:
    """Wait until a worker's spool has seen that somebody else changed something."""
    assert isinstance(spool, SqliteSpool)
    async with asyncio.timeout(20):
        while not any(shard.stale for shard in spool._shards):
            await asyncio.sleep(0.01)


def database(spool: SpoolOptions, shard: int = 0) -> Path:
    return Path(spool.path) / f"shard-{shard:02}" / "spool.db"


def content_files(spool: SpoolOptions, shard: int = 0) -> set[str]:
    return {path.name for path in (Path(spool.path) / f"shard-{shard:02}" / "content").iterdir()}


def query(spool: SpoolOptions, sql: str, *values: Any, shard: int = 0) -> list[Any]:
    """What another connection sees or does, as an operator's ``sqlite3`` would."""
    connection = sqlite3.connect(database(spool, shard), isolation_level=None)
    try:
        return connection.execute(sql, values).fetchall()
    finally:
        connection.close()
