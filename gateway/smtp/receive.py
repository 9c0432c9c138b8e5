"""Where content goes while it arrives: into the draft, until the limit or trouble; then nowhere."""

from __future__ import annotations

from typing import Final

from gateway.ops import log
from gateway.smtp.data import ChunkDecoder
from gateway.smtp.intake import Intake
from gateway.spool.spool import SpoolError

_log = log.get()

WASTE: Final = 64 << 20
"""Octets beyond the limit that are read and thrown away before the client is cut off. It is to hear why, after all."""


class Sink:
    """Takes content into the draft. `overflow` says that there was too much, `failed` that it could not be kept.

    Either way the rest is read and forgotten: what cannot be skipped would be taken for commands.
    """

    __slots__ = ("_intake", "_limit", "failed", "overflow", "wasted")

    def __init__(self, intake: Intake, limit: int) -> None:
        self._intake = intake
        self._limit = limit
        self.overflow = False
        self.failed: SpoolError | None = None
        self.wasted = 0

    async def write(self, piece: bytes) -> None:
        if self.overflow or self.failed is not None:
            self.wasted += len(piece)
            return
        draft = self._intake.draft
        if draft.size + len(piece) > self._limit:
            self.overflow = True
            return
        try:
            await draft.write(piece)
        except SpoolError as error:
            self.failed = error
        except Exception as error:  # noqa: BLE001  (our bug must not turn content into commands)
            _log.error("command.failed", session=self._intake.session.id, command="DATA", exc_info=error)
            self.failed = SpoolError("bug")

    @property
    def fed_up(self) -> bool:
        """Whether enough has been thrown away."""
        return self.wasted > WASTE


class Chunks:
    """A message that arrives by BDAT. All of it has to be there at `last`, by the event loop's clock."""

    __slots__ = ("decoder", "last", "sink")

    def __init__(self, sink: Sink, last: float) -> None:
        self.sink = sink
        self.last = last
        self.decoder = ChunkDecoder()
