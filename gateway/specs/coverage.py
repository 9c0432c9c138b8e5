"""What of a policy the cases have reached: rules that matched, or lines of its code that ran.

Of a policy in Python, lines of functions in the file of its class count, validators of options among them; what runs
when the file is loaded does not. Of rules and the like, each clause counts. The two are never added up.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from gateway.pipeline.plan import Entry
from gateway.sdk.policy import Clause, Policy
from gateway.specs.setting import Place, Ready


@dataclass(frozen=True, slots=True)
class Covered:
    """How much of one subject was reached. `kind` is ``lines`` or ``clauses``; `missed` are those that never were."""

    subject: str
    kind: str
    hit: int
    of: int
    missed: tuple[Place, ...]

    @property
    def percent(self) -> float:
        return 100 * self.hit / self.of if self.of else 100.0

    def to_json(self) -> dict[str, Any]:
        missed = [{"file": place.file, "line": place.line, "name": place.name} for place in self.missed]
        return {
            "subject": self.subject,
            "kind": self.kind,
            "hit": self.hit,
            "of": self.of,
            "percent": round(self.percent, 1),
            "missed": missed,
        }


class Coverage:
    """Counts over any number of pipelines. To be entered while cases are played."""

    def __init__(self) -> None:
        self._lines: dict[str, set[int]] = {}
        self._all: dict[str, set[int]] = {}
        self._shown: dict[str, str] = {}
        self._clauses: dict[str, dict[Place, bool]] = {}
        self._seen: set[int] = set()
        self._tracer: Any = None

    def __enter__(self) -> Coverage:
        self._tracer = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._tracer)

    def expect(self, policy: type[Policy], file: str = "") -> None:
        """Count this policy's code from now on, unless it has clauses: options may be read before it is asked.

        `file` is where it stands, if that is a single file: the same code may have been loaded from elsewhere.
        """
        known_as = _file(policy)
        if known_as and policy.clauses is Policy.clauses and known_as not in self._lines:
            self._lines[known_as] = set()
            self._shown[known_as] = file or known_as
            self._all[known_as] = _lines_of(file or known_as)

    def watch(self, ready: Ready) -> None:
        """Count what becomes of a pipeline's clauses."""
        for entry in ready.measured:
            places = ready.places.get(entry.name, ())
            if entry.policy is not None and places:
                self._watch(entry, entry.policy.clauses(), places)
            elif entry.policy is not None:
                self.expect(type(entry.policy), ready.files.get(entry.name, ""))

    def _watch(self, entry: Entry, clauses: Sequence[Clause], places: Sequence[Place]) -> None:
        subject = f"{places[0].file}: {entry.name}"
        found = self._clauses.setdefault(subject, {})
        for place in places:
            found.setdefault(place, False)
        by_clause = dict(zip(clauses, places, strict=True))

        def told(clause: Clause) -> None:
            found[by_clause[clause]] = True

        assert entry.policy is not None
        entry.policy.watch(told)

    def found(self) -> list[Covered]:
        """What was reached, file by file and entry by entry."""
        out = []
        for known_as, file in sorted(self._shown.items(), key=lambda pair: pair[1]):
            lines, every = self._lines[known_as], self._all[known_as]
            missed = tuple(Place(file, line, "") for line in sorted(every - lines))
            out.append(Covered(file, "lines", len(every & lines), len(every), missed))
        for subject, clauses in sorted(self._clauses.items()):
            missed = tuple(place for place, hit in clauses.items() if not hit)
            out.append(Covered(subject, "clauses", len(clauses) - len(missed), len(clauses), missed))
        return out

    def _called(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        lines = self._lines.get(frame.f_code.co_filename)
        if lines is None:
            return None

        def line(frame: FrameType, event: str, _arg: Any) -> Any:
            if event == "line":
                lines.add(frame.f_lineno)
            return line

        return line


def _file(policy: type[Policy]) -> str:
    """The file of its code, as its functions name it; empty where it has none of its own."""
    for kind in policy.__mro__:
        for value in vars(kind).values() if kind is not Policy and issubclass(kind, Policy) else ():
            if inspect.isfunction(value):
                return value.__code__.co_filename
    return ""


def _lines_of(file: str) -> set[int]:
    try:
        code = compile(Path(file).read_bytes(), file, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError):
        return set()
    return set(_executable(code))


def _executable(code: CodeType) -> Iterator[int]:
    """Lines that run when functions are called; a comprehension is part of what it stands in."""
    if code.co_flags & inspect.CO_NEWLOCALS and code.co_name[:1] != "<":
        yield from {line for _, _, line in code.co_lines() if line and line != code.co_firstlineno}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _executable(constant)


def ranges(lines: Collection[int]) -> str:
    """``3-5, 9``."""
    out: list[list[int]] = []
    for line in sorted(lines):
        if out and line == out[-1][1] + 1:
            out[-1][1] = line
        else:
            out.append([line, line])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in out)
