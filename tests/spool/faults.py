"""Disk trouble on demand, below the spool of a front door in this process: in the file layer, and in SQLite."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.spool import draft
from gateway.spool.sqlite import SqliteSpool
from gateway.spool.writer import Writer

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors that say there is no room."""


@dataclass
class FaultyOs:
    """Stands for the module `os` in the file layer: a call that is in trouble fails with that error."""

    trouble: dict[str, int] = field(default_factory=dict)
    """The error number by the name of the call."""
    met: int = 0
    """How many calls met trouble."""

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in ("open", "write", "fsync", "rename", "link", "unlink"):
            return real

        def call(*arguments: Any, **more: Any) -> Any:
            key = name
            if name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode):
                key = "fsync of a directory"
            if key in self.trouble:
                self.met += 1
                raise OSError(self.trouble[key], os.strerror(self.trouble[key]))
            return real(*arguments, **more)

        return call


class FaultyDatabase:
    """Stands for a writer's connection: statements that begin with `where` fail with SQLite's error `code`."""

    def __init__(self, real: sqlite3.Connection) -> None:
        self.real = real
        self.where = ""
        self.code = 0
        self.met = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if self.where and statement.startswith(self.where):
            self.met += 1
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = self.code
            raise error
        return self.real.execute(statement, *values)


class Disk:
    """The disk under a spool of this process."""

    def __init__(self, spool: SqliteSpool, patch: pytest.MonkeyPatch) -> None:
        self.files = FaultyOs()
        patch.setattr(draft, "os", self.files)
        self._writer: Writer = spool._shards[0].writer
        self.database = FaultyDatabase(self._writer._database)
        self._writer._database = self.database  # type: ignore[assignment]  # it does as one

    @property
    def met(self) -> int:
        """How often the trouble was met."""
        return self.files.met + self.database.met

    def mend(self) -> None:
        """All is well again."""
        self.files.trouble.clear()
        self.database.where = ""
        with contextlib.suppress(sqlite3.Error):
            self._pragma("max_page_count = 1073741823")
            self._pragma("query_only = OFF")

    def fill(self) -> None:
        """Not one page more: what SQLite then says is its own."""
        pages = self.database.real.execute("PRAGMA page_count").fetchone()[0]
        self._pragma(f"max_page_count = {pages}")

    def protect(self) -> None:
        """Read-only, as SQLite says it."""
        self._pragma("query_only = ON")

    def _pragma(self, text: str) -> None:
        self.database.real.execute(f"PRAGMA {text}").fetchall()


Break = Callable[[Disk], None]


def breaking(call: str, number: int) -> Break:
    return lambda disk: disk.files.trouble.update({call: number})


def failing(where: str, code: int) -> Break:
    def fail(disk: Disk) -> None:
        disk.database.where, disk.database.code = where, code

    return fail


FILES: dict[str, tuple[Break, bool]] = {
    f"{errno.errorcode[number]} in {call}": (breaking(call, number), number in FULL)
    for call in ("open", "write", "fsync", "fsync of a directory")
    for number in (errno.ENOSPC, errno.EIO, errno.EROFS if call == "open" else errno.EDQUOT)
}
"""Trouble that large messages meet, and whether it says that there is no room."""
DATABASE: dict[str, tuple[Break, bool]] = {
    "SQLITE_FULL": (Disk.fill, True),
    "SQLITE_READONLY": (Disk.protect, False),
    "SQLITE_FULL at the end": (failing("COMMIT", sqlite3.SQLITE_FULL), True),
    **{
        f"{name} at {where}": (failing(where, getattr(sqlite3, name)), False)
        for where in ("BEGIN", "INSERT INTO message", "COMMIT")
        for name in ("SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC")
    },
}
"""Trouble that all messages meet."""


@contextlib.contextmanager
def disk_of(spool: SqliteSpool) -> Iterator[Disk]:
    """The disk under this spool, for the time of the block."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(spool, patch)
        try:
            yield disk
        finally:
            disk.mend()
            disk._writer._database = disk.database.real
