"""The plugin `dlp`: data that should not leave the house, or come in, found by detectors in subject and texts.

*Promises*: what was found stands in the record as counts and masked samples only, and nowhere in the log.
"""

from __future__ import annotations

import asyncio
import itertools
from enum import StrEnum
from typing import Annotated, Final

from prometheus_client import Counter
from pydantic import AfterValidator, Field, model_validator

from gateway.sdk import (
    PROCEED,
    Action,
    Detection,
    Dlp,
    Message,
    Mime,
    OptionsModel,
    Plugin,
    PluginOptions,
    Policy,
    Services,
    Stage,
    Verdict,
    defer,
    finds,
    quarantine,
    reject,
)
from gateway.sdk.words import decode_words
from plugins.content.detectors import DETECTORS, MOST, Find, Near, masked, pattern_detector
from plugins.content.markup import plain_text

DETECTED = Counter("gatepost_dlp_messages", "Messages in which a detector came to its threshold.", ["detector"])

_AT_ONCE: Final = 16 << 10
"""Characters that are looked at without a thread."""
_SUBJECT_CHARACTERS: Final = 2_000
_WORD_CHARACTERS: Final = 100


class Deed(StrEnum):
    """What is done with a message in which a detector came to its threshold."""

    QUARANTINE = "quarantine"
    REJECT = "reject"
    DEFER = "defer"
    RECORD = "record"
    """Nothing: the finding is there for other policies."""


