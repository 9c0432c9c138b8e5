"""Requests for a reload, from the admin server to the supervisor, and what came of the last one.

A request is answered by a reload that began after it was made, so its file was read after it too; several requests that
came while another reload ran are answered by one.

*Promises*: no locks. The admin server writes the number of requests, the supervisor all else. An outcome that is being
written is not read.
"""

from __future__ import annotations

import asyncio
import json
import mmap
from collections.abc import Callable
from typing import Any, Final

OUTCOME_OCTETS: Final = 256 << 10

_WORD: Final = 8
_HEAD: Final = 4 * _WORD
_ASKED, _ANSWERED, _EDITION, _LENGTH = range(4)
_LOOK_SECONDS: Final = 0.02


class Requests:
    """Make it before the fork. An outcome is a JSON object of at most 256 KiB."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _HEAD + OUTCOME_OCTETS)
        view = memoryview(self._memory)
        self._words = view[:_HEAD].cast("Q")
        self._text = view[_HEAD:]

    # The admin server's side

    async def ask(self, ring: Callable[[], None], patience: float) -> dict[str, Any] | None:
        """Ask for a reload; `ring` wakes the supervisor. Its outcome, or None when there is none in so many seconds."""
        number = self._words[_ASKED] = self._words[_ASKED] + 1
        ring()
        try:
            async with asyncio.timeout(patience):
                while self._words[_ANSWERED] < number:  # noqa: ASYNC110 (another process answers)
                    await asyncio.sleep(_LOOK_SECONDS)
                while (outcome := self.last()) is None:  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_SECONDS)
                return outcome
        except TimeoutError:
            return None

    def last(self) -> dict[str, Any] | None:
        """The outcome of the last reload; None when there was none, or while it is being written."""
        edition = self._words[_EDITION]
        text = bytes(self._text[: self._words[_LENGTH]])
        if not edition or edition % 2 or edition != self._words[_EDITION]:
            return None
        outcome: dict[str, Any] = json.loads(text)
        return outcome

    # The supervisor's side

    def asked(self) -> int:
        """How many requests were made so far: those that a reload answers which begins now."""
        return self._words[_ASKED]

    def answer(self, asked: int, outcome: dict[str, Any]) -> None:
        """Publish the outcome of the reload that began when so many requests had been made.

        Of one that is too long its lists of objects are left out, since what stands in a file must not stop who
        reads it.
        """
        text = json.dumps(outcome).encode()
        if len(text) > OUTCOME_OCTETS:
            short = {key: [] if _objects(value) else value for key, value in outcome.items()}
            text = json.dumps(short).encode()
        if len(text) > OUTCOME_OCTETS:
            raise ValueError(f"an outcome of more than {OUTCOME_OCTETS} octets")
        # Odd while it is being written.
        self._words[_EDITION] += 1
        self._text[: len(text)] = text
        self._words[_LENGTH] = len(text)
        self._words[_EDITION] += 1
        self._words[_ANSWERED] = asked


def _objects(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(one, dict) for one in value)
