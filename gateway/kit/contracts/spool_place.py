"""Where a spool under test lives, and how the contract's tests come to it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, Protocol

from gateway.kit.contracts.running import given_by
from gateway.spool.hands import OperatedSpool


class SpoolPlace(Protocol):
    """Where a spool lives. It is empty at first, and what was committed there stays from one `open` to the next."""

    async def open(self, *, record: bool = True) -> OperatedSpool:
        """A worker's start after the end of the last one, which is closed. Without `record` no records are kept."""

    async def view(self) -> OperatedSpool:
        """The same spool as an operator opens it beside the worker that runs."""

    async def noticed(self) -> None:
        """Wait until the worker's spool knows that somebody beside it has changed something."""

    async def close(self) -> None:
        """Close all that is open."""


@contextlib.asynccontextmanager
async def _closed_at_the_end(place: SpoolPlace) -> AsyncIterator[dict[str, Any]]:
    try:
        yield {"place": place}
    finally:
        await place.close()


with_place = given_by("place", ("place",), _closed_at_the_end)
