"""The words of the milter protocol: packets as octets, and what a milter answers as values.

A packet is four octets of length (most significant first), one letter, and data. Texts in it end in NUL and are octets
of no declared character set; where this module gives text it is UTF-8 with surrogates for octets that are none.
Nothing here knows what may come when: that is `plugins.milter.codec`.

*Fails by*: `MilterError` for packets that say nothing sensible.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag, StrEnum
from typing import Final

from plugins.milter.macros import MacroStage, canonical

CHUNK_OCTETS: Final = 65535
"""The most of a body that one packet takes (``MILTER_CHUNK_SIZE``)."""
PACKET_OCTETS: Final = 1 << 20
"""The most that a milter may say at once. Sendmail takes 64 KiB; some milters replace bodies in larger pieces."""

_HEAD: Final = struct.Struct(">IB")
_LONG: Final = struct.Struct(">I")
_OPTIONS: Final = struct.Struct(">III")
_REPLY: Final = re.compile(r"([45][0-9][0-9])(?:([ -])(.*))?\Z", re.DOTALL)
_DETAIL: Final = re.compile(r"([245])\.([0-9]{1,3}\.[0-9]{1,3})(?: |\Z)")
_MACROS: Final = 100


class MilterError(OSError):
    """The milter cannot be talked to: it is gone, or it says what nobody understands. The text is for the record."""


class Command(IntEnum):
    """What we say (``SMFIC_...``)."""

    ABORT = ord("A")
    BODY = ord("B")
    CONNECT = ord("C")
    MACRO = ord("D")
    END = ord("E")
    HELO = ord("H")
    QUIT_NC = ord("K")
    """The session is over and another one follows on this connection."""
    HEADER = ord("L")
    MAIL = ord("M")
    EOH = ord("N")
    OPTIONS = ord("O")
    QUIT = ord("Q")
    RCPT = ord("R")
    DATA = ord("T")


class Actions(IntFlag):
    """What a milter may do (``SMFIF_...``)."""

    ADD_HEADERS = 0x01
    CHANGE_BODY = 0x02
    ADD_RCPT = 0x04
    DELETE_RCPT = 0x08
    CHANGE_HEADERS = 0x10
    QUARANTINE = 0x20
    CHANGE_FROM = 0x40
    ADD_RCPT_PAR = 0x80
    SET_MACROS = 0x100


class Steps(IntFlag):
    """What a milter does not want to hear, or does not answer (``SMFIP_...``)."""

    NO_CONNECT = 0x01
    NO_HELO = 0x02
    NO_MAIL = 0x04
    NO_RCPT = 0x08
    NO_BODY = 0x10
    NO_HEADERS = 0x20
    NO_EOH = 0x40
    SILENT_HEADER = 0x80
    NO_UNKNOWN = 0x100
    NO_DATA = 0x200
    SKIP = 0x400
    SILENT_CONNECT = 0x1000
    SILENT_HELO = 0x2000
    SILENT_MAIL = 0x4000
    SILENT_RCPT = 0x8000
    SILENT_DATA = 0x10000
    SILENT_UNKNOWN = 0x20000
    SILENT_EOH = 0x40000
    SILENT_BODY = 0x80000
    LEADING_SPACE = 0x100000


_V2_ACTIONS: Final = Actions(0x3F)
_V2_STEPS: Final = Steps(0x7F)
_V6_STEPS: Final = Steps(0x1FFFFF & ~0x800)  # all but SMFIP_RCPT_REJ: it is not told of refused recipients


@dataclass(frozen=True, slots=True)
class Terms:
    """What both sides agreed upon, or what one offers. `macros` are those that the milter wants, by stage."""

    version: int
    actions: Actions
    steps: Steps
    macros: Mapping[MacroStage, tuple[str, ...]] = field(default_factory=dict)


def offer(version: int) -> Terms:
    """All that we can do by a version of the protocol (2, 3, 4 or 6)."""
    steps = _V2_STEPS
    if version >= 3:
        steps |= Steps.NO_UNKNOWN
    if version >= 4:
        steps |= Steps.NO_DATA
    if version >= 6:
        return Terms(version, Actions(0x1FF), _V6_STEPS)
    return Terms(version, _V2_ACTIONS, steps)


class Said(StrEnum):
    """The kinds of answers to a command."""

    CONTINUE = "continue"
    ACCEPT = "accept"
    REJECT = "reject"
    TEMPFAIL = "tempfail"
    DISCARD = "discard"
    REPLY = "reply"
    """A reply of its own: code, status, text."""
    SKIP = "skip"
    """No more of the body, please."""
    CLOSE = "close"
    """The client's connection is to be closed with 421."""


