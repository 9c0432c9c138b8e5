"""A spool in a process of its own, which does what it is told line by line: to be killed, traced, or looked past.

``child.py SPOOL [worker workers]`` owns the shards of a worker; each command line answers with one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from gateway.spool.spool import SpoolError
from gateway.spool.sqlite import SqliteSpool, open_all
from tests.spool.rig import LARGE, SMALL, hasten, message, options, put


async def obey(spool: SqliteSpool, words: list[str]) -> Any:
    match words:
        case ["commit", ("small" | "large") as kind, id]:
            return await put(spool, SMALL if kind == "small" else LARGE, message(id))
        case ["hasten"]:
            return await hasten(spool)
        case ["hold", id]:
            return await spool.hold([id], "by another process")
        case ["drop", id]:
            return await spool.drop([id])
        case ["list"]:
            return [stored.id for stored in await spool.list()]
        case ["close"]:
            return await spool.close()
    raise ValueError(words)


async def main(directory: Path, role: str) -> None:
    loop = asyncio.get_running_loop()
    if role == "worker":
        spool = await SqliteSpool.open(options(directory))
    else:
        spool = await open_all(options(directory))
    print(json.dumps("ready"), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        try:
            answer = await obey(spool, line.split())
        except SpoolError as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
