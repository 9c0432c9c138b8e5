"""``gatepost plugin``: what plugins and policies are installed."""

from __future__ import annotations

import dataclasses

import click

from gateway.cli import output
from gateway.cli.options import Failure, json_option
from gateway.pipeline.catalog import Catalog
from gateway.pipeline.plan import PipelineError


@click.group()
def plugin() -> None:
    """Plugins and policies."""


@plugin.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List all that is installed and can stand in a pipeline."""
    try:
        known = Catalog.installed()
    except PipelineError as error:
        raise Failure(error.message) from error
    found = [*known.plugins(), *known.policies()]
    if as_json:
        output.as_json([dataclasses.asdict(listed) for listed in found])
        return
    rows = [(f.name, f.kind, f.module, f"cannot be loaded: {f.problem}" if f.problem else f.summary) for f in found]
    output.show(output.table(("NAME", "KIND", "MODULE", "WHAT IT DOES"), rows))
