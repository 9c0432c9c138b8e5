"""The plugin `attachments`: which files come with a message, what they are, and which of them are not let in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final

from prometheus_client import Counter
from pydantic import Field, field_validator, model_validator

from gateway.sdk import (
    PROCEED,
    AddHeader,
    Attachment,
    Attachments,
    Content,
    Defect,
    Duration,
    Flaw,
    Message,
    Mime,
    MimePart,
    OptionsModel,
    Plugin,
    PluginOptions,
    Policy,
    Size,
    Stage,
    Verdict,
    annotate,
    discard,
    finds,
    quarantine,
    reject,
)
from plugins.content.examine import IN_MEMORY, Bounds, Collected, Examiner, Label
from plugins.content.names import EXECUTABLE
from plugins.content.reading import decoded, is_file, read_parts

FILES = Counter("gatepost_attachments_files", "Files seen, members of archives included.", ["kind"])
FLAWS = Counter("gatepost_attachments_flaws", "Messages with an attachment that has this flaw.", ["flaw"])

_SHOWN_REASON: Final = 100


class AttachmentAction(StrEnum):
    """What an attachment does to the message. Of several attachments' actions, the one that stands first is done."""

    REJECT = "reject"
    DISCARD = "discard"
    QUARANTINE = "quarantine"
    TAG = "tag"
    ALLOW = "allow"
    """Nothing, and no later rule is asked for this attachment."""


class DenyRule(OptionsModel):
    """One rule. All that it says must be so; what it leaves out does not matter."""

    action: AttachmentAction = Field(AttachmentAction.REJECT, description="reject, quarantine, discard, tag or allow.")
    extension: frozenset[str] = Field(frozenset(), description="One of these is the last extension of a name.")
    name: tuple[str, ...] = Field((), description="A name matches one of these patterns (`*`, `?`); case is ignored.")
    type: tuple[str, ...] = Field(
        (), description="The type, by content or as declared, matches one of these patterns, such as `image/*`."
    )
    inside: bool | None = Field(None, description="Whether it is in an archive.")
    encrypted: bool | None = Field(None, description="Whether it needs a password.")
    macro: bool | None = Field(None, description="Whether it is a document with program code.")
    opaque: bool | None = Field(None, description="Whether it is an archive that is not looked into.")
    executable: bool | None = Field(None, description="Whether its content is a program.")
    double_extension: bool | None = Field(None, description="Whether its name is made to look like another kind.")
    flaw: frozenset[Flaw] = Field(frozenset(), description="It has one of these flaws.")
    larger_than: Size | None = Field(None, description="Its size, unpacked, is more than this.")
    text: str = Field("", max_length=200, description="What the client hears instead of the common text.")

    @field_validator("extension")
    @classmethod
    def _without_dots(cls, value: frozenset[str]) -> frozenset[str]:
        return frozenset(extension.lower().removeprefix(".") for extension in value)

    @field_validator("text")
    @classmethod
    def _wire(cls, value: str) -> str:
        if not value.isascii() or not (value.isprintable() or not value):
            raise ValueError("the client gets printable ASCII")
        return value

    @model_validator(mode="after")
    def _says_something(self) -> DenyRule:
        if not self.model_fields_set - {"action", "text"}:
            raise ValueError("a rule without a condition would match every attachment; say name: ['*'] if you mean it")
        return self

    def matches(self, item: Attachment) -> bool:
        """Whether all that the rule says is so of this attachment."""
        flags = ("encrypted", "macro", "opaque", "executable", "double_extension")
        if any(wanted is not None and getattr(item, f) is not wanted for f in flags for wanted in (getattr(self, f),)):
            return False
        if self.inside is not None and bool(item.inside) is not self.inside:
            return False
        if self.extension and self.extension.isdisjoint(item.extensions):
            return False
        if self.name and not _matches((item.name, *item.names), self.name):
            return False
        if self.type and not _matches((item.type, item.declared), self.type):
            return False
        if self.flaw and self.flaw.isdisjoint(item.flaws):
            return False
        return self.larger_than is None or item.size > self.larger_than


def _matches(texts: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(text.lower(), pattern.lower()) for text in texts for pattern in patterns)


