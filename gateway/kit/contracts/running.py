"""How the contracts' tests run: each is a coroutine on an event loop of its own, bounded in time."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

Test = Callable[..., Coroutine[Any, Any, None]]

PATIENCE: Final = 60.0
"""Seconds after which a test has failed."""


def given_by(
    fixture: str, names: tuple[str, ...], opened: Callable[[Any], AbstractAsyncContextManager[dict[str, Any]]]
) -> Callable[[Test], Callable[..., None]]:
    """Make tests of coroutine functions: their arguments `names` are what `opened` makes of the pytest fixture."""

    def decorate(test: Test) -> Callable[..., None]:
        @functools.wraps(test)
        def run(self: object, **given: Any) -> None:
            async def main() -> None:
                async with opened(given.pop(fixture)) as made:
                    await test(self, **made, **given)

            asyncio.run(asyncio.wait_for(main(), PATIENCE))

        # What pytest reads to know which fixtures to give.
        signature = inspect.signature(test)
        kept = [p for name, p in signature.parameters.items() if name not in names]
        wanted = inspect.Parameter(fixture, inspect.Parameter.KEYWORD_ONLY)
        run.__signature__ = signature.replace(parameters=[*kept, wanted])  # type: ignore[attr-defined]
        return run

    return decorate
