"""Orders of the supervisor to its workers, in memory that all of them see: how a reload comes to all, or to none.

First all are told to prepare a configuration, whose text lies here, so that nobody reads another file than the one that
was checked. When every one has, all are told to take it; else to give it up. The bell (a signal) carries nothing: who
looks late, or twice, sees what is to be done by the number of the order.

*Promises*: no locks. Only the supervisor writes orders, and only a worker its answer; a text that is being replaced
while it is read is not taken for an order.
"""

from __future__ import annotations

import mmap
import signal
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

BELL: Final = signal.SIGUSR1
"""Not SIGHUP, which operators send to all processes at once, and for which libmilter has a thread of its own."""
TEXT_OCTETS: Final = 1 << 20
"""The longest configuration, as `gateway.config` has it."""
REASON_OCTETS: Final = 2000

_WORD: Final = 8
_FIELDS: Final = 8
_HEAD: Final = _FIELDS * _WORD
_NUMBER, _PHASE, _LENGTH, _TAKEN = range(4)
_TRYING, _READY, _FAILED, _REASON = range(4)
_ROW: Final = _HEAD + REASON_OCTETS + -REASON_OCTETS % _WORD


class Phase(IntEnum):
    """What is to be done about the order."""

    NONE = 0
    PREPARE = 1
    TAKE = 2
    GIVE_UP = 3


@dataclass(frozen=True, slots=True)
class Order:
    """The order that stands. `taken` is the number of the last one that all were told to take."""

    number: int = 0
    phase: Phase = Phase.NONE
    taken: int = 0


class Answer:
    """One worker's answer, written by that worker, or by the supervisor while there is no such worker."""

    __slots__ = ("_reason", "_words")

    def __init__(self, row: memoryview) -> None:
        self._words = row[:_HEAD].cast("Q")
        self._reason = row[_HEAD : _HEAD + REASON_OCTETS]

    @property
    def trying(self) -> int:
        """The order that it is preparing, or was when it died; 0 for none."""
        return self._words[_TRYING]

    @property
    def ready(self) -> int:
        """The last order that it has prepared."""
        return self._words[_READY]

    @property
    def failed(self) -> int:
        """The last order that it could not prepare; `reason` says why."""
        return self._words[_FAILED]

    @property
    def reason(self) -> str:
        return bytes(self._reason[: self._words[_REASON]]).decode("utf-8", "replace")

    def clear(self) -> None:
        """There is no such worker now."""
        self._words[:] = memoryview(bytes(_HEAD)).cast("Q")

    def begin(self, number: int) -> None:
        """It is being prepared."""
        self._words[_TRYING] = number

    def done(self, number: int) -> None:
        """It is prepared."""
        self._words[_READY] = number
        self._words[_TRYING] = 0

    def fail(self, number: int, reason: str) -> None:
        """It cannot be prepared."""
        text = reason.encode("utf-8", "replace")[:REASON_OCTETS]
        self._reason[: len(text)] = text
        self._words[_REASON] = len(text)
        self._words[_FAILED] = number
        self._words[_TRYING] = 0

    def release(self) -> None:
        """Let go of the memory."""
        self._words.release()
        self._reason.release()


class Orders:
    """The order that stands, its text, and all answers. Make it before the fork."""

    def __init__(self, workers: int) -> None:
        self._memory = mmap.mmap(-1, _HEAD + TEXT_OCTETS + workers * _ROW)
        self._view = memoryview(self._memory)
        self._words = self._view[:_HEAD].cast("Q")
        self._text = self._view[_HEAD : _HEAD + TEXT_OCTETS]
        rows = _HEAD + TEXT_OCTETS
        self.answers = tuple(Answer(self._view[rows + i * _ROW : rows + (i + 1) * _ROW]) for i in range(workers))

    # The supervisor's side

    def prepare(self, number: int, text: bytes) -> None:
        """Have all prepare what `text` says. Raises ValueError for a text that is too long."""
        if len(text) > TEXT_OCTETS:
            raise ValueError(f"longer than {TEXT_OCTETS} octets")
        # Whoever still reads the last text sees that the order is another one when it is done.
        self._words[_PHASE] = Phase.NONE
        self._words[_NUMBER] = number
        self._text[: len(text)] = text
        self._words[_LENGTH] = len(text)
        self._words[_PHASE] = Phase.PREPARE

    def take(self) -> None:
        """Have all take what they have prepared."""
        self._words[_TAKEN] = self._words[_NUMBER]
        self._words[_PHASE] = Phase.TAKE

    def give_up(self) -> None:
        """Have all forget what they have prepared."""
        self._words[_PHASE] = Phase.GIVE_UP

    # A worker's side

    def order(self) -> Order:
        """The order that stands."""
        words = self._words
        return Order(words[_NUMBER], Phase(words[_PHASE]), words[_TAKEN])

    def text(self, number: int) -> bytes | None:
        """The text of order `number`; None when that is not the one to be prepared any more."""
        text = bytes(self._text[: self._words[_LENGTH]])
        return text if self.order().number == number and self.order().phase is Phase.PREPARE else None

    def close(self) -> None:
        """Give the memory back."""
        for answer in self.answers:
            answer.release()
        self._words.release()
        self._text.release()
        self._view.release()
        self._memory.close()
