"""The changes that rspamd asks for, as edits, in the order in which its own milter makes them.

Header fields to be removed come first, then those to be added, the envelope, and signatures. Source: `milter` in
https://rspamd.com/doc/developers/protocol.html
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from gateway.sdk import (
    END,
    AddHeader,
    AddRecipient,
    AddressError,
    ChangeHeader,
    ChangeSender,
    DeleteHeader,
    DeleteRecipient,
    Edit,
    HeaderField,
    Recipient,
    field_value,
    parse_forward_path,
    parse_reverse_path,
)
from plugins.rspamd.reply import Added, MilterBlock, Reply, RspamdError

EDITS: Final = 500
_NAME: Final = re.compile(r"[\x21-\x39\x3b-\x7e]{1,77}\Z")


def edits_of(reply: Reply, fields: Sequence[HeaderField]) -> tuple[Edit, ...]:
    """All edits that the reply asks for; `fields` are those of the message. Raises RspamdError for what is no edit."""
    out: list[Edit] = []
    for edit in _all(reply, fields):
        out.append(edit)
        if len(out) > EDITS:
            raise RspamdError(f"rspamd asks for more than {EDITS} changes")
    return tuple(out)


def _all(reply: Reply, fields: Sequence[HeaderField]) -> Iterator[Edit]:
    block = reply.milter
    counts = Counter(field.name.lower() for field in fields)
    yield from _removed(block, counts)
    for name, values in block.add_headers.items():
        for value in values:
            yield _add(name, value, counts.total())
    yield from _envelope(block)
    if reply.action == "add header" and isinstance(block.spam_header, dict):
        for name, text in block.spam_header.items():
            yield DeleteHeader(_name(name))
            yield AddHeader(_name(name), field_value(text))
    if reply.action == "rewrite subject" and reply.subject:
        subject = field_value(reply.subject)
        yield ChangeHeader("Subject", 1, subject) if counts["subject"] else AddHeader("Subject", subject)
    for place, signature in enumerate(reply.signatures):
        yield AddHeader("DKIM-Signature", field_value(signature), place)
    if block.no_action:
        yield AddHeader("X-Rspamd-Action", field_value(reply.action))


def _removed(block: MilterBlock, counts: Counter[str]) -> Iterator[DeleteHeader]:
    """Places are those of the message as rspamd saw it, so the last ones go first. `counts` is what is left."""
    for name, places in block.remove_headers.items():
        lower = _name(name).lower()
        if 0 in places:
            counts[lower] = 0
            yield DeleteHeader(name)
            continue
        there = counts[lower]
        for nth in sorted({place if place > 0 else there + place + 1 for place in places}, reverse=True):
            if 0 < nth <= there:
                counts[lower] -= 1
                yield DeleteHeader(name, nth)


def _add(name: str, added: Added, there: int) -> AddHeader:
    value = field_value(added.value)
    place = added.place
    if place is None or place == -1:
        return AddHeader(_name(name), value, END)
    return AddHeader(_name(name), value, place if place >= 0 else max(0, there + place + 1))


def _envelope(block: MilterBlock) -> Iterator[Edit]:
    try:
        if block.change_from is not None:
            yield ChangeSender(parse_reverse_path(_bare(block.change_from), utf8=True))
        for path in block.add_rcpt:
            yield AddRecipient(Recipient(parse_forward_path(_bare(path), utf8=True)))
        for path in block.del_rcpt:
            yield DeleteRecipient(parse_forward_path(_bare(path), utf8=True))
    except AddressError as error:
        raise RspamdError(f"rspamd names an address that is none: {error}") from error


def _bare(path: str) -> str:
    return path[1:-1] if path.startswith("<") and path.endswith(">") else path


def _name(name: str) -> str:
    if not _NAME.match(name):
        raise RspamdError(f"rspamd names {name[:80]!r}, which is no header field")
    return name
