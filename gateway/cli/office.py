"""What the commands of ``gatepost queue`` share: the spool and its postmaster, the choice of messages, the answer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from gateway.cli import output
from gateway.cli.options import AnswerNo, Failure, config_option, json_option, read_config, who
from gateway.cli.selection import selection_options
from gateway.config import Config
from gateway.ops.operations import DEEDS, FOR_GOOD, STATES, WHY_NOT, Amended, Amendment, Retry, Selection
from gateway.spool.spool import SpoolError

if TYPE_CHECKING:
    from gateway.app.destinations import Destinations
    from gateway.spool.hands import Hands, OperatedSpool

_PAGE: Final = 1000
_TOLD: Final = 20
"""Messages that are named one by one on a terminal."""
_WAIT: Final = "10s"
_T = TypeVar("_T")


class Office:
    """The spool, open for one command."""

    def __init__(self, spool: OperatedSpool, config: Config) -> None:
        self.spool = spool
        self.config = config

    @property
    def postmaster(self) -> Hands:
        return self.spool.postmaster

    @cached_property
    def destinations(self) -> Destinations:
        """Made when it is asked for: it loads much."""
        from gateway.app.destinations import Destinations

        return Destinations(self.config)

    def selected(self, wanted: Selection) -> tuple[Selection, Callable[[str, str, str, str, str], str]]:
        """The selection with its destination as lists show it, and what says where mail goes."""
        if not wanted.next_hop:
            return wanted, lambda *_: ""
        try:
            wanted = replace(wanted, next_hop=self.destinations.label(wanted.next_hop))
        except ValueError as error:
            if wanted.next_hop != "?":
                raise Failure(f"--next-hop: {output.safe(error)}") from error
        return wanted, self.destinations.hop

    async def ids(self, wanted: Selection) -> list[str]:
        """The ids of all messages that are meant."""
        wanted, hop = self.selected(wanted)
        out: list[str] = []
        while True:
            page = await self.postmaster.find(wanted, hop, limit=_PAGE, after=out[-1] if out else "")
            out += [found.message.id for found in page]
            if len(page) < _PAGE:
                return out


def in_office(config: Config, work: Callable[[Office], Awaitable[_T]]) -> _T:
    """Open the operator's view of the spool, do the work, and close it. The gateway may be running or not."""

    async def run() -> _T:
        from gateway.spool.opening import open_all

        try:
            spool = await open_all(config.spool.options())
        except SpoolError as error:
            raise Failure(str(error)) from error
        try:
            return await work(Office(spool, config))
        except SpoolError as error:
            raise AnswerNo(str(error)) from error
        finally:
            await spool.close()

    return asyncio.run(run())


