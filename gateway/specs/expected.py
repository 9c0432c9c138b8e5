"""What came against what was expected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.specs.model import Expected, PartExpected
from gateway.specs.play import Came


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it was expected."""

    what: str
    expected: str
    came: str

    def to_json(self) -> dict[str, str]:
        return {"what": self.what, "expected": self.expected, "came": self.came}


def compare(expected: Expected, came: Came) -> list[Difference]:
    """All differences. A policy that failed is one, whatever was expected."""
    out = [Difference("policy", "an answer", fault) for fault in came.faults]
    out += _compare(expected, came, "")
    if expected.stage is not None and expected.stage is not came.stage:
        out.append(Difference("stage", expected.stage.value, came.stage.value if came.stage else "none"))
    if expected.parts is not None:
        if len(expected.parts) != len(came.parts):
            out.append(Difference("parts", str(len(expected.parts)), str(len(came.parts))))
        for i, (part, found) in enumerate(zip(expected.parts, came.parts, strict=False)):
            out += _compare(part, found, f"parts[{i}].")
    return out


def compare_refusal(problem: str, problems: Sequence[str]) -> list[Difference]:
    """Whether one of the `problems` of the options is the one that is expected."""
    if any(matches(problem, one) for one in problems):
        return []
    return [Difference("problem", problem, "; ".join(problems) or "none")]


def _compare(expected: PartExpected, came: Came, where: str) -> Iterator[Difference]:
    reply = came.reply
    values: list[tuple[str, object, object]] = [
        ("action", expected.action, came.action),
        ("code", expected.code, reply.code if reply else None),
        ("status", expected.status, reply.status if reply else None),
        ("recipients", expected.recipients, came.recipients),
    ]
    for what, wanted, found in values:
        if wanted is not None and wanted != found:
            yield Difference(where + what, _text(wanted), _text(found))
    texts = [
        ("text", expected.text, reply.text if reply else None),
        ("reason", expected.reason, came.reason),
        ("by", expected.by, came.by),
    ]
    for what, pattern, text in texts:
        if pattern is not None and not (text is not None and matches(pattern, text)):
            yield Difference(where + what, pattern, _text(text))
    if expected.edits is not None and not _same_edits(expected.edits, came.edits):
        yield Difference(where + "edits", _edits(expected.edits), _edits(came.edits))


def matches(pattern: str, text: str) -> bool:
    """Whether the text contains the pattern, in which ``*`` stands for anything; an empty one is an empty text."""
    if not pattern:
        return not text
    at = 0
    for part in pattern.split("*"):
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True


def _same_edits(expected: Sequence[Mapping[str, Any]], came: Sequence[Mapping[str, Any]]) -> bool:
    """Whether each has what is expected of it; what is not named may be anything."""
    return len(expected) == len(came) and all(
        key in found and found[key] == value
        for wanted, found in zip(expected, came, strict=True)
        for key, value in wanted.items()
    )


def _edits(edits: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(", ".join(f"{key}: {value}" for key, value in edit.items()) for edit in edits) or "none"


def _text(value: object) -> str:
    if value is None or value == "" or value == ():
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
