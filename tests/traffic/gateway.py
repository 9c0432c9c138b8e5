"""A real Gatepost that a day is played to: its name server, its processes, and the records it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.spool.spool import Spool, SpoolOptions
from gateway.spool.sqlite import open_all
from tests.support.gatepost import ROOT, GatepostProcess
from tests.support.process import Process, free_port
from tests.traffic.callers import Heard, play
from tests.traffic.day import Day
from tests.traffic.people import LISTS
from tests.traffic.settings import DELAY, Setting, options
from tests.traffic.zone import zone_lines

SESSIONS: Final = 40
_PAGE: Final = 1000
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

Key = tuple[int, int]
"""A visit's number and which of its transactions it was, from 1; 0 for a session that was refused."""


@dataclass(frozen=True)
class Played:
    """A day as a gateway took it: what its clients heard, what it recorded, and how long that took, in seconds."""

    heard: Mapping[Key, Heard]
    records: Mapping[Key, dict[str, Any]]
    seconds: float
    config: Path


@contextlib.contextmanager
def name_server(day: Day, directory: Path) -> Iterator[str]:
    """Serve the day's zone; gives the server's address."""
    port = free_port()
    zone = directory / "zone"
    zone.write_text("\n".join(zone_lines(day)))
    argv = [sys.executable, "-m", "tests.traffic.zone", str(zone), "--port", str(port)]
    process = Process(argv, directory / "zone.log", cwd=ROOT)
    process.wait_ready(lambda: _answers(port))
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.stop()


def _answers(port: int) -> bool:
    question = b"".join(bytes([len(label)]) + label.encode() for label in f"2.0.0.127.{LISTS[0]}".split("."))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.sendto(b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + question + b"\0\0\1\0\1", ("127.0.0.1", port))
        return sock.recv(512)[:2] == b"\x12\x34"


def record(setting: Setting, day: Day, nameserver: str, directory: Path) -> Played:
    """Run a gateway with this setting, play the day to it, and end it. Who comes again does so after the greylist."""
    directory.mkdir()
    configured = options(setting, day, nameserver, directory)
    listener = {"address": f"127.0.0.1:{free_port()}", "proxy_protocol": {"trusted": ["127.0.0.0/8"]}}
    process = GatepostProcess({**configured, "listeners": [listener]})
    try:
        began = time.monotonic()
        heard = asyncio.run(_play(day, process.port))
        seconds = time.monotonic() - began
    finally:
        process.stop()
        for file in (process.config, process.directory / "log"):
            shutil.move(file, directory / file.name)
        shutil.rmtree(process.directory)
    return Played(heard, read_records(directory / "spool"), seconds, directory / process.config.name)


async def _play(day: Day, port: int) -> dict[Key, Heard]:
    found: list[Heard] = []
    for again in (False, True):
        visits = [visit for visit in day.visits if visit.again is again]
        found += await play(visits, "127.0.0.1", port, SESSIONS)
        if not again:
            await asyncio.sleep(DELAY)
    return {(heard.number, heard.count): heard for heard in found}


def candidate(setting: Setting, day: Day, played: Played, path: Path) -> Path:
    """A file with another setting for the gateway that has played the day."""
    running = json.loads(played.config.read_text())
    changed = options(setting, day, running["dns"]["nameservers"][0], path.parent)
    path.write_text(json.dumps({**running, "pipeline": changed["pipeline"], "pipelines": changed["pipelines"]}))
    return path


def read_records(spool: Path) -> dict[Key, dict[str, Any]]:
    """All decision records, by visit and transaction."""

    async def read() -> list[dict[str, Any]]:
        opened: Spool = await open_all(SpoolOptions(str(spool)))
        out: list[dict[str, Any]] = []
        try:
            after = ""
            while page := await opened.records(after=after, limit=_PAGE):
                out += page
                after = str(page[-1]["id"])
        finally:
            await opened.close()
        return out

    found: dict[Key, dict[str, Any]] = {}
    for told in asyncio.run(read()):
        count = 0
        for character in told["id"][len(told["session"]) :]:
            count = count * 32 + _ALPHABET.index(character)
        key = told["client"]["port"], count
        assert key not in found, f"two records of one transaction: {key}"
        found[key] = told
    return found