def _words(words: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for word in words or ():
        if not word.strip() or len(word) > _WORD_CHARACTERS:
            raise ValueError(f"a word has 1 to {_WORD_CHARACTERS} characters")
    return words


class DetectorOptions(OptionsModel):
    """One detector."""

    pattern: str | None = Field(
        None,
        min_length=1,
        max_length=4_000,
        description="An expression of your own (RE2), for a name that is not known.",
    )
    case: bool = Field(False, description="Whether the pattern tells upper from lower case.")
    threshold: int = Field(1, ge=1, le=10_000, description="Different values from which the detector counts.")
    near: Annotated[tuple[str, ...] | None, AfterValidator(_words)] = Field(
        None, max_length=100, description="Words of which one must stand near a value; by default the detector's own."
    )
    within: int = Field(100, ge=1, le=10_000, description="How many characters away that is at most.")
    action: Deed | None = Field(
        None, description="What is done at the threshold, if not what the entry's `action` says."
    )


class DlpOptions(PluginOptions):
    """Options of `dlp`."""

    detect: dict[str, DetectorOptions] = Field(
        min_length=1,
        max_length=100,
        description="Detectors by name: those that are known, and others with a `pattern`.",
    )
    action: Deed = Field(
        Deed.QUARANTINE, description="What is done at a threshold: `quarantine`, `reject`, `defer` or `record`."
    )
    unread: Deed = Field(
        Deed.RECORD, description="What is done when not all of the text could be looked at and nothing was found."
    )
    samples: int = Field(3, ge=0, le=10, description="Masked values of each detector that the record keeps.")

    @model_validator(mode="after")
    def _known(self) -> DlpOptions:
        for name, detector in self.detect.items():
            if not name or len(name) > 60 or not name.isprintable():
                raise ValueError("the name of a detector has 1 to 60 printable characters")
            if (name in DETECTORS) == (detector.pattern is not None):
                known = ", ".join(DETECTORS)
                problem = "is known, and has no pattern" if name in DETECTORS else f"needs a pattern; known are {known}"
                raise ValueError(f"{name!r} {problem}")
            if detector.pattern is not None:
                try:
                    pattern_detector(detector.pattern, case=detector.case)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
        return self


_WEIGHT: Final = {Deed.RECORD: 0, Deed.QUARANTINE: 1, Deed.DEFER: 2, Deed.REJECT: 3}


class DlpPolicy(Policy):
    """Keeps back what a detector counts."""

    name = "dlp"
    Options = DlpOptions
    options: DlpOptions

    def on_message(self, dlp: Dlp) -> Verdict:
        if dlp.over:
            named = [self.options.detect.get(name) for name in dlp.over]
            deeds = [(one.action if one else None) or self.options.action for one in named]
            counts = ", ".join(f"{name} ({dlp.count(name)})" for name in dlp.over)
            return _verdict(max(deeds, key=_WEIGHT.__getitem__), f"found {counts}")
        if not dlp.complete:
            return _verdict(self.options.unread, "not all of the text could be looked at")
        return PROCEED


def _verdict(deed: Deed, reason: str) -> Verdict:
    match deed:
        case Deed.QUARANTINE:
            return quarantine(reason)
        case Deed.REJECT:
            return reject("7.1", "message holds data that must not be sent", reason=reason)
        case Deed.DEFER:
            return defer("7.1", "message cannot be taken now", reason=reason)
    return Verdict(Action.PROCEED, reason=reason)


class _Counting:
    """A detector of the options, and what it found."""

    def __init__(self, name: str, options: DetectorOptions, find: Find, near: tuple[str, ...], tail: int) -> None:
        self.name = name
        self.threshold = options.threshold
        self._find = find
        self._tail = tail
        self._near = Near(near if options.near is None else options.near, options.within)

    def look(self, text: str, found: dict[str, None]) -> bool:
        """Put what the text holds into `found`. False when there was more than is looked at."""
        for value in itertools.islice(self._find(text), MOST):
            if value.value not in found and self._near(text, value):
                found[value.value] = None
                if len(found) >= MOST:
                    return False
        return True

    def masked(self, found: dict[str, None], samples: int) -> tuple[str, ...]:
        return tuple(masked(value, self._tail) for value in itertools.islice(found, samples))


class DlpPlugin(Plugin):
    """Looks for payment cards, bank accounts, national numbers and the like."""

    name = "dlp"
    Options = DlpOptions
    policy = DlpPolicy
    options: DlpOptions

    def __init__(self, options: DlpOptions, services: Services) -> None:
        super().__init__(options, services)
        self._detectors = tuple(_counting(name, detector) for name, detector in options.detect.items())

    @finds(Stage.MESSAGE)
    async def detect(self, message: Message, mime: Mime) -> Dlp:
        """What the detectors find in the subject and in all texts of a message."""
        subjects = [decode_words(value)[:_SUBJECT_CHARACTERS] for value in message.all("subject")[:20]]
        texts = [*(("", subject) for subject in subjects), *((text.type, text.text) for text in mime.texts)]
        if sum(len(text) for _, text in texts) > _AT_ONCE:
            found, whole = await asyncio.to_thread(self._look, texts)
        else:
            found, whole = self._look(texts)
        over = tuple(d.name for d in self._detectors if len(found[d.name]) >= d.threshold)
        for name in over:
            DETECTED.labels(name).inc()
        detections = tuple(
            Detection(d.name, len(found[d.name]), d.masked(found[d.name], self.options.samples))
            for d in self._detectors
            if found[d.name]
        )
        complete = whole and mime.complete and not any(text.truncated for text in mime.texts)
        return Dlp(detections, over, complete)

    def _look(self, texts: list[tuple[str, str]]) -> tuple[dict[str, dict[str, None]], bool]:
        found: dict[str, dict[str, None]] = {detector.name: {} for detector in self._detectors}
        whole = True
        for kind, source in texts:
            text = plain_text(source) if kind == "text/html" else source
            for detector in self._detectors:
                whole = detector.look(text, found[detector.name]) and whole
        return found, whole


def _counting(name: str, options: DetectorOptions) -> _Counting:
    if options.pattern is not None:
        return _Counting(name, options, pattern_detector(options.pattern, case=options.case), (), 2)
    known = DETECTORS[name]
    return _Counting(name, options, known.find, known.near, known.tail)