def change_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every command takes that changes messages; given on as `change`, which makes the change."""

    def changing(
        wanted: Selection,
        ids: tuple[str, ...],
        dry_run: bool,
        yes: bool,
        wait: float,
        config_file: str | None,
        as_json: bool,
        **rest: Any,
    ) -> Any:
        return command(change=Change(wanted, ids, dry_run, yes, wait, config_file, as_json), **rest)

    changing.__name__, changing.__doc__ = command.__name__, command.__doc__
    changing.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    changing = json_option(config_option(changing))
    changing = click.option(
        "--wait",
        default=_WAIT,
        show_default=True,
        callback=_seconds,
        metavar="TIME",
        help="For messages that are being delivered just now.",
    )(changing)
    changing = click.option("--yes", is_flag=True, help="Do not ask, whatever the number of messages is.")(changing)
    changing = click.option("--dry-run", is_flag=True, help="Only say which messages are meant.")(changing)
    return click.argument("ids", nargs=-1, metavar="[ID]...")(selection_options(changing))


def _seconds(_: click.Context, __: click.Parameter, value: str) -> float:
    from gateway.sdk.options import parse_duration

    try:
        return parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


class Change:
    """One change of messages, as a command line asks for it."""

    def __init__(
        self,
        wanted: Selection,
        ids: Sequence[str],
        dry_run: bool,
        yes: bool,
        wait: float,
        config_file: str | None,
        as_json: bool,
    ) -> None:
        self._wanted = wanted
        self._ids = list(dict.fromkeys(id.upper() for id in ids))
        self._dry_run = dry_run
        self._yes = yes
        self._wait = wait
        self._as_json = as_json
        self.config = read_config(config_file)

    def make(self, amendment: Amendment | Callable[[Office], Amendment], *, all: bool = False, done: str = "") -> None:
        """Amend the messages that are meant, all that can be if nothing says which and `all` allows it.

        Status 1 when something was not done.
        """
        if self._ids and not self._wanted.everything:
            raise click.UsageError("give IDs, or say which messages, not both")
        if not self._ids and self._wanted.everything and not all:
            raise click.UsageError("give at least one ID, or say which messages: see --help")

        async def work(office: Office) -> tuple[Amendment, dict[str, Amended]]:
            one = amendment(office) if callable(amendment) else amendment
            wanted = self._wanted if self._wanted.states else replace(self._wanted, states=STATES[type(one)])
            if isinstance(one, Retry) and not (self._ids or self._wanted.states or self._dry_run):
                wanted, hop = office.selected(wanted)
                return one, await office.postmaster.hasten(wanted, hop, by=who(), wait=self._wait)
            chosen = self._ids or await office.ids(wanted)
            if self._dry_run:
                return one, dict.fromkeys(chosen, Amended.UNCHANGED)
            if isinstance(one, FOR_GOOD) and not self._ids and len(chosen) > 1 and not self._yes:
                _confirm(len(chosen), done or DEEDS[type(one)])
            return one, await office.postmaster.amend(chosen, one, by=who(), wait=self._wait)

        one, results = in_office(self.config, work)
        deed = done or DEEDS[type(one)]
        if self._dry_run:
            self._rehearsed(deed, list(results))
        else:
            self._report(one, deed, results)

    def _rehearsed(self, deed: str, ids: Sequence[str]) -> None:
        if self._as_json:
            output.as_json({"dry_run": True, "messages": len(ids), "ids": ids})
            return
        for id in ids:
            click.echo(output.safe(id))
        click.echo(f"{_messages(len(ids))} would be {deed}")

    def _report(self, one: Amendment, deed: str, results: dict[str, Amended]) -> None:
        done = sum(result.done for result in results.values())
        if self._as_json:
            others = {id: result.value for id, result in results.items() if result is not Amended.DONE}
            output.as_json({"messages": done, **({"others": others} if others else {})})
        else:
            click.echo(f"{_messages(done)} {deed}")
            for id in [id for id, result in results.items() if result is Amended.UNDERWAY][:_TOLD]:
                click.echo(f"{output.safe(id)}: an attempt was under way; this holds for what it leaves", err=True)
        # What was chosen a moment ago may have left meanwhile, and what is being delivered is as due as it can be.
        fine = set() if self._ids else {Amended.MISSING}
        if isinstance(one, Retry):
            fine.add(Amended.CLAIMED)
        failed = {id: result for id, result in results.items() if not result.done and result not in fine}
        if failed:
            lines = [f"{output.safe(id)}: {WHY_NOT[result]}" for id, result in list(failed.items())[:_TOLD]]
            raise AnswerNo("\n".join([*lines, f"{len(failed)} of {len(results)} not {deed}"]))


def _messages(count: int) -> str:
    return f"{count} {'message' if count == 1 else 'messages'}"


def _confirm(count: int, deed: str) -> None:
    if not _somebody_there():
        raise Failure(f"{_messages(count)} would be {deed}: say --yes if that is meant, or look first with --dry-run")
    if not click.confirm(f"{_messages(count)} will be {deed}. Go on?", err=True):
        raise AnswerNo("nothing was done")


def _somebody_there() -> bool:
    return sys.stdin.isatty()
