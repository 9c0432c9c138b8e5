"""What a rule would have caught, from decision records, one at a time."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from gateway.ops.deciding import decided
from gateway.ops.search import client, domain, ended, recipients
from gateway.ops.shadow import came_true

SAMPLES: Final = 10
_TOP: Final = 10
_TOP_BY: Final = 50
_KINDS: Final = 10_000
_REASONS: Final = 200
_PREFIX: Final = {4: 24, 6: 64}


def _network(record: Mapping[str, Any]) -> str:
    try:
        address = ipaddress.ip_address(client(dict(record)))
    except ValueError:
        return "?"
    return str(ipaddress.ip_network((address, _PREFIX[address.version]), strict=False))


def _sender(record: Mapping[str, Any]) -> str:
    return str(record.get("sender") or "none")


_Key = Callable[[dict[str, Any]], Iterable[str]]
BY: Final[dict[str, _Key]] = {
    "client": lambda record: (client(record),),
    "network": lambda record: (_network(record),),
    "helo": lambda record: (str(record.get("helo") or "none"),),
    "sender": lambda record: (_sender(record),),
    "sender-domain": lambda record: (domain(_sender(record)),),
    "recipient": lambda record: dict.fromkeys(recipients(record)),
    "recipient-domain": lambda record: dict.fromkeys(map(domain, recipients(record))),
    "listener": lambda record: (str(record.get("listener", "")),),
    "decided-by": lambda record: dict.fromkeys(str(told.get("plugin")) for told in decided(record)) or ("nobody",),
}
"""By what the transactions that match can be told apart."""

_SHOWN: Final = ("client", "sender-domain", "recipient")


class WhatIf:
    """Adds up records. What it keeps is bounded: beyond a number, clients and so on are not told apart."""

    def __init__(self, by: str = "", then: str = "") -> None:
        """`by` is a key of `BY`; `then` the action that the rule would have asked for."""
        self.records = 0
        self.matched = 0
        self.matched_recipients = 0
        self.reasons: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.agreements = 0
        self._then = then
        self._by: dict[str, Counter[str]] = {name: Counter() for name in ((by,) if by else _SHOWN)}
        self._most = _TOP_BY if by else _TOP
        self._samples: dict[str, list[str]] = {}

    def add(self, record: dict[str, Any], *, matched: bool = False, recipients: int = 0, unknown: str = "") -> None:
        """Count one record: whether the answer was yes, of how many recipients, or why it cannot be judged."""
        self.records += 1
        if not matched:
            if unknown:
                told = unknown in self.reasons or len(self.reasons) < _REASONS
                self.reasons[unknown if told else "other reasons"] += 1
            return
        outcome = str(record.get("outcome", ""))
        self.matched += 1
        self.matched_recipients += recipients
        self.outcomes[outcome] += 1
        self.agreements += bool(self._then) and came_true(self._then, ended(record))
        for name, counts in self._by.items():
            for key in BY[name](record):
                counts[key if key in counts or len(counts) < _KINDS else "others"] += 1
        samples = self._samples.setdefault(outcome, [])
        if len(samples) < SAMPLES:
            samples.append(str(record.get("id", "")))

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "records": self.records,
            "matched": self.matched,
            "not_matched": self.records - self.matched - self.reasons.total(),
            "unknown": self.reasons.total(),
            "matched_recipients": self.matched_recipients,
            "outcomes": dict(self.outcomes.most_common()),
            "unknown_because": dict(self.reasons.most_common()),
            "by": {name: dict(counts.most_common(self._most)) for name, counts in self._by.items()},
            "samples": self._samples,
        }
        if self._then:
            out["then"] = {
                "action": self._then,
                "done_anyway": self.agreements,
                "not_done": self.matched - self.agreements,
            }
        return out
