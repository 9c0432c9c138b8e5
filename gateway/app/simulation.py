"""A message on trial: through the front door and its pipelines, with everything real but that nothing is kept.

DNS is asked, milters and scanners too; the shared state is a copy, so that greylists and rates learn nothing. Findings
can be given instead, and then their plugins are not asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gateway.app.scene import Nowhere, Played, Scene, play
from gateway.app.wiring import Parts, make_parts
from gateway.config import Config
from gateway.mail.session import Session, new_session_id
from gateway.pipeline.recall import RecallError, recall
from gateway.services.clock import SystemClock
from gateway.services.state import SqliteState


async def simulate(config: Config, scene: Scene, given: Mapping[str, Mapping[str, Any]]) -> Played:
    """Play the scene. `given` are findings by name, as the record keeps them.

    Raises `gateway.config.ConfigError`, `gateway.pipeline.plan.PipelineError`, `gateway.sdk.services.StateError`,
    OSError for a message that cannot be read, and `gateway.pipeline.recall.RecallError` for findings that are none.
    """
    played = Played()
    with tempfile.TemporaryDirectory(prefix="gatepost-simulate-") as name, ThreadPoolExecutor(1) as executor:
        directory = Path(name)
        async with _parts(config, directory) as parts:
            _fix(parts, given)
            desk = parts.desk(Nowhere(directory, executor, played), SystemClock(), lambda: None)
            await play(desk, _session(scene, config), scene, played)
    return played


@contextlib.asynccontextmanager
async def _parts(config: Config, directory: Path) -> AsyncIterator[Parts]:
    clock = SystemClock()
    await asyncio.to_thread(copy_state, Path(config.state.path), directory)
    state = SqliteState(directory, clock)
    await state.start()
    parts = make_parts(config, state, clock)
    try:
        await parts.start()
        yield parts
    finally:
        await parts.close()
        await state.close()


def copy_state(real: Path, directory: Path) -> None:
    """What greylists, rates and policies know now, without touching it. Raises OSError and `sqlite3.Error`."""
    file = real / "state.db"
    if not file.exists():
        return
    with (
        contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as source,
        contextlib.closing(sqlite3.connect(directory / "state.db")) as target,
    ):
        source.backup(target)


def _fix(parts: Parts, given: Mapping[str, Mapping[str, Any]]) -> None:
    kinds = {name: kind for pipeline in parts.pipelines.values() for name, kind in pipeline.findings.items()}
    for name in given:
        if name not in kinds:
            raise RecallError(
                f"{name} is no finding of these pipelines; there are {', '.join(sorted(kinds)) or 'none'}"
            )
    found = {kinds[name]: recall(kinds[name], value) for name, value in given.items()}
    for pipeline in parts.pipelines.values():
        pipeline.fix(found)


def _session(scene: Scene, config: Config) -> Session:
    return Session(
        id=new_session_id(),
        client=scene.client,
        client_port=0,
        peer=scene.client,
        listener="simulation",
        started=SystemClock().now(),
        tls=scene.tls,
        name=scene.name,
        trusted=any(scene.client in network for network in config.relay_from),
    )
