"""Gateways for hand-overs without their processes: a spool each, and the admin server that takes mail over."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn

from gateway.app.evacuation import Evacuation, evacuation
from gateway.config import Config, parse
from gateway.ops.admin import Deps, handover_app
from gateway.ops.board import Board, WorkerState
from gateway.ops.handover_api import Intake
from gateway.spool.handover import read_description
from gateway.spool.identity import has_room, is_evacuated, spool_id
from gateway.spool.shard import OnStep, no_step
from gateway.spool.spool import SpoolError, SpoolFull, SpoolOptions, State, Stored
from gateway.spool.sqlite import SqliteSpool, open_all

TOKEN = "a-token-of-sixteen-or-more"


class _Places:
    def own_next_hop(self, text: str) -> str:
        if not text.startswith("smtp:"):
            raise ValueError(f"{text} is no next hop here")
        return text


class Gate:
    """One gateway. Its spool has a shard for mail, and no worker unless a test opens it as one."""

    def __init__(self, directory: Path, name: str, host: str = "127.0.0.1") -> None:
        self.name = name
        self.host = host
        self.options = SpoolOptions(str(directory / name / "spool"), min_free=0)
        self.board = Board.create(1, time.monotonic())
        self.on_step: OnStep = no_step
        self.port = 0
        self.roomy = True
        """Whether it says that it has room."""

    @property
    def root(self) -> Path:
        return Path(self.options.path)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def ready(self, state: WorkerState = WorkerState.READY) -> None:
        self.board.slot(0).begin(time.monotonic())
        self.board.slot(0).set_state(state)

    async def make(self, fill: Callable[[SqliteSpool], Any] | None = None) -> Any:
        """Its shard, with what `fill` puts in."""
        spool = await SqliteSpool.open(self.options)
        try:
            return await fill(spool) if fill else None
        finally:
            await spool.close()

    def application(self, token: str = TOKEN) -> Any:
        """What it answers other gateways with."""
        options = self.options
        intake = Intake(
            self.name,
            lambda: spool_id(self.root),
            lambda: is_evacuated(self.root),
            lambda: self.roomy and has_room(options),
            read_description,
            SpoolFull,
        )
        deps = Deps(
            self.board,
            token,
            lambda: None,
            lambda: open_all(self.options, self.on_step),
            SpoolError,
            State,
            _Places,  # type: ignore[arg-type]  # all that is asked of them
            intake=intake,
        )
        self.ready()
        return handover_app(deps)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Its admin server."""
        async with served(self.application(), self.port, self.host) as self.port:
            yield

    def config(self, *peers: Gate) -> Config:
        """Its configuration, with the token, and peers if any."""
        text = self._text()
        if peers:
            text += f"admin: {{token: {TOKEN}}}\nevacuate: {{peers: {[gate.url for gate in peers]}}}\n"
        return parse(text.encode(), "gatepost.yaml")

    def write_config(self, path: Path) -> Path:
        path.write_text(self._text())
        return path

    def _text(self) -> str:
        text = f"hostname: {self.name}.example\nlisteners: [{{address: '127.0.0.1:2525'}}]\n"
        return f"{text}spool: {{path: '{self.root}', min_free: 1}}\n"

    @asynccontextmanager
    async def evacuation(self, *to: Gate, token: str = TOKEN) -> AsyncIterator[Evacuation]:
        urls = [gate.url for gate in to]
        async with evacuation(self.config(), urls, token, "anna", self.on_step) as running:
            yield running

    async def messages(self) -> dict[str, Stored]:
        """What is in its spool, by id."""
        spool = await open_all(self.options)
        try:
            return {message.id: message for message in await spool.list()}
        finally:
            await spool.close()

    async def octets(self, id: str) -> bytes:
        spool = await open_all(self.options)
        try:
            claimed = await spool.show(id)
            assert claimed is not None
            return b"".join([block async for block in claimed.content.blocks()])
        finally:
            await spool.close()


@asynccontextmanager
async def served(app: Any, port: int = 0, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """An ASGI application on a loopback port, which is given."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen(64)
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=0)
    )
    # Not `serve`: that would take the process's signals.
    task = asyncio.get_running_loop().create_task(server._serve(sockets=[sock]), name="server")
    try:
        while not server.started:
            await asyncio.sleep(0.005)
        yield sock.getsockname()[1]
    finally:
        server.should_exit = True
        with suppress(asyncio.CancelledError):
            await task
        sock.close()


def owners(*spools: dict[str, Stored]) -> dict[str, int]:
    """How many gateways have each message for certain: what is leaving may be another's."""
    out: dict[str, int] = {}
    for spool in spools:
        for id, message in spool.items():
            out[id] = out.get(id, 0) + (message.state is not State.LEAVING)
    return out
