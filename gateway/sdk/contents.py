"""Findings of plugins that look into a message: virus and spam scanners."""

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
