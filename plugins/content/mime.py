"""The plugin `mime`: what the message is made of and what is wrong with it, for other plugins, rules and policies."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from prometheus_client import Counter
from pydantic import Field, field_validator

from gateway.sdk import (
    PROCEED,
    Defect,
    Message,
    Mime,
    Plugin,
    PluginOptions,
    Policy,
    Size,
    Stage,
    Transaction,
    Verdict,
    defer,
    finds,
    quarantine,
    reject,
)
from plugins.content.parser import Limits
from plugins.content.reading import read_parts

DEFECTS = Counter("gatepost_mime_defects", "Messages with a defect of this kind.", ["defect"])

_CLASSES: Final = {"small": 64 << 10, "medium": 1 << 20, "large": 10 << 20}


class DefectAction(StrEnum):
    """What a defect does to the message. Of several, the one that stands first here is done."""

    REJECT = "reject"
    DEFER = "defer"
    QUARANTINE = "quarantine"


class MimeOptions(PluginOptions):
    """Options of `mime`."""

    refuse_defects: dict[Defect, DefectAction] = Field(
        {}, description="Defect -> `reject`, `defer` or `quarantine`. Others are only noted."
    )
    classes: dict[str, Size] = Field(
        _CLASSES, description="Names of sizes: a message belongs to the smallest class that it fits into."
    )
    max_depth: int = Field(20, ge=1, le=100, description="How deep parts within parts are read.")
    max_parts: int = Field(1000, ge=1, le=10_000, description="How many parts are read.")
    max_header: Size = Field(256 << 10, ge=1024, le=1 << 20, description="How much of one part's header is read.")
    max_text: Size = Field(1 << 20, le=16 << 20, description="How much text is kept for rules and look-ups, in all.")

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: dict[str, int]) -> dict[str, int]:
        if len(set(value.values())) < len(value):
            raise ValueError("two classes have the same size")
        return value

    def limits(self) -> Limits:
        """The same, as the parser takes them."""
        return Limits(self.max_depth, self.max_parts, self.max_header, self.max_text)

    def size_class(self, size: int) -> str:
        """The name of the smallest class for this size, empty when there is none."""
        fitting = ((limit, name) for name, limit in self.classes.items() if size <= limit)
        return min(fitting, default=(0, ""))[1]


class MimePolicy(Policy):
    """Refuse messages with certain defects."""

    name = "mime"
    Options = MimeOptions
    options: MimeOptions

    def on_message(self, mime: Mime) -> Verdict:
        wanted = self.options.refuse_defects
        for action in DefectAction:
            found = [defect.value for defect in mime.defects if wanted.get(defect) is action]
            if found:
                return _verdict(action, f"MIME defects: {', '.join(found)}")
        return PROCEED


def _verdict(action: DefectAction, reason: str) -> Verdict:
    if action is DefectAction.REJECT:
        return reject("6.0", "message is malformed", code=554, reason=reason)
    if action is DefectAction.DEFER:
        return defer("6.0", "message is malformed", reason=reason)
    return quarantine(reason)


class MimePlugin(Plugin):
    """Reads the tree of a message's parts."""

    name = "mime"
    Options = MimeOptions
    policy = MimePolicy
    timeout = 30.0
    options: MimeOptions

    @finds(Stage.MESSAGE)
    async def read(self, transaction: Transaction, message: Message) -> Mime:
        """The parts of the message as it was received."""
        content = message.content
        parsed = await read_parts(content, self.options.limits(), utf8=transaction.parameters.smtputf8)
        for defect in parsed.defects:
            DEFECTS.labels(defect.value).inc()
        return Mime(
            parts=parsed.parts,
            size=parsed.size,
            size_class=self.options.size_class(parsed.size),
            defects=parsed.defects,
            complete=parsed.complete,
            texts=parsed.texts,
        )
