"""Connecting to one of several places, without waiting for long at one that does not answer.

The next place is tried when the one before has failed, or when it was given a while and has not answered yet. The first
that answers wins; what is still under way then is given up, and may be tried again when the winner turns out useless.

*Promises*: no more than `most` tries in all, and none beside another where there is no room for it. What was given up
is closed.

*RFCs*: 8305 section 5 (connection attempts).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

from gateway.services.tasks import Tasks
from gateway.transport.connection import Connection
from gateway.transport.hosts import Unreachable

P = TypeVar("P")


class Race(Generic[P]):
    """Tries `places` in their order with `dial`. Ask `next` until it is None or you have what you want; then `close`.

    `pause` ends when a try had its while. `room` says whether there may be one more connection beside those there are.
    """

    def __init__(
        self,
        places: Iterable[P],
        dial: Callable[[P], Awaitable[Connection | Unreachable]],
        *,
        pause: Callable[[], Awaitable[None]],
        room: Callable[[], bool],
        most: int,
    ) -> None:
        self._places = deque(places)
        self._dial = dial
        self._pause = pause
        self._room = room
        self._left = most
        self._tries: dict[asyncio.Task[Connection | Unreachable], P] = {}
        self._timer: asyncio.Task[None] | None = None
        self._tasks = Tasks()

    @property
    def left(self) -> int:
        """How many tries are left of `most`."""
        return self._left

    async def next(self) -> tuple[P, Connection | Unreachable] | None:
        """The next place that answered or failed, and how; None when no try is left."""
        if not self._tries:
            self._start()
        while self._tries:
            if self._timer is None and self._places and self._left:
                self._timer = self._tasks.start(self._wait(), name="dial.pause")
            waited = {*self._tries, self._timer} if self._timer else set(self._tries)
            done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            ended = [task for task in self._tries if task in done]
            if ended:
                return await self._end(ended)
            self._timer = None
            if self._room():
                self._start()
        return None

    def forget(self, unwanted: Callable[[P], bool]) -> None:
        """Try none of these places any more."""
        self._places = deque([place for place in self._places if not unwanted(place)])

    async def close(self) -> None:
        """Give up what is still under way."""
        self._stop_timer()
        tries, self._tries = list(self._tries), {}
        for task in tries:
            task.cancel()
        await asyncio.gather(*tries, return_exceptions=True)
        for task in tries:
            _drop(task)

    def _start(self) -> None:
        if self._places and self._left:
            self._left -= 1
            place = self._places.popleft()
            self._tries[self._tasks.start(self._try(place), name="dial")] = place

    async def _try(self, place: P) -> Connection | Unreachable:
        return await self._dial(place)

    async def _wait(self) -> None:
        await self._pause()

    async def _end(self, ended: list[asyncio.Task[Connection | Unreachable]]) -> tuple[P, Connection | Unreachable]:
        """The one of these that counts: one that answered, else the first that failed."""
        task = next((task for task in ended if not isinstance(task.result(), Unreachable)), ended[0])
        place, result = self._tries.pop(task), task.result()
        if isinstance(result, Unreachable):
            # It need not have its while.
            self._stop_timer()
            if self._room() or not self._tries:
                self._start()
        else:
            self._places.extendleft(reversed([self._tries[t] for t in self._tries if not _failed(t)]))
            await self.close()
        return place, result

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _failed(task: asyncio.Task[Connection | Unreachable]) -> bool:
    return task.done() and not task.cancelled() and isinstance(task.result(), Unreachable)


def _drop(task: asyncio.Task[Connection | Unreachable]) -> None:
    """Close what a try that was given up has brought nevertheless."""
    if not task.cancelled() and task.exception() is None and isinstance(result := task.result(), Connection):
        result.abort()
