"""``gatepost lint``: what may go wrong with a configuration that is valid."""

from __future__ import annotations

import sys
from typing import Any, Final

import click

from gateway.cli import output
from gateway.cli.gateway import refuse
from gateway.cli.options import Failure, config_option, find_config, json_option
from gateway.config import ConfigError, load

_COLOURS: Final = {"error": "red", "warning": "yellow", "note": "cyan"}
_BARS: Final = ("error", "warning", "note")


@click.command()
@click.option(
    "--fail-on",
    type=click.Choice(_BARS),
    default="warning",
    show_default=True,
    help="The least severity that makes the exit status 1.",
)
@config_option
@json_option
def lint(fail_on: str, config_file: str | None, as_json: bool) -> None:
    """Say what may go wrong with a configuration, and what to write instead."""
    from gateway import app
    from gateway.app.lint import lint as look
    from gateway.sdk.lint import Severity
    from gateway.services.clock import SystemClock

    file = find_config(config_file)
    try:
        config = load(file)
        plans = {name: made.plan for name, made in app.load_pipelines(config).items()}
    except ConfigError as error:
        refuse(file, error, as_json=as_json)
    try:
        report = look(config, plans, SystemClock().now())
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise Failure(f"{file}: cannot look at {where}{error.strerror}; run this as the user of Gatepost") from error
    failed = report.reaches(Severity(fail_on))
    counts = {severity: report.count(Severity(severity)) for severity in _BARS}
    if as_json:
        remarks = [placed.to_json() for placed in report.remarks]
        ignored = [placed.to_json() for placed in report.ignored]
        output.as_json({"ok": not failed, "file": file, **counts, "remarks": remarks, "ignored": ignored})
    else:
        for placed in report.remarks:
            _print(placed)
        told = ", ".join(f"{n} {name}{'' if n == 1 else 's'}" for name, n in counts.items())
        click.echo(f"{output.safe(file)}: {told}" + (f", {len(report.ignored)} ignored" if report.ignored else ""))
    sys.exit(1 if failed else 0)


def _print(placed: Any) -> None:
    """One remark: where, what, what can happen, and the fix."""
    severity, remark = placed.severity.value, placed.remark
    place = output.safe(f"{placed.file}:{placed.line}:{placed.column}: ")
    key = output.safe(f"{placed.key}: ") if placed.key else ""
    click.echo(
        place + click.style(f"{severity} {output.safe(placed.code)}", fg=_COLOURS[severity]) + f": {key}", nl=False
    )
    click.echo(output.safe(remark.message))
    for name, text in (("can happen", remark.example), ("fix", remark.fix)):
        if text:
            click.echo(f"    {name}: {output.safe(text)}")
