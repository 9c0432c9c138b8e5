"""``gatepost queue export`` and ``import``: messages as files of RFC 5322 and JSON.

*Promises*: an export never overwrites anything, and a description stands beside a message that is whole and synced.

*RFCs*: 5322.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import click

from gateway.cli import output
from gateway.cli.office import Office, in_office
from gateway.cli.options import AnswerNo, Failure, config_option, json_option, read_config, who
from gateway.cli.selection import selection_options
from gateway.ops.operations import Selection
from gateway.spool.spool import SpoolError, State

_DESCRIPTION_OCTETS: Final = 64 << 20
_BLOCK: Final = 256 << 10
_TOLD: Final = 20


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.argument("ids", nargs=-1, metavar="[ID]...")
@selection_options
@config_option
@json_option
def export(wanted: Selection, directory: Path, ids: tuple[str, ...], config_file: str | None, as_json: bool) -> None:
    """Write messages into DIRECTORY, each as ID.eml and ID.json; they stay in the spool."""
    if ids and not wanted.everything:
        raise click.UsageError("give IDs, or say which messages, not both")

    async def work(office: Office) -> tuple[list[str], dict[str, str]]:
        chosen = list(dict.fromkeys(id.upper() for id in ids)) or await office.ids(wanted)
        done: list[str] = []
        failed: dict[str, str] = {}
        for id in chosen:
            try:
                await _export(office, id, directory)
                done.append(id)
            except FileExistsError as error:
                failed[id] = f"{error.filename} is there already"
            except SpoolError as error:
                failed[id] = str(error)
        return done, failed

    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        done, failed = in_office(read_config(config_file), work)
        _sync(directory)
    except OSError as error:
        raise Failure(f"{output.safe(error.filename or directory)}: {error.strerror}") from error
    _report("exported", done, failed, as_json)


async def _export(office: Office, id: str, directory: Path) -> None:
    """Raises `SpoolError`, OSError."""
    from gateway.spool import parcel

    claimed = await office.spool.show(id)
    if claimed is None:
        raise SpoolError("no such message")
    if claimed.message.state is State.CORRUPT:
        raise SpoolError(f"it is corrupt: {claimed.message.reason}")
    digest = hashlib.sha256()
    message = directory / f"{id}.eml"
    try:
        with _create(message) as file:
            async for block in claimed.content.blocks():
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        described = json.dumps(parcel.to_json(claimed.message, digest.hexdigest()), indent=1)
        with _create(directory / f"{id}.json") as description:
            description.write(described.encode() + b"\n")
            description.flush()
            os.fsync(description.fileno())
    except FileExistsError as error:
        if error.filename != str(message):
            message.unlink()
        raise
    except BaseException:
        message.unlink(missing_ok=True)
        raise


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _sync(directory: Path) -> None:
    from gateway.spool.draft import sync_directory

    sync_directory(str(directory))


@click.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--hold", is_flag=True, help="Put them on hold, whatever they were.")
@config_option
@json_option
def import_(files: tuple[Path, ...], hold: bool, config_file: str | None, as_json: bool) -> None:
    """Put exported messages into the spool: FILES are descriptions, ID.json, or directories of them."""

    async def work(office: Office) -> tuple[list[str], dict[str, str]]:
        done: list[str] = []
        failed: dict[str, str] = {}
        for file in _descriptions(files):
            try:
                done.append(await _import(office, file, hold))
            except OSError as error:
                failed[str(file)] = f"{error.filename or file}: {error.strerror}"
            except (ValueError, SpoolError) as error:
                failed[str(file)] = str(error)
        return done, failed

    try:
        done, failed = in_office(read_config(config_file), work)
    except OSError as error:
        raise Failure(f"{output.safe(error.filename)}: {error.strerror}") from error
    _report("imported", done, failed, as_json)


def _descriptions(files: Sequence[Path]) -> list[Path]:
    """The descriptions that are meant. Raises OSError."""
    out: list[Path] = []
    for file in files:
        out += sorted(file.glob("*.json")) if file.is_dir() else [file]
    return out


async def _import(office: Office, file: Path, hold: bool) -> str:
    """Raises OSError, `SpoolError`, and ValueError for what is no description."""
    from gateway.spool import parcel

    octets = _read(file)
    if len(octets) > _DESCRIPTION_OCTETS:
        raise ValueError("the description is too long")
    try:
        data: Any = json.loads(octets)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}") from error
    read = parcel.from_json(data, office.destinations.own_next_hop)
    if hold:
        read = replace(read, state=State.HOLD, reason=read.reason or "imported")
    entered = await office.postmaster.enter(read, _blocks(file.with_suffix(".eml")), by=who())
    if entered is not parcel.Entered.DONE:
        raise ValueError("a message of this id is in the spool already")
    return read.id


async def _blocks(path: Path) -> AsyncIterator[bytes]:
    with _open(path) as file:
        while block := file.read(_BLOCK):
            yield block


def _open(path: Path) -> BinaryIO:
    """Nothing else runs on the event loop of a command, so its files are read as anybody's."""
    return open(path, "rb")


def _read(path: Path) -> bytes:
    with _open(path) as file:
        return file.read(_DESCRIPTION_OCTETS + 1)


def _create(path: Path) -> BinaryIO:
    return open(path, "xb", opener=_private)


def _report(what: str, done: Sequence[str], failed: dict[str, str], as_json: bool) -> None:
    if as_json:
        output.as_json({"messages": len(done), what: list(done), "failed": failed})
    else:
        click.echo(f"{len(done)} {'message' if len(done) == 1 else 'messages'} {what}")
    if failed:
        lines = [f"{output.safe(name)}: {output.safe(why)}" for name, why in list(failed.items())[:_TOLD]]
        raise AnswerNo("\n".join([*lines, f"{len(failed)} of {len(failed) + len(done)} not {what}"]))
