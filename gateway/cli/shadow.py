"""``gatepost shadow``: what entries in shadow would have done."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli import output
from gateway.cli.options import AnswerNo, config_option, json_option, read_config
from gateway.cli.source import last_day, read_records, records_option, window_options
from gateway.ops.shadow import ShadowReport


@click.group()
def shadow() -> None:
    """Entries that are judged and recorded, but not applied."""


@shadow.command()
@window_options
@records_option
@config_option
@json_option
def report(since: float | None, until: float | None, file: str | None, config_file: str | None, as_json: bool) -> None:
    """Compare what shadow entries would have done with what was done."""
    config = None if file is not None else read_config(config_file)
    counted = ShadowReport()
    read_records(config, file, last_day(since, until, file), lambda kept: counted.add(kept.record))
    found = counted.to_json()
    if as_json:
        output.as_json(found)
        return
    if not found["entries"]:
        raise AnswerNo(f"{found['records']} transactions, and no entry in shadow said anything of them")
    click.echo(f"{found['records']} transactions")
    for name, entry in found["entries"].items():
        _print(name, entry)


def _print(name: str, entry: dict[str, Any]) -> None:
    click.echo(f"\n{output.safe(name)}: judged {entry['judged']}")
    for word, count in entry["differences"].items():
        samples = " ".join(entry["samples"].get(word, ()))
        click.echo(f"  would have said {word} in {count}, which was not done: {samples}")
    for word, count in entry["agreements"].items():
        click.echo(f"  would have said {word} in {count}, which was done anyway")
    if not entry["differences"] and not entry["agreements"]:
        click.echo("  would have changed nothing")
    for what in ("senders", "clients"):
        if entry[what]:
            most = ", ".join(f"{output.safe(key)} {count}" for key, count in entry[what].items())
            click.echo(f"  {what} it would have touched: {most}")
