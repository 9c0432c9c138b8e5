"""``gatepost records``: decision records, for other programs and other machines."""

from __future__ import annotations

import sys
from typing import Any

import click

from gateway.cli.options import AnswerNo, config_option, read_config
from gateway.cli.search import make_search, search_options
from gateway.cli.source import Window, find_redactor, read_records, records_option, window_options
from gateway.ops.archive import Kept, write_line


@click.group()
def records() -> None:
    """Decision records, for other programs and other machines."""


@records.command()
@search_options
@window_options
@records_option
@config_option
def export(since: float | None, until: float | None, file: str | None, config_file: str | None, **wanted: Any) -> None:
    """Write records with their delivery attempts to standard output, as JSON lines, the oldest first."""
    config = None if file is not None and config_file is None else read_config(config_file)
    search = make_search(wanted, find_redactor(config))
    out = sys.stdout.buffer
    count = 0

    def use(kept: Kept) -> None:
        nonlocal count
        if search.matches(kept.record):
            out.write(write_line(kept))
            count += 1

    read_records(config, file, Window(since, until), use, attempts=True)
    out.flush()
    if not count:
        raise AnswerNo("no record matches")
