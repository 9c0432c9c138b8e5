"""The plugin `disclaimer`: adds a text to messages, in plain text and in HTML, where a reader sees it.

*Promises*: what is signed or encrypted is left as it is. A message of any size is put together while it is stored; at
most `_WHOLE` octets of each part are held.

*RFCs*: 5322 section 3.6 (fields), 2045 (Content-Type, Content-Transfer-Encoding).
"""

from __future__ import annotations

import asyncio
import hashlib
import html
import ipaddress
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Final

from prometheus_client import Counter
from pydantic import AfterValidator, Field, model_validator

from gateway.sdk import (
    PROCEED,
    AddHeader,
    Address,
    ChangeHeader,
    DeleteHeader,
    Disclaimer,
    Edit,
    Message,
    MimePart,
    Plugin,
    PluginOptions,
    Policy,
    ReplaceBody,
    Services,
    Session,
    Stage,
    Transaction,
    Verdict,
    acts,
    annotate,
)
from gateway.sdk.actions import add_header
from plugins.content.insertion import LINE_OCTETS, TAIL, Inserted, Raw, Unreadable, insert, pgp_kind, rehead, retyped
from plugins.content.parser import Limits
from plugins.content.patched import Patch, PatchedBody
from plugins.content.placing import LeftAlone, places
from plugins.content.reading import read_parts

DISCLAIMERS = Counter("gatepost_disclaimer_messages", "Messages, and what became of their disclaimer.", ["state"])

_WHOLE: Final = 1 << 20
"""A part that is larger is not decoded: only its begin or its end changes."""
_HEAD: Final = 64 << 10
_TEXT_CHARACTERS: Final = 20_000

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Position(StrEnum):
    """Where the text goes."""

    TOP = "top"
    BOTTOM = "bottom"


def _domains(domains: frozenset[str]) -> frozenset[str]:
    found = set()
    for domain in domains:
        dot = "." if domain.startswith(".") else ""
        name = Address("", domain.removeprefix(".")).ascii_domain
        if not name or "@" in name or " " in name:
            raise ValueError(f"{domain!r} is no domain; those below one are written .example.org")
        found.add(dot + name)
    return frozenset(found)


def _lines(text: str) -> str:
    if len(text) > _TEXT_CHARACTERS or not all(c.isprintable() or c in "\n\t" for c in text):
        raise ValueError(f"a text has at most {_TEXT_CHARACTERS} printable characters, in lines")
    if any(len(line.encode()) > LINE_OCTETS for line in text.split("\n")):
        raise ValueError(f"a line of a text has at most {LINE_OCTETS} octets (RFC 5322 section 2.1.1)")
    return text


Domains = Annotated[frozenset[str], AfterValidator(_domains)]
Text = Annotated[str, AfterValidator(_lines)]


class DisclaimerOptions(PluginOptions):
    """Options of `disclaimer`."""

    text: Text = Field(min_length=1, description="The text, for parts in plain text.")
    html: Text = Field("", description="The same in HTML; by default made from `text`.")
    position: Position = Field(Position.BOTTOM, description="Where it goes: `top` or `bottom`.")
    senders: Domains = Field(
        frozenset(), description="Only for envelope senders of these domains (`.example.org`: those below it)."
    )
    recipients: Domains = Field(frozenset(), description="Only where a recipient is of one of these domains.")
    inside: Domains = Field(frozenset(), description="Not where all recipients are of these domains.")
    clients: tuple[Network, ...] = Field((), description="Only for clients in these networks.")
    trusted: bool | None = Field(
        None, description="Only for clients that may relay (true), or only for others (false)."
    )
    mark: str = Field(
        "X-Disclaimer",
        pattern=r"^[A-Za-z][A-Za-z0-9-]{0,60}$",
        description="Header field that says which disclaimer a message has, so that it gets each only once.",
    )

    @model_validator(mode="after")
    def _says_something(self) -> DisclaimerOptions:
        if not self.text.strip():
            raise ValueError("the text is empty")
        return self


class DisclaimerPolicy(Policy):
    """Makes the edits."""

    name = "disclaimer"
    Options = DisclaimerOptions
    options: DisclaimerOptions

    def changes(self) -> bool:
        return True

    def on_message(self, found: Disclaimer) -> Verdict:
        return annotate(*found.edits) if found.edits else PROCEED