class AttachmentsOptions(PluginOptions):
    """Options of `attachments`."""

    deny: tuple[DenyRule, ...] = Field((), max_length=200, description="Rules, asked in order for each attachment.")
    executable: AttachmentAction = Field(
        AttachmentAction.REJECT,
        description="What programs do, by extension or by content, where no rule of `deny` matches.",
    )
    on_limit: AttachmentAction = Field(
        AttachmentAction.QUARANTINE,
        description="What an archive does that is not looked through because it exceeds a limit.",
    )
    tag: str = Field("X-Attachment-Warning", pattern=r"^[A-Za-z0-9-]{1,70}$", description="Field that `tag` adds.")
    max_depth: int = Field(5, ge=0, le=20, description="How many archives within each other are looked into.")
    max_members: int = Field(1000, ge=1, le=100_000, description="How many members of archives, in all.")
    max_unpacked: Size = Field(100 << 20, ge=1, le=4 << 30, description="How much is unpacked, in all.")
    max_ratio: int = Field(250, ge=1, description="How many times its size a member may have, from 10 MiB on.")
    time: Duration = Field(10.0, gt=0, description="Time for all archives of a message.")

    def bounds(self) -> Bounds:
        """The same, as the examiner takes them."""
        return Bounds(self.max_depth, self.max_members, self.max_unpacked, self.max_ratio, self.time)


class AttachmentsPolicy(Policy):
    """Keep out files that nobody should open."""

    name = "attachments"
    Options = AttachmentsOptions
    options: AttachmentsOptions

    def on_message(self, attachments: Attachments) -> Verdict:
        actions = list(AttachmentAction)
        hits = [(action, reason, text) for item in attachments.items for action, reason, text in [self._rule(item)]]
        if not attachments.complete and not any(flaw.limit for flaw in attachments.flaws):
            hits.append((self.options.on_limit, "not all attachments were looked at", ""))
        hits.sort(key=lambda hit: actions.index(hit[0]))
        if not hits:
            return PROCEED
        action, reason, text = hits[0]
        if action is AttachmentAction.REJECT:
            return reject("7.1", text or "attachment not accepted", reason=reason)
        if action is AttachmentAction.DISCARD:
            return discard(reason)
        if action is AttachmentAction.QUARANTINE:
            return quarantine(reason)
        if action is AttachmentAction.TAG:
            return annotate(AddHeader(self.options.tag, text or "attachment may be dangerous"))
        return PROCEED

    def _rule(self, item: Attachment) -> tuple[AttachmentAction, str, str]:
        """The action of the first rule that matches, the reason for the record, and the text for the client."""
        where = "/".join((*item.inside, item.name))[:_SHOWN_REASON]
        for number, rule in enumerate(self.options.deny, 1):
            if rule.matches(item):
                return rule.action, f"rule {number} of deny: {where!r}", rule.text
        if item.executable or not EXECUTABLE.isdisjoint(item.extensions):
            return self.options.executable, f"executable: {where!r}", ""
        limits = [flaw.value for flaw in item.flaws if flaw.limit]
        if limits:
            return self.options.on_limit, f"not looked through ({', '.join(limits)}): {where!r}", ""
        return AttachmentAction.ALLOW, "", ""


class AttachmentsPlugin(Plugin):
    """Looks at the files that come with a message, and into archives."""

    name = "attachments"
    Options = AttachmentsOptions
    policy = AttachmentsPolicy
    timeout = 60.0
    options: AttachmentsOptions

    @finds(Stage.MESSAGE)
    async def look(self, message: Message, mime: Mime | None) -> Attachments:
        """The files of the message as it was received."""
        parts = mime.parts if mime else (await read_parts(message.content)).parts
        complete = mime.complete if mime else Defect.TOO_MANY_PARTS not in parts[0].defects
        files = [part for part in parts if is_file(part)]
        examiner = Examiner(self.options.bounds(), self.services.clock.monotonic)
        try:
            await _examine(message.content, files, examiner)
        finally:
            examiner.stop.set()
        found = Attachments(tuple(examiner.items), complete and examiner.complete)
        for item in found.items:
            FILES.labels(_kind(item)).inc()
        for flaw in found.flaws:
            FLAWS.labels(flaw.value).inc()
        return found


async def _examine(content: Content, files: list[MimePart], examiner: Examiner) -> None:
    collected = Collected()
    try:
        async for piece in decoded(content, files):
            if len(piece.octets) > IN_MEMORY // 4:
                await asyncio.to_thread(collected.write, piece.octets)
            else:
                collected.write(piece.octets)
            if piece.last:
                part = piece.part
                label = Label(part.names or (part.filename,), part.type, part.section)
                ready, collected = collected, Collected()
                await asyncio.to_thread(_examine_file, examiner, ready, label)
    finally:
        collected.close()


def _examine_file(examiner: Examiner, collected: Collected, label: Label) -> None:
    """Closes the file in the thread that reads it: whoever waits for that may have given up."""
    try:
        examiner.examine(collected, label)
    finally:
        collected.close()


def _kind(item: Attachment) -> str:
    for kind in ("executable", "encrypted", "macro", "opaque"):
        if getattr(item, kind):
            return kind
    return "member" if item.inside else "other"
