"""``gatepost plugin``: what plugins and policies are installed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from gateway import skeleton
from gateway.cli import output
from gateway.cli.options import Failure, config_option, json_option, read_config
from gateway.config import ConfigError
from gateway.pipeline.catalog import Catalog
from gateway.pipeline.plan import PipelineError


@click.group()
def plugin() -> None:
    """Plugins and policies."""


@plugin.command()
@click.argument("name")
@click.option("--directory", type=click.Path(path_type=Path), help="The new folder; default: ./gatepost-NAME.")
@json_option
def new(name: str, directory: Path | None, as_json: bool) -> None:
    """Make the package of a new plugin: code, tests, card and CI file."""
    target = directory or Path(f"gatepost-{name}")
    try:
        made = skeleton.make(name, target)
    except skeleton.SkeletonError as error:
        raise Failure(str(error)) from error
    if as_json:
        output.as_json([str(path) for path in made])
        return
    for path in made:
        click.echo(output.safe(path))
    click.echo(f"\ncd {output.safe(target)} && pip install -e '.[dev]' && pytest")


@plugin.command("list")
@config_option
@json_option
def list_(config_file: str | None, as_json: bool) -> None:
    """List all that can stand in a pipeline: what is installed, and with -c what the configuration's folder holds."""
    known = _known(config_file)
    found = [*known.plugins(), *known.policies()]
    if as_json:
        output.as_json([dataclasses.asdict(listed) for listed in found])
        return
    rows = [(f.name, f.kind, f.module, f"cannot be loaded: {f.problem}" if f.problem else f.summary) for f in found]
    output.show(output.table(("NAME", "KIND", "MODULE", "WHAT IT DOES"), rows))


def _known(config_file: str | None) -> Catalog:
    try:
        if config_file is None:
            return Catalog.installed()
        # The metrics library decides at import whether it counts for one process or for many.
        from gateway import app

        return app.catalog_of(read_config(config_file))
    except PipelineError as error:
        raise Failure(error.message) from error
    except ConfigError as error:
        raise Failure(str(error)) from error
