"""``gatepost queue``: look at the mail in the spool, and move it. The gateway may run or not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from gateway.cli import output
from gateway.cli.options import AnswerNo, config_option, json_option, read_config, who, with_spool
from gateway.mail.message import split_header
from gateway.ops.view import stored_json
from gateway.spool.spool import Claimed, Spool, State, Stored

_PAGE: Final = 1000
_HEADER_OCTETS: Final = 1 << 20

state_option = click.option(
    "--state", type=click.Choice([state.value for state in State]), help="Only messages in this state."
)
ids_argument = click.argument("ids", nargs=-1, metavar="[ID]...")


@click.group()
def queue() -> None:
    """Look at the mail in the spool, and move it."""


@queue.command("list")
@state_option
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=_PAGE, show_default=True, help="At most so many.")
@click.option("--after", default="", metavar="ID", help="Begin after this id.")
@config_option
@json_option
def list_(state: str | None, limit: int, after: str, config_file: str | None, as_json: bool) -> None:
    """List messages by id, the oldest first."""
    wanted = State(state) if state else None

    async def work(spool: Spool) -> Sequence[Stored]:
        return await spool.list(state=wanted, limit=limit, after=after)

    messages = with_spool(read_config(config_file), work)
    if as_json:
        output.as_json([stored_json(message) for message in messages])
        return
    output.show(output.table(("ID", "STATE", "RECEIVED", "SIZE", "SENDER", "TO", "NEXT", "LAST"), _rows(messages)))


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


def print_one(id: str, content: bool, config_file: str | None, as_json: bool, *, state: State | None = None) -> None:
    """Print a message, which must be in `state` if that is given."""
    if content and as_json:
        raise click.UsageError("--content and --json exclude each other")

    async def work(spool: Spool) -> tuple[Claimed, bytes] | None:
        claimed = await spool.show(id.upper())
        if claimed is None or (state and claimed.message.state is not state):
            return None
        head = b""
        if content:
            async for block in claimed.content.blocks():
                sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
            return claimed, head
        async for block in claimed.content.blocks():
            head += block
            if len(head) >= _HEADER_OCTETS or b"\r\n\r\n" in head:
                break
        return claimed, head

    found = with_spool(read_config(config_file), work)
    if found is None:
        raise AnswerNo(f"{output.safe(id)} is not in {state or 'the spool'}")
    if content:
        return
    claimed, head = found
    header = head[: split_header(head)[1]].decode("utf-8", "replace").replace("\r\n", "\n")
    if as_json:
        output.as_json({**stored_json(claimed.message), "header": header})
        return
    _print_message(claimed.message)
    click.echo()
    for line in header.splitlines():
        click.echo(output.safe(line.replace("\t", "    ")))


def _print_message(message: Stored) -> None:
    view = stored_json(message)
    lines: list[tuple[str, Any]] = [
        ("id", view["id"]),
        ("state", view["state"] + (f" ({view['reason']})" if view["reason"] else "")),
        ("received", output.when(message.received)),
        ("size", f"{message.size} octets"),
        ("sender", view["sender"] or "<>"),
    ]
    lines += [(key, view[key]) for key in ("body", "ret", "envid", "next_hop") if view[key]]
    lines.append(("bounce", "owed to the sender" if message.owed else "not owed"))
    for key, value in lines:
        click.echo(f"{key + ':':<11}{output.safe(value)}")
    for slot in message.slots:
        due = f", due {output.when(slot.due)}" if slot.status.open else ""
        last = f": {slot.last}" if slot.last else ""
        line = f"{slot.recipient.address} {slot.status}, {slot.attempts} attempts{due}{last}"
        click.echo(f"{'to:':<11}{output.safe(line)}")


async def _select(spool: Spool, ids: Sequence[str], state: str | None) -> list[str]:
    """The ids as the spool writes them, and those of all messages in `state`."""
    out = list(dict.fromkeys(id.upper() for id in ids))
    after = ""
    while state:
        page = await spool.list(state=State(state), limit=_PAGE, after=after)
        out += [message.id for message in page if message.id not in ids]
        if len(page) < _PAGE:
            break
        after = page[-1].id
    return out


def _change(
    done: str, ids: tuple[str, ...], state: str | None, config_file: str | None, as_json: bool, step: Any
) -> None:
    """Run `step` on the selected messages and report how many it changed; status 1 when some were not there."""
    if not ids and not state:
        raise click.UsageError("give at least one ID, or --state")

    async def work(spool: Spool) -> tuple[int, int]:
        chosen = await _select(spool, ids, state)
        return len(chosen), await step(spool, chosen) if chosen else 0

    chosen, changed = with_spool(read_config(config_file), work)
    report(done, changed, as_json)
    if changed < chosen:
        raise AnswerNo(f"{chosen - changed} of {chosen} not {done}: no such message, or not in a state for it")


def report(done: str, changed: int, as_json: bool) -> None:
    """Say how many messages were changed."""
    if as_json:
        output.as_json({"messages": changed})
    else:
        click.echo(f"{changed} {'message' if changed == 1 else 'messages'} {done}")


@queue.command()
@ids_argument
@config_option
@json_option
def flush(ids: tuple[str, ...], config_file: str | None, as_json: bool) -> None:
    """Make deferred mail due now: all of it, or the messages named."""

    async def work(spool: Spool) -> int:
        return await spool.flush([id.upper() for id in ids] or None)

    changed = with_spool(read_config(config_file), work)
    report("due now", changed, as_json)
    if changed < len(set(ids)):
        raise AnswerNo(f"{len(set(ids)) - changed} of {len(set(ids))} are not queued")


async def _release(spool: Spool, ids: list[str]) -> int:
    return await spool.release(ids, by=who())


async def _drop(spool: Spool, ids: list[str]) -> int:
    return await spool.drop(ids, by=who())


def _command(name: str, done: str, summary: str, step: Callable[[Spool, list[str]], Any]) -> None:
    @queue.command(name, help=summary)
    @ids_argument
    @state_option
    @config_option
    @json_option
    def command(ids: tuple[str, ...], state: str | None, config_file: str | None, as_json: bool) -> None:
        _change(done, ids, state, config_file, as_json, step)


_command("release", "released", "Queue held or quarantined messages again, due now.", _release)
_command("drop", "dropped", "Remove messages for good, without telling the sender.", _drop)
_command("retry", "due now", "Make queued messages due now.", lambda s, ids: s.flush(ids))


@queue.command()
@ids_argument
@state_option
@click.option("--reason", default="by the postmaster", show_default=True, help="Why; stands in list and show.")
@config_option
@json_option
def hold(ids: tuple[str, ...], state: str | None, reason: str, config_file: str | None, as_json: bool) -> None:
    """Set messages aside until they are released or dropped."""
    _change("held", ids, state, config_file, as_json, lambda spool, chosen: spool.hold(chosen, reason[:200]))
