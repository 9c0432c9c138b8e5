"""The report: all remarks with file, line and column, in the order of the file, and what of it is ignored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.app.lint import codes, domains, failing, house, order, own, relaying
from gateway.app.lint.disk import Disk, disk_of
from gateway.app.lint.ignoring import Ignore, ignores
from gateway.app.lint.scene import scene
from gateway.config import Config
from gateway.config.problems import dotted
from gateway.pipeline.plan import Plan
from gateway.sdk.lint import Remark, Severity

RANK: Final = (Severity.ERROR, Severity.WARNING, Severity.NOTE)


@dataclass(frozen=True, slots=True)
class Placed:
    """One remark where it stands in the file. `reason` is the operator's for ignoring it, empty where it is not."""

    file: str
    line: int
    column: int
    key: str
    remark: Remark
    reason: str = ""

    @property
    def code(self) -> str:
        return self.remark.check.code

    @property
    def severity(self) -> Severity:
        return self.remark.check.severity

    def to_json(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "severity": self.severity.value,
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "key": self.key,
            "title": self.remark.check.title,
            "message": self.remark.message,
            "example": self.remark.example,
            "fix": self.remark.fix,
            **({"ignored": self.reason} if self.reason else {}),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """All remarks: those that stand, and those that a comment ignores."""

    remarks: tuple[Placed, ...]
    ignored: tuple[Placed, ...] = ()

    def count(self, severity: Severity) -> int:
        return sum(1 for placed in self.remarks if placed.severity is severity)

    def reaches(self, bar: Severity) -> bool:
        """Whether something is as bad as this, or worse."""
        return any(RANK.index(placed.severity) <= RANK.index(bar) for placed in self.remarks)


def lint(config: Config, plans: Mapping[str, Plan], now: float, *, disk: Callable[[str], Disk] = disk_of) -> Report:
    """Look at a configuration and its pipelines' plans. `now` in epoch seconds."""
    looked = scene(config, plans, now)
    found = [
        *relaying.remarks(looked),
        *domains.remarks(looked),
        *order.remarks(looked),
        *failing.remarks(looked),
        *house.remarks(looked, disk),
        *own.remarks(looked),
    ]
    return _sorted_out(config, dict.fromkeys(_placed(config, remark) for remark in found))


def _placed(config: Config, remark: Remark) -> Placed:
    line, column = config.place(remark.path, remark.offset)
    return Placed(config.file, line, column, dotted(remark.path), remark)


def _sorted_out(config: Config, found: Iterable[Placed]) -> Report:
    comments = ignores(config.document)
    stand: list[Placed] = []
    ignored: list[Placed] = []
    used: set[tuple[Ignore, str]] = set()
    for placed in found:
        covering = [c for c in comments if c.covers(placed.code, placed.line)]
        used |= {(comment, placed.code) for comment in covering}
        if covering:
            reason = covering[0].reason
            ignored.append(Placed(placed.file, placed.line, placed.column, placed.key, placed.remark, reason))
        else:
            stand.append(placed)
    stand += _about(config, comments, used)
    return Report(tuple(sorted(stand, key=_by_place)), tuple(sorted(ignored, key=_by_place)))


def _about(config: Config, comments: Iterable[Ignore], used: set[tuple[Ignore, str]]) -> Iterator[Placed]:
    """What is wrong with the comments themselves."""
    for comment in comments:
        if comment.problem:
            remark = Remark(codes.BAD_IGNORE, (), comment.problem, fix="# lint: ignore GP203 the reason")
            yield Placed(config.file, comment.line, comment.column, "", remark)
        for code in comment.codes:
            if not comment.problem and (comment, code) not in used:
                where = f"line {comment.target}" if comment.target else "the file"
                remark = Remark(codes.IDLE_IGNORE, (), f"there is no {code} at {where}", fix="take the comment away")
                yield Placed(config.file, comment.line, comment.column, "", remark)


def _by_place(placed: Placed) -> tuple[int, int, int, str]:
    return placed.line, placed.column, RANK.index(placed.severity), placed.code
