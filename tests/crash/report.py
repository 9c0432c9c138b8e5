"""docs/durability.md and docs/durability.json: what the proof has counted, and the page that says it.

The page is made from the JSON alone, so that the two can be compared; `durability.py` writes both.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sqlite3
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.crash.count import LARGE, SMALL, THREADS, Result
from tests.support.postgres_server import version as postgres_version
from tests.support.process import binary, new_directory

FORMAT = 1
_PAGE = Path(__file__).with_name("page.md")
_PARTS = ("killed", "cut", "troubled", "shared", "clocks")
_COUNTS = ("deaths", "acknowledged", "delivered", "duplicated", "unanswered", "lost")


@dataclass(frozen=True)
class Found:
    """One planted fault: the scene with it, in how many rounds the loss was seen, and the same scene without it."""

    name: str
    text: str
    scene: str
    planted: Result
    rounds: int
    sound: Result

    def __add__(self, other: Found) -> Found:
        return replace(
            self,
            planted=self.planted + other.planted,
            rounds=self.rounds + other.rounds,
            sound=self.sound + other.sound,
        )


@dataclass(frozen=True)
class Report:
    """All that was counted, over all rounds."""

    rounds: int
    machine: dict[str, str]
    killed: tuple[Result, ...]
    cut: tuple[Result, ...]
    troubled: tuple[Result, ...]
    shared: tuple[Result, ...]
    clocks: tuple[Result, ...]
    planted: tuple[Found, ...]

    @property
    def sound(self) -> list[Result]:
        """What Gatepost did as it is."""
        return [*self.killed, *self.cut, *self.troubled, *self.shared, *self.clocks]

    @property
    def problems(self) -> list[str]:
        """Why this proves nothing, or the contrary: losses without a fault, and faults without a loss."""
        sound = [*self.sound, *(fault.sound for fault in self.planted)]
        return [
            *(f"{r.name}: {r.lost} of {r.acknowledged} lost, {r.torn} delivered in part" for r in sound if not r.whole),
            *(
                f"planted fault {fault.name}: found in {fault.rounds} of {self.rounds} rounds"
                for fault in self.planted
                if fault.rounds != self.rounds
            ),
        ]

    def to_json(self) -> dict[str, Any]:
        """The machine's form of the page."""
        return {"format": FORMAT, "proved": not self.problems, **asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """The way back from `to_json`."""

        def results(rows: list[dict[str, Any]]) -> tuple[Result, ...]:
            return tuple(Result(**row) for row in rows)

        planted = tuple(
            Found(**{**row, "planted": Result(**row["planted"]), "sound": Result(**row["sound"])})
            for row in data["planted"]
        )
        parts = {part: results(data[part]) for part in _PARTS}
        return cls(data["rounds"], data["machine"], planted=planted, **parts)

    def write(self, directory: Path) -> None:
        """Write both forms."""
        directory.mkdir(exist_ok=True)
        (directory / "durability.json").write_text(json.dumps(self.to_json(), indent=1) + "\n")
        (directory / "durability.md").write_text(render(self))


def of_counts(counts: Sequence[tuple[str, dict[str, Any]]]) -> Report | None:
    """The report of one run of the tests, which play some scenes of each part; None when they did not play them."""
    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in (*_PARTS, "planted")}
    for part, row in counts:
        parts[part].append(row)
    if not all(parts[name] for name in ("killed", "cut", "shared", "clocks", "planted")):
        return None
    return Report.from_json({"rounds": 1, "machine": machine(), **parts})


def machine() -> dict[str, str]:
    """What the numbers may depend on, without anything that names this machine."""
    folder = new_directory("facts")
    try:
        kind = subprocess.run(
            [binary("findmnt"), "-n", "-o", "FSTYPE", "-T", str(folder)], check=True, capture_output=True, text=True
        ).stdout.strip()
    finally:
        folder.rmdir()
    server = subprocess.run([binary("nbdkit"), "--version"], check=True, capture_output=True, text=True).stdout
    return {
        "gatepost": version("gatepost"),
        "kernel": ".".join(re.findall(r"\d+", platform.release())[:3]),
        "processor": f"{os.cpu_count()} x {platform.machine()}",
        "file system of the processes that are killed": kind,
        "file system of the disk that is cut": "ext4, 256 MiB",
        "drive": server.strip() + ", its cache filter in mode writeback",
        "SQLite": sqlite3.sqlite_version,
        "PostgreSQL": postgres_version(),
        "Python": platform.python_version(),
    }


def _table(heading: str, rows: Sequence[Result]) -> str:
    lines = [
        f"| {heading} | times | acknowledged | delivered | duplicated | unanswered | lost |",
        "|---|--:|--:|--:|--:|--:|--:|",
        *(f"| {row.name} | " + " | ".join(f"{getattr(row, name):,}" for name in _COUNTS) + " |" for row in rows),
    ]
    return "\n".join(lines)


def _faults(rows: Sequence[Found]) -> str:
    lines = [
        "| left out | what finds it | acknowledged | **missing** | rounds | without it: acknowledged | missing |",
        "|---|---|--:|--:|--:|--:|--:|",
        *(
            f"| {row.text} | {row.scene} | {row.planted.acknowledged:,} | **{row.planted.lost:,}** |"
            f" {row.rounds} | {row.sound.acknowledged:,} | {row.sound.lost:,} |"
            for row in rows
        ),
    ]
    return "\n".join(lines)


def _verdict(report: Report) -> str:
    if report.problems:
        return "**Not proved.**\n\n" + "\n".join(f"- {problem}" for problem in report.problems)
    total = sum(report.sound[1:], report.sound[0])
    return (
        f"**{total.acknowledged:,} messages got 250, over {total.deaths:,} deaths, power cuts and failures of the disk;"
        f" {total.lost} of them are missing.** {total.duplicated:,} arrived more than once."
        f" Planted faults: {len(report.planted)}, each found in every round."
    )


def render(report: Report) -> str:
    """The page."""
    return _PAGE.read_text().format(
        verdict=_verdict(report),
        rounds=report.rounds,
        threads=THREADS,
        small=SMALL,
        large=LARGE,
        killed=_table("killed at, or while", report.killed),
        cut=_table("the power goes", report.cut),
        troubled=_table("the disk is", report.troubled),
        shared=_table("killed at, or while, on PostgreSQL", report.shared),
        clocks=_table("the clock is set", report.clocks),
        planted=_faults(report.planted),
        machine="\n".join(f"| {key} | {value} |" for key, value in report.machine.items()),
    )
