"""``gatepost queue``: look at the mail in the spool, and move it. The gateway may run or not."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from gateway.cli import output, queue_changes, queue_evacuate, queue_live, queue_moves
from gateway.cli.office import Office, in_office
from gateway.cli.options import AnswerNo, config_option, json_option, read_config
from gateway.cli.selection import selection_options
from gateway.mail.message import Content, split_header
from gateway.ops.operations import Selection
from gateway.ops.view import stored_json
from gateway.ops.why import Reason, Scene, reasons
from gateway.spool.spool import SpoolError, State, Stored

if TYPE_CHECKING:
    from gateway.spool.hands import Found

_PAGE: Final = 1000
_STEP: Final = 2000
"""Messages that are read at once."""
_HEADER_OCTETS: Final = 1 << 20


@click.group()
def queue() -> None:
    """Look at the mail in the spool, and move it."""


@queue.command("list")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=_PAGE, show_default=True, help="At most so many.")
@click.option("--after", default="", metavar="ID", help="Begin after this id.")
@config_option
@json_option
@selection_options
def list_(wanted: Selection, limit: int, after: str, config_file: str | None, as_json: bool) -> None:
    """List messages by id, the oldest first."""

    columns = ("ID", "STATE", "RECEIVED", "SIZE", "SENDER", "TO", "NEXT", "LAST")
    listing = output.JsonArray() if as_json else output.Columns(columns)

    async def work(office: Office) -> None:
        chosen, hop = office.selected(wanted)
        left, last = limit, after.upper()
        while left:
            page = await office.postmaster.find(chosen, hop, limit=min(left, _STEP), after=last)
            if isinstance(listing, output.JsonArray):
                listing.add([{**stored_json(one.message), "claimed": one.claimed} for one in page])
            else:
                listing.add(_rows([one.message for one in page]))
            if len(page) < min(left, _STEP):
                break
            left, last = left - len(page), page[-1].message.id

    in_office(read_config(config_file), work)
    listing.end()


def _rows(messages: Sequence[Stored]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for message in messages:
        open_slots = [slot for slot in message.slots if slot.status.open] or list(message.slots)
        to = str(open_slots[0].recipient.address) if open_slots else ""
        more = f" and {len(open_slots) - 1} more" if len(open_slots) > 1 else ""
        last = message.reason or next((slot.last for slot in open_slots if slot.last), "")
        due = output.when(message.due) if message.state is State.QUEUED else "-"
        sender = str(message.envelope.sender) or "<>"
        received = output.when(message.received)
        rows.append((message.id, message.state, received, message.size, sender, to + more, due, last))
    return rows


@queue.command()
@click.argument("id")
@click.option("--content", is_flag=True, help="Print the message's octets as they would leave, and nothing else.")
@config_option
@json_option
def show(id: str, content: bool, config_file: str | None, as_json: bool) -> None:
    """Show one message: envelope, recipients, header section."""
    print_one(id, content, config_file, as_json)


@dataclass(frozen=True, slots=True)
class _Shown:
    """All that `show` prints. `problem` says why there is no header section."""

    found: Found
    header: str
    problem: str
    attempts: Sequence[dict[str, Any]]
    reasons: Sequence[Reason]


def print_one(id: str, content: bool, config_file: str | None, as_json: bool, *, state: State | None = None) -> None:
    """Print a message, which must be in `state` if that is given."""
    if content and as_json:
        raise click.UsageError("--content and --json exclude each other")

    async def work(office: Office) -> _Shown | None:
        found = await office.postmaster.one(id.upper())
        if found is None or (state and found.message.state is not state):
            return None
        if content:
            claimed = await office.spool.show(found.message.id)
            async for block in claimed.content.blocks() if claimed else _nothing():
                sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
            return _Shown(found, "", "", (), ())
        header, problem = "", ""
        try:
            claimed = await office.spool.show(found.message.id)
            header = await read_header(claimed.content) if claimed else ""
        except SpoolError as error:
            problem = str(error)
        explained = await office.spool.explain(found.message.id)
        attempts = explained[0].attempts if explained else ()
        return _Shown(found, header, problem, attempts, await why_here(office, found))

    shown = in_office(read_config(config_file), work)
    if shown is None:
        raise AnswerNo(f"{output.safe(id)} is not in {state or 'the spool'}")
    if content:
        return
    if as_json:
        output.as_json(_shown_json(shown))
        return
    _print_message(shown.found.message)
    _print_reasons(shown.reasons)
    for attempt in shown.attempts:
        said = [attempt.get(key, "") for key in ("recipient", "outcome", "host", "reply")]
        click.echo(f"{'attempt:':<11}{output.when(attempt.get('time', 0))} {output.safe(' '.join(map(str, said)))}")
    click.echo()
    for line in (shown.header or shown.problem).splitlines():
        click.echo(output.safe(line.replace("\t", "    ")))


def _shown_json(shown: _Shown) -> dict[str, Any]:
    more: dict[str, Any] = {"problem": shown.problem} if shown.problem else {}
    return {
        **stored_json(shown.found.message),
        "claimed": shown.found.claimed,
        "header": shown.header,
        "attempts": list(shown.attempts),
        "why": [reason.to_json() for reason in shown.reasons],
        **more,
    }


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


async def read_header(content: Content) -> str:
    """The header section as text, of a message's first octets. Raises `SpoolError`."""
    head = b""
    async for block in content.blocks():
        head += block
        if len(head) >= _HEADER_OCTETS or b"\r\n\r\n" in head:
            break
    return head[: split_header(head)[1]].decode("utf-8", "replace").replace("\r\n", "\n")


