"""What the tests of the spool share: messages to put in, and ways to take them out again."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.mail.address import NULL_SENDER, Address
from gateway.mail.envelope import Envelope, Recipient
from gateway.mail.session import base32
from gateway.spool.draft import SPILL
from gateway.spool.spool import (
    AttemptRecord,
    Claimed,
    NewDsn,
    NewMessage,
    RecipientStatus,
    Settlement,
    Slot,
    Spool,
    SpoolError,
    SpoolOptions,
    Stored,
)
from gateway.spool.sqlite import SqliteSpool

NOW = 1_700_000_000.0
SENDER = Address("ann", "sender.test")
HEAD = b"Received: by mx.example.org\r\n"
SMALL = b"Subject: small\r\n\r\n" + b"s" * 4000
LARGE = b"Subject: large\r\n\r\n" + bytes(range(256)) * 4096
assert len(SMALL) <= SPILL < len(LARGE)

_count = itertools.count(1)


def new_id() -> str:
    """An id as Gatepost makes them; each sorts after the one before."""
    return base32(int(NOW * 1000) + next(_count), 9) + "0000" + "1"


def options(directory: Path, **values: Any) -> SpoolOptions:
    return SpoolOptions(str(directory / "spool"), **{"min_free": 0, **values})


def message(id: str = "", recipients: Sequence[str] = ("ben",), **values: Any) -> NewMessage:
    to = tuple(Recipient(Address(local, "example.test")) for local in recipients)
    id = id or new_id()
    return NewMessage(
        id, **{"envelope": Envelope(SENDER, to), "received": NOW, "head": HEAD, "record": {"id": id}, **values}
    )


def new_dsn(content: bytes = b"Subject: sorry\r\n\r\n") -> NewDsn:
    id = new_id()
    envelope = Envelope(NULL_SENDER, (Recipient(SENDER),))
    return NewDsn(NewMessage(id, envelope, NOW + 1, b"", record={"id": id, "dsn": True}), content)


async def put(spool: Spool, content: bytes = SMALL, new: NewMessage | None = None, **values: Any) -> str:
    """Commit a message as the front door does; gives its id."""
    new = new or message(**values)
    draft = spool.draft(new.id)
    try:
        for at in range(0, len(content), 65536):
            await draft.write(content[at : at + 65536])
        await spool.commit(draft, new)
    except SpoolError:
        await draft.abandon()
        raise
    return new.id


async def noticed(spool: Spool) -> None:
    """Wait until a worker's spool has seen that somebody else changed something."""
    assert isinstance(spool, SqliteSpool)
    async with asyncio.timeout(20):
        while not any(shard.stale for shard in spool._shards):
            await asyncio.sleep(0.01)


async def octets(claimed: Claimed) -> bytes:
    """The whole content."""
    return b"".join([block async for block in claimed.content.blocks()])


async def take(spool: Spool, now: float = NOW, limit: int = 1000) -> dict[str, Claimed]:
    """What can be claimed, by id."""
    return {claimed.message.id: claimed for claimed in await spool.claim(now, limit)}


def attempt(outcome: str = "delivered", time: float = NOW) -> AttemptRecord:
    return AttemptRecord(time, "ben@example.test", outcome, "250 2.0.0 ok", "127.0.0.1:24", 0.25)


def after(stored: Stored, status: RecipientStatus, due: float = 0.0) -> tuple[Slot, ...]:
    """All slots, now in `status`."""
    return tuple(
        replace(slot, status=status, due=due, attempts=slot.attempts + 1, last="a reply") for slot in stored.slots
    )


async def deliver(spool: Spool, stored: Stored) -> None:
    """Settle it as delivered to everybody."""
    await spool.settle(Settlement(stored.id, after(stored, RecipientStatus.DELIVERED), (attempt(),)))


async def defer(spool: Spool, stored: Stored, due: float) -> None:
    """Settle it as put off for everybody."""
    await spool.settle(Settlement(stored.id, after(stored, RecipientStatus.DEFERRED, due), (attempt("deferred"),)))


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