class DisclaimerPlugin(Plugin):
    """Adds a text to the first text parts of a message."""

    name = "disclaimer"
    Options = DisclaimerOptions
    policy = DisclaimerPolicy
    options: DisclaimerOptions

    def __init__(self, options: DisclaimerOptions, services: Services) -> None:
        super().__init__(options, services)
        shown = options.html or html.escape(options.text.strip("\n"), quote=False).replace("\n", "<br>\n")
        self._texts = {"text/plain": options.text, "text/html": options.html or f"<div>{shown}</div>"}
        octets = "\0".join((*self._texts.values(), options.position)).encode()
        self._id = hashlib.sha256(octets).hexdigest()[:16]

    @acts(Stage.MESSAGE)
    async def add(self, session: Session, transaction: Transaction, message: Message) -> Disclaimer:
        """The edits that add the text, or why there are none."""
        found = await self._add(session, transaction, message)
        DISCLAIMERS.labels(found.state).inc()
        return found

    async def _add(self, session: Session, transaction: Transaction, message: Message) -> Disclaimer:
        if not self._wanted(session, transaction):
            return Disclaimer("not-for")
        if any(value.strip() == self._id for value in message.all(self.options.mark)):
            return Disclaimer("there-already")
        parsed = await read_parts(message.content, Limits(text=0), utf8=transaction.parameters.smtputf8)
        if not parsed.complete:
            return Disclaimer("unreadable")
        try:
            parts = places(parsed.parts)
            bodies = await _read(message, parts)
            edits = await asyncio.to_thread(self._edits, message, parsed.parts[0].body, parts, bodies)
        except LeftAlone as left:
            return Disclaimer(str(left))
        except Unreadable:
            return Disclaimer("unreadable")
        return Disclaimer("added", tuple(part.type for part in parts), edits)

    def _wanted(self, session: Session, transaction: Transaction) -> bool:
        options = self.options
        sender = transaction.sender
        if options.senders and not (isinstance(sender, Address) and _of(sender, options.senders)):
            return False
        addresses = [recipient.address for recipient in transaction.recipients]
        if options.recipients and not any(_of(address, options.recipients) for address in addresses):
            return False
        if options.inside and all(_of(address, options.inside) for address in addresses):
            return False
        if options.clients and not any(session.client in network for network in options.clients):
            return False
        return options.trusted is None or options.trusted is session.trusted

    def _edits(
        self, message: Message, skip: int, parts: Sequence[MimePart], bodies: Sequence[tuple[bytes, Raw]]
    ) -> tuple[Edit, ...]:
        """Insertions in all parts, or none: half of a multipart/alternative would be shown to half of the readers."""
        top = self.options.position is Position.TOP
        header: list[Edit] = []
        patches: list[Patch] = []
        for part, (section, raw) in zip(parts, bodies, strict=True):
            if kind := pgp_kind(part, raw):
                raise LeftAlone(kind)
            made = insert(part, raw, self._texts[part.type], top=top)
            at = part.body if made.at_begin else part.end - made.replaces
            end = at if made.at_begin else part.end
            patches.append(Patch(at - skip, end - skip, made.octets))
            if made.charset and part.section == "1":
                header += _retype(message, made)
            elif made.charset:
                patches.append(Patch(part.header - skip, part.body - skip, rehead(section, made)))
        body = ReplaceBody(PatchedBody(message.content, skip, patches))
        return (*header, body, *add_header(self.options.mark, self._id))


def _of(address: Address, domains: frozenset[str]) -> bool:
    domain = address.ascii_domain
    if domain in domains:
        return True
    at = domain.find(".")
    while at >= 0:
        if domain[at:] in domains:
            return True
        at = domain.find(".", at + 1)
    return False


async def _read(message: Message, parts: Sequence[MimePart]) -> list[tuple[bytes, Raw]]:
    """The header section of each part, and its body as far as it is needed, in one pass."""
    wanted = [range_ for part in parts for range_ in _ranges(part)]
    kept = [bytearray() for _ in wanted]
    at, last = 0, max(end for _, end in wanted)
    async for block in message.content.blocks():
        end = at + len(block)
        for held, (start, stop) in zip(kept, wanted, strict=True):
            if start < end and stop > at:
                held += block[max(0, start - at) : stop - at]
        at = end
        if at >= last:
            break
    pieces = iter(map(bytes, kept))
    return [(next(pieces), Raw(next(pieces), next(pieces), part.end - part.body <= _WHOLE)) for part in parts]


def _ranges(part: MimePart) -> Iterable[tuple[int, int]]:
    whole = part.end - part.body <= _WHOLE
    yield part.header, part.body
    yield part.body, part.end if whole else part.body + _HEAD
    yield max(part.body, part.end - TAIL), part.end


def _retype(message: Message, made: Inserted) -> list[Edit]:
    """The message's own Content-Type and Content-Transfer-Encoding."""
    edits: list[Edit] = []
    if (value := message.first("content-type")) is not None:
        edits.append(ChangeHeader("Content-Type", 1, retyped(value, made.charset)))
    else:
        edits.append(AddHeader("Content-Type", retyped("", made.charset)))
        if message.first("mime-version") is None:
            edits.append(AddHeader("MIME-Version", "1.0"))
    return [*edits, DeleteHeader("Content-Transfer-Encoding"), AddHeader("Content-Transfer-Encoding", made.encoding)]
