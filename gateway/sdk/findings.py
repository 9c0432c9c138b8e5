"""Findings: what plugins found out, as frozen typed values. Policies take them by type.

An author's plugin defines its own by subclassing `Finding`; fields must be JSON-friendly (numbers, text, enums,
booleans, None, tuples and dataclasses of those), since every finding goes into the decision record.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, Final

_TEXT_LENGTH: Final = 4000
_VALUES: Final = 1000
_DEPTH: Final = 8
_CUT: Final = "…"


@dataclass(frozen=True, slots=True)
class Finding:
    """Base of all findings."""

    def to_json(self) -> dict[str, Any]:
        """The finding as the decision record keeps it: long texts and lists cut, so that records stay small."""
        room = _Room(_VALUES)
        return {f.name: room.plain(getattr(self, f.name), _DEPTH) for f in dataclasses.fields(self)}


class _Room:
    """Makes values plain as long as there is room; what comes after is left out, and a mark stands for it."""

    __slots__ = ("_left",)

    def __init__(self, left: int) -> None:
        self._left = left

    def plain(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if value is None or isinstance(value, (bool, int)):
            return value
        if isinstance(value, Enum):
            return self.plain(value.value, depth)
        if isinstance(value, str):
            return value if len(value) <= _TEXT_LENGTH else value[:_TEXT_LENGTH] + _CUT
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, bytes):
            return self.plain(value[: _TEXT_LENGTH + 1].decode("latin-1"), depth)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        elif isinstance(value, (frozenset, set)):
            value = sorted(value, key=str)
        elif not isinstance(value, (tuple, list, dict)):
            return self.plain(str(value), depth)
        if not depth or self._left <= 0:
            return _CUT
        if isinstance(value, dict):
            return {str(k): self.plain(v, depth - 1) for k, v in value.items() if self._left > 0}
        return [self.plain(v, depth - 1) for v in value if self._left > 0]


@dataclass(frozen=True, slots=True)
class ListHit:
    """One DNS list that lists the client: the configured name of the list, its return codes, its weight."""

    zone: str
    codes: tuple[str, ...]
    weight: float


@dataclass(frozen=True, slots=True)
class Dnsbl(Finding):
    """Client address against DNS block lists (RFC 5782). `score` is the sum of the hits' weights.

    `failed` names lists that gave no usable answer (timeout, SERVFAIL, error codes 127.255.255.x); they never
    count.
    """

    score: float
    hits: tuple[ListHit, ...] = ()
    failed: tuple[str, ...] = ()


class SpfResult(StrEnum):
    """RFC 7208 section 2.6."""

    NONE = "none"
    NEUTRAL = "neutral"
    PASS = "pass"
    FAIL = "fail"
    SOFTFAIL = "softfail"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


@dataclass(frozen=True, slots=True)
class Spf(Finding):
    """SPF for the MAIL FROM identity (for the null sender postmaster@HELO) and for HELO.

    `domain` is the MAIL FROM domain that was judged, in A-labels; `explanation` is the sender's own text, not to
    be trusted; `helo` is the HELO identity's result.
    """

    result: SpfResult
    domain: str
    helo: SpfResult
    helo_domain: str
    explanation: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Rate(Finding):
    """A token bucket was asked. `wait` is how many seconds until the next token, 0 when `allowed`."""

    allowed: bool
    key: str
    remaining: float
    wait: float


class RecipientState(StrEnum):
    """What is known of a recipient."""

    EXISTS = "exists"
    UNKNOWN = "unknown"
    ASSUMED = "assumed"
    """The domain is configured to take any recipient."""
    UNAVAILABLE = "unavailable"
    """The store that would know did not answer, or answered 4xx."""
    NOT_OURS = "not-ours"
    """The domain is not one we take mail for (a relay client may still send there)."""


@dataclass(frozen=True, slots=True)
class RecipientStatus(Finding):
    """Whether the mail store behind us takes this recipient. `source` is ``list``, ``callout`` or ``cache``.

    `reply` is the store's own reply text: for the record only, never for the wire (it may name inner hosts).
    """

    state: RecipientState
    source: str
    reply: str = ""
