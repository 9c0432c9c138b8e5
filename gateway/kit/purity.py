"""Seeing that a function does nothing that a pure one may not: no clock, no chance, no files, no network.

Calls of C functions are watched while it runs (`sys.setprofile`), which tells of everything that goes through Python's
own modules, however it was imported.
"""

from __future__ import annotations

import datetime
import gc
import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, TypeVar

_T = TypeVar("_T")

_CLOCK: Final = frozenset(
    f"{name}{unit}"
    for name in ("time", "monotonic", "perf_counter", "process_time", "thread_time")
    for unit in ("", "_ns")
) | {"sleep", "localtime", "gmtime"}
_MODULES: Final = frozenset(
    {"posix", "nt", "_socket", "socket", "_ssl", "select", "_posixsubprocess", "_winapi", "_random"}
)
_HARMLESS: Final = frozenset({"fspath", "_path_normpath"})
_NOW: Final = frozenset({"now", "utcnow", "today"})
_FILES: Final = frozenset({"FileIO", "BufferedReader", "BufferedWriter", "BufferedRandom"})


def watched(work: Callable[..., _T], *arguments: Any) -> tuple[_T, list[str]]:
    """The result of the call, and what it did that a pure function may not, by the functions' names.

    To be called a second time with the same arguments: what Python imports the first time counts as files read.
    """
    seen: list[str] = []

    def watch(frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and (name := _impure(function)) and name not in seen:
            seen.append(name)

    before, collects = sys.getprofile(), gc.isenabled()
    # Else what others have finalised, or want to hear of that, would be taken for the function's own doing.
    gc.disable()
    sys.setprofile(watch)
    try:
        result = work(*arguments)
    finally:
        if before is None or callable(before):
            sys.setprofile(before)
        else:
            before.enable()  # cProfile's, which cannot be set again
        if collects:
            gc.enable()
    return result, seen


def _impure(function: Any) -> str:
    """The name of a C function that a pure function has no use for, else empty."""
    module, name = getattr(function, "__module__", None) or "", getattr(function, "__name__", "")
    owner = getattr(function, "__self__", None)
    if module == "time":
        return f"time.{name}" if name in _CLOCK else ""
    if module in ("_io", "io") and name in ("open", "open_code"):
        return "open"
    if module in _MODULES:
        return "" if name in _HARMLESS else f"{module}.{name}"
    if isinstance(owner, type) and issubclass(owner, datetime.date):
        return f"{owner.__name__}.{name}" if name in _NOW else ""
    if owner is _CHANCE or isinstance(owner, random.SystemRandom):
        return f"random.{name}"
    if type(owner).__module__ == "_io" and type(owner).__name__ in _FILES:
        return f"file.{name}"
    return f"socket.{name}" if type(owner).__module__ in ("_socket", "socket") else ""


_CHANCE: Final = random.seed.__self__  # type: ignore[attr-defined]
"""The generator behind the functions of `random`; one that a policy seeds itself gives the same every time."""
