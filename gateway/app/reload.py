"""The supervisor's side of a reload: read, check, have all workers prepare it, and then have all of them take it.

*Promises*: all workers take a configuration, or none does. One that is wrong, or that a worker cannot prepare, is
refused with the reason, and the old one stays in force. The file is read when it is at rest, and what was read is what
is checked and what the workers get: nothing that is written or renamed meanwhile matters.

*Fails by*: a worker that dies, or whose event loop hangs, after all were told to take it: its successor starts with the
new one, and a loop that comes back takes it then. That is told as `failed`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol

from gateway.app.keeping import keep
from gateway.config import Config, ConfigError, Problem, octets, parse
from gateway.ops import log
from gateway.ops.board import Board, Slot
from gateway.ops.orders import Orders

PREPARE_SECONDS: Final = 30.0
"""For all workers to prepare a configuration: plugins may have much to read, and a worker may be starting."""
TAKE_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.005
_REST_SECONDS: Final = 0.05
_RESTS: Final = 40
"""A file is read when it was the same for `_REST_SECONDS`, and refused when that does not come about in 2 seconds."""
_PROBLEMS: Final = 100
_log = log.get()
_TEXT: Final = 1000


class Result(StrEnum):
    """What came of a reload."""

    DONE = "done"
    REFUSED = "refused"
    """Nothing has changed."""
    FAILED = "failed"
    """It is in force, and not every worker has it yet."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a reload, and why. `config` is what is in force now, its number `generation`.

    `needs_restart` are keys that take effect at the next start only; `troubled` says by worker what is wrong with it.
    """

    result: Result
    config: Config
    generation: int
    reason: str = ""
    problems: tuple[Problem, ...] = ()
    needs_restart: Sequence[str] = ()
    troubled: dict[int, str] = field(default_factory=dict)

    def to_json(self, board: Board) -> dict[str, Any]:
        """As the admin API gives it; `generation` and `config` of each worker are those that it uses now."""
        workers = [
            {
                "worker": slot.index,
                "generation": slot.generation,
                "config": slot.config,
                "reason": self.troubled.get(slot.index, "")[:_TEXT],
            }
            for slot in board.slots
        ]
        return {
            "result": self.result.value,
            "generation": self.generation,
            "config": self.config.digest,
            "file": os.path.abspath(self.config.file),
            "reason": self.reason[:_TEXT],
            "problems": [
                {"file": p.file, "line": p.line, "key": p.path, "message": p.message[:_TEXT]}
                for p in self.problems[:_PROBLEMS]
            ],
            "needs_restart": list(self.needs_restart),
            "workers": workers,
        }


class Crew(Protocol):
    """The workers, as the supervisor keeps them."""

    def running(self) -> list[int]:
        """Who runs now, by index."""

    def ring(self) -> None:
        """Have all look at their orders."""

    def tend(self, seconds: float) -> bool:
        """Wait so long, and start those again who died. False when Gatepost is to stop."""

    def died_trying(self, number: int) -> list[int]:
        """Who has died while it prepared this order."""

    def engage(self, config: Config, generation: int) -> None:
        """Whoever starts from now on starts with this configuration."""


class _Refused(Exception):
    """Somebody cannot prepare it."""

    def __init__(self, reason: str, troubled: dict[int, str] | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.troubled = troubled or {}


@dataclass(frozen=True, slots=True)
class Reload:
    """One reload. `check` raises `ConfigError` for a configuration that cannot be used."""

    crew: Crew
    board: Board
    orders: Orders
    check: Callable[[Config], None]
    fixed: tuple[str, ...]

    def run(self, config: Config, generation: int) -> Outcome:
        """Read the file of `config`, which is in force as `generation`, again. Never raises for what stands in it."""
        waiting: list[str] = []
        try:
            text = at_rest(config.file, self.crew.tend)
            new, waiting = keep(config, parse(text, config.file), self.fixed)
            self.check(new)
            number = self._prepare(text)
        except ConfigError as error:
            return Outcome(Result.REFUSED, config, generation, str(error), tuple(error.problems), waiting)
        except _Refused as error:
            return Outcome(Result.REFUSED, config, generation, error.reason, (), waiting, error.troubled)
        except Exception as error:  # noqa: BLE001 - a check that fails by a bug, maybe a plugin's, refuses like any other
            _log.error("reload.check_failed", file=config.file, exc_info=error)
            return Outcome(Result.REFUSED, config, generation, f"{type(error).__name__}: {error}", (), waiting)
        lacking = self._take(new, number)
        if not lacking:
            return Outcome(Result.DONE, new, number, needs_restart=waiting)
        return Outcome(Result.FAILED, new, number, _listed(lacking), needs_restart=waiting, troubled=lacking)

    def _prepare(self, text: bytes) -> int:
        """Have every worker that runs prepare it; gives its number. Raises `_Refused` when one cannot do it in time."""
        number = self.orders.order().number + 1
        self.orders.prepare(number, text)
        self.crew.ring()
        try:
            for _ in range(round(PREPARE_SECONDS / _LOOK_SECONDS)):
                if self._prepared(number):
                    return number
                if not self.crew.tend(_LOOK_SECONDS):
                    raise _Refused("Gatepost is stopping")
            late = {i: self._lateness(i) for i in self.crew.running() if self.orders.answers[i].ready != number}
            raise _Refused(f"not prepared within {PREPARE_SECONDS:.0f} s: {_listed(late)}", late)
        except _Refused:
            self.orders.give_up()
            self.crew.ring()
            raise

    def _prepared(self, number: int) -> bool:
        """Whether everybody who runs has prepared it. Raises `_Refused` when somebody cannot."""
        answers = self.orders.answers
        troubled = {i: "died while it prepared the configuration" for i in self.crew.died_trying(number)}
        troubled |= {i: answers[i].reason for i in self.crew.running() if answers[i].failed == number}
        if troubled:
            raise _Refused(_listed(troubled), troubled)
        return all(answers[i].ready == number for i in self.crew.running())

    def _lateness(self, worker: int) -> str:
        return f"is {self.board.slot(worker).state.name.lower()}"

    def _take(self, config: Config, number: int) -> dict[int, str]:
        """Have everybody take it; gives those who have not, with the reason."""
        self.crew.engage(config, number)
        self.orders.take()
        self.crew.ring()
        lacking: dict[int, str] = {}
        for _ in range(round(TAKE_SECONDS / _LOOK_SECONDS)):
            lacking = {slot.index: _lack(slot) for slot in self.board.slots if slot.generation != number}
            if not lacking or not self.crew.tend(_LOOK_SECONDS):
                break
        return lacking


def _lack(slot: Slot) -> str:
    return "has not taken it yet" if slot.generation else "is not there, and will start with it"


def _listed(troubled: dict[int, str]) -> str:
    return "; ".join(f"worker {i}: {reason}" for i, reason in sorted(troubled.items()))


def at_rest(path: str, wait: Callable[[float], bool]) -> bytes:
    """What stands in the file once nobody writes it any more. Raises `ConfigError`."""
    found: bytes | None = None
    for _ in range(_RESTS):
        try:
            before, found = found, octets(path)
        except ConfigError:
            # Between the old file and the new one there may be a moment without.
            before, found = None, None
        if found is not None and found == before:
            return found
        if not wait(_REST_SECONDS):
            break
    octets(path)
    raise ConfigError([Problem(path, 1, "", "is being written all the time; write a new file and rename it")])
