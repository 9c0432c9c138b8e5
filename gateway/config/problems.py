"""What is wrong with a configuration file: every problem at once, each with its line and key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

Path = tuple[str | int, ...]


def dotted(path: Path) -> str:
    """A key's path as people write it: ``listeners[0].tls.key``."""
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` when something like `word` is known, else nothing."""
    close = difflib.get_close_matches(word[:100], list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One problem. `line` counts from 1; `path` is empty when it is the file as a whole.

    `column` counts from 1 too, and is 0 unless a place inside a text is meant.
    """

    file: str
    line: int
    path: str
    message: str
    column: int = 0

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}: " if self.column else f"{self.file}:{self.line}: "
        return f"{where}{self.path}: {self.message}" if self.path else where + self.message


class ConfigError(Exception):
    """The configuration cannot be used. `problems` has all that is wrong with it, in the order of the file."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = problems
