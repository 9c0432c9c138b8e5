"""The plugin `content-checks`: tables of header_checks(5) and body_checks(5), its options and its policy.

Tables stand in the configuration or in files, and are asked in order. They see the message as the entries before this
one have left it, and what they change is seen by the entries after it.

*Promises*: regular expressions run in linear time. A large message is looked at in a thread, block by block.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

from prometheus_client import Counter
from pydantic import AfterValidator, Field, model_validator

from gateway.sdk import (
    PROCEED,
    Action,
    ContentChecks,
    Edit,
    Message,
    Mime,
    OptionsModel,
    Plugin,
    PluginOptions,
    Policy,
    Recipient,
    Redirect,
    ReplaceBody,
    Reroute,
    Services,
    Size,
    Stage,
    Transaction,
    Verdict,
    WatchedFile,
    acts,
    annotate,
    defer,
    discard,
    get_logger,
    quarantine,
    reject,
)
from gateway.sdk.actions import bcc, mailbox
from plugins.content.inspection import Asked, Inspection, Result, wire_text
from plugins.content.markup import plain_text
from plugins.content.patched import PatchedBody, body_offset
from plugins.content.pattern import Kind
from plugins.content.table import HEADERS, Act, Place, Table, logical_lines, numbered, parse_table

MATCHES = Counter("gatepost_content_checks_matches", "Rules of content checks that matched.", ["place", "action"])

FILE_OCTETS: Final = 8 << 20
_AT_ONCE: Final = 64 << 10
"""Octets that are looked at without a thread: that costs less than the thread does."""

_log = get_logger()


def _field_names(names: frozenset[str]) -> frozenset[str]:
    for name in names:
        if not name or not name.isascii() or not name.isprintable() or ":" in name or " " in name:
            raise ValueError(f"{name[:40]!r} is no header field name; leave the colon out")
    return frozenset(name.lower() for name in names)


class TableOptions(OptionsModel):
    """One table."""

    match: tuple[Place, ...] = Field(
        (Place.HEADER, Place.MIME_HEADER, Place.NESTED_HEADER),
        min_length=1,
        description="What is looked at: `header`, `mime-header`, `nested-header`, `body` (lines) or `text` (decoded).",
    )
    kind: Kind = Field(Kind.PCRE, description="How patterns are written: `pcre` or `regexp`.")
    file: str | None = Field(None, min_length=1, description="File with one pattern and its action a line.")
    entries: tuple[str, ...] = Field((), max_length=5_000, description="The same lines here, instead of a file.")
    names: Annotated[frozenset[str], AfterValidator(_field_names)] = Field(
        frozenset(), description="Header fields that are looked at, and of these only the value; none: all, and whole."
    )
    decode: bool = Field(False, description="Whether encoded words of header fields are decoded first.")

    @model_validator(mode="after")
    def _agree(self) -> TableOptions:
        if (self.file is None) == (not self.entries):
            raise ValueError("a table has either a file or entries")
        if (self.names or self.decode) and not self.places & HEADERS:
            raise ValueError("names and decode are of header fields, and this table is not on any")
        if Place.TEXT in self.match and len(self.places) > 1:
            raise ValueError("text is decoded, the others are not: give it a table of its own")
        if self.decode and Place.BODY in self.match:
            raise ValueError("lines of the body are not decoded: give them a table of their own, or look at text")
        if self.entries:
            self.from_entries()
        return self

    @property
    def places(self) -> frozenset[Place]:
        """`match`, each once."""
        return frozenset(self.match)

    @property
    def decoded(self) -> bool:
        """Whether patterns see UTF-8."""
        return self.decode or Place.TEXT in self.match

    def from_entries(self) -> Table:
        """The table of the entries. Raises ValueError, which names the entry."""
        return parse_table(numbered(self.entries), self.kind, self.places, decoded=self.decoded, what="entry")

    def from_file(self, data: bytes) -> Table:
        """The table of a file's content. Raises ValueError, which names the line."""
        return parse_table(logical_lines(data), self.kind, self.places, decoded=self.decoded)


class ContentChecksOptions(PluginOptions):
    """Options of `content-checks`."""

    tables: tuple[TableOptions, ...] = Field(
        min_length=1, max_length=50, description="Tables; of those about a line, the first rule that matches decides."
    )
    segment: Size = Field(
        50 << 10, description="How much of each part's lines is looked at (Postfix's `body_checks_size_limit`)."
    )
    octets: Size = Field(64 << 20, gt=0, description="How much of a message is looked at in all.")
    matches: int = Field(20, ge=1, le=200, description="Matches that the record keeps; all of them count.")
    reject_at: float | None = Field(None, description="Sum of SCORE actions from which a message is refused.")
    quarantine_at: float | None = Field(None, description="Sum of SCORE actions from which it is set aside.")


class ContentChecksPolicy(Policy):
    """Does what the rules that matched say."""

    name = "content-checks"
    Options = ContentChecksOptions
    options: ContentChecksOptions

    def on_message(self, found: ContentChecks) -> Verdict:
        reason = f"{found.rule}: {found.action}" if found.rule else ""
        match found.action:
            case "reject":
                return reject(found.detail or "7.1", wire_text(found.text, "message content rejected"), reason=reason)
            case "defer":
                text = wire_text(found.text, "try again later")
                return defer(found.detail or "7.1", text, reason=reason)
            case "discard":
                return discard(reason)
        if self.options.reject_at is not None and found.score >= self.options.reject_at:
            return reject("7.1", "message content rejected", reason=f"score {found.score:g}")
        if found.action == "hold":
            return quarantine(f"{reason} {found.text}".strip(), *found.edits)
        if self.options.quarantine_at is not None and found.score >= self.options.quarantine_at:
            return quarantine(f"score {found.score:g}", *found.edits)
        if found.edits:
            return annotate(*found.edits)
        return Verdict(Action.PROCEED, reason=reason) if reason else PROCEED


