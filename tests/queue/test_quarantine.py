"""The keeper of the quarantine: what is old goes, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
import structlog

from gateway.ops import metrics
from gateway.queue.quarantine import Keeper
from gateway.sdk.testing import ManualClock
from gateway.services.tasks import Tasks
from gateway.spool.spool import SpoolError, State, Stored
from gateway.spool.sqlite import SqliteSpool
from tests.spool.rig import NOW, message, options, put

DAY = 86400.0


def swept(directory: Path, ages: Sequence[float], keep: float) -> tuple[list[bool], list[float]]:
    """What `sweep` said until it had no more, and the ages of the messages that are left."""

    async def run() -> tuple[list[bool], list[float]]:
        spool = await SqliteSpool.open(options(directory))
        try:
            for age in ages:
                await put(spool, b"x", message(state=State.QUARANTINE, received=NOW - age, reason="odd"))
            keeper = Keeper(spool, ManualClock(NOW), lambda: keep)
            said = [await keeper.sweep()]
            while said[-1]:
                said.append(await keeper.sweep())
            return said, sorted(NOW - m.received for m in await spool.list())
        finally:
            await spool.close()

    return asyncio.run(run())


def test_what_was_kept_for_long_is_dropped_logged_and_counted(tmp_path: Path) -> None:
    before = metrics.QUARANTINE_EXPIRED._value.get()
    with structlog.testing.capture_logs() as logs:
        said, left = swept(tmp_path, [1, 2 * DAY, 31 * DAY], 30 * DAY)
    assert (said, left) == ([False], [1, 2 * DAY])
    (event,) = [log for log in logs if log["event"] == "quarantine.expired"]
    assert (event["reason"], event["age"], event["sender"]) == ("odd", 31 * DAY, "ann@sender.test")
    assert metrics.QUARANTINE_EXPIRED._value.get() - before == 1


def test_0_keeps_everything(tmp_path: Path) -> None:
    assert swept(tmp_path, [1000 * DAY], 0)[1] == [1000 * DAY]


def test_many_go_in_parts(tmp_path: Path) -> None:
    said, left = swept(tmp_path, [10.0] * 501, 5.0)
    assert (said, left) == ([True, False], [])


class Broken:
    """A spool that does not answer the first time."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.enough = asyncio.Event()

    async def expire(self, state: State, before: float, limit: int, *, by: str = "") -> Sequence[Stored]:
        self.asked.append(before)
        if len(self.asked) > 1:
            self.enough.set()
        raise SpoolError("no")


def test_a_spool_that_does_not_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.queue.quarantine._OFTEN", 0.001)

    async def run() -> list[float]:
        spool = Broken()
        tasks = Tasks()
        tasks.start(Keeper(spool, ManualClock(NOW), lambda: 0.01).run(), name="keeper")  # type: ignore[arg-type]
        async with asyncio.timeout(20):
            await spool.enough.wait()
        await tasks.cancel()
        return spool.asked

    assert asyncio.run(run())[:2] == [NOW - 0.01] * 2
