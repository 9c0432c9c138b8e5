"""Whether the gateway lives, takes mail, and has started: read off the board, without I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from gateway.ops.board import Board, Slot, WorkerState

SILENCE: Final = 10.0
"""Seconds without a heartbeat after which a worker counts as stuck."""


@dataclass(frozen=True, slots=True)
class Health:
    """An answer. `why` names what is wrong, per worker; `workers` is there for people."""

    ok: bool
    why: tuple[str, ...]
    workers: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, "why": list(self.why), "workers": list(self.workers)}


def live(board: Board, now: float) -> Health:
    """Every worker that has not ended as told has said within the last 10 seconds that its event loop runs."""
    return _all(board, now, lambda slot: _stuck(slot, now))


def ready(board: Board, now: float) -> Health:
    """At least one worker takes mail: READY, heard of lately, its spool in order."""
    health = _all(board, now, lambda slot: _not_taking(slot, now))
    return Health(len(health.why) < len(board.slots), health.why, health.workers)


def started(board: Board, now: float) -> Health:
    """Every worker has read its spool."""
    return _all(board, now, _recovering)


def _all(board: Board, now: float, problem: Callable[[Slot], str]) -> Health:
    why = tuple(f"worker {slot.index}: {text}" for slot in board.slots if (text := problem(slot)))
    return Health(not why, why, tuple(worker_json(slot, now) for slot in board.slots))


def _stuck(slot: Slot, now: float) -> str:
    silence = now - slot.heartbeat
    if slot.state is WorkerState.STOPPED or silence < SILENCE:
        return ""
    return f"silent for {silence:.0f} s"


def _not_taking(slot: Slot, now: float) -> str:
    if slot.state is not WorkerState.READY:
        return slot.state.name.lower()
    return _stuck(slot, now) or ("" if slot.spool_ok else "spool does not work")


def _recovering(slot: Slot) -> str:
    return slot.state.name.lower() if slot.state in (WorkerState.STARTING, WorkerState.RECOVERING) else ""


def worker_json(slot: Slot, now: float) -> dict[str, Any]:
    """What a worker is doing, for people."""
    return {
        "worker": slot.index,
        "pid": slot.pid,
        "state": slot.state.name.lower(),
        "silent": round(now - slot.heartbeat, 1),
        "sessions": slot.sessions,
        "generation": slot.generation,
        "config": slot.config,
        "spool": "ok" if slot.spool_ok else "failing",
    }