@dataclass(frozen=True, slots=True)
class Negotiated:
    """The milter's answer to our offer."""

    terms: Terms


@dataclass(frozen=True, slots=True)
class Progress:
    """It is still at it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a command. `code`, `detail` (without class digit) and `text` are those of `Said.REPLY`."""

    said: Said
    code: int = 0
    detail: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class HeaderAdded:
    """A field below all others."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class HeaderInserted:
    """A field after `index` others, an MTA's own Received field counted."""

    index: int
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class HeaderChanged:
    """The `nth` field of this name has another value; an empty one deletes it."""

    nth: int
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class BodyReplaced:
    """A piece of the new body."""

    octets: bytes


@dataclass(frozen=True, slots=True)
class SenderChanged:
    """Another envelope sender, with ESMTP parameters."""

    path: str
    parameters: str


@dataclass(frozen=True, slots=True)
class RecipientAdded:
    """One more recipient, with ESMTP parameters."""

    path: str
    parameters: str


@dataclass(frozen=True, slots=True)
class RecipientDeleted:
    """One recipient less."""

    path: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """The message is to be set aside."""

    reason: str


Modification = (
    HeaderAdded
    | HeaderInserted
    | HeaderChanged
    | BodyReplaced
    | SenderChanged
    | RecipientAdded
    | RecipientDeleted
    | Quarantined
)
Event = Negotiated | Progress | Answer | Modification


# What we say.


def packet(command: int, data: bytes = b"") -> bytes:
    """One packet."""
    return _HEAD.pack(len(data) + 1, command) + data


def text(value: str) -> bytes:
    """Text with its NUL; one inside would end it early and is left out."""
    return value.encode("utf-8", "surrogateescape").replace(b"\0", b"") + b"\0"


def macro_packet(command: Command, values: Mapping[str, str]) -> bytes:
    """The macros that go before a command."""
    pairs = [text(name) + text(value) for name, value in values.items()]
    return packet(Command.MACRO, bytes((command,)) + b"".join(pairs))


def options_packet(terms: Terms) -> bytes:
    """Our offer."""
    return packet(Command.OPTIONS, _OPTIONS.pack(terms.version, terms.actions, terms.steps))


# What a milter says.


def read_options(data: bytes) -> Negotiated:
    """The milter's answer to our offer. Raises `MilterError`."""
    if len(data) < _OPTIONS.size:
        raise MilterError("its options are cut off")
    version, actions, steps = _OPTIONS.unpack_from(data)
    macros: dict[MacroStage, tuple[str, ...]] = {}
    at = _OPTIONS.size
    while at < len(data):
        if at + _LONG.size >= len(data):
            raise MilterError("its list of macros is cut off")
        (stage,) = _LONG.unpack_from(data, at)
        end = data.find(b"\0", at + _LONG.size)
        if end < 0:
            raise MilterError("its list of macros does not end")
        names = re.split(r"[\s,]+", _decode(data[at + _LONG.size : end]).strip())
        at = end + 1
        if stage > max(MacroStage):
            continue
        if len(names) > _MACROS:
            raise MilterError(f"it wants more than {_MACROS} macros")
        macros[MacroStage(stage)] = tuple(filter(None, map(_macro_name, names)))
    return Negotiated(Terms(version, Actions(actions & 0x1FF), Steps(steps & 0x1FFFFF), macros))


