"""Several servers of one destination: who is asked first, and who is left alone for a while.

*RFCs*: 2782 (choosing by priority and weight).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Final

from gateway.transport.transport import Server

REST: Final = 60.0
"""Seconds for which a server that could not be reached is asked last; then one attempt at a time finds out."""


def by_weight(servers: Sequence[Server], rng: random.Random) -> list[Server]:
    """Servers of one priority in random order: the chance to be next is in proportion to the weight."""
    left, chosen = list(servers), []
    while left:
        (server,) = rng.choices(left, [one.weight for one in left])
        left.remove(server)
        chosen.append(server)
    return chosen


class Rotation:
    """Chooses among servers. `monotonic` gives seconds."""

    def __init__(self, servers: Sequence[Server], rng: random.Random, monotonic: Callable[[], float]) -> None:
        self._servers = sorted(servers, key=lambda server: server.priority)
        self._rng = rng
        self._monotonic = monotonic
        self._rests: dict[Server, float] = {}

    def order(self) -> tuple[tuple[Server, ...], ...]:
        """The servers as one attempt tries them, in groups of one priority; those that rest come last."""
        now = self._monotonic()
        awake: list[Server] = []
        for server in self._servers:
            until = self._rests.get(server)
            if until is None:
                awake.append(server)
            elif now >= until:
                # This attempt finds out. Those that begin meanwhile need not.
                self._rests[server] = now + REST
                awake.append(server)
        resting = [server for server in self._servers if server not in awake]
        return (*self._groups(awake), *self._groups(resting))

    def failed(self, server: Server) -> bool:
        """It could not be reached; True when that is new."""
        new = server not in self._rests
        self._rests[server] = self._monotonic() + REST
        return new

    def worked(self, server: Server) -> bool:
        """It could be reached; True when that is new."""
        return self._rests.pop(server, None) is not None

    def _groups(self, servers: Sequence[Server]) -> list[tuple[Server, ...]]:
        return [
            tuple(by_weight(list(group), self._rng))
            for _, group in groupby(servers, key=lambda server: server.priority)
        ]
