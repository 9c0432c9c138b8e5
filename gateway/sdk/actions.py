"""What postmasters want done to a message, as edits: pure functions for policies and plugins.

Each gives the edits of one action, for `annotate(*edits)`, `accept(reason, *edits)` or `quarantine(reason, *edits)`.
Values may be any text: what is not ASCII becomes encoded words, and long lines are folded.

*Fails by*: ValueError for what cannot be a header field or an address; ask with `check_tag` or `mailbox` when options
are read, so that mail never finds it out.

*RFCs*: 2047 (encoded words), 3461 section 4.1 (NOTIFY), 5322 section 2.1.1 (line length) and 3.6.5 (Subject).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from gateway.mail.address import Address, parse_mailbox
from gateway.mail.edit import (
    END,
    AddHeader,
    AddRecipient,
    ChangeHeader,
    DeleteHeader,
    DeleteRecipient,
    Edit,
    Prioritize,
    Reroute,
    inherit,
)
from gateway.mail.envelope import Notify, Priority, Recipient
from gateway.mail.message import HeaderField
from gateway.sdk.deprecation import old_names
from gateway.sdk.stage import Message, Transaction
from gateway.sdk.words import begins_with_word, decode_words, encode_words

__all__ = [
    "LINE",
    "add_header",
    "archive",
    "bcc",
    "check_tag",
    "delete_header",
    "fold",
    "header_value",
    "is_tagged",
    "mailbox",
    "prioritize",
    "redirect",
    "route",
    "set_header",
    "tag_subject",
]

if not TYPE_CHECKING:
    # Type checkers shall know only the names that are here.
    __getattr__ = old_names(__name__)

LINE: Final = 78
"""Characters that a line of a header field should have at most."""
_LINE_OCTETS: Final = 900
"""Octets of a value's line, beside the field's name; 998 is what a line must not exceed."""
_SUBJECTS: Final = 20
"""Subject fields that are tagged. There may be one only, but which one of several is shown, nobody knows."""
_SUBJECT_CHARACTERS: Final = 2_000
_TAG_CHARACTERS: Final = 100
_REPLY: Final = re.compile(r"(?:[^\W\d_]{1,5}(?:\[\d{1,3}\]|\(\d{1,3}\))?[:\uff1a][ \t]*){0,5}")
"""Marks of replies and forwards in many languages: Re:, AW:, Fwd:, SV:, Re[2]:."""
_ADDRESS: Final = re.compile(r"[^\s<>,;:()\"@]{1,64}@[^\s<>,;:()\"@]{1,255}")
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def tag_subject(message: Message, prefix: str) -> tuple[Edit, ...]:
    """Put `prefix` and a space before the subject, unless it begins with it already (or after ``Re:`` and the like).

    The rest of the field stays as it was written. A message without subject is given one. Raises ValueError for a
    prefix that `check_tag` does not take.
    """
    tag = check_tag(prefix)
    fields = [field for field in message.fields if field.name.lower() == "subject"]
    if not fields:
        return (AddHeader("Subject", _phrase(tag), END),)
    edits = (_tagged(field, nth, tag) for nth, field in enumerate(fields[:_SUBJECTS], 1))
    return tuple(edit for edit in edits if edit is not None)


def check_tag(prefix: str) -> str:
    """The prefix without white space around it. Raises ValueError for one that is empty, too long or unprintable."""
    tag = prefix.strip()
    if not tag or len(tag) > _TAG_CHARACTERS or not tag.isprintable():
        raise ValueError(f"a tag of a subject has 1 to {_TAG_CHARACTERS} printable characters")
    return tag


def is_tagged(subject: str, prefix: str) -> bool:
    """Whether a decoded subject begins with the prefix, marks of replies before it left out of account."""
    tag = " ".join(prefix.split()).casefold()
    text = " ".join(subject[:_SUBJECT_CHARACTERS].split()).casefold()
    marks = _REPLY.match(text)
    return text.startswith(tag) or (marks is not None and text.startswith(tag, marks.end()))


def _tagged(field: HeaderField, nth: int, tag: str) -> ChangeHeader | None:
    value = _written(field)
    if is_tagged(decode_words(value), tag):
        return None
    if tag.isascii():
        lead = tag
    else:
        # White space between two encoded words is none, so it goes into the first one.
        lead = encode_words(tag + " ") if begins_with_word(value) else encode_words(tag)
    if not value:
        return ChangeHeader("Subject", nth, lead)
    first = value.partition("\n")[0]
    fits = len(f"Subject: {lead} {first}") <= LINE and "\n" not in lead
    return ChangeHeader("Subject", nth, f"{lead}{' ' if fits else chr(10) + ' '}{value}")


def _written(field: HeaderField) -> str:
    """A field's value as it was written, with line feeds as folds, and only what an edit may hold."""
    text = field.raw[field.raw.index(b":") + 1 :].decode("utf-8", "surrogateescape").replace("\r\n", "\n")
    lines = [_CONTROLS.sub("?", line).rstrip() for line in text.split("\n")]
    kept = [line for line in lines if line.strip()]
    return (
        "\n".join([kept[0].strip(), *(line if line[0] in " \t" else f" {line}" for line in kept[1:])]) if kept else ""
    )


