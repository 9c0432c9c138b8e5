"""Connections that are kept for the next one who needs the same service."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from gateway.sdk.services import Clock

_T = TypeVar("_T")


class Pool(Generic[_T]):
    """Idle connections to one service, the newest first, so that those too many grow old and go.

    `close` ends one at once and waits for nothing. A connection is taken out with `take` and given back with `give` by
    whoever knows that it is between two questions; one that is not given back is its taker's to close. `idle` is in
    seconds, `most` how many are kept.
    """

    def __init__(self, close: Callable[[_T], None], clock: Clock, *, idle: float = 10.0, most: int = 20) -> None:
        self._close = close
        self._clock = clock
        self._idle = idle
        self._most = most
        self._kept: deque[tuple[float, _T]] = deque()
        self._closed = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._kept)

    def take(self) -> _T | None:
        """One that waits, or None. It may have died meanwhile: be ready to begin with a new one."""
        self._drop_old()
        return self._kept.pop()[1] if self._kept else None

    def give(self, connection: _T) -> None:
        """Keep it for the next one; what is too much is closed."""
        self._drop_old()
        if self._closed or self._most <= 0:
            self._close(connection)
            return
        self._kept.append((self._clock.monotonic(), connection))
        if len(self._kept) > self._most:
            self._close(self._kept.popleft()[1])

    def clear(self) -> None:
        """Close all that wait: the service was seen to be gone, and none of them is any good."""
        while self._kept:
            self._close(self._kept.popleft()[1])

    def close(self) -> None:
        """Close all that wait, and whatever is given back later."""
        self._closed = True
        self.clear()

    def _drop_old(self) -> None:
        too_old = self._clock.monotonic() - self._idle
        while self._kept and self._kept[0][0] < too_old:
            self._close(self._kept.popleft()[1])


def has_come(reader: asyncio.StreamReader) -> bool:
    """Whether octets or the end of the stream wait to be read, where nobody reads. What is there is of no use then.

    So it is with a connection on which nothing was asked: the next answer over it could be that to another question.
    """
    reading = reader.read(1)
    try:
        reading.send(None)
    except (StopIteration, OSError):
        return True
    finally:
        reading.close()
    return False
