"""``gatepost simulate``: what would become of a message, without sending it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import yaml

from gateway.cli import output
from gateway.cli.options import Failure, config_option, json_option, read_config
from gateway.cli.tree import tree
from gateway.config import Config, ConfigError
from gateway.mail.address import AddressError, parse_forward_path, parse_reverse_path
from gateway.mail.envelope import Recipient
from gateway.mail.session import Tls, plain_address
from gateway.ops import log
from gateway.pipeline.plan import PipelineError
from gateway.pipeline.recall import RecallError
from gateway.sdk.services import StateError

_CIPHERS: Final = {"TLSv1.2": "ECDHE-RSA-AES256-GCM-SHA384", "TLSv1.3": "TLS_AES_256_GCM_SHA384"}
"""What most clients come to with each version."""


@click.command()
@click.argument("message", type=click.Path(exists=True, dir_okay=False, allow_dash=True), metavar="FILE")
@click.option("--client", required=True, metavar="ADDRESS", help="The client's IP address.")
@click.option("--helo", default="client.example", show_default=True, help="What it says at EHLO.")
@click.option("--name", default="", help="Its name, as a trusted XCLIENT would give it.")
@click.option("--from", "sender", default="", metavar="ADDRESS", help="Envelope sender; default: the null sender.")
@click.option("--to", "recipients", required=True, multiple=True, metavar="ADDRESS", help="Recipient; may be repeated.")
@click.option("--tls", type=click.Choice(list(_CIPHERS)), help="The session is protected by this version of TLS.")
@click.option(
    "--client-certificate",
    "certificate",
    type=click.Path(exists=True, dir_okay=False),
    help="PEM file of a certificate that the client shows, and a CA of the listener's vouches for.",
)
@click.option("--findings", type=click.Path(exists=True, dir_okay=False), help="YAML file of what is to be found.")
@click.option("--pipeline", default="default", show_default=True, help="The listener's pipeline.")
@click.option("--output", "written", type=click.Path(dir_okay=False), help="Write the message as it would be queued.")
@config_option
@json_option
def simulate(
    message: str,
    client: str,
    helo: str,
    name: str,
    sender: str,
    recipients: tuple[str, ...],
    tls: str | None,
    certificate: str | None,
    findings: str | None,
    pipeline: str,
    written: str | None,
    config_file: str | None,
    as_json: bool,
) -> None:
    """Play a session in which a client sends the message in FILE; nothing is queued."""
    config = read_config(config_file)
    # What a running gateway would log of it is on the screen anyway.
    log.setup("console", "warning", for_good=False)
    if pipeline not in config.all_pipelines:
        raise Failure(f"no pipeline is called {pipeline}; there are {', '.join(sorted(config.all_pipelines))}")
    with _file(message) as path:
        scene = _scene(path, client, helo, name, sender, recipients, pipeline, _tls(tls, certificate))
        played = _play(config, scene, _read(findings))
    if written and played.contents:
        Path(written).write_bytes(next(iter(played.contents.values())))
    if as_json:
        dialogue = [{"command": line.command, "reply": line.reply} for line in played.dialogue]
        output.as_json({"taken": played.taken, "dialogue": dialogue, "records": list(played.records.values())})
    else:
        _print(played)
    sys.exit(0 if played.taken else 1)


@contextlib.contextmanager
def _file(message: str) -> Iterator[Path]:
    """The message as a file: it may be read more than once."""
    if message != "-":
        yield Path(message)
        return
    with tempfile.NamedTemporaryFile(prefix="gatepost-simulate-") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield Path(file.name)


def _read(findings: str | None) -> dict[str, dict[str, Any]]:
    if findings is None:
        return {}
    try:
        given = yaml.safe_load(Path(findings).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Failure(f"{findings}: {error}") from error
    if not isinstance(given, dict) or not all(isinstance(value, dict) for value in given.values()):
        raise Failure(f"{findings}: expected names of findings, each with its fields")
    return {str(name): value for name, value in given.items()}


def _tls(version: str | None, certificate: str | None) -> Tls | None:
    if version is None:
        if certificate is not None:
            raise Failure("a certificate is shown in TLS only: say --tls TLSv1.3")
        return None
    client = None
    if certificate is not None:
        from cryptography.hazmat.primitives.serialization import Encoding

        from gateway.smtp.certificate import inspect, read_authorities

        try:
            shown = read_authorities(certificate)[0].public_bytes(Encoding.DER)
        except (OSError, ValueError) as error:
            raise Failure(f"{certificate}: {error}") from error
        client = inspect(shown, "")
    return Tls(version, _CIPHERS[version], client=client)


def _scene(
    path: Path,
    client: str,
    helo: str,
    name: str,
    sender: str,
    recipients: tuple[str, ...],
    pipeline: str,
    tls: Tls | None,
) -> Any:
    # The metrics library decides at import whether it counts for one process or for many.
    from gateway.app.scene import Scene

    try:
        return Scene(
            # As the front door takes a client that comes by IPv6 with an IPv4 address.
            plain_address(ipaddress.ip_address(client)),
            helo,
            parse_reverse_path(sender, utf8=True),
            tuple(Recipient(parse_forward_path(to, utf8=True)) for to in recipients),
            path,
            name,
            pipeline,
            tls,
        )
    except (AddressError, ValueError) as error:
        raise Failure(str(error)) from error


def _play(config: Config, scene: Any, findings: dict[str, dict[str, Any]]) -> Any:
    from gateway.app.simulation import simulate

    try:
        return asyncio.run(simulate(config, scene, findings))
    except (ConfigError, PipelineError, StateError, RecallError, OSError) as error:
        raise Failure(str(error)) from error
    except sqlite3.Error as error:
        raise Failure(f"the state in {output.safe(config.state.path)} cannot be read: {error}") from error


def _print(played: Any) -> None:
    for line in played.dialogue:
        if line.command:
            click.echo(f"> {output.safe(line.command)}")
        click.echo(f"< {output.safe(line.reply)}")
    for record in played.records.values():
        click.echo()
        output.show(tree({"record": record}))