class _Listed:
    """A table of the options, from entries or from a file that is watched."""

    def __init__(self, options: TableOptions, place: int, services: Services) -> None:
        self._options = options
        self._table = options.from_entries() if options.entries else None
        self._where = f"{options.file}:" if options.file else f"table {place}, entry "
        self._file = (
            WatchedFile(options.file, options.from_file, services.clock, limit=FILE_OCTETS) if options.file else None
        )

    async def start(self) -> None:
        if self._file:
            await self._file.start()

    async def current(self) -> Asked | None:
        table = await self._file.current() if self._file else self._table
        if table is None or not len(table):
            return None
        options = self._options
        return Asked(table, options.places, options.names, options.decode, self._where)


class ContentChecksPlugin(Plugin):
    """Looks at header fields, lines and texts of a message by tables of patterns."""

    name = "content-checks"
    Options = ContentChecksOptions
    policy = ContentChecksPolicy
    options: ContentChecksOptions

    def __init__(self, options: ContentChecksOptions, services: Services) -> None:
        super().__init__(options, services)
        self._tables = tuple(_Listed(table, place, services) for place, table in enumerate(options.tables, 1))
        self._texts = any(Place.TEXT in table.match for table in options.tables)
        self.narrow({Stage.MESSAGE}, without=() if self._texts else {Mime})

    async def start(self) -> None:
        for table in self._tables:
            await table.start()

    @acts(Stage.MESSAGE)
    async def check(self, transaction: Transaction, message: Message, mime: Mime | None) -> ContentChecks:
        """What the tables say of a message, and the edits that they ask for."""
        if self._texts and mime is None:
            raise RuntimeError("tables on text need the entry `mime`, and it found nothing")
        tables = [asked for table in self._tables if (asked := await table.current()) is not None]
        inspection = Inspection(tables, segment=self.options.segment, matches=self.options.matches)
        inspection.header(message.fields)
        skip = sum(len(field.raw) for field in message.fields)
        complete = True
        if not inspection.done and inspection.wants_body:
            skip, complete = await self._body(inspection, message)
        if mime is not None and not inspection.done:
            await self._look_at_texts(inspection, mime)
            complete = complete and mime.complete and not any(text.truncated for text in mime.texts)
        return self._finding(inspection.result, transaction, message, skip, complete=complete)

    async def _body(self, inspection: Inspection, message: Message) -> tuple[int, bool]:
        """Look at the body; gives where it begins and whether all of it was looked at."""
        thread = message.content.size > _AT_ONCE
        begin, skip, left = b"", -1, self.options.octets
        head = sum(len(field.raw) for field in message.fields)
        async for block in message.content.blocks():
            if skip < 0:
                begin += block
                if len(begin) < head + 2 and len(begin) < message.content.size:
                    continue
                skip = body_offset(message, begin)
                inspection.begin(message.fields, blank=skip > head)
                block = begin[skip:]
            piece = block[:left]
            left -= len(piece)
            if thread:
                await asyncio.to_thread(inspection.body, piece)
            else:
                inspection.body(piece)
            if inspection.done or not left:
                break
        if left and skip >= 0 and not inspection.done:
            inspection.body(None)
        return max(skip, 0), left > 0

    async def _look_at_texts(self, inspection: Inspection, mime: Mime) -> None:
        for text in mime.texts:
            shown = plain_text(text.text) if text.type == "text/html" else text.text
            if len(shown) > _AT_ONCE:
                await asyncio.to_thread(inspection.text, shown)
            else:
                inspection.text(shown)
            if inspection.done:
                return

    def _finding(
        self, result: Result, transaction: Transaction, message: Message, skip: int, *, complete: bool
    ) -> ContentChecks:
        for (place, act), count in result.counts.items():
            MATCHES.labels(place.value, act.value).inc(count)
        for match in result.matches:
            if match.action == Act.WARN:
                _log.warning("content.matched", id=transaction.id, rule=match.rule, name=match.name, reason=match.note)
            elif match.action in (Act.INFO, Act.STRIP):
                _log.info("content.matched", id=transaction.id, rule=match.rule, name=match.name, reason=match.note)
        action, rule, text, detail = "", "", "", ""
        if result.final is not None:
            action, rule = result.final.act.value, result.where
            text, detail = result.text, result.final.detail
        if result.held and action in ("", Act.PASS):
            action, rule, text, detail = Act.HOLD.value, "", result.hold, ""
        return ContentChecks(
            action,
            rule,
            detail,
            wire_text(text, ""),
            tuple(result.matches),
            sum(result.counts.values()),
            round(result.score, 3),
            tuple(_edits(result, message, skip)),
            complete,
        )


def _edits(result: Result, message: Message, skip: int) -> list[Edit]:
    """All edits: of the header section, the body and the envelope. A redirect overrides others of it, as in Postfix."""
    edits: list[Edit] = list(result.header)
    if result.patches:
        edits.append(ReplaceBody(PatchedBody(message.content, skip, result.patches)))
    if result.redirect:
        return [*edits, Redirect(Recipient(mailbox(result.redirect)))]
    if result.next_hop:
        edits.append(Reroute(result.next_hop))
    edits += bcc(*result.bcc)
    return edits
