"""``gatepost shadow``: what entries in shadow would have done."""

from __future__ import annotations

import time
from typing import Any, Final

import click

from gateway.cli import output
from gateway.cli.options import AGO, AnswerNo, config_option, json_option, read_config, with_spool
from gateway.mail.session import ids_from
from gateway.ops.shadow import ShadowReport
from gateway.spool.spool import Spool

_PAGE: Final = 1000


@click.group()
def shadow() -> None:
    """Entries that are judged and recorded, but not applied."""


@shadow.command()
@click.option("--since", type=AGO, default="24h", show_default=True, metavar="DURATION", help="How far to look back.")
@config_option
@json_option
def report(since: float, config_file: str | None, as_json: bool) -> None:
    """Compare what shadow entries would have done with what was done."""

    async def work(spool: Spool) -> ShadowReport:
        found = ShadowReport()
        after = ids_from(time.time_ns() / 1e9 - since)
        while page := await spool.records(after=after, limit=_PAGE):
            for record in page:
                found.add(record)
            after = str(page[-1]["id"])
        return found

    found = with_spool(read_config(config_file), work).to_json()
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
