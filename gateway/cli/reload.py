"""``gatepost reload``: have a running gateway take the configuration as the file has it now."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import click

from gateway.cli import output
from gateway.cli.gateway import load_checked
from gateway.cli.options import AnswerNo, Failure, config_option, find_config, json_option
from gateway.config import Config

_PATIENCE: Final = 130.0
"""Seconds; the gateway answers within 120."""
_ANSWER_OCTETS: Final = 1 << 20
_HERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@click.command()
@config_option
@json_option
def reload(config_file: str | None, as_json: bool) -> None:
    """Check the configuration, and have the running gateway take it. Sessions that are open keep the old one."""
    config, _ = load_checked(find_config(config_file), as_json)
    status, answer = _ask(config)
    if "result" not in answer:
        raise AnswerNo(_refusal(status, answer))
    same = answer["result"] != "done" or answer.get("config") == config.digest
    if as_json:
        output.as_json({**answer, "checked": config.digest})
    else:
        _print(answer)
    if not same:
        click.echo(
            f"but the file that was checked is {config.digest}: the gateway runs with another one,"
            f" {output.safe(answer.get('file'))}, or it has changed meanwhile",
            err=True,
        )
    sys.exit(0 if answer["result"] == "done" and same else 1)


def _ask(config: Config) -> tuple[int, dict[str, Any]]:
    """Ask the gateway that listens at `admin.address`; gives status and answer, which is empty when it is none."""
    # It takes a while to import.
    import httpx

    address = config.admin.address
    if not address.port:
        raise Failure("admin.address has port 0, so nobody knows where to ask; send SIGHUP instead")
    host = _HERE.get(str(address.ip), str(address.ip))
    url = f"http://{f'[{host}]' if ':' in host else host}:{address.port}/api/v1/reload"
    token = config.admin.secret
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    body = b""
    try:
        # The environment's proxies are no way to a server on this machine.
        with (
            httpx.Client(trust_env=False, timeout=_PATIENCE) as client,
            client.stream("POST", url, headers=headers) as got,
        ):
            for block in got.iter_bytes():
                body += block
                if len(body) > _ANSWER_OCTETS:
                    raise AnswerNo(f"{url}: what answers there is no Gatepost")
            return got.status_code, _object(body)
    except httpx.HTTPError as error:
        raise AnswerNo(f"{url}: {error}; does the gateway run, and with this admin.address?") from error


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _refusal(status: int, answer: dict[str, Any]) -> str:
    error = output.safe(answer.get("error", "that is no answer of Gatepost's"))
    if status == 401:
        return (
            f"{error}: admin.token in the file is not that of the running gateway, which takes another one at a restart"
        )
    return f"status {status}: {error}"


def _print(answer: dict[str, Any]) -> None:
    said = f"generation {answer.get('generation')}, configuration {answer.get('config')}"
    if answer["result"] == "done":
        workers = len(answer.get("workers", []))
        click.echo(output.safe(f"done: {said}, {workers} workers, {answer.get('seconds')} s"))
    else:
        for line in str(answer.get("reason")).splitlines():
            click.echo(output.safe(f"{answer['result']}: {line}"), err=True)
        click.echo(output.safe(f"in force: {said}"), err=True)
    for key in answer.get("needs_restart", []):
        click.echo(output.safe(f"needs a restart: {key}"))
