"""Opening the spool that a configuration asks for: SQLite shards on this machine, or what several machines share."""

from __future__ import annotations

from gateway.spool import sqlite
from gateway.spool.hands import OperatedSpool
from gateway.spool.shard import OnStep, no_step
from gateway.spool.spool import SpoolOptions


async def open_worker(
    options: SpoolOptions, *, worker: int = 0, workers: int = 1, on_step: OnStep = no_step
) -> OperatedSpool:
    """One worker's, recovered. Raises `SpoolError`."""
    if options.postgres is not None:
        # Its library takes a while to import, and most gateways have none.
        from gateway.spool.postgres import opening

        return await opening.open_worker(options, worker=worker, on_step=on_step)
    return await sqlite.SqliteSpool.open(options, worker=worker, workers=workers, on_step=on_step)


async def open_guest(options: SpoolOptions) -> OperatedSpool:
    """For decision records only, of a process that judges for another MTA and keeps no mail. Raises `SpoolError`."""
    if options.postgres is not None:
        from gateway.spool.postgres import opening

        return await opening.open_guest(options)
    return await sqlite.SqliteSpool.open_guest(options)


async def open_all(options: SpoolOptions, on_step: OnStep = no_step) -> OperatedSpool:
    """The operator's view of all mail, whether or not gateways are running. Raises `SpoolError`."""
    if options.postgres is not None:
        from gateway.spool.postgres import opening

        return await opening.open_view(options)
    return await sqlite.open_all(options, on_step)
