"""What the commands share: where the configuration is, how the spool is opened, how failure ends."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import pwd
import socket
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import IO, Any, Final, TypeVar

import click

from gateway.cli.output import safe
from gateway.config import Config, ConfigError, load
from gateway.ops.search import Network
from gateway.sdk.options import parse_duration
from gateway.spool.spool import Spool, SpoolError

DEFAULT_FILES: Final = ("./gatepost.yaml", "/etc/gatepost/gatepost.yaml")
_T = TypeVar("_T")


class Failure(click.ClickException):
    """Ends the command with a message and status 2: wrong usage or configuration."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(self.message, err=True)


class AnswerNo(Failure):
    """Ends the command with a message and status 1: the answer is no."""

    exit_code = 1


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``-c``."""
    return click.option(
        "-c",
        "--config",
        "config_file",
        metavar="FILE",
        envvar="GATEPOST_CONFIG",
        help="Configuration file. Default: $GATEPOST_CONFIG, else ./gatepost.yaml, else /etc/gatepost/gatepost.yaml.",
    )(command)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


class _Ago(click.ParamType[float]):
    """How long ago, in seconds: a duration such as ``2h``, or a moment such as ``2026-07-30T12:00Z`` (UTC)."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_duration(value)
        except ValueError:
            return self._since(value, param, ctx)

    def _since(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            moment = datetime.fromisoformat(value)
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            self.fail("expected a duration such as 30m or 2d, or a moment such as 2026-07-30T12:00Z", param, ctx)
        return time.time_ns() / 1e9 - seconds


class _NetworkParameter(click.ParamType[Network]):
    """An address, or a network in CIDR notation."""

    name = "network"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Network:
        try:
            return ipaddress.ip_network(value, strict=False)
        except ValueError as error:
            self.fail(str(error), param, ctx)


AGO: Final = _Ago()
NETWORK: Final = _NetworkParameter()


def find_config(config_file: str | None) -> str:
    """The configuration file to use."""
    if config_file:
        return config_file
    for candidate in DEFAULT_FILES:
        if os.path.exists(candidate):
            return candidate
    raise Failure(f"no configuration: give one with -c, or put it at {' or '.join(DEFAULT_FILES)}")


def read_config(config_file: str | None) -> Config:
    """The configuration; ends the command with every problem when there is one."""
    try:
        return load(find_config(config_file))
    except ConfigError as error:
        raise Failure(str(error)) from error


def with_spool(config: Config, work: Callable[[Spool], Awaitable[_T]]) -> _T:
    """Open the operator's view of the spool, do the work, and close it. The gateway may be running or not."""

    async def run() -> _T:
        from gateway.spool.opening import open_all

        try:
            spool = await open_all(config.spool.options())
        except SpoolError as error:
            raise Failure(str(error)) from error
        try:
            return await work(spool)
        except SpoolError as error:
            raise AnswerNo(str(error)) from error
        finally:
            await spool.close()

    return asyncio.run(run())


def who() -> str:
    """Who is at the command line, for the record."""
    try:
        name = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return safe(f"{name[:64]} on {socket.gethostname()}")
