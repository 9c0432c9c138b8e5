"""Threads that may hang: work that blocks is done by a few of them, and one that never comes back costs only itself.

They are daemons, so that a process can end while one of them hangs.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, TypeVar

from plugins.milter.packets import MilterError

T = TypeVar("T")


class Waits(RuntimeError):
    """Something waits where nothing may."""


class _Job(Generic[T]):
    __slots__ = ("abandoned", "error", "result", "waiting", "work")

    def __init__(self, work: Callable[[], T], waiting: asyncio.Future[T]) -> None:
        self.work = work
        self.waiting = waiting
        self.abandoned = False
        self.result: T | None = None
        self.error: BaseException | None = None

    def settle(self) -> None:
        if self.waiting.done():
            return
        if self.error is not None:
            self.waiting.set_exception(self.error)
        else:
            self.waiting.set_result(self.result)  # type: ignore[arg-type]


class Crew:
    """At most `most` threads, begun when they are needed. Belongs to one event loop; with none it does the work there.

    `tell_stuck` is told how many are stuck, when that changes.
    """

    def __init__(self, most: int, name: str, tell_stuck: Callable[[int], None] = lambda _: None) -> None:
        self.most: Final = most
        self.stuck = 0
        """Threads whose work somebody gave up waiting for, and that are still at it."""
        self._name = name
        self._tell_stuck = tell_stuck
        self._slots = asyncio.Semaphore(most)
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._threads = self._busy = 0

    async def run(self, work: Callable[[], T]) -> T:
        """Have it done by a thread of the crew, and wait for it.

        Raises what the work raises, and `MilterError` at once when all threads are stuck or none can be begun.
        Cancelled, it leaves the thread to itself.
        """
        if not self.most:
            return _done_here(work)
        if self.stuck >= self.most:
            raise MilterError(f"all {self.most} threads are stuck")
        await self._slots.acquire()
        loop = asyncio.get_running_loop()
        job = _Job(work, loop.create_future())
        if self._busy >= self._threads:
            self._begin(loop)
        self._busy += 1
        self._jobs.put(job)
        try:
            result: T = await job.waiting
            return result
        except asyncio.CancelledError:
            if job.waiting.cancelled():
                job.abandoned = True
                self._change_stuck(1)
            raise

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """One thread more. Raises `MilterError` where the system has none to give."""
        name = f"{self._name}-{self._threads + 1}"
        try:
            threading.Thread(target=self._serve, args=(loop,), name=name, daemon=True).start()
        except RuntimeError as error:
            self._slots.release()
            raise MilterError(f"no thread for it: {error}") from error
        self._threads += 1

    def close(self) -> None:
        """Let the threads go; who is stuck goes when its work ends."""
        for _ in range(self._threads):
            self._jobs.put(None)
        self._threads = 0

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job.result = job.work()
            except Exception as error:  # noqa: BLE001 - handed to whoever waits
                job.error = error
            except BaseException as error:  # noqa: BLE001 - code that exits the interpreter must not exit a thread of ours
                job.error = MilterError(f"it raised {type(error).__name__}")
            try:
                loop.call_soon_threadsafe(self._done, job)
            except RuntimeError:
                return  # the loop is closed, and nobody waits any more
            del job

    def _change_stuck(self, by: int) -> None:
        self.stuck += by
        self._tell_stuck(self.stuck)

    def _done(self, job: _Job[Any]) -> None:
        self._busy -= 1
        self._slots.release()
        if job.abandoned:
            self._change_stuck(-1)
        job.settle()


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """What comes of work that is written as if it had to wait, and does not: nothing in it leaves the event loop.

    Raises what the work raises, and `Waits` if it waits after all; then it is closed.
    """
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise Waits("it has to wait, and there is nobody to wake it")


def _done_here(work: Callable[[], T]) -> T:
    try:
        return work()
    except Exception:
        raise
    except BaseException as error:  # code that exits the interpreter must not exit the event loop
        raise MilterError(f"it raised {type(error).__name__}") from error
