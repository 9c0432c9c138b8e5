"""``gatepost queue evacuate``: hand the mail of this spool over to other gateways."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from gateway.cli import output
from gateway.cli.options import AnswerNo, Failure, config_option, json_option, read_config, who
from gateway.config import Config
from gateway.spool.spool import SpoolError
from gateway.transport.peer import URLS_MAX, PeersError, check_url, read_token

if TYPE_CHECKING:
    from gateway.app.evacuation import Evacuated

_TOLD: Final = 20


def _seconds(_: click.Context, __: click.Parameter, value: str) -> float:
    from gateway.sdk.options import parse_duration

    try:
        return float(value) if value.isascii() and value.isdigit() and len(value) < 9 else parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _urls(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    try:
        urls = tuple(check_url(url.strip()) for url in value.split(",") if url.strip())
    except PeersError as error:
        raise click.BadParameter(str(error)) from error
    if len(urls) > URLS_MAX:
        raise click.BadParameter(f"at most {URLS_MAX} of them")
    return urls


@click.command()
@click.option(
    "--to", default="", callback=_urls, metavar="URL[,URL...]", help="The other gateways. Default: evacuate.peers."
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Their token, in the first line. Default: evacuate.token_file, else that of admin.",
)
@click.option("--wait", default="300", show_default=True, callback=_seconds, metavar="TIME", help="At most so long.")
@click.option("--settle", is_flag=True, help="Only find out what became of messages that are leaving; offer no others.")
@click.option(
    "--forget",
    default="",
    metavar="NAME|URL",
    help="First take back what is leaving to this gateway, which is gone for good. What it took is delivered twice.",
)
@config_option
@json_option
def evacuate(
    to: tuple[str, ...],
    token_file: Path | None,
    wait: float,
    settle: bool,
    forget: str,
    config_file: str | None,
    as_json: bool,
) -> None:
    """Hand every message over to other gateways, until none is left. The gateway here may be stopped, or drain.

    Status 1 when something is left.
    """
    config = read_config(config_file)
    urls = to or config.evacuate.peers
    if not urls:
        raise click.UsageError("say to whom: --to URL, or evacuate.peers in the configuration")
    done = _run(config, urls, _token(config, token_file), wait, settle, forget)
    if as_json:
        output.as_json(done.to_json())
    else:
        click.echo(f"{done.handed} {'message' if done.handed == 1 else 'messages'} handed over")
    if done.unsettled or not (settle or done.empty):
        raise AnswerNo("\n".join(_what_is_left(done)))


def _token(config: Config, token_file: Path | None) -> str:
    from gateway.app.evacuation import token_of

    if token_file is None:
        return token_of(config)
    try:
        with open(token_file, "rb") as file:
            return read_token(file.read(4096))
    except OSError as error:
        raise Failure(f"--token-file {output.safe(token_file)}: {error.strerror}") from error
    except PeersError as error:
        raise Failure(f"--token-file {output.safe(token_file)}: {error}") from error


def _run(config: Config, urls: tuple[str, ...], token: str, wait: float, settle: bool, forget: str) -> Evacuated:
    from gateway.app.evacuation import AlreadyEvacuated, evacuation
    from gateway.ops import log

    log.setup(config.log.format, "warning")

    async def work() -> Evacuated:
        async with evacuation(config, urls, token, who()) as running:
            if forget:
                await running.forget(forget)
            return await running.run(0.0 if settle else wait)

    try:
        return asyncio.run(work())
    except AlreadyEvacuated:
        raise AnswerNo("another evacuation of this spool is under way") from None
    except SpoolError as error:
        raise Failure(str(error)) from error


def _what_is_left(done: Evacuated) -> list[str]:
    counts = ", ".join(f"{count} {output.safe(state)}" for state, count in sorted(done.left.items()))
    lines = [f"left: {counts}"]
    lines += [output.safe(why) for why in done.why]
    lines += [f"{output.safe(id)}: {output.safe(why)}" for id, why in done.messages.items()]
    for one in done.unsettled[:_TOLD]:
        lines.append(output.safe(f"{one.id}: {one.name} at {one.url} has not said whether it took it"))
    return lines
