"""What shadow entries would have done, beside what was done: from decision records, one at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.ops.search import client, domain, ended, spoken

SAMPLES: Final = 5
"""References kept for each kind of difference."""

_TOP: Final = 10
_SENDERS: Final = 10_000
_REFUSALS: Final = frozenset({"reject", "defer", "disconnect"})
_REFUSED: Final = frozenset({"rejected", "deferred", "disconnected"})
_RANKS: Final = {word: rank for rank, word in enumerate(("edit", "accept", "quarantine", "discard"))}
"""What a refusal comes before, the weakest first."""
_TAKEN: Final = frozenset({"accepted", "aborted", "disconnected"})


@dataclass(slots=True)
class Entry:
    """One shadow entry: transactions that it judged, and those where it would have made a difference.

    `differences` counts what it would have said (``reject``, ``quarantine``, ``edit``, ...) where that was not done,
    and `agreements` where the transaction ended in refusal anyway, or taken, set aside or thrown away as it wanted.
    """

    judged: int = 0
    differences: Counter[str] = field(default_factory=Counter)
    agreements: Counter[str] = field(default_factory=Counter)
    senders: Counter[str] = field(default_factory=Counter)
    clients: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "judged": self.judged,
            "differences": dict(self.differences),
            "agreements": dict(self.agreements),
            "senders": dict(self.senders.most_common(_TOP)),
            "clients": dict(self.clients.most_common(_TOP)),
            "samples": self.samples,
        }


class ShadowReport:
    """Adds up records. What it keeps is bounded: senders and clients beyond a number are not told apart."""

    def __init__(self) -> None:
        self.records = 0
        self.entries: dict[str, Entry] = {}

    def add(self, record: dict[str, Any]) -> None:
        """Count one record."""
        self.records += 1
        shadows = {str(v.get("plugin", "?")) for v in record.get("verdicts") or () if v.get("shadow")}
        for name in shadows:
            self.entries.setdefault(name, Entry()).judged += 1
        said: dict[str, str] = {}
        for verdict in spoken(record):
            if verdict.get("shadow"):
                name, word = str(verdict.get("plugin", "?")), _word(verdict)
                # Of what it says at several stages, or of several recipients, that counts by which it would have ended.
                said[name] = max(said.get(name, word), word, key=lambda one: _RANKS.get(one, len(_RANKS)))
        for name, word in said.items():
            self._count(self.entries[name], word, record)

    def _count(self, entry: Entry, word: str, record: dict[str, Any]) -> None:
        outcome = ended(record)
        if came_true(word, outcome):
            entry.agreements[word] += 1
            return
        entry.differences[word] += 1
        _bump(entry.senders, domain(str(record.get("sender") or "<>")))
        _bump(entry.clients, client(record))
        samples = entry.samples.setdefault(word, [])
        if len(samples) < SAMPLES:
            samples.append(str(record.get("id", "")))

    def to_json(self) -> dict[str, Any]:
        return {"records": self.records, "entries": {name: e.to_json() for name, e in sorted(self.entries.items())}}


def _word(verdict: dict[str, Any]) -> str:
    action = str(verdict.get("action", "proceed"))
    return "edit" if action == "proceed" else action


def came_true(word: str, outcome: str) -> bool:
    """Whether what a shadow entry wanted was done anyway, by whomever."""
    if word in _REFUSALS:
        return outcome in _REFUSED
    if word == "accept":
        return outcome in _TAKEN
    return {"quarantine": "quarantined", "discard": "discarded"}.get(word) == outcome


def _bump(counts: Counter[str], key: str) -> None:
    counts[key if key in counts or len(counts) < _SENDERS else "others"] += 1
