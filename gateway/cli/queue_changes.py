"""``gatepost queue``: the commands that change messages."""

from __future__ import annotations

from collections.abc import Sequence

import click

from gateway.cli.office import Change, Office, change_options
from gateway.cli.options import Failure
from gateway.cli.output import safe
from gateway.mail.address import Address, AddressError
from gateway.mail.envelope import Recipient
from gateway.ops.operations import (
    TEXT_MAX,
    Drop,
    EditRecipients,
    Hold,
    Redirect,
    Release,
    Reroute,
    Retry,
    Return,
)
from gateway.ops.quarantine import released_to

_REASON = "by the postmaster"


def _addresses(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[Recipient, ...]:
    try:
        return tuple(released_to(value) for value in values)
    except AddressError as error:
        raise click.BadParameter(str(error)) from error


def _text(_: click.Context, __: click.Parameter, value: str) -> str:
    if len(value) > TEXT_MAX or not value.isprintable():
        raise click.BadParameter(f"at most {TEXT_MAX} printable characters")
    return value


@click.command()
@change_options
def flush(change: Change) -> None:
    """Make deferred mail due now: all of it, or the messages that are meant."""
    change.make(Retry(), all=True, done="due now")


@click.command()
@change_options
def retry(change: Change) -> None:
    """Make queued messages due now."""
    change.make(Retry(), done="due now")


@click.command()
@click.option("--reason", default=_REASON, callback=_text, show_default=True, help="Why; stands in list and show.")
@change_options
def hold(change: Change, reason: str) -> None:
    """Set messages aside until they are released or dropped."""
    change.make(Hold(reason))


@click.command()
@change_options
def release(change: Change) -> None:
    """Queue held or quarantined messages again, due now."""
    change.make(Release())


@click.command()
@click.option("--bounce", is_flag=True, help="Have the gateway tell the sender, if he is proved.")
@click.option("--reason", default=_REASON, callback=_text, show_default=True, help="What the bounce says.")
@change_options
def drop(change: Change, bounce: bool, reason: str) -> None:
    """Remove messages for good: without telling the sender, or with a bounce."""
    change.make(Return(reason) if bounce else Drop())


@click.command()
@click.option("--to", required=True, metavar="NEXT_HOP", help="smtp:host:port and the like; routes for none.")
@change_options
def reroute(change: Change, to: str) -> None:
    """Give messages a next hop of their own, in place of what the routes say; due now."""

    def amendment(office: Office) -> Reroute:
        if to == "routes":
            return Reroute("")
        try:
            return Reroute(office.destinations.own_next_hop(to))
        except ValueError as error:
            raise Failure(f"--to: {safe(error)}") from error

    change.make(amendment)


@click.command()
@click.option(
    "--to", "to", required=True, multiple=True, metavar="ADDRESS", callback=_addresses, help="May be repeated."
)
@change_options
def redirect(change: Change, to: tuple[Recipient, ...]) -> None:
    """Send messages to others, in place of all recipients who have not got them."""
    change.make(Redirect(to))


@click.command()
@click.option("--add", multiple=True, metavar="ADDRESS", callback=_addresses, help="One more; may be repeated.")
@click.option("--remove", multiple=True, metavar="ADDRESS", callback=_addresses, help="One fewer; may be repeated.")
@change_options
def recipients(change: Change, add: tuple[Recipient, ...], remove: tuple[Recipient, ...]) -> None:
    """Add recipients, or take some away who have not got the message."""
    if not add and not remove:
        raise click.UsageError("give --add or --remove")
    gone: tuple[Address, ...] = tuple(recipient.address for recipient in remove)
    change.make(EditRecipients(add, gone))