async def why_here(office: Office, found: Found) -> list[Reason]:
    """Why a message is still here. Raises `SpoolError`."""
    config = office.config
    scene = Scene(
        now=time.time_ns() / 1e9,
        give_up=config.retry.give_up,
        keep=config.quarantine.keep,
        hop=office.destinations.hop,
        suspended=await office.postmaster.suspensions(),
        attended=not await office.postmaster.unattended(),
        claimed=found.claimed,
    )
    return reasons(found.message, scene)


def _print_reasons(found: Sequence[Reason]) -> None:
    for reason in found:
        whom = f"{reason.recipient}: " if reason.recipient else ""
        when = f", {output.when(reason.until)}" if reason.until else ""
        click.echo(f"{'why:':<11}{output.safe(whom + reason.text)}{when}")


@queue.command()
@click.argument("id")
@config_option
@json_option
def why(id: str, config_file: str | None, as_json: bool) -> None:
    """Say why a message is still here, and when it goes next."""

    async def work(office: Office) -> list[Reason] | None:
        found = await office.postmaster.one(id.upper())
        return None if found is None else await why_here(office, found)

    found = in_office(read_config(config_file), work)
    if found is None:
        raise AnswerNo(f"{output.safe(id)} is not in the spool; gatepost explain says what became of it")
    if as_json:
        output.as_json([reason.to_json() for reason in found])
        return
    _print_reasons(found)


def _print_message(message: Stored) -> None:
    view = stored_json(message)
    lines: list[tuple[str, Any]] = [
        ("id", view["id"]),
        ("state", view["state"] + (f" ({view['reason']})" if view["reason"] else "")),
        ("received", output.when(message.received)),
        ("size", f"{message.size} octets"),
        ("sender", view["sender"] or "<>"),
    ]
    lines += [(key, view[key]) for key in ("body", "ret", "envid", "next_hop", "priority") if view[key]]
    lines.append(("bounce", "owed to the sender" if message.owed else "not owed"))
    for key, value in lines:
        click.echo(f"{key + ':':<11}{output.safe(value)}")
    for slot in message.slots:
        due = f", due {output.when(slot.due)}" if slot.status.open else ""
        last = f": {slot.last}" if slot.last else ""
        line = f"{slot.recipient.address} {slot.status}, {slot.attempts} attempts{due}{last}"
        click.echo(f"{'to:':<11}{output.safe(line)}")


def report(done: str, changed: int, as_json: bool) -> None:
    """Say how many messages were changed."""
    if as_json:
        output.as_json({"messages": changed})
    else:
        click.echo(f"{changed} {'message' if changed == 1 else 'messages'} {done}")


for _command in (queue_changes.flush, queue_changes.retry, queue_changes.hold, queue_changes.release):
    queue.add_command(_command)
for _command in (queue_changes.drop, queue_changes.reroute, queue_changes.redirect, queue_changes.recipients):
    queue.add_command(_command)
for _command in (queue_live.top, queue_live.suspend, queue_live.resume, queue_live.suspended):
    queue.add_command(_command)
for _command in (queue_moves.export, queue_moves.import_, queue_evacuate.evacuate):
    queue.add_command(_command)
