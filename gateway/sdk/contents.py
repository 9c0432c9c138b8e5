"""Findings of plugins that look into a message: virus and spam scanners, and lists of the hosts that it names."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.mail.edit import Edit
from gateway.sdk.findings import Finding


@dataclass(frozen=True, slots=True)
class VirusScan(Finding):
    """What a virus scanner found: `names` of what it recognised. `skipped` says why it did not look, else empty."""

    infected: bool
    scanner: str
    names: tuple[str, ...] = ()
    skipped: str = ""

    def idle(self) -> bool:
        return bool(self.skipped)


@dataclass(frozen=True, slots=True)
class SpamScore(Finding):
    """What a spam filter says: `spam` where `score` has come to `threshold`; `action` is its own advice, or empty.

    `symbols` are the rules that matched; `edits` are the changes that the filter asks for; `text` is what it would have
    the client told. `skipped` says why it did not look, else empty.
    """

    score: float
    threshold: float
    spam: bool
    scanner: str
    action: str = ""
    symbols: tuple[str, ...] = ()
    edits: tuple[Edit, ...] = ()
    skipped: str = ""
    text: str = ""

    def idle(self) -> bool:
        return bool(self.skipped)


@dataclass(frozen=True, slots=True)
class UriHit:
    """A host that a message names and that a list names, too: the list's codes, and the weight of the heaviest."""

    host: str
    list: str
    codes: tuple[str, ...]
    weight: float


@dataclass(frozen=True, slots=True)
class UriHits(Finding):
    """The hosts of a message against URI lists. `score` is the sum of the lists' weights, each counted once.

    `failed` names lists that gave no usable answer to a question; that answer never counts. `asked` is how many hosts
    were asked for, and `left_out` how many were not, since there were too many.
    """

    score: float
    hits: tuple[UriHit, ...] = ()
    failed: tuple[str, ...] = ()
    asked: int = 0
    left_out: int = 0

    def idle(self) -> bool:
        return not self.asked
