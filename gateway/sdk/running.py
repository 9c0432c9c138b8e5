"""What a finder may say about itself while it runs: that it gets on, and that there is no way back.

Both are for plugins that hand the message to somebody who takes long or changes it, such as milters. Outside of a
pipeline (on the bench) they do nothing. To be called on the event loop.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final, Protocol


class Running(Protocol):
    """The look-up that is running."""

    def progress(self) -> None:
        """It gets on."""

    def edit_begun(self) -> None:
        """There is no way back."""


RUNNING: Final[ContextVar[Running | None]] = ContextVar("gatepost_running", default=None)


def progress() -> None:
    """It gets on: the entry's `timeout` begins anew. The stage's deadline stays where it is."""
    if (running := RUNNING.get()) is not None:
        running.progress()


def edit_begun() -> None:
    """The message is being changed: if this fails from now on, it is deferred, whatever `on_error` says.

    Half of somebody's edits is neither the message that came nor the one that was to be.
    """
    if (running := RUNNING.get()) is not None:
        running.edit_begun()
