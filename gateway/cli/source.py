"""Where commands read decision records: the spool of a gateway, or a file that ``gatepost records export`` wrote.

Either way they come one by one, the oldest of the spool first, and are never all in memory.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click
import orjson

from gateway.cli.options import AGO, Failure, with_spool
from gateway.config import Config
from gateway.mail.session import ids_from
from gateway.ops.archive import ArchiveError, Kept, read_lines
from gateway.ops.redaction import KeyFileError, Redactor, read_key
from gateway.spool.spool import Spool

PAGE: Final = 100
"""Few enough that what was read is still near when it is looked at."""
_ALLOCATIONS: Final = 500_000
_DAY: Final = 86400.0
_LATEST: Final = 2**45 / 1000 - 1
"""Ids have room for moments up to this one."""


@dataclass(frozen=True, slots=True)
class Window:
    """From when to when, both in seconds ago; None is no bound."""

    since: float | None = None
    until: float | None = None

    @property
    def after(self) -> str:
        """Ids of the window sort behind this."""
        return "" if self.since is None else _id(self.since)

    @property
    def before(self) -> str:
        """They sort before this; empty for no bound."""
        return "" if self.until is None else _id(self.until)


def _id(ago: float) -> str:
    return ids_from(min(_LATEST, time.time_ns() / 1e9 - ago))


def window_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options ``--since`` and ``--until``."""
    command = click.option("--until", type=AGO, metavar="TIME", help="Not newer than this.")(command)
    text = "Not older than this: 2h, 3d, or 2026-07-30T12:00Z."
    return click.option("--since", type=AGO, metavar="TIME", help=text)(command)


def last_day(since: float | None, until: float | None, file: str | None) -> Window:
    """The window of commands that look back 24 hours if nothing else is said. Of a file that is all there is."""
    if since is None and until is None and file is None:
        since = _DAY
    return Window(since, until)


def records_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--records``."""
    text = "Read what `gatepost records export` wrote to this file, and not the spool; - is standard input."
    kind = click.Path(exists=True, dir_okay=False, allow_dash=True)
    return click.option("--records", "file", type=kind, metavar="FILE", help=text)(command)


def read_records(
    config: Config | None, file: str | None, window: Window, use: Callable[[Kept], object], *, attempts: bool = False
) -> None:
    """Have `use` called with each record of this time, and with `attempts` with those too.

    Ends the command when the file or the spool cannot be read. `config` is needed for the spool only.
    """
    _settle()
    after, before = window.after, window.before
    if file is not None:
        _read_file(file, after, before or "\uffff", use)
        return
    if config is None:
        raise Failure("there is neither a configuration nor a file of records")

    async def work(spool: Spool) -> None:
        last = after
        while page := await spool.records(after=last, before=before, limit=PAGE):
            made: dict[str, Sequence[dict[str, Any]]] = {}
            if attempts:
                made = await spool.attempts(str(page[0]["id"]), str(page[-1]["id"]))
            for record in page:
                use(Kept(record, made.get(str(record["id"]), ())))
            last = str(page[-1]["id"])

    with_spool(config, work)


def read_texts(config: Config | None, file: str | None, window: Window, use: Callable[[bytes], object]) -> None:
    """As `read_records`, for who wants each record as its JSON."""
    if file is not None or config is None:
        read_records(config, file, window, lambda kept: use(orjson.dumps(kept.record)))
        return
    _settle()
    after, before = window.after, window.before

    async def work(spool: Spool) -> None:
        last = after
        while page := await spool.record_texts(after=last, before=before, limit=PAGE):
            for _, text in page:
                use(text)
            last = page[-1][0]

    with_spool(config, work)


def _settle() -> None:
    """What is there now is there to the end, and records have no cycles: no need to look for them all the time."""
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS)


def _read_file(file: str, after: str, before: str, use: Callable[[Kept], object]) -> None:
    try:
        with click.open_file(file, "rb") as opened:
            for kept in read_lines(opened, "standard input" if file == "-" else file):
                if after < str(kept.record["id"]) < before:
                    use(kept)
    except (ArchiveError, OSError) as error:
        raise Failure(str(error)) from error


def find_redactor(config: Config | None) -> Redactor | None:
    """What redacts as the configuration's gateway does; None where it redacts nothing."""
    if config is None or config.spool.redact == "none":
        return None
    try:
        return Redactor(read_key(config.spool.key_file))
    except KeyFileError as error:
        raise Failure(str(error)) from error
