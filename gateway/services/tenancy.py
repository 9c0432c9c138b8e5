"""Who lives in something that will be replaced: it is closed when the last one has left, and not before."""

from __future__ import annotations

import asyncio
import threading


class Tenancy:
    """A count of tenants. `enter` may be called in any thread, the rest on the event loop."""

    __slots__ = ("_count", "_lock", "_waiters")

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()
        self._waiters: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return self._count

    def enter(self) -> None:
        """One more."""
        with self._lock:
            self._count += 1

    def leave(self) -> None:
        """One less. Raises RuntimeError when there is none."""
        with self._lock:
            if not self._count:
                raise RuntimeError("nobody is there to leave")
            self._count -= 1
            if self._count:
                return
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def empty(self) -> None:
        """Wait until nobody is there."""
        while self._count:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
