"""One at a time per key: many who want to know the same thing at once cost one question."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator


class Turns:
    """Locks by key, kept only while somebody holds or wants one.

    ``async with turns.of(key):`` and look first whether whoever went before has left an answer. When the one who holds
    a turn is cancelled, the next one goes on in its place.
    """

    def __init__(self) -> None:
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}

    def __len__(self) -> int:
        """Keys that somebody holds or wants now."""
        return len(self._turns)

    @contextlib.asynccontextmanager
    async def of(self, key: str) -> AsyncGenerator[None, None]:
        """Wait for the key's turn, and hold it inside the block."""
        lock, wanted = self._turns.get(key, (asyncio.Lock(), 0))
        self._turns[key] = (lock, wanted + 1)
        try:
            async with lock:
                yield
        finally:
            wanted = self._turns[key][1] - 1
            if wanted:
                self._turns[key] = (lock, wanted)
            else:
                del self._turns[key]
