"""Opening the shared spool: a worker's, a guest's, an operator's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import psycopg

from gateway.ops import log
from gateway.spool.notes import Notes, open_notes
from gateway.spool.postgres import tables
from gateway.spool.postgres.database import Database, Unconnected, connect
from gateway.spool.postgres.desk import Lines
from gateway.spool.postgres.lease import Lease
from gateway.spool.postgres.options import PostgresOptions
from gateway.spool.postgres.spool import PostgresSpool
from gateway.spool.postgres.writer import PostgresWriter
from gateway.spool.recovery import lock_shard, make_root
from gateway.spool.shard import OnStep, no_step
from gateway.spool.spool import SpoolError, SpoolOptions, Step

_log = log.get()
_PLACE: Final = "place.id"


async def open_worker(options: SpoolOptions, *, worker: int, on_step: OnStep) -> PostgresSpool:
    """A worker's. Raises `SpoolError`."""
    server = _server(options)
    root = Path(options.path)
    directory = root / f"drafts-{worker:02}"
    try:
        make_root(root)
        place = f"{_place(root)}/{worker}"
        lock = lock_shard(directory)
    except OSError as error:
        raise SpoolError(f"cannot use spool directory {root}: {error.strerror}") from error
    try:
        _clear(directory / "content")
        name = _name()
        heard: list[Callable[[str], None]] = []
        lease = Lease(server, place, f"{name} writer", lambda said: heard[0](said) if heard else None)
        executor = ThreadPoolExecutor(4, thread_name_prefix="spool-file")
        spool = PostgresSpool(
            options, open_notes(options, make=True), executor, on_step, str(directory / "content"), lease
        )
        heard.append(spool.heard)
        database = await _connected(lease.open, server)
        _check_durable(database)
        _begin(spool, database, lease.open, server, name)
        spool.release_lock = partial(os.close, lock)
        await _recover(spool, lease, on_step)
        return spool
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(lock)
        raise


def _check_durable(database: Database) -> None:
    (fsync,) = database.execute("SHOW fsync").fetchone() or ("",)
    if fsync != "on":
        _log.error("spool.not_durable", setting="fsync", value=fsync)


async def _recover(spool: PostgresSpool, lease: Lease, on_step: OnStep) -> None:
    """Free what our predecessor had in hand: the lock on our directory says that it is dead."""

    def step(db: Database) -> int:
        freed = lease.succeed(db)
        on_step(Step.RECOVERY_BEGUN)
        return freed

    try:
        released = await spool.lines.writer.submit(step, after=partial(on_step, Step.RECOVERY_DONE))
    except SpoolError:
        await spool.close()
        raise
    if released:
        _log.info("spool.recovered", shard="postgres", released=released, orphans=0, corrupt=0)


async def open_guest(options: SpoolOptions) -> PostgresSpool:
    """For decision records only. Raises `SpoolError`."""
    try:
        make_root(Path(options.path))
    except OSError as error:
        raise SpoolError(f"cannot use spool directory {options.path}: {error.strerror}") from error
    return await _open(options, open_notes(options, make=True), make=True)


async def open_view(options: SpoolOptions) -> PostgresSpool:
    """An operator's view. Raises `SpoolError`."""
    return await _open(options, open_notes(options, make=False), make=False)


async def _open(options: SpoolOptions, notes: Notes, *, make: bool) -> PostgresSpool:
    server = _server(options)
    name = _name()
    opened = partial(plain, server, f"{name} writer", make=make)
    database = await _connected(opened, server)
    if make:
        _check_durable(database)
    executor = ThreadPoolExecutor(1, thread_name_prefix="spool-file")
    spool = PostgresSpool(options, notes, executor, no_step, options.path, None)
    _begin(spool, database, opened, server, name)
    return spool


def plain(server: PostgresOptions, name: str, *, make: bool) -> Database:
    """A connection to a spool that is there, or is made now. Raises `SpoolError`, psycopg.Error."""
    db = connect(server, name)
    try:
        if make:
            tables.make(db, server.schema)
        elif not tables.exist(db, server.schema):
            raise SpoolError(f"no spool in {server.server}, schema {server.schema}")
    except BaseException:
        db.close()
        raise
    return db


def _begin(
    spool: PostgresSpool, database: Database, open: Callable[[], Database], server: PostgresOptions, name: str
) -> None:
    """Give it its connections: the one that there is, and two that are made when they are needed."""
    writer = PostgresWriter(open, database, name="spool-postgres", idle=spool.upkeep, back=spool.back)
    bulk, reader = (
        PostgresWriter(partial(connect, server, f"{name} {kind}"), Unconnected(), name=f"spool-{kind}")
        for kind in ("bulk", "reader")
    )
    spool.begin(Lines(writer, bulk, reader, f"{name} bulk"))


async def _connected(open: Callable[[], Database], server: PostgresOptions) -> Database:
    try:
        return await asyncio.to_thread(open)
    except psycopg.Error as error:
        raise SpoolError(f"spool.postgres: cannot use {server.server}: {' '.join(str(error).split())}") from error


def _server(options: SpoolOptions) -> PostgresOptions:
    if options.postgres is None:
        raise ValueError("no database is named")
    return options.postgres


def _name() -> str:
    """What the server's lists show, of one process alone."""
    return f"gatepost {secrets.token_hex(6)}"


def _place(root: Path) -> str:
    """What this directory is called, wherever it is mounted; made when it has no name. Raises OSError."""
    path = root / _PLACE
    try:
        # One that has its name needs no room for it, on a disk that is full.
        if not path.exists():
            draft = path.with_name(f"{_PLACE}.{os.getpid()}")
            draft.write_text(secrets.token_hex(16))
            try:
                with contextlib.suppress(FileExistsError):
                    os.link(draft, path)
            finally:
                draft.unlink()
        return path.read_text()[:32]
    except UnicodeDecodeError as error:
        raise OSError(0, f"{path} is none of ours") from error


def _clear(content: Path) -> None:
    """Remove drafts that never became messages. Raises OSError."""
    for path in content.iterdir():
        path.unlink()
