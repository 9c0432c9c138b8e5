"""``gatepost route``: which way mail for an address would go."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from typing import Any

import click

from gateway.cli import output
from gateway.cli.options import Failure, config_option, json_option, read_config
from gateway.config import Config
from gateway.mail.address import Address, AddressError, Sender, parse_forward_path, parse_reverse_path
from gateway.ops import log
from gateway.sdk.services import StateError


@click.command()
@click.argument("address", metavar="ADDRESS")
@click.option("--sender", default="", metavar="ADDRESS", help="Envelope sender; default: the null sender.")
@config_option
@json_option
def route(address: str, sender: str, config_file: str | None, as_json: bool) -> None:
    """Print which way mail for ADDRESS would go: route, servers, addresses, TLS. Nothing is sent or connected to."""
    config = read_config(config_file)
    log.setup("console", "warning", for_good=False)
    try:
        recipient, whose = parse_forward_path(address, utf8=True), parse_reverse_path(sender, utf8=True)
    except AddressError as error:
        raise Failure(f"{output.safe(address)}, {output.safe(sender) or '<>'}: {error}") from error
    journey = _find(config, recipient, whose)
    if as_json:
        output.as_json({"sender": str(whose), **journey.to_json()})
    else:
        _print(journey, whose)
    sys.exit(1 if journey.refusal else 0)


def _find(config: Config, recipient: Address, sender: Sender) -> Any:
    # The metrics library decides at import whether it counts for one process or for many.
    from gateway.app.way import find_way

    try:
        return asyncio.run(find_way(config, recipient, sender))
    except (StateError, OSError, sqlite3.Error, ValueError) as error:
        raise Failure(str(error)) from error


def _print(journey: Any, sender: Sender) -> None:
    told = journey.to_json()
    taken = {"everybody": "everybody", "relay_from": "clients in relay_from", "nobody": "nobody"}[told["taken_from"]]
    rows = [("recipient", told["recipient"]), ("sender", str(sender) or "<>"), ("taken from", taken)]
    names = {"route": "route", "destination": "next hop", "transport": "transport", "tls": "tls"}
    rows += [(name, told[key]) for key, name in names.items() if told[key]]
    for name, value in rows:
        click.echo(f"{name:<11} {output.safe(value)}")
    if journey.servers:
        output.show(output.table(("PRIORITY", "WEIGHT", "SERVER", "ADDRESSES", "TLS"), _servers(journey.servers)))
    if journey.refusal:
        click.echo(f"{journey.refusal.result.value:<11} {output.safe(journey.refusal.reply)}")


def _servers(servers: Any) -> list[tuple[object, ...]]:
    from gateway.app.way import describe_rules

    return [
        (
            server.priority,
            server.weight,
            server.path or f"{server.host}:{server.port}",
            server.problem or " ".join(server.addresses),
            describe_rules(server.rules),
        )
        for server in servers
    ]
