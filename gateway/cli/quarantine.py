"""``gatepost quarantine``: look at the mail that policies set aside, let it go, or drop it.

The gateway may run or not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from gateway.cli import output
from gateway.cli.options import AnswerNo, config_option, json_option, read_config, who, with_spool
from gateway.cli.queue import print_one, report
from gateway.mail.address import AddressError
from gateway.mail.envelope import Recipient
from gateway.ops.quarantine import Filter, released_to, search
from gateway.ops.view import stored_json
from gateway.sdk.options import parse_duration
from gateway.spool.spool import Spool, State, Stored

_PAGE: Final = 1000
_ALL: Final = 1 << 30


@click.group()
def quarantine() -> None:
    """Look at the mail that policies set aside, let it go, or drop it."""


def _age(_: click.Context, __: click.Parameter, value: str | None) -> float:
    """The moment so long ago; 0 for none."""
    if value is None:
        return 0.0
    try:
        return time.time_ns() / 1e9 - parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say which messages are meant; the command takes them as `wanted`."""

    def filtered(reason: str, sender: str, recipient: str, older: float, newer: float, **rest: Any) -> Any:
        return command(wanted=Filter(reason, sender, recipient, older, newer), **rest)

    filtered.__name__, filtered.__doc__ = command.__name__, command.__doc__
    filtered.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for name, text in (("newer", "Came less than this ago"), ("older", "Came more than this ago")):
        option = click.option(f"--{name}", callback=_age, metavar="AGE", help=f"{text}, such as 2h or 7d.")
        filtered = option(filtered)
    for name in ("recipient", "sender", "reason"):
        filtered = click.option(f"--{name}", default="", metavar="TEXT", help=f"Text within the {name}.")(filtered)
    return filtered


ids_argument = click.argument("ids", nargs=-1, metavar="[ID]...")


@quarantine.command("list")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=_PAGE, show_default=True, help="At most so many.")
@click.option("--after", default="", metavar="ID", help="Begin after this id.")
@config_option
@json_option
@filter_options
def list_(wanted: Filter, limit: int, after: str, config_file: str | None, as_json: bool) -> None:
    """List messages by id, the oldest first."""
    config = read_config(config_file)

    async def work(spool: Spool) -> list[Stored]:
        found, _ = await search(spool, State.QUARANTINE, wanted, limit=limit, after=after.upper(), scan=_ALL)
        return found

    messages = with_spool(config, work)
    if as_json:
        output.as_json([stored_json(message) for message in messages])
        return
    columns = ("ID", "RECEIVED", "SIZE", "SENDER", "TO", "REASON", "DROPPED")
    output.show(output.table(columns, [_row(message, config.quarantine.keep) for message in messages]))


def _row(message: Stored, keep: float) -> tuple[object, ...]:
    to = [str(slot.recipient.address) for slot in message.slots]
    more = f" and {len(to) - 1} more" if len(to) > 1 else ""
    sender = str(message.envelope.sender) or "<>"
    end = output.when(message.received + keep) if keep else "never"
    received = output.when(message.received)
    return message.id, received, message.size, sender, "".join(to[:1]) + more, message.reason, end


@quarantine.command()
@click.argument("id")
@click.option("--content", is_flag=True, help="Print the message's octets as they would leave, and nothing else.")
@config_option
@json_option
def show(id: str, content: bool, config_file: str | None, as_json: bool) -> None:
    """Show one message: envelope, reason, header section."""
    print_one(id, content, config_file, as_json, state=State.QUARANTINE)


def _address(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[Recipient, ...]:
    try:
        return tuple(released_to(value) for value in values)
    except AddressError as error:
        raise click.BadParameter(str(error)) from error


@quarantine.command()
@ids_argument
@click.option("--to", multiple=True, metavar="ADDRESS", callback=_address, help="Other recipients; may be repeated.")
@config_option
@json_option
@filter_options
def release(
    wanted: Filter, ids: tuple[str, ...], to: tuple[Recipient, ...], config_file: str | None, as_json: bool
) -> None:
    """Queue messages for their recipients, or for others; due now."""
    by = who()

    async def step(spool: Spool, chosen: Sequence[str]) -> int:
        return await spool.release(chosen, by=by, to=to, states=(State.QUARANTINE,))

    _change("released", ids, wanted, config_file, as_json, step)


@quarantine.command()
@ids_argument
@config_option
@json_option
@filter_options
def drop(wanted: Filter, ids: tuple[str, ...], config_file: str | None, as_json: bool) -> None:
    """Remove messages for good, without telling anybody."""
    by = who()

    async def step(spool: Spool, chosen: Sequence[str]) -> int:
        return await spool.drop(chosen, by=by, states=(State.QUARANTINE,))

    _change("dropped", ids, wanted, config_file, as_json, step)


def _change(done: str, ids: tuple[str, ...], wanted: Filter, config_file: str | None, as_json: bool, step: Any) -> None:
    """Run `step` on the messages named, or else on all that the filter finds; status 1 when some were not there."""
    if not ids and wanted == Filter():
        raise click.UsageError("give at least one ID, or --reason, --sender, --recipient, --older or --newer")
    if ids and wanted != Filter():
        raise click.UsageError("give IDs, or say which messages, not both")

    async def work(spool: Spool) -> tuple[int, int]:
        chosen = list(dict.fromkeys(id.upper() for id in ids))
        if not ids:
            found, _ = await search(spool, State.QUARANTINE, wanted, limit=_ALL, scan=_ALL)
            chosen = [message.id for message in found]
        return len(chosen), await step(spool, chosen) if chosen else 0

    chosen, changed = with_spool(read_config(config_file), work)
    report(done, changed, as_json)
    if changed < chosen:
        raise AnswerNo(f"{chosen - changed} of {chosen} not {done}: no such message in quarantine")