def add_header(name: str, value: str, *, index: int = 0) -> tuple[Edit, ...]:
    """One more field: at the top (0), after `index` others, or below all (`END`). Raises ValueError."""
    return (AddHeader(name, header_value(name, value), index),)


def set_header(name: str, value: str) -> tuple[Edit, ...]:
    """This field at the top, in place of all of its name: nobody else's is believed. Raises ValueError."""
    return (DeleteHeader(name), AddHeader(name, header_value(name, value)))


def delete_header(name: str) -> tuple[Edit, ...]:
    """No field of this name."""
    return (DeleteHeader(name),)


def header_value(name: str, value: str) -> str:
    """Text as the value of an unstructured field: encoded where it must be, folded at spaces where it is long.

    Raises ValueError for control characters, line ends among them.
    """
    if _CONTROLS.search(value):
        raise ValueError("a header value holds control characters")
    text = value.strip()
    folded = fold(text, len(name) + 2)
    if not text.isascii() or any(len(line) > _LINE_OCTETS for line in folded.split("\n")):
        return encode_words(text)
    return folded


def fold(text: str, taken: int) -> str:
    """Folds at single spaces so that lines have `LINE` characters where they can; the first begins at `taken`."""
    if taken + len(text) <= LINE:
        return text
    lines, line = [], ""
    for word in text.split(" "):
        if line.strip() and word and taken + len(line) + 1 + len(word) > LINE:
            lines.append(line)
            line, taken = word, 1
        else:
            line = f"{line} {word}" if line else word
    return "\n ".join([*lines, line])


def _phrase(text: str) -> str:
    return text if text.isascii() else encode_words(text)


def mailbox(text: str) -> Address:
    """An address as options hold it. Raises ValueError."""
    try:
        return parse_mailbox(text, utf8=True)
    except ValueError as error:
        raise ValueError(f"{text[:100]!r}: {error}") from None


def redirect(txn: Transaction, to: Address | str) -> tuple[Edit, ...]:
    """Send it to this address in place of all whom the client named. Raises ValueError for no address.

    Who was added by others (`bcc`) stays. What the sender wants to be told of (`gateway.mail.edit.inherit`) goes along.
    """
    address = mailbox(to) if isinstance(to, str) else to
    gone = tuple(DeleteRecipient(r.address) for r in txn.recipients if r.address.key != address.key)
    return (*gone, AddRecipient(inherit(Recipient(address), txn.recipients)))


def bcc(*to: Address | str) -> tuple[Edit, ...]:
    """A blind copy to these. Nobody is told when such a copy cannot be delivered. Raises ValueError for no address."""
    addresses = [mailbox(one) if isinstance(one, str) else one for one in to]
    return tuple(AddRecipient(Recipient(address, frozenset({Notify.NEVER}))) for address in addresses)


def archive(txn: Transaction, message: Message, *to: Address | str, header: str = "") -> tuple[Edit, ...]:
    """Blind copies for an archive; with `header` (``X-Envelope-To``) the recipients are written into the message, too.

    All copies of a message have the same header section, so a field that names recipients would tell each of them of
    blind copies. It is added where it tells nobody anything: to one recipient, or when all of them stand in To and Cc.
    The sender is in ``Return-Path``, which delivery writes. Raises ValueError for no address.
    """
    edits = bcc(*to)
    addresses = [recipient.address for recipient in txn.recipients]
    if not header or not addresses or (len(addresses) > 1 and not _all_named(message, addresses)):
        return edits
    return (*set_header(header, ", ".join(map(str, addresses))), *edits)


def _all_named(message: Message, addresses: list[Address]) -> bool:
    """Whether To and Cc name all of these."""
    named = {m.casefold() for f in message.fields if f.name.lower() in ("to", "cc") for m in _ADDRESS.findall(f.value)}
    return all(str(address).casefold() in named for address in addresses)


def route(next_hop: str) -> tuple[Edit, ...]:
    """This message's own next hop (``smtp:host:port``), whatever the routes say."""
    return (Reroute(next_hop),)


def prioritize(priority: Priority) -> tuple[Edit, ...]:
    """This message goes before others that wait for the same destination, or after them. Low priority never starves."""
    return (Prioritize(priority),)
