"""Options that say which queued messages a command is about."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click

from gateway.ops.operations import Selection, SelectionError
from gateway.sdk.options import parse_duration, parse_size

STATES = ("queued", "hold", "quarantine", "corrupt", "leaving")


def _age(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """The moment so long ago."""
    if value is None:
        return None
    try:
        return time.time_ns() / 1e9 - parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _size(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return parse_size(int(value) if value.isascii() and value.isdigit() and len(value) < 18 else value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


_OPTIONS = (
    click.option("--state", type=click.Choice(STATES), default=None, help="Only messages in this state."),
    click.option("--sender", default="", metavar="WHO", help="From this address, this domain, or <>."),
    click.option("--recipient", default="", metavar="WHO", help="To this address or domain, which has not got it yet."),
    click.option("--domain", default="", help="To this domain, which has not got it yet."),
    click.option("--next-hop", default="", metavar="DESTINATION", help="That go there, as queue top shows it."),
    click.option("--why", default="", metavar="TEXT", help="Text within why it is here or what was last said of it."),
    click.option("--older", callback=_age, metavar="AGE", help="Came more than this ago, such as 2h or 7d."),
    click.option("--newer", callback=_age, metavar="AGE", help="Came less than this ago."),
    click.option("--larger", callback=_size, metavar="SIZE", help="Larger than this, such as 10MiB."),
    click.option("--smaller", callback=_size, metavar="SIZE", help="Smaller than this."),
)


def selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say which messages are meant; the command takes them as `wanted`, a `Selection`."""

    def selecting(
        state: str | None,
        sender: str,
        recipient: str,
        domain: str,
        next_hop: str,
        why: str,
        older: float | None,
        newer: float | None,
        larger: int | None,
        smaller: int | None,
        **rest: Any,
    ) -> Any:
        states = (state,) if state else ()
        try:
            wanted = Selection(states, sender, recipient, domain, next_hop, why, older, newer, larger, smaller)
        except SelectionError as error:
            raise click.UsageError(str(error)) from error
        return command(wanted=wanted, **rest)

    selecting.__name__, selecting.__doc__ = command.__name__, command.__doc__
    selecting.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(_OPTIONS):
        selecting = option(selecting)
    return selecting
