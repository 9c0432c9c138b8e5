"""How the command line prints: text for people, JSON for programs.

Addresses, replies and header fields were chosen by strangers; nothing of them reaches a terminal as a control
character.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 200


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
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, OSError, ValueError):
        return "-"


def as_json(value: Any) -> None:
    """Print JSON, in ASCII."""
    click.echo(json.dumps(value, indent=2))


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
