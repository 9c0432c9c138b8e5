"""Findings of plugins that look for what a postmaster has written down: tables of patterns, and kinds of data."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.mail.edit import Edit
from gateway.sdk.findings import Finding


@dataclass(frozen=True, slots=True)
class CheckMatch:
    """A rule that matched: `rule` is where it stands (``file:line``), `place` what it looked at, `action` its action.

    `name` is the header field's name, empty elsewhere; `note` what stands behind the action, with what matched put in.
    """

    rule: str
    place: str
    action: str
    name: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class ContentChecks(Finding):
    """A message against tables of header and body checks. `action` is what decides: ``reject``, ``defer``, ``discard``,
    ``hold``, ``pass`` or empty, and `rule` where that stands; `detail` and `text` are of its reply.

    `matches` are the first rules that matched, and `matched` how many did; `score` is the sum of SCORE actions. `edits`
    are all that the rules ask for. `complete` says that all of the message was looked at.
    """

    action: str = ""
    rule: str = ""
    detail: str = ""
    text: str = ""
    matches: tuple[CheckMatch, ...] = ()
    matched: int = 0
    score: float = 0.0
    edits: tuple[Edit, ...] = ()
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Detection:
    """What one detector found: how many different values, and a few of them, masked so that nobody can use them."""

    detector: str
    count: int
    samples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dlp(Finding):
    """Data that should not be in a message. `over` names the detectors that have come to their threshold.

    `complete` says that all of the text was looked at.
    """

    detections: tuple[Detection, ...] = ()
    over: tuple[str, ...] = ()
    complete: bool = True

    def count(self, detector: str) -> int:
        """How many different values this detector found."""
        return next((d.count for d in self.detections if d.detector == detector), 0)


@dataclass(frozen=True, slots=True)
class Disclaimer(Finding):
    """A disclaimer. `state` is ``added``, or why it was not: ``not-for``, ``there-already``, ``signed``, ``encrypted``,
    ``no-text`` or ``unreadable``. `parts` are the types of the parts that it was added to; `edits` the changes.
    """

    state: str
    parts: tuple[str, ...] = ()
    edits: tuple[Edit, ...] = ()

    def idle(self) -> bool:
        return self.state == "not-for"
