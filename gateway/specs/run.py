"""Running spec files: every case is played and compared, and what was reached of policies and rules is counted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.config import ConfigError, Problem
from gateway.pipeline.catalog import Catalog
from gateway.specs.coverage import Coverage, Covered
from gateway.specs.expected import Difference, compare, compare_refusal
from gateway.specs.play import Came, OfflineLoop, play
from gateway.specs.setting import Ready, Setting
from gateway.specs.sheet import Case, Sheet, load

FILE_NAME: Final = ".spec.yaml"
FILES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Failed:
    """A case that did not come as expected; `notes` are what may be why. `came` is None where nothing was played."""

    file: str
    line: int
    name: str
    differences: tuple[Difference, ...]
    came: Came | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "line": self.line,
            "name": self.name,
            "differences": [difference.to_json() for difference in self.differences],
            "came": self.came.to_json() if self.came is not None else None,
            "notes": list(self.notes),
        }


@dataclass(slots=True)
class Report:
    """What came of all files."""

    files: int = 0
    cases: int = 0
    failed: list[Failed] = field(default_factory=list)
    coverage: list[Covered] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "files": self.files,
            "cases": self.cases,
            "failed": [failed.to_json() for failed in self.failed],
            "coverage": [covered.to_json() for covered in self.coverage],
        }


def find(paths: Sequence[str]) -> list[str]:
    """The spec files that are named, or stand in folders that are. Raises `ConfigError` for a path without any."""
    found: dict[str, None] = {}
    for path in paths:
        here = [path] if os.path.isfile(path) else _below(path)
        if not here:
            raise ConfigError([Problem(path, 1, "", f"there is no *{FILE_NAME} here")])
        found |= dict.fromkeys(here)
    return list(found)


def _below(path: str) -> list[str]:
    out: list[str] = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        out += [os.path.join(folder, name) for name in sorted(names) if name.endswith(FILE_NAME)]
        if len(out) > FILES:
            raise ConfigError([Problem(path, 1, "", f"there are more than {FILES} spec files here")])
    return out


def run(files: Sequence[str], installed: Catalog) -> Report:
    """Run spec files. Raises `ConfigError` with all that is wrong with any of them."""
    report, coverage = Report(files=len(files)), Coverage()
    problems: list[Problem] = []
    for file in files:
        try:
            _run(load(file), installed, coverage, report)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(sorted(set(problems)))
    report.coverage = coverage.found()
    return report


def _run(sheet: Sheet, installed: Catalog, coverage: Coverage, report: Report) -> None:
    setting = Setting(sheet, installed)
    sheet.check()
    if setting.policy is not None:
        coverage.expect(setting.policy, setting.file)
    with asyncio.Runner(loop_factory=OfflineLoop) as runner:
        for case in sheet.cases:
            if case.expected.problem is not None:
                _refused(sheet, case, case.expected.problem, setting, coverage, report)
                continue
            with coverage:
                ready = setting.ready(case)
            if ready is None:
                continue
            coverage.watch(ready)
            scene = setting.scene(case, ready)
            if scene is None:
                continue
            with coverage:
                came = runner.run(_played(sheet, ready, scene))
            report.cases += 1
            if differences := compare(case.expected, came):
                report.failed.append(_failed(sheet, case, differences, came, setting, ready))
    sheet.check()


def _refused(sheet: Sheet, case: Case, problem: str, setting: Setting, coverage: Coverage, report: Report) -> None:
    """A case whose options are to be refused: nothing is played."""
    with coverage:
        problems = setting.refusal(case)
    if problems is None:
        return
    report.cases += 1
    if differences := compare_refusal(problem, problems):
        report.failed.append(Failed(sheet.file, sheet.line(case.place), case.name, tuple(differences), None, ()))


async def _played(sheet: Sheet, ready: Ready, scene: Any) -> Came:
    """Play it, with the plugins running that the sheet names."""
    plugins = [entry.plugin for entry in ready.pipeline.entries if entry.plugin and entry.name in sheet.run]
    for plugin in plugins:
        await plugin.start()
    try:
        return await play(ready.pipeline, scene)
    finally:
        for plugin in plugins:
            await plugin.close()


def _failed(
    sheet: Sheet, case: Case, differences: list[Difference], came: Came, setting: Setting, ready: Ready
) -> Failed:
    notes = tuple(setting.unasked(case, ready))
    return Failed(sheet.file, sheet.line(case.place), case.name, tuple(differences), came, notes)
