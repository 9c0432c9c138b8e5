"""A spool whose steps can be made to fail: the real one behind, a fault in front."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.spool.spool import Draft, Spool


class Faulty:
    """Hands everything on to `spool`, but raises what `faults` has for a step: ``check_room``, ``write``,
    ``write_edited``, ``commit``.

    `before_commit` is awaited before the real commit.
    """

    def __init__(self, spool: Spool, faults: dict[str, Exception], before_commit: Callable[[], Any] | None) -> None:
        self._spool = spool
        self._faults = faults
        self._before_commit = before_commit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._spool, name)

    def check_room(self, size: int) -> None:
        if "check_room" in self._faults:
            raise self._faults["check_room"]
        self._spool.check_room(size)

    def draft(self, id: str, *, edited: bool = False) -> Any:
        if "draft" in self._faults:
            raise self._faults["draft"]
        draft = self._spool.draft(id, edited=edited)
        fault = self._faults.get("write_edited" if edited else "write")
        return _FaultyDraft(draft, fault) if fault else draft

    async def commit(self, draft: Draft, *messages: Any) -> None:
        if "commit" in self._faults:
            await draft.abandon()
            raise self._faults["commit"]
        if self._before_commit:
            await self._before_commit()
        await self._spool.commit(draft, *messages)


class _FaultyDraft:
    """A draft that takes its first octets, and then no more."""

    def __init__(self, draft: Draft, fault: Exception) -> None:
        self._draft = draft
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._draft, name)

    async def write(self, data: bytes) -> None:
        if self._draft.size:
            raise self._fault
        await self._draft.write(data)


def failing(before_commit: Callable[[], Any] | None = None, **faults: Exception) -> Callable[[Spool], Any]:
    """For `tests.smtp.door.door`: ``spool=failing(commit=SpoolError("no"))``."""
    return lambda spool: Faulty(spool, faults, before_commit)
