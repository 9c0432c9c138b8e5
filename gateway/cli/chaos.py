"""``gatepost chaos``: whether what a configuration declares for a plugin's failure is what comes of it."""

from __future__ import annotations

import sys
from typing import Any, Final

import click

from gateway.cli import output
from gateway.cli.options import Failure, config_option, json_option, read_config
from gateway.config import ConfigError
from gateway.ops import log
from gateway.pipeline.sabotage import Sabotage, parse_sabotage

_COLUMNS: Final = ("PIPELINE", "ENTRY", "FINDS", "FAULT", "ON ERROR", "SHOWS AT", "REPLY", "AFTER", "BREAKER", "HOLDS")


@click.command()
@click.argument("faults", nargs=-1, metavar="[ENTRY=FAULT]...")
@click.option("--pipeline", default="", metavar="NAME", help="Only this pipeline. Default: all.")
@config_option
@json_option
def chaos(faults: tuple[str, ...], pipeline: str, config_file: str | None, as_json: bool) -> None:
    """Make entries fail in trial sessions, and see that their failure policy holds.

    FAULT is timeout, error, garbage, or slow:DURATION. Without arguments everything is tried for every entry. A running
    gateway is not touched, nobody is asked anything, and no mail is sent.
    """
    config = read_config(config_file)
    wanted: dict[str, list[Sabotage]] = {}
    for text in faults:
        entry, sabotage = _parse(text)
        wanted.setdefault(entry, []).append(sabotage)
    if pipeline and pipeline not in config.all_pipelines:
        raise Failure(f"no pipeline is called {pipeline}; there are {', '.join(sorted(config.all_pipelines))}")
    # What a running gateway would log of the failures is what is printed here.
    log.setup("console", "critical", for_good=False)
    # The metrics library decides at import whether it counts for one process or for many.
    from gateway.app import chaos as trials

    try:
        rows = trials.chaos(config, wanted, pipeline)
    except (ConfigError, trials.NothingToFail) as error:
        raise Failure(str(error)) from error
    if as_json:
        output.as_json([row.to_json() for row in rows])
    else:
        _print(rows)
    sys.exit(1 if any(row.wrong for row in rows) else 0)


def _parse(text: str) -> tuple[str, Sabotage]:
    entry, equals, fault = text.partition("=")
    if not entry or not equals:
        raise Failure(f"{output.safe(text[:100])}: write ENTRY=FAULT, such as clamd=timeout")
    try:
        return entry, parse_sabotage(fault)
    except ValueError as error:
        raise Failure(output.safe(error)) from error


def _print(rows: list[Any]) -> None:
    if not rows:
        click.echo("no entry asks anybody anything: nothing can fail")
        return
    output.show(output.table(_COLUMNS, [_cells(row) for row in rows]))
    wrong = [row for row in rows if row.wrong]
    for row in wrong:
        click.echo(output.safe(f"{row.pipeline}: {row.entry} ({row.finding}), {row.fault}: {row.wrong}"))
    click.echo(f"{len(rows)} trials, {len(wrong)} in which the declared policy did not hold")


def _cells(row: Any) -> tuple[object, ...]:
    reply = row.reply.partition(" (ref ")[0]
    after = f"{row.seconds:g} of {row.bound:g} s" if row.seconds else "-"
    finds = f"{row.finding} ({row.begins})"
    holds = "NO" if row.wrong else "yes"
    place = row.stage or "nobody asks"
    return (
        row.pipeline, row.entry, finds, row.fault, row.declared, place, reply, after, row.breaker or "-", holds,
    )  # fmt: skip
