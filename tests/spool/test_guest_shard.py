"""The shard of a process that judges for another MTA: records only, beside a gateway on the same spool."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.spool import sqlite
from gateway.spool.spool import SpoolError, SpoolOptions
from gateway.spool.sqlite import SqliteSpool, open_all

ID = "01M8BR6ZMP3BTN"


def record(n: int) -> dict[str, object]:
    return {"id": f"{ID}{n}", "time": 1.0, "n": n}


def test_its_records_are_found_and_no_gateway_takes_its_shard(tmp_path: Path) -> None:
    async def main() -> None:
        options = SpoolOptions(str(tmp_path))
        guests = [await SqliteSpool.open_guest(options) for _ in range(2)]
        gateway = await SqliteSpool.open(options, worker=0, workers=1)
        for n, spool in enumerate((*guests, gateway)):
            spool.note(record(n))
        for spool in (*guests, gateway):
            await spool.close()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["guest-00", "guest-01", "shard-00"]
        view = await open_all(options)
        assert [explained.record["n"] for explained in await view.explain(ID)] == [0, 1, 2]
        await view.close()

    asyncio.run(main())


def test_a_guest_alone_on_a_spool_can_be_asked(tmp_path: Path) -> None:
    async def main() -> None:
        options = SpoolOptions(str(tmp_path))
        for n in range(2):
            spool = await SqliteSpool.open_guest(options)
            spool.note(record(n))
            await spool.close()
        assert [path.name for path in tmp_path.iterdir()] == ["guest-00"], (
            "the shard of one that has ended is used again"
        )
        view = await open_all(options)
        assert len(await view.explain(ID)) == 2
        assert sum((await view.counts()).values()) == 0
        await view.close()

    asyncio.run(main())


def test_too_many_guests_and_a_directory_that_cannot_be_used_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setattr(sqlite, "_GUESTS", 1)
        options = SpoolOptions(str(tmp_path))
        spool = await SqliteSpool.open_guest(options)
        with pytest.raises(SpoolError, match="1 others use"):
            await SqliteSpool.open_guest(options)
        await spool.close()
        (tmp_path / "file").write_text("")
        with pytest.raises(SpoolError, match="cannot use spool directory"):
            await SqliteSpool.open_guest(SpoolOptions(str(tmp_path / "file" / "spool")))

    asyncio.run(main())
