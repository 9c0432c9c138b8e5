"""Who decided, by a decision record.

Whoever says something decisive is the last one to be asked at that stage, so all decisive verdicts that were applied
have decided, of several pipelines one each; but a defer that waits for what others say (``when``) may take the place of
one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

_PERMITS: Final = ("proceed", "accept")
_SHOWN: Final = ("stage", "plugin", "policy", "action", "recipient", "recipients", "reply", "reason")


def decided(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The verdicts that decided, in the order of the record: what they said, and `verdict`, their place in it."""
    verdicts = record.get("verdicts") or ()
    groups: dict[tuple[str, str], list[int]] = {}
    for place, told in enumerate(verdicts):
        if isinstance(told, dict) and "action" in told and not told.get("shadow"):
            groups.setdefault((str(told.get("stage")), str(told.get("recipient", ""))), []).append(place)
    found = sorted(place for group in groups.values() for place in _of_group(verdicts, group))
    return [
        {"verdict": place, **{key: value for key, value in verdicts[place].items() if key in _SHOWN}} for place in found
    ]


def _of_group(verdicts: Any, group: list[int]) -> Iterator[int]:
    """Of the verdicts about one thing at one stage, those that decided."""
    waiting: dict[str, int] = {}
    finals: list[int] = []
    for place in group:
        told = verdicts[place]
        if when := told.get("when"):
            waiting.setdefault(str(when), place)
        elif told.get("recipients"):
            if told["action"] != "proceed":
                yield place
        elif told["action"] != "proceed":
            finals.append(place)
    action = verdicts[finals[-1]]["action"] if finals else "proceed"
    heeded = waiting.get("if-reject" if action == "reject" else "if-permit" if action in _PERMITS else "")
    yield from finals if heeded is None else [*finals[:-1], heeded]