def _macro_name(name: str) -> str:
    try:
        return canonical(name) if name else ""
    except ValueError:
        return ""  # a macro of that name we do not have in any case


def read_answer(said: Said, data: bytes) -> Answer:
    """An answer without data. Raises `MilterError`."""
    if data:
        raise MilterError(f"{len(data)} octets follow its answer {said}")
    return Answer(said)


def read_reply(data: bytes) -> Answer:
    """A reply of the milter's own, of one or several lines; doubled ``%`` are one, as in Sendmail's formats.

    Raises `MilterError` for what is no SMTP reply from 400 to 599.
    """
    (whole,) = strings(data, 1)
    lines: list[str] = []
    first = _REPLY.match(whole.replace("\r\n", "\n").partition("\n")[0])
    if not first:
        raise MilterError("its reply is no SMTP reply")
    code, detail = first[1], ""
    for line in whole.replace("\r\n", "\n").rstrip("\n").split("\n"):
        match = _REPLY.match(line)
        rest = (match[3] or "") if match and match[1] == code else line
        status = _DETAIL.match(rest)
        if status and status[1] == code[0]:
            detail = detail or status[2]
            rest = rest[status.end() :]
        elif status and not lines:
            raise MilterError("the enhanced status of its reply contradicts the code")
        lines.append(_plain_percent(rest))
    return Answer(Said.REPLY, int(code), detail, "\n".join(lines))


def _plain_percent(value: str) -> str:
    return re.sub(r"%(%?)", r"\1", value)


def read_close(data: bytes) -> Answer:
    """The connection is to be closed. Raises `MilterError`."""
    return read_answer(Said.CLOSE, data)


def read_header_added(data: bytes) -> HeaderAdded:
    name, value = strings(data, 2)
    return HeaderAdded(name, value)


def read_header_inserted(data: bytes) -> HeaderInserted:
    index, rest = _number(data)
    name, value = strings(rest, 2)
    return HeaderInserted(index, name, value)


def read_header_changed(data: bytes) -> HeaderChanged:
    nth, rest = _number(data)
    name, value = strings(rest, 2)
    return HeaderChanged(nth, name, value)


def read_sender(data: bytes) -> SenderChanged:
    path, parameters = _path(data)
    return SenderChanged(path, parameters)


def read_recipient(data: bytes) -> RecipientAdded:
    path, parameters = _path(data)
    return RecipientAdded(path, parameters)


def read_recipient_deleted(data: bytes) -> RecipientDeleted:
    return RecipientDeleted(*strings(data, 1))


def read_quarantine(data: bytes) -> Quarantined:
    return Quarantined(*strings(data or b"\0", 1))


def _path(data: bytes) -> tuple[str, str]:
    """A path, and the parameters where there are any."""
    if data.count(b"\0") < 2:
        return strings(data, 1)[0], ""
    path, parameters = strings(data, 2)
    return path, parameters


def _number(data: bytes) -> tuple[int, bytes]:
    if len(data) < _LONG.size:
        raise MilterError("a number is cut off")
    (number,) = _LONG.unpack_from(data)
    if number >= 1 << 31:
        raise MilterError("an index is negative")
    return number, data[_LONG.size :]


def strings(data: bytes, count: int) -> list[str]:
    """Exactly so many texts, each with its NUL. Raises `MilterError`."""
    parts = data.split(b"\0")
    if len(parts) != count + 1 or parts[-1]:
        raise MilterError(f"expected {count} texts")
    return [_decode(part) for part in parts[:-1]]


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def joined(values: Iterable[str]) -> bytes:
    """Texts one after the other."""
    return b"".join(map(text, values))
