"""``gatepost delegate`` and ``gatepost milter``: the pipeline lent to another MTA.

`gateway.app` is imported inside the commands, as in `gateway.cli.gateway`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import click

from gateway.cli.gateway import keep_signals, metrics_directory
from gateway.cli.options import Failure, config_option, read_config
from gateway.config import ConfigError
from gateway.sdk.endpoint import Endpoint, parse_endpoint


def _endpoint(ctx: click.Context, param: click.Parameter, value: str) -> Endpoint:
    try:
        endpoint = parse_endpoint(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if not endpoint.path and not _is_literal(endpoint.host):
        raise click.BadParameter("write an IP address, not a name")
    return endpoint


def _mode(ctx: click.Context, param: click.Parameter, value: str) -> int:
    if not value or set(value) - set("01234567") or int(value, 8) > 0o777:
        raise click.BadParameter("write an octal number such as 660")
    return int(value, 8)


def _is_literal(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _lending_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What both commands take."""
    for option in (
        click.option(
            "--mode", callback=_mode, default="660", metavar="MODE", show_default=True, help="Mode of a unix socket."
        ),
        click.option("--pipeline", default="default", show_default=True, metavar="NAME", help="The pipeline to lend."),
        click.option(
            "--listen",
            callback=_endpoint,
            required=True,
            metavar="ADDRESS",
            help="Where to listen: inet:PORT@IP, IP:PORT or unix:PATH.",
        ),
        config_option,
    ):
        command = option(command)
    return command


@click.command()
@click.option("--ok", is_flag=True, help="Answer OK, and not DUNNO, where a verdict accepts.")
@click.option("--trouble", metavar="ACTION", help="The answer when something of ours fails.")
@_lending_options
def delegate(
    config_file: str | None, listen: Endpoint, pipeline: str, mode: int, ok: bool, trouble: str | None
) -> None:
    """Lend a pipeline to Postfix, as a server of its policy delegation protocol, until SIGTERM."""
    more = {"trouble": trouble} if trouble else {}
    _lend(config_file, listen=listen, pipeline=pipeline, mode=mode, ok="OK" if ok else "DUNNO", **more)


@click.command()
@_lending_options
def milter(config_file: str | None, listen: Endpoint, pipeline: str, mode: int) -> None:
    """Lend a pipeline to Postfix or Sendmail as a milter, until SIGTERM. Needs the extra gatepost[milter]."""
    if importlib.util.find_spec("milter") is None:
        raise Failure("gatepost milter needs pymilter: install gatepost[milter]")
    _lend(config_file, listen=listen, pipeline=pipeline, mode=mode, milter=True)


def _lend(config_file: str | None, **lending: Any) -> None:
    keep_signals()
    config = read_config(config_file)
    with metrics_directory():
        from gateway import app

        try:
            status = app.lend(config, app.Lending(**lending))
        except (ConfigError, ValueError) as error:
            raise Failure(str(error)) from error
    sys.exit(status)
