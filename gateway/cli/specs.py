"""``gatepost test``: policy specs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from gateway.cli import output
from gateway.cli.options import AnswerNo, Failure, config_option, json_option, read_config
from gateway.config import ConfigError
from gateway.ops import log
from gateway.pipeline.catalog import Catalog
from gateway.pipeline.plan import PipelineError


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True), metavar="PATH...")
@click.option(
    "--fail-under",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help="End with status 1 when less of any policy or rules entry was reached.",
)
@config_option
@json_option
def test(paths: tuple[str, ...], fail_under: float | None, config_file: str | None, as_json: bool) -> None:
    """Run policy specs: the files named, and all *.spec.yaml in folders. -c adds the configuration's policy_folder."""
    # A policy that fails is logged with its traceback.
    log.setup("console", "error", for_good=False)
    try:
        report = _run(paths, config_file)
    except ConfigError as error:
        if not as_json:
            raise Failure("\n".join(output.safe(problem) for problem in error.problems)) from error
        problems = [
            {"file": p.file, "line": p.line, "column": p.column, "key": p.path, "message": p.message}
            for p in error.problems
        ]
        output.as_json({"problems": problems})
        sys.exit(2)
    except PipelineError as error:
        raise Failure(error.message) from error
    found = report.to_json()
    if as_json:
        output.as_json(found)
    else:
        _print(found)
    low = [c["subject"] for c in found["coverage"] if fail_under is not None and c["percent"] < fail_under]
    if low:
        raise AnswerNo(f"less than {fail_under:g} % was reached of {output.safe(', '.join(low))}")
    sys.exit(1 if found["failed"] else 0)


def _run(paths: tuple[str, ...], config_file: str | None) -> Any:
    # The metrics library decides at import whether it counts for one process or for many.
    from gateway import app, specs

    installed = Catalog.installed() if config_file is None else app.catalog_of(read_config(config_file))
    return specs.run(specs.find(paths), installed)


def _print(found: dict[str, Any]) -> None:
    for failed in found["failed"]:
        click.echo(output.safe(f"{failed['file']}:{failed['line']}: {failed['name']}"))
        for difference in failed["differences"]:
            click.echo(
                output.safe(f"    {difference['what']}: expected {difference['expected']}, came {difference['came']}")
            )
        for note in (*_came(failed["came"]), *failed["notes"]):
            click.echo(output.safe(f"    {note}"))
    if found["failed"]:
        click.echo()
    good = found["cases"] - len(found["failed"])
    click.echo(f"{found['files']} files, {found['cases']} cases: {good} as expected, {len(found['failed'])} not")
    for covered in found["coverage"]:
        _print_coverage(covered)


def _came(came: dict[str, Any] | None) -> Iterator[str]:
    if came is None:
        return
    where = f" at {came['stage']} by {came['by']}" if "stage" in came else ""
    reply = f": {came['code']} {came['status']} {came['text']}" if "code" in came else ""
    yield f"came: {came['action']}{where}{reply}" + (f" because {came['reason']}" if came.get("reason") else "")


def _print_coverage(covered: dict[str, Any]) -> None:
    kind = {"lines": "lines", "clauses": "rules"}[covered["kind"]]
    subject = covered["subject"].removeprefix(os.getcwd() + os.sep)
    click.echo(output.safe(f"{covered['percent']:5.1f} % of {covered['of']} {kind}: {subject}"))
    if covered["kind"] == "clauses":
        for place in covered["missed"]:
            click.echo(output.safe(f"        never matched: {place['file']}:{place['line']} {place['name']}".rstrip()))
    elif covered["missed"]:
        from gateway.specs.coverage import ranges

        click.echo(output.safe(f"        never ran: {ranges([place['line'] for place in covered['missed']])}"))
