"""``gatepost whatif``: what a rule would have caught, by the records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from gateway.cli import output
from gateway.cli.options import Failure, config_option, json_option, read_config
from gateway.cli.source import Window, find_redactor, last_day, read_records, records_option, window_options
from gateway.config import Config, ConfigError
from gateway.ops.archive import Kept
from gateway.ops.whatif import BY, WhatIf


@click.command()
@click.argument("expression")
@window_options
@click.option("--by", type=click.Choice(list(BY)), help="Count by this; else by client, sender-domain and recipient.")
@click.option("--then", type=click.Choice(["reject", "defer", "quarantine", "discard"]), help="What the rule would do.")
@click.option("--pipeline", metavar="NAME", help="Ask in this pipeline, whatever pipeline a record is of.")
@records_option
@config_option
@json_option
def whatif(
    expression: str,
    since: float | None,
    until: float | None,
    by: str | None,
    then: str | None,
    pipeline: str | None,
    file: str | None,
    config_file: str | None,
    as_json: bool,
) -> None:
    """Count what a rule would have caught.

    EXPRESSION is in CEL, over the same names as the policy `rules`: 'dnsbl.score >= 5'.
    """
    config = read_config(config_file)
    if pipeline is not None and pipeline not in config.all_pipelines:
        raise Failure(f"no pipeline is called {pipeline}; there are {', '.join(sorted(config.all_pipelines))}")
    report = WhatIf(by or "", then or "")
    _count(config, expression, last_day(since, until, file), pipeline, file, report, then or "")
    found = {"expression": expression, **report.to_json()}
    if as_json:
        output.as_json(found)
    else:
        _print(found)


def _count(
    config: Config, expression: str, window: Window, pipeline: str | None, file: str | None, report: WhatIf, then: str
) -> None:
    # The metrics library decides at import whether it counts for one process or for many.
    from gateway import app
    from gateway.pipeline.past import NotTold, Past

    try:
        inquiries = app.load_inquiries(config, expression, then)
    except app.RuleError as error:
        raise Failure(f"the expression: {output.safe(error)}") from error
    except ConfigError as error:
        raise Failure(str(error)) from error
    redactor = find_redactor(config)

    def trusted(client: Any) -> bool:
        return any(client in network for network in config.relay_from)

    def use(kept: Kept) -> None:
        record = kept.record
        # What several pipelines have judged, the first of them has judged as well.
        name = pipeline or str(record.get("pipeline", "")).partition(",")[0]
        inquiry = inquiries.get(name, f"there is no pipeline {name}")
        if isinstance(inquiry, str):
            report.add(record, unknown=inquiry)
            return
        try:
            answers = inquiry.ask(Past(record, trusted, redactor))
        except NotTold as error:
            report.add(record, unknown=str(error))
            return
        matched = [whom for verdict, whom in answers.said if verdict.reason or verdict.reply]
        report.add(record, matched=bool(matched), recipients=sum(map(bool, matched)), unknown=answers.unknown)

    read_records(config, file, window, use)


def _print(found: Mapping[str, Any]) -> None:
    total = found["records"]
    click.echo(f"{total} records")
    for key, words in (("matched", "match"), ("not_matched", "do not"), ("unknown", "cannot be judged")):
        share = f" ({100 * found[key] / total:.2f} %)" if total else ""
        click.echo(f"{found[key]:>9} {words}{share}")
    if found["matched"]:
        click.echo("\nOf those that match:")
        for outcome, count in found["outcomes"].items():
            samples = " ".join(map(output.safe, found["samples"][outcome][:5]))
            click.echo(f"{count:>9} {output.safe(outcome)}, for example {samples}")
        if found["matched_recipients"]:
            click.echo(f"{found['matched_recipients']:>9} recipients were meant")
    if then := found.get("then"):
        click.echo(f"\n{then['action']} would have changed the end of {then['not_done']};")
        click.echo(f"{then['done_anyway']} ended like that, or were refused, anyway.")
    if found["unknown_because"]:
        click.echo("\nCannot be judged:")
        for reason, count in found["unknown_because"].items():
            click.echo(f"{count:>9} {output.safe(reason)}")
    for name, counts in found["by"].items():
        if counts:
            click.echo(f"\nBy {name}:")
            for key, count in counts.items():
                click.echo(f"{count:>9} {output.safe(key)}")
