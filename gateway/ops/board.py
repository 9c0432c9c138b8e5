"""The board: a small shared memory in which every worker says how it is, and all read.

The supervisor makes it before it forks. Each worker writes its own row only, in aligned machine words, so there are
no locks; a reader may see one row a moment older than another.

*Promises*: what a worker holds here is gone with `Board.clear`, so a dead worker's sessions never count on.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from enum import IntEnum
from typing import Final

from gateway.mail.session import IPAddress, plain_address

WORKERS_MAX: Final = 64
BUCKETS: Final = 8192

_WORD: Final = 8
_FIELDS: Final = 8
_HEAD: Final = _FIELDS * _WORD
_ROW: Final = _HEAD + BUCKETS * 2
_PID, _STATE, _HEARTBEAT, _SESSIONS, _SPOOL, _GENERATION, _CONFIG = range(7)
_COUNTER_MAX: Final = 0xFFFF


class WorkerState(IntEnum):
    """Where a worker is in its life."""

    STARTING = 0
    RECOVERING = 1
    """Reading the spool."""
    READY = 2
    DRAINING = 3
    """Ends: takes no new sessions, or none for long (`timeouts.drain_delay`)."""
    STOPPED = 4
    """Ended as it was told to."""


class Slot:
    """One worker's row. Only that worker writes it, or the supervisor while there is no such worker."""

    __slots__ = ("_counters", "_key", "_seconds", "_words", "index")

    def __init__(self, index: int, row: memoryview, key: bytes) -> None:
        self.index = index
        self._key = key
        self._words = row[:_HEAD].cast("Q")
        self._seconds = row[:_HEAD].cast("d")
        self._counters = row[_HEAD:_ROW].cast("H")

    @property
    def pid(self) -> int:
        return self._words[_PID]

    @property
    def state(self) -> WorkerState:
        return WorkerState(self._words[_STATE])

    @property
    def heartbeat(self) -> float:
        """When the worker last said that it lives, by CLOCK_MONOTONIC (the same in all processes)."""
        return self._seconds[_HEARTBEAT]

    @property
    def sessions(self) -> int:
        """Open sessions."""
        return self._words[_SESSIONS]

    @property
    def spool_ok(self) -> bool:
        """Whether its last step on the spool went well."""
        return bool(self._words[_SPOOL])

    @property
    def generation(self) -> int:
        """The number of the configuration that sessions which begin now get; 0 while there is none."""
        return self._words[_GENERATION]

    @property
    def config(self) -> str:
        """That configuration's digest, 12 hexadecimal digits; empty while there is none."""
        return f"{self._words[_CONFIG]:012x}" if self._words[_GENERATION] else ""

    def set_config(self, generation: int, digest: str) -> None:
        """This configuration is in force from now on."""
        self._words[_CONFIG] = int(digest, 16) if digest else 0
        self._words[_GENERATION] = generation

    def begin(self, now: float) -> None:
        """Take the row for this process: nothing open, state STARTING."""
        self.reset(now)
        self._words[_PID] = os.getpid()

    def reset(self, now: float) -> None:
        """Forget everything; the time until the first beat counts from `now`."""
        self._counters[:] = memoryview(bytes(BUCKETS * 2)).cast("H")
        self._words[:] = memoryview(bytes(_HEAD)).cast("Q")
        self._words[_SPOOL] = 1
        self._seconds[_HEARTBEAT] = now

    def set_state(self, state: WorkerState) -> None:
        self._words[_STATE] = state

    def set_spool_ok(self, ok: bool) -> None:
        self._words[_SPOOL] = ok

    def beat(self, now: float) -> None:
        """Say that the event loop runs. `now` is CLOCK_MONOTONIC in seconds; call it every second or so."""
        self._seconds[_HEARTBEAT] = now

    def session_opened(self, client: IPAddress) -> None:
        self._words[_SESSIONS] += 1
        at = bucket(client, self._key)
        if self._counters[at] < _COUNTER_MAX:
            self._counters[at] += 1

    def session_closed(self, client: IPAddress) -> None:
        if self._words[_SESSIONS]:
            self._words[_SESSIONS] -= 1
        at = bucket(client, self._key)
        if self._counters[at]:
            self._counters[at] -= 1

    def sessions_at(self, at: int) -> int:
        """The counter of one bucket."""
        return self._counters[at]

    def release(self) -> None:
        """Let go of the memory."""
        for view in (self._words, self._seconds, self._counters):
            view.release()


class Board:
    """All rows. Make it with `create` before the fork; afterwards every process has it."""

    def __init__(self, workers: int) -> None:
        if not 1 <= workers <= WORKERS_MAX:
            raise ValueError(f"a board has 1 to {WORKERS_MAX} rows")
        # Random for each start, so that nobody can work out addresses that share another client's counter.
        self._key = os.urandom(16)
        self._memory = mmap.mmap(-1, workers * _ROW)
        self._view = memoryview(self._memory)
        self.slots = tuple(Slot(i, self._view[i * _ROW : (i + 1) * _ROW], self._key) for i in range(workers))

    @classmethod
    def create(cls, workers: int, now: float) -> Board:
        """A board with a row for each worker, all STARTING since `now` (CLOCK_MONOTONIC, seconds)."""
        board = cls(workers)
        for slot in board.slots:
            slot.reset(now)
        return board

    def slot(self, i: int) -> Slot:
        return self.slots[i]

    def clear(self, i: int, now: float) -> None:
        """Worker `i` died and will be started again: it holds nothing any more."""
        self.slots[i].reset(now)

    def sessions(self) -> int:
        """Open sessions of all workers."""
        return sum(slot.sessions for slot in self.slots)

    def sessions_of(self, client: IPAddress) -> int:
        """Open sessions of one client over all workers.

        Clients are counted in 8192 buckets under a secret key, so the number may be too high when two busy clients
        share one, and is never too low.
        """
        at = bucket(client, self._key)
        return sum(slot.sessions_at(at) for slot in self.slots)

    def close(self) -> None:
        """Give the memory back."""
        for slot in self.slots:
            slot.release()
        self._view.release()
        self._memory.close()


def bucket(client: IPAddress, key: bytes) -> int:
    """Which counter a client uses: its address, or for IPv6 its /64, which one host can fill as it likes."""
    # All four octets of an IPv4 address are within the eight.
    packed = plain_address(client).packed[:8]
    return int.from_bytes(hashlib.blake2b(packed, digest_size=4, key=key).digest(), "big") % BUCKETS
