"""``gatepost fsck``: check a spool, and repair it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli import output
from gateway.cli.options import Failure, config_option, json_option, read_config
from gateway.spool.spool import SpoolError, SpoolOptions

if TYPE_CHECKING:
    from gateway.spool.diagnosis import Report


@click.command()
@click.option("--repair", is_flag=True, help="Repair what is found. The gateway must be stopped.")
@config_option
@json_option
def fsck(repair: bool, config_file: str | None, as_json: bool) -> None:
    """Check the spool: databases, rows, content. Nothing is changed without --repair, and nothing is ever deleted.

    Exit status 1 says that something was found.
    """
    config = read_config(config_file)
    from gateway.ops import log

    log.setup("console", "critical", for_good=False)
    try:
        report = _check(config.spool.options(), repair=repair)
    except SpoolError as error:
        raise Failure(output.safe(error)) from error
    if as_json:
        output.as_json(
            {
                "messages": report.messages,
                "corrupt": report.corrupt,
                "running": report.running,
                "set_aside": report.aside,
                "repaired": repair,
                "findings": [finding.to_json() for finding in report.findings],
            }
        )
    else:
        for finding in report.findings:
            where = " ".join(part for part in (finding.shard, finding.name) if part)
            then = f": {finding.repair}" if repair else f" (a repair: {finding.repair})"
            click.echo(output.safe(f"{where}: {finding.text}{then}"))
        for name in report.aside:
            click.echo(f"{output.safe(name)}: set aside before; docs/spool.md says what can be done")
        note = "; a gateway is running" if report.running else ""
        note += ", so drafts were not judged" if note and config.spool.postgres is None else ""
        number = len(report.findings)
        click.echo(
            f"{report.messages} messages, {report.corrupt} of them corrupt before; "
            f"{number} {'problem' if number == 1 else 'problems'} found{note}"
        )
    sys.exit(1 if report.findings else 0)


def _check(options: SpoolOptions, *, repair: bool) -> Report:
    if options.postgres is not None:
        from gateway.spool.postgres import fsck

        return fsck.check(options, repair=repair)
    from gateway.spool.fsck import check

    return check(Path(options.path), repair=repair)
