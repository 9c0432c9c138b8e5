"""Faults that the proof must find: Gatepost with one step of its durability left out.

Each is a way to break the promise that no test of behaviour would notice: mail goes in and out as ever, until the
power goes or a process dies. `victim.py` plants them; the product has no option for any of it.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any

from gateway.mail.reply import Reply
from gateway.queue import retry
from gateway.queue.scheduler import Scheduler
from gateway.spool import draft, recovery, writer
from gateway.spool.postgres import database as databases
from gateway.spool.shard import Shard
from gateway.spool.spool import Settlement
from gateway.spool.sqlite import SqliteSpool
from gateway.transport import maildir
from gateway.transport.transport import Outcome, Result


class Scene(StrEnum):
    """What finds a fault (`tests.crash.scenes`)."""

    CUT = "the power goes, the next hops are down"
    MAILDIR_CUT = "the power goes, delivered into Maildirs on that disk"
    WRITE_BACK_CUT = "the power goes after SQLite has begun its log anew"
    KILL = "workers are killed"
    BOUNCE = "workers are killed, all mail bounces"
    DATABASE = "all of PostgreSQL is killed, the next hops are down"
    CLOCK = "the clock is set beyond `give_up`, all processes are killed"


@dataclass(frozen=True)
class Fault:
    """One fault: what is left out, what must find it, and how it is planted in this process, before any fork."""

    name: str
    text: str
    scene: Scene
    plant: Callable[[], None]
    journal: bool = True
    """Whether ext4 has its journal, which keeps most names that nobody synced."""


class _Forgetful:
    """Stands for the module `os` in one module of the product: files are not synced. Directories are."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.fsync(fd)


def _no_sync_of(module: Any) -> Callable[[], None]:
    def plant() -> None:
        module.os = _Forgetful()

    return plant


def _no_directory_sync_of(module: Any) -> Callable[[], None]:
    def plant() -> None:
        module.sync_directory = lambda path: None

    return plant


def _synchronous(value: str) -> Callable[[], None]:
    def plant() -> None:
        assert "synchronous=FULL" in writer._SETTINGS
        settings = tuple(
            s.replace("=FULL", f"={value}") if s.startswith("synchronous=") else s for s in writer._SETTINGS
        )
        writer._SETTINGS = settings  # type: ignore[misc, assignment]  # a fault

    return plant


def _answer_early() -> None:
    insert = SqliteSpool._insert

    def early(self: SqliteSpool, drafts: Any) -> asyncio.Future[None]:
        insert(self, drafts)
        answered = asyncio.get_running_loop().create_future()
        answered.set_result(None)
        return answered

    SqliteSpool._insert = early  # type: ignore[method-assign]  # a fault


def _clean_too_much() -> None:
    def compare(content: Any, database: Any) -> tuple[list[str], list[str]]:
        return [], os.listdir(content)

    recovery._compare = compare


def _bounce_late() -> None:
    settle = Shard.settle

    async def late(self: Shard, settlement: Settlement) -> None:
        await settle(self, replace(settlement, dsns=()))
        for dsn in settlement.dsns:
            await self.writer.submit(partial(self.insert_dsn, dsn=dsn))
        self.next_due = 0.0

    Shard.settle = late  # type: ignore[method-assign]  # a fault


def _commit_soon() -> None:
    assert databases._NOT_DURABLE == ("off",)
    databases._NOT_DURABLE = ()  # type: ignore[misc, assignment]  # a fault


def _give_up_untried() -> None:
    route = Scheduler._route

    def stern(self: Scheduler, message: Any, number: int) -> Any:
        if retry.is_over(self._clock.now(), message.received, retry.RetryOptions()):
            return Outcome(Result.FAILED, Reply(554, "4.7", "its time is over"))
        return route(self, message, number)

    Scheduler._route = stern  # type: ignore[method-assign]  # a fault


def _nothing() -> None:
    """The scene itself makes the kernel's answer a lie, since the sync is SQLite's."""


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("row-off", "the row is not synced: SQLite's `synchronous=OFF`", Scene.CUT, _synchronous("OFF")),
        Fault("row-normal", "the same by `synchronous=NORMAL`", Scene.CUT, _synchronous("NORMAL")),
        Fault("content-file", "the file of a large content is not synced", Scene.CUT, _no_sync_of(draft)),
        Fault(
            "content-name",
            "the names of a large content are not synced (its directory)",
            Scene.CUT,
            _no_directory_sync_of(draft),
            journal=False,
        ),
        Fault(
            "write-back",
            "the database is not synced before its log is written over",
            Scene.WRITE_BACK_CUT,
            _nothing,
        ),
        Fault("maildir-file", "a Maildir's file is not synced", Scene.MAILDIR_CUT, _no_sync_of(maildir)),
        Fault(
            "maildir-name",
            "its name in `new/` is not synced (the directory)",
            Scene.MAILDIR_CUT,
            _no_directory_sync_of(maildir),
            journal=False,
        ),
        Fault(
            "early-250", "250 is said when the COMMIT is asked for, and not when it is done", Scene.KILL, _answer_early
        ),
        Fault("late-dsn", "a bounce is stored after the message's end, and not with it", Scene.BOUNCE, _bounce_late),
        Fault("clean-too-much", "a restart removes every content file", Scene.KILL, _clean_too_much),
        Fault(
            "commit-soon",
            "PostgreSQL is left to its setting, which is `synchronous_commit=off`",
            Scene.DATABASE,
            _commit_soon,
        ),
        Fault("last-attempt", "mail whose time is over is not tried once more", Scene.CLOCK, _give_up_untried),
    )
}
