"""How the command line prints: text for people, JSON for programs.

Addresses, replies and header fields were chosen by strangers; nothing of them reaches a terminal as a control
character.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import click
import orjson
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH: Final = 200
_FEW: Final = 200
"""Rows that are laid out as a whole, which takes a millisecond for each."""
_WIDE: Final = 60
"""What is longer than that pushes its own line to the right, and not all of them."""


def safe(value: object) -> str:
    """Text in which everything unprintable shows as an escape."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def text(value: object, style: str = "") -> Text:
    """`safe` text for rich, without its markup."""
    return Text(safe(value), style=style)


def when(seconds: float) -> str:
    """A moment as the log writes it."""
    try:
        return _second(math.floor(seconds))
    except (OverflowError, OSError, ValueError):
        return "-"


@lru_cache(maxsize=10_000)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds")[:19] + "Z"


def as_json(value: Any) -> None:
    """Print JSON, in ASCII."""
    click.echo(json.dumps(value, indent=2))


class JsonArray:
    """Prints an array, item by item, as `as_json` prints all of it at once."""

    def __init__(self) -> None:
        self._begun = False

    def add(self, items: Sequence[Any]) -> None:
        """More of it."""
        texts = [_json(item).replace("\n", "\n  ") for item in items]
        if texts:
            click.echo((",\n  " if self._begun else "[\n  ") + ",\n  ".join(texts), nl=False)
            self._begun = True

    def end(self) -> None:
        """That was all."""
        click.echo("\n]" if self._begun else "[]")


def _json(value: Any) -> str:
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2)
    return text.decode("ascii") if text.isascii() else json.dumps(value, indent=2)


class Columns:
    """Prints rows below column heads: few as a table that fits the window, many line by line as they come."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self._first: list[Sequence[object]] | None = []
        self._widths = [len(column) for column in columns]

    def add(self, rows: Sequence[Sequence[object]]) -> None:
        """More rows."""
        if self._first is not None:
            self._first += rows
            if len(self._first) <= _FEW:
                return
            rows, self._first = [self._columns, *self._first], None
        if not (cells := [[safe(cell) for cell in row] for row in rows]):
            return
        for column in range(len(self._widths)):
            self._widths[column] = max(self._widths[column], min(_WIDE, max(len(row[column]) for row in cells)))
        *ahead, _ = self._widths
        form = "  ".join([*(f"{{:<{width}}}" for width in ahead), "{}"])
        click.echo("\n".join([form.format(*row).rstrip() for row in cells]))

    def end(self) -> None:
        """That was all."""
        if self._first is not None:
            show(table(self._columns, self._first))


def show(renderable: RenderableType) -> None:
    """Print for people; a pipe gets wide lines and no colours."""
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False, soft_wrap=False).print(renderable)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Plain columns."""
    out = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        out.add_column(column, overflow="fold")
    for row in rows:
        out.add_row(*(text(cell) for cell in row))
    return out
