"""``gatepost queue``: destinations. What waits for them, as it changes, and which of them get nothing for a while."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from gateway.cli import output
from gateway.cli.office import Office, in_office
from gateway.cli.options import AnswerNo, Failure, config_option, json_option, read_config, who
from gateway.config import Config
from gateway.ops.operations import TEXT_MAX, Suspension, Waiting

if TYPE_CHECKING:
    from gateway.spool.spool import State

_ROWS: Final = 20


@dataclass(frozen=True, slots=True)
class _Picture:
    """The queue at one moment."""

    time: float
    states: dict[State, int]
    waiting: Sequence[Waiting]
    suspended: dict[str, Suspension]

    def to_json(self) -> dict[str, Any]:
        return {
            "time": round(self.time, 3),
            "states": {state.value: count for state, count in self.states.items()},
            "destinations": [{**one.to_json(), "suspended": one.destination in self.suspended} for one in self.waiting],
        }


async def _look(office: Office) -> _Picture:
    now = time.time_ns() / 1e9
    postmaster = office.postmaster
    waiting = await postmaster.waiting(now, office.destinations.hop)
    return _Picture(now, await office.spool.counts(), waiting, await postmaster.suspensions())


def _render(picture: _Picture, rows: int) -> RenderableType:
    counts = ", ".join(f"{count} {state.value}" for state, count in picture.states.items())
    columns = ("DESTINATION", "WAITING", "DUE", "IN HAND", "OCTETS", "OLDEST", "", "LAST")
    table = output.table(columns, [_row(one, picture) for one in picture.waiting[:rows]])
    more = len(picture.waiting) - rows
    rest = [Text(f"and {more} more destinations", style="dim")] if more > 0 else []
    return Group(Text(f"{output.when(picture.time)}  {counts}", style="bold"), table, *rest)


def _row(one: Waiting, picture: _Picture) -> tuple[object, ...]:
    suspended = "suspended" if one.destination in picture.suspended else ""
    age = _age(picture.time - one.oldest)
    return one.destination, one.recipients, one.due, one.claimed, one.octets, age, suspended, one.last


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


@click.command()
@click.option("--rows", type=click.IntRange(1, 1000), default=_ROWS, show_default=True, help="Destinations to show.")
@click.option(
    "--every", type=click.FloatRange(0.2, 3600), default=2.0, show_default=True, help="Seconds between looks."
)
@click.option("--once", is_flag=True, help="Look once and end; so does --json.")
@config_option
@json_option
def top(rows: int, every: float, once: bool, config_file: str | None, as_json: bool) -> None:
    """Show what waits for each destination, as it changes, until Ctrl-C."""
    config = read_config(config_file)
    if as_json:
        output.as_json(in_office(config, _look).to_json())
    elif once:
        output.show(_render(in_office(config, _look), rows))
    else:
        _watch(config, rows, every)


def _watch(config: Config, rows: int, every: float) -> None:
    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            try:
                # Opened anew, so that shards which come are seen, and none is held open.
                live.update(_render(in_office(config, _look), rows), refresh=True)
                time.sleep(every)  # noqa: TID251 - no event loop is running now
            except KeyboardInterrupt:
                return


@click.command()
@click.argument("destination")
@click.option("--reason", default="", help="Why; stands in queue why and in the log.")
@config_option
@json_option
def suspend(destination: str, reason: str, config_file: str | None, as_json: bool) -> None:
    """Have nothing delivered to a destination, until it is resumed. New mail for it is taken."""
    if len(reason) > TEXT_MAX or not reason.isprintable():
        raise click.BadParameter(f"at most {TEXT_MAX} printable characters", param_hint="--reason")

    async def work(office: Office) -> tuple[Suspension, bool]:
        made = Suspension(_label(office, destination), who(), time.time_ns() / 1e9, reason)
        return made, await office.postmaster.suspend(made)

    made, done = in_office(read_config(config_file), work)
    if not done:
        raise AnswerNo(f"{output.safe(made.destination)} is suspended already")
    if as_json:
        output.as_json(made.to_json())
    else:
        click.echo(f"{output.safe(made.destination)} is suspended")


@click.command()
@click.argument("destination")
@config_option
@json_option
def resume(destination: str, config_file: str | None, as_json: bool) -> None:
    """Have mail delivered to a destination again; what waits for it is due now."""

    async def work(office: Office) -> tuple[str, Suspension | None]:
        from gateway.app.destinations import hasten

        # Whatever is suspended can be resumed, by a configuration that does not know it any more too.
        known = destination in await office.postmaster.suspensions()
        label = destination if known else _label(office, destination)
        ended = await office.postmaster.resume(label, by=who())
        if ended is not None and await office.postmaster.unattended():
            # No worker does it. One that runs waits until it puts nothing off any more.
            await hasten(office.postmaster, office.destinations.hop, [label])
        return label, ended

    label, ended = in_office(read_config(config_file), work)
    if ended is None:
        raise AnswerNo(f"{output.safe(label)} is not suspended")
    if as_json:
        output.as_json(ended.to_json())
    else:
        click.echo(f"{output.safe(label)} is resumed")


@click.command()
@config_option
@json_option
def suspended(config_file: str | None, as_json: bool) -> None:
    """List suspended destinations: since when, by whom and why."""

    async def work(office: Office) -> list[Suspension]:
        return sorted((await office.postmaster.suspensions()).values(), key=lambda one: one.since)

    found = in_office(read_config(config_file), work)
    if as_json:
        output.as_json([one.to_json() for one in found])
        return
    rows = [(one.destination, output.when(one.since), one.by, one.reason) for one in found]
    output.show(output.table(("DESTINATION", "SINCE", "BY", "REASON"), rows))


def _label(office: Office, destination: str) -> str:
    try:
        return office.destinations.label(destination)
    except ValueError as error:
        raise Failure(f"{output.safe(destination)} is no destination: {output.safe(error)}") from error
