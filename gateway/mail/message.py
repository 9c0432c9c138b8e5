"""A message's bytes: its header section, the edits that may be made to it, and its content as a stream.

*RFCs*: 5322 section 2.2 (header fields), 5321 section 4.4 (trace fields).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

_DOTS: Final = 16
_FIELD_NAME = re.compile(rb"([\x21-\x39\x3b-\x7e]{1,997})[ \t]*:")
_NAME = re.compile(r"[\x21-\x39\x3b-\x7e]{1,77}\Z")


class Content(Protocol):
    """The octets of a message as they will leave: CRLF line ends only, not dot-stuffed."""

    @property
    def size(self) -> int:
        """Octets."""

    @property
    def eight_bit(self) -> bool:
        """Whether any octet is over 127."""

    def blocks(self) -> AsyncIterator[bytes]:
        """The octets in order, in blocks of at most 1 MiB. May be called again for another pass."""


@dataclass(frozen=True, slots=True)
class HeaderField:
    """One header field: its name and all its octets, folded lines and final CRLF included."""

    name: str
    raw: bytes

    @property
    def value(self) -> str:
        """The value unfolded, without the line end; undecodable octets become U+FFFD."""
        body = self.raw[self.raw.index(b":") + 1 :]
        return body.replace(b"\r\n", b"").decode("utf-8", "replace").strip()


@dataclass(frozen=True, slots=True)
class AddHeader:
    """Put a field at the top of the header section (index 0) or after `index` other fields."""

    name: str
    value: str
    index: int = 0

    def __post_init__(self) -> None:
        check_field(self.name, self.value)
        if self.index < 0:
            raise ValueError("index counts from 0")


@dataclass(frozen=True, slots=True)
class ChangeHeader:
    """Replace the `nth` field (from 1, top down) of this name; nothing happens when there is none."""

    name: str
    nth: int
    value: str

    def __post_init__(self) -> None:
        check_field(self.name, self.value)
        if self.nth < 1:
            raise ValueError("nth counts from 1")


@dataclass(frozen=True, slots=True)
class DeleteHeader:
    """Remove the `nth` field (from 1, top down) of this name; `nth` 0 removes all of them."""

    name: str
    nth: int = 0

    def __post_init__(self) -> None:
        if self.nth < 0:
            raise ValueError("nth counts from 1; 0 stands for all")


Edit = AddHeader | ChangeHeader | DeleteHeader


class EditedContent:
    """Content whose header section was edited: `head` in place of the first `skip` octets of `content`."""

    __slots__ = ("_content", "_head", "_skip")

    def __init__(self, content: Content, head: bytes, skip: int) -> None:
        self._content = content
        self._head = head
        self._skip = skip

    @property
    def size(self) -> int:
        return len(self._head) + self._content.size - self._skip

    @property
    def eight_bit(self) -> bool:
        return self._content.eight_bit or not self._head.isascii()

    async def blocks(self) -> AsyncIterator[bytes]:
        yield self._head
        skip = self._skip
        async for block in self._content.blocks():
            if skip < len(block):
                yield block[skip:] if skip else block
            skip = max(0, skip - len(block))


def edit_json(edit: Edit) -> dict[str, Any]:
    """The edit as the decision record keeps it."""
    out: dict[str, Any] = {"edit": type(edit).__name__, "name": edit.name}
    for field in ("nth", "index", "value"):
        if hasattr(edit, field):
            out[field] = getattr(edit, field)
    return out


def dotted_line(octets: bytes) -> int:
    """Offset of the first CRLF that a dot follows, -1 for none (RFC 5321 section 4.5.2).

    Large content is Base64 mostly and has hardly any dots. Looking for those first finds out ten times as fast.
    """
    at = octets.find(b".")
    for _ in range(_DOTS):
        if at < 0:
            return -1
        if octets[max(0, at - 2) : at] == b"\r\n":
            return at - 2
        at = octets.find(b".", at + 1)
    return octets.find(b"\r\n.", max(0, at - 2)) if at >= 0 else -1


def check_field(name: str, value: str) -> None:
    """Raise `ValueError` unless name and value make a header field that cannot break out of its line."""
    if not _NAME.match(name):
        raise ValueError(f"{name!r} is no header field name")
    for line in value.split("\n")[1:]:
        if not line.startswith((" ", "\t")) or not line.strip():
            raise ValueError("a folded header line must start with white space and hold more than it")
    if any(ord(c) < 32 and c not in "\t\n" for c in value) or "\x7f" in value:
        raise ValueError("a header value holds control characters")
    value.encode("utf-8", "surrogateescape")  # raises ValueError for what has no octets


def render_field(name: str, value: str) -> bytes:
    """The octets of a field; line feeds in `value` are folds."""
    return f"{name}: {value}\r\n".replace("\r\n", "\n").replace("\n", "\r\n").encode("utf-8", "surrogateescape")


def split_header(content: bytes) -> tuple[list[HeaderField], int]:
    """Read the header section at the start of `content`: its fields and the offset where the body part begins.

    The offset is that of the empty line (kept as part of the body), or of the first line that is no header
    field, or the end. A first line that begins with white space belongs to no field and ends the section.
    """
    fields: list[HeaderField] = []
    pos, size = 0, len(content)
    while pos < size:
        match = _FIELD_NAME.match(content, pos)
        if not match:
            break
        end = pos
        while True:
            stop = content.find(b"\r\n", end)
            if stop < 0:
                end = size
                break
            end = stop + 2
            if content[end : end + 1] not in (b" ", b"\t"):
                break
        fields.append(HeaderField(match[1].decode("ascii"), content[pos:end]))
        pos = end
    return fields, pos


def apply_edits(fields: Iterable[HeaderField], edits: Iterable[Edit]) -> list[HeaderField]:
    """The fields after all edits, each seeing the result of those before it. The input is not changed.

    A last field that the message's end cut off is given its line end, so that another can follow it.
    """
    out = [f if f.raw.endswith(b"\r\n") else HeaderField(f.name, f.raw + b"\r\n") for f in fields]
    for edit in edits:
        match edit:
            case AddHeader():
                field = HeaderField(edit.name, render_field(edit.name, edit.value))
                out.insert(min(edit.index, len(out)), field)
            case ChangeHeader():
                at = _nth(out, edit.name, edit.nth)
                if at is not None:
                    out[at] = HeaderField(edit.name, render_field(edit.name, edit.value))
            case DeleteHeader():
                if edit.nth == 0:
                    lower = edit.name.lower()
                    out = [f for f in out if f.name.lower() != lower]
                else:
                    at = _nth(out, edit.name, edit.nth)
                    if at is not None:
                        del out[at]
    return out


def _nth(fields: list[HeaderField], name: str, nth: int) -> int | None:
    lower = name.lower()
    seen = 0
    for i, field in enumerate(fields):
        if field.name.lower() == lower:
            seen += 1
            if seen == nth:
                return i
    return None
